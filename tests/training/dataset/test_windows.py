"""Windows show the right frames, do not overlap, and follow from the content alone."""

from __future__ import annotations

import runpy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from osp_cli.errors import UnreadableMediaError
from osp_cli.training.dataset.entries import Entry, Window
from osp_cli.training.dataset.windows import read_source, read_window, window_starts

clips = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "media" / "clips.py")))


BITS = 8


def counted(count, width=64, height=48):
    """Frames whose number is written in eight stripes, black or white."""
    bits = (np.arange(count)[:, None] >> np.arange(BITS)) & 1
    stripes = np.repeat(bits * 215 + 20, width // BITS, axis=1).astype(np.uint8)
    return np.broadcast_to(stripes[:, None, :, None], (count, height, width, 3))


def numbers(frames):
    """The numbers of such frames, of any size."""
    count, _, width, _ = frames.shape
    stripes = frames.reshape(count, -1, BITS, width // BITS, 3).mean(axis=(1, 3, 4))
    return ((stripes > 128) << np.arange(BITS)).sum(axis=1).tolist()


def window(path, num_frames, *, start=0.0, kind="video", size=(64, 48), source=None):
    entry = Entry(path=path, kind=kind, caption="x", place=path.name, source=source)
    return Window(entry=entry, start=start, num_frames=num_frames, size=size, content="c")


@given(
    available=st.integers(0, 300),
    num_frames=st.integers(1, 90),
    most=st.integers(1, 6),
    seed=st.integers(0, 9),
    identity=st.text(max_size=3),
)
def test_windows_are_inside_and_apart(available, num_frames, most, seed, identity):
    starts = window_starts(available, num_frames, most, seed=seed, identity=identity)
    assert len(starts) == min(most, available // num_frames)
    assert all(0 <= start <= available - num_frames for start in starts)
    assert all(after - before >= num_frames for before, after in pairwise(starts))
    assert starts == window_starts(available, num_frames, most, seed=seed, identity=identity)


def test_windows_are_anywhere():
    seen = {window_starts(20, 17, 1, seed=0, identity=str(k))[0] for k in range(100)}
    assert seen == {0, 1, 2, 3}


def test_49_frames_at_16_fps_out_of_24(tmp_path):
    path = clips.make(tmp_path / "c.mp4", counted(96), fps=24)
    frames = read_window(window(path, 49), 16)
    assert frames.dtype == np.uint8
    assert frames.shape == (49, 48, 64, 3)
    # The last that began at k / 16 seconds at the latest: it takes 73 of them.
    assert numbers(frames) == [k * 24 // 16 for k in range(49)]
    later = read_window(window(path, 17, start=10 / 16), 16)
    assert numbers(later) == [(k + 10) * 24 // 16 for k in range(17)]
    # A cut begins anywhere, between frames too.
    odd = read_window(window(path, 17, start=0.7), 16)
    assert numbers(odd) == [int((0.7 + k / 16) * 24 + 1e-6) for k in range(17)]


def test_frames_of_uneven_length_go_by_their_times(tmp_path):
    # Four frames at 20 fps, then one for half a second, over and over.
    times = np.concatenate([np.arange(5) * 0.05 + 0.7 * part for part in range(4)])
    raw = clips.make(tmp_path / "raw.mp4", counted(20), fps=20)
    path = tmp_path / "v.mkv"
    shown = "if(eq(N,0),0,PREV_OUTPTS+if(mod(N,5),0.05,0.5)/TB)"
    clips.run(
        *("-i", raw, "-vf", f"setpts='{shown}'", "-fps_mode", "vfr", "-enc_time_base", "1:1000"),
        *(*clips.LOSSLESS, path),
    )
    expected = [int(np.searchsorted(times, k / 16 + 2e-3) - 1) for k in range(33)]
    assert numbers(read_window(window(path, 33), 16)) == expected


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_nth_frame_of_the_file(tmp_path, stride):
    path = clips.make(tmp_path / "c.mp4", counted(40), fps="30000/1001")
    start = 2 * 1001 / 30000
    frames = read_window(window(path, 9, start=start), 16, stride)
    assert numbers(frames) == [2 + stride * k for k in range(9)]


def test_numbered_pictures(tmp_path):
    for number, frame in enumerate(counted(14)):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    frames = read_window(window(tmp_path, 9, start=2 / 16, kind="frames"), 16)
    assert numbers(frames) == list(range(2, 11))
    strided = read_window(window(tmp_path, 5, kind="frames"), 16, 3)
    assert numbers(strided) == [0, 3, 6, 9, 12]
    with pytest.raises(UnreadableMediaError, match="5 of 9"):
        read_window(window(tmp_path, 9, kind="frames"), 16, 3)


def test_pictures_are_covered_and_cut_at_their_centre(tmp_path):
    picture = np.zeros((40, 120, 3), np.uint8)
    picture[:, 40:80] = 255
    path = tmp_path / "p.png"
    Image.fromarray(picture).save(path)
    frames = read_window(window(path, 1, kind="image", size=(20, 20)), 16)
    assert frames.shape == (1, 20, 20, 3)
    assert frames.min() > 230
    source = read_source(window(tmp_path / "gone.mp4", 9, size=(20, 20), source=path))
    assert source.size == (20, 20)
    assert source.mode == "RGB"
    assert np.array_equal(np.asarray(source), frames[0])
    with pytest.raises(ValueError, match="no picture of its own"):
        read_source(window(path, 1, kind="image"))
