"""Nameable motions: how a canvas is seen through time.

A clip is one picture resampled along smooth paths, so its true motion is known everywhere. Camera
motion is an affine path of constant speed (a clip can therefore be continued without a seam);
scene motion is a local warp, a flicker, or something that falls through the frame. Every path
starts at zero: frame 0 is the picture itself. Beyond its border the picture goes on mirrored, which
is something a small model can be told; what is truly there nobody knows.

Directions are the camera's: when it pans left, things move to the right on the screen.
`roll-right` turns the picture clockwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from osp_cli.procedural.noise import coordinates, gaussian_blur

CAMERA_MOTIONS = (
    "pan-left",
    "pan-right",
    "tilt-up",
    "tilt-down",
    "zoom-in",
    "zoom-out",
    "roll-left",
    "roll-right",
)
SCENE_MOTIONS = ("clouds", "ripples", "sway", "snow", "rain", "fire")
SPEEDS = ("slow", "normal", "fast")
CLIP_FRAMES = 48  # the frames after the first over which the travels below are counted

_PAN_TRAVEL = {"slow": 0.07, "normal": 0.13, "fast": 0.2}  # of the frame's side
_ZOOM = {"slow": 1.12, "normal": 1.26, "fast": 1.42}
_ROLL = {"slow": 5.0, "normal": 9.0, "fast": 15.0}  # degrees
_PACE = {"slow": 0.6, "normal": 1.0, "fast": 1.6}  # of everything that repeats or falls
_GENTLE_ZOOM = 1.08


@dataclass(frozen=True, slots=True)
class Motion:
    """What moves: the camera, something in the scene, both, or (neither) a breath of life."""

    camera: str | None = None
    scene: str | None = None
    speed: str = "normal"

    @property
    def gentle(self) -> bool:
        """No motion was named: the picture still lives, a slow push in with a slight sway."""
        return self.camera is None and self.scene is None


def render_clip(
    canvas: Tensor, motion: Motion, size: tuple[int, int], frames: Tensor, seed: int = 0
) -> Tensor:
    """Frames of one canvas under one motion.

    Args:
        canvas: `(3, canvas_height, canvas_width)`, at least as large as the frame, which starts at
            its middle. Where a camera finds no more, the canvas is mirrored.
        motion: what happens.
        size: height, width of a frame in canvas pixels.
        frames: `(num_frames,)` frame numbers at 16 fps; 0 is the picture as it stands.
        seed: where snow and rain start; fire flickers the same every time.

    Returns:
        `(num_frames, 3, height, width)` in the canvas' range.
    """
    grid = _sampling_grid(canvas, motion, size, frames)
    batch = canvas[None].expand(len(frames), -1, -1, -1)
    clip = F.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)
    if motion.scene in ("snow", "rain"):
        clip = _falling(clip, motion, frames, seed)
    elif motion.scene == "fire":
        clip = _firelight(clip, motion, frames)
    return clip


def _sampling_grid(canvas: Tensor, motion: Motion, size: tuple[int, int], frames: Tensor) -> Tensor:
    """`grid_sample` coordinates `(num_frames, height, width, 2)`."""
    places = _places(motion, size, frames.to(canvas.device, torch.float32), size)
    return places * 2 / places.new_tensor([canvas.shape[2], canvas.shape[1]])


def displacement(
    motion: Motion, size: tuple[int, int], frames: Tensor, grid: tuple[int, int]
) -> Tensor:
    """How far from its own place a frame's content lies in the first frame, in pixels.

    Args:
        motion: what moves; what falls through the frame is not a displacement.
        size: height, width of the frame in pixels.
        frames: `(num_frames,)` frame numbers at 16 fps, fractions too.
        grid: rows and columns of the places asked for, spread evenly over the frame.

    Returns:
        `(num_frames, rows, columns, 2)`, x before y. Zero at frame 0.
    """
    times = frames.to(torch.float32)
    both = torch.cat([times.new_zeros(1), times])
    places = _places(motion, size, both, grid)
    return places[1:] - places[:1]


def _places(motion: Motion, size: tuple[int, int], frames: Tensor, grid: tuple[int, int]) -> Tensor:
    """Where on the canvas, in pixels from its centre, a grid of the frame's places looks."""
    height, width = size
    y, x = coordinates(*grid, frames.device)
    # Pixels from the frame's centre.
    py = (y * height / 2)[None].expand(len(frames), *grid)
    px = (x * width / 2)[None].expand(len(frames), *grid)
    dx, dy = scene_warp(motion, size, frames, y, x)
    px, py = px + dx, py + dy

    scale, angle, shift_x, shift_y = camera_path(motion, size, frames / CLIP_FRAMES)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    zoom = scale[:, None, None]
    qx = (cos * px + sin * py) / zoom + shift_x[:, None, None]
    qy = (cos * py - sin * px) / zoom + shift_y[:, None, None]
    return torch.stack([qx, qy], -1)


