"""Lines and keys reach a stream, and the terminal is given back whatever happens."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from osp_cli.cli.director import KEYS, LINES, Director
from osp_cli.cli.display import Display
from osp_cli.cli.keyboard import LineEditor
from osp_cli.direction import Answer, Direction

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and terminals of POSIX")


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.01)


# --- Lines ------------------------------------------------------------------------------------


class Heard:
    """What was said; every line that contains `no` is refused."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> Answer:
        self.lines.append(line)
        return Answer(f"heard {line}" if line else "", accepted="no" not in line)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def test_lines_of_a_pipe_are_said_as_they_come(pipe, capsys):
    heard = Heard()
    with Director(heard, Display(), pipe[0]):
        os.write(pipe[1], "a réd fo".encode()[:3])
        os.write(pipe[1], "a réd fo".encode()[3:])
        time.sleep(0.05)
        assert heard.lines == []
        os.write(pipe[1], b"x\r\n--style ink\n")
        wait_for(lambda: len(heard.lines) == 2)
    assert [line.rstrip("\r") for line in heard.lines] == ["a réd fox", "--style ink"]
    assert "heard --style ink" in capsys.readouterr().err


def test_the_end_of_a_pipe_says_its_last_line_and_ends_nothing(pipe):
    heard = Heard()
    with Director(heard, None, pipe[0]):
        os.write(pipe[1], b"one\ntwo without an end")
        os.close(pipe[1])
        wait_for(lambda: len(heard.lines) == 2)
        time.sleep(0.05)
    assert heard.lines == ["one", "two without an end"]


def test_leaving_does_not_wait_for_a_pipe_that_is_silent(pipe):
    begun = time.monotonic()
    with Director(Heard(), None, pipe[0]):
        pass
    assert time.monotonic() - begun < 1
    assert not [thread for thread in threading.enumerate() if thread.name == "osp-director"]
    # What comes later is left for others.
    os.write(pipe[1], b"later\n")
    assert os.read(pipe[0], 100) == b"later\n"


def test_an_unfinished_line_is_not_said_when_the_stream_ends(pipe):
    heard = Heard()
    with Director(heard, None, pipe[0]):
        os.write(pipe[1], b"half a li")
        time.sleep(0.05)
    assert heard.lines == []


def test_quiet_tells_of_refusals_alone(pipe, capsys):
    heard = Heard()
    with Director(heard, None, pipe[0]):
        os.write(pipe[1], b"yes\nno\n")
        wait_for(lambda: len(heard.lines) == 2)
    assert capsys.readouterr().err == "heard no\n"


def test_a_flood_is_heard_line_by_line_and_a_line_without_an_end_by_its_beginning(pipe):
    heard = Heard()
    with Director(heard, None, pipe[0]):
        writer = threading.Thread(target=lambda: os.write(pipe[1], b"x" * 300_000 + b"\nlast\n"))
        writer.start()
        wait_for(lambda: len(heard.lines) == 2)
        writer.join()
    assert len(heard.lines[0]) < 100_000
    assert heard.lines[1] == "last"


def test_bytes_that_are_no_text_are_said_as_such(pipe):
    heard = Heard()
    with Director(heard, None, pipe[0]):
        os.write(pipe[1], b"\xff\xfe\n")
        wait_for(lambda: len(heard.lines) == 1)
    assert heard.lines == ["\ufffd\ufffd"]


