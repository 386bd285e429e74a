"""`osp download --list`: the models that can be fetched, and what they mean for this memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from osp_cli.cli import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osp_cli.plan import Plan
    from osp_cli.registry import ModelSpec
    from osp_cli.requests import GenerateRequest


_WAYS = {
    "none": "whole on the graphics card",
    "model": "in turns on the graphics card",
    "group": "from main memory",
    "sequential": "from main memory, slowly",
    "disk": "from the disk, slowly",
}
# What a processor does in an hour, at a modest 0.1 billion operations a millisecond.
_OPERATIONS_OF_AN_HOUR = 0.1e12 * 3600


@dataclass(frozen=True, slots=True)
class Memory:
    """What is free, in bytes; None where there is none, or nobody tells."""

    graphics: int | None
    main: int | None


def free_memory() -> Memory:
    """What is free now, found out without torch."""
    from osp_cli.host import usable_memory

    return Memory(_free_graphics_memory(), usable_memory())


def fits(spec: ModelSpec, memory: Memory) -> str:
    """How a run with nothing else asked for would go here, in words: the planner's arithmetic."""
    if spec.pipeline == "none":
        return "a part that other models use"
    if memory.main is None:
        return "unknown: this system does not tell its memory"
    from osp_cli.config import Layer
    from osp_cli.dials import Seeds
    from osp_cli.errors import OspError, WontFitError
    from osp_cli.extend_settings import Continuation, settle_extend
    from osp_cli.runtime.planner import make_plan
    from osp_cli.runtime.strategy import Machine
    from osp_cli.settings import Source, settle_generate

    device = "cpu" if memory.graphics is None else "cuda"
    machine = Machine(
        device=device,
        device_bytes=memory.main if memory.graphics is None else memory.graphics,
        ram_bytes=memory.main,
    )
    layer = Layer("card", {"model": spec.name})
    try:
        request: GenerateRequest
        if spec.run_problem() is not None:
            # One chunk of a stream.
            wanted = Continuation(text="a", realtime=True)
            request = settle_extend(wanted, layers=[layer], seed=Seeds([0])).request
        else:
            image = Path("picture.png")
            source = Source(text="a") if spec.pipeline == "wan-t2v" else Source(image=image)
            request = settle_generate(source, layers=[layer], seed=Seeds([0]), count=1).request
        plan = make_plan(
            request, spec, size=spec.default_size, machine=machine, weights=_place(spec)
        )
    except WontFitError as error:
        return f"not: {error.message}"
    except OspError as error:
        return f"unknown: {error.message}"
    return _way(plan)


def _way(plan: Plan) -> str:
    from osp_cli.hub.haul import in_words

    peak = in_words(plan.expected_peak_bytes)
    if plan.device == "cpu":
        hours = (plan.operations or 0) / _OPERATIONS_OF_AN_HOUR
        pace = "" if hours < 1 else ", for hours" if hours < 24 else ", for days"
        return f"on the processor{pace} ({peak})"
    quant = "" if plan.quant in ("none", "gguf") else f", in {plan.quant}"
    return f"{_WAYS[plan.offload]}{quant} ({peak})"


def total_bytes(spec: ModelSpec) -> int | None:
    """Bytes of a model: those that are installed, else those that its card tells or lets expect."""
    place = _place(spec)
    if place is not None:
        return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    sizes = [item.bytes for item in spec.downloads]
    known = [size for size in sizes if size is not None]
    if spec.downloads and not spec.unpublished and len(known) == len(sizes):
        return sum(known)
    # Two bytes a number is how large models are published.
    architecture = spec.architecture
    return None if architecture is None else 2 * sum(architecture.parameters.values())


def show_list(specs: Sequence[ModelSpec], *, as_json: bool) -> None:
    """Write the list to stdout.

    Args:
        specs: empty for all models.
    """
    from osp_cli.registry import model_specs

    memory = free_memory()
    shown = specs or list(model_specs().values())
    if as_json:
        for spec in shown:
            console.write_json(
                {
                    "name": spec.name,
                    "title": spec.title,
                    "licence": spec.licence,
                    "bytes": total_bytes(spec),
                    "state": _state(spec),
                    "fits": fits(spec, memory),
                    "repositories": list(dict.fromkeys(item.repo for item in spec.downloads)),
                    "checked": all(item.checked for item in spec.downloads),
                }
            )
        return
    console.write_table(
        ("model", "size", "licence", "state", "runs here"),
        [
            (spec.name, _size(spec), spec.licence, _state(spec), fits(spec, memory))
            for spec in shown
        ],
        least_columns=90,
    )
    if console.is_terminal(sys.stdout):
        console.write_line(f"free now: {_memory(memory)}; in brackets, what a run takes")


def _place(spec: ModelSpec) -> Path | None:
    """The folder of a model that is whole: of another one, sizes would be wrong."""
    from osp_cli.hub.whole import gap

    return None if gap(spec) is not None else spec.find_weights()


def _state(spec: ModelSpec) -> str:
    if _place(spec) is not None:
        return "built in" if spec.embedded else "installed"
    if spec.find_weights() is not None:
        return "incomplete"
    published = {item.part for item in spec.downloads}
    if not published:
        return "not published"
    return "can be fetched" if published >= {*spec.parts} else "published in part"


def _size(spec: ModelSpec) -> str:
    from osp_cli.hub.haul import in_words

    size = total_bytes(spec)
    if size is None:
        return "unknown"
    is_told = spec.downloads and all(item.checked and item.bytes for item in spec.downloads)
    estimated = _place(spec) is None and not is_told
    return f"about {in_words(size)}" if estimated else in_words(size)


def _memory(memory: Memory) -> str:
    from osp_cli.hub.haul import in_words

    graphics = "no NVIDIA card"
    main = "unknown" if memory.main is None else in_words(memory.main)
    if memory.graphics is not None:
        graphics = f"graphics card {in_words(memory.graphics)}"
    return f"main memory {main}, {graphics}"


def _free_graphics_memory() -> int | None:
    """Free bytes of the largest NVIDIA card, as its driver's own tool tells."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    counts = [int(line) for line in done.stdout.decode().split("\n") if line.strip().isdigit()]
    return max(counts, default=0) * 2**20 or None
