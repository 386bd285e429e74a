"""One clip on several graphics cards: the processes, seen from the one that the user started.

That one computes nothing and does not even import torch. It starts one process for each card
(`worker`), as torchrun would: with the same variables, and killing all when one dies. torchrun
itself would take the signals, start with torch a second time, and leave its children behind when it
is killed. The processes meet through a file in a folder of their own and speak through sockets
that they inherit; nothing listens to the network.

The first of them runs the whole request, as a lone process would, and sends its events here. The
others are only told of loading and sampling (`parallel`). When this process ends, however it
ends, they see it and end too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import osp_cli
from osp_cli.errors import InvalidRequestError, OspError, RuntimeFailureError, WontFitError
from osp_cli.events import Done, Event
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.batch import run_each
from osp_cli.runtime.sizes import transformer_shape
from osp_cli.stopping import StopSignal

_POLL_SECONDS = 0.1
# How long the others may tell what happened after the first one has, and how long they may end.
_TELLING_SECONDS = 2.0
_ENDING_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a process is told when it starts.

    Attributes:
        rank: which of them it is; 0 leads.
        size: how many there are.
        device: as of `--device`.
        folder: where they meet.
        parent: descriptor of the socket to the process that the user started.
        peers: of the sockets to the others: the leader's to each, everybody else's to the leader.
    """

    rank: int
    size: int
    device: str
    folder: str
    parent: int
    peers: tuple[int, ...]

    def as_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Seat:
        """The seat that `as_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "peers": tuple(fields["peers"])})


def check_share(request: GenerateRequest) -> None:
    """Refuse a number of cards among which the model cannot be shared out.

    Raises:
        InvalidRequestError: the message names the numbers that are possible.
    """
    if request.gpus == 1:
        return
    if sys.platform == "win32":
        raise InvalidRequestError("--gpus does not work on Windows", hint="leave out --gpus")
    shape = transformer_shape(request.spec, request.spec.find_weights())
    if shape is not None and shape.heads % request.gpus:
        counts = [str(n) for n in range(1, min(shape.heads, 64) + 1) if shape.heads % n == 0]
        raise InvalidRequestError(
            f"{request.model} has {shape.heads} attention heads, "
            f"which cannot be shared out evenly to --gpus {request.gpus}",
            hint=f"--gpus may be {', '.join(counts)}",
        )


def run_together(
    items: Sequence[GenerateRequest | OspError], *, batch: bool, stop: StopSignal
) -> Iterator[Event]:
    """The events of requests that are made by several processes each; those end with it.

    Args:
        items: as `run_batch` takes them; without `batch`, one request or those of a contact sheet.
        batch: whether they are clips of a batch.
        stop: of the signals that come here.

    Raises:
        OspError: as by `run`, `run_batch` and `run_contact`.
    """
    with contextlib.closing(Crew(stop)) as crew:
        requests = [item for item in items if not isinstance(item, OspError)]
        if requests[0].preview == "contact":
            yield from crew.run("contact", requests)
        elif batch:
            yield from run_each(items, lambda request: crew.run("run", [request]))
        else:
            yield from crew.run("run", requests)


class Crew:
    """The processes; they are started for the first request, and again when one has died.

    Args:
        stop: of the signals that come here.
    """

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop
        self._kind: tuple[int, str] | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lines: list[Connection[Any, Any]] = []
        self._folder: Path | None = None

    def run(self, job: str, requests: Sequence[GenerateRequest]) -> Iterator[Event]:
        """The events of one job.

        Args:
            job: `run`, or `contact` for a sheet.
            requests: one, or those of the sheet.

        Raises:
            OspError: what the leader raised, or how a process ended.
        """
        started = time.perf_counter()
        kind = requests[0].gpus, requests[0].device
        if kind != self._kind:
            self.close()
            self._start(*kind)
        sound = False
        try:
            self._send(job, requests)
            for event in self._events():
                if isinstance(event, Done):
                    # To the user, starting processes and importing torch in them takes time too.
                    waited = max(0.0, time.perf_counter() - started - event.seconds)
                    timings = {"start": waited, **event.timings}
                    event = Done(event.seconds + waited, timings, event.skipped_steps)
                yield event
            sound = True
        except _LeaderError as told:
            sound = True
            raise told.error from None
        finally:
            if not sound:
                self._abort()

    def close(self) -> None:
        """Let them end; those that do not are killed."""
        if self._processes:
            with contextlib.suppress(OSError):
                self._lines[0].send(("end", None))
        try:
            self._wait(_ENDING_SECONDS)
        finally:
            self._clear()

    def _start(self, size: int, device: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="osp-gpus-"))
        ups = [Pipe() for _ in range(size)]
        sides = [Pipe() for _ in range(size - 1)]
        self._lines = [ours for ours, _ in ups]
        theirs = [their for _, their in ups]
        peers = [tuple(lead for lead, _ in sides), *((follow,) for _, follow in sides)]
        try:
            for rank in range(size):
                seat = Seat(
                    rank=rank,
                    size=size,
                    device=device,
                    folder=str(self._folder),
                    parent=theirs[rank].fileno(),
                    peers=tuple(line.fileno() for line in peers[rank]),
                )
                self._processes.append(start_process(seat))
        except OSError as error:
            self._abort()
            raise RuntimeFailureError(f"no further process can be started: {error}") from error
        except BaseException:
            self._abort()
            raise
        finally:
            # Whoever holds a second end open would not be seen to die.
            for line in (*theirs, *(line for pair in sides for line in pair)):
                line.close()
        self._kind = size, device

    def _events(self) -> Iterator[Event]:
        """What the leader tells, until its job is done; meanwhile signals are passed on to it."""
        told = False
        with contextlib.ExitStack() as patience:
            while True:
                if self._stop.requested and not told:
                    told = True
                    self._send("stop", self._stop.signum)
                for line in wait(self._lines, _POLL_SECONDS):
                    word, value = self._receive(line)
                    if word == "finished":
                        return
                    if word == "event":
                        yield value
                        self._send("heard", None)
                    elif word == "patient":
                        # As in one process: while a step runs, the first signal is only noted.
                        patience.close()
                        if value:
                            patience.enter_context(self._stop.patience())
                        self._send("heard", None)
                    elif line is self._lines[0] and word == "failed":
                        raise _LeaderError(value)
                    else:
                        raise self._reason([(line, word, value)])

    def _receive(self, line: Any) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = line.recv()
            return message
        except (EOFError, OSError):
            raise self._reason([]) from None

    def _send(self, word: str, value: Any) -> None:
        try:
            self._lines[0].send((word, value))
        except OSError:
            raise self._reason([]) from None

    def _reason(self, told: list[tuple[Any, str, Any]]) -> OspError:
        """Why they cannot go on, of all that they tell and of how they ended.

        Args:
            told: messages that have been read already, each with its line.
        """
        left: list[Any] = list(self._lines)
        ends = time.monotonic() + _TELLING_SECONDS
        while left and (seconds := ends - time.monotonic()) > 0:
            ready: list[Any] = wait(left, seconds)
            for line in ready:
                try:
                    told.append((line, *line.recv()))
                except (EOFError, OSError):
                    left.remove(line)
        errors = {word: error for _, word, error in reversed(told) if word in ("broken", "cut")}
        memory = [error for _, _, error in told if isinstance(error, WontFitError)]
        spoke = [line for line, *_ in told]
        silent = [rank for rank, line in enumerate(self._lines) if line not in spoke]
        # From causes to what follows from them.
        reasons: tuple[OspError | None, ...] = (
            self._killed(),
            next(iter(memory), None),
            errors.get("broken"),
            self._ended(silent),
            errors.get("cut"),
        )
        lost_touch = RuntimeFailureError(f"the {len(self._processes)} processes lost touch")
        return next((reason for reason in reasons if reason is not None), lost_touch)

    def _killed(self) -> OspError | None:
        for number, process in enumerate(self._processes, 1):
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_POLL_SECONDS)
                if code < 0:
                    return RuntimeFailureError(
                        f"process {number} of {len(self._processes)} was killed by "
                        f"{signal.Signals(-code).name}",
                        hint="the system does so when the computer's memory ends"
                        if code == -9
                        else None,
                    )
        return None

    def _ended(self, ranks: Sequence[int]) -> OspError | None:
        """Of those that told no reason, how the first ended and what it wrote last."""
        for rank in ranks:
            process = self._processes[rank]
            if process.poll():
                last = _last_line(log_path(str(self._folder), rank))
                return RuntimeFailureError(
                    f"process {rank + 1} of {len(self._processes)} ended with exit code "
                    f"{process.returncode}{last and ': '}{last}"
                )
        return None

    def _abort(self) -> None:
        """End them now: the leader may clean up behind itself, the others have nothing to."""
        try:
            for process in self._processes[1:]:
                process.kill()
            for process in self._processes[:1]:
                process.send_signal(signal.SIGINT)
            self._wait(_ENDING_SECONDS)
        finally:
            self._clear()

    def _wait(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, ends - time.monotonic()))

    def _clear(self) -> None:
        for process in self._processes:
            # Does nothing to one that has ended.
            process.kill()
        for process in self._processes:
            process.wait()
        for line in self._lines:
            line.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._kind, self._processes, self._lines, self._folder = None, [], [], None


class _LeaderError(Exception):
    """The leader's job failed, but the processes are sound."""

    def __init__(self, error: OspError) -> None:
        self.error = error


def start_process(seat: Seat) -> subprocess.Popen[bytes]:
    """The process of one seat; its stderr goes to a file, as bars and sentences are told here."""
    root = str(Path(osp_cli.__file__).parent.parent)
    paths = (root, *filter(None, [os.environ.get("PYTHONPATH")]))
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        # Together they should not have more threads than there are cores.
        "OMP_NUM_THREADS": str(max(1, _num_cores() // seat.size)),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "RANK": str(seat.rank),
        "LOCAL_RANK": str(seat.rank),
        "WORLD_SIZE": str(seat.size),
    }
    with log_path(seat.folder, seat.rank).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "osp_cli.runtime.worker", seat.as_json()],
            stdin=subprocess.DEVNULL,
            # `-o -` is the leader's to write.
            stdout=None if seat.rank == 0 else subprocess.DEVNULL,
            stderr=log,
            env=environment,
            pass_fds=(seat.parent, *seat.peers),
            # Ctrl-C on the terminal comes here alone, and is passed on.
            start_new_session=True,
        )


def log_path(folder: str, rank: int) -> Path:
    """What a process writes to stderr."""
    return Path(folder) / f"stderr-{rank}"


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text("utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""
