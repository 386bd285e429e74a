"""Styles by weight: what is read, what is refused, and what the model gets to read."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osp_cli.errors import InvalidRequestError
from osp_cli.registry import find_model, find_style, style_presets
from osp_cli.style_mix import (
    WeightedPrompt,
    mean_weight,
    prompts_of_recipe,
    prompts_to_recipe,
    read_style,
    weights_along,
)

names = st.sampled_from(sorted(style_presets()))
some_names = st.lists(names, min_size=1, max_size=5, unique=True)


@st.composite
def weighted(draw) -> dict[str, float]:
    """Different styles with weights that add up to 1 at most."""
    chosen = draw(some_names)
    raw = [draw(st.floats(0.01, 1)) for _ in chosen]
    total = math.fsum(raw) / draw(st.floats(0.05, 1))
    return {name: weight / total for name, weight in zip(chosen, raw, strict=True)}


def written(weights: dict[str, float]) -> str:
    return "+".join(f"{name}:{weight!r}" for name, weight in weights.items())


def shares(text: str) -> dict[str, float]:
    mix = read_style(text)
    assert mix is not None
    return {preset.name: weight for preset, weight in mix.parts}


def refusal(text: str) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        read_style(text)
    return caught.value


@given(weighted())
def test_given_weights_are_kept_and_the_rest_is_unstyled(weights):
    mix = read_style(written(weights))
    assert shares(written(weights)) == weights
    assert mix.unstyled == pytest.approx(1 - sum(weights.values()), abs=1e-8)
    assert 0 <= mix.unstyled < 1


@given(some_names)
def test_styles_without_weights_share_equally(chosen):
    assert shares("+".join(chosen)) == dict.fromkeys(chosen, pytest.approx(1 / len(chosen)))
    assert read_style("+".join(chosen)).unstyled == 0


@given(weighted(), names)
def test_a_style_without_a_weight_takes_what_is_left(weights, other):
    weights.pop(other, None)
    left = 1 - sum(weights.values())
    if weights and left > 1e-6:
        mixed = shares(f"{other}+{written(weights)}")
        assert mixed == {**weights, other: pytest.approx(left)}


@given(weighted() | some_names.map(lambda chosen: dict.fromkeys(chosen)), st.randoms())
def test_the_order_says_nothing_and_the_canonical_text_is_read_as_itself(weights, random):
    parts = [name if weight is None else f"{name}:{weight!r}" for name, weight in weights.items()]
    mix = read_style("+".join(parts))
    random.shuffle(parts)
    assert read_style("+".join(parts)) == mix
    assert str(read_style(str(mix))) == str(mix)
    assert read_style(str(mix)) == mix


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ghibli", "ghibli"),
        ("Ghibli", "ghibli"),
        (" GHIBLI : 0.50 ", "ghibli:0.5"),
        ("ghibli:1", "ghibli"),
        ("ghibli:1e0", "ghibli"),
        ("Pixel Art + fairy_tale", "fairy-tale+pixel-art"),
        ("watercolor+ink", "ink+watercolor"),
        ("ink:.5+oil:.5", "ink+oil"),
        ("ghibli:0.3+ink:0.5", "ghibli:0.3+ink:0.5"),
        ("ink+ghibli:0.3", "ghibli:0.3+ink:0.7"),
        ("ink:0.1+oil:0.2+lego:0.7", "ink:0.1+lego:0.7+oil:0.2"),
    ],
)
def test_canonical_text(text, canonical):
    assert str(read_style(text)) == canonical


@pytest.mark.parametrize("text", ["none", "None", " NONE "])
def test_none_is_no_style(text):
    assert read_style(text) is None


def test_decimal_fractions_leave_nothing_unstyled():
    # 0.1 + 0.2 + 0.7 is a little less than 1 to a computer.
    assert read_style("ink:0.1+oil:0.2+lego:0.7").unstyled == 0
    assert len(read_style("ink:0.1+oil:0.2+lego:0.7").prompts_for(find_model("osp-mini"), "")) == 3


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("ghilbi:0.5", "unknown style 'ghilbi'", "did you mean ghibli"),
        ("ink+oyl", "unknown style 'oyl'", "the styles are"),
        ("", "unknown style ''", "the styles are"),
        ("ghibli:0", "above 0 and at most 1", "ghibli:0.5"),
        ("ghibli:1.01", "above 0 and at most 1", "ghibli:0.5"),
        ("ghibli:-0.5", "above 0 and at most 1", "ghibli:0.5"),
        ("ghibli:nan", "above 0 and at most 1", "ghibli:0.5"),
        ("ghibli:inf", "above 0 and at most 1", "ghibli:0.5"),
        ("ghibli:50%", "above 0 and at most 1", "ghibli:0.5"),
        ("ghibli:", "above 0 and at most 1", "ghibli:0.5"),
        ("ghibli:0.5:0.5", "above 0 and at most 1", "ghibli:0.5"),
        ("ghibli:0.6+ink:0.9", "add up to 1 at most", "--style ghibli:0.4+ink:0.6 keeps"),
        ("ghibli:0.6+ink:0.9+oil", "add up to 1 at most", "--style ghibli:0.2+ink:0.3+oil keeps"),
        ("ghibli:1+ink", "leaves nothing for ink", "--style ghibli+ink"),
        ("ink+ink", "names ink twice", "--style ink"),
        ("ink:0.2+oil+INK:0.3", "names ink twice", "--style ink+oil"),
        ("all", "--style makes one video here", "--style all, on its own"),
        ("ink+all", "--style makes one video here", "--style all, on its own"),
        ("ghibli+none", "none stands alone", "ghibli:0.5"),
        ("none:0.5", "none stands alone", "ghibli:0.5"),
        ("..", "lacks a name before or after the dots", "--style none..ink leads"),
        ("ghibli..", "lacks a name before or after the dots", "--style none..ghibli leads"),
        ("ink.. ..oil", "lacks a name before or after the dots", "--style ink..oil leads"),
        ("ghibli..oyl", "unknown style 'oyl'", "the styles are"),
        ("ghibli...ink", "unknown style '.ink'", "did you mean ink"),
        ("ghibli..ink+none", "none stands alone", "none..ghibli"),
        ("ghibli..ink+ink", "names ink twice", "--style ink"),
        ("ghibli..all", "--style makes one video here", "--style all, on its own"),
        ("ghibli..ink:0.6+oil:0.9", "add up to 1 at most", "--style ink:0.4+oil:0.6 keeps"),
        ("..".join(["ink", "oil"] * 9), "at most 16 looks, got 18", "ghibli..ink..oil"),
        ("ink+", "lacks a name", "ink+watercolor"),
        ("+ink", "lacks a name", "ink+watercolor"),
        (":0.5", "lacks a name", "ghibli:0.5"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_write(text, message, hint):
    error = refusal(text)
    assert message in error.message
    assert hint in error.hint
    assert "\n" not in error.message


@given(st.dictionaries(names, st.floats(1e-320, 1), min_size=2, max_size=5), st.booleans())
def test_the_weights_offered_for_too_large_ones_are_accepted(weights, waiting):
    text = written(weights)
    others = [name for name in style_presets() if name not in weights]
    if math.fsum(weights.values()) <= 1 + 1e-6:
        return
    text += f"+{others[0]}" if waiting else ""
    offered = refusal(text).hint.split()[1]
    assert shares(offered).keys() == weights.keys() | ({others[0]} if waiting else set())


# --- while the clip plays ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ghibli..ink", "ghibli..ink"),
        (" Ghibli .. INK ", "ghibli..ink"),
        ("ink..ghibli", "ink..ghibli"),
        ("ghibli..ink..oil..ghibli", "ghibli..ink..oil..ghibli"),
        ("None..ink", "none..ink"),
        ("ink..none", "ink..none"),
        ("ghibli:0.5..watercolor+ink", "ghibli:0.5..ink+watercolor"),
        ("ghibli:.2..ghibli:1", "ghibli:0.2..ghibli"),
        ("ghibli..ghibli..ink", "ghibli..ghibli..ink"),
        ("ink+oil..ink+lego", "ink+oil..ink+lego"),
        # Nothing changes.
        ("ghibli..Ghibli", "ghibli"),
        ("ink:0.5+oil..oil+ink", "ink+oil"),
    ],
)
def test_canonical_text_of_a_morph(text, canonical):
    mix = read_style(text)
    assert str(mix) == canonical
    assert read_style(canonical) == mix
    assert mix.is_morph == (".." in canonical)


def test_from_nothing_to_nothing_is_no_style():
    assert read_style("none..none") is None


@given(st.lists(weighted(), min_size=2, max_size=4))
def test_a_morph_has_one_prompt_for_each_style_whose_weights_make_one(stops):
    mix = read_style("..".join(map(written, stops)))
    assert read_style(str(mix)) == mix
    prompts = mix.prompts_for(find_model("osp-mini"), "it snows")
    assert len({text for text, _ in prompts}) == len(prompts)
    styles = {name for stop in stops for name in stop}
    assert len(prompts) - bool(mix.unstyled) == len(styles)
    positions = [index / 12 for index in range(13)]
    for weights in zip(*weights_along(prompts, positions), strict=True):
        assert math.fsum(weights) == pytest.approx(1, abs=1e-9)
        assert min(weights) >= 0
    # At a stop it is that stop's mixture, exactly.
    for number, stop in enumerate(stops):
        rows = weights_along(prompts, [number / (len(stops) - 1)])
        for (preset, _), [weight] in zip(mix.parts, rows, strict=False):
            # Three stops are at 0, 1/2 and 1; a third is no binary number.
            assert weight == pytest.approx(stop.get(preset.name, 0), abs=1e-12)
    first = weights_along(prompts, [0.0])
    assert [row[0] for row in first[: len(styles)]] == [
        stops[0].get(preset.name, 0) for preset, _ in mix.parts
    ]


def test_weights_run_straight_between_the_stops():
    spec = find_model("osp-mini")
    prompts = read_style("ghibli..ink..none").prompts_for(spec, "x")
    assert [text for text, _ in prompts] == ["ghibli style, x", "ink painting style, x", "x"]
    assert weights_along(prompts, [0, 0.25, 0.5, 0.75, 1]) == [
        [1, 0.5, 0, 0, 0],
        [0, 0.5, 1, 0.5, 0],
        [0, 0, 0, 0.5, 1],
    ]
    # Beside what changes, what stays is a plain number.
    prompts = read_style("ink+oil..ink+lego").prompts_for(spec, "x")
    assert [weight for _, weight in prompts] == [0.5, (0.0, 0.5), (0.5, 0.0)]
    assert weights_along(prompts, [0.1])[0] == [0.5]


@pytest.mark.parametrize(
    ("weight", "mean"), [(0.3, 0.3), ((0.0, 1.0), 0.5), ((0.0, 1.0, 0.0), 0.5), ((1, 0, 0), 0.25)]
)
def test_the_mean_weight_is_that_over_time(weight, mean):
    assert mean_weight(weight) == mean


@given(st.text(st.sampled_from("ginkol:+. 0159eE-_%"), max_size=16))
def test_any_text_is_read_or_refused_in_a_sentence(text):
    try:
        mix = read_style(text)
    except InvalidRequestError as error:
        assert error.message
        assert error.hint
    else:
        assert mix is None or str(read_style(str(mix))) == str(mix)


# --- what the model reads ----------------------------------------------------------------------


@given(weighted())
def test_prompts_add_up_to_one_with_the_unstyled_one_last(weights):
    spec = find_model("osp-mini")
    prompts = read_style(written(weights)).prompts_for(spec, "it snows")
    assert math.fsum(weight for _, weight in prompts) == pytest.approx(1)
    styled = [find_style(name).prompt_for(spec, "it snows") for name in sorted(weights)]
    assert [text for text, _ in prompts[: len(weights)]] == styled
    assert [text for text, _ in prompts[len(weights) :]] in ([], ["it snows"])


def test_a_whole_style_is_one_prompt():
    spec = find_model("osp-mini")
    assert read_style("ink:1").prompts_for(spec, "x") == (
        WeightedPrompt("ink painting style, x", 1.0),
    )


@pytest.mark.parametrize(
    ("text", "strongest"),
    [
        ("ghibli:0.1", "ghibli"),
        ("ghibli:0.3+ink:0.5", "ink"),
        ("oil+ink", "ink"),
        ("none..ink", "ink"),
        # Over time, and of equals the one it begins with.
        ("oil..ink", "oil"),
        ("oil..ink..ink", "ink"),
        ("oil..ink..oil:0.9", "ink"),
    ],
)
def test_the_strongest_style_is_told(text, strongest):
    assert read_style(text).strongest.name == strongest


@given(weighted())
def test_prompts_go_through_a_recipe(weights):
    prompts = read_style(written(weights)).prompts_for(find_model("osp-mini"), "x")
    value = json.loads(json.dumps(prompts_to_recipe(prompts)))
    back = prompts_of_recipe(value)
    assert back == prompts or (len(prompts) == 1 and back == (prompts[0]._replace(weight=1.0),))
    assert isinstance(value, str) == (len(prompts) == 1)


def test_a_morph_goes_through_a_recipe():
    prompts = read_style("ink:0.2..ink+oil..none").prompts_for(find_model("osp-mini"), "x")
    value = prompts_to_recipe(prompts)
    assert value[0] == {"prompt": "ink painting style, x", "weight": [0.2, 0.5, 0.0]}
    assert prompts_of_recipe(json.loads(json.dumps(value))) == prompts


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        [],
        [{"prompt": "a", "weight": 0.4}],
        [{"prompt": "a", "weight": 0.4}, {"prompt": "b", "weight": 0.4}],
        [{"prompt": "a", "weight": 1.5}, {"prompt": "b", "weight": -0.5}],
        [{"prompt": 1, "weight": 0.5}, {"prompt": "b", "weight": 0.5}],
        ["a", "b"],
        [{"prompt": "a", "weight": [0, 1]}, {"prompt": "b", "weight": [1, 0.5]}],
        [{"prompt": "a", "weight": [0, 1, 0]}, {"prompt": "b", "weight": [1, 1]}],
        [{"prompt": "a", "weight": [2, -1]}, {"prompt": "b", "weight": [-1, 2]}],
        [{"prompt": "a", "weight": [0, 0]}, {"prompt": "b", "weight": 1}],
        [{"prompt": "a", "weight": [1]}],
        [{"prompt": "a", "weight": ["0", "1"]}, {"prompt": "b", "weight": [1, 0]}],
    ],
)
def test_prompts_of_a_recipe_that_was_tampered_with_are_refused(value):
    with pytest.raises(InvalidRequestError, match="full_prompt"):
        prompts_of_recipe(value)
