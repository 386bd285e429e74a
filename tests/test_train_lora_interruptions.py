"""Training that is stopped, killed or cut off: nothing is half-written, and it goes on exactly."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from forked_training import COMMAND, Training
from test_interruptions import CODES, INT, KILL, TERM, fork_server
from train_runs import STEPS, contents, make_clips, metrics

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with fork_server(tmp_path_factory.mktemp("home")) as process:
        yield process


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("data") / "clips")


@pytest.fixture(scope="module")
def whole(server, clips, tmp_path_factory):
    """A run that nobody disturbs."""
    training = Training(server, tmp_path_factory.mktemp("whole") / "work", clips)
    before = contents(clips)
    outcome = training()
    assert (outcome.code, outcome.out) == (0, "glass/glass.safetensors\n"), outcome.err
    assert contents(clips) == before
    assert [line["step"] for line in metrics(training.run)] == list(range(1, STEPS + 1))
    assert training.checkpoints == [2, 4, 6]
    return training


@pytest.fixture
def training(server, clips, tmp_path, whole):
    """A folder to train in, where the clips are encoded already."""
    return Training(server, tmp_path / "work", clips, whole.folder / "home" / "cache" / "clips")


@pytest.fixture
def bare(server, clips, tmp_path):
    """The same with nothing encoded."""
    return Training(server, tmp_path / "work", clips)


def said(outcome, code, *words):
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


# Signals that can be caught


@pytest.mark.parametrize(
    ("number", "stage", "call", "after"), [(INT, "train", 3, 3), (TERM, "checkpoint", 1, 2)]
)
def test_one_signal_finishes_the_step(training, whole, stage, call, after, number):
    outcome = training(stage=stage, call=call, signals=[number])
    kept = f"glass/checkpoints/step-{after:06d}"
    said(outcome, CODES[number], "finishing this step", f"stopped after step {after} of {STEPS}")
    # Its last words are what to do now.
    assert outcome.err.endswith(f"kept: {kept}\nhint: the same command goes on from it\n")
    assert training.checkpoints[-1] == after
    assert [line["step"] for line in metrics(training.run)] == list(range(1, after + 1))
    assert not (training.run / "glass.safetensors").exists()
    again = training()
    assert again.code == 0
    assert f"going on after step {after} of {STEPS}" in again.err
    assert metrics(training.run) == metrics(whole.run)
    assert training.result() == whole.result()


def test_the_second_signal_does_not_wait(training, whole):
    outcome = training(stage="train", call=4, signals=[INT, INT])
    said(outcome, 130, "interrupted; steps after the last checkpoint are lost")
    assert outcome.err.endswith(
        "kept: glass/checkpoints/step-000002\nhint: the same command goes on from it\n"
    )
    training.is_whole(whole)


@pytest.mark.parametrize(("stage", "number"), [("look", INT), ("keep clip", TERM)])
def test_stopped_before_the_first_step(bare, whole, stage, number):
    outcome = bare(stage=stage, signals=[number])
    said(outcome, CODES[number], "before the first checkpoint; the same command begins again")
    cache = bare.folder / "home" / "cache" / "clips"
    kept = [path for path in cache.rglob("*") if path.is_file()]
    assert all(path.suffix == ".safetensors" for path in kept)
    assert len(kept) == (0 if stage == "look" else 1)
    bare.is_whole(whole)


def test_stopped_while_the_adapter_is_written(training, whole):
    outcome = training(stage="install", signals=[INT])
    said(outcome, 130, "kept: glass/checkpoints/step-000006")
    training.is_whole(whole)


def test_the_json_stream_ends_with_an_error(training):
    outcome = training("--json", stage="train", call=3, signals=[TERM])
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert events[-1]["type"] == "error"
    assert events[-1]["exit_code"] == outcome.code == 143
    assert events[-1]["kept"] == ["glass/checkpoints/step-000003"]


# kill -9

# Where it may strike, and how often a whole run comes by.
PLACES = {
    "look": 1, "train": STEPS, "log": STEPS, "checkpoint": 3, "checkpoint to disk": 15,
    "name checkpoint": 3, "prune": 3, "page": 4, "export": 1, "install": 1,
}  # fmt: skip
POINTS = random.Random(8).sample([(s, k + 1) for s, n in PLACES.items() for k in range(n)], 5)
CHOSEN = [("checkpoint to disk", 6), ("name checkpoint", 2)]


@pytest.mark.parametrize(("stage", "call"), sorted({*POINTS, *CHOSEN}))
def test_killed(training, whole, stage, call):
    outcome = training(stage=stage, call=call, signals=[KILL])
    assert (outcome.code, outcome.out) == (-9, ""), (stage, outcome.err)
    training.is_whole(whole)


def test_killed_while_clips_are_encoded(bare, whole):
    assert bare(stage="keep clip", signals=[KILL]).code == -9
    cache = bare.folder / "home" / "cache" / "clips"
    assert len(list(cache.glob("??/*.safetensors"))) == 1
    bare.is_whole(whole)
    kept = {path.name: path.read_bytes() for path in cache.glob("??/*.safetensors")}
    other = whole.folder / "home" / "cache" / "clips"
    assert kept == {path.name: path.read_bytes() for path in other.glob("??/*.safetensors")}


def test_killed_again_and_again(training, whole):
    for stage, call in (("train", 3), ("checkpoint to disk", 2), ("log", 2), ("prune", 1)):
        assert training(stage=stage, call=call, signals=[KILL]).code == -9
    training.is_whole(whole)


def test_killed_while_samples_are_made(training, whole):
    more = ("--sample-every", "2", "--sample-prompt", "pan")
    assert training(*more, stage="sample", call=2, signals=[KILL]).code == -9
    training.is_whole(whole, *more)
    page = (training.run / "index.html").read_text()
    # Also those that the killed part made.
    for name in ("Before training", "After step 2", "After step 4", "After step 6"):
        assert name in page


# Files that are damaged


def spoil(path: Path) -> None:
    """Turn a byte in its middle over."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def test_the_checkpoint_before_a_damaged_one(training, whole):
    assert training(stage="train", call=6, signals=[KILL]).code == -9
    os.truncate(training.run / "checkpoints" / "step-000004" / "state.safetensors", 10_000)
    outcome = training()
    assert outcome.code == 0, outcome.err
    assert "step-000004 is damaged" in outcome.err
    assert "the one before it is used" in outcome.err
    assert "going on after step 2 of 6" in outcome.err
    training.equals(whole)


