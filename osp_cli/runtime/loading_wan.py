"""What the models of plain Wan need loaded, and the pipeline that each card asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from osp_cli.conditioning.base import Conditioner
from osp_cli.conditioning.clip_vision import FirstFrameConditioner
from osp_cli.errors import CheckpointError, RuntimeFailureError, WeightsMissingError
from osp_cli.models.gguf import gguf_file, load_gguf
from osp_cli.models.state_dict import load_wan_transformer
from osp_cli.pipelines.flash_i2v import FlashI2VPipeline
from osp_cli.pipelines.wan import WanPipeline
from osp_cli.pipelines.wan_i2v import WanImageToVideoPipeline
from osp_cli.registry import ModelSpec
from osp_cli.runtime.start_up import transformers_class


def make_pipeline(spec: ModelSpec, parts: Mapping[str, Any]) -> FlashI2VPipeline:
    """The pipeline of a card.

    Args:
        spec: the card.
        parts: those that are loaded, by the names of `load_parts`; what is lacking is None in the
            pipeline, and must be there for the stage that needs it.

    Raises:
        RuntimeFailureError: this version has no such pipeline.
    """
    transformer, vae, conditioner = map(parts.get, ("transformer", "vae", "conditioner"))
    pipelines: dict[str, Callable[..., FlashI2VPipeline]] = {
        "flash-i2v": partial(FlashI2VPipeline, surround=spec.image_token_surround),
        "wan-t2v": WanPipeline,
        "wan-i2v": WanImageToVideoPipeline,
    }
    if spec.pipeline in pipelines:
        return pipelines[spec.pipeline](transformer, vae, conditioner)
    raise RuntimeFailureError(f"the card of {spec.name} asks for pipeline {spec.pipeline!r}")


def load_plain_transformer(spec: ModelSpec, folder: Path, dtype: torch.dtype) -> Any:
    """The transformer of a Wan model, or of Helios, which was made of one.

    Raises:
        CheckpointError: it does not fit its card.
    """
    if spec.pipeline == "helios":
        return _load_helios(spec, folder, dtype)
    if (file := gguf_file(folder / "transformer")) is not None:
        from diffusers import WanTransformer3DModel

        transformer = load_gguf(WanTransformer3DModel, file, dtype=dtype)
    else:
        transformer = load_wan_transformer(folder / "transformer", dtype=dtype)
    channels = transformer.config.in_channels
    expected = spec.latent_channels
    if spec.pipeline == "wan-i2v":
        # The noisy latents, those of what is known, and a mask channel for each frame.
        expected += spec.latent_channels + spec.scale_factor_temporal
    if channels != expected:
        raise CheckpointError(
            f"the transformer in {folder} takes {channels} channels, "
            f"the card of {spec.name} needs one of {expected}"
        )
    if (transformer.config.image_dim is not None) != (spec.pipeline == "wan-i2v"):
        lacks = "has no" if spec.pipeline == "wan-i2v" else "has an"
        raise CheckpointError(
            f"the transformer in {folder} {lacks} image embedder, unlike {spec.name}"
        )
    return transformer


def _load_helios(spec: ModelSpec, folder: Path, dtype: torch.dtype) -> Any:
    # Only here: no other model waits for the import.
    from osp_cli.models.helios import load_helios_transformer

    if (file := gguf_file(folder / "transformer")) is not None:
        raise CheckpointError(f"{file} cannot be read: Helios comes as safetensors")
    transformer = load_helios_transformer(folder / "transformer", dtype=dtype)
    if (channels := transformer.config.in_channels) != spec.latent_channels:
        raise CheckpointError(
            f"the transformer in {folder} takes {channels} channels, "
            f"the card of {spec.name} needs one of {spec.latent_channels}"
        )
    return transformer


def with_image_encoder(
    spec: ModelSpec,
    texts: Conditioner,
    folder: Path,
    device: torch.device,
    dtypes: Mapping[str, torch.dtype],
) -> Conditioner:
    """The conditioner of a card that is shown a first frame: with CLIP's view of it.

    Args:
        spec: the card; one without an image encoder gets `texts` back.
        texts: its conditioner of prompts.
        folder: of the weights.
        device: of the encoder.
        dtypes: torch's, by the names that cards have for them.

    Raises:
        WeightsMissingError: the image processor's settings are not there.
        CheckpointError: the encoder's width is not what the transformer beside it reads.
    """
    if spec.pipeline != "wan-i2v":
        return texts
    from osp_cli.runtime.loading import load_complete

    model_class = transformers_class("models.clip.modeling_clip", "CLIPVisionModel")
    processor_class = transformers_class(
        "models.clip.image_processing_pil_clip", "CLIPImageProcessorPil"
    )
    encoder = load_complete(
        model_class, folder / "image_encoder", dtypes[spec.dtypes["image_encoder"]]
    )
    _check_image_dim(folder, encoder.config.hidden_size)
    processor = processor_class.from_pretrained(_processor_folder(folder), local_files_only=True)
    return FirstFrameConditioner(texts, processor, encoder.eval().to(device))


def _processor_folder(folder: Path) -> Path:
    for place in (folder / "image_processor", folder / "image_encoder"):
        if (place / "preprocessor_config.json").is_file():
            return place
    # Whether the picture is cropped or squeezed is written there; it cannot be guessed.
    raise WeightsMissingError(
        f"there is no image processor in {folder}",
        hint="put preprocessor_config.json into its folder image_processor",
    )


def _check_image_dim(folder: Path, width: int) -> None:
    """Refuses embeds of another width than the transformer reads, as far as its config tells."""
    config = folder / "transformer" / "config.json"
    if not config.is_file():
        return
    image_dim = json.loads(config.read_text("utf-8")).get("image_dim")
    if image_dim not in (None, width):
        raise CheckpointError(
            f"the image_encoder in {folder} gives embeds of width {width}, "
            f"the transformer there takes {image_dim}"
        )
