"""A terminal whose keys are heard one by one, and that is given back as it was.

Only POSIX systems have one. Ctrl-C and Ctrl-Z keep their meaning. While the program is suspended,
or in the background, the terminal is not ours and nothing in it is changed.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

# Keys by what a terminal sends for them.
_ENTER, _ESCAPE, _BACKSPACES = "\r\n", "\x1b", "\x7f\x08"
_CLEAR, _WORD, _END = "\x15", "\x17", "\x04"
# More than any line may have; what is typed beyond is not taken.
_MOST = 10_000


def has_keys(fd: int) -> bool:
    """Whether `fd` is a terminal of a system that can be asked for single keys."""
    if sys.platform == "win32":
        return False
    import termios

    try:
        termios.tcgetattr(fd)
    except termios.error:
        return False
    return True


def is_ours(fd: int) -> bool:
    """Whether reading from `fd` is allowed: a terminal belongs to the job in its foreground.

    The others are stopped by the system if they try.
    """
    if sys.platform == "win32" or not os.isatty(fd):
        return True
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        # It is nobody's, or gone: reading tells.
        return True


class Keyboard:
    """Inside, keys come at once and are not shown by the terminal.

    Args:
        fd: of the terminal.
        leave: called before the program is suspended, to take from the screen what it draws there.
    """

    def __init__(self, fd: int, leave: Callable[[], None] = lambda: None) -> None:
        self._fd = fd
        self._leave = leave
        # Reentrant, as a signal may strike while it is held.
        self._lock = threading.RLock()
        self._former: list[Any] | None = None
        self._away = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Keyboard:
        atexit.register(self._give_back)
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTSTP", "SIGQUIT", "SIGHUP"):
                number = getattr(signal, name, None)
                # Whoever has it ignored, or handled, wants it so.
                if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                    self._handlers[number] = signal.signal(number, self._pass_on)
        self.hold()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._away = True
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._give_back(flush=True)
        atexit.unregister(self._give_back)

    def hold(self) -> bool:
        """Take the terminal, again if need be, where it is ours to take. Tells whether it is."""
        import termios

        with self._lock:
            if self._away or not is_ours(self._fd):
                return False
            try:
                now = termios.tcgetattr(self._fd)
                wanted = [*now[:6], list(now[6])]
                # Keys at once and unseen; signals stay what they are.
                wanted[3] &= ~(termios.ICANON | termios.ECHO)
                wanted[6][termios.VMIN], wanted[6][termios.VTIME] = 1, 0
                if now[3] & (termios.ICANON | termios.ECHO):
                    # Somebody else has had it since: a shell, while the program was suspended.
                    self._former = now
                    termios.tcsetattr(self._fd, termios.TCSANOW, wanted)
            except termios.error:
                return False
            return True

    def _give_back(self, flush: bool = False) -> None:
        import termios

        with self._lock:
            former, self._former = self._former, None
            if former is None or not is_ours(self._fd):
                return
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, former)
                if flush:
                    # What was pasted into the stream is nothing to be run by a shell.
                    termios.tcflush(self._fd, termios.TCIFLUSH)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        """Give the terminal back before the signal does what it always does."""
        self._away = True
        with contextlib.suppress(OSError, ValueError):
            self._leave()
        self._give_back()
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
        # Here only after the program was suspended, and goes on.
        signal.signal(signum, self._pass_on)
        self._away = False
        self.hold()


class LineEditor:
    """One line that is typed key by key.

    Args:
        keys: what a key does while no line is open; `open_key` opens one.
        open_key: the key.
        said: is given each line that is done.
        shown: is given the line as far as it is typed, and None when it is closed.
    """

    def __init__(
        self,
        keys: dict[str, Callable[[], None]],
        open_key: str,
        said: Callable[[str], None],
        shown: Callable[[str | None], None],
    ) -> None:
        self._keys, self._open_key = keys, open_key
        self._said, self._shown = said, shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line: str | None = None

    def feed(self, data: bytes) -> None:
        """Take what the terminal has sent at once."""
        keys = list(_keys(self._decoder.decode(data)))
        before = self._line
        for index, key in enumerate(keys):
            # The rest of what was pasted is text, even behind the end of a line.
            self._take(key, more=index + 1 < len(keys))
        # Once for all that came, as each time the screen is drawn.
        if self._line != before:
            self._shown(self._line)

    def close(self) -> None:
        """Drop an unfinished line."""
        if self._line is not None:
            self._line = None
            self._shown(None)

    def _take(self, key: str, *, more: bool) -> None:
        if self._line is None:
            if key == self._open_key:
                self._line = ""
            elif key in self._keys:
                self._keys[key]()
        elif key in _ENTER:
            line, self._line = self._line, "" if more else None
            if line.strip():
                # It is not to be seen twice, once as typed and once in the answer.
                self._shown(self._line)
                self._said(line)
        elif key in (_ESCAPE, _END):
            self._line = None
        elif key in _BACKSPACES:
            self._line = self._line[:-1]
        elif key == _CLEAR:
            self._line = ""
        elif key == _WORD:
            words = self._line.rstrip()
            self._line = words[: words.rfind(" ") + 1]
        elif len(key) == 1 and (key.isprintable() or key == "\t") and len(self._line) < _MOST:
            self._line += " " if key == "\t" else key


def _keys(text: str) -> Iterator[str]:
    """The keys in what a terminal sent; those with a name, as arrows, are more than one letter."""
    index = 0
    while index < len(text):
        end = index + 1
        if text[index] == _ESCAPE and text[end : end + 1] in ("[", "O"):
            end += 1
            while end < len(text) and not "@" <= text[end] <= "~":
                end += 1
            end += 1
        yield text[index:end]
        index = end
