"""Where an endless video's camera has got to, and what stirs in the scene.

A clip's motions (`procedural.motions`) are paths of three seconds that start at zero. A video that
never ends needs them from anywhere to anywhere: a `Course` goes on frame by frame, from one motion
to another without a jump, and no part of it grows without bound:

- the camera pans, tilts and rolls for ever, beyond its border the picture being mirrored again and
  again;
- a zoom has a picture's detail for so long only: it turns round and comes back, again and again;
- what stirs in the scene repeats itself by itself. Clouds would drift on, tearing what stands
  before them; they drift to and fro.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from osp_cli.procedural.motions import (
    CLIP_FRAMES,
    SCENE_MOTIONS,
    SPEEDS,
    Motion,
    camera_path,
    scene_warp,
)
from osp_cli.procedural.noise import coordinates

NEAREST = 1.6  # times as large as at first, or as small: there a zoom turns round
NEAREST_GENTLE = 1.25
_EASE_FRAMES = 12.0  # a change has come to two thirds after so many
_CLOUD_FRAMES = 224.0  # drifting to and fro; 14 seconds
# What can stir at once; None is the sway of gentle life.
_STIRS: tuple[tuple[str | None, str], ...] = tuple(
    (scene, speed) for scene in (*SCENE_MOTIONS, None) for speed in SPEEDS
)


@dataclass(frozen=True, slots=True)
class Course:
    """A moment of an endless video.

    Attributes:
        frame: how many frames came before.
        view: fp64 `(3, 3)`, maps a place of the frame to that of the first frame which is seen
            there, both in pixels from the centre.
        pace: fp64 `(4,)`, of the camera a frame: x and y in sides of the frame, logarithm of the
            zoom, angle in radians. None before the first frame: it starts at full pace.
        zooming: the way that a zoom is asked for, 1 in and -1 out; 2 and -2 on the way back.
        strengths: fp64, of everything that can stir in the scene, 0 to 1.
    """

    frame: int = 0
    view: Tensor = field(default_factory=lambda: torch.eye(3, dtype=torch.float64))
    pace: Tensor | None = None
    zooming: int = 0
    strengths: Tensor = field(default_factory=lambda: torch.zeros(len(_STIRS), dtype=torch.float64))

    @property
    def zoom(self) -> float:
        """How many times as large as in the first frame things are."""
        return float(torch.linalg.det(self.view[:2, :2])) ** -0.5


def follow(course: Course, motion: Motion, size: tuple[int, int], frames: int) -> list[Course]:
    """The moments from `course` on, itself first, while a motion is asked for.

    Args:
        course: now.
        motion: what is asked for.
        size: height, width of the frame in pixels.
        frames: how many come after.
    """
    moments = [course]
    for _ in range(frames):
        moments.append(_next(moments[-1], motion, size))
    return moments


def _next(course: Course, motion: Motion, size: tuple[int, int]) -> Course:
    wanted, strengths = _full_pace(motion), _stirring(motion)
    zooming = _zooming(course, motion, float(wanted[2]))
    if abs(zooming) == 2:
        wanted[2] = -wanted[2]
    if course.pace is None:
        pace = wanted
    else:
        pace = course.pace + (wanted - course.pace) / _EASE_FRAMES
        strengths = course.strengths + (strengths - course.strengths) / _EASE_FRAMES
    view = course.view @ _camera_step(pace, size)
    return Course(course.frame + 1, view, pace, zooming, strengths)


def _zooming(course: Course, motion: Motion, rate: float) -> int:
    """`Course.zooming` of the next frame, a zoom being asked for at a rate."""
    if not rate:
        return 0
    way = 1 if rate > 0 else -1
    beyond = way * math.log(course.zoom)  # where the video began, as far as zooms go
    if beyond > math.log(NEAREST_GENTLE if motion.gentle else NEAREST):
        return 2 * way
    return 2 * way if course.zooming == 2 * way and beyond > 0 else way


def _full_pace(motion: Motion) -> Tensor:
    scale, angle, x, y = camera_path(motion, (1, 1), torch.tensor([1.0], dtype=torch.float64))
    return torch.cat([x, y, scale.log(), angle]) / CLIP_FRAMES


def _stirring(motion: Motion) -> Tensor:
    asked = (motion.scene, motion.speed)
    known = [asked == stir and (stir[0] is not None or motion.gentle) for stir in _STIRS]
    return torch.tensor(known, dtype=torch.float64)


def _camera_step(pace: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    x, y, zoom, angle = pace.tolist()
    c, s = math.cos(angle) * math.exp(-zoom), math.sin(angle) * math.exp(-zoom)
    step = [[c, s, x * width], [-s, c, y * height], [0.0, 0.0, 1.0]]
    return torch.tensor(step, dtype=torch.float64)


def displaced(moments: list[Course], size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """How far from its own place in the first moment's unstirred view a moment's content lies.

    Args:
        moments: as of `follow`.
        size: height, width of the frame in pixels.
        grid: rows and columns of the places asked for, spread evenly over the frame.

    Returns:
        `(moments, rows, columns, 2)` pixels, x before y.
    """
    height, width = size
    y, x = coordinates(*grid, torch.device("cpu"))
    own = torch.stack([(x * width / 2).expand(grid), (y * height / 2).expand(grid)], -1)
    views = torch.stack([moment.view for moment in moments])
    steps = (torch.linalg.inv(views[0]) @ views).float()
    stirred = own + _stirred(moments, size, grid)
    seen = torch.einsum("fij,fhwj->fhwi", steps[:, :2, :2], stirred)
    return seen + steps[:, None, None, :2, 2] - own


def _stirred(moments: list[Course], size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Displacement by what moves in the scene, `(moments, rows, columns, 2)` pixels."""
    y, x = coordinates(*grid, torch.device("cpu"))
    times = torch.tensor([float(moment.frame) for moment in moments])
    strengths = torch.stack([moment.strengths for moment in moments]).float()
    result = torch.zeros(len(moments), *grid, 2)
    for number in (strengths.amax(0) > 1e-4).nonzero().flatten().tolist():
        scene, speed = _STIRS[number]
        frames = times
        if scene == "clouds":
            turns = 2 * math.pi / _CLOUD_FRAMES
            frames = torch.sin(turns * times) / turns
        warp = scene_warp(Motion(None, scene, speed), size, frames, y, x)
        for axis, part in enumerate(warp):
            result[..., axis] += strengths[:, number, None, None] * part
    return result
