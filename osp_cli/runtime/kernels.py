"""How blocks are computed: attention kernels, and torch's compiler."""

from __future__ import annotations

from typing import Any

import torch

from osp_cli.errors import InvalidRequestError, RuntimeFailureError
from osp_cli.plan import Plan

# What diffusers calls them; the one that torch has itself is there already.
_BACKENDS = {"flash": "flash", "sage": "sage"}


def check_attention(attention: str, device: torch.device) -> None:
    """Refuse kernels that cannot work here, before weights are read.

    Raises:
        InvalidRequestError: they need CUDA.
    """
    if attention in _BACKENDS and device.type != "cuda":
        raise InvalidRequestError(
            f"--attention {attention} needs CUDA, this run is on {device.type}",
            hint="--attention sdpa",
        )


def prepare_kernels(transformer: Any, plan: Plan) -> None:
    """Set the plan's attention, and compile blocks where it says so.

    Raises:
        RuntimeFailureError: the installed package does not suit, or there is no compiler.
    """
    backend = _BACKENDS.get(plan.attention)
    if backend is not None:
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
