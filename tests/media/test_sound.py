"""The sound of a source goes along: unchanged where it can be, and in time with the pictures."""

from __future__ import annotations

import re
import runpy
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from osp_cli.errors import UnreadableMediaError
from osp_cli.media import ffmpeg
from osp_cli.media.sinks import FileSink, StreamSink, open_sink, read_recipe
from osp_cli.media.sound import AudioTrack
from osp_cli.media.source_video import probe_source
from osp_cli.media.video import probe_video, read_comment, read_video, write_video
from osp_cli.outputs import STDOUT, takes_sound

_CLIPS = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "clips.py")))
make, numbered, run = _CLIPS.make, _CLIPS.numbered, _CLIPS.run

RATE = 48000
# Silence, and a tone from one second on.
BEEP = f"aevalsrc='if(gte(t,1),0.5*sin(2*PI*880*t),0)':s={RATE}:d=2"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two seconds at 10 fps."""
    return make(tmp_path_factory.mktemp("pictures") / "pictures.mkv", numbered(20), fps=10)


def with_sound(path: Path, pictures: Path, *codec: object, sound_at=0.0, pictures_at=0.0) -> Path:
    """Pictures and a beep, a second after the sound's beginning; each may begin later."""
    run(
        *("-itsoffset", pictures_at, "-i", pictures),
        *("-itsoffset", sound_at, "-f", "lavfi", "-i", BEEP),
        *("-map", "0", "-map", "1", "-c:v", "copy", *codec, path),
    )
    return path


def heard(path: Path) -> np.ndarray:
    """The sound as a player has it from the first picture on: mono samples, 48000 a second."""
    command = [
        *(ffmpeg.ffmpeg_exe(), "-loglevel", "error", "-i", path, "-map", "0:a:0", "-ac", "1"),
        *("-ar", str(RATE), "-af", "aresample=async=1:first_pts=0", "-f", "f32le", "-"),
    ]
    done = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.float32)


def beep_at(path: Path) -> float:
    """The second in which the tone begins."""
    return float(np.argmax(np.abs(heard(path)) > 0.1)) / RATE


def packets(path: Path) -> list[str]:
    """Checksums of the packets of sound."""
    command = [ffmpeg.ffmpeg_exe(), "-loglevel", "error", "-i", path, "-map", "0:a:0", "-c", "copy"]
    done = subprocess.run([*command, "-f", "framecrc", "-"], capture_output=True, text=True)
    return re.findall(r"^0,.*?(0x\w+)", done.stdout, re.MULTILINE)


def sound_codec(path: Path) -> str | None:
    command = [ffmpeg.ffmpeg_exe(), "-hide_banner", "-i", path]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Audio: (\w+)", done.stderr)
    return found[1] if found else None


def restyled(source: Path, path: Path, *, seconds: float = 2.0, start: float = 0.0, **kwargs):
    """Write other pictures with the sound of `source`; what there is to say about it."""
    notices: list[str] = []
    track = probe_source(source).sound(seconds, start)
    assert track is not None
    clip = numbered(20)[: round(seconds * 10)]
    write_video(clip, path, fps=10, audio=track, notices=notices, **kwargs)
    return notices


@pytest.mark.parametrize(
    ("name", "encoder", "codec"),
    [
        ("a.mp4", "aac", "aac"),
        ("a.ts", "aac", "aac"),
        ("a.mkv", "libmp3lame", "mp3"),
        ("a.mkv", "ac3", "ac3"),
        ("a.mkv", "eac3", "eac3"),
        ("a.mkv", "libopus", "opus"),
        ("a.mkv", "alac", "alac"),
        ("a.mkv", "flac", "flac"),
    ],
)
def test_copied_where_mp4_can_hold_it(tmp_path, pictures, name, encoder, codec):
    source = with_sound(tmp_path / name, pictures, "-c:a", encoder)
    assert probe_source(source).audio_codec == codec
    assert restyled(source, tmp_path / "out.mp4") == []
    assert sound_codec(tmp_path / "out.mp4") == codec
    kept, given = packets(tmp_path / "out.mp4"), packets(source)
    if name != "a.ts":  # whose packets carry headers that an MP4 has no use for
        assert kept == given[: len(kept)]
        assert beep_at(tmp_path / "out.mp4") == pytest.approx(beep_at(source), abs=0.005)
    assert len(given) - len(kept) <= 3
    assert beep_at(tmp_path / "out.mp4") == pytest.approx(1.0, abs=0.03)
    info = probe_video(tmp_path / "out.mp4")
    assert (info.codec, info.num_frames, info.fps) == ("h264", 20, 10.0)


