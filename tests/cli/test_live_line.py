"""The line of a stream fits every terminal, and says first what matters most."""

from __future__ import annotations

import io
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from osp_cli.cli import display
from osp_cli.cli.live_line import clock, live_line, plain_line, typed_line
from osp_cli.events import ChunkStreamed, Loaded, StageStarted, StepDone

EVENT = ChunkStreamed(
    chunk=41,
    num_frames=1410,
    video_seconds=56.4,
    fps=25.1,
    realtime_factor=1.05,
    decode_queue=1,
    write_queue=0,
    generate_seconds=0.92,
    decode_seconds=0.38,
    write_seconds=0.12,
    rebuffers=0,
    prompt="the train enters a tunnel",
    prompt_number=2,
    num_prompts=3,
    drift=0.03,
)
TIMES = "\N{MULTIPLICATION SIGN}"


# --- The words --------------------------------------------------------------------------------


def test_all_of_it_where_there_is_room():
    assert live_line(EVENT, 200).plain == (
        f"chunk 41 · 0:56.4 · 25.1 fps · 1.05{TIMES} · q 1/0 · gen .92 dec .38 enc .12 s · "
        "drift +.03 · rebuf 0 · prompt 2/3: the train enters a tunnel"
    )


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (120, f"chunk 41 · 0:56.4 · 25.1 fps · 1.05{TIMES} · q 1/0 · drift +.03 · rebuf 0 · "
              "prompt 2/3: the train enters a tunnel"),
        (86, f"chunk 41 · 0:56.4 · 25.1 fps · 1.05{TIMES} · drift +.03 · "
             "prompt 2/3: the train enters a..."),
        (60, f"chunk 41 · 0:56.4 · 1.05{TIMES} · drift +.03 · prompt 2/3"),
        (40, f"0:56.4 · 1.05{TIMES} · drift +.03"),
        (16, f"0:56.4 · 1.05{TIMES}"),
        (8, "0:56.4"),
    ],
)  # fmt: skip
def test_what_matters_least_goes_first(width, text):
    assert live_line(EVENT, width).plain == text


@given(
    st.integers(2, 220),
    st.text(max_size=60),
    st.integers(1, 10**6),
    st.floats(0, 1e5),
    st.one_of(st.none(), st.floats(-9, 9)),
    st.integers(0, 99),
)
def test_it_never_breaks_into_two(width, prompt, chunk, seconds, drift, rebuffers):
    event = replace(
        EVENT, chunk=chunk, video_seconds=seconds, prompt=prompt, drift=drift, rebuffers=rebuffers
    )
    line = live_line(event, width).plain
    assert cell_len(line) < width
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line)
    typed = typed_line(prompt, max(width, 20)).plain
    assert cell_len(typed) < max(width, 20)


def test_a_wide_prompt_is_cut_by_its_columns():
    line = live_line(replace(EVENT, prompt="狐狸" * 60), 120).plain
    assert line.endswith("...")
    assert 116 <= cell_len(line) < 120


def test_orders_to_a_terminal_in_a_prompt_are_shown_and_not_obeyed():
    assert "\x1b" not in live_line(replace(EVENT, prompt="a\x1b[2Jb"), 200).plain


def test_a_terminal_that_lacks_the_signs_gets_others():
    line = live_line(replace(EVENT, prompt=""), 200, encoding="latin-1").plain
    assert line.isascii()
    assert line.startswith("chunk 41 | 0:56.4 | 25.1 fps | 1.05x | ")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"drift": -0.214, "drift_word": "softer"}, "drift -.21 softer"),
        ({"drift": -0.001}, "drift +.00"),
        ({"drift": 1.25, "drift_word": "grainier"}, "drift +1.25 grainier"),
        ({"generate_seconds": 12.34}, "gen 12.3 dec .38"),
        ({"generate_seconds": 1.0}, "gen 1.00 dec .38"),
    ],
)
def test_numbers_are_short(changes, text):
    assert text in live_line(replace(EVENT, **changes), 200).plain


def test_what_is_not_measured_is_not_shown():
    assert "drift" not in live_line(replace(EVENT, drift=None), 200).plain
    assert "drift" not in plain_line(replace(EVENT, drift=None))


