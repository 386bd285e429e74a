"""What is asked of `osp extend`: what its parts are called, and what it refuses by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osp_cli.errors import InvalidRequestError
from osp_cli.extend_request import (
    ExtendRequest,
    screenplay_path,
    split_steps,
    state_before,
    state_path,
)
from osp_cli.media.recipes import canonical_json
from osp_cli.screenplay import Cue

SETTINGS = {"image": Path("cat.png"), "output": Path("clip.mp4"), "context": 1, "seed": 7}


def made(**changes):
    return ExtendRequest(**{**SETTINGS, **changes})


@given(steps=st.integers(1, 200), stages=st.integers(1, 4))
def test_steps_are_shared_and_none_is_lost(steps, stages):
    split = split_steps(steps, (1,) * stages)
    assert (sum(split), len(split)) == (steps, stages)
    assert max(split) - min(split) <= 1
    # An extra one goes to the higher resolutions.
    assert list(split) == sorted(split)


@given(usual=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple))
def test_the_usual_number_is_shared_as_usual(usual):
    assert split_steps(sum(usual), usual) == usual


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_lies_beside_a_video(suffix):
    output = Path("a.b") / f"clip.final{suffix}"
    assert state_path(output) == Path("a.b/clip.final.state.safetensors")
    assert state_before(state_path(output)) == Path("a.b/.clip.final.state.before.safetensors")
    assert screenplay_path(output) == Path("a.b/clip.final.screenplay.txt")


def test_its_recipe_is_json_and_holds_all_that_makes_it_again():
    request = made(
        cues=(Cue(seconds=1.5, prompt="snow"),), new_frames=None, realtime=True,
        video=Path("a/old.mp4"), image=None, anchor_color=0.5, stage_steps=(2, 2),
    )  # fmt: skip
    recipe = request.recipe()
    assert canonical_json(recipe)
    assert recipe["screenplay"] == "1.5s: snow\n"
    # No folder of this machine.
    assert recipe["video"] == "old.mp4"
    assert (recipe["new_frames"], recipe["stage_steps"], recipe["anchor_color"]) == (
        *(None, [2, 2], 0.5),
    )
    assert (recipe["command"], made().recipe()["screenplay"]) == ("extend", None)


@pytest.mark.parametrize(
    ("sinks", "is_file"), [(("file",), True), (("http", "file"), True), (("http",), False)]
)
def test_whether_there_is_a_file(sinks, is_file):
    assert made(sinks=sinks).is_file == is_file


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"anchor_color": -0.1}, "--anchor-color must be 0 to 1"),
        ({"anchor_color": 2}, "--anchor-color must be 0 to 1"),
        ({"new_frames": 0}, "--frames must be at least 1"),
        ({"stage_steps": ()}, "too few"),
        ({"stage_steps": (0, 2)}, "too few"),
        ({"latent_frames": 0}, "--latent-frames must be at least 1"),
        ({"context": -1}, "--context at least 0"),
        ({"context": 13}, "sees 13 latent frames at once"),
        ({"vae_tiling": True}, "--vae-tiling is for single clips"),
        ({"preview": "latent"}, "--preview latent is for single clips"),
        ({"style": "ghibli..ink"}, "a stream has no end"),
        ({"model": "wan2.1-i2v-14b-480p"}, "cannot continue a video"),
        ({"output": Path("clip.webp")}, "ends in .mp4 or .mkv"),
        ({"output": Path("clip")}, "ends in .mp4 or .mkv"),
        ({"output": Path("a\0b.mp4")}, "no possible file name"),
        ({"sampler": "magic"}, "unknown sampler 'magic'"),
    ],
)
def test_refused(changes, why):
    with pytest.raises(InvalidRequestError) as caught:
        made(**changes)
    assert why in caught.value.message


def test_a_model_that_cannot_names_those_that_can():
    with pytest.raises(InvalidRequestError) as caught:
        made(model="wan2.1-i2v-14b-480p")
    able = caught.value.hint.partition(": ")[2].split(", ")
    assert "osp-mini" in able
    assert "wan2.1-i2v-14b-480p" not in able


def test_the_hint_for_a_long_context_works():
    with pytest.raises(InvalidRequestError) as caught:
        made(context=10, latent_frames=9)
    flag, number = caught.value.hint.split()
    assert flag == "--latent-frames"
    assert made(context=10, latent_frames=int(number)).latent_frames == int(number)
