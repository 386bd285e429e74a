"""Training on two processes: as on one, whoever goes on with it, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from forked_training import COMMAND, Training
from test_interruptions import CODES, INT, KILL, fork_server
from train_runs import make_clips, metrics, tensors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Adam divides by the gradient's size, so that where it is nearly zero a rounding error alone
# decides on a step's direction. A large eps takes that away: float32's own rounding is left.
LINEAR = ("--eps", "1", "--lr", "0.1")
# Both sum in another order; 9e-8 was seen.
ATOL = 1e-6
PAIR = (*LINEAR, "--gpus", "2", "--batch-size", "1")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with fork_server(tmp_path_factory.mktemp("home")) as process:
        yield process


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("data") / "clips")


@pytest.fixture(scope="module")
def lone(server, clips, tmp_path_factory):
    """A run of one process, two samples at a time."""
    training = Training(server, tmp_path_factory.mktemp("lone") / "work", clips)
    outcome = training(*LINEAR)
    assert outcome.code == 0, outcome.err
    return training


@pytest.fixture
def training(server, clips, tmp_path, lone):
    return Training(server, tmp_path / "work", clips, lone.folder / "home" / "cache" / "clips")


@pytest.fixture(scope="module")
def pair(server, clips, tmp_path_factory):
    """A run of two processes with one sample each; nothing was encoded before."""
    training = Training(server, tmp_path_factory.mktemp("pair") / "work", clips)
    outcome = training(*PAIR, processes=2)
    assert (outcome.code, outcome.out) == ([0, 0], "glass/glass.safetensors\n"), outcome.err
    # Only the first speaks, writes and encodes.
    assert (training.folder / "stdout-1").read_text() == ""
    assert (training.folder / "stderr-1").read_text() == ""
    assert outcome.err.count("done in") == 1
    assert "on cpu x2" in outcome.err
    return training


def farthest(one: Training, other: Training) -> float:
    """The largest difference of two adapters."""
    a, b = (tensors(each.run / "glass.safetensors") for each in (one, other))
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def same_losses(one: Training, other: Training) -> None:
    first, second = metrics(one.run), metrics(other.run)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for key in ("loss", "grad_norm"):
        np.testing.assert_allclose(
            [line[key] for line in first], [line[key] for line in second], rtol=1e-5
        )


def test_two_processes_do_what_one_does(lone, pair):
    """Also where a step has an odd sample: of three clips every second batch has one."""
    same_losses(lone, pair)
    assert farthest(lone, pair) <= ATOL
    assert pair.checkpoints == lone.checkpoints
    assert pair.litter() == set()
    # It did learn: these begin at zero.
    trained = tensors(lone.run / "glass.safetensors")
    learnt = [value for name, value in trained.items() if "lora_B" in name]
    assert max(float(np.abs(value).max()) for value in learnt) > 1000 * ATOL


def test_one_goes_on_where_two_were(training, lone, pair):
    outcome = training(*PAIR, processes=2, stage="train", call=4, signals=[KILL])
    assert outcome.code == [1, -9]
    # Who is left tells it, and where to go on from.
    assert "error: another process of the run has ended\n" in outcome.err
    assert "kept: glass/checkpoints/step-000002\nhint: the same command goes on" in outcome.err
    assert "Traceback" not in outcome.err
    alone = training(*LINEAR, "--batch-size", "1")
    assert alone.code == 0, alone.err
    assert "going on after step 2 of 6" in alone.err
    assert "keeps its batch: 2 samples" in alone.err
    same_losses(training, pair)
    assert farthest(training, pair) <= ATOL


def test_two_go_on_where_one_was(training, lone):
    assert training(*LINEAR, stage="train", call=4, signals=[KILL]).code == -9
    outcome = training(*PAIR, processes=2)
    assert outcome.code == [0, 0], outcome.err
    assert "going on after step 2 of 6" in outcome.err
    same_losses(training, lone)
    assert farthest(training, lone) <= ATOL


def test_two_go_on_where_two_were(training, pair):
    outcome = training(*PAIR, processes=2, stage="train", call=4, signals=[INT])
    # Either hears of a signal to one of them.
    assert outcome.code == [CODES[INT], CODES[INT]], outcome.err
    assert "stopped after step 4 of 6" in outcome.err
    assert training.checkpoints[-1] == 4
    assert training(*PAIR, processes=2).code == [0, 0]
    assert metrics(training.run) == metrics(pair.run)
    assert training.result() == pair.result()


def wait_until(true, seconds=120.0):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_nobody_trains_on_when_the_first_process_is_killed(training):
    """The program as it is, from `--gpus 2` on."""
    many = ("--max-steps", "100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "osp_cli", *COMMAND, *PAIR, *many],
        cwd=training.folder,
        env={
            **os.environ,
            "OSP_HOME": str(training.folder / "home"),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: training.checkpoints or process.poll() is not None)
    assert process.poll() is None, process.stdout.read()
    crew = psutil.Process(process.pid).children(recursive=True)
    assert len(crew) == 2
    process.send_signal(signal.SIGKILL)
    _, left = psutil.wait_procs(crew, timeout=20)
    assert left == []
    process.stdout.close()
    process.wait()
    done = training.checkpoints[-1]
    outcome = training(*PAIR, "--max-steps", str(done + 2), processes=2)
    assert outcome.code == [0, 0], outcome.err
    assert f"going on after step {done} of {done + 2}" in outcome.err
    assert [line["step"] for line in metrics(training.run)] == list(range(1, done + 3))
