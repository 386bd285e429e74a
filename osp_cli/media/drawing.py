"""What sheets and grids have in common: colours, letters, and pictures brought to a cell's size."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from PIL import Image, ImageFont

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Picture: TypeAlias = Image.Image | NDArray[np.uint8]

BACKGROUND = (24, 25, 28)
INK = (232, 232, 228)
FAINT = (150, 152, 158)
# Pixels between two cells.
GAP = 6

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


def label_font(cell_width: int) -> Font:
    """Letters that fit a cell of so many pixels."""
    return ImageFont.load_default(size=min(18, max(10, cell_width // 14)))


def line_height(font: Font) -> int:
    """Pixels that a line of text takes."""
    _, top, _, bottom = font.getbbox("Ay|")
    return int(bottom - min(top, 0)) + 2


def shortened(text: str, font: Font, width: int) -> str:
    """The text on one line, cut so that it is no wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    # Halving, since measuring a long text is slow: `fits` characters fit, `too_many` do not.
    fits, too_many = 0, len(text)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if font.getlength(text[:middle] + "...") <= width:
            fits = middle
        else:
            too_many = middle
    return text[:fits].rstrip() + "..."


def as_image(picture: Picture) -> Image.Image:
    """An RGB image of a PIL image or a uint8 array `(height, width, 3)`.

    Raises:
        ValueError: an array that is no picture.
    """
    if not isinstance(picture, Image.Image):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != "uint8":
            raise ValueError(
                f"a picture is uint8 of shape (height, width, 3), "
                f"got {picture.dtype} {picture.shape}"
            )
        picture = Image.fromarray(picture)
    return picture.convert("RGB")


def resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture in another size; itself where it has that size."""
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), Image.Resampling.LANCZOS)
