"""Measures of a clip against the photo it began with: detail, colours that wander, stillness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from osp_cli.evaluation.metrics import Frames, mean_motion
from osp_cli.procedural.motions import Motion, render_clip

# Grey levels by which neighbouring frames differ at least, and by which the end of a clip is away
# from its beginning; the second is for what only flickers, and so comes back to where it was. A
# still has 0 and 0. True gentle clips of the seven photos have 1.1 to 3.5, and 5.9 or more after
# half a second; the slowest roll of the plainest of them has 0.55.
FLOOR = (0.4, 2.0)
# Styles flatten what moves: the true gentle clip of a dark photo in bricks has 0.16 and 1.06.
STYLED_FLOOR = (0.1, 0.5)
# Frames at the end of a clip that are looked at together, so that one of them does not decide.
_END = 4


@dataclass(frozen=True, slots=True)
class Liveliness:
    """How much moves in one clip.

    Attributes:
        label: which clip.
        motion: mean absolute difference of neighbouring frames, in grey levels.
        travel: mean absolute difference of the last frames' mean to frame 0, in grey levels.
        floor: of both.
    """

    label: str
    motion: float
    travel: float
    floor: tuple[float, float]

    @property
    def share(self) -> float:
        """How many times the floors are reached; below 1 is a still, or only flickers."""
        return min(self.motion / self.floor[0], self.travel / self.floor[1])


def liveliness(label: str, frames: Frames, *, styled: bool = False) -> Liveliness:
    """How much moves in a clip of half a second or more.

    Args:
        label: which clip.
        frames: `(num_frames, height, width, 3)` uint8.
        styled: in one of the styles.
    """
    # The mean of some frames: flicker about a still picture averages out of it.
    end = frames[-_END:].astype(np.float32).mean(0)
    travel = float(np.abs(end - frames[0].astype(np.float32)).mean())
    return Liveliness(label, mean_motion(frames), travel, STYLED_FLOOR if styled else FLOOR)


def detail(image: Frames) -> float:
    """Energy of what is finer than eight pixels: above a quarter of the highest frequency.

    Args:
        image: `(height, width, 3)` uint8.

    Returns:
        Mean square of the luma's part in that band, in grey levels squared.
    """
    luma = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    # A window, as the borders of a picture do not meet and would count as detail.
    height, width = luma.shape
    window = np.hanning(height)[:, None] * np.hanning(width)[None]
    spectrum = np.fft.rfft2((luma - luma.mean()) * window)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    band = np.abs(spectrum) ** 2 * (frequency > 0.125)
    # Columns but the first and the last stand for their mirror images too.
    band[:, 1 : (width + 1) // 2] *= 2
    return float(band.sum() / (height * width) / (window**2).sum())


def mean_detail(frames: Frames) -> float:
    """`detail` averaged over a clip."""
    return float(np.mean([detail(frame) for frame in frames]))


def colour_drift_percent(frames: Frames, photo: Image.Image) -> float:
    """How far the mean colour at the end of a gentle clip is from frame 0, beyond what it shows.

    A clip that closes in on a flower becomes redder by right, so the same is taken from the clip
    that the gentle motion truly makes of the photo, and subtracted.

    Args:
        frames: of an unstyled clip without motion words, `(num_frames, height, width, 3)` uint8.
        photo: what it began with, of the same size.

    Returns:
        Distance of the mean colours in CIELAB, in percent of the way from black to white.
    """
    marks = [0, *range(max(1, len(frames) - _END), len(frames))]
    shown, true = _mean_lab(frames[marks]), _mean_lab(gentle_truth(photo, marks))
    wandered = (shown[1:].mean(0) - shown[0]) - (true[1:].mean(0) - true[0])
    return float(np.linalg.norm(wandered))


def gentle_truth(photo: Image.Image, marks: list[int]) -> Frames:
    """What the motion of a clip without motion words makes of a photo, at some frames."""
    canvas = torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1).float()
    size = (photo.height, photo.width)
    clip = render_clip(canvas, Motion(), size, torch.tensor(marks, dtype=torch.float32))
    frames: Frames = clip.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return frames


def _mean_lab(frames: Frames) -> NDArray[np.float64]:
    """Mean colour of each frame in CIELAB, `(count, 3)`."""
    from skimage.color import rgb2lab

    return np.stack([np.asarray(rgb2lab(frame[::2, ::2])).mean((0, 1)) for frame in frames])
