"""Host memory and time of loading a large transformer, for each way in which a plan may want it.

    python tests/benchmarks/loading.py --gigabytes 3 --folder /mnt/scratch --json loading.json

Writes a checkpoint of random numbers in the shape of the 1.3B with so many layers that it takes
that many GB in bfloat16, loads it through `load_parts` with a real plan, each way in a process of
its own, and removes it. All is on the CPU. What stands for the way to a device: each tensor in
turn is copied into one small buffer, after its group was fetched where it is offloaded.

`anonymous` is what a machine must have: the highest point above an empty process with all imports
done. Mapped pages of files, which the system may take back, are only in `resident`. Files were just
written, so the seconds are those of a warm page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import init_empty_weights
from memory import HostPeak
from synthetic import write_checkpoint
from torch import Tensor, nn

from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.plan import Plan
from osp_cli.registry import find_model
from osp_cli.requests import GenerateRequest
from osp_cli.runtime import offload
from osp_cli.runtime.devices import this_machine
from osp_cli.runtime.loading import load_parts
from osp_cli.runtime.planner import make_plan

MODEL = "flashi2v-1.3b"


@dataclass(frozen=True)
class Mode:
    """One way of loading.

    Attributes:
        title: for the table.
        stored: dtype of the file.
        shards: files.
        request: fields of the request.
        needs: a package.
    """

    title: str
    stored: str
    shards: int
    request: dict[str, Any]
    needs: str = ""


def _modes() -> dict[str, Mode]:
    def plain(**changes: Any) -> dict[str, Any]:
        return {"offload": "none", "quant": "none", **changes}

    return {
        "none": Mode("bfloat16 as stored", "bfloat16", 1, plain()),
        "sharded": Mode("the same in 4 files", "bfloat16", 4, plain()),
        "group": Mode("--offload group", "bfloat16", 1, plain(offload="group")),
        "disk": Mode("--offload disk", "bfloat16", 1, plain(offload="disk")),
        "fp8": Mode("--quant fp8", "bfloat16", 1, plain(quant="fp8")),
        "fp8-group": Mode(
            "--quant fp8 --offload group", "bfloat16", 1, plain(quant="fp8", offload="group")
        ),
        "int8": Mode("--quant int8", "bfloat16", 1, plain(quant="int8"), needs="torchao"),
        "float16": Mode("--dtype float16", "bfloat16", 1, plain(dtype="float16")),
        "float32": Mode("float32 files to bfloat16", "float32", 1, plain()),
    }


MODES = _modes()


def empty_model(gigabytes: float) -> FlashI2VTransformer3DModel:
    """On the meta device, of so many layers that it takes about so much in bfloat16."""

    def make(num_layers: int) -> FlashI2VTransformer3DModel:
        card = find_model(MODEL).architecture
        assert card is not None
        with init_empty_weights():
            return FlashI2VTransformer3DModel(
                num_attention_heads=card.heads,
                attention_head_dim=card.width // card.heads,
                ffn_dim=card.ffn,
                num_layers=num_layers,
            )

    one, two = (sum(p.numel() for p in make(count).parameters()) for count in (1, 2))
    wanted = gigabytes * 1e9 / 2
    return make(max(1, 1 + round((wanted - one) / (two - one))))


def load(mode: Mode, folder: Path) -> dict[str, float]:
    """Loads the transformer in this process and sends it on its way; what that took."""
    spec = find_model(MODEL)
    request = GenerateRequest(
        image=Path("picture.png"), model=MODEL, seed=0, num_frames=5, **mode.request
    )
    device = torch.device("cpu")
    plan = make_plan(request, spec, size=(64, 64), machine=this_machine(device), weights=folder)
    with HostPeak() as loading:
        started = time.perf_counter()
        transformer = _load(plan, folder)
        loaded = time.perf_counter() - started
        with HostPeak() as moving:
            started = time.perf_counter()
            total = sum(_send(group) for group in _groups(transformer))
            moved = time.perf_counter() - started
    return {
        "load_seconds": loaded,
        "move_seconds": moved,
        "moved_bytes": total,
        "anonymous_bytes": loading.added,
        "moving_anonymous_bytes": moving.anonymous - loading.before,
        "resident_bytes": loading.resident,
    }


def _load(plan: Plan, folder: Path) -> Any:
    # On the CPU, `disk` leaves weights in their files; on a device the library writes its own.
    writes = patch.object(offload, "_uses_disk", lambda plan: plan.offload == "disk")
    with writes:
        [(_, transformer)] = load_parts(find_model(MODEL), plan, folder, ("transformer",))
    return transformer


def _groups(transformer: nn.Module) -> Iterator[list[Tensor]]:
    """All tensors in the order of a pass; what is offloaded is fetched before and left after."""
    seen: set[int] = set()
    for module in transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        hook = None if registry is None else registry.get_hook("group_offloading")
        if hook is not None and hook.group.onload_leader in (None, module):
            group = hook.group
            tensors = [t for m in group.modules for t in m.parameters()] + list(group.parameters)
            group.onload_()
            yield from _fresh(tensors, seen)
            group.offload_()
    yield from _fresh(list(transformer.parameters()), seen)


def _fresh(tensors: list[Any], seen: set[int]) -> Iterator[list[Tensor]]:
    for tensor in tensors:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield _plain(tensor)


def _plain(tensor: Any) -> list[Tensor]:
    """The tensors that one of torchao's is made of; of any other, itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.data]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _plain(getattr(tensor, name))]


