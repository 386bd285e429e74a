"""A stream that is stopped, killed or cut off: what there is plays, and it goes on from there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from test_interruptions import CODES, INT, KILL, TERM, Osp, server, visible

from osp_cli.media.ffmpeg import ffmpeg_exe
from osp_cli.media.live import count_frames
from osp_cli.media.recipes import read_recipe
from osp_cli.media.video import read_video
from osp_cli.runtime.stream_state import states_of

assert server
CHUNK, LENGTH = 12, 49
STREAM = ("extend", "cat.png", "pan left", "--model", "tiny", "--realtime", "--seed", "7")
STREAM += ("--fps", "12", "--device", "cpu", "-q")
COMMAND = (*STREAM, "-f", str(LENGTH), "-o", "clip.mp4")
RESUME = ("extend", "--resume", "clip.state.safetensors", "--device", "cpu", "-q")
WHOLE = {"clip.mp4", "clip.mp4.json", "clip.state.safetensors"}
CUT = {"clip.recording.mp4", "clip.state.safetensors"}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Stream(Osp):
    """Streams, and what they leave."""

    def state(self):
        return states_of(self.folder / "clip.state.safetensors")[0]

    def frames(self, name="clip.mp4"):
        return count_frames(self.folder / name)

    def ended(self):
        """Wait for an ffmpeg that sees the end of its input, as a killed run leaves it."""
        until = time.monotonic() + 5
        while self.orphans() and time.monotonic() < until:
            time.sleep(0.02)

    def orphans(self):
        """Programs that write into this folder and should not be there any more."""
        found = []
        for process in psutil.process_iter(["name", "cmdline"]):
            with contextlib.suppress(psutil.Error):
                if process.info["cmdline"] and str(self.folder) in " ".join(
                    [*process.info["cmdline"], process.cwd()]
                ):
                    found.append(process.info["name"])
        return found

    def taken_up(self, whole):
        """Take it up: in the end it is as if nothing had happened."""
        outcome = self(*RESUME)
        assert (outcome.code, outcome.out, outcome.err) == (0, "clip.mp4\n", "")
        assert visible(outcome.files) == WHOLE
        state = self.state()
        assert state.frames == state.made == LENGTH
        assert state.tensors.keys() == whole.tensors.keys()
        for name, tensor in whole.tensors.items():
            assert torch.equal(state.tensors[name], tensor), name
        assert state.notes == whole.notes
        assert len(read_video(self.folder / "clip.mp4")) == LENGTH
        assert read_recipe(self.folder / "clip.mp4")["frames"] == LENGTH


@pytest.fixture
def osp(server, tmp_path):
    stream = Stream(server, tmp_path / "work")
    yield stream
    assert stream.orphans() == []


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """The last state of an uninterrupted stream."""
    stream = Stream(server, tmp_path_factory.mktemp("whole") / "work")
    outcome = stream(*COMMAND)
    assert (outcome.code, outcome.out, outcome.err) == (0, "clip.mp4\n", "")
    assert visible(outcome.files) == WHOLE
    assert stream.frames() == LENGTH
    return stream.state()


# Where a signal strikes, and how many chunks the file has at least after one that can be caught.
STAGES = {
    "second chunk": 2,
    "decode chunk": 2,
    "write chunk": 2,
    "chunk written": 2,
    "state written": 2,
    "close": 4,
}


@pytest.mark.parametrize(
    ("stage", "number"),
    [("second chunk", INT), ("close", INT), ("second chunk", TERM),
     *(pytest.param(stage, INT, marks=pytest.mark.slow)
       for stage in ("decode chunk", "write chunk", "chunk written", "state written"))],
)  # fmt: skip
def test_one_signal_finishes_the_chunk(osp, whole, stage, number):
    outcome = osp(*COMMAND, stage=stage, signals=[number])
    assert outcome.code == CODES[number], outcome.err
    assert visible(outcome.files) == WHOLE
    # Those that had been begun still come.
    count = osp.frames()
    assert count in (1 + CHUNK * STAGES[stage], min(LENGTH, 1 + CHUNK * (STAGES[stage] + 1)))
    assert len(read_video(osp.folder / "clip.mp4")) == count == osp.state().frames
    assert f"stopped after {count / 12:.1f} s" in outcome.err
    assert "Traceback" not in outcome.err
    assert "clip.state.safetensors" in outcome.err
    osp.taken_up(whole)


@pytest.mark.parametrize(
    "stage", ["second chunk", pytest.param("state written", marks=pytest.mark.slow)]
)
def test_the_second_signal_does_not_wait(osp, whole, stage):
    outcome = osp(*COMMAND, stage=stage, signals=[INT, INT])
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert visible(outcome.files) == CUT
    assert osp.frames("clip.recording.mp4") >= osp.state().frames
    osp.taken_up(whole)


def test_stopped_before_there_is_anything(osp, whole):
    outcome = osp(*COMMAND, stage="first chunk", signals=[INT, INT])
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert "clip.mp4" not in outcome.files
    again = osp(*COMMAND, "-y")
    assert (again.code, visible(again.files)) == (0, WHOLE)


@pytest.mark.parametrize(
    "stage",
    ["third chunk", "state", "join", *(pytest.param(stage, marks=pytest.mark.slow)
     for stage in ("write chunk", "chunk written", "close", "publish"))],
)  # fmt: skip
def test_killed(osp, whole, stage):
    outcome = osp(*COMMAND, stage=stage, signals=[KILL])
    assert (outcome.code, outcome.err) == (-9, "")
    osp.ended()
    kept = visible(outcome.files)
    assert kept >= CUT
    assert "clip.mp4" not in kept
    there = len(read_video(osp.folder / "clip.recording.mp4"))
    assert there >= 1 + CHUNK
    assert any(state.frames <= there for state in states_of(osp.folder / "clip.state.safetensors"))
    osp.taken_up(whole)


def test_killed_when_only_the_recipe_was_missing(osp, whole):
    outcome = osp(*COMMAND, stage="sidecar", signals=[KILL])
    assert (outcome.code, visible(outcome.files)) == (-9, WHOLE - {"clip.mp4.json"})
    osp.taken_up(whole)


def test_killed_twice(osp, whole):
    osp(*COMMAND, stage="third chunk", signals=[KILL])
    before = osp.state().frames
    outcome = osp(*RESUME, stage="third chunk", signals=[KILL])
    assert outcome.code == -9
    assert osp.state().frames > before
    osp.taken_up(whole)


def test_killed_before_the_first_chunk_was_there(osp, whole):
    outcome = osp(*COMMAND, stage="first chunk", signals=[KILL])
    assert visible(outcome.files) == CUT
    osp.ended()
    # Its only picture is the one that it begins with.
    assert osp.state().frames == 1
    osp.taken_up(whole)


@pytest.mark.parametrize("stage", ["write third", "close"])
def test_ffmpeg_is_killed(osp, whole, stage):
    outcome = osp(*COMMAND, stage=stage, signals=[KILL], ffmpeg=True)
    assert outcome.code == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert "clip.recording.mp4 plays up to its frame" in outcome.err
    assert "--resume" in outcome.err
    assert visible(outcome.files) == CUT
    assert len(read_video(osp.folder / "clip.recording.mp4")) >= CHUNK
    osp.taken_up(whole)


def test_a_killed_stream_is_not_written_over(osp):
    osp(*COMMAND, stage="second chunk", signals=[KILL])
    osp.ended()
    before = (osp.folder / "clip.recording.mp4").read_bytes()
    outcome = osp(*COMMAND)
    assert outcome.code == 2
    assert "clip.recording.mp4 exists already" in outcome.err
    assert (osp.folder / "clip.recording.mp4").read_bytes() == before


def test_the_json_stream_ends_with_an_error(osp):
    command = [word for word in COMMAND if word != "-q"]
    outcome = osp(*command, "--json", stage="second chunk", signals=[TERM])
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert [event["type"] for event in events[-2:]] == ["saved", "error"]
    assert events[-1]["exit_code"] == 143
    assert events[-1]["kept"] == ["clip.mp4", "clip.state.safetensors"]


# A full disk


@pytest.fixture
def tiny_disk(server, tmp_path):
    """A stream in a file system of 1.5 MB; needs the right to mount one."""
    stream = Stream(server, tmp_path / "disk")
    shutil.rmtree(stream.folder)
    stream.folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(stream.folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a file system here")
    Image.radial_gradient("L").resize((96, 64)).convert("RGB").save(stream.folder / "cat.png")
    yield stream
    subprocess.run(["umount", "-l", str(stream.folder)], check=True, capture_output=True)


def test_a_full_disk(tiny_disk):
    outcome = tiny_disk(*STREAM, "-o", "clip.mp4")
    assert outcome.code == 4, outcome.err
    assert "no space left" in outcome.err
    assert "Traceback" not in outcome.err
    assert "clip.mp4" not in outcome.files
    assert not [name for name in outcome.files if "part" in name]
    there = len(read_video(tiny_disk.folder / "clip.recording.mp4"))
    assert any(
        state.frames <= there for state in states_of(tiny_disk.folder / "clip.state.safetensors")
    )


# Pipes


def decoded(path, *arguments):
    """Pictures in a file, as ffmpeg counts them, which must find nothing wrong."""
    done = subprocess.run(
        [ffmpeg_exe(), "-v", "error", *arguments, "-i", str(path), "-f", "rawvideo",
         "-pix_fmt", "gray", "-"],
        capture_output=True,
    )  # fmt: skip
    assert done.stderr == b""
    return len(done.stdout) / (96 * 64)


@pytest.mark.parametrize("sink", ["stdout", "stdout:y4m"])
def test_a_stream_on_stdout(osp, sink):
    outcome = osp(*STREAM, "-f", "25", "-o", "-", "--sink", sink)
    assert (outcome.code, outcome.err) == (0, "")
    assert visible(outcome.files) == set()
    start = (osp.folder / "stdout").read_bytes()[:10]
    assert start.startswith(b"YUV4MPEG2 " if "y4m" in sink else b"\x1a\x45\xdf\xa3")
    assert decoded(osp.folder / "stdout") == 25


@pytest.mark.parametrize("sink", ["stdout", "stdout:y4m"])
def test_who_watches_may_leave(osp, sink):
    pipe = osp.folder / "pipe"
    os.mkfifo(pipe)
    seen = []

    def watch():
        with pipe.open("rb") as file:
            seen.append(file.read(2000))

    watcher = threading.Thread(target=watch)
    watcher.start()
    # Without end, if nobody left.
    outcome = osp(*STREAM, "-o", "-", "--sink", sink, stdout="pipe")
    watcher.join()
    assert len(seen[0]) == 2000
    assert (outcome.code, outcome.err) == (0, "")
    assert visible(outcome.files) == {"pipe"}


def test_a_line_on_stdin_changes_the_stream(osp):
    pipe = osp.folder / "lines"
    os.mkfifo(pipe)
    said = []

    def speak():
        with pipe.open("w") as file:
            state = osp.folder / "clip.state.safetensors"
            until = time.monotonic() + 30
            while not state.exists() and time.monotonic() < until:
                time.sleep(0.01)
            said.append(states_of(state)[0].made / 12)
            file.write("snow falls --style ink\n")
            file.flush()
            time.sleep(0.3)
            file.write("quit\n")

    speaker = threading.Thread(target=speak)
    speaker.start()
    outcome = osp(*STREAM, "-o", "clip.mp4", stdin=str(pipe))
    speaker.join()
    assert (outcome.code, outcome.err) == (0, "")
    log = (osp.folder / "clip.screenplay.txt").read_text().splitlines()
    assert log[0].startswith("0s: pan left")
    time_of, _, line = log[1].partition(": ")
    assert line == "snow falls --style ink"
    from osp_cli.screenplay import parse_screenplay

    [_, cue] = parse_screenplay("\n".join(log))
    # Chunks of a second: from the one after the next on.
    assert said[0] <= cue.seconds <= said[0] + 3, time_of
    assert read_recipe(osp.folder / "clip.mp4")["screenplay"].splitlines() == log

    # The log plays it again, to the last bit.
    first, count = osp.state(), osp.frames()
    again = osp(*STREAM, "-f", str(count), "-F", "clip.screenplay.txt", "-o", "again.mp4")
    assert again.code == 0, again.err
    second = states_of(osp.folder / "again.state.safetensors")[0]
    assert torch.equal(first.tensors["stream.history"], second.tensors["stream.history"])
    assert Path(osp.folder / "clip.mp4").stat().st_size > 0


def test_what_makes_no_sense_on_stdin_is_told_and_nothing_stops(osp):
    (osp.folder / "lines").write_text("--style of-nobody\n\n# nothing\n--steps 3\n")
    outcome = osp(*STREAM, "-f", "37", "-o", "clip.mp4", stdin="lines")
    assert outcome.code == 0
    assert outcome.err.count("not done:") == 2
    assert osp.frames() == 37
    assert "clip.screenplay.txt" not in outcome.files