def test_without_stdin_there_is_nothing_to_hear(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with Director(Heard(), None):
        assert not [thread for thread in threading.enumerate() if thread.name == "osp-director"]


def test_a_piped_screenplay_directs_the_stream(pipe):
    direction = Direction()
    with Director(direction.say, None, pipe[0]):
        os.write(pipe[1], b"# a play\n0s: a train --style ink\n\n9s: a tunnel\nquit\n")
        wait_for(lambda: direction.ends)
    assert [direction.scene_at(t).prompt for t in (0, 9)] == ["a train", "a tunnel"]


# --- Typing -----------------------------------------------------------------------------------


class Typed:
    """A line editor, and all that it did."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[str | None] = []
        self.pressed: list[str] = []
        keys = {key: (lambda k=key: self.pressed.append(k)) for key in "sq"}
        self.editor = LineEditor(keys, "p", self.said.append, self.shown.append)

    def type(self, *pieces: bytes) -> Typed:
        for piece in pieces:
            self.editor.feed(piece)
        return self


def test_keys_are_keys_until_a_line_is_open():
    typed = Typed().type(b"s", b"x", b"p", b"qs", b"\r", b"q")
    assert typed.pressed == ["s", "q"]
    assert typed.said == ["qs"]
    assert [typed.shown[0], typed.shown[1], typed.shown[-1]] == ["", "qs", None]


@pytest.mark.parametrize(
    ("pieces", "line"),
    [
        ((b"pa foz", b"\x7f", b"x\n"), "a fox"),
        ((b"pa red fox\x17wolf\r",), "a red wolf"),
        ((b"pwrong\x15right\r",), "right"),
        ((b"pa\x1b[A\x1b[1;5C\x1bOP b\r",), "a b"),
        ((b"pna\xc3", b"\xafve\r"), "na\u00efve"),
        ((b"p\xe7\x8b\x90\r",), "\u72d0"),
        ((b"p\x7f\x7fa\tb\x00\x01\r",), "a b"),
    ],
)
def test_a_line_is_edited(pieces, line):
    assert Typed().type(*pieces).said == [line]


@pytest.mark.parametrize("cancel", [b"\x1b", b"\x04"])
def test_a_line_is_dropped(cancel):
    typed = Typed().type(b"pa fox", cancel, b"s")
    assert typed.said == []
    assert typed.shown[-1] is None
    assert typed.pressed == ["s"]


def test_an_empty_line_says_nothing():
    assert Typed().type(b"p", b"\r", b"p  \r").said == []


def test_what_is_pasted_behind_a_line_is_no_key():
    typed = Typed().type(b"pfirst\nquit it\nq")
    assert typed.said == ["first", "quit it"]
    assert typed.pressed == []
    assert typed.shown[-1] == "q"


# --- A terminal -------------------------------------------------------------------------------

# A stream whose chunks take no time, on the terminal that is its stdin and stderr.
STREAM = """
import json, os, signal, sys, time
from pathlib import Path
from osp_cli.cli.director import Director
from osp_cli.cli.display import open_display
from osp_cli.direction import Direction
from osp_cli.errors import OspError
from osp_cli.events import ChunkStreamed
from osp_cli.stopping import StopSignal

log, how = Path(sys.argv[1]), sys.argv[2]
direction = Direction()

def say(line):
    answer = direction.say(line)
    with log.open("a") as file:
        file.write(json.dumps([line, answer]) + "\\n")
    return answer

display = open_display(quiet=how == "quiet", verbose=False, as_json=False)
import contextlib
try:
    with StopSignal().installed(), display or contextlib.nullcontext(), Director(say, display):
        chunk = 0
        log.touch()
        while not direction.ends:
            chunk += 1
            shot = direction.begin(2.25 * (chunk - 1), 2.25)
            if display:
                display.show(ChunkStreamed(chunk, chunk, chunk * 2.25, 20.0, 1.2, 0, 0, 1.0, 0.1,
                    0.1, 0, shot.scene.prompt, shot.number, shot.total, 0.01))
            if how == "raise" and len(direction.log()) > 1:
                raise OspError("broken off")
            time.sleep(0.05)
except KeyboardInterrupt:
    sys.exit(130)
"""

# A shell of one job, which it can put away and take up again.
SHELL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
before = termios.tcgetattr(0)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    os.tcsetpgrp(0, os.getpgrp())
    same = termios.tcgetattr(0) == before
    if not os.WIFSTOPPED(status):
        break
    print("SUSPENDED", "as before" if same else "DAMAGED", flush=True)
    line = sys.stdin.readline()
    if line.startswith("bg"):
        os.killpg(job, signal.SIGCONT)
        sys.stdin.readline()
    print("RESUMED", flush=True)
    os.tcsetpgrp(0, job)
    os.killpg(job, signal.SIGCONT)
print("ENDED", os.waitstatus_to_exitcode(status), "as before" if same else "DAMAGED", flush=True)
"""


class Terminal:
    """A pseudo terminal with a stream on it."""

    def __init__(self, log: Path, how: str = "") -> None:
        self.log, self.screen = log, ""
        self.master, slave = pty.openpty()
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, b"\x18\x00\x78\x00\x00\x00\x00\x00")
        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        environment.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHELL, STREAM, str(log), how],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment,
        )  # fmt: skip
        os.close(slave)

    def read(self, seconds: float = 0.05) -> str:
        while select.select([self.master], [], [], seconds)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                break
            if not data:
                break
            # Without its colours, which part words.
            self.screen += re.sub(r"\x1b\[[0-9;]*m", "", data.decode("utf-8", "replace"))
            seconds = 0.02
        return self.screen

    def see(self, text: str, seconds: float = 15.0) -> None:
        until = time.monotonic() + seconds
        while text not in self.read():
            assert time.monotonic() < until, f"{text!r} not in {self.screen[-2000:]!r}"

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def said(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line)[0] for line in lines]

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.master)[3] & termios.ECHO)


