"""How blocks are computed: attention kernels, and torch's compiler."""

from __future__ import annotations

import importlib.util
import os
import shutil
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


def check_compile(device: torch.device) -> None:
    """Refuse to compile where there is nothing to do it with, before weights are read.

    Raises:
        InvalidRequestError: a compiler or a package is missing.
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise InvalidRequestError(
            "--compile needs the package triton", hint="pip install triton, or leave it out"
        )
    programs = (os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl")
    if device.type == "cpu" and not any(map(shutil.which, filter(None, programs))):
        raise InvalidRequestError(
            "--compile needs a C++ compiler, and there is none",
            hint="install g++ or clang, or leave --compile out",
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
        # Hooks that fetch weights, or leave blocks out, break the graph.
        whole = (plan.offload in ("none", "model"), plan.quant == "none", plan.cache == "none")
        transformer.compile_repeated_blocks(fullgraph=all(whole))
