"""Two workers in a row, each in a thread of its own: chunks are made, then decoded, then taken.

Bounded on purpose: no more chunks are begun than were asked to be ahead, so memory stays flat,
the slowest stage sets the pace, and what is said now shows soon.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

_Made = TypeVar("_Made")
_Ready = TypeVar("_Ready")

# How long a worker sleeps before it looks whether it is still wanted.
_TICK = 0.1
_PATIENCE = 8.0


class _Stopped(Exception):
    """The conveyor was stopped while a worker waited."""


class Conveyor(Generic[_Made, _Ready]):
    """Makes chunks and decodes them while the caller does something with those before.

    Args:
        make: the next chunk, or None after the last; called in one thread, in order.
        decode: of a chunk; called in another thread, in order.
        ahead: chunks that may be begun beyond the one that was taken last and told of by
            `advance`.
        abandon: called where the block ends in an exception: the chunk that is being made is not
            wanted any more.

    Raises:
        Exception: whatever a worker raises is raised where the next chunk is awaited.
    """

    def __init__(
        self,
        make: Callable[[], _Made | None],
        decode: Callable[[_Made], _Ready],
        *,
        ahead: int,
        abandon: Callable[[], None] = lambda: None,
    ) -> None:
        if ahead < 1:
            raise ValueError(f"at least one chunk must be ahead, got {ahead}")
        self._make, self._decode, self._abandon = make, decode, abandon
        self._stop = threading.Event()
        self._drain = threading.Event()
        self._allowed = threading.Semaphore(ahead)
        self._made: queue.Queue[_Made | BaseException | None] = queue.Queue(1)
        self._ready: queue.Queue[_Ready | BaseException | None] = queue.Queue(1)
        self._threads = [
            threading.Thread(target=self._run, args=(work, out), name=f"osp-{name}", daemon=True)
            for name, work, out in (
                ("make", self._making, self._made),
                ("decode", self._decoding, self._ready),
            )
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if kind is not None:
            self._abandon()
        # A worker in the middle of a chunk finishes it, or the step of one that nobody wants: one
        # that computes while the program ends would crash it. Only for so long, on a second Ctrl-C.
        patient = kind is None or issubclass(kind, Exception)
        for thread in self._threads:
            thread.join(None if patient else _PATIENCE)

    @property
    def depths(self) -> tuple[int, int]:
        """Chunks that wait to be decoded, and to be taken."""
        return self._made.qsize(), self._ready.qsize()

    def advance(self) -> None:
        """The chunk taken last is on its way: one more may be begun."""
        self._allowed.release()

    def finish(self) -> None:
        """Begin no further chunk; those that were begun still come."""
        self._drain.set()

    def take(self, idle: Callable[[], None] = lambda: None) -> _Ready | None:
        """The next chunk, decoded; None after the last.

        Args:
            idle: called again and again while there is none, and may raise.
        """
        while True:
            try:
                item = self._ready.get(timeout=_TICK)
            except queue.Empty:
                idle()
                continue
            if isinstance(item, BaseException):
                raise item
            return item

    def __iter__(self) -> Iterator[_Ready]:
        while (item := self.take()) is not None:
            yield item

    def _run(
        self,
        work: Callable[[], None],
        out: queue.Queue[Any],
    ) -> None:
        try:
            with contextlib.suppress(_Stopped):
                work()
        except BaseException as error:  # noqa: BLE001 - it is raised again where it can be heard
            with contextlib.suppress(_Stopped):
                self._put(out, error)

    def _making(self) -> None:
        while self._may_begin():
            made = self._make()
            if made is None:
                break
            self._put(self._made, made)
        self._put(self._made, None)

    def _decoding(self) -> None:
        while True:
            item = self._get(self._made)
            if item is None or isinstance(item, BaseException):
                self._put(self._ready, item)
                return
            self._put(self._ready, self._decode(item))

    def _may_begin(self) -> bool:
        while not self._allowed.acquire(timeout=_TICK):
            if self._stop.is_set():
                raise _Stopped
            if self._drain.is_set():
                return False
        if self._stop.is_set():
            raise _Stopped
        return not self._drain.is_set()

    def _put(self, where: queue.Queue[Any], item: Any) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                where.put(item, timeout=_TICK)
                return
        raise _Stopped

    def _get(self, where: queue.Queue[Any]) -> Any:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                return where.get(timeout=_TICK)
        raise _Stopped
