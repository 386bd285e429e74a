"""The clock of a stream: frame n is due at t0 + n / fps, and none is ever left out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from fractions import Fraction

from osp_cli.media.frames import exact_rate


class Pacer:
    """Holds frames back until they are due.

    A frame that comes late by more than one frame's time shifts the clock: what follows keeps its
    distance to it, instead of being hurried through. That is a rebuffer, and it is counted.

    Args:
        fps: frames per second.
        clock: seconds that never run backwards.
        start_frames: frames that are there before the stream itself, as the picture that it
            begins with: waiting for what follows them is a start and no rebuffer.

    Attributes:
        rebuffers: how many times the stream stood still for want of a frame.
        late_seconds: for how long altogether.
    """

    def __init__(
        self,
        fps: int | float | Fraction,
        clock: Callable[[], float] = time.monotonic,
        *,
        start_frames: int = 0,
    ) -> None:
        self.rebuffers = 0
        self.late_seconds = 0.0
        self._period = float(1 / exact_rate(fps))
        self._clock = clock
        self._start_frames = start_frames
        self._start: float | None = None
        self._count = 0

    def delay(self) -> float:
        """Take the next frame: seconds until it is due, 0 if it is now."""
        now = self._clock()
        if self._start is None:
            self._start = now
        # Multiplied, not added up: hours of rounding would shift the clock.
        due = self._start + self._count * self._period
        late = now - due
        if late > self._period:
            self._start += late
            if self._count > self._start_frames:
                self.rebuffers += 1
                self.late_seconds += late
        self._count += 1
        return max(0.0, -late)

    def wait(self, stop: threading.Event | None = None) -> bool:
        """Take the next frame and wait until it is due; False where `stop` was set meanwhile."""
        seconds = self.delay()
        if stop is not None:
            return not (stop.wait(seconds) if seconds else stop.is_set())
        if seconds:
            time.sleep(seconds)
        return True
