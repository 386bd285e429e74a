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
