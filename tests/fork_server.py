"""Runs `osp` in forked children that send themselves a signal at a chosen stage.

A program of its own, so that torch is imported once for all cases. Each line of stdin is a job, a
JSON object with `argv`, `cwd`, `stage` and `signals`; each line of stdout answers with the child's
exit status, negative for a signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from conftest import register_tiny

from osp_cli.cli.app import main
from osp_cli.media import ffmpeg, files
from osp_cli.pipelines.flash_i2v import FlashI2VPipeline
from osp_cli.runtime import batch, contact, freezing, loading, runner, stages

# Where a signal may strike: owner, name of the function, and at which of its calls.
STAGES = {
    "load": (loading, "_load_vae", 1),
    "condition": (FlashI2VPipeline, "condition", 1),
    "first step": (FlashI2VPipeline, "velocity", 1),
    "second step": (FlashI2VPipeline, "velocity", 2),
    "save latents": (freezing, "_write", 1),
    "decode": (stages, "decode_frames", 1),
    "encode": (ffmpeg.Encoder, "write", 2),
    "rename": (files, "_publish", 2),
    "clean up": (runner, "_discard", 1),
    "second video": (stages, "decode_frames", 2),
}


def strike(owner: object, name: str, call: int, signals: list[int]) -> None:
    """Make the `call`-th call of a function begin with signals to this process."""
    genuine: Callable[..., object] = getattr(owner, name)
    calls = 0

    def struck(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            for number in signals:
                os.kill(os.getpid(), number)
        return genuine(*args, **kwargs)

    setattr(owner, name, struck)


def child(job: dict[str, object]) -> None:
    """One run of `osp`; never returns."""
    folder = Path(str(job["cwd"]))
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123
    if job["stage"]:
        owner, name, call = STAGES[str(job["stage"])]
        strike(owner, name, call, [int(number) for number in job["signals"]])  # type: ignore[attr-defined]
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
