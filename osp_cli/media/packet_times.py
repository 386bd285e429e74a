"""What the time stamps of a video's packets tell about its length and rhythm."""

from __future__ import annotations

import heapq
from fractions import Fraction

# B-frames arrive before their turn; no codec holds back more than sixteen.
_REORDERED = 32
_NO_STAMP = -(2**63)


class PacketTimes:
    """Fed with ffmpeg's `framecrc` lines of one stream; memory does not grow with their number.

    Args:
        is_whole: whether the last packet will be the stream's last; if not, some that come before
            it in time may be missing.

    Attributes:
        tick: seconds of a unit in which the file counts.
        end: when the latest packet ends.
        last: how long that one lasts.
        has_times: whether all packets say when they are shown, and not only when decoded; if not,
            all that is here is about decoding, which runs ahead by an unknown number of frames.
    """

    def __init__(self, *, is_whole: bool = True) -> None:
        self._is_whole = is_whole
        self.tick = 0.0
        self.has_times = True
        self.end = self.last = 0.0
        self._decoded, self._shown = _Order(), _Order()

    @property
    def count(self) -> int:
        """Number of packets."""
        return self._decoded.count

    @property
    def start(self) -> float:
        """The earliest stamp in seconds."""
        return self._order.start

    @property
    def is_variable(self) -> bool:
        """Whether neighbours are at different distances, beyond what rounding explains."""
        order = self._order
        spread = order.longest - order.shortest
        return self.count > 2 and spread > 2.1 * self.tick + 0.02 * order.shortest

    @property
    def average_rate(self) -> Fraction | None:
        """Packets per second; None for fewer than two, or where all have one stamp."""
        span = self._order.latest - self.start
        return Fraction((self.count - 1) / span) if self.count > 1 and span > 0 else None

    def add(self, line: bytes) -> None:
        """Take one line of ffmpeg's output."""
        if line.startswith(b"#tb 0:"):
            self.tick = float(Fraction(line.partition(b":")[2].strip().decode()))
        fields = line.split(b",")
        if line.startswith(b"#") or len(fields) < 5:
            return
        decoded, shown, lasts = (int(field) for field in fields[1:4])
        self._decoded.add(decoded * self.tick, lasts * self.tick)
        if shown == _NO_STAMP:
            self.has_times = False
        else:
            self._shown.add(shown * self.tick, lasts * self.tick)

    def close(self) -> None:
        """All packets are there."""
        if self._is_whole:
            self._decoded.close()
            self._shown.close()
        if self.count:
            order = self._order
            mean = (order.latest - order.start) / max(1, self.count - 1)
            # Some containers say nothing, or one tick, for "as long as the others".
            self.last = order.last if order.last > 1.5 * self.tick else mean
            self.end = order.latest + self.last

    @property
    def _order(self) -> _Order:
        return self._shown if self.has_times else self._decoded


class _Order:
    """One kind of stamps, put in order as they come."""

    def __init__(self) -> None:
        self.count = 0
        self.start = 0.0
        self.latest = float("-inf")
        self.last = 0.0
        self.shortest, self.longest = float("inf"), 0.0
        self._waiting: list[float] = []
        self._before: float | None = None

    def add(self, stamp: float, lasts: float) -> None:
        self.start = stamp if self.count == 0 else min(self.start, stamp)
        self.count += 1
        if stamp >= self.latest:
            self.latest, self.last = stamp, max(0.0, lasts)
        heapq.heappush(self._waiting, stamp)
        if len(self._waiting) > _REORDERED:
            self._next(heapq.heappop(self._waiting))

    def close(self) -> None:
        while self._waiting:
            self._next(heapq.heappop(self._waiting))

    def _next(self, stamp: float) -> None:
        if self._before is not None:
            self.shortest = min(self.shortest, stamp - self._before)
            self.longest = max(self.longest, stamp - self._before)
        self._before = stamp
