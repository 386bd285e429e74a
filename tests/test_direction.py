"""A timeline directs the same chunks in the same way, whoever said what and when."""

from __future__ import annotations

import json
import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osp_cli.dials import Ramp
from osp_cli.direction import Direction, Scene, Shot, Wording
from osp_cli.errors import InvalidRequestError
from osp_cli.screenplay import format_screenplay, parse_screenplay

# Of the embedded model: 33 frames, then 36, at 16 a second.
FIRST, LATER, FPS = 33, 36, 16


def grid(chunk: int) -> tuple[float, float]:
    """Start and length of a chunk in seconds."""
    if chunk == 0:
        return 0.0, FIRST / FPS
    return (FIRST + (chunk - 1) * LATER) / FPS, LATER / FPS


def play(direction: Direction, count: int, first: int = 0) -> list[Shot]:
    return [direction.begin(*grid(chunk)) for chunk in range(first, first + count)]


def prompts(shots: list[Shot]) -> list[str]:
    return [shot.scene.prompt for shot in shots]


# --- The screenplay ---------------------------------------------------------------------------


def test_a_cue_changes_the_chunk_whose_border_is_nearest():
    # Chunks begin at 0, 2.06, 4.31, 6.56 and 8.81 s.
    cues = parse_screenplay("0.9s: a\n3.1s: b\n7.8s: c")
    assert prompts(play(Direction(cues, Scene("start")), 5)) == ["a", "b", "b", "b", "c"]
    cues = parse_screenplay("1.1s: a\n3.3s: b\n7.6s: c")
    assert prompts(play(Direction(cues, Scene("start")), 5)) == ["start", "a", "b", "c", "c"]


def test_what_a_line_does_not_name_stays():
    cues = parse_screenplay("2s: a --style ink\n4s: --cutoff 0.5\n7s: b\n9s: --style none")
    shots = play(Direction(cues, Scene("start")), 5)
    low, high = Ramp(0.1, 0.1), Ramp(0.5, 0.5)
    assert [shot.scene for shot in shots] == [
        Scene("start", "none", low),
        Scene("a", "ink", low),
        Scene("a", "ink", high),
        Scene("b", "ink", high),
        Scene("b", "none", high),
    ]
    assert [shot.restyled for shot in shots] == [True, True, True, False, True]
    assert [shot.number for shot in shots] == [1, 2, 2, 3, 3]
    assert {shot.total for shot in shots} == {3}


def test_a_moment_has_its_scene():
    direction = Direction(parse_screenplay("2s: a\n4s: b"), Scene("start"))
    assert [direction.scene_at(t).prompt for t in (0, 1.99, 2, 3.9, 4, 99)] == [
        "start", "start", "a", "a", "b", "b"]  # fmt: skip
    assert [scene.prompt for scene in direction.scenes()] == ["start", "a", "b"]
    assert [scene.prompt for scene in direction.scenes(after=2)] == ["a", "b"]


def test_the_first_line_of_a_screenplay_counts_as_the_first_prompt():
    shot = Direction(parse_screenplay("0s: a\n9s: b"), Scene("start")).begin(*grid(0))
    assert (shot.scene.prompt, shot.number, shot.total) == ("a", 1, 2)


def test_a_model_refuses_what_it_cannot_show():
    def check(scene: Scene) -> None:
        if scene.style != "none":
            raise InvalidRequestError("this model has no styles", hint="leave --style out")

    with pytest.raises(InvalidRequestError, match="no styles"):
        Direction(parse_screenplay("0s: a\n9s: --style ink"), check=check)
    direction = Direction(parse_screenplay("0s: a"), check=check)
    answer = direction.say("b --style ink")
    assert answer == "not done: this model has no styles; leave --style out"
    assert not answer.accepted
    assert len(direction.log()) == 2


def test_chunks_come_one_after_the_other():
    direction = Direction()
    play(direction, 2)
    with pytest.raises(ValueError, match="cannot follow"):
        direction.begin(*grid(1))


# --- What is said -----------------------------------------------------------------------------


