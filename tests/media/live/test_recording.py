"""A file that plays while it grows, and after every kind of end."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from osp_cli.errors import (
    InvalidRequestError,
    RuntimeFailureError,
    UnreadableMediaError,
    WontFitError,
)
from osp_cli.media import ffmpeg
from osp_cli.media.live import (
    count_frames,
    cut_to,
    join,
    recorded_frames,
    recording_path,
    take_up,
)
from osp_cli.media.live.encoding import video_encoder
from osp_cli.media.recipes import read_recipe, sidecar_path
from osp_cli.media.sound import AudioTrack
from osp_cli.media.video import probe_video

_STREAMS = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "streams.py")))
CHUNK, RECIPE, chunk = _STREAMS.CHUNK, _STREAMS.RECIPE, _STREAMS.chunk
open_stream, numbers_in = _STREAMS.open_stream, _STREAMS.numbers_in
is_running, wait_until = _STREAMS.is_running, _STREAMS.wait_until

BOTH = pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])


def write_chunks(sink, *starts: int) -> None:
    for start in starts:
        sink.write(chunk(start))


def boxes(path: Path) -> list[str]:
    """The outermost parts of an MP4."""
    data, names = path.read_bytes(), []
    while data:
        names.append(data[4:8].decode())
        data = data[int.from_bytes(data[:4]) :]
    return names


def noise(seed: int) -> np.ndarray:
    """A chunk that no codec makes small."""
    return np.random.default_rng(seed).integers(0, 256, (CHUNK, 48, 64, 3), dtype=np.uint8)


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@BOTH
def test_a_stream_becomes_a_file_with_its_recipe(tmp_path, name):
    path = tmp_path / name
    sink = open_stream(path)
    write_chunks(sink, 0, 6, 12)
    assert left_in(tmp_path) == [recording_path(path).name]
    saved = sink.close()
    assert (saved.path, saved.bytes) == (path, path.stat().st_size)
    assert left_in(tmp_path) == [name, f"{name}.json"]
    assert numbers_in(path) == list(range(18))
    info = probe_video(path)
    assert (info.width, info.height, info.fps, info.codec) == (64, 48, 24, "h264")
    assert "bt709" in info.colour
    assert json.loads(sidecar_path(path).read_text()) == RECIPE
    if name == "clip.mp4":
        assert read_recipe(path) == RECIPE


@BOTH
def test_it_plays_while_it_is_written(tmp_path, name):
    sink = open_stream(tmp_path / name)
    write_chunks(sink, 0, 6, 12)
    growing = recording_path(tmp_path / name)
    # ffmpeg holds one frame back until it knows how long it lasts.
    assert wait_until(lambda: growing.exists() and count_frames(growing) >= 17, 5)
    assert numbers_in(growing)[:17] == list(range(17))
    sink.abort()


def test_a_clean_end_leaves_an_ordinary_mp4(tmp_path):
    sink = open_stream(tmp_path / "clip.mp4")
    write_chunks(sink, 0, 6)
    sink.close()
    assert boxes(tmp_path / "clip.mp4") == ["ftyp", "free", "mdat", "moov"]


def test_the_file_can_be_cut_where_a_chunk_begins(tmp_path):
    sink = open_stream(tmp_path / "clip.mp4", first_chunk_frames=3)
    sink.write(chunk(0, 3))
    write_chunks(sink, 3, 9)
    sink.close()
    said = subprocess.run(
        [
            *(ffmpeg.ffmpeg_exe(), "-skip_frame", "nokey", "-i", tmp_path / "clip.mp4"),
            *("-vf", "showinfo", "-f", "null", "-"),
        ],
        capture_output=True,
        text=True,
    ).stderr
    times = [
        line.split("pts_time:")[1].split()[0] for line in said.splitlines() if "pts_time" in line
    ]
    assert [round(float(time) * 24) for time in times] == [0, 3, 9]


def test_a_recipe_that_grew_is_the_one_that_is_kept(tmp_path):
    sink = open_stream(tmp_path / "clip.mp4")
    write_chunks(sink, 0)
    grown = {**RECIPE, "log": ["0:00: a pan", '0:12: "rain"; a=b\\']}
    saved = sink.close(grown)
    assert read_recipe(saved.path) == grown
    assert json.loads(saved.sidecar.read_text()) == grown
    assert numbers_in(saved.path) == list(range(6))
    assert left_in(tmp_path) == ["clip.mp4", "clip.mp4.json"]


def test_without_metadata(tmp_path):
    sink = open_stream(tmp_path / "clip.mp4", metadata=False)
    write_chunks(sink, 0)
    assert sink.close({"log": "secret"}).sidecar is None
    assert left_in(tmp_path) == ["clip.mp4"]
    assert read_recipe(tmp_path / "clip.mp4") is None


def test_a_run_that_makes_no_frame_leaves_nothing(tmp_path):
    assert open_stream(tmp_path / "clip.mp4").close() is None
    assert open_stream(tmp_path / "clip.mp4").abort() is None
    assert left_in(tmp_path) == []


def test_a_stop_at_once_leaves_what_there_is(tmp_path):
    sink = open_stream(tmp_path / "clip.mp4")
    write_chunks(sink, 0, 6)
    assert sink.abort() == recording_path(tmp_path / "clip.mp4")
    assert left_in(tmp_path) == ["clip.recording.mp4"]
    assert numbers_in(tmp_path / "clip.recording.mp4") == list(range(12))


@pytest.mark.parametrize("taken", ["clip.mp4", "clip.mp4.json", "clip.recording.mp4"])
def test_what_exists_is_refused_and_kept(tmp_path, taken):
    (tmp_path / taken).write_bytes(b"precious")
    with pytest.raises(InvalidRequestError, match="exists already") as caught:
        open_stream(tmp_path / "clip.mp4")
    assert "-y" in caught.value.hint
    assert (tmp_path / taken).read_bytes() == b"precious"
    sink = open_stream(tmp_path / "clip.mp4", overwrite=True)
    write_chunks(sink, 0)
    sink.close()
    assert left_in(tmp_path) == ["clip.mp4", "clip.mp4.json"]
    assert numbers_in(tmp_path / "clip.mp4") == list(range(6))


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path):
    sink = open_stream(tmp_path / "clip.mp4")
    write_chunks(sink, 0)
    (tmp_path / "clip.mp4").write_bytes(b"somebody else's")
    with pytest.raises(InvalidRequestError, match="exists already") as caught:
        sink.close()
    assert caught.value.kept == (tmp_path / "clip.recording.mp4",)
    assert (tmp_path / "clip.mp4").read_bytes() == b"somebody else's"
    assert left_in(tmp_path) == ["clip.mp4", "clip.recording.mp4"]


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip", "%04d.png"])
def test_files_that_cannot_grow(tmp_path, name):
    with pytest.raises(InvalidRequestError, match=r"only as \.mp4 or \.mkv"):
        open_stream(tmp_path / name)


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 48, 66, 3), np.uint8), np.zeros((48, 64, 3), np.uint8), chunk(0) / 1.0]
)
def test_frames_of_another_form(tmp_path, frames):
    with pytest.raises(ValueError, match="stream has uint8 frames"):
        open_stream(tmp_path / "clip.mp4").write(frames)
    assert left_in(tmp_path) == []


def test_sizes_that_cannot_be_coded(tmp_path):
    from osp_cli.media.live import open_live

    for size in ({"width": 63, "height": 48}, {"width": 64, "height": 0}):
        with pytest.raises(ValueError, match="even"):
            open_live(
                ["file"], output=tmp_path / "a.mp4", fps=24, chunk_frames=6, recipe={}, **size
            )


RUN = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from osp_cli.media import ffmpeg
from streams import chunk, open_stream

genuine = ffmpeg._start
def start(*args, **kwargs):
    process = genuine(*args, **kwargs)
    if "-version" not in args[0]:
        print(process.pid, flush=True)
    return process
ffmpeg._start = start
sink = open_stream(Path(sys.argv[1]))
for index in range(4):
    sink.write(chunk(6 * index))
print("written", flush=True)
time.sleep(60)
"""