def camera_path(
    motion: Motion, size: tuple[int, int], progress: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale, angle (radians), and the frame's centre on the canvas (pixels), per frame."""
    height, width = size
    zero = torch.zeros_like(progress)
    scale, angle, shift_x, shift_y = zero + 1.0, zero, zero, zero
    camera, speed = motion.camera, motion.speed
    travel = _PAN_TRAVEL[speed] * progress
    if camera == "pan-left":
        shift_x = -travel * width
    elif camera == "pan-right":
        shift_x = travel * width
    elif camera == "tilt-up":
        shift_y = -travel * height
    elif camera == "tilt-down":
        shift_y = travel * height
    elif camera == "zoom-in":
        scale = _ZOOM[speed] ** progress
    elif camera == "zoom-out":
        scale = _ZOOM[speed] ** -progress
    elif camera in ("roll-left", "roll-right"):
        turn = math.radians(_ROLL[speed])
        angle = progress * (turn if camera == "roll-right" else -turn)
    elif motion.gentle:
        scale = _GENTLE_ZOOM**progress
    return scale, angle, shift_x, shift_y


def scene_warp(
    motion: Motion, size: tuple[int, int], frames: Tensor, y: Tensor, x: Tensor
) -> tuple[Tensor | float, Tensor | float]:
    """Displacement of the sampling point in pixels, `(num_frames, rows, columns)` each."""
    height, width = size
    y, x = y[None], x[None]
    time = (frames / 16.0 * _PACE[motion.speed])[:, None, None]
    if motion.scene == "clouds":
        # Slow, and slower further down over half the frame: what stands against the sky leans a
        # little instead of tearing.
        above = ((0.45 - y) / 1.3).clamp(0, 1)
        return -0.03 * width * time * above * above * (3 - 2 * above), 0.0
    if motion.scene == "ripples":
        below = ((y - 0.0) / 0.3).clamp(0, 1)
        swell = (time / 0.4).clamp(0, 1) * below * (height / 256)
        phase = 2 * math.pi * (1.1 * time)
        dy = 3.2 * swell * torch.sin(2 * math.pi * y * 4.0 - phase)
        dx = 2.6 * swell * torch.sin(2 * math.pi * (y * 2.0 + x * 1.5) - phase)
        return dx, dy
    if motion.scene == "fire":
        rise = (time / 0.4).clamp(0, 1) * (height / 256)
        phase = 2 * math.pi * 1.6 * time
        return 2.4 * rise * torch.sin(2 * math.pi * (y * 1.5 + x * 0.4) + phase), 0.0
    if motion.scene == "sway" or motion.gentle:
        strength = 0.032 if motion.scene == "sway" else 0.008
        mask = torch.exp(-((x / 0.55) ** 2)) * ((0.9 - y) / 1.4).clamp(0, 1)
        return strength * width * torch.sin(2 * math.pi * 0.7 * time) * mask, 0.0
    return 0.0, 0.0


def _firelight(clip: Tensor, motion: Motion, frames: Tensor) -> Tensor:
    """A warm light from below that swells over half a second and then flickers."""
    height = clip.shape[2]
    y, _ = coordinates(height, clip.shape[3], clip.device)
    time = frames.to(clip.device, torch.float32) / 16.0 * _PACE[motion.speed]
    beat = 0.75 + 0.25 * torch.sin(2 * math.pi * 0.8 * time)
    strength = (time / 0.5).clamp(0, 1) * beat
    from_below = (0.35 + 0.65 * (y + 1) / 2)[None, None]
    warm = clip.new_tensor([0.3, 0.1, -0.06]).reshape(1, 3, 1, 1)
    return clip + strength[:, None, None, None] * from_below * warm * (0.35 + 0.65 * clip)


def _falling(clip: Tensor, motion: Motion, frames: Tensor, seed: int) -> Tensor:
    """Snow or rain in two depths; it thickens over the first half second."""
    height, width = clip.shape[2:]
    generator = torch.Generator(device=clip.device).manual_seed(seed)
    pace = _PACE[motion.speed]
    snow = motion.scene == "snow"
    alpha = torch.zeros((len(frames), 1, height, width), device=clip.device)
    for depth, (density, sigma, fall, drift) in enumerate(
        [(0.0007, 1.4, 3.0, 0.5), (0.0004, 2.4, 5.0, -0.8)]
        if snow
        else [(0.002, 0.8, 15.0, -2.0), (0.001, 1.1, 21.0, -3.0)]
    ):
        points = torch.rand((1, 1, height, width), generator=generator, device=clip.device)
        flakes = (points < density).float()
        if not snow:  # a drop is a streak along its own path
            flakes = sum(flakes.roll((k, round(k * drift / fall)), (2, 3)) for k in range(12))
        soft = gaussian_blur(flakes, sigma)
        soft = (soft / soft.max().clamp_min(1e-6) * (1.9 if snow else 1.2)).clamp(0, 1)
        for index, frame in enumerate(frames.tolist()):
            offset = (round(frame * fall * pace * 0.8), round(frame * drift * pace))
            grown = min(1.0, frame / 8.0) * (0.9 if snow else 0.4 - 0.1 * depth)
            layer = soft[0].roll(offset, (1, 2)) * grown
            alpha[index] = torch.maximum(alpha[index], layer)
    return clip * (1 - alpha) + alpha