@pytest.mark.parametrize("encoder", ["pcm_s16le", "libvorbis", "mp2"])
def test_other_sound_becomes_aac(tmp_path, pictures, encoder):
    source = with_sound(tmp_path / "a.mkv", pictures, "-c:a", encoder)
    assert restyled(source, tmp_path / "out.mp4") == []
    assert sound_codec(tmp_path / "out.mp4") == "aac"
    assert beep_at(tmp_path / "out.mp4") == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.ts", "aac"), ("a.mkv", "pcm_s16le")],
)
@pytest.mark.parametrize(
    ("sound_at", "pictures_at"), [(0.4, 0.0), (0.0, 0.4)], ids=["sound late", "pictures late"]
)
def test_in_time_whichever_begins_first(tmp_path, pictures, name, codec, sound_at, pictures_at):
    source = with_sound(
        tmp_path / name, pictures, "-c:a", codec, sound_at=sound_at, pictures_at=pictures_at
    )
    assert restyled(source, tmp_path / "out.mp4") == []
    # A second after the sound begins, on the clock of the pictures.
    assert beep_at(tmp_path / "out.mp4") == pytest.approx(1 + sound_at - pictures_at, abs=0.03)


@pytest.mark.parametrize("encoder", ["aac", "pcm_s16le"])
def test_a_part_of_the_sound(tmp_path, pictures, encoder):
    source = with_sound(tmp_path / "a.mkv", pictures, "-c:a", encoder)
    restyled(source, tmp_path / "out.mp4", seconds=0.9, start=0.7)
    assert beep_at(tmp_path / "out.mp4") == pytest.approx(0.3, abs=0.03)
    assert len(heard(tmp_path / "out.mp4")) / RATE == pytest.approx(0.9, abs=0.05)


def test_cut_to_the_length_of_the_result(tmp_path, pictures):
    source = with_sound(tmp_path / "a.mp4", pictures)
    restyled(source, tmp_path / "out.mp4", seconds=1.2)
    assert len(heard(tmp_path / "out.mp4")) / RATE == pytest.approx(1.2, abs=0.03)


def test_equal_inputs_give_equal_bytes(tmp_path, pictures):
    for codec in ("aac", "pcm_s16le"):
        source = with_sound(tmp_path / f"{codec}.mkv", pictures, "-c:a", codec)
        written = []
        for name in ("one.mp4", "two.mp4"):
            restyled(source, tmp_path / name, comment="recipe")
            written.append((tmp_path / name).read_bytes())
        assert written[0] == written[1]
        assert read_comment(tmp_path / "one.mp4") == "recipe"


def test_the_pictures_are_those_without_sound(tmp_path, pictures):
    source = with_sound(tmp_path / "a.mp4", pictures)
    restyled(source, tmp_path / "with.mp4")
    write_video(numbered(20), tmp_path / "without.mp4", fps=10)
    np.testing.assert_array_equal(
        read_video(tmp_path / "with.mp4"), read_video(tmp_path / "without.mp4")
    )


def silent(path: Path, notices: list[str], words: str) -> None:
    assert sound_codec(path) is None
    assert probe_video(path).num_frames == 20
    assert len(notices) == 1
    assert re.search(words, notices[0])


def test_without_sound_the_video_is_silent(tmp_path, pictures):
    assert probe_source(pictures).sound(2) is None
    notices: list[str] = []
    track = AudioTrack(pictures, 2)
    write_video(numbered(20), tmp_path / "out.mp4", fps=10, audio=track, notices=notices)
    silent(tmp_path / "out.mp4", notices, r"pictures\.mkv has no sound")


def test_sound_that_ends_before_the_part(tmp_path, pictures):
    source = with_sound(tmp_path / "a.mkv", pictures)
    notices: list[str] = []
    track = AudioTrack(source, 2, start=30)
    write_video(numbered(20), tmp_path / "out.mp4", fps=10, audio=track, notices=notices)
    silent(tmp_path / "out.mp4", notices, "cannot be used")


def test_sound_that_cannot_be_read(tmp_path, pictures, fake_ffmpeg):
    source = with_sound(tmp_path / "a.mkv", pictures)
    fake_ffmpeg(
        'case "$*" in *sound.mp4*) echo "it is broken" >&2; exit 1;; esac; exec "$REAL" "$@"'
    )
    notices = restyled(source, tmp_path / "out.mp4")
    silent(tmp_path / "out.mp4", notices, "cannot be used .*it is broken")


