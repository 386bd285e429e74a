"""GIF and WebP: the frames that went in, for as long as they should be seen."""

from __future__ import annotations

import io
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.animations import (
    read_gif_comments,
    read_webp_description,
    write_gif,
    write_webp,
)
from osp_cli.media.frames import checked_frames, durations
from osp_cli.media.video import probe_video

WRITERS = pytest.mark.parametrize("write", [write_gif, write_webp])


def shown(path) -> tuple[list[np.ndarray], list[int]]:
    """Frames and their milliseconds, as a viewer that is not ffmpeg sees them."""
    frames, delays = [], []
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            delays.append(image.info["duration"])
    return frames, delays


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def drifting(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A soft gradient that moves, so that no two frames are equal."""
    rows, columns = np.mgrid[0:height, 0:width]
    clip = np.empty((num_frames, height, width, 3), np.uint8)
    for index, frame in enumerate(clip):
        wave = 90 + 60 * np.sin((columns + 3 * index) / 11)
        frame[:] = np.stack([wave, 40 + 3 * rows, 200 - wave / 2], -1)
    return clip


@WRITERS
def test_frames_come_back_in_order(tmp_path, frames, write):
    size = write(frames, tmp_path / "clip", fps=16)
    assert size == (tmp_path / "clip").stat().st_size
    found, _ = shown(tmp_path / "clip")
    assert len(found) == len(frames)
    for index, frame in enumerate(found):
        scores = [psnr(frame, other) for other in frames]
        assert int(np.argmax(scores)) == index
        assert scores[index] > 26


def test_slow_changes_do_not_pile_up_in_a_webp(tmp_path):
    clip = drifting(24)
    write_webp(clip, tmp_path / "clip.webp", fps=16)
    found, _ = shown(tmp_path / "clip.webp")
    assert min(psnr(one, other) for one, other in zip(found, clip, strict=True)) > 38


def test_what_stands_still_stays_still_in_a_gif(tmp_path):
    clip = drifting(12)
    clip[:, :, 32:] = clip[0, :, 32:]
    write_gif(clip, tmp_path / "clip.gif", fps=16)
    found, _ = shown(tmp_path / "clip.gif")
    for one, other in itertools.pairwise(found):
        np.testing.assert_array_equal(one[:, 32:], other[:, 32:])
        assert (one[:, :32] != other[:, :32]).any()


@pytest.mark.parametrize(
    ("fps", "num_frames"), [(16, 49), (16, 17), (24, 49), (30, 31), (7.5, 9), (50, 20), (1, 3)]
)
def test_a_gif_lasts_as_long_as_the_clip(tmp_path, fps, num_frames):
    write_gif(drifting(num_frames), tmp_path / "clip.gif", fps=fps)
    found, delays = shown(tmp_path / "clip.gif")
    assert len(found) == num_frames
    # No frame may start more than one hundredth of a second away from its time.
    for index, start in enumerate(itertools.accumulate(delays, initial=0)):
        assert abs(start - 1000 * index / fps) <= 10, index
    # Browsers show shorter delays as a tenth of a second.
    assert min(delays) >= 20


def test_49_frames_at_16_fps_are_306_hundredths(tmp_path):
    write_gif(drifting(49), tmp_path / "clip.gif", fps=16)
    _, delays = shown(tmp_path / "clip.gif")
    assert sum(delays) == 3060
    assert set(delays) == {60, 70}


@pytest.mark.parametrize(("fps", "num_frames"), [(16, 49), (24, 49), (30, 31), (7.5, 9), (120, 9)])
def test_a_webp_lasts_as_long_as_the_clip(tmp_path, fps, num_frames):
    write_webp(drifting(num_frames), tmp_path / "clip.webp", fps=fps)
    found, delays = shown(tmp_path / "clip.webp")
    assert len(found) == num_frames
    for index, start in enumerate(itertools.accumulate(delays, initial=0)):
        assert abs(start - 1000 * index / fps) <= 0.5, index


@WRITERS
def test_a_clip_that_pauses_lasts_as_long(tmp_path, write):
    clip = drifting(33)
    clip[5:20] = clip[5]
    clip[25:] = clip[25]
    write(clip, tmp_path / "clip", fps=16)
    _, delays = shown(tmp_path / "clip")
    assert sum(delays) == pytest.approx(33 * 62.5, abs=10)


@given(
    num_frames=st.integers(0, 300),
    fps=st.fractions(Fraction(1, 2), 120, max_denominator=1001),
    per_second=st.sampled_from([100, 1000]),
)
def test_durations_never_drift(num_frames, fps, per_second):
    found = durations(num_frames, fps, per_second=per_second)
    assert len(found) == num_frames
    for index, start in enumerate(itertools.accumulate(found, initial=0)):
        assert abs(start - index * per_second / fps) <= Fraction(1, 2)


@WRITERS
@pytest.mark.parametrize("size", [(33, 47), (1, 1), (3, 64), (64, 3)])
def test_odd_sizes(tmp_path, write, size):
    clip = drifting(5, *size)
    write(clip, tmp_path / "clip", fps=16)
    found, _ = shown(tmp_path / "clip")
    assert found[0].shape == (*size, 3)


@WRITERS
def test_single_frame(tmp_path, frames, write):
    write(frames[:1], tmp_path / "clip", fps=16)
    with Image.open(tmp_path / "clip") as image:
        assert image.n_frames == 1
        assert psnr(np.asarray(image.convert("RGB")), frames[0]) > 26


@WRITERS
def test_same_frames_give_the_same_bytes(tmp_path, write):
    noise = np.random.default_rng(0).integers(0, 256, (10, 48, 64, 3), dtype=np.uint8)
    write(noise, tmp_path / "a", fps=16, comment="recipe")
    write((frame for frame in noise), tmp_path / "b", fps=16, comment="recipe")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write(noise[::-1], tmp_path / "c", fps=16, comment="recipe")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@WRITERS
def test_strided_frames(tmp_path, frames, write):
    write(frames[:, :, ::-1], tmp_path / "a", fps=16)
    write([np.ascontiguousarray(frame[:, ::-1]) for frame in frames], tmp_path / "b", fps=16)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@WRITERS
@pytest.mark.parametrize(
    ("clip", "complaint"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), "no frames"),
        (np.zeros((2, 0, 8, 3), np.uint8), "no pixels"),
        (np.zeros((2, 8, 8, 4), np.uint8), "uint8 of shape"),
        (np.zeros((2, 8, 8, 3), np.float32), "uint8 of shape"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 16, 3), np.uint8)], "16x8 after 8x8"),
    ],
)
def test_frames_that_are_no_video(tmp_path, write, clip, complaint):
    with pytest.raises(ValueError, match=complaint):
        write(clip, tmp_path / "clip", fps=16)
    assert list(tmp_path.iterdir()) == []


@WRITERS
@pytest.mark.parametrize("bad", [{"fps": 0}, {"fps": -1}, {"comment": "é"}])
def test_misuse(tmp_path, frames, write, bad):
    with pytest.raises(ValueError):
        write(frames, tmp_path / "clip", **bad)
    assert list(tmp_path.iterdir()) == []


def test_a_gif_has_no_room_for_more_than_fifty_frames_a_second(tmp_path, frames):
    with pytest.raises(ValueError, match="at most 50"):
        write_gif(frames, tmp_path / "clip.gif", fps=51)


@pytest.mark.parametrize("length", [0, 1, 254, 255, 256, 510, 511, 70_000])
def test_comments_of_every_length(tmp_path, frames, length):
    text = "".join(chr(33 + index % 90) for index in range(length))
    write_gif(frames, tmp_path / "clip.gif", fps=16, comment=text)
    assert list(read_gif_comments(tmp_path / "clip.gif", max_bytes=2**20)) == [text] * bool(text)
    write_webp(frames, tmp_path / "clip.webp", fps=16, comment=text)
    assert (read_webp_description(tmp_path / "clip.webp", max_bytes=2**20) or "") == text
    # Players still see the same clip.
    assert probe_video(tmp_path / "clip.gif").num_frames == len(frames)
    for name in ("clip.gif", "clip.webp"):
        assert len(shown(tmp_path / name)[0]) == len(frames)


def test_others_read_the_comment_too(tmp_path, frames):
    write_gif(frames, tmp_path / "clip.gif", comment="a recipe")
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.info["comment"] == b"a recipe"
    write_webp(frames, tmp_path / "clip.webp", comment="a recipe")
    with Image.open(tmp_path / "clip.webp") as image:
        assert image.getexif()[0x010E] == "a recipe"


def test_without_a_comment_there_is_none(tmp_path, frames):
    write_gif(frames, tmp_path / "clip.gif")
    assert list(read_gif_comments(tmp_path / "clip.gif", max_bytes=100)) == []
    write_webp(frames, tmp_path / "clip.webp")
    assert read_webp_description(tmp_path / "clip.webp", max_bytes=100) is None


def test_comments_of_other_programs(tmp_path, frames):
    pictures = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], comment="hand made " * 60
    )
    path = tmp_path / "other.gif"
    path.write_bytes(buffer.getvalue())
    assert list(read_gif_comments(path, max_bytes=1000)) == ["hand made " * 60]
    assert list(read_gif_comments(path, max_bytes=10)) == []


@given(cut=st.integers(0, 3000))
def test_a_gif_cut_off_anywhere_is_refused_in_a_sentence(tmp_path_factory, cut):
    path = tmp_path_factory.getbasetemp() / "whole.gif"
    if not path.exists():
        write_gif(drifting(4), path, fps=16, comment="recipe " * 50)
    part = path.with_name("cut.gif")
    part.write_bytes(path.read_bytes()[:cut])
    assert cut < path.stat().st_size
    with pytest.raises(UnreadableMediaError, match=r"cut\.gif"):
        list(read_gif_comments(part, max_bytes=2**20))


@given(data=st.binary(max_size=200))
def test_garbage_in_a_webp_never_escapes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "garbage.webp"
    exif = b"EXIF" + len(data).to_bytes(4, "little") + data
    path.write_bytes(b"RIFF\xff\xff\0\0WEBP" + exif)
    found = read_webp_description(path, max_bytes=1000)
    assert found is None or isinstance(found, str)
    path.write_bytes(b"RIFF\xff\xff\0\0WEBP" + data)
    read_webp_description(path, max_bytes=1000)


def test_frames_are_pulled_one_at_a_time(frames):
    pulled = []

    def source():
        for index, frame in enumerate(frames):
            pulled.append(index)
            yield frame

    checked = checked_frames(source())
    next(checked)
    assert pulled == [0]
