"""Transformers in GGUF: weights in blocks of few bits, as others have quantised them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from osp_cli.errors import CheckpointError, RuntimeFailureError
from osp_cli.models.original_names import transformer_from_original

SUFFIX = ".gguf"


def gguf_file(folder: Path) -> Path | None:
    """The GGUF file of a part, where that is what it holds."""
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{folder} holds several weight files: {names}")
    return files[0] if files else None


def load_gguf(model_class: Any, file: Path, *, dtype: torch.dtype) -> Any:
    """A transformer whose weights stay in the few bits of its file; each is spread out as it runs.

    Args:
        model_class: of diffusers, with the names of Wan's checkpoints.
        file: `config.json` lies beside it.
        dtype: that it computes in.

    Raises:
        RuntimeFailureError: the package that reads such files is missing.
        CheckpointError: the file is damaged, or weights are missing; named.
    """
    if importlib.util.find_spec("gguf") is None:
        raise RuntimeFailureError(
            f"{file.name} needs the package gguf to be read", hint="pip install gguf"
        )
    from diffusers import GGUFQuantizationConfig

    try:
        _check_names(model_class, file)
        model = model_class.from_single_file(
            str(file),
            config=str(file.parent),
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            dtype=dtype,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{file} cannot be read as weights: {error}") from error
    return model.eval()


def _check_names(model_class: Any, file: Path) -> None:
    """Refuses a file that lacks weights; the library would tell so in words of its own.

    Raises:
        CheckpointError: the missing ones are named.
    """
    from gguf import GGUFReader

    with init_empty_weights():
        model = model_class.from_config(model_class.load_config(file.parent, local_files_only=True))
    stored = transformer_from_original(
        {tensor.name: torch.empty(0) for tensor in GGUFReader(file).tensors}
    )
    missing = [name for name in model.state_dict() if name not in stored]
    if missing:
        raise CheckpointError(
            f"the weights in {file} do not fit {model_class.__name__}: "
            f"{len(missing)} missing: {', '.join(missing[:20])}"
        )
