"""A checkpoint is whole or it is not there, whatever happens while it is written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from osp_cli.errors import CheckpointError, InvalidRequestError, WontFitError
from osp_cli.training import checkpoints
from osp_cli.training.checkpoints import (
    State,
    checkpoints_in,
    find_checkpoint,
    prune,
    read_checkpoint,
    remove_unfinished,
    step_of,
    write_checkpoint,
)

FINGERPRINT = {"seed": 42, "rate": 1e-4}


def tensors(step):
    return {"parameter/a": torch.full((3, 2), float(step)), "optimizer/0/0/step": torch.tensor(2.0)}


def write(run, step):
    return write_checkpoint(run, tensors(step), State(step=step, fingerprint=FINGERPRINT))


def found(run):
    """The step of the one that would be gone on from."""
    checkpoint, _ = find_checkpoint(run, "auto")
    if checkpoint is None:
        return None
    assert torch.equal(
        checkpoint.load()["parameter/a"], tensors(checkpoint.state.step)["parameter/a"]
    )
    return checkpoint.state.step


def test_what_is_written_is_what_is_read(tmp_path):
    state = State(
        step=7, batch=8, settings={"steps": 9}, fingerprint={"betas": [0.9, 0.95]},
        numbers={"optimizer/0/0/step": 3},
    )  # fmt: skip
    whole = torch.arange(12.0).reshape(3, 4)
    # Neither a view nor one that is laid out differently is the memory that it is part of.
    given = {"view": whole[1], "turned": whole.T, "half": torch.ones(2, dtype=torch.bfloat16)}
    path = write_checkpoint(tmp_path, given, state)
    assert path == tmp_path / "checkpoints" / "step-000007"
    checkpoint = read_checkpoint(path)
    assert checkpoint.state.tensors_bytes == (path / "state.safetensors").stat().st_size
    for key in ("step", "batch", "settings", "fingerprint", "numbers"):
        assert getattr(checkpoint.state, key) == getattr(state, key)
    loaded = checkpoint.load()
    assert loaded.keys() == given.keys()
    for key, value in given.items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], value)


def test_the_newest_is_gone_on_from_by_number_not_by_name(tmp_path):
    for step in (250, 1_000_000, 999_999):
        write(tmp_path, step)
    assert [step_of(path) for path in checkpoints_in(tmp_path)] == [250, 999_999, 1_000_000]
    assert found(tmp_path) == 1_000_000
    assert find_checkpoint(tmp_path, "never") == (None, ())
    assert find_checkpoint(tmp_path / "empty", "auto") == (None, ())
    named, notices = find_checkpoint(tmp_path, tmp_path / "checkpoints" / "step-000250")
    assert (named.state.step, notices) == (250, ())


# Everything that saving does to the disk, in its order.
CALLS = [
    *((shutil, "rmtree"), (Path, "mkdir"), (checkpoints, "save_file"), (Path, "write_text")),
    *((os, "fsync"), (Path, "rename")),
]


def calls_of_a_save(run, patch, at=None, error=None):
    """The names of the calls that a save makes; before that of number `at`, something happens."""
    seen = []
    for owner, name in CALLS:
        genuine = getattr(owner, name)

        def called(*args, genuine=genuine, name=name, **kwargs):
            seen.append(name)
            if len(seen) - 1 == at:
                if name == "save_file":
                    # Half of it is there already.
                    Path(args[1]).write_bytes(b"\x10\0\0\0\0\0\0\0{half")
                raise error
            return genuine(*args, **kwargs)

        patch.setattr(owner, name, called)
    write(run, 8)
    prune(run, {run / "checkpoints" / "step-000008"})
    return seen


class Killed(BaseException):
    """As `kill -9`: nobody may clean up."""


def test_killed_at_any_call_there_is_always_a_whole_one(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        write(tmp_path / "plain", 4)
        seen = calls_of_a_save(tmp_path / "plain", patch)
    assert seen.count("fsync") == 4
    # First the files, then their names.
    assert seen.index("rename") > seen.index("fsync") > seen.index("save_file")
    outcomes = []
    for at in range(len(seen)):
        run = tmp_path / str(at)
        write(run, 4)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            calls_of_a_save(run, patch, at, Killed())
        outcomes.append(found(run))
        # And the next run is not in its way.
        remove_unfinished(run)
        assert not list((run / "checkpoints").glob("*.tmp"))
        write(run, 8)
        prune(run, {run / "checkpoints" / "step-000008"})
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000008"]
    assert set(outcomes) == {4, 8}
    # Never back.
    assert outcomes == sorted(outcomes)


def test_a_full_disk_leaves_what_was_there_and_is_told(tmp_path, monkeypatch):
    kept = write(tmp_path, 4)
    with monkeypatch.context() as patch, pytest.raises(WontFitError) as caught:
        calls_of_a_save(tmp_path, patch, 2, OSError(28, "No space left on device"))
    assert caught.value.message.endswith("step-000008 cannot be written: no space left")
    assert caught.value.kept == (kept,)
    assert list((tmp_path / "checkpoints").iterdir()) == [kept]


def test_one_of_the_same_step_is_replaced(tmp_path):
    write(tmp_path, 4)
    write_checkpoint(tmp_path, {"parameter/a": torch.zeros(1)}, State(step=4))
    prune(tmp_path, checkpoints_in(tmp_path))
    [path] = (tmp_path / "checkpoints").iterdir()
    assert read_checkpoint(path).load().keys() == {"parameter/a"}


def cut_short(path):
    data = (path / "state.safetensors").read_bytes()
    (path / "state.safetensors").write_bytes(data[:-1])


def cut_in_the_header(path):
    (path / "state.safetensors").write_bytes((path / "state.safetensors").read_bytes()[:20])


def half_a_json(path):
    (path / "state.json").write_text((path / "state.json").read_text()[:-5])


def no_json(path):
    (path / "state.json").unlink()


def no_tensors(path):
    (path / "state.safetensors").unlink()


def another_json(path):
    (path / "state.json").write_text(json.dumps({"steps": 1}))


def another_file(path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(500)}, path / "state.safetensors")


@pytest.mark.parametrize(
    "damage",
    [cut_short, cut_in_the_header, half_a_json, no_json, no_tensors, another_json, another_file],
)
def test_a_damaged_one_is_told_and_the_one_before_used(tmp_path, damage):
    for step in (4, 8):
        write(tmp_path, step)
    newest = tmp_path / "checkpoints" / "step-000008"
    damage(newest)
    checkpoint, [notice] = find_checkpoint(tmp_path, "auto")
    assert checkpoint.state.step == 4
    assert notice.startswith(f"the checkpoint {newest} is damaged: ")
    assert notice.endswith("; the one before it is used")
    with pytest.raises(CheckpointError, match="step-000008 is damaged"):
        find_checkpoint(tmp_path, newest)
    shutil.rmtree(tmp_path / "checkpoints" / "step-000004")
    nothing, [notice] = find_checkpoint(tmp_path, "auto")
    assert nothing is None
    assert notice.endswith("; the run starts anew")


def test_a_missing_one_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*step-000001"):
        find_checkpoint(tmp_path, tmp_path / "step-000001")


def test_other_settings_are_told_with_both_values(tmp_path):
    checkpoint = read_checkpoint(write(tmp_path, 4))
    checkpoint.check(FINGERPRINT)
    with pytest.raises(InvalidRequestError) as caught:
        checkpoint.check({"seed": 43, "mode": "flash"})
    told = 'is of a run with mode nothing, not "flash"; rate 0.0001, not nothing; seed 42, not 43'
    assert caught.value.message == f"{checkpoint.path} {told}"
    assert caught.value.hint
