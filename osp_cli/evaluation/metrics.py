"""Measurements that need no network: fidelity of the first frame, amount of motion, colour drift.

They are proxies and are never reported under the names of a benchmark.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


def psnr(image: Frames, reference: Frames) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures of one shape; infinite when equal."""
    error = np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def mean_motion(frames: Frames) -> float:
    """Mean absolute difference of neighbouring frames, in grey levels (0 is a still).

    Args:
        frames: `(frames, height, width, 3)` uint8.
    """
    if len(frames) < 2:
        return 0.0
    video = frames.astype(np.float32)
    return float(np.abs(video[1:] - video[:-1]).mean())


def travelled(frames: Frames) -> float:
    """Mean absolute difference of the last frame to the first, in grey levels."""
    return float(np.abs(frames[-1].astype(np.float32) - frames[0].astype(np.float32)).mean())


def colour_drift(frames: Frames) -> float:
    """Largest change of a channel's mean against frame 0 over the clip, as a share of 255."""
    means = frames.astype(np.float32).mean((1, 2))
    return float(np.abs(means - means[0]).max() / 255.0)


def displaced_by(frame: Frames, reference: Frames, reach: int = 112) -> tuple[int, int]:
    """How far the content of a picture has moved to the right and down, in pixels, to 4 pixels.

    The shift of `reference`, among all up to `reach`, that fits `frame` best where both have
    something to show.

    Args:
        frame, reference: `(height, width, 3)` uint8 of one shape.
        reach: at most a third of the shorter side.
    """
    one, other = (_quarter(image) for image in (frame, reference))
    height, width = one.shape
    most = min(reach // 4, min(height, width) // 3)
    best, found = np.inf, (0, 0)
    for dy in range(-most, most + 1):
        rows, rows_before = _overlap(height, dy)
        for dx in range(-most, most + 1):
            columns, columns_before = _overlap(width, dx)
            error = one[rows, columns] - other[rows_before, columns_before]
            score = float(np.mean(error * error))
            if score < best:
                best, found = score, (4 * dx, 4 * dy)
    return found


def _quarter(image: Frames) -> NDArray[np.float32]:
    """Grey, at a quarter of the size."""
    grey = image.astype(np.float32).mean(2)
    height, width = (side - side % 4 for side in grey.shape)
    cells = grey[:height, :width].reshape(height // 4, 4, width // 4, 4)
    return np.asarray(cells.mean((1, 3)), np.float32)


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """Where a shifted axis covers itself: after and before."""
    return slice(max(0, shift), size + min(0, shift)), slice(max(0, -shift), size - max(0, shift))