def test_trouble_is_coloured_and_stays_longer():
    slow = replace(EVENT, realtime_factor=0.8, rebuffers=2, drift=-0.4, drift_word="softer")
    line = live_line(slow, 70)
    assert "rebuf 2" in line.plain
    styles = {line.plain[span.start : span.end]: span.style for span in line.spans}
    assert styles[f"0.80{TIMES}"] == styles["rebuf 2"] == styles["drift -.40 softer"] == "yellow"
    assert "rebuf" not in live_line(EVENT, 70).plain


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00.0"),
        (9.96, "0:10.0"),
        (59.97, "1:00.0"),
        (754.3, "12:34.3"),
        (3725.04, "1:02:05.0"),
    ],
)
def test_the_clock(seconds, text):
    assert clock(seconds) == text


# --- The displays -----------------------------------------------------------------------------


class Screen(io.StringIO):
    """A stream that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch) -> Callable[..., Screen]:
    def make(width: int = 120) -> Screen:
        made = Screen()
        monkeypatch.setattr(sys, "stderr", made)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("LINES", "24")
        monkeypatch.delenv("NO_COLOR", raising=False)
        return made

    return make


def test_without_a_terminal_there_is_a_line_every_ten_seconds(capsys):
    now = [0.0]
    shown = display.Display(now=lambda: now[0])
    for chunk in range(1, 14):
        shown.show(replace(EVENT, chunk=chunk))
        # What the engine does within a chunk is not told.
        shown.show(StageStarted("decode"))
        shown.show(StepDone(1, 1, 1.0))
        now[0] += 2.0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["chunk 1", "chunk 6", "chunk 11"]
    assert lines[1] == (
        "chunk 6, 0:56.4, 25.1 fps, 1.05x real time, drift +.03, "
        "prompt 2/3: the train enters a tunnel"
    )


def test_waits_are_told_in_plain_lines_too():
    assert ", 2 waits, " in plain_line(replace(EVENT, rebuffers=2))
    assert plain_line(replace(EVENT, prompt="")).endswith("prompt 2/3")


def test_on_a_terminal_one_line_changes_in_its_place(screen):
    made = screen()
    with display.BarDisplay() as shown:
        shown.show(Loaded("vae", 0.1))
        shown.show(EVENT)
        shown.show(replace(EVENT, chunk=42))
        shown.line("something to keep")
        shown.show(replace(EVENT, chunk=43))
    text = re.sub(r"\x1b\[[0-9;]*m", "", made.getvalue())
    # The line that stays is above; each of the others was wiped out, the last one too.
    assert "something to keep\n" in text
    for chunk in (41, 42, 43):
        after = text[text.index(f"chunk {chunk} ") :]
        assert "\x1b[2K" in after
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_what_is_typed_stands_below_the_line(screen):
    made = screen()
    with display.BarDisplay() as shown:
        shown.show(EVENT)
        shown.typed("a red fo")
    text = re.sub(r"\x1b\[[0-9;]*m", "", made.getvalue())
    assert "tunnel\nprompt> a red fo" in text


def test_a_line_that_is_closed_brings_nothing_back(screen):
    made = screen()
    with display.BarDisplay() as shown:
        shown.show(EVENT)
        shown.rest()
        before = made.getvalue()
        shown.typed(None)
        assert made.getvalue() == before


def test_colours_are_left_out_where_nobody_wants_them(screen, monkeypatch):
    made = screen()
    monkeypatch.setenv("NO_COLOR", "1")
    with display.BarDisplay() as shown:
        shown.show(replace(EVENT, realtime_factor=0.5))
    assert "chunk 41" in re.sub(r"\x1b\[[0-9;]*m", "", made.getvalue())
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", made.getvalue())


def test_stdout_is_left_to_the_video(screen, monkeypatch):
    screen()
    before = sys.stdout
    with display.BarDisplay() as shown:
        shown.show(EVENT)
        assert sys.stdout is before


def test_two_threads_may_write_at_once(screen):
    made = screen()
    with display.BarDisplay() as shown:

        def type_on() -> None:
            for number in range(100):
                shown.typed(f"a {number}")
            shown.typed(None)

        typing = threading.Thread(target=type_on)
        typing.start()
        for chunk in range(1, 101):
            shown.show(replace(EVENT, chunk=chunk))
        typing.join()
    assert made.getvalue().count("\x1b[?25l") == made.getvalue().count("\x1b[?25h")


def test_quiet_has_no_display():
    assert display.open_display(quiet=True, verbose=False, as_json=False) is None
