"""Runs `osp` in forked children, whose own processes for `--gpus` are forks too.

A program of its own, so that torch is imported once for all of them. Each line of stdin is a job,
a JSON object with `argv`, `cwd` and perhaps `strike`; each line of stdout answers with the child's
exit status, negative for a signal. A strike is `{rank, owner, name, call, doing}`: at that call of
a function, in the process of that rank, something happens.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

# What the first shared step would import.
import torch._dynamo
from conftest import register_tiny

from osp_cli.cli.app import main
from osp_cli.pipelines.flash_i2v import FlashI2VPipeline
from osp_cli.runtime import contact, distributed, loading, parallel, runner, stages, worker
from osp_cli.runtime.distributed import Seat

OWNERS = {"pipeline": FlashI2VPipeline, "loading": loading, "stages": stages, "parallel": parallel}


def happen(doing: str) -> None:
    """One thing: a signal to this process or to the one that the user started, or the like."""
    what, _, name = doing.partition(" ")
    if what == "out-of-memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    if what == "fail":
        raise RuntimeError("something odd")
    if what == "exit":
        os.write(2, b"a last word\n")
        os._exit(3)
    pid = {"self": os.getpid(), "user": os.getppid()}[what]
    os.kill(pid, getattr(signal, name))
    # Until it has arrived where it leads to.
    time.sleep(0.5)


def install(strike: dict[str, Any]) -> None:
    """Make the `call`-th call of a function begin with what happens then."""
    owner, name = OWNERS[strike["owner"]], strike["name"]
    genuine = getattr(owner, name)
    calls = 0

    def struck(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == strike["call"]:
            for doing in strike["doing"]:
                happen(doing)
        return genuine(*args, **kwargs)

    setattr(owner, name, struck)


class Forked:
    """What is needed of `subprocess.Popen`, of a fork."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        ends = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() >= ends:
                raise subprocess.TimeoutExpired("fork", timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def forking(strike: dict[str, Any] | None) -> Any:
    """In place of `start_process`."""
    struck: set[int] = set()

    def start(seat: Seat) -> Forked:
        again = seat.rank in struck
        struck.add(seat.rank)
        pid = os.fork()
        if pid:
            with Path("pids").open("a") as file:
                file.write(f"{pid}\n")
            return Forked(pid)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        log = os.open(distributed.log_path(seat.folder, seat.rank), os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 2)
        if seat.rank:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        kept = {0, 1, 2, seat.parent, *seat.peers}
        for descriptor in {int(path.name) for path in Path("/proc/self/fd").iterdir()} - kept:
            try:
                os.close(descriptor)
            except OSError:
                continue
        # Processes that take the place of others are not struck again.
        if strike and strike["rank"] == seat.rank and not again:
            install(strike)
        code = worker.serve(seat)
        sys.stdout.flush()
        os._exit(code)

    return start


def child(job: dict[str, Any]) -> None:
    """One run of `osp`; never returns."""
    os.chdir(job["cwd"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123
    distributed.start_process = forking(job.get("strike"))
    code = main(job["argv"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Answer jobs until stdin ends."""
    register_tiny()
    assert contact and runner
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
