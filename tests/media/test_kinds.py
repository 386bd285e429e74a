"""Pictures, animations and videos told apart by their first bytes."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import osp_cli
from osp_cli.media.fitting import fit_notice
from osp_cli.media.kinds import MediaKind, is_text, is_video_file, media_kind

_CLIPS = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "clips.py")))


@pytest.mark.parametrize(
    "suffix", ["mp4", "mov", "3gp", "mkv", "webm", "avi", "mpg", "ts", "m2ts", "flv", "ogv", "wmv",
               "mxf", "ivf", "nut", "y4m"]
)  # fmt: skip
def test_videos_whatever_their_name(tmp_path, suffix):
    size = ("-s", "176x144") if suffix == "3gp" else ("-s", "720x576") if suffix == "mxf" else ()
    codec = {"3gp": ("-c:v", "mpeg4"), "ivf": ("-c:v", "libvpx")}.get(suffix, ())
    path = tmp_path / f"clip.{suffix}"
    _CLIPS.make(path, _CLIPS.numbered(4), *size, fps=25, codec=codec)
    assert is_video_file(path)
    hidden = path.rename(tmp_path / "picture.png")
    assert media_kind(hidden) is MediaKind.VIDEO


@pytest.mark.parametrize(
    "suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff", "avif", "jp2"]
)  # fmt: skip
def test_pictures_whatever_their_name(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.new("RGB", (40, 30), "red").save(path)
    hidden = path.rename(tmp_path / "clip.mp4")
    assert media_kind(hidden) is MediaKind.PICTURE
    assert not is_video_file(hidden)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_pictures_that_move(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    frames = [Image.effect_noise((40, 30), 50 + 20 * k).convert("RGB") for k in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    assert media_kind(path) is MediaKind.ANIMATION
    assert not is_video_file(path)


def test_every_cut_of_an_animation_is_looked_at_without_a_failure(tmp_path):
    path = tmp_path / "moving.gif"
    frames = [Image.effect_noise((20, 20), 50 + 20 * k).convert("RGB") for k in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    data = path.read_bytes()
    kinds = []
    for length in range(6, len(data), 7):
        path.write_bytes(data[:length])
        kinds.append(media_kind(path))
    assert set(kinds) == {MediaKind.PICTURE, MediaKind.ANIMATION}
    assert kinds == sorted(kinds, key=lambda kind: kind is MediaKind.ANIMATION)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("missing.mp4", MediaKind.VIDEO),
        ("missing.MKV", MediaKind.VIDEO),
        ("missing.JPG", MediaKind.PICTURE),
        ("missing", MediaKind.OTHER),
        ("nul\0.mp4", MediaKind.VIDEO),
    ],
)
def test_what_is_not_there_goes_by_its_name(tmp_path, name, kind):
    assert media_kind(tmp_path / name) is kind


@pytest.mark.parametrize("content", [b"", b"some words", b"RIFF\0\0\0\0WAVEfmt "])
def test_what_tells_nothing_goes_by_its_name(tmp_path, content):
    for name, kind in (("a.mp4", MediaKind.VIDEO), ("a.png", MediaKind.PICTURE)):
        (tmp_path / name).write_bytes(content)
        assert media_kind(tmp_path / name) is kind


def test_nothing_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert media_kind(tmp_path / "pipe.mp4") is MediaKind.VIDEO
    assert media_kind(tmp_path) is MediaKind.OTHER


def test_heic_is_a_picture_and_m4v_is_not(tmp_path):
    (tmp_path / "a").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    assert media_kind(tmp_path / "a") is MediaKind.PICTURE
    (tmp_path / "a").write_bytes(b"\0\0\0\x18ftypM4V " + bytes(20))
    assert media_kind(tmp_path / "a") is MediaKind.VIDEO


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"words\n", True),
        ("日本".encode()[:-1], True),
        (b"\0\1", False),
        (b"\xff\xfe\xfa\xfb1", False),
        (b"", False),
        (b"YUV4MPEG2 W64", False),
    ],
)
def test_text(data, expected):
    assert is_text(data) is expected


def test_looking_loads_no_library(tmp_path):
    script = (
        "import sys; from osp_cli.media.kinds import is_video_file; is_video_file('a.mp4');"
        "assert not {'torch', 'numpy', 'PIL', 'imageio_ffmpeg'} & set(sys.modules)"
    )
    folder = Path(osp_cli.__file__).parents[1]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=folder)


@pytest.mark.parametrize(
    ("source", "size", "words"),
    [
        ((64, 48), (640, 480), None),
        ((100, 100), (99, 100), None),
        ((1920, 1080), (480, 480), "44% of it is cut at left and right"),
        ((1080, 1920), (480, 480), "44% of it is cut at top and bottom"),
    ],
)
def test_what_a_crop_takes_away(source, size, words):
    notice = fit_notice(source, size, what="video")
    if words is None:
        assert notice is None
    else:
        assert notice == f"the video of {source[0]}x{source[1]} fills {size[0]}x{size[1]}, {words}"
