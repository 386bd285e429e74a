"""Labelled video grids: many clips playing side by side, to be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

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

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]
    Clip = Iterable[Frame]

# Neither side of a grid becomes longer than this, unless the user asks for wide cells.
LONGEST_SIDE = 1920
# No cell becomes narrower than this, however many there are: nothing would be seen in it.
_NARROWEST = 48
# Width over height that a grid should have: a little wider than a screen, as labels add height.
_PLEASING = 2.15
# A cell that stays empty in a full grid counts as much as this much of the logarithm of the shape.
_EMPTINESS = 3.0


def grid_frames(
    clips: Mapping[str, Clip],
    *,
    num_columns: int | None = None,
    title: str = "",
    cell_width: int | None = None,
) -> Iterator[Frame]:
    """All clips playing together in labelled cells, in reading order, for `write_video`.

    Frames are pulled one at a time from each clip, so clips may be generators of any length. A clip
    that ends before the others holds its last frame; frames of other shapes are fitted into the
    cell, whose shape is that of the first clip. Generators are closed at the end, also when the
    grid is closed before.

    Args:
        clips: label -> its frames, uint8 `(height, width, 3)`.
        num_columns: None takes what makes a pleasing rectangle: 14 clips become five by three.
        title: a line above everything.
        cell_width: pixels; None takes the first clip's own width, or less where the grid would
            become longer than 1920 pixels on a side.

    Returns:
        Frames of one even size, as H.264 needs it, as many as the longest clip has.

    Raises:
        ValueError: no clips, a clip without frames, a frame that is no picture, or a number of
            columns or pixels below 1.
    """
    if not clips:
        raise ValueError("a grid needs at least one clip")
    _check(cell_width, num_columns)
    return _grid(clips, num_columns, title, cell_width)


def table_frames(
    rows: Mapping[str, Mapping[str, Clip]],
    *,
    title: str = "",
    cell_width: int | None = None,
) -> Iterator[Frame]:
    """Clips of two dials playing together: row labels on the left, column labels on top.

    Args:
        rows: label of a row -> label of a column -> frames. Columns stand in the order in which
            they are met first; a row may lack some, which leaves their cells empty.
        title, cell_width: as in `grid_frames`.

    Returns:
        As `grid_frames`.

    Raises:
        ValueError: as `grid_frames`.
    """
    if not any(rows.values()):
        raise ValueError("a table needs at least one clip")
    _check(cell_width, None)
    return _table(rows, title, cell_width)


def pleasing_columns(count: int, aspect: float) -> int:
    """The number of columns in which cells make a rectangle that is neither long nor gappy.

    Args:
        count: of cells.
        aspect: width over height of one.
    """

    def displeasing(columns: int) -> float:
        rows = math.ceil(count / columns)
        shape = abs(math.log(columns * aspect / rows / _PLEASING))
        return shape + _EMPTINESS * (1 - count / (columns * rows))

    return min(range(1, count + 1), key=displeasing)


@dataclass(frozen=True, slots=True)
class _Page:
    """Everything that does not move, and where the clips are put.

    Attributes:
        picture: background and text.
        corners: top left corner of each clip's cell.
        cell: width and height of each.
    """

    picture: Image.Image
    corners: list[tuple[int, int]]
    cell: tuple[int, int]


class _Player:
    """Frames of one clip; holds the last one when there are no more."""

    def __init__(self, label: str, frames: Clip) -> None:
        self._frames = iter(frames)
        first = next(self._frames, None)
        if first is None:
            raise ValueError(f"the clip {label!r} has no frames")
        self.image = as_image(first)
        self.playing = True

    def advance(self) -> bool:
        """Whether there is another frame, which `image` then is."""
        following = next(self._frames, None) if self.playing else None
        self.playing = following is not None
        if following is not None:
            self.image = as_image(following)
        return self.playing

    def close(self) -> None:
        """Ends a generator, and what it holds open."""
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()


def _grid(
    clips: Mapping[str, Clip], num_columns: int | None, title: str, cell_width: int | None
) -> Iterator[Frame]:
    players: list[_Player] = []
    try:
        players += [_Player(label, frames) for label, frames in clips.items()]
        width, height = players[0].image.size
        columns = num_columns or pleasing_columns(len(players), width / height)
        shape = (math.ceil(len(players) / columns), min(columns, len(players)))
        cell = _cell_size((width, height), shape, cell_width)
        yield from _play(_grid_page(list(clips), shape, cell, title), players)
    finally:
        _close(players)


def _table(
    rows: Mapping[str, Mapping[str, Clip]], title: str, cell_width: int | None
) -> Iterator[Frame]:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    players: list[_Player] = []
    places: list[tuple[int, int]] = []
    try:
        for index, (name, row) in enumerate(rows.items()):
            for column, frames in row.items():
                players.append(_Player(f"{name}, {column}", frames))
                places.append((index, columns.index(column)))
        shape = (len(rows), len(columns))
        cell = _cell_size(players[0].image.size, shape, cell_width)
        beside = _table_left(list(rows), cell[0])
        cell = _cell_size(players[0].image.size, shape, cell_width, beside)
        yield from _play(_table_page(list(rows), columns, places, cell, title), players)
    finally:
        _close(players)


def _play(page: _Page, players: list[_Player]) -> Iterator[Frame]:
    import numpy as np

    picture = page.picture.copy()
    moved = players
    while moved:
        for corner, player in zip(page.corners, players, strict=True):
            if player in moved:
                picture.paste(_in_cell(player.image, page.cell), corner)
        yield np.array(picture)
        moved = [player for player in players if player.advance()]


def _grid_page(
    labels: list[str], shape: tuple[int, int], cell: tuple[int, int], title: str
) -> _Page:
    """The page of a grid: the labels stand under the cells."""
    num_rows, num_columns = shape
    font = label_font(cell[0])
    line = line_height(font)
    top = GAP + (line + GAP) * bool(title)
    step = cell[0] + GAP, cell[1] + line + 2 * GAP
    page = _blank(GAP + num_columns * step[0], top + num_rows * step[1])
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), shortened(title, font, page.width - 2 * GAP), INK, font)
    corners = []
    for index, label in enumerate(labels):
        row, column = divmod(index, num_columns)
        x, y = GAP + column * step[0], top + row * step[1]
        corners.append((x, y))
        middle = (x + cell[0] // 2, y + cell[1] + GAP // 2)
        draw.text(middle, shortened(label, font, cell[0]), INK, font, anchor="ma")
    return _Page(page, corners, cell)


def _table_page(
    row_labels: list[str],
    column_labels: list[str],
    places: list[tuple[int, int]],
    cell: tuple[int, int],
    title: str,
) -> _Page:
    """The page of a table; `places` are row and column of each clip."""
    font = label_font(cell[0])
    line = line_height(font)
    names = [shortened(label, font, cell[0]) for label in row_labels]
    left = _table_left(row_labels, cell[0])
    top = GAP + (line + GAP) * (1 + bool(title))
    step = cell[0] + GAP, cell[1] + GAP
    page = _blank(left + len(column_labels) * step[0], top + len(row_labels) * step[1])
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), shortened(title, font, page.width - 2 * GAP), INK, font)
    for row, name in enumerate(names):
        draw.text((GAP, top + row * step[1] + cell[1] // 2), name, INK, font, anchor="lm")
    for column, label in enumerate(column_labels):
        middle = (left + column * step[0] + cell[0] // 2, top - line - GAP)
        draw.text(middle, shortened(label, font, cell[0]), FAINT, font, anchor="ma")
    corners = [(left + column * step[0], top + row * step[1]) for row, column in places]
    return _Page(page, corners, cell)


def _table_left(row_labels: list[str], cell_width: int) -> int:
    """Where a table's cells begin; no label takes more room than a cell."""
    font = label_font(cell_width)
    names = [shortened(label, font, cell_width) for label in row_labels]
    return 2 * GAP + max(int(font.getlength(name)) for name in names)


