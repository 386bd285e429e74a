"""Which way the camera went, by optical flow; no learnt part, and no look at the prompt.

A similarity `(u, v) = (tx + s x - r y, ty + s y + r x)` is fitted to the flow between frames a
little apart, and what these fits say adds up over the clip. The four numbers are made comparable
as the root mean square displacement, in pixels, that each alone causes over the frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Plane = NDArray[np.float32]

# Frames between the two of a pair: a usual pan moves by 6 pixels then, well within the reach of
# the flow, and well above its noise.
_STRIDE = 4
# Less than this is no motion at all, whatever its direction: a fifth of the slowest pan.
STILL_PIXELS_A_FRAME = 0.15
# Flow is looked at in frames of about this width; it takes time with the number of pixels.
_FLOW_WIDTH = 224


@dataclass(frozen=True, slots=True)
class CameraPath:
    """What the content did on the screen between the first and the last frame.

    Attributes:
        right, down: its displacement in pixels.
        growth: logarithm of its scale; above 0 where the camera zooms in.
        turn: clockwise, in radians.
        size: height, width of the frame.
        num_frames: of the clip.
    """

    right: float
    down: float
    growth: float
    turn: float
    size: tuple[int, int]
    num_frames: int

    def displacements(self) -> dict[str, float]:
        """For each camera motion the pixels that it alone causes; below 0 for its opposite."""
        height, width = self.size
        # Of a place in the frame from its centre, root mean square.
        radius = math.sqrt((height**2 + width**2) / 12)
        axes = {
            # Things move to the right when the camera pans left, and down when it tilts up.
            ("pan-left", "pan-right"): self.right,
            ("tilt-up", "tilt-down"): self.down,
            ("zoom-in", "zoom-out"): self.growth * radius,
            ("roll-right", "roll-left"): self.turn * radius,
        }
        found = {}
        for (one, opposite), pixels in axes.items():
            found[one], found[opposite] = pixels, -pixels
        return found

    def named(self) -> str | None:
        """The camera motion of the largest displacement; None for what hardly moves."""
        found = self.displacements()
        best = max(found, key=lambda motion: found[motion])
        least = STILL_PIXELS_A_FRAME * (self.num_frames - 1)
        return best if found[best] >= least else None


def camera_path(frames: Frames, stride: int = _STRIDE) -> CameraPath:
    """The camera's path through a clip, added up over pairs of frames `stride` apart.

    Args:
        frames: `(num_frames, height, width, 3)` uint8.
        stride: frames between the two of a pair.
    """
    planes = [luma_plane(frame) for frame in frames[_ends(len(frames), stride)]]
    total = np.zeros(4)
    for before, after in pairwise(planes):
        total += _similarity(before, after)
    height, width = frames.shape[1:3]
    # Back to the clip's own pixels; growth and turn have no unit.
    scale = width / planes[0].shape[1]
    right, down, growth, turn = (float(part) for part in total)
    return CameraPath(
        right * scale, down * scale, growth, turn, (int(height), int(width)), len(frames)
    )


def _ends(num_frames: int, stride: int) -> list[int]:
    """The frames between which flow is measured; the last one always belongs to them."""
    marks = list(range(0, num_frames, stride))
    return marks if marks[-1] == num_frames - 1 else [*marks, num_frames - 1]


def luma_plane(frame: Frames) -> Plane:
    """Luma in [0, 1], averaged to about `_FLOW_WIDTH` columns."""
    grey = frame.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    factor = max(1, round(max(grey.shape) / _FLOW_WIDTH))
    height, width = (side - side % factor for side in grey.shape)
    cells = grey[:height, :width].reshape(height // factor, factor, width // factor, factor)
    return np.asarray(cells.mean((1, 3)), np.float32)


def flow_between(before: Plane, after: Plane) -> NDArray[np.float64]:
    """How far to the right and down in `after` lies what was here in `before`.

    Returns:
        `(2, height, width)` in pixels of the plane.
    """
    from skimage.registration import optical_flow_ilk

    down, right = optical_flow_ilk(before, after, radius=6, num_warp=5)
    return np.stack([right, down])


def _similarity(before: Plane, after: Plane) -> NDArray[np.float64]:
    """Translation right and down in pixels of the plane, growth and clockwise turn."""
    right, down = flow_between(before, after)
    height, width = before.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    trust = texture_of(before)
    # What leaves the frame has no match there.
    inside = (np.abs(x + right) < width / 2 - 4) & (np.abs(y + down) < height / 2 - 4)
    trust = trust * inside
    ones, zeros = np.ones_like(x), np.zeros_like(x)
    # Neighbours share their window of flow: every fourth place says as much as all of them.
    thin = (slice(None, None, 2), slice(None, None, 2))
    of_right = np.stack([ones, zeros, x, -y], -1)[thin]
    of_down = np.stack([zeros, ones, y, x], -1)[thin]
    rows = np.concatenate([of_right, of_down]).reshape(-1, 4)
    wanted = np.concatenate([right[thin], down[thin]]).reshape(-1).astype(np.float64)
    return _robust_fit(rows, wanted, np.tile(trust[thin].reshape(-1), 2))


def texture_of(plane: Plane) -> NDArray[np.float64]:
    """How well flow can be seen at each place: the lesser eigenvalue of the structure tensor."""
    from scipy.ndimage import uniform_filter

    gy, gx = np.gradient(plane.astype(np.float64))
    xx, yy, xy = (uniform_filter(part, 13) for part in (gx * gx, gy * gy, gx * gy))
    lesser = (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    # Above some contrast a place says no more than another: one bright edge must not rule.
    return np.asarray(np.clip(lesser, 0, None) / (lesser + 2e-5))


def _robust_fit(
    rows: NDArray[np.float64], wanted: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least squares that lets go of what does not fit: things that move by themselves."""
    found: NDArray[np.float64] = np.zeros(4)
    trust = weights
    for _ in range(6):
        weighed = rows * trust[:, None]
        found = np.asarray(np.linalg.lstsq(weighed.T @ rows, weighed.T @ wanted, rcond=1e-9)[0])
        residual = np.hypot(*(wanted - rows @ found).reshape(2, -1))
        spread = np.average(residual, weights=weights[: residual.size] + 1e-9) + 0.05
        trust = weights * np.tile(1 / (1 + (residual / spread) ** 2), 2)
    return found
