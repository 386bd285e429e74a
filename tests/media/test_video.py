"""Encoding and decoding with the genuine ffmpeg, and what happens when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from osp_cli.errors import (
    InvalidRequestError,
    RuntimeFailureError,
    UnreadableMediaError,
    WontFitError,
)
from osp_cli.media import ffmpeg
from osp_cli.media.video import probe_video, read_comment, read_video, write_video


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def test_clip_is_what_every_player_reads(tmp_path, frames):
    path = tmp_path / "clip.mp4"
    num_bytes = write_video(frames, path, fps=16)
    assert num_bytes == path.stat().st_size
    assert left_in(tmp_path) == ["clip.mp4"]
    info = probe_video(path)
    assert (info.codec, info.profile, info.pixel_format) == ("h264", "High", "yuv420p")
    assert (info.width, info.height, info.fps, info.num_frames) == (64, 48, 16.0, 9)
    assert info.colour.startswith("tv, bt709")
    # The index lies before the pictures, so that playing starts before the download ends.
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_frames_come_back(tmp_path, frames):
    write_video(frames, tmp_path / "clip.mp4", fps=16)
    decoded = read_video(tmp_path / "clip.mp4")
    assert decoded.shape == frames.shape
    assert decoded.dtype == np.uint8
    for index, frame in enumerate(decoded):
        scores = [psnr(frame, other) for other in frames]
        assert int(np.argmax(scores)) == index
        assert scores[index] > 26
    np.testing.assert_array_equal(read_video(tmp_path / "clip.mp4", max_frames=4), decoded[:4])


@pytest.mark.parametrize(
    "colour",
    [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 0),
        (0, 255, 255),
        (255, 0, 255),
        (0, 0, 0),
        (255, 255, 255),
        (128, 128, 128),
        (200, 120, 60),
        (30, 90, 160),
        (250, 220, 200),
    ],
)
def test_flat_colours_survive(tmp_path, colour):
    flat = np.full((5, 32, 48, 3), colour, np.uint8)
    write_video(flat, tmp_path / "flat.mp4", fps=8)
    decoded = read_video(tmp_path / "flat.mp4").astype(int)
    assert np.abs(decoded - np.array(colour)).max() <= 2


def test_same_frames_give_the_same_bytes(tmp_path, frames):
    noise = np.random.default_rng(0).integers(0, 256, (20, 96, 128, 3), dtype=np.uint8)
    clips = []
    for name in ("one.mp4", "two.mp4"):
        write_video(noise, tmp_path / name, fps=16, comment="recipe")
        clips.append((tmp_path / name).read_bytes())
    assert clips[0] == clips[1]
    write_video(noise[::-1], tmp_path / "three.mp4", fps=16, comment="recipe")
    assert clips[0] != (tmp_path / "three.mp4").read_bytes()


def test_frames_may_be_a_generator_or_strided(tmp_path, frames):
    write_video(frames[:, :, ::-1], tmp_path / "a.mp4", fps=16)
    mirrored = (np.ascontiguousarray(frame[:, ::-1]) for frame in frames)
    write_video(mirrored, tmp_path / "b.mp4", fps=16)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(24, 24.0), (7.5, 7.5), (Fraction(30000, 1001), 29.97), (29.97, 29.97), (1, 1.0)],
)
def test_frame_rate(tmp_path, frames, fps, expected):
    write_video(frames, tmp_path / "clip.mp4", fps=fps)
    info = probe_video(tmp_path / "clip.mp4")
    assert info.fps == pytest.approx(expected, abs=0.005)
    assert info.num_frames == len(frames)


def test_single_frame(tmp_path, frames):
    write_video(frames[:1], tmp_path / "still.mp4", fps=16)
    assert read_video(tmp_path / "still.mp4").shape == (1, 48, 64, 3)


@pytest.mark.parametrize(
    "comment",
    [
        "plain",
        json.dumps({"prompt": 'a "quoted" \\ word', "seed": 7, "n": None}, ensure_ascii=False),
        "naïve — 日本語 🦊 עברית",
        "two\nlines\n\nand; a # few = signs [section]\n;FFMETADATA1\ncomment=other",
        "carriage\r\nreturns\rand\ttabs",
        "ends with a backslash \\",
        "\n starts and ends with a newline \n",
        " spaces ",
        "'; $(touch x) `y` %d %s",
        json.dumps({"prompt": "long " * 40_000}),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_comment_round_trip(tmp_path, frames, comment):
    path = tmp_path / "clip.mp4"
    write_video(frames[:1], path, fps=16, comment=comment)
    assert read_comment(path) == comment


def test_no_comment(tmp_path, frames):
    write_video(frames[:1], tmp_path / "clip.mp4", fps=16)
    assert read_comment(tmp_path / "clip.mp4") is None


def test_comment_with_a_null_character_is_misuse(tmp_path, frames):
    with pytest.raises(ValueError, match="null"):
        write_video(frames, tmp_path / "clip.mp4", comment="a\0b")


@pytest.mark.parametrize(
    "name", ["with space.mp4", "a:b.mp4", "-y.mp4", "100%d.mp4", "日本 🦊.mp4", "é" * 120 + ".mp4"]
)
def test_awkward_names(tmp_path, frames, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(frames, name, fps=16)
    assert left_in(tmp_path) == [name]
    assert read_video(name).shape == frames.shape


@pytest.mark.parametrize(
    ("clip", "complaint"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), "no frames"),
        (np.zeros((2, 7, 8, 3), np.uint8), "even"),
        (np.zeros((2, 8, 7, 3), np.uint8), "even"),
        (np.zeros((2, 0, 8, 3), np.uint8), "even"),
        (np.zeros((2, 8, 8, 4), np.uint8), "uint8 of shape"),
        (np.zeros((2, 8, 8, 3), np.float32), "uint8 of shape"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 16, 3), np.uint8)], "differ in size"),
    ],
)
def test_frames_that_are_no_video(tmp_path, clip, complaint):
    with pytest.raises(ValueError, match=complaint):
        write_video(clip, tmp_path / "clip.mp4", fps=16)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("fps", [0, -1])
def test_frame_rate_must_be_positive(tmp_path, frames, fps):
    with pytest.raises(ValueError, match="positive"):
        write_video(frames, tmp_path / "clip.mp4", fps=fps)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
def test_interrupted_source_leaves_nothing(tmp_path, frames, fake_ffmpeg, error):
    pid_file = tmp_path.parent / f"{tmp_path.name}.pid"
    fake_ffmpeg(f'echo $$ > "{pid_file}"; exec "$REAL" "$@"')

    def breaking():
        for _ in range(40):
            yield frames[0]
        assert any(name.endswith(".part.mp4") for name in left_in(tmp_path))
        raise error

    with pytest.raises(error):
        write_video(breaking(), tmp_path / "clip.mp4", fps=16)
    assert left_in(tmp_path) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_existing_file_survives_a_failure(tmp_path, frames):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"precious")

    def breaking():
        yield frames[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(breaking(), path, fps=16)
    assert path.read_bytes() == b"precious"
    assert left_in(tmp_path) == ["clip.mp4"]


def test_ctrl_c_reaches_us_and_not_ffmpeg_first(tmp_path):
    script = (
        "import signal, sys, numpy as np\n"
        # Started in the background, the suite inherits an ignored Ctrl-C; a terminal's is not.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from osp_cli.media.video import write_video\n"
        "def endless():\n"
        "    frame = np.zeros((64, 64, 3), np.uint8)\n"
        "    for index in range(10**9):\n"
        "        if index == 100: print('running', flush=True)\n"
        "        yield frame\n"
        "try:\n"
        f"    write_video(endless(), {str(tmp_path / 'clip.mp4')!r}, fps=16)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True); sys.exit(130)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    # As the terminal does it: to the whole group.
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "interrupted\n"
    assert process.returncode == 130
    assert left_in(tmp_path) == []


def test_killed_ffmpeg(tmp_path, frames, fake_ffmpeg):
    fake_ffmpeg('echo "about to die" >&2; head -c 20000 > /dev/null; kill -9 $$')
    many = (frame for _ in range(200) for frame in frames)
    with pytest.raises(RuntimeFailureError, match="SIGKILL") as caught:
        write_video(many, tmp_path / "clip.mp4", fps=16)
    assert "about to die" in caught.value.message
    assert left_in(tmp_path) == []


def test_genuine_ffmpeg_killed_midway(tmp_path, frames, fake_ffmpeg):
    pid_file = tmp_path.parent / f"{tmp_path.name}.pid"
    fake_ffmpeg(f'echo $$ > "{pid_file}"; exec "$REAL" "$@"')

    def many():
        for index in range(2000):
            if index == 300:
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
            yield frames[index % 9]

    with pytest.raises(RuntimeFailureError, match="SIGKILL"):
        write_video(many(), tmp_path / "clip.mp4", fps=16)
    assert left_in(tmp_path) == []


def test_killed_after_the_last_frame(tmp_path, frames, fake_ffmpeg):
    fake_ffmpeg("cat > /dev/null; kill -9 $$")
    with pytest.raises(RuntimeFailureError, match="SIGKILL"):
        write_video(frames, tmp_path / "clip.mp4", fps=16)
    assert left_in(tmp_path) == []


def test_failing_ffmpeg_reports_its_last_words(tmp_path, frames, fake_ffmpeg):
    fake_ffmpeg('for i in 1 2 3; do echo "reason $i" >&2; done; exit 3')
    with pytest.raises(RuntimeFailureError, match="exit code 3: reason 1; reason 2; reason 3"):
        write_video(frames, tmp_path / "clip.mp4", fps=16)
    assert left_in(tmp_path) == []


def test_talkative_ffmpeg_does_not_hang(tmp_path, frames, fake_ffmpeg):
    # A megabyte on stderr before the first frame is read: far more than a pipe holds.
    fake_ffmpeg('yes "a line of complaint" | head -c 1000000 >&2; exec "$REAL" "$@"')
    done = threading.Event()

    def write():
        write_video(frames, tmp_path / "clip.mp4", fps=16)
        done.set()

    threading.Thread(target=write, daemon=True).start()
    assert done.wait(timeout=20)
    assert left_in(tmp_path) == ["clip.mp4"]


def test_missing_ffmpeg(tmp_path, frames, monkeypatch):
    monkeypatch.setattr(ffmpeg, "ffmpeg_exe", lambda: str(tmp_path / "nowhere" / "ffmpeg"))
    with pytest.raises(RuntimeFailureError, match="cannot be started") as caught:
        write_video(frames, tmp_path / "clip.mp4", fps=16)
    assert "imageio-ffmpeg" in (caught.value.hint or "")
    assert left_in(tmp_path) == []


def test_ffmpeg_not_found(monkeypatch):
    import imageio_ffmpeg

    def none() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none)
    with pytest.raises(RuntimeFailureError, match="no ffmpeg program"):
        ffmpeg.ffmpeg_exe()


@pytest.mark.parametrize(
    "body",
    ["head -c 20000 > /dev/null; exit 228", 'echo "x: No space left on device" >&2; exit 1'],
)
def test_disk_full_as_ffmpeg_reports_it(tmp_path, frames, fake_ffmpeg, body):
    fake_ffmpeg(body)
    with pytest.raises(WontFitError, match="no space left") as caught:
        write_video(frames, tmp_path / "clip.mp4", fps=16)
    assert caught.value.exit_code == 4
    assert left_in(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KiB; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a file system here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True, capture_output=True)


def test_disk_full_for_real(tiny_disk):
    noise = np.random.default_rng(0).integers(0, 256, (40, 96, 128, 3), dtype=np.uint8)
    with pytest.raises(WontFitError, match="no space left"):
        write_video(noise, tiny_disk / "clip.mp4", fps=16)
    assert left_in(tiny_disk) == []


def test_missing_folder_and_folder_as_output(tmp_path, frames):
    with pytest.raises(InvalidRequestError, match="does not exist"):
        write_video(frames, tmp_path / "nowhere" / "clip.mp4")
    with pytest.raises(InvalidRequestError, match="is a folder"):
        write_video(frames, tmp_path)


@pytest.mark.parametrize("read", [read_video, probe_video, read_comment])
def test_reading_what_is_no_video(tmp_path, read):
    with pytest.raises(UnreadableMediaError, match="does not exist"):
        read(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(UnreadableMediaError, match=r"text\.mp4"):
        read(tmp_path / "text.mp4")


def test_encoding_is_fast_enough(tmp_path):
    rows, columns = np.mgrid[0:256, 0:448]
    clip = [
        np.stack([(columns + 3 * t) % 256, rows, (rows + columns) // 3], -1).astype(np.uint8)
        for t in range(49)
    ]
    started = time.perf_counter()
    write_video(clip, tmp_path / "clip.mp4", fps=16)
    # About one second on two busy cores; the bound only catches a pathological setting.
    assert time.perf_counter() - started < 15
