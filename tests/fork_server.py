"""Runs `osp` in forked children that send themselves a signal at a chosen stage.

A program of its own, so that torch is imported once for all cases. Each line of stdin is a job, a
JSON object with `argv`, `cwd`, `stage` and `signals`; each line of stdout answers with the child's
exit status, negative for a signal. `stdin` and `stdout` may name other files than an empty one and
one called `stdout`; with `ffmpeg` the signals are for the child's ffmpeg.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
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
)

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
}


def strike(owner: object, name: str, call: int, signals: list[int], *, ffmpeg: bool) -> None:
    """Make the `call`-th call of a function begin with signals to this process, or its ffmpeg."""
    genuine: Callable[..., object] = getattr(owner, name)
    calls = 0

    def struck(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
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
    for number, name in ((1, "stdout"), (2, "stderr")):
        name = str(job.get(name) or name)
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    os.dup2(os.open(str(job.get("stdin") or os.devnull), os.O_RDONLY), 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if job["stage"]:
        owner, name, call = STAGES[str(job["stage"])]
        numbers = [int(number) for number in job["signals"]]  # type: ignore[attr-defined]
        strike(owner, name, call, numbers, ffmpeg=bool(job.get("ffmpeg")))
    code = main([str(word) for word in job["argv"]])  # type: ignore[attr-defined]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Answer jobs until stdin ends."""
    register_tiny()
    assert batch and contact
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(job)
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
