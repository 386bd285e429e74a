"""Measures of restyled videos, on videos of which everything is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from osp_cli.evaluation.restyle_measures import (
    estimated_maps,
    flicker,
    flow_correlation,
    is_monotone,
    jump,
    look_distance,
    operator_video,
    true_maps,
    way_between,
)
from osp_cli.procedural.motions import Motion, render_clip
from osp_cli.procedural.noise import gaussian_blur

SIZE = (64, 112)
NUM_FRAMES = 13
RNG = np.random.default_rng(3)


def canvas():
    """A cloudy picture with an edge or two, in grey levels."""
    noise = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(1))
    clouds = gaussian_blur(noise, 2.0)[0]
    return (128 + 60 * (clouds - clouds.mean()) / clouds.std()).clamp(0, 255)


def clip(camera=None, scene=None, speed="fast", num_frames=NUM_FRAMES):
    """Its motion, and its frames."""
    motion = Motion(camera=camera, scene=scene, speed=speed)
    frames = render_clip(canvas(), motion, SIZE, torch.arange(num_frames, dtype=torch.float32))
    return motion, frames.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def still():
    return clip(num_frames=1)[1].repeat(NUM_FRAMES, 0)


# --- motion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("camera", ["pan-left", "zoom-in", "roll-right", None])
def test_a_video_moves_as_it_does(camera):
    _, frames = clip(camera)
    assert flow_correlation(frames, frames) == pytest.approx(1)


def test_other_colours_keep_the_motion():
    _, frames = clip("pan-left")
    assert flow_correlation(255 - frames, frames) > 0.99
    assert flow_correlation(frames // 2 + 20, frames) > 0.97


def test_another_motion_correlates_little():
    _, left = clip("pan-left")
    assert flow_correlation(clip("pan-right")[1], left) < -0.9
    assert abs(flow_correlation(clip("roll-right")[1], left)) < 0.3
    assert abs(flow_correlation(clip("tilt-up")[1], left)) < 0.3
    assert flow_correlation(still(), left) == pytest.approx(0, abs=1e-6)
    # What wobbles about nothing is no motion of the source's.
    noise = RNG.integers(0, 255, left.shape, dtype=np.uint8)
    assert abs(flow_correlation(noise, left)) < 0.5


def test_videos_that_cannot_be_compared_are_refused():
    _, frames = clip()
    with pytest.raises(ValueError, match="differ in shape"):
        flow_correlation(frames[:5], frames)
    with pytest.raises(ValueError, match="too few"):
        flow_correlation(frames[:4], frames[:4])


# --- calm ------------------------------------------------------------------------------------


def zero_maps():
    here = np.stack(np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0])), -1)
    return [here.astype(np.float32)] * (NUM_FRAMES - 1)


def test_a_still_does_not_flicker():
    assert flicker(still(), zero_maps()) == pytest.approx(0, abs=1e-3)


def test_a_video_that_only_moves_does_not_flicker():
    rolled = np.stack([np.roll(still()[0], k, 1) for k in range(NUM_FRAMES)])
    shifted = [places - np.float32([1, 0]) for places in zero_maps()]
    # But for the column that comes in again on the other side.
    assert flicker(rolled, shifted) == pytest.approx(0, abs=1e-2)
    assert flicker(rolled, zero_maps()) > 1


@pytest.mark.parametrize(
    ("camera", "scene"),
    [("pan-left", None), ("zoom-in", None), ("zoom-out", None), ("roll-left", None),
     (None, "sway"), ("tilt-down", "ripples"), (None, None)],
)  # fmt: skip
def test_the_maps_are_those_of_the_rendering(camera, scene):
    motion, frames = clip(camera, scene)
    true = flicker(frames, true_maps(motion, SIZE, NUM_FRAMES))
    # Of whole grey levels, a third of one is lost to rounding.
    assert true - 1 / 3 < 0.35 * flicker(frames, zero_maps())
    assert true < 0.75 * flicker(frames, zero_maps())
    # What is left is the blur of looking between pixels: no worse than flow can do.
    assert true < flicker(frames, estimated_maps(frames)) + 0.05


def test_white_noise_flickers_as_much_as_it_must():
    sigma = 8.0
    noise = RNG.normal(0, sigma, (NUM_FRAMES, *SIZE, 3))
    noisy = (128 + noise).clip(0, 255).round().astype(np.uint8)
    # The mean absolute difference of two normal numbers.
    assert flicker(noisy, zero_maps()) == pytest.approx(2 * sigma / math.sqrt(math.pi), rel=0.02)


def test_the_maps_must_be_one_less_than_the_frames():
    with pytest.raises(ValueError, match="have 12 maps"):
        flicker(still(), zero_maps()[:3])


def test_the_operator_paints_each_frame_by_itself():
    _, frames = clip("pan-left", num_frames=3)
    painted = operator_video("ink", frames)
    assert painted.shape == frames.shape and painted.dtype == np.uint8
    np.testing.assert_array_equal(operator_video("ink", frames[1:2])[0], painted[1])
    assert look_distance(painted, frames) > 3


# --- how far ---------------------------------------------------------------------------------


def test_the_way_between_two_looks():
    _, start = clip("pan-left", num_frames=3)
    end = operator_video("vaporwave", start)
    assert way_between(start, start, end) == 0
    assert way_between(end, start, end) == pytest.approx(1)
    half = ((start.astype(np.float32) + end) / 2).astype(np.uint8)
    assert way_between(half, start, end) == pytest.approx(0.5, abs=0.02)
    assert look_distance(start, start) == 0
    assert look_distance(start, end) == pytest.approx(2 * look_distance(start, half), rel=0.05)
    with pytest.raises(ValueError, match="no way"):
        way_between(start, end, end)


def test_monotone():
    assert is_monotone([0, 0.1, 0.1, 2])
    assert not is_monotone([0, 0.2, 0.1])
    assert is_monotone([0, 0.2, 0.1], slack=0.11)


def test_a_jump_is_one():
    _, frames = clip("pan-left")
    assert jump(frames) < 1.5
    cut = frames.copy()
    cut[6:] = 255 - cut[6:]
    assert jump(cut) > 5
    assert jump(still()) == 1
