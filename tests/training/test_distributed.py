"""Two processes take the steps of one, whatever each of them holds; and end together."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from training_crew import BATCH

from osp_cli.errors import InvalidRequestError
from osp_cli.training.checkpoints import checkpoints_in, find_checkpoint
from osp_cli.training.distributed import check_context, current_group, join_group

slow = pytest.mark.slow

# What fp32 sums in another order may differ by, over five steps of Adam with eps 1e-10: parameters
# of about 0.1, losses of about 2, gradients that are 0.01 long.
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


def told(folder, rank=0):
    return json.loads((folder / f"reports-{rank}.json").read_text())


def end_of(folder):
    return find_checkpoint(folder, "auto")[0].load()


def assert_same_run(folder, whole):
    """Every number of every checkpoint's tensors, and of the log."""
    found, expected = end_of(folder), end_of(whole)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, **CLOSE, msg=lambda m, k=key: f"{k}: {m}")
    logs = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (folder, whole)
    ]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    for one, other in zip(*logs, strict=True):
        for key in ("loss", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-5), (key, one["step"])


@pytest.fixture(scope="module")
def lone(crew, tmp_path_factory):
    """A function from what is trained to the run of one process."""
    made = {}

    def run(how):
        if how not in made:
            made[how] = tmp_path_factory.mktemp("lone")
            crew.run("train_wan", 1, folder=made[how], how=how)
        return made[how]

    return run


@pytest.mark.parametrize(
    ("how", "world", "context"),
    [
        ("", 2, 1),
        ("sharded", 2, 1),
        pytest.param("sharded checkpointing", 2, 1, marks=slow),
        pytest.param("full sharded", 2, 1, marks=slow),
        pytest.param("half sharded", 2, 1, marks=slow),
        ("", 2, 2),
        ("sharded", 2, 2),
        pytest.param("full sharded", 4, 2, marks=slow),
    ],
    ids=lambda value: str(value) or "replicated",
)
def test_processes_take_the_steps_of_one(crew, lone, tmp_path, how, world, context):
    """Batches of three among two: shares are uneven, and those of one sample leave one idle."""
    crew.run("train_wan", world, folder=tmp_path, how=how, context=context)
    whole = lone(" ".join(word for word in how.split() if word in ("full", "half")))
    assert_same_run(tmp_path, whole)
    reports = [told(tmp_path, rank) for rank in range(world)]
    for rank, report in enumerate(reports):
        assert (report["rank"], report["world"]) == (rank // context, world // context)
        assert report["reports"] == reports[0]["reports"]
        assert report["saved"] == [2, 4, 5]
        # What is exported is whole everywhere.
        assert report["length"] == pytest.approx(told(whole)["length"], rel=1e-5)


def test_what_a_pass_holds_does_not_matter(crew, lone, tmp_path):
    crew.run("train_wan", 1, folder=tmp_path, batch_size=BATCH)
    assert_same_run(tmp_path, lone(""))


@pytest.mark.parametrize(
    ("began", "world", "how"),
    [
        ("", 1, ""),
        pytest.param("sharded", 1, "", marks=slow),
        ("", 2, "sharded"),
        pytest.param("sharded", 2, "", marks=slow),
    ],
    ids=["two, then one", "shards, then one", "whole, then shards", "shards, then whole"],
)
def test_another_number_of_processes_goes_on(crew, lone, tmp_path, began, world, how):
    crew.run("train_wan", 2, folder=tmp_path, how=began, steps=2)
    crew.run("train_wan", world, folder=tmp_path, how=how)
    assert [line[0] for line in told(tmp_path)["reports"]] == [3, 4, 5]
    assert_same_run(tmp_path, lone(""))


@pytest.mark.parametrize("how", ["", pytest.param("sharded", marks=slow)])
def test_resumed_on_as_many_it_is_the_same_to_the_bit(crew, tmp_path, how):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    crew.run("train_wan", 2, folder=whole, how=how)
    shutil.copytree(whole, parts)
    for path in checkpoints_in(parts)[1:]:
        shutil.rmtree(path)
    crew.run("train_wan", 2, folder=parts, how=how)
    assert len(told(parts)["reports"]) == 3
    one, two = end_of(whole), end_of(parts)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("how", ["", pytest.param("sharded", marks=slow)])
def test_a_step_that_is_bad_on_one_is_skipped_on_all(crew, tmp_path, how):
    crew.run("train_wan", 2, folder=tmp_path, how=how, steps=3, bad=[(1, 1)], save_every=1)
    one, two = told(tmp_path, 0)["reports"], told(tmp_path, 1)["reports"]
    assert [line[3] for line in one] == [line[3] for line in two] == [False, True, False]
    assert math.isnan(one[1][1])
    before, after, later = (
        find_checkpoint(tmp_path, path)[0].load() for path in checkpoints_in(tmp_path)
    )
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not all(torch.equal(later[key], after[key]) for key in before)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_stops_all_after_the_same_step(crew, lone, tmp_path, rank):
    crew.run("train_wan", 2, folder=tmp_path, stop_at=(2, rank))
    for each in (0, 1):
        report = told(tmp_path, each)
        assert len(report["reports"]) == 3
        assert report["saved"] == [2, 3]
        assert report["error"][0] == "TerminatedRunError"
    crew.run("train_wan", 2, folder=tmp_path)
    assert_same_run(tmp_path, lone(""))


def test_three_bad_steps_end_all(crew, tmp_path):
    bad = [(step, 0) for step in (1, 2, 3)]
    crew.run("train_wan", 2, folder=tmp_path, bad=bad, save_every=1)
    for rank in (0, 1):
        name, message = told(tmp_path, rank)["error"]
        assert name == "RuntimeFailureError"
        assert "step-000003" in message


def test_numbers_are_shared(crew):
    crew.run("add_up", 2)


def test_a_process_alone_has_nobody_to_wait_for(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for group in (current_group(), join_group(device=torch.device("cpu"))):
        assert (group.rank, group.world, group.data_rank, group.data_world) == (0, 1, 0, 1)
        assert group.writes
        assert group.mean(0.25) == 0.25
        assert group.maximum(3) == 3
        group.wait_for_all()


@pytest.mark.parametrize(
    ("heads", "tokens", "told"),
    [
        (40, [13312, 20280], None),
        (12, [], None),
        (6, [8], "6 attention heads cannot .* --context-parallel 4"),
        (12, [20280, 33, 18], "samples of 18, 33 tokens cannot"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(heads, tokens, told):
    if told is None:
        check_context(heads, tokens, 4)
    else:
        with pytest.raises(InvalidRequestError, match=told):
            check_context(heads, tokens, 4)


def test_groups_that_do_not_come_out_even_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InvalidRequestError, match=r"3 processes .* --context-parallel 2"):
        join_group(2, torch.device("cpu"))