@pytest.fixture
def terminal(tmp_path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(how: str = "") -> Terminal:
        opened.append(Terminal(tmp_path / "log", how))
        return opened[-1]

    yield start
    for each in opened:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)
        os.close(each.master)
        each.process.wait(10)


def test_keys_steer_a_stream_and_the_terminal_is_as_before(terminal):
    screen = terminal()
    screen.see(KEYS)
    screen.see("chunk 2")
    assert not screen.echoes()
    screen.type("s")
    screen.see("keeping a picture")
    screen.type("pa red fo")
    screen.see("prompt> a red fo")
    screen.see("chunk")
    screen.type("x --style ink\r")
    screen.see("on: a red fox --style ink")
    screen.see("prompt 2/2: a red fox")
    screen.type("q")
    screen.see("ENDED 0 as before")
    assert screen.said() == ["snapshot", "a red fox --style ink", "quit"]
    # The cursor, which is hidden below the live line, is shown again.
    assert screen.screen.rindex("\x1b[?25h") > screen.screen.rindex("\x1b[?25l")


@pytest.mark.parametrize(
    ("how", "end", "code"),
    [("", "\x03", 130), ("", signal.SIGTERM, 130), ("raise", "pboom\r", 1),
     ("", signal.SIGHUP, -signal.SIGHUP), ("", "\x1c", -signal.SIGQUIT)],
    ids=["Ctrl-C", "SIGTERM", "exception", "SIGHUP", "SIGQUIT"],
)  # fmt: skip
def test_the_terminal_is_as_before_however_it_ends(terminal, how, end, code):
    screen = terminal(how)
    screen.see("chunk 2")
    assert not screen.echoes()
    if isinstance(end, str):
        screen.type(end)
    else:
        os.kill(foreground(screen), end)
    screen.see(f"ENDED {code} as before")


def foreground(screen: Terminal) -> int:
    return os.tcgetpgrp(screen.master)


def test_a_suspended_stream_leaves_the_terminal_and_takes_it_again(terminal):
    screen = terminal()
    screen.see("chunk 2")
    screen.type("\x1a")
    screen.see("SUSPENDED as before")
    assert screen.echoes()
    screen.type("\n")
    screen.see("RESUMED")
    wait_for(lambda: not screen.echoes())
    screen.type("q")
    screen.see("ENDED 0 as before")
    assert screen.said() == ["quit"]


def test_a_stream_in_the_background_goes_on_and_leaves_the_keys_alone(terminal):
    screen = terminal()
    screen.see("chunk 2")
    screen.type("\x1a")
    screen.see("SUSPENDED as before")
    screen.type("bg\n")
    shown = screen.read().count("chunk")
    # It writes on, which a terminal allows; it is not stopped for having tried to read.
    wait_for(lambda: screen.read().count("chunk") > shown + 5)
    assert screen.echoes()
    screen.type("q is a letter of the shell's\n")
    screen.see("RESUMED")
    wait_for(lambda: not screen.echoes())
    screen.type("q")
    screen.see("ENDED 0 as before")
    assert screen.said() == ["quit"]


def test_where_nothing_moves_a_terminal_gives_lines(terminal):
    screen = terminal("quiet")
    wait_for(lambda: screen.log.exists())
    assert screen.echoes()
    screen.type("a fox\nfox --style gibli\nquit\n")
    screen.see("ENDED 0 as before")
    assert screen.said() == ["a fox", "fox --style gibli", "quit"]
    assert "not done: unknown style" in screen.screen
    assert "from 0s" not in screen.screen


def test_a_terminal_without_a_live_line_is_told_what_may_be_typed(capsys):
    master, slave = pty.openpty()
    heard = Heard()
    try:
        with Director(heard, Display(), slave):
            os.write(master, b"a fox\n")
            wait_for(lambda: heard.lines == ["a fox"])
    finally:
        os.close(master)
        os.close(slave)
    assert LINES in capsys.readouterr().err