def _cell_size(
    clip: tuple[int, int], shape: tuple[int, int], cell_width: int | None, beside: int = GAP
) -> tuple[int, int]:
    """Width and height of a cell for clips of some size, in so many rows and columns.

    `beside` is the room to the left of all.
    """
    width, height = clip
    if cell_width is None:
        num_rows, num_columns = shape
        wide = (LONGEST_SIDE - beside) // num_columns - GAP
        # Each row has a line of text too, of 30 pixels at most with its gaps.
        tall = (LONGEST_SIDE - GAP) // num_rows - 30
        cell_width = max(_NARROWEST, min(width, wide, tall * width // height))
    return cell_width, max(1, round(cell_width * height / width))


def _in_cell(image: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """The whole picture in the middle of a cell, as large as it can be."""
    share = min(cell[0] / image.width, cell[1] / image.height)
    fitted = resized(image, *(max(1, round(side * share)) for side in image.size))
    if fitted.size == cell:
        return fitted
    whole = Image.new("RGB", cell, BACKGROUND)
    whole.paste(fitted, ((cell[0] - fitted.width) // 2, (cell[1] - fitted.height) // 2))
    return whole


def _blank(width: int, height: int) -> Image.Image:
    """Background of at least this size, with even sides."""
    return Image.new("RGB", (width + width % 2, height + height % 2), BACKGROUND)


def _check(cell_width: int | None, num_columns: int | None) -> None:
    for name, value in (("cell_width", cell_width), ("num_columns", num_columns)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _close(players: list[_Player]) -> None:
    for player in players:
        player.close()