def test_a_line_changes_the_next_chunk_to_be_begun():
    direction = Direction(scene=Scene("start"))
    play(direction, 2)
    answer = direction.say("a red fox --style ink")
    assert answer == "from 4.3s on: a red fox --style ink"
    assert answer.accepted
    (shot,) = play(direction, 1, first=2)
    assert shot.scene == Scene("a red fox", "ink")
    assert (shot.restyled, shot.number, shot.total) == (True, 2, 2)


def test_a_line_may_name_a_later_time_and_not_a_past_one():
    direction = Direction(scene=Scene("start"))
    play(direction, 2)
    assert direction.say("8.8s: later") == "from 8.8s on: later"
    assert direction.say("1s: at once") == "from 4.3s on, as 1s is past: at once"
    assert prompts(play(direction, 3, first=2)) == ["at once", "at once", "later"]


def test_of_two_lines_the_later_one_holds_and_what_it_leaves_out_stays():
    direction = Direction(scene=Scene("start"))
    direction.say("a --cutoff 0.5")
    direction.say("b")
    assert direction.begin(*grid(0)).scene == Scene("b", cutoff=Ramp(0.5, 0.5))


def test_refusals_orders_and_silence():
    direction = Direction()
    answer = direction.say("a --style gibli")
    assert not answer.accepted
    assert answer.startswith("not done: unknown style 'gibli'")
    assert direction.say("") == direction.say("# a comment") == ""
    assert direction.take_snapshots() == 0
    assert direction.say("snapshot").accepted
    direction.say("snapshot")
    assert direction.take_snapshots() == 2
    assert direction.take_snapshots() == 0
    assert "--style NAME" in direction.say("help")
    assert not direction.ends
    direction.say("quit")
    assert direction.ends
    assert len(direction.log()) == 1


def test_lines_from_many_threads_are_each_in_the_log_at_a_chunk_that_was_not_begun():
    direction = Direction(scene=Scene("start"))
    shots: list[Shot] = []
    begun = threading.Event()

    def talk(who: int) -> None:
        begun.wait()
        for number in range(40):
            assert direction.say(f"{who} {number}").accepted

    crowd = [threading.Thread(target=talk, args=(who,)) for who in range(4)]
    for thread in crowd:
        thread.start()
    begun.set()
    while any(thread.is_alive() for thread in crowd):
        shots += play(direction, 1, first=len(shots))
    shots += play(direction, 1, first=len(shots))
    said = Counter(cue.prompt for cue in direction.log()[1:])
    assert said == Counter(f"{who} {number}" for who in range(4) for number in range(40))
    replay = Direction(parse_screenplay(format_screenplay(direction.log())))
    assert prompts(play(replay, len(shots))) == prompts(shots)


# --- Its log ----------------------------------------------------------------------------------

LINES = st.sampled_from(
    ["a", "b --style ink", "--style none", "--cutoff 0.3:0.7", "5s: c", "1:00: d --style oil",
     '"--e"', "9.123456789s: f", "x --style gibli"]
)  # fmt: skip
SAID = st.lists(st.tuples(st.integers(0, 9), LINES), max_size=6)
PLAYS = st.sampled_from(["0s: p", "1s: p\n3.2s: q --style oil", "6s: --cutoff 0.9\n20s: r"])


def directed(
    text: str, said: list[tuple[int, str]], crossfade: int
) -> tuple[Direction, list[Shot]]:
    """Ten chunks, with lines said before those of their numbers are begun."""
    direction = Direction(parse_screenplay(text), Scene("start", "oil"), crossfade=crossfade)
    shots = []
    for chunk in range(10):
        for when, line in said:
            if when == chunk:
                direction.say(line)
        shots += play(direction, 1, first=chunk)
    return direction, shots


@settings(max_examples=60, deadline=None)
@given(PLAYS, SAID, st.integers(1, 3))
def test_the_log_replays_as_a_screenplay(text, said, crossfade):
    direction, shots = directed(text, said, crossfade)
    log = format_screenplay(direction.log())
    again = play(Direction(parse_screenplay(log), Scene("other"), crossfade=crossfade), 10)
    directing = [(shot.chunk, shot.start, shot.scene, shot.shares, shot.restyled) for shot in shots]
    assert directing == [(s.chunk, s.start, s.scene, s.shares, s.restyled) for s in again]
    # And its own log is the same text, but for the beginning, which now stands there twice.
    assert format_screenplay(Direction(parse_screenplay(log)).log()).endswith(log)


