"""From a folder of weights to components in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from osp_cli.conditioning.base import Conditioner
from osp_cli.errors import CheckpointError, RuntimeFailureError, WeightsMissingError
from osp_cli.events import Loaded
from osp_cli.models.adapter import FeatureAdapter
from osp_cli.models.gguf import gguf_file, load_gguf
from osp_cli.models.state_dict import (
    fill,
    load_adapter,
    load_autoencoder,
    load_transformer,
    read_state_dict,
)
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.plan import Plan
from osp_cli.registry import ModelSpec
from osp_cli.runtime.adapters import apply_loras
from osp_cli.runtime.companions import apply_companions
from osp_cli.runtime.devices import offload_folder
from osp_cli.runtime.kernels import prepare_kernels
from osp_cli.runtime.loading_wan import load_plain_transformer, with_image_encoder
from osp_cli.runtime.offload import place_encoder, place_transformer
from osp_cli.runtime.quantize import quantize_blocks
from osp_cli.runtime.start_up import light_imports, transformers_class

# The libraries' own bars and advice would run through ours; `--debug` shows tracebacks, not these.
diffusers_logging.set_verbosity_error()
diffusers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# The layer that conditioning enters, under its new and its original name.
_TEXT_EMBEDDINGS = ("text_embedder.linear_1.weight", "text_embedding.0.weight")

PARTS = ("transformer", "vae", "conditioner")


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
    parts: dict[str, Any] = {}
    for loaded, part in load_parts(spec, plan, folder, PARTS):
        parts[loaded.component] = part
        yield loaded
    yield Components(**parts)


def load_parts(
    spec: ModelSpec, plan: Plan, folder: Path, names: Sequence[str]
) -> Iterator[tuple[Loaded, Any]]:
    """Loads those of `PARTS` that are named, one after the other, the transformer with its LoRAs.

    Raises:
        CheckpointError: files are damaged or do not belong to this card.
        InvalidRequestError: a LoRA does not fit.
    """
    device = torch.device(plan.device)
    loaders: dict[str, Callable[[], Any]] = {
        "transformer": lambda: _ready(_load_transformer(spec, plan, folder), plan, device),
        "vae": lambda: _load_vae(spec, folder).to(device),
        "conditioner": lambda: with_image_encoder(
            spec, _conditioner(spec, folder, plan, device), folder, device, _DTYPES
        ),
    }
    for name in names:
        started = time.perf_counter()
        try:
            # Not for imports alone: torch fetches its compiler to make an empty weight.
            with light_imports():
                part = loaders[name]()
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"the {name} in {folder} cannot be loaded: {error}") from error
        yield Loaded(name, time.perf_counter() - started), part


def _ready(transformer: Any, plan: Plan, device: torch.device) -> Any:
    """The transformer as the plan wants it, from the host: LoRAs, smaller weights, their place."""
    resident = plan.offload in ("none", "model")
    # Summed where that is quick. Weights that are read piece by piece stay in their files, and
    # smaller ones would lose what a LoRA changes little: there it stands beside them.
    may_fuse = resident and plan.quant == "none"
    if plan.loras and may_fuse:
        transformer = transformer.to(device)
    apply_loras(transformer, plan.loras, plan.model, may_fuse=may_fuse)
    quantize_blocks(
        transformer,
        plan.quant,
        compute_dtype=_DTYPES[plan.dtype],
        device=device if resident else torch.device("cpu"),
    )
    placed = place_transformer(transformer, plan, device, offload_folder())
    prepare_kernels(placed, plan)
    return placed


def _load_transformer(spec: ModelSpec, plan: Plan, folder: Path) -> Any:
    dtype = _DTYPES[plan.dtype]
    if spec.pipeline != "flash-i2v":
        return load_plain_transformer(spec, folder, dtype)
    if (file := gguf_file(folder / "transformer")) is not None:
        transformer = load_gguf(FlashI2VTransformer3DModel, file, dtype=dtype)
    else:
        transformer = load_transformer(folder / "transformer", dtype=dtype)
    if transformer.config.in_channels != spec.latent_channels:
        raise CheckpointError(
            f"the transformer in {folder} takes {transformer.config.in_channels} latent channels, "
            f"the card of {spec.name} says {spec.latent_channels}"
        )
    return transformer


def _load_vae(spec: ModelSpec, folder: Path) -> Any:
    dtype = _DTYPES[spec.dtypes["vae"]]
    if spec.vae_class == "AutoencoderLinear":
        return _load_linear_vae(folder / "vae", dtype)
    return load_autoencoder(folder / "vae", dtype=dtype)


def _load_linear_vae(folder: Path, dtype: torch.dtype) -> Any:
    from osp_cli.models.autoencoder_linear import AutoencoderLinear

    config = AutoencoderLinear.load_config(folder, local_files_only=True)
    with init_empty_weights():
        model = AutoencoderLinear.from_config(config)
    # Not `from_pretrained`, which leaves a missing weight empty without a word.
    fill(model, read_state_dict(folder), folder, dtype=dtype)
    return model.eval()


def _conditioner(spec: ModelSpec, folder: Path, plan: Plan, device: torch.device) -> Conditioner:
    """With what was trained of it together with a LoRA."""
    conditioner = _load_conditioner(spec, folder, plan, device)
    apply_companions("conditioner", conditioner, plan.loras)
    return conditioner


def _load_conditioner(
    spec: ModelSpec, folder: Path, plan: Plan, device: torch.device
) -> Conditioner:
    dtype = _DTYPES[spec.dtypes["conditioner"]]
    if spec.conditioner == "umt5":
        from osp_cli.conditioning.umt5 import UMT5Conditioner

        encoder_class = transformers_class("models.umt5.modeling_umt5", "UMT5EncoderModel")
        tokenizer = _auto_tokenizer().from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = load_complete(encoder_class, folder / "text_encoder", dtype)
        _check_text_dim(folder, "text_encoder", encoder.config.d_model)
        return UMT5Conditioner(
            tokenizer,
            place_encoder(encoder.eval(), plan, device),
            spec.max_sequence_length,
            device=device,
        )
    if spec.conditioner == "qwen2.5-vl":
        return _load_qwen(spec, folder, plan, device, dtype)
    if spec.conditioner == "qwen2.5-vl-released":
        return _load_released_qwen(spec, folder, plan, device, dtype)
    raise RuntimeFailureError(
        f"the card of {spec.name} asks for conditioning {spec.conditioner!r}, "
        "which this version does not have",
        hint="use --model osp-mini or --model flashi2v-1.3b",
    )


def _load_qwen(
    spec: ModelSpec, folder: Path, plan: Plan, device: torch.device, dtype: torch.dtype
) -> Conditioner:
    from osp_cli.conditioning.image_tokens import POSITION_FEATURES
    from osp_cli.conditioning.vlm import QwenVLConditioner

    model_class = transformers_class("models.qwen2_5_vl.modeling_qwen2_5_vl", "Qwen2_5_VLModel")
    tokenizer_class = transformers_class("tokenization_utils_tokenizers", "PreTrainedTokenizerFast")
    processor_class = transformers_class(
        "models.qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil"
    )
    source = folder / "text_encoder"
    model = load_complete(model_class, source, dtype)
    adapter = _load_adapter(folder, "adapter", dtype, model.config.text_config.hidden_size)
    image_adapter = None
    if (folder / "image_adapter").is_dir():
        width = spec.latent_channels * spec.image_token_patch**2
        width += POSITION_FEATURES * spec.image_token_positions
        image_adapter = _load_adapter(folder, "image_adapter", dtype, width).to(device)
    return QwenVLConditioner(
        place_encoder(model.eval(), plan, device),
        tokenizer_class.from_pretrained(source, local_files_only=True),
        processor_class.from_pretrained(source, local_files_only=True),
        adapter.to(device),
        image_adapter,
        max_sequence_length=spec.max_sequence_length,
        image_token_patch=spec.image_token_patch,
        image_token_positions=spec.image_token_positions,
        device=device,
    )


def _load_released_qwen(
    spec: ModelSpec, folder: Path, plan: Plan, device: torch.device, dtype: torch.dtype
) -> Conditioner:
    from osp_cli.conditioning.vlm_released import ReleasedQwenConditioner

    model_class = transformers_class("models.qwen2_5_vl.modeling_qwen2_5_vl", "Qwen2_5_VLTextModel")
    # The text half of a whole checkpoint: the vision tower's weights are left over, and not read.
    model = load_complete(model_class, folder / "text_encoder", dtype)
    adapter = _load_adapter(folder, "adapter", dtype, model.config.hidden_size)
    source = _tokenizer_folder(folder)
    tokenizer = _auto_tokenizer().from_pretrained(source, local_files_only=True)
    return ReleasedQwenConditioner(
        place_encoder(model.eval(), plan, device),
        tokenizer,
        adapter.to(device),
        max_sequence_length=spec.max_sequence_length,
        # As in the release, whose tokenizer says right.
        padding_side=tokenizer.padding_side,
        device=device,
    )


def _auto_tokenizer() -> Any:
    return transformers_class("models.auto.tokenization_auto", "AutoTokenizer")


def _tokenizer_folder(folder: Path) -> Path:
    """A folder of its own, or the text encoder's, as in a repository of the hub.

    Raises:
        WeightsMissingError: There is no tokenizer in either.
    """
    for place in (folder / "tokenizer", folder / "text_encoder"):
        if (place / "tokenizer_config.json").is_file():
            return place
    raise WeightsMissingError(
        f"there is no tokenizer in {folder}",
        hint="put tokenizer.json and tokenizer_config.json into its folder tokenizer",
    )


def load_complete(model_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A model of transformers, every weight of which is in the folder.

    The library alone would give random numbers to a missing one, and only log that. Weights left
    over are its business: a folder of the hub may hold a head that is not needed here.
    """
    model, found = model_class.from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    missing = sorted(found["missing_keys"])
    if missing:
        raise CheckpointError(
            f"the weights in {folder} do not fit {model_class.__name__}: "
            f"{len(missing)} missing: {', '.join(missing[:20])}"
        )
    return model


def _load_adapter(folder: Path, part: str, dtype: torch.dtype, width: int) -> FeatureAdapter:
    """The adapter in `folder / part`, refused unless it maps `width` features to `text_dim`."""
    adapter = load_adapter(folder / part, dtype=dtype)
    if adapter.fc1.in_features != width:
        raise CheckpointError(
            f"the adapter in {folder / part} reads {adapter.fc1.in_features} features, "
            f"it would get {width}"
        )
    _check_text_dim(folder, part, adapter.fc2.out_features)
    return adapter


def _check_text_dim(folder: Path, part: str, width: int) -> None:
    """Refuses conditioning of another width than the transformer beside it takes.

    Read from the headers of the weights: the transformer itself may be loaded later, or not at all.
    """
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if not name.endswith(_TEXT_EMBEDDINGS):
                    continue
                text_dim = file.get_slice(name).get_shape()[1]
                if text_dim != width:
                    raise CheckpointError(
                        f"the {part} in {folder} gives conditioning of width {width}, "
                        f"the transformer there takes {text_dim}"
                    )
