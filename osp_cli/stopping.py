"""Ctrl-C and SIGTERM: the first asks, the second insists.

While a sampler step runs, the first signal is only noted: the step is finished and its latents are
saved. Everywhere else there is nothing to finish, and it stops the run at once. A second signal
stops everything at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from osp_cli.errors import InterruptedRunError, TerminatedRunError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """What was asked for by signals during one run.

    Args:
        talk: tell on stderr that a step is being finished.
        unit: what to call it.
    """

    def __init__(self, *, talk: bool = False, unit: str = "step") -> None:
        self._talk = talk
        self._unit = unit.encode()
        self._signum: int | None = None
        self._patient = False

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._signum is not None

    @property
    def signum(self) -> int | None:
        """Which signal came first, if any has."""
        return self._signum

    def note(self, signum: int) -> None:
        """As if that signal had come while a step was running; from another process, or thread."""
        self._signum = self._signum or signum

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Inside, the first signal is only noted; who waits must look at `requested`."""
        before, self._patient = self._patient, True
        try:
            yield
        finally:
            self._patient = before

    @contextlib.contextmanager
    def installed(self) -> Iterator[StopSignal]:
        """Inside, signals come here; the former handlers return afterwards.

        Python lets only the main thread do this; in any other, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        # Whoever starts us with a signal ignored, as nohup or a background job, wants it ignored;
        # a handler that is not Python's (None) could not be put back.
        foreign = (signal.SIG_IGN, None)
        ours = [number for number in _SIGNALS if signal.getsignal(number) not in foreign]
        former = {number: signal.signal(number, self._receive) for number in ours}
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def error(self, message: str, kept: tuple[Path, ...] = ()) -> InterruptedRunError:
        """The error of a run that was stopped: its class tells the exit code of the signal."""
        kind = TerminatedRunError if self._signum == signal.SIGTERM else InterruptedRunError
        return kind(message, kept=kept)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        first, self._signum = self._signum is None, self._signum or signum
        if not (first and self._patient):
            raise KeyboardInterrupt
        if self._talk:
            # Not through Python's streams, in the middle of whose work this may be.
            again = b"Ctrl-C again" if signum == signal.SIGINT else b"another signal"
            with contextlib.suppress(OSError):
                told = b"\nfinishing this %b; %b stops without saving it\n" % (self._unit, again)
                os.write(2, told)
