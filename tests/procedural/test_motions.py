"""Motions: every path starts at the picture itself and goes where its name says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from osp_cli.procedural.motions import (
    CAMERA_MOTIONS,
    CLIP_FRAMES,
    SCENE_MOTIONS,
    SPEEDS,
    Motion,
    render_clip,
)
from osp_cli.procedural.noise import gaussian_blur

SIZE = 100
CANVAS = 130
MARGIN = (CANVAS - SIZE) // 2
# Every speed of a pan moves a frame of this side by whole pixels.
WHOLE_CLIP = torch.tensor([0, CLIP_FRAMES])
LIVE = [
    *(Motion(camera=name) for name in CAMERA_MOTIONS),
    *(Motion(scene=name) for name in SCENE_MOTIONS),
    Motion(),
    Motion("pan-left", "snow", "fast"),
    Motion("zoom-out", "sway", "slow"),
]


@pytest.fixture(scope="module")
def canvas():
    """A picture with detail everywhere, so that any misplacement shows."""
    generator = torch.Generator().manual_seed(1)
    return gaussian_blur(torch.rand(1, 3, CANVAS, CANVAS, generator=generator), 1.5)[0]


def crop(canvas, dy=0, dx=0):
    return canvas[:, MARGIN + dy : MARGIN + dy + SIZE, MARGIN + dx : MARGIN + dx + SIZE]


def displacement(before, after, axis, reach=30):
    """Whole pixels by which a picture moved along an axis (positive: right, or down)."""
    size = before.shape[axis]

    def error(shift):
        old = before.narrow(axis, max(0, -shift), size - abs(shift))
        new = after.narrow(axis, max(0, shift), size - abs(shift))
        return (old - new).abs().mean()

    return min(range(-reach, reach + 1), key=error)


def dot(y, x):
    """A canvas with one soft point at pixels from the centre."""
    rows = torch.arange(CANVAS) + 0.5 - CANVAS / 2 - y
    columns = torch.arange(CANVAS) + 0.5 - CANVAS / 2 - x
    point = torch.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / 18)
    return point.expand(3, -1, -1)


def path_of_dot(motion, y, x, frames=WHOLE_CLIP):
    """Centre of mass of the point in each frame, `(frames, 2)` as (y, x)."""
    mass = render_clip(dot(y, x), motion, (SIZE, SIZE), frames)[:, 0]
    places = torch.arange(SIZE) + 0.5 - SIZE / 2
    total = mass.sum((1, 2))
    return torch.stack(
        [(mass.sum(2) * places).sum(1) / total, (mass.sum(1) * places).sum(1) / total], 1
    )


@pytest.mark.parametrize("motion", LIVE, ids=str)
def test_a_frame_does_not_depend_on_the_frames_rendered_with_it(canvas, motion):
    together = render_clip(canvas, motion, (SIZE, SIZE), torch.tensor([0, 3, 20]), seed=2)
    assert together.shape == (3, 3, SIZE, SIZE)
    alone = render_clip(canvas, motion, (SIZE, SIZE), torch.tensor([20]), seed=2)
    torch.testing.assert_close(alone[0], together[2])
    assert -1e-6 <= together.min() <= together.max() <= 1 + 1e-6


@pytest.mark.parametrize("motion", LIVE, ids=str)
def test_something_moves(canvas, motion):
    first, later = render_clip(canvas, motion, (SIZE, SIZE), torch.tensor([0, 20]))
    assert (later - first).abs().mean() > 0.002


@pytest.mark.parametrize("camera", [None, *CAMERA_MOTIONS])
@pytest.mark.parametrize("scene", [None, *SCENE_MOTIONS])
def test_frame_0_is_the_middle_of_the_canvas(canvas, camera, scene):
    motion = Motion(camera, scene, "fast")
    first = render_clip(canvas, motion, (SIZE, SIZE), torch.tensor([0]))[0]
    torch.testing.assert_close(first, crop(canvas), atol=2e-4, rtol=0)


@pytest.mark.parametrize("camera", CAMERA_MOTIONS)
def test_beyond_the_border_the_canvas_goes_on_mirrored(canvas, camera):
    small = crop(canvas)
    margins = ((0, 0), (40, 40), (40, 40))
    padded = torch.from_numpy(np.pad(small.numpy(), margins, mode="symmetric"))
    motion = Motion(camera, speed="fast")
    left, found = (render_clip(x, motion, (SIZE, SIZE), WHOLE_CLIP)[1] for x in (small, padded))
    torch.testing.assert_close(left, found, atol=5e-4, rtol=0)


def test_a_fast_pan_shows_a_fifth_of_the_frame_that_was_not_there(canvas):
    small = crop(canvas)
    last = render_clip(small, Motion("pan-right", speed="fast"), (SIZE, SIZE), WHOLE_CLIP)[1]
    torch.testing.assert_close(last[..., :80], small[..., 20:], atol=5e-4, rtol=0)
    torch.testing.assert_close(last[..., 80:], small[..., 80:].flip(-1), atol=5e-4, rtol=0)


@pytest.mark.parametrize(
    ("camera", "axis", "sign"),
    [("pan-left", 2, 1), ("pan-right", 2, -1), ("tilt-up", 1, 1), ("tilt-down", 1, -1)],
)
def test_a_pan_moves_the_content_the_other_way_and_faster_speeds_further(
    canvas, camera, axis, sign
):
    travels = []
    for speed in SPEEDS:
        first, last = render_clip(canvas, Motion(camera, speed=speed), (SIZE, SIZE), WHOLE_CLIP)
        travels.append(sign * displacement(first, last, axis))
    slow, normal, fast = travels
    assert 5 <= slow < normal < fast <= 2 * MARGIN
    # Rigid: what was seen is seen again, to the pixel, and on the same line.
    old = first.narrow(axis, 0 if sign > 0 else fast, SIZE - fast)
    new = last.narrow(axis, fast if sign > 0 else 0, SIZE - fast)
    torch.testing.assert_close(old, new, atol=5e-4, rtol=0)


# Where points above and to the right of the middle go, as signs of (y, x).
DIRECTIONS = {
    "pan-left": ((0, 1), (0, 1)),
    "pan-right": ((0, -1), (0, -1)),
    "tilt-up": ((1, 0), (1, 0)),
    "tilt-down": ((-1, 0), (-1, 0)),
    "zoom-in": ((-1, 0), (0, 1)),
    "zoom-out": ((1, 0), (0, -1)),
    "roll-right": ((0, 1), (1, 0)),  # clockwise
    "roll-left": ((0, -1), (-1, 0)),
}


@pytest.mark.parametrize("camera", CAMERA_MOTIONS)
def test_points_go_where_the_camera_motion_sends_them(camera):
    for start, signs in zip(((-25, 0), (0, 25)), DIRECTIONS[camera], strict=True):
        lengths = []
        for speed in SPEEDS:
            before, after = path_of_dot(Motion(camera, speed=speed), *start)
            moved = after - before
            along, across = (0, 1) if signs[0] else (1, 0)
            assert moved[along] * signs[along] > 1.5, (start, speed)
            # A roll bends the way a little, nothing else leaves its line.
            assert abs(moved[across]) < (2.0 if "roll" in camera else 0.05)
            lengths.append(float(moved.norm()))
        assert lengths == sorted(lengths)
        assert lengths[1] > 1.3 * lengths[0]
        assert lengths[2] > 1.3 * lengths[1]


@pytest.mark.parametrize("camera", CAMERA_MOTIONS)
def test_camera_motion_has_constant_speed(camera):
    # So that a clip can be continued without a seam. Zooms are constant per ratio, not per pixel.
    frames = torch.tensor([0, 12, 24, 36, 48])
    path = path_of_dot(Motion(camera), 4, 22, frames)
    if "zoom" in camera:
        distance = path.norm(dim=1)
        steps = distance[1:] / distance[:-1]
    elif "roll" in camera:
        angle = torch.atan2(path[:, 0], path[:, 1])
        steps = angle[1:] - angle[:-1]
    else:
        steps = (path[1:] - path[:-1]).norm(dim=1)
    torch.testing.assert_close(steps, steps.mean().expand(4), rtol=0.03, atol=0)


def test_without_a_named_motion_the_picture_still_lives_but_gently(canvas):
    def change(motion):
        first, last = render_clip(canvas, motion, (SIZE, SIZE), WHOLE_CLIP)
        return (first - last).abs().mean()

    assert Motion().gentle
    assert not Motion(scene="rain").gentle
    assert change(Motion()) < change(Motion("zoom-in"))
    before, after = path_of_dot(Motion(), 0, 40)
    assert after[1] > before[1] + 1


@pytest.mark.parametrize(
    ("scene", "still"),
    [
        ("clouds", slice(73, None)),  # below 0.45 of the half height
        ("ripples", slice(None, 50)),  # above the middle
        ("sway", slice(96, None)),  # it stands on the ground
    ],
)
def test_scene_motion_stays_in_its_part_of_the_picture(canvas, scene, still):
    first, later = render_clip(canvas, Motion(scene=scene), (SIZE, SIZE), torch.tensor([0, 11]))
    change = (later - first).abs().mean((0, 2))
    assert change[still].max() < 1e-4
    rest = torch.ones(SIZE, dtype=torch.bool)
    rest[still] = False
    assert change[rest].mean() > 0.001


@pytest.mark.parametrize("scene", ["clouds", "ripples", "sway", "fire"])
def test_scene_motion_begins_slower_at_slower_speeds(canvas, scene):
    def change(speed):
        motion = Motion(scene=scene, speed=speed)
        first, second = render_clip(canvas, motion, (SIZE, SIZE), torch.tensor([0, 2]))
        return float((second - first).abs().mean())

    slow, normal, fast = map(change, SPEEDS)
    assert 0 < slow < normal < fast


def test_clouds_drift_to_the_right_and_slower_further_down(canvas):
    first, later = render_clip(canvas, Motion(scene="clouds"), (SIZE, SIZE), torch.tensor([0, 32]))
    strips = [slice(0, 7), slice(30, 34), slice(46, 50), slice(80, 100)]
    drifts = [displacement(first[:, strip], later[:, strip], 2) for strip in strips]
    assert drifts[0] == 6  # 0.03 of the side a second
    assert drifts[0] > drifts[1] > drifts[2] > drifts[3] == 0


def test_ripples_grow_from_nothing(canvas):
    frames = torch.arange(7)
    clip = render_clip(canvas, Motion(scene="ripples"), (SIZE, SIZE), frames)
    changes = [float((frame - clip[0]).abs().mean()) for frame in clip[:4]]
    assert changes[0] == 0.0
    assert all(before < after for before, after in pairwise(changes))


def test_firelight_swells_from_below_is_warm_and_flickers():
    grey = torch.full((3, CANVAS, CANVAS), 0.5)
    clip = render_clip(grey, Motion(scene="fire"), (SIZE, SIZE), torch.arange(49), seed=1)
    added = clip - 0.5
    assert added[0].abs().max() < 1e-6
    red, green, blue = added[8].mean((1, 2))
    assert red > 2 * green > 0 > blue
    assert added[8, 0, -10:].mean() > 2 * added[8, 0, :10].mean() > 0
    light = added[:, 0].mean((1, 2))
    assert all(before < after for before, after in pairwise(light[:8]))
    # Then it comes and goes, every 20 frames.
    assert light[8:].max() > 1.5 * light[8:].min() > 0
    torch.testing.assert_close(light[8:29], light[28:], atol=1e-5, rtol=0)
    other = render_clip(grey, Motion(scene="fire"), (SIZE, SIZE), torch.tensor([8]), seed=2)
    torch.testing.assert_close(other[0], clip[8])


@pytest.mark.parametrize("scene", ["snow", "rain"])
def test_snow_and_rain_grow_from_nothing_and_only_brighten(canvas, scene):
    clip = render_clip(canvas, Motion(scene=scene), (SIZE, SIZE), torch.arange(0, 13, 2), seed=3)
    added = (clip - clip[0]).mean((1, 2, 3))
    torch.testing.assert_close(clip[0], crop(canvas), atol=2e-4, rtol=0)
    assert all(before < after for before, after in pairwise(added[:5]))
    assert added[4] > 0.01
    assert (clip - clip[0]).min() > -1e-5
    # Thick after half a second; then it only falls.
    torch.testing.assert_close(added[5:], added[4].expand(2), rtol=0.1, atol=0)


@pytest.mark.parametrize("scene", ["snow", "rain"])
def test_snow_and_rain_fall_downwards_faster_at_faster_speeds(scene):
    dark = torch.zeros(3, CANVAS, CANVAS)
    falls = []
    for speed in SPEEDS:
        motion = Motion(scene=scene, speed=speed)
        before, after = render_clip(dark, motion, (SIZE, SIZE), torch.tensor([20, 21]), seed=1)
        falls.append(displacement(before, after, 1))
    assert 0 < falls[0] < falls[1] < falls[2]


def test_the_seed_places_the_flakes(canvas):
    motion, frames = Motion(scene="snow"), torch.tensor([10])
    one, same, other = (
        render_clip(canvas, motion, (SIZE, SIZE), frames, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=0.1)


@pytest.mark.parametrize(("height", "width"), [(32, 56), (56, 32), (48, 48)])
def test_any_shape_of_frame_can_be_seen_on_any_larger_canvas(height, width):
    canvas = torch.rand(3, 80, 76, generator=torch.Generator().manual_seed(0))
    clip = render_clip(canvas, Motion("zoom-in"), (height, width), torch.tensor([0, 48]))
    assert clip.shape == (2, 3, height, width)
    top, left = (80 - height) // 2, (76 - width) // 2
    torch.testing.assert_close(
        clip[0], canvas[:, top : top + height, left : left + width], atol=2e-4, rtol=0
    )
