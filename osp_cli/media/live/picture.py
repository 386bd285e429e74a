"""The form that the frames of a stream have from its first to its last."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from osp_cli.media.frames import exact_rate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Size, rate and chunks of a stream.

    Attributes:
        width, height: in pixels, both even.
        fps: frames per second.
        chunk_frames: frames of a chunk: the distance of the pictures at which a file can be cut.
        first_chunk_frames: frames of the first one, where that is another number.

    Raises:
        ValueError: an odd or empty size, or a rate or a number of frames below one.
    """

    width: int
    height: int
    fps: int | float | Fraction
    chunk_frames: int
    first_chunk_frames: int | None = None

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 2 or self.width % 2 or self.height % 2:
            raise ValueError(f"both sides must be even, got {self.width}x{self.height}")
        if min(self.chunk_frames, self.first_chunk_frames or self.chunk_frames) < 1:
            raise ValueError(f"a chunk has frames, got {self.chunk_frames}")
        exact_rate(self.fps)

    @property
    def rate(self) -> Fraction:
        """Frames per second as files hold it."""
        return exact_rate(self.fps)

    @property
    def start(self) -> int:
        """Frames of the first chunk."""
        return self.first_chunk_frames or self.chunk_frames

    @property
    def chunk_seconds(self) -> float:
        """How long a chunk is shown."""
        return float(self.chunk_frames / self.rate)

    def check(self, frames: NDArray[np.uint8]) -> None:
        """Refuse what is no part of this stream.

        Raises:
            ValueError: frames of another size, shape or type.
        """
        if frames.dtype != "uint8" or frames.shape[1:] != (self.height, self.width, 3):
            raise ValueError(
                f"the stream has uint8 frames (n, {self.height}, {self.width}, 3), "
                f"got {frames.dtype} {frames.shape}"
            )