@settings(max_examples=60, deadline=None)
@given(PLAYS, SAID, st.integers(1, 3), st.integers(0, 9))
def test_a_state_goes_on_as_if_nothing_had_happened(text, said, crossfade, stop):
    _, shots = directed(text, said, crossfade)
    direction = Direction(parse_screenplay(text), Scene("start", "oil"), crossfade=crossfade)
    for chunk in range(10):
        if chunk == stop:
            state = json.loads(json.dumps(direction.as_json()))
            direction = Direction.from_json(state)
            assert direction.as_json() == state
        for when, line in said:
            if when == chunk:
                direction.say(line)
        assert direction.begin(*grid(chunk)) == shots[chunk]


@pytest.mark.parametrize(
    "damage",
    [
        {"cues": [{}]}, {"cues": None}, {"scene": None}, {"crossfade": "x"},
        {"crossfade": {"chunks": 0}},
        {"crossfade": {"chunks": 1, "before": [["a", "none"]], "towards": None, "faded": 1}},
        {"next": None}, {"shown": {"prompt": 1}},
        {"cues": [{"seconds": 1, "prompt": 7, "style": None, "cutoff": None}]},
    ],
)  # fmt: skip
def test_a_damaged_state_is_refused_in_a_sentence(damage):
    state = Direction().as_json()
    assert Direction.from_json(state).as_json() == state
    with pytest.raises(InvalidRequestError, match="no timeline") as caught:
        Direction.from_json(state | damage)
    assert caught.value.hint


# --- From one wording to the next -------------------------------------------------------------


def test_words_go_over_into_each_other_over_some_chunks():
    direction = Direction(parse_screenplay("4.3s: b"), Scene("a"), crossfade=3)
    shots = play(direction, 7)
    a, b = Wording("a", "none"), Wording("b", "none")
    assert [shot.shares.towards for shot in shots] == [a, a, b, b, b, b, b]
    assert [shot.shares.share for shot in shots] == pytest.approx([1, 1, 1 / 3, 2 / 3, 1, 1, 1])
    assert shots[2].shares.words == ((a, 1.0),)
    assert dict(shots[3].shares.flat) == pytest.approx({a: 1 / 3, b: 2 / 3})
    assert shots[4].shares.flat == ((b, 1.0),)


def test_without_a_crossfade_words_change_at_once():
    shots = play(Direction(parse_screenplay("4.3s: b"), Scene("a")), 3)
    assert [shot.shares.flat for shot in shots][1:] == [
        ((Wording("a", "none"), 1.0),),
        ((Wording("b", "none"), 1.0),),
    ]


def test_a_cutoff_alone_is_no_change_of_words():
    shots = play(Direction(parse_screenplay("4.3s: --cutoff 0.5"), Scene("a"), crossfade=3), 4)
    assert {shot.shares.share for shot in shots} == {1}


def test_a_change_in_a_change_begins_from_where_that_one_has_come_to():
    direction = Direction(parse_screenplay("2s: b\n4.3s: c"), Scene("a"), crossfade=2)
    shots = play(direction, 4)
    a, b, c = (Wording(prompt, "none") for prompt in "abc")
    assert dict(shots[1].shares.flat) == {a: 0.5, b: 0.5}
    assert shots[2].shares.words == ((a, 0.5), (b, 0.5))
    assert dict(shots[2].shares.flat) == {a: 0.25, b: 0.25, c: 0.5}
    assert shots[3].shares.flat == ((c, 1.0),)


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), st.integers(1, 4))
def test_shares_are_whole_few_and_steady(said, crossfade):
    direction = Direction(scene=Scene("start"), crossfade=crossfade)
    last: dict[Wording, float] = {}
    for chunk, prompt in enumerate(said):
        direction.say(prompt)
        flat = direction.begin(*grid(chunk)).shares.flat
        assert sum(share for _, share in flat) == pytest.approx(1)
        assert len({wording for wording, _ in flat}) == len(flat) <= 5
        shares = dict(flat)
        # Nothing jumps by more than a step of the crossfade, and what was left out.
        if last:
            moved = max(abs(shares.get(w, 0) - last.get(w, 0)) for w in shares | last)
            assert moved <= 1 / crossfade + 0.02
        last = shares
