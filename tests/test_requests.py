"""Requests: what exists is valid; the output's name; the recipe."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osp_cli.errors import InvalidRequestError
from osp_cli.registry import find_model
from osp_cli.requests import GenerateRequest, expand_output, round_up_frames

CAT = Path("pictures/cat.jpg")


def request(**changes) -> GenerateRequest:
    return GenerateRequest(**{"image": CAT, "prompt": "it snows", "seed": 7, **changes})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image": None}, "a picture is missing"),
        ({"text_only": True}, "--text makes a video without a picture"),
        ({"image": None, "text_only": True, "prompt": ""}, "--text needs a prompt"),
        ({"cutoff": (0.1, math.nan)}, "--cutoff is a percentile"),
        ({"guidance_scale": math.nan}, "--cfg must be"),
        ({"shift": math.inf}, "--shift must be"),
        ({"num_frames": 48}, "--frames must be 4k+1, got 48"),
        ({"num_frames": 0}, "--frames must be at least 1"),
        ({"width": 448}, "--width needs --height"),
        ({"height": 448}, "--height needs --width"),
        ({"seed": 2**63}, "--seed must be"),
        ({"sampler": "magic"}, "unknown sampler 'magic'"),
        ({"prompt": "\udcff"}, "PROMPT is not valid text"),
        ({"device": "cuda:x"}, "unknown device"),
    ],
)
def test_refused(changes, sentence):
    with pytest.raises(InvalidRequestError, match=sentence.replace("+", r"\+")):
        request(**changes)


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:1"])
def test_devices(device):
    assert request(device=device).device == device


@given(st.integers(1, 10_000))
def test_frames_are_rounded_up_to_the_next_clip_length(num_frames):
    rounded = round_up_frames(num_frames, find_model("osp-mini"))
    assert rounded % 4 == 1
    assert 0 <= rounded - num_frames < 4


def expand(template: str, style: str | None) -> str:
    return str(expand_output(template, image=CAT, prompt="", style=style, seed=7))


@pytest.mark.parametrize(
    ("template", "plain", "styled"),
    [
        ("{name}-{style}-{seed}.mp4", "cat-7.mp4", "cat-ink-7.mp4"),
        ("{style}-{name}.mp4", "cat.mp4", "ink-cat.mp4"),
        ("{name}_{style}.mp4", "cat.mp4", "cat_ink.mp4"),
        ("{name}{style}.mp4", "cat.mp4", "catink.mp4"),
        ("out/{style}/{seed}.mp4", "out/7.mp4", "out/ink/7.mp4"),
        ("/{style}/{seed}.mp4", "/7.mp4", "/ink/7.mp4"),
        ("{style}/{seed}.mp4", "7.mp4", "ink/7.mp4"),
        ("fixed.mp4", "fixed.mp4", "fixed.mp4"),
    ],
)
def test_output_template(template, plain, styled):
    assert expand(template, None) == str(Path(plain))
    assert expand(template, "ink") == str(Path(styled))


def test_output_defaults_to_picture_style_and_seed():
    assert request().output == Path("cat-7.mp4")
    assert request(style="ink").output == Path("cat-ink-7.mp4")


def test_name_of_a_prompt_is_short_and_safe():
    prompt = "../Été: a/very " + "long " * 40
    output = expand_output("{name}.mp4", image=None, prompt=prompt, style=None, seed=1)
    assert output.parent == Path()
    assert output.name.startswith("été-a-very-long")
    assert len(output.name) < 50
    assert expand_output("{name}.mp4", image=None, prompt="?!", style=None, seed=1).stem == "clip"


def test_braces_in_the_name_of_a_picture_are_only_text():
    made = request(image=Path("{seed}{x}.jpg"))
    assert made.output == Path("{seed}{x}-7.mp4")
    assert dataclasses.replace(made, fps=8).output == made.output


def test_full_prompt_has_the_words_of_the_style():
    assert request().full_prompt == "it snows"
    assert request(style="ink").full_prompt == "ink painting style, it snows"


def test_recipe_tells_all_that_matters_and_nothing_of_this_machine():
    recipe = request(style="ink", output=Path("/secret/out.mp4"), device="cpu").recipe()
    text = json.dumps(recipe)
    for name in ("secret", "pictures", "cpu", "output"):
        assert name not in text
    assert recipe["image"] == "cat.jpg"
    assert recipe["full_prompt"] == "ink painting style, it snows"


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(GenerateRequest)])
def test_recipe_covers_every_field_that_changes_the_video(field):
    others = {
        "image": Path("dog.jpg"),
        "prompt": "it rains",
        "style": "oil",
        "negative_prompt": "blur",
        "model": "flashi2v-1.3b",
        "width": 448,
        "height": 256,
        "num_frames": 9,
        "fps": 8,
        "num_inference_steps": 3,
        "guidance_scale": 1.0,
        "shift": 1.0,
        "cutoff": (0.1, 0.2),
        "seed": 8,
        "dtype": "float32",
    }
    if field in ("width", "height"):
        changed = request(width=448, height=256)
    elif field in others:
        changed = request(**{field: others[field]})
    else:
        # text_only shows as an absent picture; there is one sampler yet; the rest is not
        # about the video but about where it is made and put.
        assert field in ("text_only", "sampler", "output", "device", "overwrite")
        return
    assert changed.recipe() != request().recipe()
