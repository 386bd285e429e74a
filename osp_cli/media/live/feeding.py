"""A thread for each target that is watched: it holds frames to the clock, and holds nobody up."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Protocol

from osp_cli.errors import OspError
from osp_cli.media.live.pacing import Pacer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# One chunk waits while another is shown: more would delay what a viewer asks for.
_WAITING_CHUNKS = 1
_POLL_SECONDS = 0.1


class Watched(Protocol):
    """A target that takes frames one at a time, from one thread; `abort` comes from any."""

    name: str

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Send one frame `(height, width, 3)`."""

    def close(self) -> None:
        """End the stream; what was sent is complete."""

    def abort(self) -> None:
        """End it at once."""


class Feeder:
    """Takes chunks and feeds a target with their frames.

    Args:
        target: where they go.
        pacer: says when; None for as fast as they are taken.

    Attributes:
        name: of the target.
        skipped: frames that it was not given, see `offer`.
        is_behind: whether the last chunk was not taken.
    """

    def __init__(self, target: Watched, pacer: Pacer | None) -> None:
        self.name = target.name
        self.skipped = 0
        self.is_behind = False
        self._target = target
        self._pacer = pacer
        self._queue: queue.Queue[NDArray[np.uint8] | None] = queue.Queue(_WAITING_CHUNKS)
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"osp-{self.name}", daemon=True)

    @property
    def rebuffers(self) -> int:
        """How many times its viewers had to wait."""
        return 0 if self._pacer is None else self._pacer.rebuffers

    def offer(self, frames: NDArray[np.uint8], *, patience: float | None) -> bool:
        """Hand over a chunk, which may not be changed afterwards.

        Args:
            frames: uint8 `(n, height, width, 3)`.
            patience: seconds to wait while the target is busy; None for as long as it takes.

        Returns:
            Whether it was taken. If not, its frames count as skipped.

        Raises:
            What ended the target.
        """
        if self._thread.ident is None:
            self._thread.start()
        taken = self._put(frames, patience)
        self.is_behind = not taken
        self.skipped += 0 if taken else len(frames)
        return taken

    def end(self, *, patience: float | None) -> None:
        """Say that nothing follows; `join` waits until all is sent.

        Raises:
            What ended the target.
        """
        if self._thread.ident is None or not self._put(None, patience):
            self.abort()

    def join(self, *, patience: float | None) -> bool:
        """Wait until all is sent; False where the target did not take it in so many seconds.

        Raises:
            What ended the target.
        """
        deadline = None if patience is None else time.monotonic() + patience
        while self._thread.is_alive():
            # In slices, so that Ctrl-C gets through on every system.
            self._thread.join(_POLL_SECONDS)
            if deadline is not None and time.monotonic() >= deadline:
                self.abort()
                return False
        if self._error is not None and not self._stop.is_set():
            raise self._error
        return True

    def abort(self) -> None:
        """End the target at once."""
        self._stop.set()
        self._target.abort()
        if self._thread.ident is not None:
            self._thread.join(5.0)

    def _put(self, item: NDArray[np.uint8] | None, patience: float | None) -> bool:
        deadline = None if patience is None else time.monotonic() + patience
        while not self._stop.is_set():
            if self._error is not None:
                raise self._error
            with contextlib.suppress(queue.Full):
                if deadline is None:
                    self._queue.put(item, timeout=_POLL_SECONDS)
                else:
                    left = max(0.001, deadline - time.monotonic())
                    self._queue.put(item, timeout=min(_POLL_SECONDS, left))
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
        return True

    def _next(self) -> NDArray[np.uint8] | None:
        """The next chunk; None where none follows."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=_POLL_SECONDS)
        return None

    def _run(self) -> None:
        try:
            while (frames := self._next()) is not None:
                for frame in frames:
                    if self._pacer is not None and not self._pacer.wait(self._stop):
                        return
                    self._target.write(frame)
            if not self._stop.is_set():
                self._target.close()
        except (OspError, OSError, ValueError) as error:
            self._error = error
