"""What clips are checked against."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from osp_cli.train_request import TrainRequest
from osp_cli.training.dataset.buckets import bucket_sizes

# The built-in model's square has 8 % more pixels than its 448x256; a card's next size has twice.
_LIKE = 1.15


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """What clips have to be for a run.

    Attributes:
        num_frames: `4k + 1`, of the longest windows.
        fps: that is trained at.
        stride: every n-th frame of the file instead.
        width, height: of the bucket that others are made of.
        multiple_of: sides of buckets are multiples of this.
        max_frames: that the model sees.
        bucket: clips keep their shapes; otherwise all are cut to one size.
        windows: parts of a long clip that are used, at most.
        mode: of `train_request.MODES`; pictures are clips in `t2v` alone.
        max_tokens: of a caption.
        allow_empty: clips may come without a caption.
        allow_upscale: clips may be smaller than their bucket.
        seed: of the places of windows.
        own_sizes: of the model's card, where `width` x `height` is one of them: those of about as
            many pixels stand for one another. Any other size is its own measure.
        condition: of `train_request.CONDITIONS`: `source` wants a picture beside every clip.
    """

    num_frames: int = 49
    fps: int = 16
    stride: int | None = None
    width: int = 512
    height: int = 512
    multiple_of: int = 16
    max_frames: int = 81
    bucket: bool = True
    windows: int = 4
    mode: str = "flash"
    max_tokens: int = 512
    allow_empty: bool = False
    allow_upscale: bool = False
    seed: int = 42
    own_sizes: tuple[tuple[int, int], ...] = ()
    condition: str = "auto"

    @classmethod
    def of(cls, request: TrainRequest) -> CheckSettings:
        """Those of a run."""
        spec = request.spec
        return cls(
            num_frames=request.num_frames,
            fps=request.fps,
            stride=request.stride,
            width=request.width,
            height=request.height,
            multiple_of=spec.multiple_of,
            max_frames=spec.max_frames,
            bucket=request.bucket,
            windows=request.windows,
            mode=request.mode,
            max_tokens=spec.max_sequence_length,
            allow_empty=request.allow_empty,
            allow_upscale=request.allow_upscale,
            seed=request.seed,
            own_sizes=_like((request.width, request.height), spec.sizes),
            condition=request.condition,
        )

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """All that clips may be cut to."""
        if not self.bucket:
            return ((self.width, self.height),)
        return bucket_sizes(
            self.width, self.height, self.multiple_of, self.max_pixels, self.own_sizes
        )

    @property
    def max_pixels(self) -> int:
        """Of the largest bucket."""
        return max(width * height for width, height in (*self.own_sizes, (self.width, self.height)))

    @property
    def longest(self) -> int:
        """Frames of the longest windows that the model sees."""
        return min(self.num_frames, self.max_frames)

    @property
    def uses_sources(self) -> bool:
        """Whether the pictures beside the clips are looked at, where there are any."""
        return self.mode != "t2v" and self.condition != "first"


def _like(
    asked: tuple[int, int], sizes: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    """Sizes of a card of about as many pixels as the one that is asked for; none for others."""
    pixels = asked[0] * asked[1]
    like = [size for size in sizes if 1 / _LIKE < size[0] * size[1] / pixels < _LIKE]
    return tuple(like) if asked in sizes else ()
