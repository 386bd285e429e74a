"""How pictures of one shape are made to fill frames of another: scaled to cover, then cut."""

from __future__ import annotations


def cover_size(source_width: int, source_height: int, width: int, height: int) -> tuple[int, int]:
    """The smallest size of the source's aspect ratio that covers `width` x `height`."""
    if source_width * height >= source_height * width:
        return -(-source_width * height // source_height), height
    return width, -(-source_height * width // source_width)


def fit_notice(
    source: tuple[int, int], size: tuple[int, int], *, what: str = "picture"
) -> str | None:
    """Says what the crop takes away, or None when it is a sliver at most.

    Args:
        source: width and height of what comes in.
        size: width and height of the frames.
        what: the word for what comes in.
    """
    before, after = source[0] / source[1], size[0] / size[1]
    kept = min(before, after) / max(before, after)
    if kept >= 0.97:
        return None
    sides = "left and right" if before > after else "top and bottom"
    return (
        f"the {what} of {source[0]}x{source[1]} fills {size[0]}x{size[1]}, "
        f"{1 - kept:.0%} of it is cut at {sides}"
    )
