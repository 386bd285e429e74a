"""What the names of ffmpeg's pixel formats say."""

from __future__ import annotations

import re


def has_alpha(pixel_format: str) -> bool:
    """Whether pictures of this format may be transparent."""
    return re.match(r"yuva|[rgb]{3}a|a[rgb]{3}|gbrap|ya\d|pal8|ayuv|vuya", pixel_format) is not None


def bit_depth(pixel_format: str) -> int:
    """Bits of one sample, as the names of ffmpeg's formats tell them."""
    if re.match(r"(rgb|bgr)(48|a64)|(rgb|bgr)a64", pixel_format):
        return 16
    if "f32" in pixel_format:
        return 32
    deep = re.search(r"(?:^p\d|p|gray|x2rgb|x2bgr|ya)(9|1\d)(?:le|be)$", pixel_format)
    return int(deep[1]) if deep else 8


def matrix_of(pixel_format: str, tagged: str, width: int, height: int) -> str:
    """The matrix of the colours: as tagged, else the one that players take for the size.

    Args:
        pixel_format: ffmpeg's name.
        tagged: what the file says, `unknown` for nothing.
        width: in pixels.
        height: likewise.

    Returns:
        A name that ffmpeg's scaler takes, `auto` where the file tells or no matrix is used.
    """
    if tagged not in ("", "unknown", "reserved"):
        return "auto"
    if not re.match(r"yuv[aj]?4|nv\d|p[024]1|[uy]yv", pixel_format):
        return "auto"
    short, long = sorted((width, height))
    return "bt709" if long >= 1280 or short > 576 else "bt601"
