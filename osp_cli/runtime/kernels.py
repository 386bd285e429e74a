"""How blocks are computed: attention kernels, and torch's compiler."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from osp_cli.errors import InvalidRequestError, RuntimeFailureError
from osp_cli.plan import Plan

# What diffusers calls them, and the package that has them.
_BACKENDS = {
    "sdpa": ("native", None),
    "flash": ("flash", "flash_attn"),
    "sage": ("sage", "sageattention"),
}
_INSTALL = {"flash_attn": "flash-attn", "sageattention": "sageattention"}


def check_attention(attention: str, device: torch.device) -> None:
    """Refuse kernels that cannot work here, before weights are read.

    Raises:
        InvalidRequestError: they need CUDA, or a package that is missing.
    """
    _, package = _BACKENDS.get(attention, ("", None))
    if package is None:
        return
    if device.type != "cuda":
        raise InvalidRequestError(
            f"--attention {attention} needs CUDA, this run is on {device.type}",
            hint="--attention sdpa",
        )
    if importlib.util.find_spec(package) is None:
        raise InvalidRequestError(
            f"--attention {attention} needs the package {_INSTALL[package]}",
            hint=f"pip install {_INSTALL[package]}, or --attention sdpa",
        )


def prepare_kernels(transformer: Any, plan: Plan) -> None:
    """Set the plan's attention, and compile blocks where it says so.

    Raises:
        RuntimeFailureError: the installed package does not suit, or there is no compiler.
    """
    backend, package = _BACKENDS[plan.attention]
    if package is not None:
        try:
            transformer.set_attention_backend(backend)
        except (RuntimeError, ValueError, ImportError) as error:
            raise RuntimeFailureError(
                f"--attention {plan.attention} does not work here: {error}",
                hint="--attention sdpa",
            ) from error
    if plan.compile:
        # Hooks that fetch weights break the graph between blocks and inside of them.
        whole = plan.offload in ("none", "model") and plan.quant == "none"
        transformer.compile_repeated_blocks(fullgraph=whole)
