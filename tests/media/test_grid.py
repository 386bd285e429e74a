"""Video grids: every clip in its place, playing, whatever its length and size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from osp_cli.media.drawing import BACKGROUND
from osp_cli.media.grid import LONGEST_SIDE, grid_frames, pleasing_columns, table_frames
from osp_cli.media.video import probe_video, write_video

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def flat(colour, count=1, width=60, height=40):
    return np.broadcast_to(np.array(colour, np.uint8), (count, height, width, 3))


def place_of(frame, colour):
    """Left, top, right and bottom edge of all pixels of one exact colour."""
    rows, columns = np.nonzero((frame == colour).all(axis=-1))
    assert rows.size, f"{colour} is nowhere"
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_cells_read_like_text_and_the_end_of_the_last_row_stays_empty():
    clips = {"one": flat(RED), "two": flat(GREEN), "three": flat(BLUE)}
    (frame,) = grid_frames(clips, num_columns=2, title="three clips")
    red, green, blue = (place_of(frame, colour) for colour in (RED, GREEN, BLUE))
    assert red[1] == green[1] and red[3] < blue[1]
    assert red[0] == blue[0] and red[2] < green[0]
    for left, top, right, bottom in (red, green, blue):
        assert (right - left, bottom - top) == (60, 40)
    left, _, right, _ = green
    _, top, _, bottom = blue
    assert (frame[top:bottom, left:right] == BACKGROUND).all()
    assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0


def test_labels_stand_under_their_cells_and_long_ones_are_cut():
    (plain,) = grid_frames({"": flat(RED), " ": flat(GREEN)}, num_columns=2)
    (named,) = grid_frames({"ink": flat(RED), "x" * 999: flat(GREEN)}, num_columns=2)
    assert named.shape == plain.shape
    changed = np.nonzero((plain != named).any(-1))
    assert changed[0].min() >= place_of(named, RED)[3]
    assert changed[1].max() < place_of(named, GREEN)[2]
    assert changed[1].min() < place_of(named, RED)[2]
    (titled,) = grid_frames({"": flat(RED), " ": flat(GREEN)}, num_columns=2, title="t")
    assert titled.shape[0] > plain.shape[0] and titled.shape[1] == plain.shape[1]


def test_clips_play_together_and_the_shorter_holds_its_last_frame():
    long = [flat((step, 0, 0))[0] for step in (100, 110, 120, 130)]
    short = [flat((0, step, 0))[0] for step in (200, 210)]
    frames = list(grid_frames({"long": long, "short": short}))
    assert len(frames) == 4
    for frame, red, green in zip(frames, (100, 110, 120, 130), (200, 210, 210, 210), strict=True):
        place_of(frame, (red, 0, 0))
        place_of(frame, (0, green, 0))
    # A frame that was handed out is not drawn over.
    assert not (frames[0] == frames[1]).all()


def test_other_sizes_are_fitted_into_the_cell_of_the_first():
    (frame,) = grid_frames({"wide": flat(RED, 1, 80, 40), "tall": flat(GREEN, 1, 40, 80)})
    left, top, right, bottom = place_of(frame, GREEN)
    assert (right - left, bottom - top) == (20, 40)
    _, red_top, red_right, red_bottom = place_of(frame, RED)
    assert (top, bottom) == (red_top, red_bottom)
    assert left - (red_right + 6) == 30


def test_one_frame_of_each_clip_is_pulled_at_a_time_and_generators_are_closed():
    pulled, closed = [], []

    def endless(name) -> Iterator[np.ndarray]:
        try:
            while True:
                pulled.append(name)
                yield flat(RED)[0]
        finally:
            closed.append(name)

    grid = grid_frames({"a": endless("a"), "b": endless("b")})
    assert pulled == []
    next(grid)
    next(grid)
    assert sorted(pulled) == ["a", "a", "b", "b"]
    grid.close()
    assert sorted(closed) == ["a", "b"]


@pytest.mark.parametrize(
    ("count", "size", "columns"),
    [
        (1, (832, 480), 1),
        (2, (832, 480), 2),
        (3, (832, 480), 3),
        (4, (832, 480), 2),
        (6, (832, 480), 3),
        (9, (832, 480), 3),
        (13, (448, 256), 5),
        (14, (448, 256), 5),
        (14, (672, 384), 5),
        (14, (352, 352), 5),
        (14, (256, 448), 7),
    ],
)
def test_columns_make_a_pleasing_rectangle(count, size, columns):
    assert pleasing_columns(count, size[0] / size[1]) == columns


@pytest.mark.parametrize("size", [(672, 384), (384, 672), (352, 352)])
@pytest.mark.parametrize("count", [1, 5, 14, 40])
def test_a_grid_keeps_a_sane_size(size, count):
    clips = {str(index): flat(RED, 1, *size) for index in range(count)}
    (frame,) = grid_frames(clips, title="many")
    assert max(frame.shape) <= LONGEST_SIDE
    assert (frame == RED).all(-1).mean() > 0.5
    # Wide cells are had by asking for them.
    (asked,) = grid_frames(clips, num_columns=count, cell_width=100)
    assert abs(asked.shape[1] - count * 106) <= 8


def test_tables_have_two_dials():
    rows = {
        "0.1": {"seed 1": flat(RED, 2), "seed 2": flat(GREEN, 3)},
        "0.5": {"seed 2": flat(BLUE)},
    }
    frames = list(table_frames(rows, title="cutoff by seed"))
    assert len(frames) == 3
    red, green, blue = (place_of(frames[-1], colour) for colour in (RED, GREEN, BLUE))
    assert red[1] == green[1] < blue[1] and red[0] < green[0] == blue[0]
    empty = frames[-1][blue[1] : blue[3], red[0] : red[2]]
    assert (empty == BACKGROUND).all()
    wide = {
        "a rather long label of a row": {str(seed): flat(RED, 1, 672, 384) for seed in range(9)}
    }
    (limited,) = table_frames(wide)
    assert max(limited.shape) <= LONGEST_SIDE
    nameless = {" ": {"": flat(RED), " ": flat(GREEN)}, "": {" ": flat(BLUE)}}
    (bare,) = table_frames(nameless, title="cutoff by seed")
    assert bare.shape[1] < frames[0].shape[1]


def test_a_grid_becomes_a_video(tmp_path):
    clips = {name: flat(RED, 3, 61, 41) for name in "abc"}
    write_video(grid_frames(clips, title="odd"), tmp_path / "grid.mp4")
    assert probe_video(tmp_path / "grid.mp4").num_frames == 3


def test_misuse():
    with pytest.raises(ValueError, match="at least one clip"):
        grid_frames({})
    with pytest.raises(ValueError, match="at least one clip"):
        table_frames({"a": {}})
    with pytest.raises(ValueError, match="num_columns"):
        grid_frames({"a": flat(RED)}, num_columns=0)
    with pytest.raises(ValueError, match="cell_width"):
        table_frames({"a": {"b": flat(RED)}}, cell_width=0)
    with pytest.raises(ValueError, match="'empty' has no frames"):
        next(grid_frames({"a": flat(RED), "empty": []}))
    with pytest.raises(ValueError, match="uint8 of shape"):
        next(grid_frames({"a": np.zeros((2, 8, 8, 3), np.float32)}))
