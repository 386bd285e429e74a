"""The loop: what resumes is what would have been, and nothing is half-written."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from osp_cli.errors import CheckpointError, InvalidRequestError
from osp_cli.training.checkpoints import find_checkpoint
from osp_cli.training.trainer import LoopSettings, Trainer, share_work, step_generator

SETTINGS = LoopSettings(steps=12, warmup=3, save_every=4, weight_decay=0.01)


class Net(nn.Module):
    """A matrix for Muon, vectors for AdamW, and a layer that is not trained."""

    def __init__(self, hidden=6):
        super().__init__()
        self.into = nn.Linear(4, hidden)
        self.out = nn.Linear(hidden, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x):
        return self.frozen(self.out(torch.tanh(self.into(x))))


def new_net():
    torch.manual_seed(0)
    return Net()


def loss_of(net):
    """Randomness of a step from its number alone, as a trainer's objective must have it."""

    def loss(step):
        x = torch.randn(8, 4, generator=step_generator(3, "data", step))
        return (net(x) - x[:, :2]).square().mean()

    return loss


def is_matrix(name, parameter):
    return parameter.ndim == 2


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


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


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

    def loss(step):
        if step == 2:
            kept.update({k: v.clone() for k, v in net.state_dict().items()})
            kept.update({f"average {k}": v.clone() for k, v in trainer.average.items()})
            return net.into.weight.sum() * bad
        return loss_of(net)(step)

    for report in trainer.run(loss):
        if report.step == 3:
            assert not math.isfinite(report.grad_norm)
            for key, value in net.state_dict().items():
                assert torch.equal(value, kept[key])
            for key, value in trainer.average.items():
                assert torch.equal(value, kept[f"average {key}"])
    assert trainer.step == 12
    assert all(value.isfinite().all() for value in net.state_dict().values())
    assert not torch.equal(net.into.weight, kept["into.weight"])


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


def test_both_rates_follow_the_schedule(tmp_path):
    net, trainer = start(tmp_path)
    for report in trainer.run(loss_of(net)):
        for optimizer, rate in trainer.optimizers:
            [group] = optimizer.param_groups
            assert group["lr"] == rate * SETTINGS.rate(report.step - 1)


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
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, SETTINGS.steps + 1))


def test_one_process_is_this_one():
    ranks = []
    share_work(1, lambda rank, *rest: ranks.append((rank, rest)), "a", 2)
    assert ranks == [(0, ("a", 2))]
