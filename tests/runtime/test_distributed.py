"""Several processes make one clip: the same bytes as one, and none of them is ever left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from osp_cli.dials import NO_CACHE
from osp_cli.errors import InvalidRequestError, WontFitError
from osp_cli.pipelines.flash_i2v import SamplingState
from osp_cli.pipelines.wan_i2v import FirstFrameConditions
from osp_cli.runtime import devices
from osp_cli.runtime.distributed import Seat, check_share
from osp_cli.runtime.parallel import pack, unpack
from osp_cli.runtime.planner import make_plan
from osp_cli.runtime.strategy import Machine

TESTS = Path(__file__).parents[1]
COMMAND = (
    *("generate", "cat.png", "pan left", "--model", "tiny", "--seed", "7", "-o", "clip.mp4"),
    *("-f", "9", "--steps", "4", "--device", "cpu", "--cfg", "2", "-q"),
)
TWO = ("--gpus", "2")
WHOLE = {"clip.mp4", "clip.mp4.json"}
LATENTS = {"clip.latents.safetensors"}
GB = 10**9

slow = pytest.mark.slow
needs_fork = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs fork and /proc")


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
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "crew_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "OSP_HOME": str(tiny_home),
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        },
    )
    yield process
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    process.stdout.close()


class Osp:
    """Runs `osp` in a folder with a picture; something may happen in one of its processes."""

    def __init__(self, server, folder):
        self.server, self.folder = server, folder
        folder.mkdir()
        Image.radial_gradient("L").resize((96, 64)).convert("RGB").save(folder / "cat.png")

    def __call__(self, *argv, rank=0, at=None, doing=()):
        job = {"argv": argv, "cwd": str(self.folder)}
        if at is not None:
            where = dict(zip(("owner", "name", "call"), at, strict=True))
            job["strike"] = {"rank": rank, **where, "doing": doing}
        (self.folder / "pids").unlink(missing_ok=True)
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        code = json.loads(self.server.stdout.readline())
        out, err = (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text()
        files = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        return Outcome(code, out, err, files - {"cat.png", "stdout", "stderr", "pids"})

    def clip(self, name="clip.mp4"):
        """The bytes of a clip and of its sidecar."""
        return [(self.folder / each).read_bytes() for each in (name, f"{name}.json")]

    def processes(self):
        """Of those that the last run started, the ones that are still there."""
        pids = (self.folder / "pids").read_text().split()
        return [pid for pid in pids if is_running(pid)]


def is_running(pid):
    try:
        # What follows the name, which may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def osp(server, tmp_path):
    return Osp(server, tmp_path / "osp")


STEP_2 = ("pipeline", "velocity", 2)
LOADING = ("loading", "_load_transformer", 1)


# --- The same clip ----------------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize(
    "flags",
    [
        (),
        # 27 tokens are not shared evenly.
        ("--size", "96x96", "--cache", "fbcache:0.5"),
        pytest.param(("--cache", "fbcache:0.3", "--sampler", "unipc"), marks=slow),
        pytest.param(("--cache", "magcache:0.5", "--style", "ghibli:0.4+ink:0.6"), marks=slow),
        pytest.param(("--cache", "none", "--style", "none..ink:0.5..oil"), marks=slow),
        pytest.param(("--cache", "none", "--offload", "group", "--quant", "fp8"), marks=slow),
        pytest.param(("--cache", "none", "--offload", "model", "--preview", "latent"), marks=slow),
    ],
    ids=" ".join,
)
def test_two_processes_make_the_bytes_of_one(osp, flags):
    assert osp(*COMMAND, *flags).code == 0
    whole = osp.clip()
    outcome = osp(*COMMAND, *flags, *TWO, "-y")
    assert (outcome.code, outcome.out, outcome.err) == (0, "clip.mp4\n", "")
    assert outcome.files == WHOLE
    assert osp.clip() == whole
    assert osp.processes() == []


@slow
@needs_fork
def test_events_are_those_of_one_process(osp):
    told = []
    for flags in ((), TWO):
        lines = osp(*COMMAND, *flags, "-y", "--json").out.splitlines()
        told.append([json.loads(line) for line in lines])
    kinds = [[event["type"] for event in run] for run in told]
    assert kinds[0] == kinds[1]
    assert [run[0]["gpus"] for run in told] == [1, 2]
    assert told[0][-1]["skipped_steps"] == told[1][-1]["skipped_steps"]
    assert "start" in told[1][-1]["timings"]


@needs_fork
@pytest.mark.parametrize(
    ("flags", "cache"),
    [
        (TWO, "fbcache:0.5"),
        pytest.param(TWO, "magcache:0.5", marks=slow),
        pytest.param((), "fbcache:0.5", marks=slow),
        pytest.param((), "magcache:0.5", marks=slow),
    ],
    ids=["fbcache, two began", "magcache, two began", "fbcache, one began", "magcache, one began"],
)
def test_whatever_began_a_clip_another_number_finishes_it(osp, flags, cache):
    """What the step cache remembers of each token comes together, and is shared out again."""
    command = (*COMMAND, "--size", "96x96", "--cache", cache)
    assert osp(*command).code == 0
    whole = osp.clip()
    if flags:
        stopped = osp(*command, *flags, "-y", at=("pipeline", "velocity", 2), doing=["user SIGINT"])
        assert (stopped.code, stopped.files) == (130, WHOLE | LATENTS)
    else:
        # A sheet is a start too.
        for name in WHOLE:
            (osp.folder / name).unlink()
        assert osp(*command, "--preview", "contact").code == 0
    again = osp(*command, *(() if flags else TWO), "-y")
    assert again.code == 0
    assert osp.clip() == whole


@slow
@needs_fork
def test_a_sheet_and_the_one_that_is_picked(osp):
    seeds = (*COMMAND, "--seed", "1-2", "-o", "{seed}.mp4")
    sheet = osp(*seeds, *TWO, "--preview", "contact")
    assert (sheet.code, sheet.out) == (0, "seeds.contact.png\n")
    assert osp(*seeds, *TWO, "--pick", "2").code == 0
    picked = osp.clip("2.mp4")
    assert osp(*COMMAND, "--seed", "2", "-o", "2.mp4", "-y").code == 0
    assert osp.clip("2.mp4") == picked


# --- Stopping ---------------------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), pytest.param("SIGTERM", 143, marks=slow)]
)
def test_the_first_signal_finishes_the_step(osp, name, code):
    outcome = osp(*COMMAND, *TWO, at=STEP_2, doing=[f"user {name}"])
    assert (outcome.code, outcome.files) == (code, LATENTS)
    assert "interrupted after step 2 of 4, no video was saved" in outcome.err
    assert "kept: clip.latents.safetensors" in outcome.err
    assert osp.processes() == []


@needs_fork
def test_the_second_one_stops_at_once(osp):
    outcome = osp(*COMMAND, *TWO, at=STEP_2, doing=["user SIGINT", "user SIGINT"])
    assert (outcome.code, outcome.files) == (130, set())
    assert "interrupted, no video was saved" in outcome.err
    assert osp.processes() == []


@needs_fork
def test_while_the_video_is_made_one_is_enough(osp):
    outcome = osp(*COMMAND, *TWO, at=("stages", "decode_frames", 1), doing=["user SIGINT"])
    assert (outcome.code, outcome.files) == (130, LATENTS)
    assert "kept: clip.latents.safetensors" in outcome.err
    assert osp.processes() == []


@needs_fork
@pytest.mark.parametrize(
    ("rank", "at"),
    [
        (1, STEP_2),
        (0, LOADING),
        pytest.param(0, STEP_2, marks=slow),
        pytest.param(1, LOADING, marks=slow),
    ],
    ids=["1 in a step", "0 while loading", "0 in a step", "1 while loading"],
)
def test_a_killed_process_ends_all(osp, rank, at):
    started = time.monotonic()
    outcome = osp(*COMMAND, *TWO, rank=rank, at=at, doing=["self SIGKILL"])
    assert (outcome.code, outcome.files) == (1, set())
    assert f"error: process {rank + 1} of 2 was killed by SIGKILL\n" in outcome.err
    assert time.monotonic() - started < 20
    assert osp.processes() == []


@needs_fork
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=slow)])
def test_when_the_first_process_is_killed_the_others_end(osp, rank):
    outcome = osp(*COMMAND, *TWO, rank=rank, at=STEP_2, doing=["user SIGKILL"])
    assert (outcome.code, outcome.files) == (-9, set())
    ends = time.monotonic() + 10
    while osp.processes() and time.monotonic() < ends:
        time.sleep(0.1)
    assert osp.processes() == []


@needs_fork
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=slow)])
def test_out_of_memory_in_a_step(osp, rank):
    flags = ("--cache", "none", *TWO)
    outcome = osp(*COMMAND, *flags, rank=rank, at=("pipeline", "velocity", 3),
                  doing=["out-of-memory"])  # fmt: skip
    assert outcome.code == 4
    assert "tiny ran out of memory on" in outcome.err
    # The leader still holds what was done.
    assert outcome.files == (set() if rank else LATENTS)
    if not rank:
        assert "--offload model needs less" in outcome.err
    assert osp.processes() == []


@slow
@needs_fork
def test_out_of_memory_before_the_steps_is_gone_around(osp):
    assert osp(*COMMAND).code == 0
    whole = osp.clip()
    outcome = osp(*COMMAND[:-1], *TWO, "-y", at=("pipeline", "condition", 1),
                  doing=["out-of-memory"])  # fmt: skip
    assert outcome.code == 0
    assert "out of memory before the first step, going on with --offload model" in outcome.err
    assert osp.clip() == whole


@needs_fork
@pytest.mark.parametrize(
    ("doing", "sentence"),
    [
        pytest.param("fail", "unexpected RuntimeError: something odd", marks=slow),
        ("exit", "process 2 of 2 ended with exit code 3: a last word"),
    ],
)
def test_other_ends_have_a_sentence(osp, doing, sentence):
    outcome = osp(*COMMAND, *TWO, rank=1, at=STEP_2, doing=[doing])
    assert (outcome.code, outcome.files) == (1, set())
    assert outcome.err.startswith(f"error: {sentence}\n")
    assert "Traceback" not in outcome.err


@slow
@needs_fork
def test_a_batch_goes_on_with_new_processes(osp):
    outcome = osp(*COMMAND, *TWO, "--seed", "1-3", "-o", "{seed}.mp4", rank=1, at=STEP_2,
                  doing=["self SIGKILL"])  # fmt: skip
    assert outcome.code == 6
    assert outcome.files == {"2.mp4", "2.mp4.json", "3.mp4", "3.mp4.json"}
    assert "process 2 of 2 was killed by SIGKILL" in outcome.err
    # Two that ended, and two that took their places for all that was left.
    assert len((osp.folder / "pids").read_text().split()) == 4
    assert osp.processes() == []


# --- As the user starts it --------------------------------------------------------------------


def test_the_real_thing(osp, tmp_path):
    """No forks: `python -m osp_cli` and the processes that it starts, with the built-in model."""
    command = (
        *("generate", "cat.png", "zoom in", "--seed", "7", "--size", "64x64", "-f", "5"),
        *("--steps", "2", "--device", "cpu", "-q", "-y"),
    )
    assert osp(*command, "-o", "clip.mp4").code == 0
    whole = osp.clip()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    outcome = subprocess.run(
        [sys.executable, "-m", "osp_cli", *command, *TWO, "-o", "-"],
        cwd=osp.folder,
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (outcome.returncode, outcome.stderr) == (0, b"")
    assert outcome.stdout == whole[0]
    assert list(tmp_path.glob("osp-*")) == []


# --- Refusals and plans -----------------------------------------------------------------------


def test_heads_must_be_shared_out_evenly(request_for):
    check_share(request_for(gpus=2))
    with pytest.raises(InvalidRequestError, match="tiny has 2 attention heads") as raised:
        check_share(request_for(gpus=3))
    assert raised.value.hint == "--gpus may be 1, 2"


def test_they_are_refused_before_torch_is_imported(picture):
    probe = (
        "import sys; from osp_cli.cli.app import main; "
        "code = main(['generate', 'cat.png', 'zoom in', '--gpus', '5']); "
        "sys.exit(code if 'torch' not in sys.modules else 99)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: osp-mini has 34 attention heads, which cannot be shared")
    assert "hint: --gpus may be 1, 2, 17, 34" in done.stderr


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gpus": 0}, "--gpus must be 1 to 64, got 0"),
        ({"device": "cuda:1"}, "--gpus 2 and --device cuda:1, which is one"),
        ({"device": "mps"}, "--gpus 2 and --device mps"),
        ({"offload": "disk"}, "--offload disk takes the weights from the disk for one GPU"),
        ({"compile": True}, "--compile has not been made to work with --gpus"),
    ],
)
def test_what_a_request_refuses(request_for, changes, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        request_for(**{"gpus": 2, **changes})


def test_no_more_cards_than_there_are(monkeypatch):
    devices.check_gpus(8, "cpu", torch.device("cpu"))
    devices.check_gpus(1, "auto", torch.device("mps"))
    with pytest.raises(InvalidRequestError, match="more graphics cards than this machine has"):
        devices.check_gpus(2, "auto", torch.device("mps"))
    with pytest.raises(InvalidRequestError, match="no CUDA device") as raised:
        devices.check_gpus(2, "auto", torch.device("cpu"))
    assert "--device cpu would share the work among 2 processes" in raised.value.hint
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    devices.check_gpus(4, "cuda", torch.device("cuda"))
    with pytest.raises(InvalidRequestError, match="--gpus 8 asks for more") as raised:
        devices.check_gpus(8, "cuda", torch.device("cuda"))
    assert raised.value.hint == "there are 4: --gpus 4"


def card(gpus, device="cuda", size=80 * GB, **changes):
    return Machine(device=device, device_bytes=size, ram_bytes=200 * GB, **changes)


def test_a_plan_of_several_devices(request_for, tiny_card):
    def plan(gpus, machine, **changes):
        request = request_for(gpus=gpus, device="auto", cache=NO_CACHE, **changes)
        folder = tiny_card.weights_dir()
        return make_plan(request, tiny_card, size=(96, 64), machine=machine, weights=folder)

    one, two = plan(1, card(1, speed=1e12)), plan(2, card(2, speed=1e12))
    assert (one.gpus, two.gpus) == (1, 2)
    assert two.operations == one.operations
    assert two.weights_bytes == one.weights_bytes
    stages = [each.expected_stage_bytes for each in (one, two)]
    assert stages[1]["sampling"] < stages[0]["sampling"]
    assert stages[1]["condition"] == stages[0]["condition"]
    quick = [each.expected_seconds for each in (one, two)]
    assert quick[1] == pytest.approx(quick[0] / 2, rel=0.01)
    # On the processor each has its part of the memory, and the disk is no way out.
    shared = plan(2, card(2, device="cpu"))
    assert shared.device_bytes == 40 * GB
    with pytest.raises(WontFitError):
        plan(2, card(2, size=GB // 2))


def test_what_is_sent_arrives():
    tensors = [torch.randn(1, 3, 4) for _ in range(10)]
    conditions = FirstFrameConditions(
        cond=tensors[0],
        uncond=None,
        first=tensors[1],
        projected=tensors[2],
        also=((tensors[3].bfloat16(), 0.3), (tensors[4], (0.1, 0.05, 0.0))),
        known=tensors[8],
        image_embeds=tensors[9],
    )
    state = SamplingState(tensors[5], 3, {"a.b": tensors[6]}, {"fbcache.head.cond": tensors[7]})
    got, where = unpack(pack(conditions, state), type(conditions), 3, torch.device("cpu"))
    assert got.uncond is None
    for name in ("cond", "first", "projected", "known", "image_embeds"):
        assert torch.equal(getattr(got, name), getattr(conditions, name))
    assert [weight for _, weight in got.also] == [0.3, (0.1, 0.05, 0.0)]
    assert got.also[0][0].dtype == torch.bfloat16
    assert torch.equal(got.also[0][0], conditions.also[0][0])
    assert torch.equal(where.latents, state.latents)
    assert where.step == 3
    assert torch.equal(where.solver["a.b"], tensors[6])
    assert torch.equal(where.cache["fbcache.head.cond"], tensors[7])


def test_a_seat_survives_the_command_line():
    seat = Seat(rank=1, size=3, device="cuda", folder="/tmp/x y", parent=7, peers=(8, 9))
    assert Seat.from_json(seat.as_json()) == seat


def test_the_recipe_is_silent_about_it(request_for):
    """On the CPU the bits are the same; cards may differ in the last ones, as other cards do."""
    assert request_for(gpus=2).recipe() == request_for().recipe()
