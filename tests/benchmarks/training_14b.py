"""A LoRA on a 14B of random weights, each way of making it fit, beside diffusers and PEFT.

    python tests/benchmarks/training_14b.py --json training.json --seconds 560
    python tests/benchmarks/training_14b.py --json training.json --table
    python tests/benchmarks/training_14b.py --json tiny.json --tiny

For one CUDA device with 48 GB or more; nothing is read from a disk, weights are drawn where they
run. Each part runs in a process of its own, and the file is written anew after each; parts that are
in it already are not done again, and with `--seconds` none is begun that may not end in time. The
last thing printed is the table of all that is there.

What runs is the trainer itself, on random latents and texts: rank 8, alpha 4, queries, keys, values
and feed-forward layers, 512x512x49, 13,312 tokens. Seconds are medians of steps after two that warm
up. The peak is what torch took of the device while it trained, beside what `osp train-lora
--dry-run` expects there; the driver takes half a gigabyte more, which the expected figure holds.
`cap` refuses torch more than 24 GB, as a smaller card would, with as many blocks swapped as the
plan chooses for it. Losses of all parts are of the same weights and noise: those of bf16 agree with
the part called bf16, those of fp8 with that called fp8.

`--tiny` does all parts on the CPU with a model of four layers: no streams, caps or page-locked
memory, and figures that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from random_models import flash
from training_loops import Clips, ours, plain, with_lora

from osp_cli.runtime.strategy import Machine
from osp_cli.runtime.train_planning import plan_training
from osp_cli.train_plan import TrainPlan
from osp_cli.train_request import TrainRequest
from osp_cli.training.memory import peak_memory

WARM_UPS = 2
SIZE, FRAMES = 512, 49
_STARTED = time.perf_counter()
_GB = 10**9


@dataclass(frozen=True)
class Part:
    """One row of the table.

    Attributes:
        title: of the row.
        run: what is measured, with `settings`.
        seconds: that it takes at most, roughly.
    """

    title: str
    run: Callable[..., dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: int = 75


@dataclass(frozen=True)
class Job:
    """Where and how often a part runs."""

    tiny: bool
    runs: int
    cap: float

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cpu" if self.tiny else "cuda")

    @property
    def clips(self) -> Clips:
        """What is trained on."""
        cells = 8 if self.tiny else SIZE // 8
        frames = 2 if self.tiny else 1 + (FRAMES - 1) // 4
        return Clips((16, frames, cells, cells), *((7, 32) if self.tiny else (512, 4096)))

    def measure(self, losses: Iterator[float]) -> dict[str, Any]:
        """Of a loop: seconds a step, all losses, and peaks."""
        seconds, found = [], []
        before = None
        for loss in losses:
            if not self.tiny:
                torch.cuda.synchronize()
            now = time.perf_counter()
            if before is None and not self.tiny:
                # Placing weights takes more for a moment than there is while it trains.
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            if before is not None:
                seconds.append(now - before)
            before = now
            found.append(loss)
        assert all(map(math.isfinite, found)), found
        kept = seconds[WARM_UPS - 1 :]
        peaks = {}
        if not self.tiny:
            peaks = {
                "peak_bytes": peak_memory(self.device),
                "reserved_bytes": torch.cuda.max_memory_reserved(),
                "device": torch.cuda.get_device_name(),
            }
        return {
            "seconds": statistics.median(kept), "all_seconds": seconds, "losses": found, **peaks,
        }  # fmt: skip

    @property
    def steps(self) -> int:
        """One more than count, as the last of a run writes a checkpoint."""
        return WARM_UPS + self.runs + 1

    def plan(
        self, *, small: bool, quant: str = "none", swap_blocks: int = 0,
        offload_activations: bool = False, grad_checkpoint: bool = True,
        device_bytes: int = 1 << 62,
    ) -> TrainPlan:  # fmt: skip
        """What would be told beforehand."""
        request = TrainRequest(
            dataset=Path("clips"), name="x", output=Path("x"), quant=quant,
            model="flashi2v-1.3b" if small else "uniworld-osp2-14b", swap_blocks=swap_blocks,
            offload_activations=offload_activations, grad_checkpoint=grad_checkpoint,
            num_frames=FRAMES, width=SIZE, height=SIZE, sample_every=0,
        )  # fmt: skip
        machine = Machine(device="cuda", device_bytes=device_bytes, ram_bytes=1 << 62)
        return plan_training(request, machine=machine)


def run_ours(job: Job, *, small: bool = False, **way: Any) -> dict[str, Any]:
    """The trainer on the prepared base."""
    plan = job.plan(small=small, **way)
    if job.tiny and way.get("swap_blocks"):
        way["swap_blocks"] = 3
    model = with_lora(flash(job.device, tiny=job.tiny, small=small))
    found = job.measure(ours(model, job.clips, job.steps, job.device, **way))
    return {**found, **_told(plan)}


def run_capped(job: Job, *, quant: str) -> dict[str, Any]:
    """As on a card of `--cap` GB, with what the plan chooses for it."""
    # A whole card is never free; what is planned holds the driver's part, torch's is without it.
    plan = job.plan(small=False, quant=quant, swap_blocks=-1, device_bytes=int(job.cap * _GB))
    model = with_lora(flash(torch.device("cpu") if job.tiny else job.device, tiny=job.tiny))
    if not job.tiny:
        # To the host first, as it comes from its files.
        model.to("cpu")
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((job.cap * _GB - 0.6 * 2**30) / total)
    swapped = 4 if job.tiny else plan.swap_blocks
    losses = ours(model, job.clips, job.steps, job.device, quant=quant, swap_blocks=swapped)
    return {**job.measure(losses), **_told(plan)}


def run_plain(job: Job, *, small: bool = False) -> dict[str, Any]:
    """Diffusers and PEFT alone."""
    model = with_lora(flash(job.device, tiny=job.tiny, small=small))
    return job.measure(plain(model, job.clips, job.steps - 1, job.device))


def run_copies(job: Job) -> dict[str, Any]:
    """Bytes a second of copies from page-locked memory, which swapping lives on."""
    size = 1 << (20 if job.tiny else 30)
    host = torch.empty(size, dtype=torch.uint8, pin_memory=not job.tiny)
    there = torch.empty(size, dtype=torch.uint8, device=job.device)
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        there.copy_(host, non_blocking=True)
        if not job.tiny:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return {"copied_per_second": size / best}


def _told(plan: TrainPlan) -> dict[str, Any]:
    return {
        "expected_bytes": plan.expected_stage_bytes["train"],
        "expected_ram_bytes": plan.expected_ram_bytes,
        "swap_blocks": plan.swap_blocks,
    }


# The most telling first: time may run out.
PARTS = {
    "bf16": Part("bf16", run_ours),
    "fp8": Part("fp8", run_ours, {"quant": "fp8"}),
    "fp8-swap20": Part("fp8, 20 swapped", run_ours, {"quant": "fp8", "swap_blocks": 20}),
    "bf16-swap30": Part("bf16, 30 swapped", run_ours, {"swap_blocks": 30}, 90),
    "fp8-swap32": Part("fp8, 32 swapped", run_ours, {"quant": "fp8", "swap_blocks": 32}),
    "plain": Part("diffusers and PEFT, bf16", run_plain),
    "cap": Part("fp8 on a smaller card", run_capped, {"quant": "fp8"}, 120),
    "fp8-offload": Part(
        "fp8, inputs on the host", run_ours, {"quant": "fp8", "offload_activations": True}
    ),
    "least": Part(
        "fp8, 40 swapped, inputs on the host", run_ours,
        {"quant": "fp8", "swap_blocks": 40, "offload_activations": True},
    ),
    "copies": Part("copies to the device", run_copies, {}, 20),
    "small": Part("1.3B bf16", run_ours, {"small": True}, 40),
    "small-plain": Part("1.3B, diffusers and PEFT", run_plain, {"small": True}, 40),
    "small-whole": Part(
        "1.3B bf16, no checkpointing", run_ours, {"small": True, "grad_checkpoint": False}, 40
    ),
}  # fmt: skip


def measure(name: str, job: Job, timeout: float | None) -> dict[str, Any]:
    """One part in a process of its own; what went wrong where it did not end well."""
    if job.tiny:
        return PARTS[name].run(job, **PARTS[name].settings)
    command = [sys.executable, __file__, "--child", name]
    command += ["--runs", str(job.runs), "--cap", str(job.cap)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {timeout:.0f} s"}
    if done.returncode:
        _say(done.stderr)
        return {"error": (done.stderr.strip().splitlines() or ["no word"])[-1][:300]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """All results that are there, in Markdown."""
    yield "|part|s/step|peak GB|expected GB|swapped|first loss|more|"
    yield "|---" * 7 + "|"
    for name, part in PARTS.items():
        row = found.get(name, {})
        if "error" in row:
            yield f"|{part.title}|failed|||||{row['error']}|"
        elif row:
            cells = (
                row.get("seconds"),
                row.get("peak_bytes", 0) / 1e9 or None,
                row.get("expected_bytes", 0) / 1e9 or None,
                row.get("swap_blocks"),
                row["losses"][0] if "losses" in row else None,
            )
            shown = "|".join("" if cell is None else f"{cell:.4g}" for cell in cells)
            rate = row.get("copied_per_second")
            yield f"|{part.title}|{shown}|" + (f"{rate / 1e9:.1f} GB/s|" if rate else "|")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="of the results", default=Path("training.json"))
    parser.add_argument("--table", action="store_true", help="only show what is in that file")
    parser.add_argument("--parts", nargs="+", choices=PARTS)
    parser.add_argument("--runs", type=int, default=4, help="steps that count")
    parser.add_argument("--cap", type=float, default=24.0, help="GB of the smaller card")
    parser.add_argument("--seconds", type=float, help="begin nothing that may end later")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    job = Job(options.tiny, options.runs, options.cap)
    if options.child is not None:
        part = PARTS[options.child]
        sys.stdout.write("\n" + json.dumps(part.run(job, **part.settings)) + "\n")
        return
    found: dict[str, dict[str, Any]] = {}
    if options.json.is_file():
        found = json.loads(options.json.read_text())
    for name in () if options.table else options.parts or PARTS:
        if name in found and "error" not in found[name]:
            continue
        left = None
        if options.seconds is not None:
            left = options.seconds - (time.perf_counter() - _STARTED)
            if left < PARTS[name].seconds:
                _say(f"{name}: no time left for it")
                continue
        found[name] = measure(name, job, left)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
        _say(f"{name}: {json.dumps(found[name])}")
    sys.stdout.write("\n".join([*table(found), ""]))


if __name__ == "__main__":
    main()
