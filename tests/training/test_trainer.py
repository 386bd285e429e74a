"""The loop: what resumes is what would have been, and nothing is half-written."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_crew import SETTINGS, Net, is_matrix, loss_of, new_net

from osp_cli.errors import (
    CheckpointError,
    InterruptedRunError,
    InvalidRequestError,
    RuntimeFailureError,
    TerminatedRunError,
)
from osp_cli.stopping import StopSignal
from osp_cli.training.checkpoints import (
    checkpoints_in,
    find_checkpoint,
    read_checkpoint,
    step_of,
)
from osp_cli.training.trainer import LoopSettings, Trainer, share_work, step_generator


def start(folder, settings=SETTINGS, matrices=is_matrix, net=None):
    net = net or new_net()
    return net, Trainer({"net": net}, settings, folder, matrices)


def run(folder, settings=SETTINGS, *, until=None, matrices=is_matrix):
    net, trainer = start(folder, settings, matrices)
    for report in trainer.run(loss_of(net)):
        if report.step == until:
            break
    return net, trainer


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def losses(folder):
    return {record["step"]: record["loss"] for record in map(json.loads, lines(folder))}


@pytest.mark.parametrize(
    "matrices",
    [is_matrix, lambda name, p: False, lambda name, p: name == "net.into.weight"],
    ids=["muon-and-adamw", "adamw", "one-matrix"],
)
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, matrices):
    whole, one = run(tmp_path / "whole", matrices=matrices)
    # Stopped after step 6, two steps behind its checkpoint.
    run(tmp_path / "parts", until=6, matrices=matrices)
    parts, two = run(tmp_path / "parts", matrices=matrices)
    assert two.step == 12
    for key, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[key]), key
    for key, value in one.average.items():
        assert torch.equal(value, two.average[key]), key
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    kept = [find_checkpoint(tmp_path / name, "auto")[0] for name in ("whole", "parts")]
    assert [checkpoint.path.name for checkpoint in kept] == ["step-000012"] * 2
    assert kept[0].state == kept[1].state
    one, two = (checkpoint.load() for checkpoint in kept)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_training_lowers_the_loss_and_leaves_frozen_weights_alone(tmp_path):
    before = new_net()
    net, _ = run(tmp_path, replace(SETTINGS, steps=60, save_every=100, learning_rate=0.02))
    found = losses(tmp_path)
    assert sum(found[k] for k in range(51, 61)) < 0.75 * sum(found[k] for k in range(1, 11))
    assert torch.equal(net.frozen.weight, before.frozen.weight)
    assert not torch.equal(net.into.weight, before.into.weight)
    assert not torch.equal(net.out.bias, before.out.bias)


def test_a_finished_run_does_nothing_more(tmp_path):
    net, _ = run(tmp_path)
    again, trainer = start(tmp_path)
    assert list(trainer.run(loss_of(again))) == []
    assert torch.equal(net.into.weight, again.into.weight)
    # A longer one goes on.
    longer, trainer = start(tmp_path, replace(SETTINGS, steps=14))
    assert [report.step for report in trainer.run(loss_of(longer))] == [13, 14]


def test_matrices_go_to_muon_and_the_rest_to_adamw(tmp_path):
    net, trainer = start(tmp_path)
    (muon, matrix_rate), (adam, rate) = trainer.optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adam, torch.optim.AdamW)
    assert (matrix_rate, rate) == (SETTINGS.matrix_learning_rate, SETTINGS.learning_rate)
    assert {id(p) for p in muon.param_groups[0]["params"]} == {
        id(net.into.weight),
        id(net.out.weight),
    }
    assert {id(p) for p in adam.param_groups[0]["params"]} == {id(net.into.bias), id(net.out.bias)}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed", 43),
        ("learning_rate", 1e-3),
        ("matrix_learning_rate", 0.01),
        ("weight_decay", 0.0),
        ("eps", 1e-10),
        ("max_grad_norm", 0.05),
        ("lr_schedule", "cosine"),
    ],
)
def test_a_run_with_other_settings_is_not_continued(tmp_path, setting, value):
    run(tmp_path, until=4)
    before = contents(tmp_path)
    told = (
        rf"a run with {setting} {json.dumps(getattr(SETTINGS, setting))}, not {json.dumps(value)}"
    )
    with pytest.raises(InvalidRequestError, match=f"{told}$"):
        start(tmp_path, replace(SETTINGS, **{setting: value}))
    assert contents(tmp_path) == before


def test_a_run_of_other_modules_is_not_continued(tmp_path):
    run(tmp_path, until=4)
    with pytest.raises(CheckpointError, match=r"another shape of net\.into\.bias.*net\.out"):
        start(tmp_path, net=Net(hidden=5))
    with pytest.raises(CheckpointError, match=r"without other\.weight; with unknown net\."):
        Trainer({"other": nn.Linear(1, 1, bias=False)}, SETTINGS, tmp_path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(tmp_path, bad):
    net, trainer = start(tmp_path)
    kept = {}

    def held():
        """Everything but the count."""
        states = [optimizer.state_dict()["state"] for optimizer, _ in trainer.optimizers]
        return {
            **{key: value.clone() for key, value in net.state_dict().items()},
            **{f"average {key}": value.clone() for key, value in trainer.average.items()},
            **{
                f"optimizer {number} {index} {key}": value.clone()
                for number, state in enumerate(states)
                for index, values in state.items()
                for key, value in values.items()
            },
        }

    def loss(step):
        if step == 2:
            kept.update(held())
            return net.into.weight.sum() * bad
        return loss_of(net)(step)

    for report in trainer.run(loss, samples_of=lambda step: [2 * step, 2 * step + 1]):
        assert report.skipped == (report.step == 3)
        if report.skipped:
            assert not math.isfinite(report.grad_norm)
            now = held()
            assert now.keys() == kept.keys()
            assert all(torch.equal(now[key], kept[key]) for key in now)
    assert trainer.step == 12
    assert all(value.isfinite().all() for value in net.state_dict().values())
    assert not torch.equal(net.into.weight, kept["into.weight"])
    # JSON has no such numbers, and the log names the samples.
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines(tmp_path)]
    [record] = [record for record in records if record["skipped"]]
    assert (record["step"], record["grad_norm"], record["samples"]) == (3, None, [4, 5])


def test_three_bad_steps_in_a_row_end_the_run(tmp_path):
    net, trainer = start(tmp_path)
    bad = {2, 3, 5, 6, 7}

    def loss(step):
        return loss_of(net)(step) * (math.nan if step in bad else 1.0)

    steps = []
    with pytest.raises(RuntimeFailureError, match=r"up to step 8.*step-000004") as caught:
        steps += [report.step for report in trainer.run(loss)]
    assert caught.value.exit_code == 1
    assert caught.value.kept == (tmp_path / "checkpoints" / "step-000004",)
    assert find_checkpoint(tmp_path, "auto")[0].path == caught.value.kept[0]
    with pytest.raises(RuntimeFailureError, match="there is no checkpoint yet"):
        net, trainer = start(tmp_path / "other")
        list(trainer.run(lambda step: net.into.weight.sum() * math.nan))


def test_passes_add_up(tmp_path):
    """One loss, or its parts one after the other, of which only one graph exists at a time."""
    nets = []
    for name in ("whole", "parts"):
        net, trainer = start(tmp_path / name)
        loss = loss_of(net)

        def parts(step, loss=loss):
            yield 0.25 * loss(step)
            yield 0.75 * loss(step)

        reports = list(trainer.run(loss if name == "whole" else parts))
        nets.append((net, [report.loss for report in reports]))
    (one, first), (two, second) = nets
    assert second == pytest.approx(first, rel=1e-6)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[key], atol=1e-5, rtol=1e-4)


def test_gradients_are_clipped(tmp_path):
    net = nn.Linear(1, 1, bias=False)
    settings = LoopSettings(steps=1, warmup=1, max_grad_norm=0.5)
    trainer = Trainer({"net": net}, settings, tmp_path)
    [report] = trainer.run(lambda step: 300 * net.weight.sum())
    assert report.grad_norm == pytest.approx(300)
    assert net.weight.grad.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_the_average_follows_its_law(tmp_path):
    settings = replace(SETTINGS, ema=0.4)
    net, trainer = start(tmp_path, settings)
    expected = net.into.weight.detach().clone()
    for report in trainer.run(loss_of(net)):
        n = report.step - 1  # updates before this one
        decay = min(0.4, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * net.into.weight.detach()
        torch.testing.assert_close(trainer.average["net.into.weight"], expected)
    assert not torch.equal(net.into.weight, expected)
    trainer.use_average()
    torch.testing.assert_close(net.into.weight.detach(), expected)


def test_without_an_average_the_weights_are_what_they_are(tmp_path):
    net, trainer = start(tmp_path, replace(SETTINGS, ema=0))
    list(trainer.run(loss_of(net)))
    assert trainer.average == {}
    before = net.into.weight.detach().clone()
    trainer.use_average()
    with trainer.averaged():
        assert torch.equal(net.into.weight, before)
    tensors = find_checkpoint(tmp_path, "auto")[0].load()
    assert not [key for key in tensors if key.startswith("average")]


def test_the_average_is_lent(tmp_path):
    net, trainer = run(tmp_path)
    before = net.into.weight.detach().clone()
    with pytest.raises(KeyError), trainer.averaged():
        assert torch.equal(net.into.weight, trainer.average["net.into.weight"])
        assert not torch.equal(net.into.weight, before)
        raise KeyError
    assert torch.equal(net.into.weight, before)


@pytest.mark.parametrize("decay_from", [0.3, 0.5, 1.0])
def test_rates_rise_stay_and_fall_to_zero(decay_from):
    settings = LoopSettings(steps=100, warmup=10, decay_from=decay_from)
    rates = [settings.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    start = int(100 * decay_from)
    assert rates[10:start] == [1.0] * (start - 10)
    falling = rates[start:]
    assert falling == pytest.approx([1 - k / (100 - start) for k in range(len(falling))])
    assert settings.rate(100) == pytest.approx(0.0)


@pytest.mark.parametrize("warmup", [0, 10])
def test_schedules(warmup):
    def rates(schedule):
        settings = LoopSettings(steps=100, warmup=warmup, lr_schedule=schedule)
        return [settings.rate(step) for step in range(warmup, 101)]

    assert set(rates("constant")) == {1.0}
    # Of what is left after the warm-up.
    share = [k / (100 - warmup) for k in range(101 - warmup)]
    assert rates("linear") == pytest.approx([1 - part for part in share])
    cosine = [(1 + math.cos(math.pi * part)) / 2 for part in share]
    assert rates("cosine") == pytest.approx(cosine)
    with pytest.raises(ValueError, match="sawtooth"):
        rates("sawtooth")


def test_both_rates_follow_the_schedule(tmp_path):
    net, trainer = start(tmp_path)
    for report in trainer.run(loss_of(net)):
        for optimizer, rate in trainer.optimizers:
            [group] = optimizer.param_groups
            assert group["lr"] == rate * SETTINGS.rate(report.step - 1)
        assert report.learning_rate == SETTINGS.learning_rate * SETTINGS.rate(report.step - 1)


# --- Stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signum", "kind"),
    [(signal.SIGINT, InterruptedRunError), (signal.SIGTERM, TerminatedRunError)],
)
def test_a_signal_lets_the_step_finish_and_saves(tmp_path, signum, kind):
    net, trainer = start(tmp_path)
    seen = []

    def loss(step):
        if step == 5:
            os.kill(os.getpid(), signum)
        return loss_of(net)(step)

    with StopSignal().installed() as stop, pytest.raises(kind, match="after step 6 of") as caught:
        seen += [report.step for report in trainer.run(loss, stop)]
    assert caught.type is kind
    assert caught.value.kept == (tmp_path / "checkpoints" / "step-000006",)
    whole, _ = run(tmp_path / "whole")
    again, trainer = start(tmp_path)
    assert [report.step for report in trainer.run(loss_of(again))] == list(range(7, 13))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


def test_a_second_signal_does_not_wait(tmp_path):
    net, trainer = start(tmp_path)

    def loss(step):
        for _ in range(2 * (step == 5)):
            os.kill(os.getpid(), signal.SIGINT)
        return loss_of(net)(step)

    with StopSignal().installed() as stop, pytest.raises(KeyboardInterrupt):
        list(trainer.run(loss, stop))
    assert find_checkpoint(tmp_path, "auto")[0].state.step == 4


def test_a_signal_between_steps_saves_what_is_done(tmp_path):
    net, trainer = start(tmp_path)
    saved = []
    with StopSignal().installed() as stop, pytest.raises(InterruptedRunError, match="step 5"):
        for report in trainer.run(loss_of(net), stop, lambda path, step: saved.append(step)):
            if report.step == 5:
                os.kill(os.getpid(), signal.SIGINT)
    assert saved == [4, 5]
    # Of a run that has done nothing yet there is nothing to keep.
    _, trainer = start(tmp_path / "new")
    stop = StopSignal()
    stop.note(signal.SIGINT)
    with pytest.raises(InterruptedRunError) as caught:
        list(trainer.run(loss_of(net), stop))
    assert caught.value.kept == ()
    assert not (tmp_path / "new" / "checkpoints").exists()


# --- What is kept ---------------------------------------------------------------------------------


def test_the_newest_checkpoints_are_kept(tmp_path):
    settings = replace(SETTINGS, save_every=2, keep=2)
    net, trainer = start(tmp_path, settings)
    seen = []

    def on_save(path, step):
        assert read_checkpoint(path).state.step == step
        seen.append([path.name for path in checkpoints_in(tmp_path)])

    list(trainer.run(loss_of(net), on_save=on_save))
    numbers = [[int(name[5:]) for name in names] for names in seen]
    assert numbers == [[2], [2, 4], [4, 6], [6, 8], [8, 10], [10, 12]]


def test_only_the_last_is_saved_if_that_is_asked(tmp_path):
    run(tmp_path, replace(SETTINGS, save_every=0))
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-000012"]


def test_the_log_of_a_resumed_run_reads_as_one(tmp_path):
    run(tmp_path, until=7)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # a killed process was writing
    run(tmp_path)
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == list(range(1, 13))


def test_a_run_that_starts_anew_keeps_the_former_until_its_first_checkpoint(tmp_path):
    run(tmp_path)
    former = replace(SETTINGS, seed=1, save_every=5)
    net = new_net()
    trainer = Trainer({"net": net}, former, tmp_path, is_matrix, resume="never")
    assert trainer.step == 0
    for report in trainer.run(loss_of(net)):
        steps = [step_of(path) for path in checkpoints_in(tmp_path)]
        assert steps == ([4, 8, 12] if report.step < 5 else [5] if report.step < 10 else [5, 10])
        if report.step == 11:
            break
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == list(range(1, 12))


def test_a_named_checkpoint_is_gone_on_from(tmp_path):
    whole, _ = run(tmp_path / "whole")
    named = tmp_path / "whole" / "checkpoints" / "step-000004"
    for folder in (tmp_path / "other", tmp_path / "whole"):
        net = new_net()
        trainer = Trainer(
            {"net": net}, replace(SETTINGS, save_every=3), folder, is_matrix, resume=named
        )
        assert trainer.resumed.path == named
        assert [report.step for report in trainer.run(loss_of(net))] == list(range(5, 13))
        for key, value in whole.state_dict().items():
            assert torch.equal(value, net.state_dict()[key])
    # What came after it was of a run that nobody goes on with.
    steps = [step_of(path) for path in checkpoints_in(tmp_path / "whole")]
    assert steps == [6, 9, 12]


def test_the_batch_and_what_else_is_named_may_not_change(tmp_path):
    def trainer(batch=8, **fingerprint):
        return Trainer(
            {"net": new_net()}, SETTINGS, tmp_path, batch=batch, fingerprint=fingerprint
        )  # fmt: skip

    before = trainer(rank=8, cutoff=(0.1, 0.9), mode="flash")
    before.save()
    assert trainer(rank=8, cutoff=[0.1, 0.9], mode="flash").resumed.state.batch == 8
    with pytest.raises(InvalidRequestError) as caught:
        trainer(batch=4, rank=4, cutoff=(0.1, 0.9), data="clips")
    assert caught.value.message.endswith(
        'batch 8, not 4; data nothing, not "clips"; mode "flash", not nothing; rank 8, not 4'
    )


# --- Killed ---------------------------------------------------------------------------------------


def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(tmp_path, crew):
    """`kill -9` of a process that trains and saves, again and again, then the rest here."""
    settings = replace(SETTINGS, steps=60, save_every=1, keep=2)
    whole, one = run(tmp_path / "whole", settings)
    folder = tmp_path / "killed"
    folder.mkdir()
    random = torch.Generator().manual_seed(5)
    before = -1
    for _ in range(6):
        [pid] = crew.start("train_small", 1, folder=folder, steps=60)
        ends = time.monotonic() + 30
        # So that each gets a little further.
        while not [path for path in checkpoints_in(folder) if step_of(path) > before]:
            assert time.monotonic() < ends
        time.sleep(0.02 * float(torch.rand((), generator=random)))
        os.kill(pid, signal.SIGKILL)
        crew.wait()
        before = find_checkpoint(folder, "auto")[0].state.step
        assert before >= 1
    assert before < 60, "nothing was left to do"
    net, two = run(folder, settings)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, net.state_dict()[key])
    for key, value in one.average.items():
        assert torch.equal(value, two.average[key])
    assert losses(folder) == losses(tmp_path / "whole")
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"step-000059", "step-000060"}


def test_randomness_of_a_step_depends_on_seed_purpose_and_step_alone():
    def draw(*key):
        return torch.randn(4, generator=step_generator(*key))

    torch.manual_seed(9)
    assert torch.equal(draw(1, "dit", 5), draw(1, "dit", 5))
    others = [draw(1, "dit", 5), draw(2, "dit", 5), draw(1, "dit", 6), draw(1, "vae", 5)]
    # Neither do keys run together: 1/dit/15 is not 1/dit/1 with a 5 behind.
    others += [draw(1, "dit", 15), draw(11, "dit", 5)]
    assert len({tuple(numbers.tolist()) for numbers in others}) == len(others)


def shared_loss(net, ranks):
    """The mean over what these ranks draw; what the second draws leaves one parameter out."""
    *_, last = dict(net.named_parameters())

    def loss(step):
        losses = []
        for rank in ranks:
            x = torch.randn(8, 4, generator=step_generator(3, f"data/{rank}", step))
            left_out = {last: net.get_parameter(last).detach()} if rank else {}
            y = torch.func.functional_call(net, left_out, (x,))
            losses.append((y - x[:, :2]).square().mean())
        return torch.stack(losses).mean()

    return loss


def work(rank, folder):
    net, trainer = start(folder)
    reports = list(trainer.run(shared_loss(net, [rank])))
    assert len(reports) == SETTINGS.steps
    torch.save(net.state_dict(), folder / f"rank-{rank}.pt")


def test_processes_that_share_steps_take_the_steps_of_one(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    share_work(2, work, folder)
    one, two = (torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    net, trainer = start(tmp_path / "alone")
    list(trainer.run(shared_loss(net, [0, 1])))
    for name, value in net.state_dict().items():
        assert torch.equal(one[name], two[name])
        torch.testing.assert_close(one[name], value, atol=1e-4, rtol=1e-3)
    # Only one of them wrote.
    steps = [json.loads(line)["step"] for line in lines(folder)]
    assert steps == list(range(1, SETTINGS.steps + 1))


def test_one_process_is_this_one():
    ranks = []
    share_work(1, lambda rank, *rest: ranks.append((rank, rest)), "a", 2)
    assert ranks == [(0, ("a", 2))]
