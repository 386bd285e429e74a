"""Runs of `osp train-lora` that take seconds: tiny clips, the model that ships, a few steps."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from media import clips
from safetensors import safe_open

from osp_cli.cli.app import main

STEPS = 6
# All of the recipe that a schedule depends on is told, so that a longer run is the same at first.
QUICK = (
    *("--size", "64x64", "--frames", "5", "--max-steps", str(STEPS), "--batch-size", "2"),
    *("--sample-every", "0", "--save-every", "2", "--device", "cpu"),
    *("--lr-schedule", "constant", "--warmup", "0", "--lr", "0.01"),
)
# What is neither weights nor a picture of them.
TIMES = ("seconds",)


@dataclass(frozen=True)
class Outcome:
    """What one command line said."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict]:
        """Of `--json`."""
        return [json.loads(line) for line in self.out.splitlines()]


def osp(*argv: object) -> Outcome:
    """Run one command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in argv])
    return Outcome(code, out.getvalue(), err.getvalue())


def train(*argv: object, name: str = "glass", data: str = "clips") -> Outcome:
    """`osp train-lora` with the quick settings, others behind them."""
    return osp("train-lora", data, "-o", name, *QUICK, *argv)


def make_clips(folder: Path) -> Path:
    """Three short clips of moving patches, each with its text."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, name in enumerate(("left", "right", "down")):
        patches = random.integers(0, 255, (10, 10, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        frames = [
            np.roll(patches, (-2 * k, 2 * k, k)[number], 0 if number == 2 else 1) for k in range(9)
        ]
        clips.make(folder / f"{name}.mp4", np.stack(frames))
        (folder / f"{name}.txt").write_text(f"it moves {name}\n", encoding="utf-8")
    return folder


def metrics(run: Path) -> list[dict]:
    """The lines of `metrics.jsonl` without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The numbers of a safetensors file."""
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def metadata(path: Path) -> dict[str, str]:
    """What a safetensors file tells of itself."""
    with safe_open(path, "np") as file:
        return file.metadata() or {}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Everything in a folder: names, bytes, times."""
    return {
        str(path.relative_to(folder)): (
            path.read_bytes() if path.is_file() else b"",
            path.stat().st_mtime_ns,
        )
        for path in sorted([folder, *folder.rglob("*")])
    }
