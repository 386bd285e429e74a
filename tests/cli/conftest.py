"""Running the command in this process, away from the user's home."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from hub_fixtures import fake_hub, hub_home, wee  # noqa: F401

from osp_cli import registry
from osp_cli.cli.app import main
from osp_cli.events import (
    Done,
    Event,
    ItemStarted,
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
    """A folder to work in, with a home and settings of its own and no terminal."""
    for name in [name for name in os.environ if name.startswith("OSP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("osp_cli.config.user_config", lambda: tmp_path / "config" / "config.toml")
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
            (tmp_path / "home" / "models" / spec.weights / part).mkdir(parents=True, exist_ok=True)


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Puts bytes into stdin, as a pipe would."""
    return lambda data: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def recorded_plan(request: GenerateRequest) -> Plan:
    """A plan of two steps, whatever was asked."""
    return Plan(
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
        sampler=request.sampler,
        cache=str(request.cache),
        guidance=request.guidance_scale,
        weights_bytes=20_000_000,
        expected_peak_bytes=3_000_000_000,
        disk_bytes=40_000,
        operations=5e12,
        expected_seconds=300.0,
    )


def story(request: GenerateRequest) -> Iterator[Event]:
    """The events of a two-step run that writes a file of four bytes."""
    yield Planned(recorded_plan(request))
    yield Loaded("transformer", 0.5)
    yield StageStarted("condition")
    yield StageFinished("condition", 0.25)
    yield StepDone(1, 2, 1.0)
    yield StepDone(2, 2, 2.0)
    yield StageStarted("decode")
    yield StageFinished("decode", 0.5)
    yield StageStarted("encode")
    if request.output != Path("-"):
        request.output.parent.mkdir(exist_ok=True)
        request.output.write_bytes(b"clip")
    yield Saved(request.output, 4, request.output.with_name(request.output.name + ".json"))
    yield Done(5.0, {"load": 0.5, "sampling": 3.0, "encode": 0.125})


Runner = Callable[[GenerateRequest], Iterator[Event]]


def recorded_runtime(runner: Runner) -> tuple[dict[str, types.ModuleType], list[GenerateRequest]]:
    """Modules that stand in for those of the runtime that import torch.

    Only they are played: what makes a batch of single runs is the true module.

    Returns:
        The modules by name, and the list in which the runner notes its requests.
    """
    requests: list[GenerateRequest] = []

    def run(request: GenerateRequest, **_: object) -> Iterator[Event]:
        requests.append(request)
        return runner(request)

    def preview_plan(request: GenerateRequest) -> tuple[Planned, list[str]]:
        return Planned(recorded_plan(request)), ["the plan has a notice"]

    def run_contact(asked: Sequence[GenerateRequest], **_: object) -> Iterator[Event]:
        for number, request in enumerate(asked, 1):
            requests.append(request)
            yield ItemStarted(number, len(asked), request.output, request.seed, request.prompt)
        Path("cat.contact.png").write_bytes(b"page")
        yield Saved(Path("cat.contact.png"), 4)
        yield Done(1.0, {})

    contents: dict[str, dict[str, object]] = {
        "runner": {"run": run},
        "settling": {"preview_plan": preview_plan},
        "contact": {"run_contact": run_contact},
        "models": {"Models": object},
        "start_up": {"light_imports": lambda **_: contextlib.nullcontext()},
    }
    modules = {}
    for name, values in contents.items():
        module = types.ModuleType(f"osp_cli.runtime.{name}")
        vars(module).update(values)
        modules[module.__name__] = module
    return modules, requests


def true_batch() -> types.ModuleType:
    """The module of batches, imported anew, so that it sees what stands in for the runner."""
    spec = importlib.util.find_spec("osp_cli.runtime.batch")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, installed: None) -> Callable[[Runner], list]:
    """Put a recorded runner in place of the one that loads models; gives the requests it got."""

    def place(runner: Runner) -> list[GenerateRequest]:
        modules, requests = recorded_runtime(runner)
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(sys.modules, "osp_cli.runtime.batch", true_batch())
        return requests

    return place


@pytest.fixture
def requests(play: Callable[[Runner], Sequence[GenerateRequest]]) -> Sequence[GenerateRequest]:
    """The requests that reach the runner, which plays `story`."""
    return play(story)
