"""Requests: what exists is valid; the output's name; the recipe."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osp_cli.dials import LoraChoice, StepCacheChoice
from osp_cli.errors import InvalidRequestError
from osp_cli.registry import find_model
from osp_cli.requests import GenerateRequest, round_up_frames

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
        ({"preview": "film"}, "unknown preview 'film'"),
        ({"cache_start": -1}, "--cache-start must be 0 to 1000"),
        ({"cache": StepCacheChoice("fbcache", 0.0)}, "the threshold of --cache must be above 0"),
        ({"cache": StepCacheChoice("fbcache", math.nan)}, "the threshold of --cache must be"),
        ({"cache": StepCacheChoice("teacache")}, "TeaCache "),
        ({"output": Path("a.mov")}, "--output must end in .mp4, .gif"),
        ({"num_frames": 10**400 + 1}, "osp-mini makes at most 49 frames"),
        ({"fps": 10**400}, "--fps must be 1 to 120"),
    ],
)
def test_refused(changes, sentence):
    with pytest.raises(InvalidRequestError, match=sentence.replace("+", r"\+")):
        request(**changes)


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:1"])
def test_devices(device):
    assert request(device=device).device == device


def test_only_decoding_needs_no_picture():
    assert request(image=None, latents=Path("a.latents.safetensors")).image is None


@given(st.integers(1, 10_000))
def test_frames_are_rounded_up_to_the_next_clip_length(num_frames):
    rounded = round_up_frames(num_frames, find_model("osp-mini"))
    assert rounded % 4 == 1
    assert 0 <= rounded - num_frames < 4


def test_output_defaults_to_picture_style_and_seed():
    assert request().output == Path("cat-7.mp4")
    assert request(style="ink").output == Path("cat-ink-7.mp4")


def test_braces_in_the_name_of_a_picture_are_only_text():
    made = request(image=Path("{seed}{x}.jpg"))
    assert made.output == Path("{seed}{x}-7.mp4")
    assert dataclasses.replace(made, fps=8).output == made.output


def test_full_prompt_has_the_words_of_the_style():
    assert request().full_prompt == "it snows"
    assert request(style="ink").full_prompt == "ink painting style, it snows"


@pytest.mark.parametrize(
    ("style", "canonical", "output"),
    [
        ("Ghibli:0.5", "ghibli:0.5", "cat-ghibli-0.5-7.mp4"),
        ("oil + ink", "ink+oil", "cat-ink+oil-7.mp4"),
        ("INK:1", "ink", "cat-ink-7.mp4"),
        ("none", None, "cat-7.mp4"),
    ],
)
def test_a_style_has_one_spelling(style, canonical, output):
    made = request(style=style)
    assert (made.style, made.output) == (canonical, Path(output))
    assert made == request(style=canonical)


def test_a_mixture_has_a_prompt_for_each_look():
    assert request(style="ghibli:0.3+ink:0.5").full_prompt == [
        {"prompt": "ghibli style, it snows", "weight": 0.3},
        {"prompt": "ink painting style, it snows", "weight": 0.5},
        {"prompt": "it snows", "weight": pytest.approx(0.2)},
    ]
    assert request(style="ink:1").full_prompt == request(style="ink").full_prompt


def test_recipe_tells_all_that_matters_and_nothing_of_this_machine():
    recipe = request(style="ink", output=Path("/secret/out.mp4"), device="cpu").recipe()
    text = json.dumps(recipe)
    for name in ("secret", "pictures", "cpu", "output"):
        assert name not in text
    assert recipe["image"] == "cat.jpg"
    assert recipe["full_prompt"] == "ink painting style, it snows"


def test_a_picture_from_stdin_has_no_name():
    assert request(image=Path("-"), image_data=b"x").recipe()["image"] == "stdin"
    assert "image_data" not in repr(request(image=Path("-"), image_data=b"x"))


@given(st.floats(0, 100, exclude_min=True))
def test_recipe_keeps_the_cache_to_the_last_digit(threshold):
    recipe = request(cache=StepCacheChoice("fbcache", threshold)).recipe()
    assert float(recipe["cache"].removeprefix("fbcache:")) == threshold


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(GenerateRequest)])
def test_recipe_covers_every_field_that_changes_the_video(field):
    others = {
        "command": "stylize",
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
        "sampler": "unipc",
        "cache": StepCacheChoice("fbcache", 0.2),
        "cache_start": 2,
        "quant": "fp8",
        "vae_tiling": True,
        "compile": True,
        "attention": "sdpa",
        "loras": (LoraChoice("folder/style.safetensors", 0.5),),
    }
    if field in ("width", "height"):
        changed = request(width=448, height=256)
    elif field in others:
        # The built-in model bears no smaller weights.
        model = {"model": "flashi2v-1.3b"} if field == "quant" else {}
        changed = request(**{field: others[field]}, **model)
    else:
        # text_only shows as an absent picture, and the bytes of one as its hash, which the run
        # adds; the rest is not about the video but about where it is made and put, or of what.
        apart = {"text_only", "image_data", "output", "device", "overwrite", "metadata", "preview"}
        apart |= {"place", "makes_folder"}
        # Where weights wait, and how much memory there is, leaves every bit as it is.
        apart |= {"offload", "max_vram", "max_ram"}
        # As another device does: at most the last bits differ, and on the CPU none.
        apart |= {"gpus"}
        # Settled as width and height by the run.
        apart |= {"buckets"}
        assert field in apart | {"latents", "replayed", "replayed_from"}
        return
    assert changed.recipe() != request().recipe()
