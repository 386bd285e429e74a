"""Our training loop beside a plain one of diffusers and PEFT, on one model, in turns.

    python tests/benchmarks/training.py
    python tests/benchmarks/training.py --models osp-mini wan-1.3b --json training.json
    python tests/benchmarks/training.py --models wan-14b --size 512x512 --frames 49

Both train the same LoRA from the same start on the same random clips with the same noise, in the
same precision, with gradient checkpointing: `training_loops.py` has both. They take turns, so that
what else the machine does meets both alike; the first step of each turn does not count. Printed are
medians of seconds a step, their ratio (below 1 ours is quicker), peaks of memory, and how far the
first losses are apart; the same goes to `--json` after each model. On the CPU peaks are of what the
process has beside its files, above what it had before; on CUDA what torch took.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from memory import HostPeak
from random_models import flash
from training_loops import Clips, lora_values, ours, plain, reset_lora, with_lora

from osp_cli.models.state_dict import load_transformer
from osp_cli.registry import find_model
from osp_cli.runtime.memory_errors import return_memory

MODELS = ("tiny", "osp-mini", "wan-1.3b", "wan-14b")
_TEXT = {"tiny": (7, 32), "osp-mini": (96, 192), "wan-1.3b": (512, 4096), "wan-14b": (512, 4096)}


def new_model(name: str, device: torch.device) -> Any:
    """With random weights, but for the one that is here anyway."""
    if name == "osp-mini":
        return load_transformer(find_model(name).weights_dir() / "transformer", dtype=torch.float32)
    return flash(device, tiny=name == "tiny", small=name == "wan-1.3b")


def clips_for(name: str, model: Any, size: tuple[int, int], frames: int, batch: int) -> Clips:
    """As large as pictures of that size, as this model sees them."""
    edge = 16 if name == "osp-mini" else 8
    rows, _ = _TEXT[name]
    shape = (
        model.config.in_channels, 1 + (frames - 1) // 4, size[1] // edge, size[0] // edge,
    )  # fmt: skip
    return Clips(shape, rows, model.config.text_dim, batch)


def turn(device: torch.device, loop: Iterator[float]) -> dict[str, Any]:
    """Seconds of all steps but the first, losses, and the peak of one loop."""
    gc.collect()
    return_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, losses = [], []
    with HostPeak() as host:
        before = time.perf_counter()
        for loss in loop:
            if device.type == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            seconds.append(now - before)
            losses.append(loss)
            before = now
    peak = host.added if device.type == "cpu" else torch.cuda.max_memory_allocated()
    return {"seconds": seconds[1:], "losses": losses, "peak_bytes": peak}


def compare(
    name: str, device: torch.device, *, size: tuple[int, int], frames: int, batch: int, steps: int,
    turns: int,
) -> dict[str, Any]:  # fmt: skip
    """Both loops on one model."""
    model = with_lora(new_model(name, device))
    clips = clips_for(name, model, size, frames, batch)
    start = lora_values(model)
    loops: dict[str, Callable[[], Iterator[float]]] = {
        # One step more, since the end of a run writes a checkpoint.
        "ours": lambda: _without_last(ours(model, clips, steps + 2, device)),
        "plain": lambda: plain(model, clips, steps + 1, device),
    }
    found: dict[str, list[dict[str, Any]]] = {which: [] for which in loops}
    for number in range(turns):
        order = list(loops) if number % 2 == 0 else list(reversed(loops))
        for which in order:
            reset_lora(model, start)
            found[which].append(turn(device, loops[which]()))
    medians = {
        which: statistics.median(value for row in rows for value in row["seconds"])
        for which, rows in found.items()
    }
    first, other = (found[which][0]["losses"] for which in ("ours", "plain"))
    return {
        "tokens": clips.tokens,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "seconds": medians,
        "ratio": medians["ours"] / medians["plain"],
        "peak_bytes": {
            which: min(row["peak_bytes"] for row in rows) for which, rows in found.items()
        },
        "loss_difference": max(abs(a - b) / abs(b) for a, b in zip(first, other, strict=True)),
        "all_seconds": {which: [row["seconds"] for row in rows] for which, rows in found.items()},
        "losses": {"ours": first, "plain": other},
    }


def _without_last(losses: Iterator[float]) -> Iterator[float]:
    """All but the last, which is never asked for."""
    held = next(losses)
    for loss in losses:
        yield held
        held = loss


def table(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """All results, in Markdown."""
    yield "|model|tokens|ours s/step|plain s/step|ratio|ours GB|plain GB|losses apart|"
    yield "|---" * 8 + "|"
    for name, row in found.items():
        seconds, peaks = row["seconds"], row["peak_bytes"]
        yield (
            f"|{name}|{row['tokens']}|{seconds['ours']:.3g}|{seconds['plain']:.3g}"
            f"|{row['ratio']:.3f}|{peaks['ours'] / 1e9:.2f}|{peaks['plain'] / 1e9:.2f}"
            f"|{row['loss_difference']:.1e}|"
        )


def _size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return width, height


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["tiny", "osp-mini"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--size", type=_size, default=(448, 256))
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4, help="of each turn that count")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, dict[str, Any]] = {}
    for name in options.models:
        found[name] = compare(
            name, device, size=options.size, frames=options.frames, batch=options.batch,
            steps=options.steps, turns=options.turns,
        )  # fmt: skip
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write("\n".join([*table(found), ""]))
    return found


if __name__ == "__main__":
    main()
