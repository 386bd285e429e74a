"""Screenplays are read as they are meant, written back as they were, and refused with a place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osp_cli.dials import Ramp
from osp_cli.errors import InvalidRequestError
from osp_cli.registry import style_presets
from osp_cli.screenplay import (
    MAX_LINE,
    Command,
    Cue,
    describe,
    format_screenplay,
    format_time,
    parse_live,
    parse_screenplay,
)


def refusal(call, *args) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        call(*args)
    return caught.value


# --- What is read -----------------------------------------------------------------------------


def test_a_screenplay_is_read_line_by_line():
    text = """\ufeff# A journey
0s: a steam train on a plain

  12s: the train enters a tunnel --style Ink --cutoff 0.3
12s: --cutoff=0.1:0.5
1:05: -s none
1m20.5s: "in --quotation marks"  --style oil+ink
"""
    assert parse_screenplay(text) == (
        Cue(seconds=0.0, prompt="a steam train on a plain"),
        Cue(seconds=12.0, prompt="the train enters a tunnel", style="ink", cutoff=Ramp(0.3, 0.3)),
        Cue(seconds=12.0, cutoff=Ramp(0.1, 0.5)),
        Cue(seconds=65.0, style="none"),
        Cue(seconds=80.5, prompt="in --quotation marks", style="ink+oil"),
    )


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("12s", 12), ("0.5s", 0.5), ("7", 7), ("1:05", 65), ("1:5", 65), ("0:01.25", 1.25),
        ("1m5s", 65), ("2m", 120), ("1h", 3600), ("1h2m3.5s", 3723.5), ("1:02:03", 3723),
        ("90s", 90), ("75:00", 4500), ("0.1s", 0.1),
    ],
)  # fmt: skip
def test_times(written, seconds):
    assert parse_screenplay(f"{written}: fog")[0] == Cue(seconds=seconds, prompt="fog")
    assert parse_screenplay(f"{written} :fog")[0] == Cue(seconds=seconds, prompt="fog")


@pytest.mark.parametrize(
    "prompt",
    [
        "3 cats", "10:30: the clock strikes", "a: b", "#1 of its kind", '"Hello," says the fox',
        "well-known things - and a-b", "50% off", "it's late",
    ],
)  # fmt: skip
def test_prompts_are_taken_as_they_are(prompt):
    assert parse_screenplay(f"1s: {prompt}")[0].prompt == prompt


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_line_ends_of_all_systems(ends):
    assert len(parse_screenplay(f"0s: a{ends}{ends}1s: b{ends}")) == 2


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("a fox", "a line begins with its time, got 'a fox'", "12s: a fox"),
        ("12s a fox", "a colon and a blank stand behind the time", "12s: a fox"),
        ("1:05 a fox", "a colon and a blank stand behind the time", "1:05: a fox"),
        ("3s: ", "nothing stands behind the time", "12s: "),
        ("2:75: a fox", "2:75 is no time", "195s: is understood"),
        ("1s: a fox", "1s comes after 2s of line 1, and time does not run backwards", "order"),
        ("3s: fox --style gibli", "unknown style 'gibli'", "ghibli"),
        ("3s: fox --style ghibli..ink", "a stream has no end", "--style ghibli at one time, and"),
        ("3s: fox --style ink:2", "a weight above 0", "ghibli:0.5"),
        ("3s: fox --cutoff 1.5", "a percentile between 0 and 1, got 1.5", "0.1"),
        ("3s: fox --cutoff 0.1,0.5", "one value at a time", "0.1:0.5"),
        ("3s: fox --cutoff low", "--cutoff takes one number", "0.1"),
        ("3s: fox --cutoff nan", "a percentile between 0 and 1", "0.1"),
        ("3s: fox --seed 4", "--seed holds for the whole stream", "--style and --cutoff"),
        ("3s: fox --stile ink", "unknown name 'stile'", "quotation marks"),
        ("3s: fox --style", "--style has no value", "quotation marks"),
        ("3s: fox --style ink, running", "'running' stands behind a value", "quotation marks"),
        ("3s: fox --style 'ink", "a quotation mark is not closed", "quotation marks"),
        (f"3s: {'x' * MAX_LINE}", f"at most {MAX_LINE} characters", None),
    ],
)
def test_a_refusal_names_the_line_and_what_to_write(line, message, hint):
    error = refusal(parse_screenplay, f"2s: a wood\n# then\n{line}\n", "play.txt")
    assert error.message.startswith("play.txt, line 3: ")
    assert message in error.message
    assert (hint or "") in (error.hint or "")
    assert ": : " not in error.message


def test_nothing_at_all_is_refused():
    error = refusal(parse_screenplay, "\n# only a comment\n", "play.txt")
    assert error.message == "play.txt says nothing"
    assert parse_screenplay(error.hint.partition(": ")[2])


# --- What is said live ------------------------------------------------------------------------


def test_live_lines_need_no_time():
    assert parse_live("a red fox --style ink\n") == Cue(prompt="a red fox", style="ink")
    assert parse_live("--cutoff 0.5") == Cue(cutoff=Ramp(0.5, 0.5))
    assert parse_live("1:05: a red fox") == Cue(seconds=65.0, prompt="a red fox")
    assert parse_live("a pasted\nprompt\r\n") == Cue(prompt="a pasted prompt")


def test_live_orders_and_silence():
    assert parse_live(" Quit ") is parse_live("stop") is Command.QUIT
    assert parse_live("snapshot") is Command.SNAPSHOT
    assert parse_live("?") is Command.HELP
    assert parse_live("stop the train") == Cue(prompt="stop the train")
    assert parse_live("  ") is parse_live("# a comment") is None


def test_a_live_refusal_has_no_place():
    assert refusal(parse_live, "fox --style gibli").message.startswith("unknown style")
    assert refusal(parse_live, "fox --cutoff 7").message.startswith("--cutoff is a percentile")
    assert refusal(parse_live, "fox --stile ink").message == "unknown name 'stile'"


# --- There and back ---------------------------------------------------------------------------

SECONDS = st.floats(0, 1e6) | st.integers(0, 10**6).map(lambda frame: frame / 24)
NAMES = sorted(style_presets())
STYLES = st.sampled_from(["none", *NAMES, f"{NAMES[0]}+{NAMES[1]}", f"{NAMES[0]}:0.25"])
RAMPS = st.builds(Ramp, st.floats(0, 1), st.floats(0, 1))
PROMPTS = st.text(max_size=30) | st.sampled_from(
    [
        '"',
        '""',
        '"a"',
        '"a" --style b',
        "a --style ink",
        " -s ",
        "#",
        "1:05:",
        "a\nb",
        "\u2028",
        "\\",
    ]
)


@st.composite
def cues(draw) -> tuple[Cue, ...]:
    times = sorted(draw(st.lists(SECONDS, min_size=1, max_size=4)))
    given = [
        {"prompt": draw(st.none() | PROMPTS), "style": draw(st.none() | STYLES)} for _ in times
    ]
    return tuple(
        Cue(
            seconds=time,
            **rest,
            cutoff=draw(st.none() | RAMPS if any(v is not None for v in rest.values()) else RAMPS),
        )
        for time, rest in zip(times, given, strict=True)
    )


@given(cues())
def test_what_is_written_is_read_again(play):
    assert parse_screenplay(format_screenplay(play)) == play


@given(cues())
def test_a_line_of_it_says_the_same_live(play):
    # Live lines are one line, so that whoever pastes several sees them joined.
    for cue in play:
        if cue.prompt is None or len(cue.prompt.splitlines()) < 2:
            line = format_screenplay([cue])
            if len(line.splitlines()) == 1:
                assert parse_live(line) == cue


def test_it_is_written_as_a_person_would():
    play = "0s: a plain\n12.5s: a --style ink --cutoff 0.3\n1:05: --style none\n1:00:09.25: fog\n"
    assert format_screenplay(parse_screenplay(play)) == play


def test_an_own_style_s_file_may_have_a_blank_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my 'look'.toml").write_text(
        'name = "my-look"\ntitle = "Mine"\ndescription = "x"\n[prompt]\ntemplate = "{prompt}, x"\n'
    )
    cue = Cue(seconds=1.0, style="./my 'look'.toml")
    line = describe(cue)
    assert line.startswith("--style ")
    # The name of the file and that in it differ; the refusal shows that the very file was read.
    assert "my 'look'" in refusal(parse_screenplay, f"1s: {line}").message


def test_a_cue_that_says_nothing_is_not_written():
    with pytest.raises(ValueError, match="has a time and says something"):
        format_screenplay([Cue(seconds=1.0)])
    with pytest.raises(ValueError, match="has a time and says something"):
        format_screenplay([Cue(prompt="a")])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (9.0, "9s"), (59.5, "59.5s"), (60.0, "1:00"), (65.25, "1:05.25"),
     (3600.0, "1:00:00"), (0.1, "0.1s"), (1e-7, "0.0000001s"), (600.0, "10:00"), (10.0, "10s")],
)  # fmt: skip
def test_times_are_written_short(seconds, text):
    assert format_time(seconds) == text
