"""Frames on their way into a file: checked, and shown for exactly as long as they should be."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def checked_frames(
    frames: Iterable[NDArray[np.uint8]], *, even: bool = False
) -> Iterator[NDArray[np.uint8]]:
    """The same frames one at a time, each uint8 RGB `(height, width, 3)` of the first one's size.

    Args:
        frames: an array `(frames, height, width, 3)` or anything that yields its frames.
        even: both sides must be even, as yuv420p needs it.

    Raises:
        ValueError: no frames, or frames of a wrong shape, type or size.
    """
    size = None
    for frame in frames:
        here = _size(frame, even=even)
        if size is None:
            size = here
        elif here != size:
            raise ValueError(f"frames differ in size: {_words(here)} after {_words(size)}")
        yield frame
    if size is None:
        raise ValueError("no frames to write")


def exact_rate(fps: int | float | Fraction) -> Fraction:
    """Frames per second as a fraction that files can hold; 29.97 becomes 30000/1001.

    Raises:
        ValueError: not positive.
    """
    rate = Fraction(fps).limit_denominator(1001)
    if rate <= 0:
        raise ValueError(f"fps must be positive, got {fps}")
    return rate


def durations(num_frames: int, fps: int | float | Fraction, *, per_second: int) -> list[int]:
    """How long each frame is shown, in whole units, so that the rounding never adds up.

    Every frame starts within half a unit of its true time: at 16 fps and 1000 units a second the
    frames last 62, 63, 62 ... milliseconds, where rounding each alone would lose half of one.
    """
    rate = exact_rate(fps)
    starts = [round(index * per_second / rate) for index in range(num_frames + 1)]
    return [after - start for start, after in itertools.pairwise(starts)]


def _size(frame: NDArray[np.uint8], *, even: bool) -> tuple[int, int]:
    """Height and width of a frame that can be encoded."""
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != "uint8":
        raise ValueError(
            f"a frame is uint8 of shape (height, width, 3), got {frame.dtype} {frame.shape}"
        )
    height, width = frame.shape[:2]
    if even and (height % 2 or width % 2 or not height or not width):
        raise ValueError(
            f"yuv420p halves the colour in both directions: the size must be even, "
            f"got {width}x{height}"
        )
    if not height or not width:
        raise ValueError(f"a frame of {width}x{height} has no pixels")
    return height, width


def _words(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
