"""Running the command in this process, away from the user's home."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from osp_cli import registry
from osp_cli.cli.app import main
from osp_cli.events import (
    Done,
    Event,
    Loaded,
    Planned,
    Saved,
    StageFinished,
    StageStarted,
    StepDone,
)
from osp_cli.plan import Plan
from osp_cli.requests import GenerateRequest


@dataclass(frozen=True)
class Outcome:
    """What one command line left behind."""

    code: int
    out: str
    err: str


Osp = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a home of its own and no terminal."""
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def osp(capsys: pytest.CaptureFixture[str]) -> Osp:
    """Run `osp ARGS...` and give exit code, stdout and stderr."""

    def run(*args: str) -> Outcome:
        code = main(list(args))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def picture(away: Path) -> Path:
    """A small picture called `cat.png` in the working folder."""
    path = away / "cat.png"
    Image.effect_noise((64, 48), 80).convert("RGB").save(path)
    return path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every model look installed, for runs that a recorded runner plays."""
    for spec in registry.model_specs().values():
        for part in spec.parts:
            (tmp_path / "home" / "models" / spec.weights / part).mkdir(parents=True)


def story(request: GenerateRequest) -> Iterator[Event]:
    """The events of a two-step run that writes a file of four bytes."""
    plan = Plan(
        model=request.model,
        device="cpu",
        dtype="bfloat16",
        width=request.width or 448,
        height=request.height or 256,
        num_frames=request.num_frames,
        num_latent_frames=13,
        num_tokens=1456,
        seed=request.seed,
        steps=2,
        guidance=request.guidance_scale,
        weights_bytes=20,
        expected_peak_bytes=30,
    )
    yield Planned(plan)
    yield Loaded("transformer", 0.5)
    yield StageStarted("condition")
    yield StageFinished("condition", 0.25)
    yield StepDone(1, 2, 1.0)
    yield StepDone(2, 2, 2.0)
    yield StageStarted("decode")
    yield StageFinished("decode", 0.5)
    yield StageStarted("encode")
    request.output.write_bytes(b"clip")
    yield Saved(request.output, 4, request.output.with_name(request.output.name + ".json"))
    yield Done(5.0, {"load": 0.5, "sampling": 3.0, "encode": 0.125})


Runner = Callable[[GenerateRequest], Iterator[Event]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, installed: None) -> Callable[[Runner], list]:
    """Put a recorded runner in place of the one that loads models; gives the requests it got."""

    def place(runner: Runner) -> list[GenerateRequest]:
        requests: list[GenerateRequest] = []

        def run(request: GenerateRequest) -> Iterator[Event]:
            requests.append(request)
            return runner(request)

        module = types.ModuleType("osp_cli.runtime.runner")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "osp_cli.runtime.runner", module)
        return requests

    return place


@pytest.fixture
def requests(play: Callable[[Runner], Sequence[GenerateRequest]]) -> Sequence[GenerateRequest]:
    """The requests that reach the runner, which plays `story`."""
    return play(story)
