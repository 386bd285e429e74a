"""Small pictures in terminals that know all colours: two pixels to a letter, in half blocks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from osp_cli.cli import console

# Upper half: its own colour is the upper pixel's, the one behind it the lower's.
_HALF = "\N{UPPER HALF BLOCK}"
_END = "\x1b[0m"


def can_show_pictures() -> bool:
    """Whether stdout is a terminal of 16 million colours whose user wants colours."""
    return (
        console.is_terminal(sys.stdout)
        and os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")
        and not os.environ.get("NO_COLOR")
        and (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    )


def picture_lines(path: Path, width: int, height: int) -> list[str]:
    """A picture as `height` lines of `width` letters each.

    Raises:
        OSError: it cannot be read.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        small = ImageOps.fit(image.convert("RGB"), (width, 2 * height), Image.Resampling.BOX)
    lines = []
    for row in range(height):
        cells = []
        for column in range(width):
            upper, lower = (_numbers(small.getpixel((column, 2 * row + half))) for half in (0, 1))
            cells.append(f"\x1b[38;2;{upper};48;2;{lower}m{_HALF}")
        lines.append("".join(cells) + _END)
    return lines


def _numbers(pixel: object) -> str:
    assert isinstance(pixel, tuple)
    return ";".join(map(str, pixel))
