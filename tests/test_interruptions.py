"""Stopped at every stage, by Ctrl-C, SIGTERM and kill -9: nothing half-written, nothing lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

TESTS = Path(__file__).parent
COMMAND = (
    *("generate", "cat.png", "pan left", "--model", "tiny", "--seed", "7", "-o", "clip.mp4"),
    *("-f", "9", "--steps", "3", "--device", "cpu", "-q"),
)
INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL
CODES = {INT: 130, TERM: 143, KILL: -9}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    code: int
    out: str
    err: str
    files: set[str]


@pytest.fixture(scope="module")
def server(tiny_home):
    """A process that has imported everything and forks a child for each run."""
    with fork_server(tiny_home) as process:
        yield process


@contextlib.contextmanager
def fork_server(home):
    """The program `fork_server.py`, which answers jobs."""
    environment = {
        **os.environ,
        "OSP_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "fork_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    yield process
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    process.stdout.close()


class Osp:
    """Runs `osp` in a folder with a picture, struck by signals at a stage."""

    def __init__(self, server, folder):
        self.server, self.folder = server, folder
        folder.mkdir()
        Image.radial_gradient("L").resize((96, 64)).convert("RGB").save(folder / "cat.png")

    def __call__(self, *argv, stage=None, signals=(), **more):
        job = {"argv": argv, "cwd": str(self.folder), "stage": stage, "signals": [*signals], **more}
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        code = json.loads(self.server.stdout.readline())
        # A video on stdout is no text, and where stdout was a pipe there is no such file.
        path = self.folder / "stdout"
        out = path.read_text(errors="replace") if path.exists() else ""
        err = (self.folder / "stderr").read_text()
        files = {path.name for path in self.folder.iterdir()} - {"cat.png", "stdout", "stderr"}
        return Outcome(code, out, err, files)

    def clip(self):
        """The bytes of the clip and of its sidecar."""
        return [(self.folder / name).read_bytes() for name in ("clip.mp4", "clip.mp4.json")]


@pytest.fixture
def osp(server, tmp_path):
    return Osp(server, tmp_path / "work")


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """What an uninterrupted run makes."""
    osp = Osp(server, tmp_path_factory.mktemp("whole") / "work")
    outcome = osp(*COMMAND)
    assert (outcome.code, outcome.out, outcome.err) == (0, "clip.mp4\n", "")
    assert outcome.files == WHOLE
    return osp.clip()


def visible(files):
    return {name for name in files if not name.startswith(".")}


WHOLE = {"clip.mp4", "clip.mp4.json"}
LATENTS = {"clip.latents.safetensors"}
# What a run leaves under visible names, by stage: after a signal that can be caught, after kill -9.
LEFT = {
    "load": (set(), set()),
    "condition": (set(), set()),
    "first step": (LATENTS, set()),
    "second step": (LATENTS, set()),
    "save latents": (LATENTS, set()),
    "decode": (LATENTS, LATENTS),
    "encode": (LATENTS, LATENTS),
    "rename": (LATENTS, LATENTS),
    "clean up": (WHOLE | LATENTS, WHOLE | LATENTS),
}


def test_equal_runs_give_equal_bytes(osp, whole):
    assert osp(*COMMAND).files == WHOLE
    assert osp.clip() == whole


@pytest.mark.parametrize("stage", LEFT)
@pytest.mark.parametrize("number", [INT, TERM, KILL], ids=lambda number: number.name)
def test_stopped(osp, whole, stage, number):
    outcome = osp(*COMMAND, stage=stage, signals=[number])
    caught, killed = LEFT[stage]
    assert outcome.code == CODES[number]
    assert visible(outcome.files) == (killed if number == KILL else caught)
    if number == KILL:
        assert outcome.err == ""
    else:
        assert outcome.files == visible(outcome.files)
        assert "Traceback" not in outcome.err
        kept = (
            "kept: clip.latents.safetensors\n"
            "hint: osp generate --from clip.latents.safetensors goes on from it\n"
        )
        assert (kept in outcome.err) == (bool(caught) and stage != "clean up")
        saved = "clip.mp4 was saved" if stage == "clean up" else "no video was saved"
        assert saved in outcome.err

    # Whatever was left: the same command makes the same clip and leaves nothing else to be seen.
    again = osp(*COMMAND, *(["-y"] if stage == "clean up" else []))
    assert (again.code, visible(again.files)) == (0, WHOLE)
    assert osp.clip() == whole


@pytest.mark.parametrize("stage", ["first step", "second step", "decode"])
def test_latents_are_finished_by_name(osp, whole, stage):
    assert osp(*COMMAND, stage=stage, signals=[INT]).files == LATENTS
    # The picture is not needed any more.
    (osp.folder / "cat.png").rename(osp.folder / "cat.gone")
    outcome = osp("generate", "--from", "clip.latents.safetensors", "-q")
    assert (outcome.code, outcome.out) == (0, "clip.mp4\n")
    assert visible(outcome.files) == WHOLE | {"cat.gone"}
    assert osp.clip() == whole


@pytest.mark.parametrize("number", [INT, TERM], ids=lambda number: number.name)
@pytest.mark.parametrize("stage", ["first step", "save latents"])
def test_the_second_signal_does_not_wait(osp, stage, number):
    outcome = osp(*COMMAND, stage=stage, signals=[number, number])
    assert (outcome.code, outcome.files) == (CODES[number], set())
    assert "no video was saved" in outcome.err


def test_a_step_that_is_being_finished_is_told(osp):
    command = [word for word in COMMAND if word != "-q"]
    outcome = osp(*command, stage="first step", signals=[INT])
    assert "finishing this step" in outcome.err
    assert "interrupted after step 1 of 3" in outcome.err


@pytest.mark.parametrize("number", [INT, KILL], ids=lambda number: number.name)
def test_a_batch_keeps_what_is_whole(osp, number):
    command = [word if word != "clip.mp4" else "clip-{seed}.mp4" for word in COMMAND]
    outcome = osp(*command, "--count", "3", stage="second video", signals=[number])
    assert outcome.code == CODES[number]
    assert visible(outcome.files) == {
        "clip-7.mp4",
        "clip-7.mp4.json",
        "clip-8.latents.safetensors",
    }
    assert outcome.out == "clip-7.mp4\n"
    if number == INT:
        assert "clip-7.mp4 was saved" in outcome.err


def test_stages_of_the_json_stream_end_with_an_error(osp):
    command = [word for word in COMMAND if word != "-q"]
    outcome = osp(*command, "--json", stage="decode", signals=[TERM])
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert [event["type"] for event in events[-3:]] == ["latents", "stage", "error"]
    assert events[-1]["exit_code"] == 143
    assert events[-1]["kept"] == ["clip.latents.safetensors"]


@pytest.mark.parametrize("number", [INT, TERM, KILL], ids=lambda number: number.name)
def test_stopped_while_libraries_are_imported(tmp_path, number):
    Image.new("RGB", (64, 48)).save(tmp_path / "cat.png")
    process = subprocess.Popen(
        [sys.executable, "-m", "osp_cli", "generate", "cat.png", "zoom in", "-o", "clip.mp4"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OSP_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, Ctrl-C is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # The first word is said before torch is asked for.
    assert process.stderr.readline() == "load\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == CODES[number]
    assert out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"cat.png"}
    if number != KILL:
        assert err == "error: interrupted, no video was saved\n"