def test_sound_that_cannot_be_copied_becomes_aac(tmp_path, pictures, fake_ffmpeg):
    source = with_sound(tmp_path / "a.mkv", pictures, "-c:a", "libopus")
    fake_ffmpeg('case "$*" in *"0:a:0 -c:a copy"*) exit 1;; esac; exec "$REAL" "$@"')
    (notice,) = restyled(source, tmp_path / "out.mp4")
    assert "now AAC" in notice
    assert sound_codec(tmp_path / "out.mp4") == "aac"
    assert beep_at(tmp_path / "out.mp4") == pytest.approx(1.0, abs=0.03)


def test_a_file_that_has_gone(tmp_path):
    notices: list[str] = []
    track = AudioTrack(tmp_path / "gone.mp4", 2)
    write_video(numbered(20), tmp_path / "out.mp4", fps=10, audio=track, notices=notices)
    silent(tmp_path / "out.mp4", notices, r"gone\.mp4")
    with pytest.raises(UnreadableMediaError):
        probe_source(tmp_path / "gone.mp4")


@pytest.mark.parametrize(("seconds", "start"), [(0, 0), (-1, 0), (2, -1)])
def test_no_part_at_all(seconds, start):
    with pytest.raises(ValueError, match="no sound lasts"):
        AudioTrack(Path("a.mp4"), seconds, start)


# --- sinks ------------------------------------------------------------------------------------


def test_which_outputs_take_sound():
    assert takes_sound(Path("a.mp4"))
    assert takes_sound(Path("a.MP4"))
    assert takes_sound(STDOUT)
    for name in ("a.gif", "a.webp", "frames/%04d.png"):
        assert not takes_sound(Path(name))


def test_the_sink_keeps_sound_and_recipe(tmp_path, pictures):
    source = with_sound(tmp_path / "a.mp4", pictures)
    track = probe_source(source).sound(2)
    sink = open_sink(tmp_path / "out.mp4", fps=10, recipe={"seed": 7}, audio=track)
    assert isinstance(sink, FileSink)
    sink.write(numbered(20))
    assert sink.notices == []
    assert sound_codec(tmp_path / "out.mp4") == "aac"
    assert read_recipe(tmp_path / "out.mp4") == {"seed": 7}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "a.mp4",
        "out.mp4",
        "out.mp4.json",
    ]


def test_the_stream_has_sound(tmp_path, pictures, capfdbinary):
    source = with_sound(tmp_path / "a.mp4", pictures)
    StreamSink(fps=10, recipe=None, audio=AudioTrack(source, 2)).write(numbered(20))
    (tmp_path / "out.mp4").write_bytes(capfdbinary.readouterr().out)
    assert beep_at(tmp_path / "out.mp4") == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("output", ["out.gif", "out.webp", "frames/%04d.png"])
def test_other_outputs_say_that_they_are_silent(tmp_path, pictures, output):
    source = with_sound(tmp_path / "a.mp4", pictures)
    sink = open_sink(tmp_path / output, fps=10, recipe={}, audio=AudioTrack(source, 2))
    sink.write(numbered(20))
    assert len(sink.notices) == 1
    assert "cannot hold the sound" in sink.notices[0]


def test_frames_are_encoded_as_they_come(tmp_path, pictures):
    source = with_sound(tmp_path / "a.mp4", pictures)
    path = tmp_path / "out.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (90, 48, 64, 3), np.uint8)
    sizes = []

    def slow():
        for index, frame in enumerate(noise):
            if index >= 70:
                time.sleep(0.03)
                part = next(tmp_path.glob(".out.mp4.*"))
                sizes.append(part.stat().st_size)
            assert not path.exists()
            yield frame

    open_sink(path, fps=10, recipe={}, audio=AudioTrack(source, 2)).write(slow())
    assert sizes[-1] > 0
    assert probe_video(path).num_frames == 90
    assert beep_at(path) == pytest.approx(1.0, abs=0.03)


def test_interrupted_with_sound_nothing_is_left(tmp_path, pictures, monkeypatch):
    source = with_sound(tmp_path / "a.mp4", pictures)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def breaking():
        yield from numbered(20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_sink(tmp_path / "out.mp4", fps=10, recipe={}, audio=AudioTrack(source, 2)).write(
            breaking()
        )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.mp4", "tmp"]
    assert list(temporary.iterdir()) == []