def _send(tensors: list[Tensor]) -> int:
    """Copies each to where the next one is copied too; how many bytes they were."""
    total = 0
    for tensor in tensors:
        pieces = tensor.detach().contiguous().view(-1).view(torch.uint8).split(2**22)
        for piece in pieces:
            torch.empty_like(piece).copy_(piece)
        total += tensor.nbytes
    return total


def measure(mode: str, folder: Path) -> dict[str, float]:
    """`load` in a process of its own."""
    environment = {**os.environ, "OSP_HOME": str(folder.parent / "home")}
    command = [sys.executable, __file__, "--child", mode, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def lines(found: dict[str, dict[str, float]], weights: float) -> Iterator[str]:
    """The table in Markdown."""
    yield f"Weights: {weights / 1e9:.2f} GB in bfloat16."
    yield ""
    yield "|way|loading s|moving s|anonymous GB|of the weights|resident GB|"
    yield "|---|---|---|---|---|---|"
    for name, row in found.items():
        peak = row["anonymous_bytes"]
        yield (
            f"|{MODES[name].title}|{row['load_seconds']:.1f}|{row['move_seconds']:.1f}"
            f"|{peak / 1e9:.2f}|{peak / weights:.0%}|{row['resident_bytes'] / 1e9:.2f}|"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--folder", type=Path, help="with room for the checkpoint three times over")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        sys.stdout.write(json.dumps(load(MODES[options.child], options.folder)) + "\n")
        return
    model = empty_model(options.gigabytes)
    weights = 2.0 * sum(p.numel() for p in model.parameters())
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        kept: tuple[str, int] | None = None
        folder = Path(name) / "model"
        for mode in options.modes:
            wanted = MODES[mode]
            if wanted.needs and find_spec(wanted.needs) is None:
                sys.stderr.write(f"{mode}: left out, {wanted.needs} is not installed\n")
                continue
            if kept != (wanted.stored, wanted.shards):
                shutil.rmtree(folder, ignore_errors=True)
                kept = wanted.stored, wanted.shards
                dtype = getattr(torch, wanted.stored)
                write_checkpoint(folder / "transformer", model, dtype, shards=wanted.shards)
            found[mode] = measure(mode, folder)
            sys.stderr.write(f"{mode}: {found[mode]}\n")
    sys.stdout.write("\n".join([*lines(found, weights), ""]))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