def test_a_damaged_clip_in_the_cache(bare, whole):
    assert bare("--cache-only", command=[*COMMAND]).code == 0
    spoil(next((bare.folder / "home" / "cache" / "clips").glob("??/*.safetensors")))
    said(bare(), 1, "gone or damaged", "hint: give the same command again")
    bare.is_whole(whole)


# Where nobody reads, and where nothing can be written


def test_nobody_reads_the_result(training, whole):
    outcome = training(closed=True)
    assert outcome.code == 0, outcome.err
    training.equals(whole)


def test_nobody_reads_the_events(training, whole):
    outcome = training("--json", closed=True)
    assert (outcome.code, "Traceback" in outcome.err) == (0, False)
    training.is_whole(whole)


@pytest.fixture
def small_disk(training):
    """The run's folder is a disk of 16 MB; needs the right to mount one."""
    training.run.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(training.run)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a file system here")
    yield training.run
    subprocess.run(["umount", "-l", str(training.run)], check=True, capture_output=True)


def test_a_full_disk(training, whole, small_disk):
    (small_disk / "thesis").write_bytes(bytes(8_000_000))
    refused = training("--overwrite")
    said(refused, 4, "4 checkpoints take up to", "MB are free", "--keep 1")
    (small_disk / "thesis").unlink()
    outcome = training(stage="train", call=5, fill=str(small_disk / "thesis"))
    said(outcome, 4, "step-000006 cannot be written: no space left")
    assert "kept: glass/checkpoints/step-000004\n" in outcome.err
    (small_disk / "thesis").unlink()
    assert training.checkpoints == [2, 4]
    assert training.litter() == set()
    training.is_whole(whole)
