"""One of several processes that make a clip together: `python -m osp_cli.runtime.worker SEAT`."""

from __future__ import annotations

import _thread
import contextlib
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from osp_cli.errors import InterruptedRunError, OspError, RuntimeFailureError
from osp_cli.events import Event
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.distributed import Seat
from osp_cli.stopping import StopSignal

# After the process that the user started has gone, the leader may clean up so long.
_ORPHAN_SECONDS = 3.0

_Line = Connection
_Queue = queue.SimpleQueue[tuple[str, Any]]


def main() -> int:
    """Serve until told to end; the exit code."""
    return serve(Seat.from_json(sys.argv[1]))


def serve(seat: Seat) -> int:
    """Take a seat; the exit code of the process."""
    parent: _Line[Any, Any] = Connection(seat.parent)
    peers: list[_Line[Any, Any]] = [Connection(descriptor) for descriptor in seat.peers]
    return _lead(seat, parent, peers) if seat.rank == 0 else _follow(seat, parent, peers[0])


class _RelayedStop(StopSignal):
    """The stop signal of a process that gets none itself, and tells when one would only be noted.

    Args:
        tell: sends word to the process that gets them.
    """

    def __init__(self, tell: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._tell = tell

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        self._tell("patient", True)
        try:
            with super().patience():
                yield
        finally:
            self._tell("patient", False)


def _lead(seat: Seat, parent: _Line[Any, Any], peers: list[_Line[Any, Any]]) -> int:
    def tell(word: str, value: Any) -> None:
        try:
            parent.send((word, value))
        except OSError:
            # Nobody is there any more.
            raise SystemExit(1) from None

    # Also where Ctrl-C was ignored by whoever started all this: it is how the leader is ended.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def tell_and_wait(word: str, value: Any) -> None:
        # As a generator stands still at `yield`: what is told has been dealt with when this goes
        # on, so that a signal finds the other process where this one is.
        tell(word, value)
        heard.get()

    stop = _RelayedStop(tell_and_wait)
    jobs, heard = _Queue(), _Queue()
    threading.Thread(target=_hear, args=(parent, stop, jobs, heard, seat), daemon=True).start()
    try:
        crew, run = _prepare(seat, peers, stop)
    except (KeyboardInterrupt, SystemExit):
        return 1
    except BaseException as error:  # noqa: BLE001 - told as one sentence, by another process
        tell(*_as_told(error))
        return 1
    while True:
        word, value = jobs.get()
        if word == "end":
            crew.end()
            return 0
        try:
            for event in run(word, value):
                tell_and_wait("event", event)
            tell("finished", None)
        except (KeyboardInterrupt, SystemExit):
            return 1
        except BaseException as error:  # noqa: BLE001 - likewise
            word, told = _as_told(error)
            tell(word if crew.is_lost else "failed", told)
            # A stop was for the whole run, which is over.
            if crew.is_lost or isinstance(error, InterruptedRunError):
                return 1


def _prepare(
    seat: Seat, peers: Sequence[_Line[Any, Any]], stop: StopSignal
) -> tuple[Any, Callable[[str, Any], Iterator[Event]]]:
    """The leader's crew, and what does its jobs; torch starts here."""
    from osp_cli.runtime.start_up import light_imports

    with light_imports(for_good=True):
        from osp_cli.runtime.contact import run_contact
        from osp_cli.runtime.models import Models
        from osp_cli.runtime.parallel import Leader, join
        from osp_cli.runtime.runner import run
    crew = Leader(join(seat), peers)
    models = Models(crew)

    def do(job: str, requests: Sequence[GenerateRequest]) -> Iterator[Event]:
        if job == "contact":
            return run_contact(requests, stop=stop, models=models)
        return run(requests[0], stop=stop, models=models)

    return crew, do


def _follow(seat: Seat, parent: _Line[Any, Any], leader: _Line[Any, Any]) -> int:
    threading.Thread(target=_hear, args=(parent,), daemon=True).start()
    try:
        from osp_cli.runtime.start_up import light_imports

        with light_imports(for_good=True):
            from osp_cli.runtime.parallel import follow, join
        follow(join(seat), leader)
        return 0
    except (EOFError, ConnectionError):
        # The leader has gone, and that is nobody's fault here.
        return 0
    except BaseException as error:  # noqa: BLE001 - told as one sentence, by another process
        with contextlib.suppress(OSError):
            parent.send(_as_told(error))
        return 1


def _hear(
    parent: _Line[Any, Any],
    stop: StopSignal | None = None,
    jobs: _Queue | None = None,
    heard: _Queue | None = None,
    seat: Seat | None = None,
) -> None:
    """What the parent says; in a thread, as it must be noticed in the middle of a step too.

    Args:
        parent: the socket to it.
        stop: told of signals; only the leader hears of them, and of what follows.
        jobs: what it is to do.
        heard: its messages that have been dealt with.
        seat: of the leader.
    """
    while True:
        try:
            word, value = parent.recv()
        except (EOFError, OSError):
            break
        if stop is None or jobs is None or heard is None:
            continue
        if word == "stop":
            stop.note(value)
        else:
            (heard if word == "heard" else jobs).put((word, value))
    if seat is not None:
        # Who made the folder cannot remove it any more; and the leader may hold half a file.
        shutil.rmtree(seat.folder, ignore_errors=True)
        _thread.interrupt_main()
        time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


def _as_told(error: BaseException) -> tuple[str, BaseException]:
    """The error as the other process may raise it, and whether it is but another one's end."""
    if isinstance(error, OspError | BrokenPipeError):
        return "broken", error
    traceback.print_exception(error)
    told = RuntimeFailureError(f"unexpected {type(error).__name__}: {error}".partition("\n")[0])
    told.add_note("".join(traceback.format_exception(error)))
    # What the libraries say when the one at the other end has died.
    is_cut = any(name in str(error).lower() for name in ("gloo", "nccl", "connection closed"))
    return "cut" if is_cut else "broken", told


if __name__ == "__main__":
    # Threads of the libraries may not hold up the end.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
