"""From a folder of weights to components in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from osp_cli.conditioning.base import Conditioner
from osp_cli.errors import CheckpointError, RuntimeFailureError
from osp_cli.events import Loaded
from osp_cli.models.state_dict import load_adapter, load_autoencoder, load_transformer
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.plan import Plan
from osp_cli.registry import ModelSpec

# The libraries' own bars and advice would run through ours; `--debug` shows tracebacks, not these.
diffusers_logging.set_verbosity_error()
diffusers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(slots=True)
class Components:
    """Everything that a pipeline is handed.

    Attributes:
        transformer: the velocity model.
        vae: anything with `AutoencoderKLWan`'s interface.
        conditioner: prompts and picture to `encoder_hidden_states`.
    """

    transformer: FlashI2VTransformer3DModel
    vae: Any
    conditioner: Conditioner


def load_components(spec: ModelSpec, plan: Plan, folder: Path) -> Iterator[Loaded | Components]:
    """Loads the parts one after the other; yields a `Loaded` for each, then the `Components`.

    Raises:
        CheckpointError: files are damaged or do not belong to this card.
    """
    device = torch.device(plan.device)
    loaders: dict[str, Callable[[], Any]] = {
        "transformer": lambda: _load_transformer(spec, plan, folder),
        "vae": lambda: _load_vae(spec, folder),
        "conditioner": lambda: _load_conditioner(spec, folder, device),
    }
    parts: dict[str, Any] = {}
    for name, load in loaders.items():
        started = time.perf_counter()
        part = load()
        if name != "conditioner":
            part = part.to(device)
        parts[name] = part
        yield Loaded(name, time.perf_counter() - started)
    yield Components(**parts)


def _load_transformer(spec: ModelSpec, plan: Plan, folder: Path) -> FlashI2VTransformer3DModel:
    transformer = load_transformer(folder / "transformer", dtype=_DTYPES[plan.dtype])
    if transformer.config.in_channels != spec.latent_channels:
        raise CheckpointError(
            f"the transformer in {folder} takes {transformer.config.in_channels} latent channels, "
            f"the card of {spec.name} says {spec.latent_channels}"
        )
    return transformer


def _load_vae(spec: ModelSpec, folder: Path) -> Any:
    dtype = _DTYPES[spec.dtypes["vae"]]
    if spec.vae_class == "AutoencoderLinear":
        from osp_cli.models.autoencoder_linear import AutoencoderLinear

        return AutoencoderLinear.from_pretrained(
            folder / "vae", dtype=dtype, local_files_only=True
        ).eval()
    return load_autoencoder(folder / "vae", dtype=dtype)


def _load_conditioner(spec: ModelSpec, folder: Path, device: torch.device) -> Conditioner:
    dtype = _DTYPES[spec.dtypes["conditioner"]]
    if spec.conditioner == "umt5":
        from transformers import AutoTokenizer, UMT5EncoderModel

        from osp_cli.conditioning.umt5 import UMT5Conditioner

        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = UMT5EncoderModel.from_pretrained(
            folder / "text_encoder", dtype=dtype, local_files_only=True
        )
        return UMT5Conditioner(tokenizer, encoder.eval().to(device), spec.max_sequence_length)
    if spec.conditioner == "qwen2.5-vl":
        return _load_qwen(spec, folder, device, dtype)
    raise RuntimeFailureError(
        f"the card of {spec.name} asks for conditioning {spec.conditioner!r}, "
        "which this version does not have",
        hint="use --model osp-mini or --model flashi2v-1.3b",
    )


def _load_qwen(
    spec: ModelSpec, folder: Path, device: torch.device, dtype: torch.dtype
) -> Conditioner:
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLModel, Qwen2VLImageProcessorPil

    from osp_cli.conditioning.vlm import QwenVLConditioner

    source = folder / "text_encoder"
    model = Qwen2_5_VLModel.from_pretrained(source, dtype=dtype, local_files_only=True)
    visual = folder / "image_adapter"
    return QwenVLConditioner(
        model.eval().to(device),
        PreTrainedTokenizerFast.from_pretrained(source, local_files_only=True),
        Qwen2VLImageProcessorPil.from_pretrained(source, local_files_only=True),
        load_adapter(folder / "adapter", dtype=dtype).to(device),
        load_adapter(visual, dtype=dtype).to(device) if visual.is_dir() else None,
        max_sequence_length=spec.max_sequence_length,
        image_token_pool=spec.image_token_pool,
        image_token_positions=spec.image_token_positions,
    )
