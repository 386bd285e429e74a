"""Sizes and lengths that clips are cut to, so that clips of a kind can be trained on together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from osp_cli.media.image import choose_bucket

# h / w of clips that are taken, and so of buckets.
MAX_ASPECT = 4.0
# Shapes from 1:4 to 4:1 at equal distances on the logarithm, the square in their middle. VideoX-Fun
# has forty.
_NUM_SHAPES = 41
LENGTHS = (1, 17, 33, 49, 81)


@lru_cache(maxsize=64)
def bucket_sizes(
    width: int,
    height: int,
    multiple_of: int,
    max_pixels: int = 0,
    own: tuple[tuple[int, int], ...] = (),
) -> tuple[tuple[int, int], ...]:
    """All sizes that clips may be cut to, from the tallest to the widest.

    Each is a multiple of `multiple_of` on both sides, has at most as many pixels as `width` x
    `height`, and no side of it could be longer. `width` x `height` is among them. For each there is
    the same on its side.

    Args:
        max_pixels: of a size, instead of `width * height`; never less than that.
        own: further sizes, whatever they are: those that the model knows best.
    """
    budget = max(max_pixels, width * height)
    step = multiple_of
    full = set()
    for side in range(step, math.isqrt(int(budget * MAX_ASPECT)) + 1, step):
        # Twice: the longest height of a width, and the longest width of a height.
        other = budget // side // step * step
        full |= {(side, other), (other, side)}
    full = {size for size in full if min(size) > 0 and _is_full(size, step, budget)}
    shapes = [MAX_ASPECT ** (2 * index / (_NUM_SHAPES - 1) - 1) for index in range(_NUM_SHAPES)]
    within = [size for size in full if max(size) <= MAX_ASPECT * min(size)]
    chosen = {_nearest(within, shape) for shape in shapes} if within else set()
    chosen |= {size[::-1] for size in chosen}
    every = {*chosen, *own, (width, height)}
    return tuple(sorted(every, key=lambda size: (size[0] / size[1], size)))


def _is_full(size: tuple[int, int], step: int, budget: int) -> bool:
    width, height = size
    return (width + step) * height > budget and width * (height + step) > budget


def _nearest(sizes: Sequence[tuple[int, int]], shape: float) -> tuple[int, int]:
    """The size whose ratio is nearest to `shape`; the larger one on a tie."""
    wanted = math.log(shape)
    return min(
        sizes,
        key=lambda size: (
            round(abs(math.log(size[0] / size[1]) - wanted), 9),
            -size[0] * size[1],
            size,
        ),
    )


def bucket_of(
    clip: tuple[int, int], sizes: Sequence[tuple[int, int]], *, allow_upscale: bool = False
) -> tuple[int, int] | None:
    """The size nearest to a clip's in shape, None where the clip would have to be enlarged.

    Nearness is measured on the logarithm of the ratio of sides.

    Args:
        clip: width and height of the clip.
        sizes: from `bucket_sizes`.
    """
    size = choose_bucket(*clip, sizes)
    return size if allow_upscale or not is_enlarged(clip, size) else None


def is_enlarged(clip: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether the part of a clip that `size` shows has fewer pixels than `size`."""
    return clip[0] < size[0] or clip[1] < size[1]


def frames_within(size: tuple[int, int], num_frames: int, budget_pixels: int) -> int:
    """The `4k + 1` frames whose tokens are as many as those of the longest clip at full size.

    The paper's "video-token length conditioning", as its trainer has it:
    `min(49 * 512^2 / s^2, 49) // 4 * 4 + 1` at side s. Sizes of no more pixels than
    `budget_pixels` have all frames.
    """
    fitting = min(num_frames * budget_pixels // (size[0] * size[1]), num_frames)
    return min(fitting // 4 * 4 + 1, num_frames)


def bucket_frames(available: int, num_frames: int, *, bucket: bool = True) -> int | None:
    """How many frames windows of a clip have, None where it is too short for any.

    The longest of 17, 33, 49, 81 and `num_frames` that the clip has and that is no longer than
    `num_frames`. One frame is for pictures: a clip that is too short is no picture.

    Args:
        available: frames of the clip at the rate that is trained at.
        bucket: False takes `num_frames` or nothing.
    """
    return max((n for n in _lengths(num_frames, bucket) if n <= available), default=None)


def least_frames(num_frames: int, *, bucket: bool = True) -> int:
    """The shortest length that `bucket_frames` gives."""
    return min(_lengths(num_frames, bucket))


def _lengths(num_frames: int, bucket: bool) -> set[int]:
    if not bucket:
        return {num_frames}
    return {length for length in LENGTHS if 1 < length < num_frames} | {num_frames}
