"""The progress on stderr, on a terminal and elsewhere."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from osp_cli.cli import console, display
from osp_cli.events import ChunkDone, Done, Event, Loaded, Planned, Saved, StageStarted, StepDone
from osp_cli.plan import Plan

PLAN = Plan(
    model="osp-mini",
    device="cpu",
    dtype="bfloat16",
    width=448,
    height=256,
    num_frames=49,
    num_latent_frames=13,
    num_tokens=1456,
    seed=7,
    steps=8,
    sampler="unipc",
    cache="none",
    guidance=1.0,
    weights_bytes=20_000_000,
    expected_peak_bytes=3_000_000_000,
    disk_bytes=400_000,
    operations=None,
    expected_seconds=None,
)


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Terminal]:
    """Put a terminal of so many columns in the place of stderr."""

    def make(width: int) -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("LINES", "24")
        monkeypatch.delenv("NO_COLOR", raising=False)
        return terminal

    return make


def show_a_run(shown: display.Display) -> None:
    with shown:
        shown.show(Loaded("transformer", 0.5))
        shown.show(StageStarted("condition"))
        for step in range(1, 5):
            shown.show(StepDone(step, 4, 30.0))
        shown.show(StageStarted("encode"))
        shown.show(Saved(Path("a.mp4"), 4))
        shown.show(Done(9.0, {"load": 0.5, "encode": 1.0}))


def test_steps_are_told_every_ten_seconds_at_most(capsys):
    clock = Clock()
    shown = display.Display(now=clock)
    for step in range(1, 101):
        clock.seconds += 0.5
        shown.show(StepDone(step, 100, 0.5))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 20/100, 0.50 s/it, 0:40 left",
        "step 40/100, 0.50 s/it, 0:30 left",
        "step 60/100, 0.50 s/it, 0:20 left",
        "step 80/100, 0.50 s/it, 0:10 left",
        "step 100/100, 0.50 s/it, 0:00 left",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"quant": "fp8"}, "weights all in place, stored as fp8; about 3.0 GB"),
        ({"compile": True}, "weights all in place, blocks compiled; about 3.0 GB"),
        ({"vae_tiling": True}, "weights all in place, decoded in tiles; about 3.0 GB"),
        ({"offload": "model"}, "weights one part at a time; about 3.0 GB"),
        ({"weights_bytes": 10**10}, "weights all in place; about 3.0 GB"),
    ],
)
def test_what_is_unusual_about_the_weights_is_told(capsys, changes, told):
    plan = replace(PLAN, **changes)
    display.Display().show(Planned(plan))
    first, *more = capsys.readouterr().err.splitlines()
    assert first.startswith("osp-mini: 448x256, ")
    assert more == ([told] if told else [])


def test_time_left_is_told_in_minutes(capsys):
    display.Display(now=iter([0.0, 99.0, 99.0]).__next__).show(StepDone(1, 50, 80.0))
    assert capsys.readouterr().err == "step 1/50, 80.00 s/it, 65:20 left\n"


def test_bar_tells_stages_pace_and_split(screen):
    terminal = screen(90)
    show_a_run(display.BarDisplay())
    text = terminal.getvalue()
    for part in ("load", "condition", "step 3/4", "30.00 s/it, 0:30 left", "save", "done in "):
        assert part in text
    assert text.rstrip().endswith("load 0.5, save 1.0")


def test_bar_in_twenty_columns(screen):
    terminal = screen(20)
    show_a_run(display.BarDisplay())
    text = terminal.getvalue()
    assert "step 3/4" in text
    assert "s/it" not in text


def test_bar_without_color(screen, monkeypatch):
    terminal = screen(90)
    monkeypatch.setenv("NO_COLOR", "1")
    show_a_run(display.BarDisplay())
    assert "step 3/4" in terminal.getvalue()
    # Moving the cursor is fine; choosing a colour (30-37, 90-97, 38;...) is not.
    assert not any(f"\x1b[{code}" in terminal.getvalue() for code in ("3", "9", "1;3"))


def test_bar_only_on_a_terminal_that_can_move(screen, monkeypatch):
    assert not isinstance(_open(), display.BarDisplay)
    screen(80)
    assert isinstance(_open(), display.BarDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert not isinstance(_open(), display.BarDisplay)
    assert display.open_display(quiet=True, verbose=False, as_json=False) is None


def test_no_bar_where_json_shares_the_screen(screen, monkeypatch):
    screen(80)
    monkeypatch.setattr(sys, "stdout", Terminal())
    shown = display.open_display(quiet=False, verbose=False, as_json=True)
    assert not isinstance(shown, display.BarDisplay)


def _open() -> display.Display | None:
    return display.open_display(quiet=False, verbose=False, as_json=False)


def test_errors_are_colored_on_a_terminal_only(screen, monkeypatch, capsys):
    console.say_error("no", "yes")
    assert capsys.readouterr().err == "error: no\nhint: yes\n"
    terminal = screen(80)
    console.say_error("no")
    assert terminal.getvalue() == "\x1b[1;31merror:\x1b[0m no\n"
    monkeypatch.setenv("NO_COLOR", "1")
    console.say_error("no")
    assert terminal.getvalue().endswith("\nerror: no\n")


SENTENCES = (
    "the file /a/folder/with-a-long-name/and-another-one/that-is-longer-than-a-line.safetensors "
    "cannot be read, and the same command with --overwrite would only say so again"
)


@pytest.mark.parametrize("say", [console.say, console.say_hint, console.say_error])
@pytest.mark.parametrize("width", [30, 60])
def test_sentences_break_between_words_on_a_terminal_only(screen, capsys, monkeypatch, say, width):
    say(SENTENCES)
    assert capsys.readouterr().err.count("\n") == 1
    terminal = screen(width)
    monkeypatch.setenv("NO_COLOR", "1")
    say(SENTENCES)
    lines = terminal.getvalue().splitlines()
    assert len(lines) > 3
    assert all(len(line) <= width or " " not in line for line in lines)
    assert " ".join(lines).endswith(SENTENCES)
    assert " ".join(lines).removesuffix(SENTENCES) in ("", "hint: ", "error: ")


def test_a_folded_error_is_coloured_once_and_keeps_its_own_lines(screen):
    terminal = screen(12)
    console.say_error("one two three\nfour")
    assert terminal.getvalue() == "\x1b[1;31merror:\x1b[0m one\ntwo three\nfour\n"


def test_listening_closes_the_run_when_stdout_is_gone(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    closed: list[str] = []

    def run() -> Iterator[Event]:
        try:
            yield StageStarted("condition")
        finally:
            closed.append("run")

    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(console.StdoutClosedError):
        display.listen(run(), None, as_json=True)
    assert closed == ["run"]


@pytest.mark.parametrize("width", [20, 100])
def test_tables_on_a_terminal(monkeypatch, width):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    console.write_table(("name", "about"), [("ink", "black strokes on [rice] paper, as of old")])
    lines = terminal.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert "\t" not in terminal.getvalue()
    assert "[rice]" in terminal.getvalue()


def test_windows_of_a_long_video_tell_their_pace(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = display.Display(now=clock)
    plan = replace(PLAN, num_frames=13, total_frames=104, num_windows=8, steps=1)
    shown.show(Planned(plan))
    for number in range(1, 9):
        shown.show(StageStarted("condition"))
        shown.show(StepDone(1, 1, 5.9))
        clock.seconds += 6.5
        shown.show(ChunkDone(number, 8, 6.5, 13 * number))
    said = capsys.readouterr().err.splitlines()
    assert "104 frames in 8 windows" in said[0]
    assert said[1:] == [
        "condition",
        "window 2 of 8, 2.0 frames/s, 0:39 left",
        "window 4 of 8, 2.0 frames/s, 0:26 left",
        "window 6 of 8, 2.0 frames/s, 0:13 left",
        "window 8 of 8, 2.0 frames/s, 0:00 left",
    ]


def test_steps_within_a_window_say_which(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = display.Display(now=clock)
    shown.show(Planned(replace(PLAN, total_frames=93, num_windows=2)))
    for number in (1, 2):
        for step in (1, 2):
            clock.seconds += 20
            shown.show(StepDone(step, 2, 20.0))
        shown.show(ChunkDone(number, 2, 40.0, 49 if number == 1 else 93))
    said = capsys.readouterr().err.splitlines()[1:]
    assert said == [
        "step 1/2, window 1/2, 20.00 s/it, 0:20 left",
        "step 2/2, window 1/2, 20.00 s/it, 0:00 left",
        "step 1/2, window 2/2, 20.00 s/it, 0:20 left",
        "step 2/2, window 2/2, 20.00 s/it, 0:00 left",
        "window 2 of 2, 1.1 frames/s, 0:00 left",
    ]


def test_a_video_of_one_window_is_told_as_any_clip(capsys: pytest.CaptureFixture[str]) -> None:
    shown = display.Display(now=Clock())
    shown.show(Planned(replace(PLAN, total_frames=9)))
    shown.show(StepDone(1, 1, 0.5))
    shown.show(ChunkDone(1, 1, 0.5, 9))
    said = capsys.readouterr().err.splitlines()
    assert "9 frames, 8 steps" in said[0]
    assert said[1:] == ["step 1/1, 0.50 s/it, 0:00 left"]
