"""Lines and keys from stdin that steer a stream while it runs.

A pipe or a file gives lines, and so does a terminal on whose screen nothing moves. A terminal with
a live line gives keys: p types a line, s keeps a picture, q ends the stream after its chunk. That
nothing more comes ends nothing; and nothing here keeps the program from ending.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from osp_cli.cli import console
from osp_cli.cli.keyboard import Keyboard, LineEditor, has_keys, is_ours

if TYPE_CHECKING:
    from osp_cli.cli.display import Display

KEYS = "p types a line that changes the stream, s keeps a picture, q ends it after its chunk"
LINES = "a line typed here changes the stream; help tells what it may say"

# How often it is looked whether a terminal has become ours, or is no more.
_LOOK_SECONDS = 0.25
# Between lines: whatever floods a pipe shall not take the processor from the stream.
_PAUSE_SECONDS = 0.002
# A line without an end is judged by its beginning.
_MOST_BYTES = 64 * 2**10


class Director:
    """Inside, what comes through stdin is said to a stream, by a thread that ends with it.

    Not to be entered where stdin is an input of the program: it takes all that comes.

    Args:
        say: takes a line, and answers in a sentence, or with nothing. A false `accepted` of the
            answer marks a refusal.
        display: that shows the answers; None shows refusals alone.
        fd: what is read; None is stdin.
    """

    def __init__(
        self, say: Callable[[str], str], display: Display | None, fd: int | None = None
    ) -> None:
        self._say_to_stream, self._display = say, display
        self._fd = _stdin() if fd is None else fd
        self._stop = threading.Event()
        self._inside = contextlib.ExitStack()

    def __enter__(self) -> Director:
        fd = self._fd
        if fd is None:
            return self
        with contextlib.ExitStack() as inside:
            if self._display is not None and self._display.is_live and has_keys(fd):
                keyboard = inside.enter_context(Keyboard(fd, self._display.rest))
                self._begin(lambda wake: self._read_keys(fd, wake, keyboard), inside)
                self._display.line(KEYS)
            else:
                self._begin(lambda wake: self._read_lines(fd, wake), inside)
                if self._display is not None and os.isatty(fd):
                    self._display.line(LINES)
            self._inside = inside.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._inside.close()

    def _begin(self, read: Callable[[int | None], None], inside: contextlib.ExitStack) -> None:
        """Read in a thread, until `inside` is left."""
        if sys.platform == "win32":
            # Only sockets can be waited for there; the thread is left behind at its last read.
            threading.Thread(target=read, args=(None,), name="osp-director", daemon=True).start()
            inside.callback(self._stop.set)
            return
        wake, waker = os.pipe()
        inside.callback(os.close, wake)
        inside.callback(os.close, waker)
        thread = threading.Thread(target=read, args=(wake,), name="osp-director", daemon=True)
        # A stream that is being asked while it ends may not answer: it is not waited for long.
        inside.callback(thread.join, 2.0)
        inside.callback(os.write, waker, b"x")
        inside.callback(self._stop.set)
        thread.start()

    def _read_keys(self, fd: int, wake: int | None, keyboard: Keyboard) -> None:
        assert self._display is not None
        keys = {
            "s": lambda: self._say("snapshot"),
            "q": lambda: self._say("quit"),
            "?": lambda: self._say("help"),
        }
        editor = LineEditor(keys, "p", self._say, self._display.typed)
        for data in self._pieces(fd, wake, keyboard.hold):
            editor.feed(data)
        editor.close()

    def _read_lines(self, fd: int, wake: int | None) -> None:
        rest = b""
        for data in self._pieces(fd, wake, lambda: is_ours(fd)):
            *lines, rest = (rest + data).split(b"\n")
            # Enough of it to be refused, however much there is.
            rest = rest[:_MOST_BYTES]
            for line in lines:
                if self._stop.wait(_PAUSE_SECONDS):
                    return
                self._say(line.decode("utf-8", "replace"))
        if not self._stop.is_set():
            self._say(rest.decode("utf-8", "replace"))

    def _pieces(self, fd: int, wake: int | None, ours: Callable[[], bool]) -> Iterator[bytes]:
        """What comes through `fd`, until its end or ours; nothing is read while it is not ours."""
        while not self._stop.is_set():
            mine = ours()
            try:
                if wake is not None:
                    waiting = [wake, fd] if mine else [wake]
                    ready, _, _ = select.select(waiting, [], [], _LOOK_SECONDS)
                    # Once more, as the terminal may have changed hands while we waited.
                    if fd not in ready or not ours():
                        continue
                data = os.read(fd, 4096)
            except (OSError, ValueError):
                # A terminal that is gone, or a descriptor that was closed.
                return
            if not data:
                return
            yield data

    def _say(self, line: str) -> None:
        answer = self._say_to_stream(line)
        if not answer:
            return
        if self._display is not None:
            self._display.line(str(answer))
        elif not getattr(answer, "accepted", True):
            console.say(str(answer))


def _stdin() -> int | None:
    """The descriptor of stdin; None where there is none to read from."""
    if sys.stdin is None:  # started with stdin closed
        return None
    try:
        return sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):
        return None
