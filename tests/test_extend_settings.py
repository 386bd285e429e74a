"""From what was typed after `osp extend` to its request: who wins, how long, in how many steps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from osp_cli.config import Layer
from osp_cli.dials import Ramp, Seeds, Size
from osp_cli.errors import InvalidRequestError
from osp_cli.extend_settings import Continuation, dials_of, settle_extend
from osp_cli.registry import find_model

PICTURE = Path("cat.png")
HELIOS = "helios-14b-distilled"


def settled(flags=None, layers=(), **wanted):
    given = {"seed": Seeds([7]), **(flags or {})}
    return settle_extend(Continuation(**{"image": PICTURE, **wanted}), layers=layers, **given)


def request(flags=None, layers=(), **wanted):
    return settled(flags, layers, **wanted).request


def refused(flags=None, layers=(), **wanted):
    with pytest.raises(InvalidRequestError) as caught:
        settled(flags, layers, **wanted)
    return caught.value


def origins(flags=None, layers=(), **wanted):
    found = settled(flags, layers, **wanted).settings
    return {name: setting.origin for name, setting in found.items()}


# Who wins


STEPS = "num_inference_steps"
FLAG, VARIABLE, RECIPE = ({STEPS: 9}, Layer("OSP_STEPS", {STEPS: 8}), Layer("recipe", {STEPS: 7}))


@pytest.mark.parametrize(
    ("flags", "layers", "realtime", "steps", "origin"),
    [
        (FLAG, [VARIABLE, RECIPE], True, 9, "flag"),
        ({}, [VARIABLE, RECIPE], True, 8, "OSP_STEPS"),
        ({}, [RECIPE, VARIABLE], True, 7, "recipe"),
        ({}, [], True, 4, "--realtime"),
        ({"style": "ghibli"}, [], True, 4, "--realtime"),
        ({}, [], False, 8, "card osp-mini"),
    ],
)
def test_precedence(flags, layers, realtime, steps, origin):
    made = settled(flags, layers, realtime=realtime)
    assert made.request.num_inference_steps == steps == sum(made.request.stage_steps)
    assert made.settings["steps"].origin == origin


def test_a_style_is_above_the_card_and_below_realtime():
    model = "uniworld-osp2-14b"
    plain = request({"model": model})
    styled = request({"model": model, "style": "ghibli"})
    live = request({"model": model, "style": "ghibli"}, realtime=True)
    assert (plain.shift, styled.shift, live.shift) == (7.0, 3.0, 3.0)
    assert origins({"model": model, "style": "ghibli"}, realtime=True)["shift"] == "style ghibli"
    # It has no weights for few steps, and so goes its own way.
    assert {made.guidance_scale for made in (plain, styled, live)} == {5.0}
    assert live.num_inference_steps == plain.num_inference_steps
    assert request({"model": model, "shift": 2.0, "style": "ghibli"}).shift == 2.0


def test_live_is_without_guidance_unless_it_is_asked_for():
    assert request(realtime=True).guidance_scale == 1.0
    assert request({"guidance_scale": 3.0}, realtime=True).guidance_scale == 3.0
    assert request(layers=[Layer("./osp.toml", {"guidance_scale": 3.0})], realtime=True) == request(
        {"guidance_scale": 3.0}, realtime=True
    )


# How long


def test_five_seconds_and_live_without_end():
    assert request().new_frames == 80
    assert request(realtime=True).new_frames is None
    assert request({"seconds": 2.0}, realtime=True).new_frames == 32
    assert request({"seconds": math.inf}).new_frames is None


@pytest.mark.parametrize(
    ("flags", "frames"),
    [
        ({"seconds": 0.01}, 1),
        ({"seconds": 1.0}, 16),
        ({"seconds": 1.01}, 17),
        ({"seconds": 0.1, "fps": 30}, 3),
        ({"seconds": 7, "fps": 24}, 168),
        ({"num_frames": 10}, 10),
        ({"num_frames": 1}, 1),
    ],
)
def test_any_number_of_frames(flags, frames):
    assert request(flags).new_frames == frames


@pytest.mark.parametrize(
    "flags",
    [{"seconds": 0.0}, {"seconds": -1.0}, {"seconds": math.nan}, {"seconds": 1e9},
     {"seconds": -math.inf}, {"num_frames": 0}, {"num_frames": -4}],
)  # fmt: skip
def test_lengths_that_make_no_sense(flags):
    message = refused(flags).message
    assert f"--{'frames' if 'num_frames' in flags else 'seconds'} must be" in message


def test_one_length_only_but_the_stronger_of_two_sources():
    assert "say the same" in refused({"seconds": 1.0, "num_frames": 8}).message
    weaker = [Layer("./osp.toml", {"seconds": 9.0})]
    assert request({"num_frames": 8}, weaker).new_frames == 8
    assert request({}, weaker).new_frames == 144
    assert origins({}, weaker)["seconds"] == "./osp.toml"
    assert origins({})["seconds"] == "default"


# Steps over resolutions


@pytest.mark.parametrize(
    ("steps", "stages", "split"),
    [(4, 1, (4,)), (4, 2, (2, 2)), (4, 3, (1, 1, 2)), (5, 3, (1, 2, 2)), (9, 4, (2, 2, 2, 3))],
)
def test_steps_over_stages(steps, stages, split):
    made = request({STEPS: steps, "size": Size(256, 256)}, stages=stages, realtime=True)
    assert made.stage_steps == split


def test_the_steps_of_the_card_stay_as_it_says():
    assert request({"model": HELIOS}, realtime=True).stage_steps == (2, 2, 2)
    assert request({"model": HELIOS}).stage_steps == (2, 2, 2)
    assert request({"model": HELIOS, STEPS: 7}, realtime=True).stage_steps == (2, 2, 3)
    assert request().stage_steps == (8,)


def test_too_few_steps():
    error = refused({STEPS: 2}, stages=3, realtime=True)
    assert "--steps 2 are too few for 3 resolutions" in error.message
    assert "--steps 3" in error.hint


@pytest.mark.parametrize("size", [(448, 256), (416, 288), (352, 352), (256, 448)])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_sizes_that_cannot_be_halved(size, stages):
    step = find_model("osp-mini").multiple_of * 2 ** (stages - 1)
    flags = {"size": Size(*size), STEPS: 4}
    if all(side % step == 0 for side in size):
        assert request(flags, stages=stages).width == size[0]
        return
    error = refused(flags, stages=stages)
    assert f"--size {size[0]}x{size[1]} cannot be halved {stages - 1} times" in error.message
    # What the hint says works.
    width, height = map(int, error.hint.split()[1].rstrip(",").split("x"))
    assert max(abs(width - size[0]), abs(height - size[1])) < step
    assert request({**flags, "size": Size(width, height)}, stages=stages).width == width


# The card's numbers, and what else is refused


def test_context_and_chunk_are_the_cards():
    made = request()
    figures = find_model("osp-mini").realtime
    assert (made.context, made.latent_frames) == (figures.context, figures.latent_frames)
    made = request(context=0, latent_frames=2)
    assert (made.context, made.latent_frames, made.num_frames) == (0, 2, 5)
    # Helios has the history of its own, which is not counted here.
    assert request({"model": HELIOS}).num_frames == 33


def test_one_video_one_seed():
    error = refused({"seed": Seeds([1, 2])})
    assert "several seeds" in error.message
    assert request({"seed": Seeds([9])}).seed == 9


def test_a_text_is_the_prompt():
    flags = {"model": "flashi2v-1.3b"}
    made = request(flags, image=None, text="snow falls")
    assert (made.prompt, made.text_only, made.image) == ("snow falls", True, None)
    assert "say the same" in refused({**flags, "prompt": "x"}, image=None, text="snow").message
    assert "cannot invent" in refused(image=None, text="snow").message
    assert "empty" in refused(flags, image=None, text="  ").message


@pytest.mark.parametrize(
    ("wanted", "name"),
    [({"video": Path("a/clip.mkv"), "image": None}, "clip-7.mp4"), ({}, "cat-7.mp4")],
)
def test_the_name_of_the_output(wanted, name):
    assert request(**wanted).output == Path(name)
    assert request({"style": "ink"}, **wanted).output == Path(name.replace("-7", "-ink-7"))
    assert request({"output": "x-{seed}.mkv"}, **wanted).output == Path("x-7.mkv")


def test_without_flags_everything_has_an_origin():
    settings, _ = dials_of([], realtime=False)
    assert {setting.origin for setting in settings.values()} <= {
        *("default", "paper", "card osp-mini", "random")
    }
    assert "num_frames" not in settings
    assert settings["cutoff"].value == Ramp(0.1, 0.1)
