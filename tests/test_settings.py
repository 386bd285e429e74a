"""Precedence of all sources, with the origin kept; seeds, lengths, sizes and recipes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osp_cli.config import Layer
from osp_cli.dials import (
    DIALS,
    MAX_SEEDS,
    RANDOM_SEED,
    LoraChoice,
    Loras,
    Ramp,
    Seeds,
    Size,
    StepCacheChoice,
    step_cache,
)
from osp_cli.errors import InvalidRequestError
from osp_cli.registry import find_model, find_style, model_specs, style_presets
from osp_cli.settings import (
    PAPER_DEFAULTS,
    PROGRAM_DEFAULTS,
    Setting,
    Source,
    recipe_layer,
    settle_dials,
    settle_generate,
)

CAT = Source(image=Path("cat.jpg"))
LARGE = {"model": "flashi2v-1.3b"}


def dials(*layers: Layer) -> dict[str, Setting]:
    return settle_dials(layers)[0]


def flags(**values) -> Layer:
    return Layer("flag", values)


def test_paper_defaults_are_those_of_section_5_1():
    settled = dials(flags(model="uniworld-osp2-14b"))
    expected = {
        "num_frames": 49,
        "fps": 16,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
        "shift": 7.0,
        "sampler": "euler",
    }
    for name, value in expected.items():
        assert settled[name] == Setting(value, "paper")
    assert settled["cutoff"] == Setting((0.1, 0.1), "paper")


def test_style_beats_card_beats_paper():
    plain, styled = dials(flags(**LARGE)), dials(flags(**LARGE, style="ink"))
    assert plain["shift"] == Setting(7.0, "paper")
    assert plain["negative_prompt"].origin == "card flashi2v-1.3b"
    assert styled["shift"] == Setting(3.0, "style ink")
    assert styled["negative_prompt"].origin == "style ink"
    assert dials(flags(**LARGE, style="ink", shift=5.0))["shift"] == Setting(5.0, "flag")
    assert dials(flags(**LARGE, style="ink", shift=None))["shift"] == Setting(3.0, "style ink")


@pytest.mark.parametrize(
    ("mixture", "strongest"),
    [
        ("ink:0.2", "ink"),
        ("ghibli:0.3+ink:0.5", "ink"),
        ("ghibli:0.3+ink", "ink"),
        ("watercolor+ink", "ink"),
        ("oil:0.6+ink", "oil"),
    ],
)
def test_the_strongest_style_of_a_mixture_brings_its_settings(mixture, strongest):
    mixed, alone = dials(flags(**LARGE, style=mixture)), dials(flags(**LARGE, style=strongest))
    assert mixed["negative_prompt"].value == find_style(strongest).negative_prompt
    for field in alone.keys() - {"style", "seed"}:
        assert mixed[field] == alone[field], field


def test_a_style_from_a_file_is_refused_with_its_place():
    with pytest.raises(InvalidRequestError, match=r"^--style names ink .*\(from osp.toml\)$"):
        settle_dials([flags(seed=Seeds([1])), Layer("osp.toml", {"style": "ink+ink"})])
    with pytest.raises(InvalidRequestError) as caught:
        settle_dials([flags(style="ink+ink")])
    assert "from" not in caught.value.message


# Strongest first; what is no layer of `settle_dials` lies below the user's sources.
ORIGINS = [
    *("flag", "jobs.txt, line 3", "recipe of a.mp4", "environment"),
    *("mine.toml", "./osp.toml", "/home/me/.config/osp/config.toml"),
]
DIFFERENT = {
    "prompt": ("it snows", "it rains"),
    "negative_prompt": ("", "blur"),
    "style": ("ink", "none"),
    "output": ("a.mp4", "b.mp4"),
    "size": (Size(320, 384), Size(448, 256)),
    "num_frames": (9, 13),
    "fps": (8, 16),
    "num_inference_steps": (3, 4),
    "guidance_scale": (0.0, 2.0),
    "shift": (1.0, 2.0),
    "sampler": ("unipc", "euler"),
    "cutoff": (Ramp(0, 0), Ramp(0.1, 0.5)),
    "strength": (0.0, 0.5),
    "seed": (Seeds([0]), Seeds([1])),
    "count": (1, 2),
    "cache": (StepCacheChoice("none"), StepCacheChoice("fbcache", 0.2)),
    "cache_start": (0, 5),
    "loras": (Loras(), Loras([LoraChoice("style", 0.5)])),
    "preview": ("none", "latent"),
    "metadata": (False, True),
    "model": ("flashi2v-1.3b", "osp-mini"),
    "device": ("cpu", "mps"),
    "dtype": ("float32", "auto"),
    "offload": ("none", "group"),
    "quant": ("fp8", "none"),
    "attention": ("sdpa", "auto"),
    "vae_tiling": (True, False),
    "compile": (True, False),
    "gpus": (2, 4),
    "max_vram": (12 * 10**9, 24 * 10**9),
    "max_ram": (16 * 10**9, 8 * 10**9),
}


@pytest.mark.parametrize(("strong", "weak"), list(itertools.combinations(range(len(ORIGINS)), 2)))
@pytest.mark.parametrize("field", DIFFERENT)
def test_each_source_beats_each_weaker_one(strong, weak, field):
    layers = [Layer(origin, {}) for origin in ORIGINS]
    first, second = DIFFERENT[field]
    layers[strong] = Layer(ORIGINS[strong], {field: first})
    layers[weak] = Layer(ORIGINS[weak], {field: second})
    settled = dials(*layers)[field]
    assert settled.origin == ORIGINS[strong]
    # An empty prompt and zero are values, too. `none` is how to take a style away.
    assert settled.value == first
    assert dials(*layers[weak:])[field] == Setting(
        None if second == "none" and field == "style" else second, ORIGINS[weak]
    )


def test_every_dial_is_among_the_examples():
    assert {*DIFFERENT, "seconds"} == {dial.field for dial in DIALS.values()}


@pytest.mark.parametrize("field", sorted({*PAPER_DEFAULTS, *PROGRAM_DEFAULTS} - {"seed"}))
def test_each_user_source_beats_style_card_paper_and_default(field):
    below = dials(flags(**LARGE))[field]
    value = next(value for value in DIFFERENT[field] if value not in ("none", below.value))
    for origin in ORIGINS:
        assert dials(Layer(origin, {**LARGE, "style": "ink", field: value}))[field] == Setting(
            value, origin
        )


def test_single_values_of_a_layer_may_have_their_own_origin():
    layer = Layer("environment", {"fps": 8, "shift": 2.0}, {"fps": "OSP_FPS"})
    settled = dials(layer)
    assert settled["fps"].origin == "OSP_FPS"
    assert settled["shift"].origin == "environment"


def test_model_and_style_of_any_source_bring_their_own_defaults():
    stored = Layer("./osp.toml", {"model": "flashi2v-1.3b", "style": "ink"})
    settled = dials(flags(), stored)
    assert settled["shift"] == Setting(3.0, "style ink")
    assert settled["negative_prompt"].origin == "style ink"
    assert dials(flags(style="none"), stored)["shift"] == Setting(7.0, "paper")
    assert dials(flags(style="none"), stored)["style"] == Setting(None, "flag")
    assert dials(flags(model="osp-mini"), stored)["shift"] == Setting(3.0, "card osp-mini")


def test_the_small_model_keeps_its_own_settings_under_a_style():
    plain, styled = dials(), dials(flags(style="ink"))
    spelled = {"cutoff": lambda value: (value, value), "cache": step_cache}
    for name, value in find_model("osp-mini").defaults.items():
        value = spelled.get(name, lambda value: value)(value)
        assert plain[name] == styled[name] == Setting(value, "card osp-mini")


@pytest.mark.parametrize(("name", "empty"), [("negative_prompt", ""), ("prompt", "")])
def test_an_empty_flag_is_a_flag(name, empty):
    assert dials(flags(**LARGE, style="ink", **{name: empty}))[name] == Setting("", "flag")


def test_every_setting_has_an_origin():
    settled = settle_generate(CAT, num_inference_steps=3)
    # A picture is not re-noised.
    assert settled.settings.keys() == DIALS.keys() - {"seconds", "strength"}
    assert settled.settings["steps"] == Setting(3, "flag")
    assert settled.settings["device"] == Setting("auto", "default")
    assert all(setting.origin for setting in settled.settings.values())


def test_unknown_fields_are_a_mistake_of_ours():
    with pytest.raises(TypeError, match="unknown settings: steps"):
        settle_dials([flags(steps=3)])


RUNNING = sorted(name for name, spec in model_specs().items() if spec.run_problem() is None)


@pytest.mark.parametrize("model", RUNNING)
@pytest.mark.parametrize("style", [None, *sorted(style_presets())])
def test_what_ships_is_valid_in_every_combination(model, style):
    source = CAT if find_model(model).image_to_video else Source(text="it snows")
    prompt = None if source.text else "it snows"
    request = settle_generate(source, model=model, style=style, prompt=prompt).request
    assert "it snows" in request.full_prompt
    assert request.spec.name == model


def test_without_a_prompt_the_card_has_one():
    assert settle_generate(CAT).request.prompt == find_model("osp-mini").defaults["prompt"]
    assert settle_generate(CAT, prompt="").request.prompt == ""


@pytest.mark.parametrize(
    ("seconds", "fps", "num_frames", "notice"),
    [
        (3.0625, 16, 49, None),
        (3.0, 16, 49, "48 frames rounded up to 49"),
        (0.01, 16, 1, None),
        (0.1 * 3, 30, 9, None),
        (2.0, 10, 21, "20 frames rounded up to 21"),
    ],
)
def test_seconds_are_frames(seconds, fps, num_frames, notice):
    settled = settle_generate(CAT, seconds=seconds, fps=fps)
    assert settled.request.num_frames == num_frames
    assert settled.notices == (() if notice is None else (notice,))


@given(st.lists(st.sampled_from([None, "num_frames", "seconds"]), max_size=5))
def test_the_strongest_length_is_the_length(kinds):
    values = [
        {} if kind is None else {kind: 4 * index + 1 if kind == "num_frames" else (index + 1) / 4}
        for index, kind in enumerate(kinds)
    ]
    settled = dials(*(Layer(f"source {index}", each) for index, each in enumerate(values)))
    first = next((index for index, kind in enumerate(kinds) if kind), None)
    if first is None:
        assert settled["num_frames"] == Setting(49, "card osp-mini")
        return
    # A quarter of a second has four frames at 16 fps, and a clip one more than those.
    frames = 4 * first + 1 if kinds[first] == "num_frames" else 4 * (first + 1) + 1
    assert settled["num_frames"] == Setting(frames, f"source {first}")
    assert "seconds" not in settled


def test_seconds_follow_the_rate_of_any_source():
    settled = dials(flags(seconds=0.5), Layer("./osp.toml", {"fps": 8}))
    assert settled["num_frames"] == Setting(5, "flag")


@pytest.mark.parametrize("fps", [10**400, 0, -1, 121])
def test_seconds_at_no_rate(fps):
    with pytest.raises(InvalidRequestError, match="--fps must be 1 to 120"):
        dials(flags(seconds=1.0, fps=fps))


@pytest.mark.parametrize("num_frames", [50, 10**400])
def test_too_many_frames_are_not_rounded(num_frames):
    with pytest.raises(InvalidRequestError, match=rf"at most 49 frames, got {num_frames}$"):
        settle_generate(CAT, num_frames=num_frames)


def test_width_and_height_of_one_source_are_a_size():
    stored = Layer("./osp.toml", {"size": Size(320, 384)})
    assert dials(flags(width=448, height=256), stored)["size"] == Setting((448, 256), "flag")
    assert dials(stored)["size"] == Setting((320, 384), "./osp.toml")


@pytest.mark.parametrize(
    "both",
    [
        {"size": Size(448, 256), "width": 448},
        {"size": Size(448, 256), "height": 256},
        {"num_frames": 9, "seconds": 1.0},
    ],
)
def test_two_names_for_one_thing(both):
    with pytest.raises(InvalidRequestError, match=r"^--\S+ and \S+ say the same thing"):
        settle_generate(CAT, **both)
    with pytest.raises(InvalidRequestError, match=r"^./osp.toml: --\S+ and \S+ say the same"):
        settle_generate(CAT, layers=[Layer("./osp.toml", both)])


def test_text_and_prompt_are_one_thing():
    with pytest.raises(InvalidRequestError, match="--text and PROMPT say the same thing"):
        settle_generate(Source(text="snow"), prompt="rain")
    stored = Layer("OSP_PROMPT", {"prompt": "rain", **LARGE})
    request = settle_generate(Source(text="snow"), layers=[stored]).request
    assert (request.prompt, request.text_only) == ("snow", True)


@pytest.mark.parametrize(
    ("given_size", "sentence"),
    [
        ({"width": 448}, "--width needs --height too"),
        ({"height": 448}, "--height needs --width too"),
        ({"height": 0}, "--height needs --width too"),
    ],
)
def test_half_a_size(given_size, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        settle_generate(CAT, **given_size)


def seeds_of(**values) -> list[int]:
    return [request.seed for request in settle_generate(CAT, **values).requests]


def test_seeds_are_random_unless_given():
    seeds = {settle_generate(CAT).request.seed for _ in range(8)}
    assert len(seeds) > 1
    assert settle_generate(CAT).settings["seed"].origin == "random"
    assert seeds_of(seed=Seeds([0])) == [0]


@given(first=st.integers(0, 2**40), count=st.integers(1, 20))
def test_a_count_goes_on_from_the_seed(first, count):
    assert seeds_of(seed=Seeds([first]), count=count) == list(range(first, first + count))


@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=9, unique=True), st.integers(1, 10))
def test_seeds_and_count_must_agree(seeds, count):
    assert seeds_of(seed=Seeds(seeds)) == seeds
    if count == len(seeds):
        assert seeds_of(seed=Seeds(seeds), count=count) == seeds
        return
    with pytest.raises(InvalidRequestError, match=f"--seed names {len(seeds)} videos, --count"):
        seeds_of(seed=Seeds(seeds), count=count)


def test_many_random_seeds_follow_each_other():
    seeds = seeds_of(seed=RANDOM_SEED, count=3)
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]


def test_the_seeds_of_a_stronger_source_hide_a_weaker_count():
    stored = Layer("OSP_COUNT", {"count": 2})
    assert dials(flags(seed=Seeds([1, 5, 9])), stored)["count"] == Setting(3, "flag")
    assert dials(flags(seed=Seeds([1])), stored)["seed"] == Setting((1, 2), "flag")
    with pytest.raises(InvalidRequestError, match="--seed names 3 videos, --count asks for 2"):
        dials(flags(count=2), Layer("./osp.toml", {"seed": Seeds([1, 5, 9])}))


@pytest.mark.parametrize("count", [0, -1, MAX_SEEDS + 1, 10**29])
def test_counts_that_make_no_sense(count):
    with pytest.raises(InvalidRequestError, match=f"--count must be 1 to {MAX_SEEDS}"):
        seeds_of(count=count)


def test_a_count_beyond_the_last_seed():
    with pytest.raises(InvalidRequestError, match=f"--seed must be 0 to {2**63 - 1}"):
        seeds_of(seed=Seeds([2**63 - 1]), count=2)


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("a.mp4", "--output a-{seed}.mp4"),
        ("x/{name}.gif", "--output x/{name}-{seed}.gif"),
        ("frames/%04d.png", "--output frames-{seed}/%04d.png"),
        ("x/frames/{seed}-%04d.png", "--output x/frames-{seed}/{seed}-%04d.png"),
    ],
)
def test_videos_of_many_seeds_need_many_names(output, hint):
    with pytest.raises(InvalidRequestError, match="2 videos cannot all be") as caught:
        settle_generate(CAT, seed=Seeds([1, 2]), output=output)
    assert caught.value.hint == hint
    better = hint.removeprefix("--output ")
    settled = settle_generate(CAT, seed=Seeds([1, 2]), output=better)
    assert len({request.output for request in settled.requests}) == 2


def test_stdout_takes_one_video():
    assert settle_generate(CAT, seed=Seeds([1]), output="-").request.output == Path("-")
    with pytest.raises(InvalidRequestError, match="--output - takes one video, got 2"):
        settle_generate(CAT, seed=Seeds([1]), count=2, output="-")


def test_a_bad_value_that_was_not_typed_tells_where_it_comes_from():
    stored = Layer("environment", {"num_inference_steps": 0}, {"num_inference_steps": "OSP_STEPS"})
    with pytest.raises(InvalidRequestError, match=r"got 0 \(from OSP_STEPS\)$"):
        settle_generate(CAT, layers=[stored])
    with pytest.raises(InvalidRequestError, match=r"got 0$"):
        settle_generate(CAT, layers=[stored], num_inference_steps=0)
    with pytest.raises(InvalidRequestError, match=r"got 0$"):
        settle_generate(CAT, origin="jobs.txt, line 3", num_inference_steps=0)


RECIPE = settle_generate(
    CAT,
    prompt="it snows",
    size=Size(448, 256),
    seed=Seeds([5]),
    cutoff=Ramp(0.1, 0.30000000000000004),
    cache=StepCacheChoice("fbcache", 0.123456789),
    style="ink",
    guidance_scale=1.1,
    dtype="float32",
).request.recipe()


def test_a_recipe_makes_the_same_request_again():
    layer = recipe_layer(json.loads(json.dumps(RECIPE)), "a.mp4")
    stored = Layer("./osp.toml", {"style": "oil", "seconds": 1.0, "count": 3, "shift": 9.0})
    again = settle_generate(CAT, layers=[layer, stored])
    assert [request.recipe() for request in again.requests] == [RECIPE]
    assert again.settings["steps"].origin == "recipe of a.mp4"


def test_flags_beat_the_recipe():
    layer = recipe_layer(RECIPE, "a.mp4")
    settled = settle_generate(
        CAT, layers=[layer], style="none", seed=Seeds([1, 2, 3]), seconds=0.5, shift=2.0
    )
    assert [request.seed for request in settled.requests] == [1, 2, 3]
    assert settled.request.style is None
    assert settled.request.num_frames == 9
    assert settled.request.shift == 2.0
    assert settled.request.prompt == "it snows"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"command": "paint"}, "a.mp4 was not made by osp generate or stylize"),
        ({"width": None}, "the recipe in a.mp4 is damaged: None is no int"),
        ({"seed": True}, "the recipe in a.mp4 is damaged: True is no int"),
        ({"seed": "5"}, "the recipe in a.mp4 is damaged: '5' is no int"),
        ({"shift": "x"}, "the recipe in a.mp4 is damaged: 'x' is no float"),
        ({"cutoff": [0.1]}, "the recipe in a.mp4 is damaged: cutoff holds two numbers"),
        ({"cutoff": "0.1"}, "the recipe in a.mp4 is damaged"),
        ({"shift": 10**400}, "the recipe in a.mp4 is damaged"),
        ({"prompt": ["x"]}, r"the recipe in a.mp4 is damaged: \['x'\] is no str"),
        ({"cache": "turbo"}, "unknown cache 'turbo'"),
        ({"model": "tpyo"}, "unknown model 'tpyo'"),
        ({"style": "tpyo"}, "unknown style 'tpyo'"),
        ({"num_inference_steps": 0}, r"--steps must be 1 to 1000, got 0 \(from recipe of a.mp4\)"),
        ({"seed": -1}, "--seed must be 0 to"),
        ({"prompt": "\ud800"}, "PROMPT is not valid text"),
    ],
)
def test_recipes_that_were_tampered_with(changes, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        settle_generate(CAT, layers=[recipe_layer({**RECIPE, **changes}, "a.mp4")])


@pytest.mark.parametrize("missing", ["command", "width", "height", "seed", "cutoff"])
def test_recipes_with_holes(missing):
    recipe = {name: value for name, value in RECIPE.items() if name != missing}
    with pytest.raises(InvalidRequestError, match=r"a\.mp4"):
        recipe_layer(recipe, "a.mp4")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**4290 - 1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(list(RECIPE)), anything, max_size=3))
def test_any_recipe_is_made_again_or_refused(changes):
    # As it would come out of a file.
    recipe = json.loads(json.dumps({**RECIPE, **changes}))
    try:
        request = settle_generate(CAT, layers=[recipe_layer(recipe, "a.mp4")]).request
    except InvalidRequestError:
        return
    assert request.recipe().keys() == RECIPE.keys()


# --- cards without latent shifting -------------------------------------------------------------

WITHOUT = {"model": "wan2.1-i2v-14b-480p"}


def test_a_typed_cutoff_is_refused_by_cards_that_shift_nothing():
    for layer in (flags(**WITHOUT, cutoff=0.2), Layer("jobs.txt:3", {**WITHOUT, "cutoff": 0.2})):
        with pytest.raises(InvalidRequestError, match=r"wan2\.1-i2v-14b-480p has none") as caught:
            dials(layer)
        assert "flashi2v-1.3b" in str(caught.value.hint)
        assert "wan2.1" not in str(caught.value.hint)
    # On the command line of a batch, below the line that names the model.
    with pytest.raises(InvalidRequestError, match="has none"):
        dials(Layer("jobs.txt:3", WITHOUT), flags(cutoff=0.2))


def test_a_stored_cutoff_is_passed_over_there():
    settled = dials(flags(**WITHOUT), Layer("osp.toml", {"cutoff": 0.2}))
    assert "cutoff" not in settled
    assert dials(flags(), Layer("osp.toml", {"cutoff": 0.2}))["cutoff"].value == (0.2, 0.2)


def test_recipes_tell_no_cutoff_there():
    recipe = settle_generate(CAT, **WITHOUT).request.recipe()
    assert recipe["cutoff"] is None
    assert "cutoff" not in recipe_layer({**recipe, "width": 832, "height": 480}, "a").values
    assert settle_generate(CAT).request.recipe()["cutoff"] == [0.1, 0.1]
