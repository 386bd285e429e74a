"""Courses of endless videos: at first the clip's own path, and no end to it, nor a jump."""

from __future__ import annotations

import math

import pytest
import torch

from osp_cli.procedural.courses import (
    NEAREST,
    NEAREST_GENTLE,
    Course,
    displaced,
    follow,
)
from osp_cli.procedural.motions import CAMERA_MOTIONS, SCENE_MOTIONS, Motion, displacement

SIZE, GRID = (64, 96), (4, 6)


@pytest.mark.parametrize("camera", CAMERA_MOTIONS)
@pytest.mark.parametrize("speed", ["slow", "fast"])
def test_three_seconds_of_a_camera_are_the_clips_own(camera, speed):
    motion = Motion(camera, speed=speed)
    wanted = displacement(motion, SIZE, torch.arange(40), GRID)
    torch.testing.assert_close(
        displaced(follow(Course(), motion, SIZE, 39), SIZE, GRID), wanted, atol=2e-3, rtol=1e-4
    )


@pytest.mark.parametrize("scene", [scene for scene in SCENE_MOTIONS if scene != "clouds"])
def test_what_stirs_is_the_clips_own_at_any_time(scene):
    motion = Motion(None, scene)
    moments = follow(Course(), motion, SIZE, 700)[-10:]
    wanted = displacement(motion, SIZE, torch.arange(691, 701), GRID)
    torch.testing.assert_close(displaced(moments, SIZE, GRID), wanted, atol=2e-3, rtol=1e-3)


def test_clouds_begin_as_in_a_clip_and_never_tear_the_picture():
    motion = Motion(None, "clouds", "fast")
    moments = follow(Course(), motion, SIZE, 960)
    far = displaced(moments, SIZE, GRID)
    torch.testing.assert_close(
        far[:8], displacement(motion, SIZE, torch.arange(8), GRID), atol=0.02, rtol=0.02
    )
    assert (
        far.abs().max()
        < 0.12 * SIZE[1]
        < displacement(motion, SIZE, torch.tensor([960]), GRID).abs().max()
    )


@pytest.mark.parametrize(
    ("motion", "limit"),
    [
        (Motion("zoom-in"), NEAREST),
        (Motion("zoom-out", speed="fast"), 1 / NEAREST),
        (Motion(), NEAREST_GENTLE),
    ],
)
def test_zooms_come_back_when_the_picture_has_no_more_detail(motion, limit):
    zooms = [math.log(moment.zoom) for moment in follow(Course(), motion, SIZE, 1500)]
    way = math.copysign(1, math.log(limit))
    along = [way * zoom for zoom in zooms]
    assert abs(math.log(limit)) < max(along) < abs(math.log(limit)) + 0.2
    assert -0.2 < min(along) <= 0.0
    turns = sum((b - a) * (c - b) < 0 for a, b, c in zip(along, along[1:], along[2:], strict=False))
    assert turns >= 2


def test_a_zoom_the_other_way_is_not_taken_for_one_coming_back():
    out = follow(Course(), Motion("zoom-out", speed="fast"), SIZE, 120)
    coming_back = next(moment for moment in out if abs(moment.zooming) == 2)
    near = follow(coming_back, Motion("zoom-in"), SIZE, 200)
    zooms = [moment.zoom for moment in near[30:150]]
    assert zooms == sorted(zooms)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Motion("pan-left", speed="fast"), Motion("zoom-in")),
        (Motion(None, "sway", "fast"), Motion("roll-right")),
        (Motion(), Motion(None, "ripples")),
    ],
)
def test_another_motion_is_eased_into(before, after):
    def steps(moments):
        return displaced(moments, SIZE, GRID).diff(dim=0)

    def kinks(moments):
        return steps(moments).diff(dim=0).norm(dim=-1).amax((1, 2))

    moments = follow(Course(), before, SIZE, 90)
    changed = moments[60:] + follow(moments[-1], after, SIZE, 60)[1:]
    usual = moments[60:], follow(moments[-1], after, SIZE, 200)[100:]
    fastest = sum(steps(part).norm(dim=-1).max() for part in usual)
    assert steps(changed).norm(dim=-1).max() < 1.3 * fastest
    assert kinks(changed).max() < sum(kinks(part).max() for part in usual) + 0.15 * fastest


def test_a_course_can_be_taken_up_anywhere():
    motion = Motion("roll-left", "ripples", "slow")
    whole = follow(Course(), motion, SIZE, 20)
    again = follow(whole[8], motion, SIZE, 12)
    assert torch.equal(again[-1].view, whole[-1].view)
    assert again[-1].frame == whole[-1].frame == 20
