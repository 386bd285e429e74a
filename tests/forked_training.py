"""Training in children of the fork server: quick, and really killed."""

from __future__ import annotations

import json
from pathlib import Path

from test_interruptions import Outcome
from train_runs import QUICK, metrics

COMMAND = ("train-lora", "clips", "-o", "glass", "--trigger", "glass", *QUICK)


class Training:
    """Runs `osp train-lora` in a folder with clips, struck by signals at a stage."""

    def __init__(self, server, folder: Path, clips: Path, cache: Path | None = None) -> None:
        self.server, self.folder = server, folder
        folder.mkdir(exist_ok=True)
        (folder / "clips").symlink_to(clips)
        if cache is not None:
            (folder / "home" / "cache").mkdir(parents=True)
            (folder / "home" / "cache" / "clips").symlink_to(cache)

    def __call__(self, *more: str, stage=None, call=None, signals=(), command=COMMAND, **options):
        job = {
            **options,
            "argv": [*command, *more],
            "cwd": str(self.folder),
            "stage": stage,
            "call": call,
            "signals": [*signals],
            "environment": {"OSP_HOME": str(self.folder / "home")},
        }
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        code = json.loads(self.server.stdout.readline())
        out, err = ((self.folder / name).read_text() for name in ("stdout", "stderr"))
        return Outcome(code, out, err, {path.name for path in self.folder.iterdir()})

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "glass"

    @property
    def checkpoints(self) -> list[int]:
        """Steps after which there is one that bears its name."""
        return sorted(int(path.name[5:]) for path in self.run.glob("checkpoints/step-??????"))

    def result(self) -> dict[str, bytes]:
        """What a run is for: the adapter, as it is exported and as it is installed."""
        return {
            "exported": (self.run / "glass.safetensors").read_bytes(),
            "installed": (self.folder / "home" / "loras" / "glass.safetensors").read_bytes(),
        }

    def litter(self) -> set[str]:
        """Files that are neither a result nor a checkpoint, under whatever name."""
        found = {str(path.relative_to(self.run)) for path in self.run.rglob("*") if path.is_file()}
        known = {"glass.safetensors", "metrics.jsonl", "dataset_report.json", "index.html"}
        return {
            name
            for name in found - known
            if not name.startswith(("samples/step-", "checkpoints/step-")) or "tmp" in name
        }

    def is_whole(self, whole: Training, *more: str) -> None:
        """The same command ends as if nothing had happened."""
        outcome = self(*more)
        assert (outcome.code, outcome.out) == (0, "glass/glass.safetensors\n"), outcome.err
        self.equals(whole)

    def equals(self, whole: Training) -> None:
        """To the bit, each step once, and nothing lies about."""
        assert metrics(self.run) == metrics(whole.run)
        assert self.result() == whole.result()
        assert self.checkpoints == whole.checkpoints
        assert self.litter() == set()
