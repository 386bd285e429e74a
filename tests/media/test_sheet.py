"""Contact sheets: every picture in its place, every label drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from osp_cli.errors import InvalidRequestError
from osp_cli.media.sheet import contact_sheet, labelled_grid, save_sheet

RED, GREEN, BLUE, WHITE = (200, 0, 0), (0, 200, 0), (0, 0, 200), (250, 250, 250)


def flat(colour: tuple[int, int, int], width: int = 60, height: int = 40) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def centre_of(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Centre (x, y) of all pixels of one exact colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(axis=-1))
    assert rows.size, f"{colour} is nowhere"
    return float(columns.mean()), float(rows.mean())


def test_rows_and_columns_are_where_they_belong():
    sheet = contact_sheet(
        {"first": [flat(RED), np.asarray(flat(GREEN))], "second": [None, flat(BLUE)]},
        cell_width=60,
    )
    red, green, blue = (centre_of(sheet, colour) for colour in (RED, GREEN, BLUE))
    assert red[1] == green[1] < blue[1]
    assert red[0] < green[0] == blue[0]
    assert sum((np.asarray(sheet) == RED).all(-1).ravel()) == 60 * 40


def test_pictures_keep_their_aspect():
    sheet = contact_sheet({"a": [flat(RED, 400, 100), flat(GREEN, 100, 200)]}, cell_width=80)
    pixels = np.asarray(sheet)
    for colour, shape in ((RED, (20, 80)), (GREEN, (160, 80))):
        rows, columns = np.nonzero((pixels == colour).all(axis=-1))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == shape


def test_labels_make_a_difference():
    plain = contact_sheet({"": [flat(RED)]}, cell_width=60)
    labelled = contact_sheet({"ghibli": [flat(RED)]}, cell_width=60)
    titled = contact_sheet({"": [flat(RED)]}, cell_width=60, title="t", column_labels=["frame 0"])
    assert labelled.width > plain.width
    assert labelled.height == plain.height
    assert titled.height > plain.height
    other = contact_sheet({"oil": [flat(RED)]}, cell_width=60, column_labels=["x"])
    assert other.tobytes() != labelled.tobytes()


def test_endless_labels_are_cut():
    sheet = contact_sheet(
        {"a very long label " * 20: [flat(RED)]},
        cell_width=60,
        title="long " * 500,
        column_labels=["column " * 50],
    )
    assert sheet.width < 4 * 60


def test_grid_reads_like_text_and_wraps():
    pictures = {"one": flat(RED), "two": flat(GREEN), "three": flat(BLUE)}
    sheet = labelled_grid(pictures, num_columns=2, cell_width=60, title="grid")
    red, green, blue = (centre_of(sheet, colour) for colour in (RED, GREEN, BLUE))
    assert red[1] == green[1] < blue[1]
    assert red[0] == blue[0] < green[0]
    renamed = labelled_grid(
        {"one": flat(RED), "two": flat(GREEN), "THREE": flat(BLUE)},
        num_columns=2,
        cell_width=60,
        title="grid",
    )
    assert renamed.tobytes() != sheet.tobytes()


def test_misuse():
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet({})
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet({"a": [None]})
    with pytest.raises(ValueError, match="at least one picture"):
        labelled_grid({}, num_columns=2)
    with pytest.raises(ValueError, match="uint8 of shape"):
        contact_sheet({"a": [np.zeros((3, 8, 8), np.uint8)]})


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG")]
)
def test_saving(tmp_path, name, kind):
    sheet = contact_sheet({"a": [flat(WHITE)]}, cell_width=60)
    path = save_sheet(sheet, tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    with Image.open(path) as reopened:
        assert reopened.format == kind
        assert reopened.size == sheet.size


def test_unknown_format(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"\.png"):
        save_sheet(flat(RED), tmp_path / "sheet.xyz")
    assert list(tmp_path.iterdir()) == []
