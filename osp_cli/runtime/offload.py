"""Where weights are while they wait: on the device, or brought there piece by piece.

All of it is diffusers' group offloading; here is only which of its ways a plan means.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from osp_cli.media.files import explained
from osp_cli.plan import Plan

# What runs outside of the model's own forward, where no hook would fetch it: phi of Eq. 16.
_APART = ("learnable_proj",)


def place_transformer(
    transformer: nn.Module, plan: Plan, device: torch.device, folder: Path
) -> nn.Module:
    """The transformer where the plan wants it; adapters and smaller weights are in it already.

    Args:
        transformer: on the host.
        plan: says how.
        device: where it computes.
        folder: for weights on the disk; a folder of its own is made in it, and removed with the
            transformer.

    Raises:
        WontFitError: the disk is full.
    """
    if plan.offload in ("none", "model"):
        return transformer.to(device)
    path = _own_folder(transformer, folder) if _uses_disk(plan) else None
    with _taken_out(transformer) as apart, explained(folder):
        apply_group_offloading(
            transformer,
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="leaf_level" if plan.offload == "sequential" else "block_level",
            num_blocks_per_group=1,
            offload_to_disk_path=None if path is None else str(path),
            **_streams(device, pinned=plan.pinned),
        )
        for module in apart:
            module.to(device)
    return transformer


def place_encoder(encoder: nn.Module, plan: Plan, device: torch.device) -> nn.Module:
    """A text encoder: on the device, or leaf by leaf where it is too large for it."""
    if "conditioner" not in plan.streamed or device.type == "cpu":
        return encoder.to(device)
    apply_group_offloading(
        encoder,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        # Never page-locked: it reads two prompts, and making a copy of it takes longer than that.
        **_streams(device, pinned=False),
    )
    return encoder


def _uses_disk(plan: Plan) -> bool:
    # On the CPU, weights that lie in their files as they are computed with stay there anyway: the
    # system drops them when it needs the memory, and reads them again.
    return plan.offload == "disk" and plan.device != "cpu"


def _streams(device: torch.device, *, pinned: bool) -> dict[str, Any]:
    """Transfers beside the computation, where the device can."""
    if device.type != "cuda":
        return {}
    return {"use_stream": True, "low_cpu_mem_usage": not pinned}


def _own_folder(transformer: nn.Module, folder: Path) -> Path:
    """A folder for this very model: the library would take old files of the same name for its."""
    folder.mkdir(parents=True, exist_ok=True)
    own = tempfile.TemporaryDirectory(prefix="weights-", dir=folder)
    weakref.finalize(transformer, own.cleanup)
    return Path(own.name)


@contextmanager
def _taken_out(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Inside, the model is without those of its parts that stay on the device."""
    found = {name: getattr(model, name) for name in _APART if hasattr(model, name)}
    for name in found:
        delattr(model, name)
    try:
        yield list(found.values())
    finally:
        for name, module in found.items():
            setattr(model, name, module)
