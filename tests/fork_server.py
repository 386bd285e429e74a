"""Runs `osp` in forked children that send themselves a signal at a chosen stage.

A program of its own, so that torch is imported once for all cases. Each line of stdin is a job, a
JSON object with `argv`, `cwd`, `stage` and `signals`; each line of stdout answers with the child's
exit status, negative for a signal. `stdin` and `stdout` may name other files than an empty one and
one called `stdout`; with `ffmpeg` the signals are for the child's ffmpeg. `call` is which of the
stage's calls is struck, `environment` is added to the child's. With `processes` so many children
share the run as those of `train_launch` do, the last one is struck, and the answer is a list;
`closed` gives the child a stdout that nobody reads; `fill` names a file that grows, when it is
struck, until the disk is full.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pydantic  # by Typer, in every child
from conftest import register_tiny

from osp_cli.cli.app import main
from osp_cli.media import ffmpeg, files
from osp_cli.media.live import recording
from osp_cli.pipelines.flash_i2v import FlashI2VPipeline
from osp_cli.runtime import (
    batch,
    contact,
    extending,
    freezing,
    loading,
    runner,
    stages,
    stream_engine,
    stream_state,
    train_encoding,
    train_export,
    train_steps,
    training,
)
from osp_cli.runtime.train_page import RunPage
from osp_cli.runtime.train_samples import TrainingSamples
from osp_cli.training import checkpoints, trainer
from osp_cli.training.dataset.cache import ClipCache
from osp_cli.training.metrics import MetricsLog

# Where a signal may strike: owner, name of the function, and at which of its calls.
STAGES = {
    "load": (loading, "_load_vae", 1),
    "condition": (FlashI2VPipeline, "condition", 1),
    "first step": (FlashI2VPipeline, "velocity", 1),
    "second step": (FlashI2VPipeline, "velocity", 2),
    "save latents": (freezing, "_write", 1),
    "decode": (stages, "decode_frames", 1),
    "encode": (ffmpeg.Encoder, "write", 2),
    "rename": (files, "publish", 2),
    "clean up": (runner, "_discard", 1),
    "second video": (stages, "decode_frames", 2),
    # Of a stream.
    "copy": (extending._Run, "_lead_in", 1),
    "first chunk": (stream_engine.Maker, "__call__", 1),
    "second chunk": (stream_engine.Maker, "__call__", 2),
    "third chunk": (stream_engine.Maker, "__call__", 3),
    "decode chunk": (stream_engine.Shower, "__call__", 2),
    "write chunk": (extending._Run, "_write", 3),
    "write third": (extending._Run, "_write", 4),
    # The first state is that before all chunks.
    "chunk written": (extending, "save_stream", 3),
    "state": (stream_state, "_keep_as_before", 3),
    "state written": (extending._Run, "_snapshots", 2),
    "close": (extending._Run, "_close", 1),
    "publish": (recording.Recording, "_publish", 1),
    "join": (recording, "join", 1),
    # After five states and the video.
    "sidecar": (files, "publish", 7),
    # Of training.
    "look": (training, "new_run", 1),
    "encode clip": (train_encoding, "encode_window", 2),
    "keep clip": (ClipCache, "write", 2),
    "train": (trainer.Trainer, "_take_step", 1),
    "log": (MetricsLog, "write", 1),
    "checkpoint": (trainer, "write_checkpoint", 1),
    "checkpoint to disk": (checkpoints, "force_to_disk", 1),
    "name checkpoint": (checkpoints, "_give_name", 1),
    "prune": (trainer, "prune", 1),
    "sample": (TrainingSamples, "_write", 1),
    "page": (RunPage, "write", 1),
    "export": (train_steps, "export", 1),
    "install": (train_export, "install", 1),
}


def fill(path: Path) -> None:
    """Leave no room on a disk."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def strike(
    owner: object, name: str, call: int, signals: list[int], *, ffmpeg: bool, full: str | None
) -> None:
    """Make the `call`-th call of a function begin with signals to this process, or its ffmpeg."""
    genuine: Callable[..., object] = getattr(owner, name)
    calls = 0

    def struck(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            if full:
                fill(Path(full))
            found = psutil.Process().children(recursive=True) if ffmpeg else [psutil.Process()]
            for process in found:
                for number in signals:
                    process.send_signal(number)
                    if threading.current_thread() is not threading.main_thread():
                        # Two at once would be one to Python.
                        time.sleep(0.2)
            while ffmpeg and any(process.status() != psutil.STATUS_ZOMBIE for process in found):
                time.sleep(0.01)
        return genuine(*args, **kwargs)

    setattr(owner, name, struck)


def child(job: dict[str, object]) -> None:
    """One run of `osp`; never returns."""
    folder = Path(str(job["cwd"]))
    os.chdir(folder)
    os.environ.update(job.get("environment") or {})  # type: ignore[call-overload]
    for number, name in ((1, "stdout"), (2, "stderr")):
        name = str(job.get(name) or name)
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    if job.get("closed"):
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(reader)
    os.dup2(os.open(str(job.get("stdin") or os.devnull), os.O_RDONLY), 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if job["stage"]:
        owner, name, call = STAGES[str(job["stage"])]
        call = int(str(job.get("call") or call))
        numbers = [int(number) for number in job["signals"]]  # type: ignore[attr-defined]
        strike(owner, name, call, numbers, ffmpeg=bool(job.get("ffmpeg")), full=job.get("fill"))
    code = main([str(word) for word in job["argv"]])  # type: ignore[attr-defined]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Answer jobs until stdin ends."""
    register_tiny()
    assert batch and contact and pydantic
    # A child would copy all that it looks at, and finds nothing.
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        job = json.loads(line)
        sys.stdout.write(f"{crew(job) if job.get('processes') else lone(job)}\n")
        sys.stdout.flush()


def lone(job: dict[str, object]) -> int:
    """The exit status of one child."""
    pid = os.fork()
    if pid == 0:
        child(job)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def crew(job: dict[str, object]) -> list[int]:
    """The exit statuses of children that share a run."""
    world = int(str(job["processes"]))
    with tempfile.TemporaryDirectory() as folder:
        pids = []
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                shared = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
                shared |= {"OSP_MEETING": f"{folder}/meeting", "GLOO_SOCKET_IFNAME": "lo"}
                own = {**job, "environment": {**(job.get("environment") or {}), **shared}}  # type: ignore[dict-item]
                if rank:
                    own |= {"stdout": f"stdout-{rank}", "stderr": f"stderr-{rank}"}
                if rank < world - 1:
                    own["stage"] = None
                child(own)
            pids.append(pid)
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    serve()
