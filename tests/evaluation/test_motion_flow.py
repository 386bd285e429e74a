"""The camera's path is read off frames alone, with the right name and the right size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from osp_cli.evaluation.motion_flow import STILL_PIXELS_A_FRAME, CameraPath, camera_path
from osp_cli.procedural.motions import CAMERA_MOTIONS, Motion, render_clip

SIZE = (128, 224)


@pytest.fixture(scope="module")
def canvas():
    """A wide picture with texture of many sizes, `(3, 160, 280)` in [0, 1]."""
    generator = torch.Generator().manual_seed(3)
    layers = [
        torch.nn.functional.interpolate(
            torch.rand((1, 3, 160 // cell, 280 // cell), generator=generator),
            size=(160, 280), mode="bicubic", align_corners=False,
        )
        for cell in (5, 10, 20)
    ]  # fmt: skip
    return (sum(layers)[0] / 3).clamp(0, 1)


def frames_of(canvas, motion, num_frames=9):
    clip = render_clip(canvas, motion, SIZE, torch.arange(num_frames))
    return (clip.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("motion", CAMERA_MOTIONS)
def test_each_camera_motion_is_seen_as_itself(canvas, motion):
    assert camera_path(frames_of(canvas, Motion(motion))).named() == motion


def test_flow_tells_how_far_it_went(canvas):
    """A shift by whole pixels a frame is the truth, without any resampling."""
    wide = (canvas.permute(1, 2, 0) * 255).to(torch.uint8).numpy()
    frames = np.stack([wide[8:136, 40 - 2 * k : 264 - 2 * k] for k in range(9)])
    path = camera_path(frames)
    assert path.right == pytest.approx(16, abs=0.5)
    assert path.down == pytest.approx(0, abs=0.5)
    assert path.named() == "pan-left"


def test_turns_and_growth_have_their_size(canvas):
    wide = Image.fromarray((canvas.permute(1, 2, 0) * 255).to(torch.uint8).numpy())

    def seen(angle, scale):
        """The middle of the picture, turned clockwise by degrees and enlarged."""
        turned = wide.rotate(-angle, Image.Resampling.BICUBIC)
        width, height = 200 / scale, 116 / scale
        box = (140 - width / 2, 80 - height / 2, 140 + width / 2, 80 + height / 2)
        return np.asarray(turned.resize((200, 116), Image.Resampling.BICUBIC, box=box))

    path = camera_path(np.stack([seen(0.5 * k, 1.005**k) for k in range(13)]))
    assert math.degrees(path.turn) == pytest.approx(6.0, rel=0.1)
    assert math.exp(path.growth) == pytest.approx(1.005**12, rel=0.01)


@pytest.mark.parametrize(
    ("one", "other"), list(zip(CAMERA_MOTIONS[::2], CAMERA_MOTIONS[1::2], strict=True))
)
def test_a_clip_backwards_is_the_opposite(canvas, one, other):
    assert camera_path(frames_of(canvas, Motion(one))[::-1]).named() == other


def test_a_still_and_a_flicker_are_no_camera_motion(canvas):
    still = frames_of(canvas, Motion("pan-left"))[:1].repeat(9, 0)
    noise = np.random.default_rng(0).integers(-6, 7, still.shape)
    flicker = np.clip(still.astype(int) + noise, 0, 255).astype(np.uint8)
    assert camera_path(still).named() is None
    assert camera_path(flicker).named() is None


def test_something_that_moves_by_itself_does_not_decide(canvas):
    """A patch that runs the other way over a panning picture."""
    frames = frames_of(canvas, Motion("pan-left"), 9).copy()
    patch = np.random.default_rng(1).integers(0, 256, (36, 36, 3), np.uint8)
    for k, frame in enumerate(frames):
        frame[40:76, 150 - 6 * k : 186 - 6 * k] = patch
    assert camera_path(frames).named() == "pan-left"


def test_the_largest_displacement_names_the_motion_at_any_size():
    def named(**parts):
        values = {"right": 0.0, "down": 0.0, "growth": 0.0, "turn": 0.0, **parts}
        return CameraPath(**values, size=(256, 448), num_frames=17).named()

    least = STILL_PIXELS_A_FRAME * 16
    assert named(right=-least * 1.01, down=least) == "pan-right"
    assert named(right=least * 0.99) is None
    assert named(right=10, growth=0.1) == "zoom-in"
    assert named(right=10, turn=-0.1) == "roll-left"
    assert named(down=-20, growth=0.1) == "tilt-down"