@BOTH
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_death_of_this_process(tmp_path, name):
    """Nothing is lost, nobody is left behind, and the next run goes on from there."""
    path = tmp_path / name
    command = [sys.executable, "-c", RUN, str(path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ours:
        encoder = int(ours.stdout.readline())
        assert ours.stdout.readline() == "written\n"
        assert is_running(encoder)
        ours.kill()
    assert wait_until(lambda: not is_running(encoder))
    assert left_in(tmp_path) == [recording_path(path).name]
    assert recorded_frames(path) == 24
    with pytest.raises(InvalidRequestError, match="of a run that was killed"):
        open_stream(path)

    earlier = take_up(path, 18)
    assert take_up(path, 18) == earlier
    sink = open_stream(path, earlier=earlier)
    write_chunks(sink, 18, 24)
    sink.close()
    assert numbers_in(path) == list(range(30))
    assert left_in(tmp_path) == [name, f"{name}.json"]


@BOTH
def test_the_death_of_ffmpeg(tmp_path, name):
    path = tmp_path / name
    sink = open_stream(path)
    write_chunks(sink, 0, 6, 12)
    growing = recording_path(path)
    assert wait_until(lambda: growing.exists() and count_frames(growing) >= 17, 5)
    os.kill(sink._recording._encoder.pid, signal.SIGKILL)
    with pytest.raises(
        RuntimeFailureError, match=r"SIGKILL.*plays up to its frame 1[78]"
    ) as caught:
        write_chunks(sink, *range(18, 180, CHUNK))
    assert caught.value.kept == (growing,)
    assert "--resume" in caught.value.hint
    sink.abort()
    assert numbers_in(growing)[:17] == list(range(17))
    assert not path.exists()


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 KiB; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a file system here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True, capture_output=True)


@BOTH
def test_a_full_disk(tiny_disk, name):
    sink = open_stream(tiny_disk / name)
    with pytest.raises(WontFitError, match=r"no space left.*plays up to its frame") as caught:
        for index in range(60):
            sink.write(noise(index))
        sink.close()
    sink.abort()
    kept = recording_path(tiny_disk / name)
    assert caught.value.kept == (kept,)
    assert count_frames(kept) > 2 * CHUNK
    assert not (tiny_disk / name).exists()


def test_two_runs_do_not_write_one_file(tmp_path):
    path = tmp_path / "clip.mp4"
    sink = open_stream(path)
    write_chunks(sink, 0)
    for attempt in (
        lambda: open_stream(path, overwrite=True),
        lambda: open_stream(path),
        lambda: take_up(path, 6),
    ):
        with pytest.raises(InvalidRequestError, match="is being written by another run"):
            attempt()
    sink.close()
    assert numbers_in(path) == list(range(6))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_frames_that_are_counted_can_be_decoded(tmp_path, name):
    """Cut at any byte, a recording has as many frames as a decoder gets out of it."""
    sink = open_stream(tmp_path / name)
    for index in range(3):
        sink.write(noise(index))
    growing = recording_path(tmp_path / name)
    assert wait_until(lambda: growing.exists() and count_frames(growing) >= 17, 5)
    data = growing.read_bytes()
    sink.abort()
    counts = set()
    for size in np.random.default_rng(0).integers(len(data) // 3, len(data), 6):
        cut = tmp_path / f"cut-{name}"
        cut.write_bytes(data[:size])
        frames = count_frames(cut)
        said = subprocess.run(
            [
                *(ffmpeg.ffmpeg_exe(), "-v", "error", "-err_detect", "explode", "-i", cut),
                *("-f", "framecrc", "-"),
            ],
            capture_output=True,
            text=True,
        )
        assert frames == sum(line[0] != "#" for line in said.stdout.splitlines())
        counts.add(frames)
    assert len(counts) > 3


def test_cutting(tmp_path):
    path = tmp_path / "clip.mp4"
    sink = open_stream(path)
    write_chunks(sink, 0, 6, 12)
    sink.close()
    cut_to(path, 12)
    assert numbers_in(path) == list(range(12))
    assert read_recipe(path) == RECIPE
    before = path.read_bytes()
    cut_to(path, 12)
    with pytest.raises(UnreadableMediaError, match="has 12 frames, 13 were to be kept"):
        cut_to(path, 13)
    with pytest.raises(ValueError, match="nothing would be left"):
        cut_to(path, 0)
    assert path.read_bytes() == before


def test_joining_what_does_not_fit(tmp_path):
    for name, fps in (("a.mp4", 24), ("b.mp4", 12)):
        sink = open_stream(tmp_path / name, fps=fps)
        write_chunks(sink, 0)
        sink.close()
    with pytest.raises(RuntimeFailureError, match="time stamps of its frames are uneven"):
        join([tmp_path / "a.mp4", tmp_path / "b.mp4"], tmp_path / "c.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(UnreadableMediaError, match="no frame that can be read"):
        join([tmp_path / "a.mp4", tmp_path / "empty.mp4"], tmp_path / "c.mp4")
    with pytest.raises(ValueError, match="no pieces"):
        join([], tmp_path / "c.mp4")
    assert not (tmp_path / "c.mp4").exists()


def test_a_killed_run_leaves_nothing_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "out").mkdir()
    sink = open_stream(tmp_path / "out" / "clip.mp4")
    write_chunks(sink, 0)
    assert len(left_in(tmp_path)) == 2
    write_chunks(sink, *range(6, 240, 6))
    assert left_in(tmp_path) == ["out"]
    sink.close()
    assert read_recipe(tmp_path / "out" / "clip.mp4") == RECIPE


def test_refusals_wait_for_no_heavy_library(tmp_path):
    script = (
        "import sys; from pathlib import Path; "
        "from osp_cli.media.live import check_targets, parse_targets; "
        f"out = Path({str(tmp_path / 'clip.mp4')!r}); "
        "check_targets(parse_targets(['file', 'http', 'udp://127.0.0.1:9'], out), out, "
        "overwrite=False); "
        "print([name for name in ('torch', 'numpy', 'PIL', 'http.server') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_clean_end_is_gone_on_from_too(tmp_path):
    path = tmp_path / "it's 5% of a clip.mp4"
    sink = open_stream(path)
    write_chunks(sink, 0, 6)
    sink.close()
    sink = open_stream(path, earlier=take_up(path, 12))
    write_chunks(sink, 12)
    assert numbers_in(path) == list(range(12))
    sink.close({**RECIPE, "resumed": 1})
    assert numbers_in(path) == list(range(18))
    assert read_recipe(path) == {**RECIPE, "resumed": 1}
    assert left_in(tmp_path) == [path.name, sidecar_path(path).name]


def test_two_deaths_in_a_row(tmp_path):
    path = tmp_path / "clip.mp4"
    for start in (0, 6):
        earlier = take_up(path, start) if start else ()
        sink = open_stream(path, earlier=earlier)
        write_chunks(sink, start)
        sink.abort()
    assert left_in(tmp_path) == ["clip.piece001.mp4", "clip.recording.mp4"]
    earlier = take_up(path, 12)
    assert [piece.name for piece in earlier] == ["clip.piece001.mp4", "clip.piece002.mp4"]
    assert open_stream(path, earlier=earlier).close().path == path
    assert numbers_in(path) == list(range(12))
    assert left_in(tmp_path) == ["clip.mp4", "clip.mp4.json"]


def test_pieces_of_a_stream_that_is_begun_anew_go(tmp_path):
    path = tmp_path / "clip.mp4"
    sink = open_stream(path)
    write_chunks(sink, 0)
    sink.abort()
    take_up(path, 6)
    sink = open_stream(path, overwrite=True)
    write_chunks(sink, 30)
    sink.close()
    assert left_in(tmp_path) == ["clip.mp4", "clip.mp4.json"]


def test_fewer_frames_than_the_state_says(tmp_path):
    path = tmp_path / "clip.mp4"
    sink = open_stream(path)
    write_chunks(sink, 0)
    sink.abort()
    with pytest.raises(InvalidRequestError, match="have 6 frames, the state is of frame 12"):
        take_up(path, 12)
    assert recorded_frames(path) == 6


@pytest.mark.parametrize("left", ["libopenh264", "mpeg4"])
def test_an_ffmpeg_without_the_best_encoder(tmp_path, fake_ffmpeg, left):
    hidden = "libx264" if left == "libopenh264" else "264"
    fake_ffmpeg(
        'for word in "$@"; do\n'
        f'  [ "$word" = -encoders ] && {{ "$REAL" "$@" | grep -v {hidden}; exit; }}\n'
        # One that cannot make an ordinary file of a fragmented one either.
        '  [ "$word" = muxer=mp4 ] && { "$REAL" "$@" | grep -v hybrid; exit; }\n'
        'done\nexec "$REAL" "$@"'
    )
    assert video_encoder() == left
    sink = open_stream(tmp_path / "clip.mp4")
    write_chunks(sink, 0, 6)
    sink.close()
    assert numbers_in(tmp_path / "clip.mp4") == list(range(12))
    assert probe_video(tmp_path / "clip.mp4").codec == {"libopenh264": "h264"}.get(left, left)


def test_an_ffmpeg_without_any(tmp_path, fake_ffmpeg):
    fake_ffmpeg("exit 0")
    sink = open_stream(tmp_path / "clip.mp4")
    with pytest.raises(RuntimeFailureError, match="none of the encoders"):
        write_chunks(sink, 0)
    assert left_in(tmp_path) == []


def tone(path: Path, seconds: float) -> Path:
    """A file of sound."""
    arguments = ["-y", "-f", "lavfi", "-i", f"sine=frequency=440:duration={seconds}"]
    with ffmpeg.Decoder([*arguments, "-c:a", "aac", str(path)]) as process:
        assert process.finish() == 0, process.said
    return path


def sound_seconds(path: Path) -> float:
    """How long the sound of a file is; 0 without one."""
    with ffmpeg.Decoder(
        ["-i", str(path), "-map", "0:a:0", "-f", "s16le", "-ac", "1", "-ar", "8000", "pipe:1"]
    ) as process:
        data = b"".join(process.lines())
        process.finish()
    return len(data) / 16000


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_the_sound_of_the_first_part_is_in_the_whole_file(tmp_path, name):
    audio = AudioTrack(tone(tmp_path / "tone.m4a", 2.0), 0.5)
    sink = open_stream(tmp_path / name, audio=audio)
    for number in range(4):
        sink.write(chunk(number))
    sink.close({**RECIPE, "frames": 4 * CHUNK})
    assert count_frames(tmp_path / name) == 4 * CHUNK
    # Copied packets end with the one in which the part ends.
    assert sound_seconds(tmp_path / name) == pytest.approx(0.5, abs=0.08)
    assert not sink.notices


def test_sound_stays_when_a_piece_is_joined_to_it(tmp_path):
    audio = AudioTrack(tone(tmp_path / "tone.m4a", 2.0), 0.2)
    first = open_stream(tmp_path / "clip.mp4", audio=audio)
    first.write(chunk(0))
    first.write(chunk(1))
    first.close(RECIPE)
    pieces = take_up(tmp_path / "clip.mp4", 2 * CHUNK)
    again = AudioTrack(pieces[0], 0.2)
    second = open_stream(tmp_path / "clip.mp4", earlier=pieces, audio=again)
    second.write(chunk(2))
    second.close(RECIPE)
    assert count_frames(tmp_path / "clip.mp4") == 3 * CHUNK
    assert sound_seconds(tmp_path / "clip.mp4") == pytest.approx(0.2, abs=0.1)
