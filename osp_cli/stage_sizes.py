"""Which picture sizes can pass stages of rising resolution (paper, section 7.1).

Each stage has twice the sides of the one before, so the smallest must still be whole tokens.
"""

from __future__ import annotations


def stage_multiple(stages: int, multiple_of: int) -> int:
    """What width and height must be multiples of.

    Args:
        stages: resolutions that a chunk passes, at least 1.
        multiple_of: pixels of a token's side at full size: the card's `multiple_of`.

    Raises:
        ValueError: numbers below 1.
    """
    if stages < 1 or multiple_of < 1:
        raise ValueError(f"stages and multiple must be at least 1, got {stages} and {multiple_of}")
    return int(multiple_of * 2 ** (stages - 1))


def staged_size_problem(
    width: int, height: int, stages: int, multiple: int
) -> tuple[int, int] | None:
    """The nearest size that can be staged, where this one cannot; None where it can.

    Args:
        width, height: in pixels.
        stages: resolutions that a chunk passes.
        multiple: the card's `multiple_of`.
    """
    step = stage_multiple(stages, multiple)
    if width % step == 0 and height % step == 0:
        return None
    return _nearest(width, step), _nearest(height, step)


def most_stages(width: int, height: int, multiple: int) -> int:
    """Through how many stages a size can pass; 0 where it has no whole tokens at all."""
    stages = 0
    while width % (side := multiple * 2**stages) == 0 and height % side == 0:
        stages += 1
    return stages


def _nearest(pixels: int, step: int) -> int:
    """The multiple of `step` nearest to `pixels`, of two the larger, and never zero."""
    return max(1, (2 * pixels + step) // (2 * step)) * step
