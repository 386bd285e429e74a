"""Any video as a stream of frames: by pixels and by time stamps."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import runpy
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from osp_cli.errors import UnreadableMediaError
from osp_cli.media import source_probe, source_video
from osp_cli.media.source_video import probe_source, read_frames
from osp_cli.media.video import read_video, write_video

_CLIPS = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "clips.py")))
HEIGHT, LOSSLESS, WIDTH = _CLIPS.HEIGHT, _CLIPS.LOSSLESS, _CLIPS.WIDTH
make, numbered, numbers, run = _CLIPS.make, _CLIPS.numbered, _CLIPS.numbers, _CLIPS.run

SIZE = (WIDTH, HEIGHT)
MPEG4 = ("-c:v", "mpeg4", "-q:v", "2")


def shown(path: Path, fps, **kwargs) -> list[int]:
    source = probe_source(path)
    got = numbers(read_frames(source, SIZE, fps, **kwargs))
    if not kwargs:
        assert len(got) == source.num_frames_at(fps)
    return got


def at(times: list[float], end: float, fps) -> list[int]:
    """What a player shows at k / fps: the last picture that has begun."""
    instants = itertools.takewhile(
        lambda instant: instant < Fraction(end) - Fraction(1, 800),
        (k / Fraction(fps) for k in itertools.count()),
    )
    return [sum(start <= instant + Fraction(1, 900) for start in times) - 1 for instant in instants]


# --- rates ------------------------------------------------------------------------------------

CONTAINERS = {
    "clip.mp4": LOSSLESS,
    "clip.mov": ("-c:v", "prores"),
    "clip.mkv": LOSSLESS,
    "clip.ts": LOSSLESS,
    "clip.flv": LOSSLESS,
    "clip.avi": MPEG4,
    "clip.m2ts": ("-c:v", "mpeg2video", "-q:v", "2"),
    "clip.ogv": ("-c:v", "libtheora", "-q:v", "9"),
    "clip.webm": ("-c:v", "libvpx", "-crf", "4", "-b:v", "4M", "-auto-alt-ref", "0"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_constant_rate_in_every_container(tmp_path, name):
    # MPEG-2 knows only a few rates.
    rate = 25 if name.endswith("m2ts") else 16
    pixels = "yuv422p10le" if name.endswith("mov") else "yuv420p"
    path = make(tmp_path / name, numbered(24), "-pix_fmt", pixels, fps=rate, codec=CONTAINERS[name])
    source = probe_source(path)
    assert (source.width, source.height) == SIZE
    assert source.fps == rate
    assert source.duration == pytest.approx(24 / rate, abs=0.003)
    assert (source.num_frames, source.is_variable, source.notices) == (24, False, ())
    assert not source.has_audio
    assert shown(path, rate) == list(range(24))
    times = [k / rate for k in range(24)]
    for fps in (8, 10, 24, 50, Fraction(30000, 1001)):
        assert shown(path, fps) == at(times, 24 / rate, fps), fps


def test_own_videos_come_back_to_the_last_bit(tmp_path, frames):
    write_video(frames, tmp_path / "clip.mp4", fps=16)
    got = np.stack(list(read_frames(probe_source(tmp_path / "clip.mp4"), SIZE, 16)))
    np.testing.assert_array_equal(got, read_video(tmp_path / "clip.mp4"))
    assert got.dtype == np.uint8


def test_frames_of_ntsc(tmp_path):
    rate = Fraction(30000, 1001)
    path = make(tmp_path / "clip.mkv", numbered(28), fps=rate)
    assert probe_source(path).fps == rate
    assert shown(path, rate) == list(range(28))
    assert shown(path, 16) == at([float(k / rate) for k in range(28)], float(28 / rate), 16)


# Eight quick pictures, slow ones, a pause, and a quick end.
TIMES = [*(0.05 * k for k in range(8)), 0.4, 0.6, 0.8, 1.5, 1.54, 1.6]
VARIABLE = "+".join(f"eq(N,{n})*{time:.3f}" for n, time in enumerate(TIMES))


def variable(path: Path, *arguments: object, codec=LOSSLESS) -> Path:
    """A video of variable rate with pictures at `TIMES`."""
    stamps = (
        *("-vf", f"settb=1/1000,setpts='({VARIABLE})/TB'"),
        *("-fps_mode", "passthrough", "-enc_time_base", "1/1000"),
    )
    return make(path, numbered(len(TIMES)), *stamps, *arguments, codec=codec)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.mov", "clip.ts"])
def test_variable_rate_goes_by_time_stamps(tmp_path, name):
    path = variable(tmp_path / name)
    source = probe_source(path)
    assert source.is_variable
    assert source.num_frames == len(TIMES)
    for fps in (5, 16, Fraction(24000, 1001), 50):
        expected = at(TIMES, source.duration, fps)
        assert max(expected) == 13
        assert shown(path, fps) == expected, fps


def test_average_rate_of_a_variable_one(tmp_path):
    assert float(probe_source(variable(tmp_path / "clip.mkv")).fps) == pytest.approx(13 / 1.6, 0.01)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4", "clip.ts"])
def test_pictures_that_begin_after_the_sound(tmp_path, name):
    plain = make(tmp_path / "plain.mkv", numbered(16))
    tone = ("-f", "lavfi", "-i", "sine=d=2")
    late = ("-itsoffset", "0.7", "-i", plain, "-map", "1", "-map", "0", "-c:v", "copy")
    run(*tone, *late, "-c:a", "aac", tmp_path / name)
    source = probe_source(tmp_path / name)
    # AAC begins with a few milliseconds of silence of its own.
    assert source.start == pytest.approx(0.7, abs=0.03)
    assert source.duration == pytest.approx(1.0, abs=0.003)
    assert shown(tmp_path / name, 16) == list(range(16))
    assert shown(tmp_path / name, 8) == list(range(0, 16, 2))
    assert any("its pictures end after" in notice for notice in source.notices) is False


@pytest.mark.parametrize("offset", ["0.3", "90000.25"])
@pytest.mark.parametrize("name", ["clip.mkv", "clip.ts", "clip.mp4"])
def test_clocks_that_begin_anywhere(tmp_path, name, offset):
    path = make(tmp_path / name, numbered(16), "-output_ts_offset", offset)
    source = probe_source(path)
    assert source.duration == pytest.approx(1.0, abs=0.003)
    assert shown(path, 16) == list(range(16))


def test_what_lies_before_time_zero_is_not_shown(tmp_path):
    early = ("-output_ts_offset", "-0.5", "-avoid_negative_ts", "disabled")
    path = make(tmp_path / "clip.mp4", numbered(16), *early, "-bf", "0")
    assert probe_source(path).duration == pytest.approx(0.5, abs=0.003)
    assert shown(path, 16) == list(range(8, 16))


# --- parts ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory) -> Path:
    """Thirty seconds at 16 fps, frame k of the grey `k % 24`, key frames every 40."""
    path = tmp_path_factory.mktemp("long") / "long.mkv"
    clip = numbered(24)[np.arange(480) % 24]
    return make(path, clip, "-g", "40", "-bf", "3", codec=("-c:v", "libx264", "-crf", "4"))


@pytest.mark.parametrize("name", ["long.mkv", "long.mp4", "late.mp4", "long.ts"])
def test_a_part_is_what_the_whole_has_there(tmp_path, long_clip, name):
    path = tmp_path / name
    shift = ("-itsoffset", "3.3") if name.startswith("late") else ()
    tone = ("-f", "lavfi", "-i", "sine=d=5")
    run(*tone, *shift, "-i", long_clip, "-map", "1", "-map", "0", "-c:v", "copy", path)
    source = probe_source(path)
    whole = [frame.tobytes() for frame in read_frames(source, (16, 12), 12)]
    assert len(whole) == 360
    for start in (1, 130, 350):
        part = [frame.tobytes() for frame in read_frames(source, (16, 12), 12, start_frame=start)]
        assert part == whole[start:], start
    part = list(read_frames(source, (16, 12), 12, start_frame=200, num_frames=7))
    assert [frame.tobytes() for frame in part] == whole[200:207]


def test_a_part_of_a_variable_rate_begins_with_what_is_still_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(source_video, "_LEAD_SECONDS", 0.2)
    path = variable(tmp_path / "clip.mkv", "-g", "3")
    whole = shown(path, 24)
    for start in range(1, len(whole)):
        assert shown(path, 24, start_frame=start) == whole[start:]


def test_a_far_part_is_not_decoded_up_to(long_clip):
    arguments = source_video._arguments(probe_source(long_clip), SIZE, Fraction(16), 400, 10)
    assert float(arguments[arguments.index("-ss") + 1]) == pytest.approx(15.0, abs=0.01)


def test_what_is_no_part(tmp_path):
    source = probe_source(make(tmp_path / "clip.mkv", numbered(8)))
    for start, num in ((-1, 2), (8, 1), (0, 0)):
        with pytest.raises(ValueError, match="of 8 frames"):
            read_frames(source, SIZE, 16, start_frame=start, num_frames=num)
    with pytest.raises(ValueError, match="one pixel"):
        read_frames(source, (0, 8), 16)
    with pytest.raises(ValueError, match="positive"):
        read_frames(source, SIZE, 0)


def test_after_the_end_the_last_picture_stays(tmp_path):
    path = make(tmp_path / "clip.mkv", numbered(8))
    assert shown(path, 16, start_frame=5, num_frames=9) == [5, 6, 7, 7, 7, 7, 7, 7, 7]


@pytest.mark.parametrize(
    ("fps", "seconds", "expected"),
    [(16, None, 24), (16, 0.5, 8), (8, None, 12), (16, 9.0, 24), (10, 0.51, 6), (16, 1e-9, 1)],
)
def test_number_of_frames(tmp_path, fps, seconds, expected):
    source = probe_source(make(tmp_path / "clip.mkv", numbered(24)))
    assert source.num_frames_at(fps, seconds) == expected


# --- pixels -----------------------------------------------------------------------------------


def quarters() -> np.ndarray:
    """One second of four colours: red, green above blue, white."""
    clip = np.zeros((16, HEIGHT, WIDTH, 3), np.uint8)
    clip[:, :24, :32] = (250, 10, 10)
    clip[:, :24, 32:] = (10, 200, 10)
    clip[:, 24:, :32] = (10, 10, 250)
    clip[:, 24:, 32:] = (240, 240, 240)
    return clip


def corners(frame: np.ndarray) -> str:
    """The colours in the four corners, by their letters, row by row."""
    letters = {"r": (250, 10, 10), "g": (10, 200, 10), "b": (10, 10, 250), "w": (240, 240, 240)}
    height, width = frame.shape[:2]
    found = ""
    for row, column in itertools.product((height // 6, -height // 6), (width // 6, -width // 6)):
        pixel = frame[row, column].astype(int)
        found += min(letters, key=lambda name: np.abs(pixel - letters[name]).sum())
    return found


@pytest.mark.parametrize(
    ("turn", "expected", "size"),
    [
        (0, "rgbw", (64, 48)),
        (90, "brwg", (48, 64)),
        (180, "wbgr", (64, 48)),
        (270, "gwrb", (48, 64)),
    ],
)
def test_rotation_as_players_do(tmp_path, turn, expected, size):
    name = "clip.mkv" if turn == 90 else "clip.mp4"
    plain = make(tmp_path / "plain.mp4", quarters())
    # The option turns against the clock.
    run("-display_rotation", -turn, "-i", plain, "-c", "copy", tmp_path / name)
    source = probe_source(tmp_path / name)
    assert (source.rotation, source.width, source.height) == (turn, *size)
    frame = next(read_frames(source, size, 16))
    assert frame.shape == (size[1], size[0], 3)
    assert corners(frame) == expected


def test_pixels_that_are_not_square(tmp_path):
    path = make(tmp_path / "clip.mp4", quarters(), "-vf", "setsar=2/1")
    source = probe_source(path)
    assert (source.width, source.height) == (128, 48)
    frame = next(read_frames(source, (128, 48), 16))
    assert corners(frame) == "rgbw"
    # Scaled, not cut: the border of the colours stays in the middle.
    assert abs(int(np.argmax(frame[10, :, 1] > 105)) - 64) <= 1
    run("-display_rotation", 90, "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    turned = probe_source(tmp_path / "turned.mp4")
    assert (turned.width, turned.height) in {(48, 128), (24, 64)}
    assert turned.height / turned.width == pytest.approx(128 / 48)


def test_covers_and_cuts_the_centre(tmp_path):
    clip = np.zeros((4, 40, 120, 3), np.uint8)
    clip[:, :, :40], clip[:, :, 40:80], clip[:, :, 80:] = 30, 130, 230
    source = probe_source(make(tmp_path / "clip.mkv", clip))
    frame = next(read_frames(source, (36, 36), 16)).astype(int)
    assert np.abs(frame - 130).max() <= 12
    wide = next(read_frames(source, (90, 30), 16)).astype(int)
    assert [int(wide[15, column, 0]) for column in (5, 45, 85)] == pytest.approx(
        [30, 130, 230], abs=3
    )


@pytest.mark.parametrize("size", [(63, 47), (33, 65), (1, 1), (101, 7)])
def test_odd_sizes_on_both_sides(tmp_path, size):
    clip = np.full((3, 45, 61, 3), 100, np.uint8)
    source = probe_source(make(tmp_path / "clip.mkv", clip, "-pix_fmt", "yuv444p"))
    assert (source.width, source.height) == (61, 45)
    frames = list(read_frames(source, size, 16))
    assert [frame.shape for frame in frames] == [(size[1], size[0], 3)] * 3
    assert np.abs(np.stack(frames).astype(int) - 100).max() <= 2


def test_scaling_is_smooth(tmp_path):
    # Stripes of one pixel become grey, not stripes of another width.
    clip = np.zeros((2, 64, 64, 3), np.uint8)
    clip[:, :, ::2] = 200
    codec = ("-c:v", "ffv1")
    source = probe_source(make(tmp_path / "clip.mkv", clip, "-pix_fmt", "bgr0", codec=codec))
    frame = next(read_frames(source, (16, 16), 16)).astype(int)
    assert np.abs(frame[:, 2:-2] - 100).max() <= 4


COLOURS = [(200, 40, 30), (30, 160, 60), (40, 60, 220), (230, 200, 170)]


@pytest.mark.parametrize(
    ("size", "matrix", "tags"),
    [
        ((64, 48), "bt709", ("-colorspace", "bt709")),
        ((64, 48), "bt601", ()),
        ((1280, 96), "bt709", ()),
        ((1280, 96), "bt601", ("-colorspace", "smpte170m")),
        ((64, 48), "bt2020", ("-colorspace", "bt2020nc")),
    ],
)
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
def test_colours_by_tag_or_as_players_guess(tmp_path, size, matrix, tags, full):
    clip = np.stack([np.full((size[1], size[0], 3), colour, np.uint8) for colour in COLOURS])
    reach = "pc" if full else "tv"
    path = make(
        tmp_path / "clip.mp4",
        clip,
        *("-vf", f"scale=out_color_matrix={matrix}:out_range={reach},format=yuv420p"
          + ("" if tags else ",setparams=colorspace=unknown")),
        *tags, *("-color_range", reach),
    )  # fmt: skip
    frames = read_frames(probe_source(path), (32, 24), 16)
    for frame, colour in zip(frames, COLOURS, strict=True):
        assert np.abs(frame.astype(int) - colour).max() <= 4


@pytest.mark.parametrize(
    ("pixels", "codec", "depth"),
    [
        ("yuv420p10le", ("-c:v", "libx265", "-x265-params", "lossless=1:log-level=none"), 10),
        ("yuv422p10le", ("-c:v", "prores"), 10),
        ("gray16le", ("-c:v", "ffv1"), 16),
        ("rgb48be", ("-c:v", "png"), 16),
        ("gray", ("-c:v", "ffv1"), 8),
        ("yuv420p", LOSSLESS, 8),
    ],
)
def test_bits_of_a_sample(tmp_path, pixels, codec, depth):
    path = make(tmp_path / "clip.mov", numbered(8), "-pix_fmt", pixels, "-f", "matroska",
                codec=codec)  # fmt: skip
    source = probe_source(path)
    assert (source.pixel_format, source.bit_depth) == (pixels, depth)
    assert shown(path, 16) == list(range(8))


@pytest.mark.parametrize("curve", ["smpte2084", "arib-std-b67"])
def test_hdr_is_read_and_said(tmp_path, curve):
    x265 = f"lossless=1:log-level=none:colorprim=bt2020:transfer={curve}:colormatrix=bt2020nc"
    codec = ("-c:v", "libx265", "-x265-params", x265)
    path = make(tmp_path / "clip.mp4", numbered(8), "-pix_fmt", "yuv420p10le",
                *("-color_trc", curve), codec=codec)  # fmt: skip
    source = probe_source(path)
    assert [notice for notice in source.notices if "HDR" in notice]
    assert shown(path, 16) == list(range(8))


def test_what_is_transparent_lies_on_white(tmp_path):
    clip = np.zeros((8, HEIGHT, WIDTH, 3), np.uint8)
    clip[..., 0] = 200
    alpha = "format=rgba,geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a='if(lt(X,32),0,255)'"
    codec = ("-c:v", "qtrle")
    path = make(tmp_path / "clip.mov", clip, "-vf", alpha, "-pix_fmt", "argb", codec=codec)
    source = probe_source(path)
    assert source.has_alpha
    assert any("laid on white" in notice for notice in source.notices)
    frames = np.stack(list(read_frames(source, SIZE, 16))).astype(int)
    assert len(frames) == 8
    assert frames[:, :, :28].min() >= 253
    assert np.abs(frames[:, :, 36:] - (200, 0, 0)).max() <= 3


def test_interlaced_pictures_are_made_whole(tmp_path):
    # A bar that jumps between the two fields of a picture leaves teeth.
    clip = np.full((32, HEIGHT, WIDTH, 3), 40, np.uint8)
    for index, frame in enumerate(clip):
        frame[:, index : index + 20] = 220
    path = make(
        tmp_path / "clip.mpg",
        clip,
        *("-vf", "interlace=lowpass=off", "-flags", "+ilme+ildct"),
        fps=50,
        codec=("-c:v", "mpeg2video", "-q:v", "2"),
    )
    source = probe_source(path)
    assert source.is_interlaced
    assert any("interlaced" in notice for notice in source.notices)
    frames = np.stack(list(read_frames(source, SIZE, 25)))[3:-3].astype(int)
    woven = read_video(path)[3:-3].astype(int)

    def teeth(pictures: np.ndarray) -> float:
        middle = pictures[:, 1:-1] * 2 - pictures[:, :-2] - pictures[:, 2:]
        return float((np.abs(middle) > 150).mean())

    assert teeth(woven) > 0.005
    assert teeth(frames) < teeth(woven) / 4


def test_a_size_that_changes_on_the_way(tmp_path):
    first = make(tmp_path / "a.ts", numbered(8))
    second = make(
        tmp_path / "b.ts", np.kron(numbered(16)[8:], np.ones((1, 2, 2, 1), np.uint8)),
        "-output_ts_offset", "0.5",
    )  # fmt: skip
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    assert shown(path, 16) == list(range(16))


# --- few pictures, or none --------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
def test_very_few_pictures(tmp_path, name, count):
    path = make(tmp_path / name, numbered(count))
    source = probe_source(path)
    assert source.num_frames == count
    assert shown(path, 16) == list(range(count))


def test_no_pictures(tmp_path):
    path = make(tmp_path / "clip.mp4", numbered(1), "-frames:v", "0")
    with pytest.raises(UnreadableMediaError, match=r"clip\.mp4"):
        probe_source(path)


@pytest.mark.parametrize("name", ["sound.mp4", "sound.mp3", "sound.mkv", "sound.ogg"])
def test_sound_alone(tmp_path, name):
    run("-f", "lavfi", "-i", "sine=d=1", tmp_path / name)
    with pytest.raises(UnreadableMediaError, match="holds no video, only sound"):
        probe_source(tmp_path / name)


def test_the_cover_of_a_record_is_no_video(tmp_path):
    make(tmp_path / "cover.png", numbered(1), "-frames:v", "1", codec=(), fps=1)
    run("-f", "lavfi", "-i", "sine=d=1", "-i", tmp_path / "cover.png", "-map", "0", "-map", "1",
        "-disposition:v", "attached_pic", "-c:v", "copy", tmp_path / "song.mp3")  # fmt: skip
    with pytest.raises(UnreadableMediaError, match="only sound"):
        probe_source(tmp_path / "song.mp3")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "webp", "gif"])
def test_pictures_in_disguise(tmp_path, suffix):
    from PIL import Image

    Image.new("RGB", SIZE, "red").save(tmp_path / f"picture.{suffix}")
    (tmp_path / f"picture.{suffix}").rename(tmp_path / "clip.mp4")
    with pytest.raises(UnreadableMediaError, match="is a picture, not a video"):
        probe_source(tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.gif", ()),
        ("a.apng", ("-plays", "0")),
        ("a.webp", ("-c:v", "libwebp_anim", "-lossless", "1")),
    ],
)
def test_animated_pictures_can_be_read_as_videos(tmp_path, name, codec):
    path = make(tmp_path / name, numbered(10), "-pix_fmt", "rgb24" if "apng" in name else "bgra"
                if "webp" in name else "rgb8", fps=10, codec=codec)  # fmt: skip
    source = probe_source(path)
    assert (source.num_frames, source.fps) == (10, 10)
    frames = list(read_frames(source, SIZE, 10))
    assert len(frames) == 10
    levels = [float(frame.mean()) for frame in frames]
    assert levels == sorted(levels)
    assert levels[-1] - levels[0] > 50


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.ts", "clip.webm"])
def test_cut_short(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (48, HEIGHT, WIDTH, 3), np.uint8)
    codec = CONTAINERS[name] if name != "clip.webm" else ("-c:v", "libvpx", "-b:v", "2M")
    path = make(tmp_path / name, noise, "-movflags" if name == "clip.mp4" else "-g",
                "+faststart" if name == "clip.mp4" else "12", codec=codec)  # fmt: skip
    whole = probe_source(path)
    assert whole.notices == ()
    expected = [frame.tobytes() for frame in read_frames(whole, SIZE, 16)]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    source = probe_source(path)
    assert 0.2 < source.duration / whole.duration < 0.8
    if name != "clip.ts":  # which does not say how long it should be
        assert len(source.notices) == 1
        assert name in source.notices[0]
    frames = [frame.tobytes() for frame in read_frames(source, SIZE, 16)]
    assert len(frames) == source.num_frames_at(16)
    sound = len(frames) - 3
    assert frames[:sound] == expected[:sound]


def test_cut_short_before_the_index(tmp_path):
    path = make(tmp_path / "clip.mp4", numbered(24))
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UnreadableMediaError, match="cut short: the index"):
        probe_source(path)


def test_damage_in_the_middle(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (48, HEIGHT, WIDTH, 3), np.uint8)
    path = make(tmp_path / "clip.mkv", noise, "-g", "8")
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    path.write_bytes(data)
    assert len(list(read_frames(probe_source(path), SIZE, 16))) == 48


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"just some words\nand more\n", "holds text"),
        ("Grüße, 世界".encode() * 500, "holds text"),
        (b"#EXTM3U\n#EXTINF:10,\nother.ts\n#EXT-X-ENDLIST\n", "holds text"),
        (b"ffconcat version 1.0\nfile other.mp4\n", "holds text"),
        (bytes(range(256)) * 40, "cannot be read as a video"),
        (b"\0\0\0\x18ftypmp42" + bytes(3000), "clip.mp4"),
        (b"\x1aE\xdf\xa3" + bytes(3000), "clip.mp4"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_no_video_at_all(tmp_path, content, words):
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(UnreadableMediaError, match=words) as caught:
        probe_source(tmp_path / "clip.mp4")
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_no_file_at_all(tmp_path):
    with pytest.raises(UnreadableMediaError, match="does not exist"):
        probe_source(tmp_path / "missing.mp4")
    with pytest.raises(UnreadableMediaError, match="is a folder"):
        probe_source(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UnreadableMediaError, match="no regular file"):
        probe_source(tmp_path / "pipe.mp4")


@pytest.mark.parametrize(
    "name", ["with space.mp4", "a:b.mp4", "-y.mp4", "100%d.mp4", "日本 🦊.mp4"]
)
def test_awkward_names(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "plain.mp4", numbered(8)).rename(tmp_path / name)
    assert shown(Path(name), 16) == list(range(8))


# --- large files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["long.mkv", "long.mp4", "long.ts"])
def test_of_a_large_file_only_the_ends_are_read(tmp_path, long_clip, name, monkeypatch):
    path = tmp_path / name
    run("-f", "lavfi", "-i", "sine=d=31", "-i", long_clip, "-map", "1", "-map", "0", "-c:v", "copy",
        path)  # fmt: skip
    whole = probe_source(path)
    assert whole.num_frames == 480
    packets = []
    add = source_probe.PacketTimes.add
    monkeypatch.setattr(
        source_probe.PacketTimes, "add", lambda self, line: packets.append(add(self, line))
    )
    monkeypatch.setattr(source_probe, "_SMALL_BYTES", 0)
    monkeypatch.setattr(source_probe, "_HEAD_PACKETS", 100)
    large = probe_source(path)
    assert len(packets) < 400
    assert large.num_frames is None
    assert large.duration == pytest.approx(whole.duration, abs=0.002)
    assert (large.fps, large.start, large.is_variable) == (whole.fps, whole.start, False)
    assert large.num_frames_at(16) == 480


def test_of_a_large_file_with_much_longer_sound(tmp_path, monkeypatch):
    plain = make(tmp_path / "plain.mkv", numbered(24))
    run("-i", plain, "-f", "lavfi", "-i", "sine=d=40", "-c:v", "copy", tmp_path / "clip.mkv")
    monkeypatch.setattr(source_probe, "_SMALL_BYTES", 0)
    source = probe_source(tmp_path / "clip.mkv")
    assert source.duration == pytest.approx(1.5, abs=0.003)
    assert source.notices == ("clip.mkv lasts 40.0 seconds, its pictures end after 1.5",)
    assert shown(tmp_path / "clip.mkv", 16) == list(range(24))


def test_of_a_large_file_that_is_cut_short(tmp_path, long_clip, monkeypatch):
    path = tmp_path / "cut.mkv"
    data = long_clip.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    monkeypatch.setattr(source_probe, "_SMALL_BYTES", 0)
    source = probe_source(path)
    assert 10 < source.duration < 25
    assert source.notices
    assert len(list(read_frames(source, (8, 8), 4))) == source.num_frames_at(4)


def test_the_hash_is_that_of_the_file(tmp_path):
    path = make(tmp_path / "clip.mp4", numbered(4))
    source = probe_source(path)
    assert "sha256" not in vars(source)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.sha256 == expected
    path.unlink()
    assert source.sha256 == expected


MEMORY = """
import resource, sys
from osp_cli.media.source_video import probe_source, read_frames
source = probe_source(sys.argv[1])
frames = read_frames(source, (64, 48), 16)
for _ in range(200):
    next(frames)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = 200 + sum(1 for _ in frames)
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
      resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_ten_minutes_take_no_more_memory_than_one(tmp_path):
    run("-f", "lavfi", "-i", "testsrc=size=64x48:rate=16:duration=600", *LOSSLESS, "-pix_fmt",
        "yuv420p", tmp_path / "long.mp4")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "long.mp4")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(source_video.__file__).parents[2],
    )
    count, grown, of_ffmpeg = (int(word) for word in done.stdout.split())
    assert count == 9600
    # In KiB; all frames together have 88 MB.
    assert grown < 8 * 1024
    assert of_ffmpeg < 300 * 1024


