"""Precedence: flag > style preset > model card > paper, with the origin kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from osp_cli.errors import InvalidRequestError
from osp_cli.registry import find_model, find_style, model_specs, style_presets
from osp_cli.settings import PAPER_DEFAULTS, Setting, resolve, settle_generate

CAT = Path("cat.jpg")


def test_paper_defaults_are_those_of_section_5_1():
    settings = resolve({}, find_model("uniworld-osp2-14b"), None)
    expected = {
        "num_frames": 49,
        "fps": 16,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
        "shift": 7.0,
        "cutoff": 0.1,
    }
    for name, value in expected.items():
        assert settings[name] == Setting(value, "paper")


def test_each_layer_beats_the_next():
    spec, style = find_model("flashi2v-1.3b"), find_style("ink")
    assert resolve({}, spec, None)["shift"] == Setting(7.0, "paper")
    assert resolve({}, spec, None)["negative_prompt"].origin == "card flashi2v-1.3b"
    assert resolve({}, spec, style)["shift"] == Setting(3.0, "style ink")
    assert resolve({}, spec, style)["negative_prompt"].origin == "style ink"
    assert resolve({"shift": 5.0}, spec, style)["shift"] == Setting(5.0, "flag")
    assert resolve({"shift": None}, spec, style)["shift"] == Setting(3.0, "style ink")


def test_the_small_model_keeps_its_own_settings_under_a_style():
    spec = find_model("osp-mini")
    assert resolve({}, spec, find_style("ink")) == resolve({}, spec, None)
    for name, value in spec.defaults.items():
        assert resolve({}, spec, None)[name] == Setting(value, "card osp-mini")


@pytest.mark.parametrize(("name", "empty"), [("negative_prompt", ""), ("prompt", "")])
def test_an_empty_flag_is_a_flag(name, empty):
    spec = find_model("flashi2v-1.3b")
    assert resolve({name: empty}, spec, find_style("ink"))[name] == Setting("", "flag")


def test_every_setting_has_an_origin():
    settled = settle_generate(image=CAT, steps=3)
    assert set(settled.origins) == set(PAPER_DEFAULTS)
    assert settled.origins["num_inference_steps"] == "flag"


@pytest.mark.parametrize("model", sorted(model_specs()))
@pytest.mark.parametrize("style", [None, *sorted(style_presets())])
def test_what_ships_is_valid_in_every_combination(model, style):
    request = settle_generate(image=CAT, model=model, style=style, prompt="it snows").request
    assert "it snows" in request.full_prompt
    assert request.spec.name == model


def test_without_a_prompt_the_card_has_one():
    request = settle_generate(image=CAT).request
    assert request.prompt == find_model("osp-mini").defaults["prompt"]
    assert settle_generate(image=CAT, prompt="").request.prompt == ""


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
    settled = settle_generate(image=CAT, seconds=seconds, fps=fps)
    assert settled.request.num_frames == num_frames
    assert settled.notices == (() if notice is None else (notice,))


def test_seeds_are_random_unless_given():
    seeds = {settle_generate(image=CAT).request.seed for _ in range(8)}
    assert len(seeds) > 1
    assert settle_generate(image=CAT, seed=0).request.seed == 0


@pytest.mark.parametrize(
    "both",
    [
        {"size": (448, 256), "width": 448},
        {"frames": 9, "seconds": 1.0},
        {"text": "snow", "prompt": "rain"},
    ],
)
def test_two_names_for_one_thing(both):
    with pytest.raises(InvalidRequestError, match="say the same thing"):
        settle_generate(image=CAT, **both)
