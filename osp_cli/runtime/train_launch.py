"""`osp train-lora --gpus N`: the same command in N processes, as torchrun would start them.

They get torchrun's variables, meet through a file and speak through the loopback device only; the
first writes to this terminal, the others to files in a folder that goes away with the run. Signals
are passed on to all. When one fails the others end, and when this process ends, however it ends,
they all do: each looks (`watch_launcher`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import osp_cli
from osp_cli.errors import InvalidRequestError, OspError, RuntimeFailureError

LAUNCHER_VARIABLE = "OSP_LAUNCHER"
# As `osp_cli.training.distributed` reads it, which would import torch.
_MEETING_VARIABLE = "OSP_MEETING"

_POLL_SECONDS = 0.05
_WATCH_SECONDS = 0.5
# Those that are left may tell what happened, and the first may finish a file.
_GRACE_SECONDS = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_COMMAND = (sys.executable, "-m", "osp_cli")


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether another program started this one as a part of a run: ours, torchrun, accelerate."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def launch(argv: Sequence[str], processes: int, *, threads: int = 1) -> int:
    """Run a command line of `osp` in several processes; the exit code of the run.

    Args:
        argv: what follows `osp`.
        processes: how many.
        threads: of each, unless the environment says otherwise.

    Raises:
        InvalidRequestError: on Windows.
        OspError: what a process told that does not write to this terminal, or that one was killed.
    """
    if sys.platform == "win32":
        raise InvalidRequestError("--gpus does not work on Windows", hint="leave out --gpus")
    folder = Path(tempfile.mkdtemp(prefix="osp-train-"))
    crew: list[subprocess.Popen[bytes]] = []
    try:
        with _noted_signals() as signals:
            for rank in range(processes):
                crew.append(_start(argv, rank, processes, folder, threads))
            failures = _watch(crew, signals)
            if not failures and signals and crew[0].returncode:
                return 128 + signals[0]
            return _outcome(crew, failures, folder)
    except OSError as error:
        raise RuntimeFailureError(f"no further process can be started: {error}") from error
    finally:
        for process in crew:
            # Does nothing to one that has ended.
            process.kill()
        for process in crew:
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def watch_launcher() -> None:
    """End this process when the one that `launch`ed it has gone; called as early as can be.

    A process whose launcher was killed would train on, unseen, for hours.
    """
    # Not for what this process may start.
    launcher = int(os.environ.pop(LAUNCHER_VARIABLE))
    meeting = os.environ.get(_MEETING_VARIABLE, "")

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_WATCH_SECONDS)
        if meeting:
            shutil.rmtree(Path(meeting).parent, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start(
    argv: Sequence[str], rank: int, world: int, folder: Path, threads: int
) -> subprocess.Popen[bytes]:
    root = str(Path(osp_cli.__file__).parent.parent)
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        # For libraries that ask; nobody listens there.
        "MASTER_ADDR": "127.0.0.1",
        _MEETING_VARIABLE: str(folder / "meeting"),
        LAUNCHER_VARIABLE: str(os.getpid()),
    }
    with _log_of(folder, rank).open("wb") as log:
        return subprocess.Popen(
            [*_COMMAND, *argv],
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else subprocess.DEVNULL,
            stderr=None if rank == 0 else log,
            env=environment,
            # Ctrl-C on the terminal comes here alone, and is passed on.
            start_new_session=True,
        )


def _log_of(folder: Path, rank: int) -> Path:
    return folder / f"stderr-{rank}"


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Inside, signals are added to a list; what was ignored stays so."""
    noted: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        noted.append(signum)

    foreign = (signal.SIG_IGN, None)
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number in _SIGNALS if main and signal.getsignal(number) not in foreign]
    former = {number: signal.signal(number, note) for number in ours}
    try:
        yield noted
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _watch(crew: Sequence[subprocess.Popen[bytes]], signals: list[int]) -> list[int]:
    """Until all have ended; the ranks of those that failed by themselves, the first first."""
    failures: list[int] = []
    passed_on = 0
    ends = float("inf")
    left = set(range(len(crew)))
    while left:
        while passed_on < len(signals):
            for rank in left:
                crew[rank].send_signal(signals[passed_on])
            passed_on += 1
            if passed_on > 1:
                # The second insists, and whoever waits for another process does not hear it.
                ends = min(ends, time.monotonic() + _GRACE_SECONDS)
        late = time.monotonic() >= ends
        for rank in sorted(left):
            code = crew[rank].poll()
            if code is None:
                if late:
                    crew[rank].kill()
                    crew[rank].wait()
                    left.discard(rank)
                continue
            left.discard(rank)
            if code:
                failures.append(rank)
            if code or rank == 0:
                ends = min(ends, time.monotonic() + _GRACE_SECONDS)
        if left:
            time.sleep(_POLL_SECONDS)
    return failures


def _outcome(crew: Sequence[subprocess.Popen[bytes]], failures: Sequence[int], folder: Path) -> int:
    """The exit code, or the error, of the process whose failure was the others' too."""
    if not failures:
        code = crew[0].returncode
        return code if code >= 0 else RuntimeFailureError.exit_code
    codes = {rank: crew[rank].returncode for rank in failures}
    # Who is left behind ends with 1.
    rank = min(failures, key=lambda each: (codes[each] > 0, codes[each] == 1))
    code, who = codes[rank], f"process {rank + 1} of {len(crew)}"
    if code < 0:
        raise RuntimeFailureError(
            f"{who} was killed by {signal.Signals(-code).name}",
            hint="the system does so when the computer's memory ends" if code == -9 else None,
        )
    # The first has told it itself; and with another code than 1 that was the same.
    if codes.get(0) == code and (rank == 0 or code != 1):
        return code
    raise _told(_log_of(folder, rank), code, who)


def _told(log: Path, code: int, who: str) -> OspError:
    """The error that a process wrote."""
    lines = log.read_text("utf-8", errors="replace").strip().splitlines() or [f"exit code {code}"]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.lstrip().startswith("hint: ")]
    kinds = [kind for kind in OspError.__subclasses__() if kind.exit_code == code]
    kind = kinds[0] if kinds and code != 1 else RuntimeFailureError
    return kind(f"{who}: {(said or lines)[-1]}", hint=hints[-1] if hints else None)