# --- the process ------------------------------------------------------------------------------


def pid_of(fake_ffmpeg, folder: Path, body: str = 'exec "$REAL" "$@"') -> Path:
    pid_file = folder.parent / f"{folder.name}.pid"
    fake_ffmpeg(f'echo $$ > "{pid_file}"; {body}')
    return pid_file


def is_running(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def noise_clip(tmp_path) -> Path:
    """More than a pipe holds, so that ffmpeg waits for us."""
    noise = np.random.default_rng(0).integers(0, 256, (40, HEIGHT, WIDTH, 3), np.uint8)
    return make(tmp_path / "noise.mkv", noise)


def test_closing_ends_ffmpeg(tmp_path, noise_clip, fake_ffmpeg):
    source = probe_source(noise_clip)
    pid_file = pid_of(fake_ffmpeg, tmp_path)
    frames = read_frames(source, (640, 480), 16)
    assert not pid_file.exists()  # nothing runs before it is needed
    next(frames)
    assert is_running(pid_file)
    frames.close()
    assert not is_running(pid_file)


def test_forgetting_ends_ffmpeg(tmp_path, noise_clip, fake_ffmpeg):
    source = probe_source(noise_clip)
    pid_file = pid_of(fake_ffmpeg, tmp_path)

    def first():
        for frame in read_frames(source, (640, 480), 16):
            return frame.shape
        return None

    assert first() == (480, 640, 3)
    assert not is_running(pid_file)


def test_frames_belong_to_whoever_gets_them(noise_clip):
    frames = read_frames(probe_source(noise_clip), SIZE, 16)
    one = next(frames)
    kept = one.copy()
    two = next(frames)
    two[:] = 0
    np.testing.assert_array_equal(one, kept)
    one[:] = 0
    assert next(frames).any()


def test_talkative_ffmpeg_does_not_hang(noise_clip, fake_ffmpeg):
    counts: list[int] = []

    source = probe_source(noise_clip)
    fake_ffmpeg('yes "a line of complaint" | head -c 3000000 >&2; exec "$REAL" "$@"')

    def read():
        counts.append(sum(1 for _ in read_frames(source, SIZE, 16)))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert counts == [40]


FRAME_BYTES = WIDTH * HEIGHT * 3


def test_short_by_few_is_held(tmp_path, fake_ffmpeg):
    source = probe_source(make(tmp_path / "clip.mkv", numbered(24)))
    fake_ffmpeg(f'"$REAL" "$@" | head -c {FRAME_BYTES * 20 + 7}')
    assert numbers(read_frames(source, SIZE, 16)) == [*range(20), 19, 19, 19, 19]


@pytest.mark.parametrize("count", [0, 3])
def test_short_by_a_lot_is_told(tmp_path, fake_ffmpeg, count):
    source = probe_source(make(tmp_path / "clip.mkv", numbered(24)))
    fake_ffmpeg(f'echo "some reason" >&2; "$REAL" "$@" | head -c {FRAME_BYTES * count}')
    frames = read_frames(source, SIZE, 16)
    got = list(itertools.islice(frames, count))
    assert len(got) == count
    with pytest.raises(UnreadableMediaError, match=rf"after {count / 16:.1f} of 1.5") as caught:
        next(frames)
    assert "some reason" in caught.value.message


def test_longer_is_cut(tmp_path, fake_ffmpeg):
    source = probe_source(make(tmp_path / "clip.mkv", numbered(24)))
    pid_file = pid_of(fake_ffmpeg, tmp_path, '"$REAL" "$@"; head -c 9999999 /dev/zero')
    assert numbers(read_frames(source, SIZE, 16)) == list(range(24))
    assert not is_running(pid_file)


def test_a_last_picture_that_stays_long(tmp_path):
    # The last but one lasts two seconds, and so, by ffmpeg's rule, does the last.
    stamps = ("-vf", "settb=1/1000,setpts='if(eq(N,0),0,2)/TB'", "-fps_mode", "passthrough")
    path = make(tmp_path / "clip.mkv", numbered(2), *stamps)
    got = shown(path, 8)
    assert got[:17] == [0] * 16 + [1]
    assert set(got[16:]) == {1}
    assert len(got) == math.ceil((probe_source(path).duration - 0.002) * 8)
