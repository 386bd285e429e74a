"""Sizes that a chunk can pass through from low to full resolution (paper, section 7.1)."""

from __future__ import annotations


def staged_size_problem(
    width: int, height: int, stages: int, multiple: int
) -> tuple[int, int] | None:
    """The nearest size that can be halved for every stage but the last; None where this one can.

    Args:
        width, height: in pixels, at full resolution.
        stages: resolutions, each twice the one before.
        multiple: what the lowest resolution must be a multiple of: a token's side in pixels.
    """
    unit = multiple * 2 ** (stages - 1)
    if not (width % unit or height % unit):
        return None
    return _nearest(width, unit), _nearest(height, unit)


def _nearest(side: int, unit: int) -> int:
    return max(unit, round(side / unit) * unit)
