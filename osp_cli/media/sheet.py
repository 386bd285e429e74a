"""Labelled contact sheets: many pictures on one page, to be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from osp_cli.errors import InvalidRequestError
from osp_cli.media.drawing import (
    BACKGROUND,
    FAINT,
    GAP,
    INK,
    as_image,
    label_font,
    line_height,
    resized,
    shortened,
)
from osp_cli.media.files import atomic_output

if TYPE_CHECKING:
    from osp_cli.media.drawing import Picture

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def contact_sheet(
    rows: Mapping[str, Sequence[Picture | None]],
    *,
    column_labels: Sequence[str] = (),
    title: str = "",
    cell_width: int = 224,
) -> Image.Image:
    """A table of pictures: one row per label, labels on the left, column labels on top.

    Args:
        rows: label of a row -> its pictures, PIL images or uint8 `(height, width, 3)` arrays; None
            leaves a cell empty, and a short row leaves its end empty.
        column_labels: one per column, or none.
        title: a line above everything.
        cell_width: pixels; pictures are scaled to it and keep their aspect ratio.

    Raises:
        ValueError: no picture at all, or an array that is no picture.
    """
    return _sheet(list(rows.items()), column_labels, title, cell_width)


def labelled_grid(
    pictures: Mapping[str, Picture],
    *,
    num_columns: int,
    title: str = "",
    cell_width: int = 224,
) -> Image.Image:
    """Pictures in reading order, `num_columns` to a row, each with its label underneath.

    Raises:
        ValueError: no pictures, fewer than one column, or an array that is no picture.
    """
    if not pictures or num_columns < 1:
        raise ValueError("a grid needs at least one picture and one column")
    font = label_font(cell_width)
    line = line_height(font)
    captioned: list[Picture] = []
    cell_height = max(_fitted(picture, cell_width).height for picture in pictures.values())
    for label, picture in pictures.items():
        cell = Image.new("RGB", (cell_width, cell_height + line + GAP), BACKGROUND)
        fitted = _fitted(picture, cell_width)
        cell.paste(fitted, (0, (cell_height - fitted.height) // 2))
        text = shortened(label, font, cell_width)
        middle = (cell_width // 2, cell_height + GAP // 2)
        ImageDraw.Draw(cell).text(middle, text, INK, font, anchor="ma")
        captioned.append(cell)
    rows = [
        ("", captioned[start : start + num_columns])
        for start in range(0, len(captioned), num_columns)
    ]
    return _sheet(rows, (), title, cell_width)


def save_sheet(
    sheet: Image.Image, path: str | Path, *, quality: int = 88, overwrite: bool = True
) -> Path:
    """Save as PNG or JPEG, whole or not at all; `quality` is JPEG's, 1 to 95.

    Raises:
        InvalidRequestError: another extension, or a path that cannot be written to.
        WontFitError: the disk is full.
    """
    path = Path(path)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InvalidRequestError(
            f"cannot write {path.suffix or 'a name without an extension'}, "
            f"only {', '.join(_FORMATS)}",
            hint=f"name it {path.stem or 'sheet'}.png",
        )
    options = {"quality": quality, "optimize": True} if kind == "JPEG" else {"optimize": True}
    with atomic_output(path, overwrite=overwrite) as part:
        sheet.save(part, kind, **options)
    return path


def _sheet(
    rows: Sequence[tuple[str, Sequence[Picture | None]]],
    column_labels: Sequence[str],
    title: str,
    cell_width: int,
) -> Image.Image:
    cells = [
        [None if cell is None else _fitted(cell, cell_width) for cell in row] for _, row in rows
    ]
    num_columns = max((len(row) for row in cells), default=0)
    if not any(cell is not None for row in cells for cell in row):
        raise ValueError("a contact sheet needs at least one picture")

    font = label_font(cell_width)
    line = line_height(font)
    labels = [shortened(label, font, cell_width) for label, _ in rows]
    label_width = max(int(font.getlength(label)) for label in labels)
    left = GAP + (label_width + 2 * GAP if label_width else 0)
    top = GAP + (line + GAP) * (bool(title) + bool(column_labels))
    heights = [
        max((cell.height for cell in row if cell is not None), default=line) for row in cells
    ]
    width = left + num_columns * (cell_width + GAP)
    sheet = Image.new("RGB", (width, top + sum(heights) + GAP * len(heights)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)

    if title:
        draw.text((GAP, GAP), shortened(title, font, width - 2 * GAP), INK, font)
    for column, label in enumerate(column_labels[:num_columns]):
        middle = left + column * (cell_width + GAP) + cell_width // 2
        text = shortened(label, font, cell_width)
        draw.text((middle, top - line - GAP), text, FAINT, font, anchor="ma")
    y = top
    for label, row, height in zip(labels, cells, heights, strict=True):
        draw.text((GAP, y + height // 2), label, INK, font, anchor="lm")
        for column, cell in enumerate(row):
            if cell is not None:
                sheet.paste(cell, (left + column * (cell_width + GAP), y))
        y += height + GAP
    return sheet


def _fitted(picture: Picture, width: int) -> Image.Image:
    image = as_image(picture)
    return resized(image, width, max(1, round(image.height * width / image.width)))
