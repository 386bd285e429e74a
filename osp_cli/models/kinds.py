"""The models whose weights are recognised: by which keys, and what an empty one looks like.

    flash-i2v         FlashI2V's transformer: Wan's and eight more tensors
    wan-t2v, wan-i2v  Wan's transformers, without and with what CLIP saw of a picture
    wan-vae           Wan's autoencoder                     linear-vae  that of the small model
    umt5              the text encoder                      clip-vision the picture encoder
    qwen2.5-vl        the vision-language model, or its text half alone
    feature-adapter   two layers between features and transformer

and `diffusers:NAME` for any other class of diffusers, which is known by its `config.json` alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from osp_cli.errors import CheckpointError
from osp_cli.models import shapes
from osp_cli.models.original_names import (
    autoencoder_from_original,
    clip_vision_from_original,
    transformer_from_original,
    umt5_from_original,
)
from osp_cli.models.state_dict import BRANCHES, Shaped, accepted, read_config, transformer_config
from osp_cli.models.stored import StoredTensor

Tensors = Mapping[str, StoredTensor]

PROCESSOR = "preprocessor_config.json"
# Parts without weights, by the file that makes them.
SETTINGS_ALONE = {PROCESSOR: "image_processor", "scheduler_config.json": "scheduler"}
# Their shapes do not say everything, so they come with their settings.
NEED_CONFIG = ("qwen2.5-vl",)
TRANSFORMER_KINDS = ("flash-i2v", "wan-t2v", "wan-i2v")

# As Wan's own code prepares a picture for CLIP (Wan2.1, `wan/modules/clip.py`): squeezed into a
# square, whatever its shape was.
CLIP_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
}

# Of a whole CLIP, beside what sees.
_CLIP_OTHERS = ("text_model", "text_projection", "visual_projection", "logit_scale")
_TRANSFORMERS_KINDS = ("umt5", "clip-vision", "qwen2.5-vl")
# Any one of these files makes a tokenizer.
_VOCABULARIES = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "vocab.json")
_TOKENIZER_FILES = (
    *_VOCABULARIES, "tokenizer_config.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.json", "chat_template.jinja",
)  # fmt: skip
_TOKENIZERS = {"T5": "umt5", "UMT5": "umt5", "XLMRoberta": "xlm-roberta", "Qwen2": "qwen2.5-vl",
               "CLIP": "clip"}  # fmt: skip
_QWEN_FILES = (
    "config.json", "generation_config.json", PROCESSOR, "video_preprocessor_config.json",
    *_TOKENIZER_FILES,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """What keys alone tell.

    Attributes:
        name: the kind, `transformer` for the three that only shapes tell apart.
        part: the folder of an installed model.
        tensors: under the names of diffusers or transformers.
        is_original: the names were others before.
    """

    name: str
    part: str
    tensors: Tensors
    is_original: bool

    @property
    def layout(self) -> str:
        """Whose names the file has."""
        if self.is_original:
            return "original"
        return "transformers" if self.name in _TRANSFORMERS_KINDS else "diffusers"


def recognise(tensors: Tensors, folder: Path) -> Family | None:
    """What these weights are by their names; None where nothing here has such names.

    Args:
        folder: where they lie; its `config.json` may name a class of diffusers.
    """
    other = _other_class(folder, tensors)
    if other is not None:
        return other
    for name, part, rename, marks in _FAMILIES:
        for mark in marks:
            if all(key in tensors for key in mark):
                renamed = dict(rename(tensors))
                if "shared.weight" in renamed:
                    # umT5's embedding again, under its second name.
                    renamed.pop("encoder.embed_tokens.weight", None)
                return Family(name, part, renamed, not renamed.keys() <= tensors.keys())
    names = {_plain_qwen(name) for name in tensors}
    if {"embed_tokens.weight", "layers.0.self_attn.q_proj.bias"} <= names:
        return Family("qwen2.5-vl", "text_encoder", tensors, is_original=False)
    return None


def settle(family: Family, file: Path) -> tuple[str, dict[str, Any]]:
    """Kind and settings, from the shapes and the `config.json` beside `file` if it is theirs.

    Raises:
        CheckpointError: neither says enough.
    """
    config = _own_config(family.name, file.parent)
    tensors = family.tensors
    try:
        if family.name == "transformer":
            return _settle_transformer(config, tensors, file)
        if family.name == "umt5":
            return family.name, shapes.umt5_settings(tensors)
        if family.name == "feature-adapter":
            return family.name, shapes.adapter_settings(tensors)
        if family.name == "wan-vae":
            return family.name, {**shapes.autoencoder_settings(tensors), **config}
        if family.name == "clip-vision":
            bare = _without("vision_model.", tensors)
            return family.name, {**shapes.clip_vision_settings(bare), **config}
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{file} looks like {title(family.name, {})}, but its shapes do not say how large it "
            f"is: {error}"
        ) from error
    return family.name, config


def empty_model(kind: str, settings: Mapping[str, Any]) -> nn.Module:
    """A model without memory for its weights.

    Raises:
        CheckpointError: these are no settings of such a model.
    """
    try:
        with torch.device("meta"):
            return _built(kind, settings)
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise CheckpointError(f"no {title(kind, {})} has such settings: {error}") from error


def expectation(
    kind: str, settings: Mapping[str, Any], tensors: Tensors
) -> tuple[Mapping[str, Shaped], Mapping[str, Shaped]]:
    """What a whole model of these settings has, and what was found, in comparable names.

    What loaders do without, on either side, is left out of both.
    """
    if kind == "qwen2.5-vl" and not settings:
        # Without settings there is nothing to compare; that they are missing is said elsewhere.
        return {}, {}
    expected: dict[str, Shaped] = dict(empty_model(kind, settings).state_dict())
    found: dict[str, Shaped] = dict(tensors)
    found = {name: tensor for name, tensor in found.items() if is_needed(kind, name)}
    if kind == "umt5":
        # One tensor of two names.
        for one, other in (("shared", "encoder.embed_tokens"), ("encoder.embed_tokens", "shared")):
            if f"{one}.weight" in found:
                found.setdefault(f"{other}.weight", found[f"{one}.weight"])
    if kind == "clip-vision":
        found = _without("vision_model.", found)
    if kind == "qwen2.5-vl":
        found = {_plain_qwen(name): tensor for name, tensor in found.items()}
        expected = {_plain_qwen(name): tensor for name, tensor in expected.items()}
        if not has_vision(tensors):
            expected = {n: t for n, t in expected.items() if not n.startswith("visual.")}
        for names in (found, expected):
            names.pop("lm_head.weight", None)
    return expected, found


def is_needed(kind: str, name: str) -> bool:
    """Whether a loader reads a tensor: of a whole umT5 or CLIP, one half is enough."""
    root = name.split(".")[0]
    if kind == "umt5":
        return root not in ("decoder", "lm_head")
    if kind == "clip-vision":
        return root not in _CLIP_OTHERS and not name.endswith("position_ids")
    return True


def has_vision(tensors: Tensors) -> bool:
    """Whether a vision-language model has the half that sees."""
    return any(_plain_qwen(name).startswith("visual.") for name in tensors)


def title(kind: str, settings: Mapping[str, Any]) -> str:
    """What a kind is called, with the size that tells it from others of its kind."""
    words = {
        "transformer": "a video transformer",
        "flash-i2v": "FlashI2V's transformer",
        "wan-t2v": "Wan's text-to-video transformer",
        "wan-i2v": "Wan's image-to-video transformer",
        "wan-vae": "Wan's autoencoder",
        "linear-vae": "the small model's autoencoder",
        "umt5": "the umT5 encoder",
        "clip-vision": "CLIP's picture encoder",
        "qwen2.5-vl": "Qwen2.5-VL",
        "feature-adapter": "an adapter",
        "image-processor": "an image processor",
        "scheduler": "a scheduler",
        "unknown": "not recognised",
    }.get(kind, f"{kind.removeprefix('diffusers:')} of diffusers")
    if "num_layers" in settings and "num_attention_heads" in settings:
        width = settings["num_attention_heads"] * settings["attention_head_dim"]
        words += f" with {settings['num_layers']} layers of width {width}"
    elif kind == "feature-adapter" and settings:
        words += f" from {settings['in_features']} to {settings['out_features']} features"
    return f"the {kind.replace('-tokenizer', ' tokenizer')}" if "tokenizer" in kind else words


def tokenizer_kind(folder: Path) -> str:
    """`umt5-tokenizer` and the like, or `tokenizer` where its class is any; empty for none."""
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        return ""
    settings = folder / "tokenizer_config.json"
    name = str(_json(settings).get("tokenizer_class") or "") if settings.is_file() else ""
    family = next((kind for start, kind in _TOKENIZERS.items() if name.startswith(start)), "")
    return f"{family}-tokenizer" if family else "tokenizer"


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """Those files of a folder that make its tokenizer."""
    return tuple(p for name in dict.fromkeys(_TOKENIZER_FILES) if (p := folder / name).is_file())


def companions(kind: str, folder: Path) -> tuple[Path, ...]:
    """Small files that a model of transformers has beside its weights."""
    config = folder / "config.json"
    if kind == "qwen2.5-vl":
        return tuple(path for name in _QWEN_FILES if (path := folder / name).is_file())
    if kind in _TRANSFORMERS_KINDS and _own_config(kind, folder):
        processor = folder / PROCESSOR
        return (config, processor) if processor.is_file() else (config,)
    return ()


def _settle_transformer(
    config: Mapping[str, Any], tensors: Tensors, file: Path
) -> tuple[str, dict[str, Any]]:
    settings = transformer_config(config, tensors, file)
    if settings["num_layers"] > len(tensors):
        # An empty model of so many layers would take for ever.
        raise CheckpointError(
            f"the config.json beside {file} tells of {settings['num_layers']} layers, "
            f"the file has {len(tensors)} tensors"
        )
    if any(name.split(".")[0] in BRANCHES for name in tensors):
        return "flash-i2v", settings
    from diffusers import WanTransformer3DModel

    seeing = settings.get("image_dim") or settings["in_channels"] > settings["out_channels"]
    return "wan-i2v" if seeing else "wan-t2v", accepted(WanTransformer3DModel, settings)


def model_class(kind: str) -> Any:
    """The class that models of a kind have."""
    # Each import is seconds, and few kinds are met in one folder.
    if kind in _TRANSFORMERS_KINDS:
        import transformers

        return {
            "umt5": transformers.UMT5EncoderModel,
            "clip-vision": transformers.CLIPVisionModel,
            "qwen2.5-vl": transformers.Qwen2_5_VLForConditionalGeneration,
        }[kind]
    import diffusers

    from osp_cli.models.adapter import FeatureAdapter
    from osp_cli.models.autoencoder_linear import AutoencoderLinear
    from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel

    return {
        "flash-i2v": FlashI2VTransformer3DModel,
        "wan-t2v": diffusers.WanTransformer3DModel,
        "wan-i2v": diffusers.WanTransformer3DModel,
        "wan-vae": diffusers.AutoencoderKLWan,
        "linear-vae": AutoencoderLinear,
        "feature-adapter": FeatureAdapter,
    }.get(kind) or getattr(diffusers, kind.removeprefix("diffusers:"))


def _built(kind: str, settings: Mapping[str, Any]) -> nn.Module:
    cls = model_class(kind)
    if kind not in _TRANSFORMERS_KINDS:
        return cls(**accepted(cls, settings))
    config = cls.config_class
    # What was published in 2025 has its settings in another order, which the config class knows.
    return cls(config.from_dict(dict(settings)) if kind == "qwen2.5-vl" else config(**settings))


def _other_class(folder: Path, tensors: Tensors) -> Family | None:
    """A class of diffusers that has no rule here, as its `config.json` names it."""
    config = folder / "config.json"
    name = str(_json(config).get("_class_name") or "") if config.is_file() else ""
    if not name or name in _KNOWN_CLASSES:
        return None
    import diffusers

    model_class = getattr(diffusers, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        return None
    part = {"A": "vae"}.get(name[0]) if name.startswith("Autoencoder") else None
    part = "transformer" if "Transformer" in name else part
    return Family(f"diffusers:{name}", part, tensors, is_original=False) if part else None


def _own_config(name: str, folder: Path) -> dict[str, Any]:
    """The `config.json` of a folder, if it speaks of such a model and not of another beside it."""
    try:
        config = read_config(folder)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from error
    class_name, model_type = str(config.get("_class_name")), str(config.get("model_type"))
    belongs = {
        "transformer": config.keys() & {"num_heads", "num_attention_heads"} and "d_ff" not in config
        and "hidden_size" not in config,
        "wan-vae": class_name.startswith("Autoencoder"),
        "umt5": model_type in ("umt5", "t5", "mt5"),
        "clip-vision": model_type.startswith("clip"),
        "qwen2.5-vl": model_type.startswith("qwen2_5_vl"),
    }.get(name, True)  # fmt: skip
    return config if belongs else {}


def _plain_qwen(name: str) -> str:
    """A key of Qwen2.5-VL without what versions of transformers put before it."""
    name = name.removeprefix("model.")
    for half in ("language_model.model.", "language_model."):
        name = name.removeprefix(half)
    return name


def _without(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def _same(tensors: Tensors) -> Tensors:
    return tensors


_KNOWN_CLASSES = (
    "FlashI2VTransformer3DModel", "WanTransformer3DModel", "WanModel", "AutoencoderKLWan",
    "AutoencoderLinear", "FeatureAdapter",
)  # fmt: skip
# Name, part, how originals are renamed, and sets of keys any of which says that it is one.
_FAMILIES: tuple[
    tuple[str, str, Callable[[Tensors], Tensors], tuple[tuple[str, ...], ...]], ...
] = (
    ("transformer", "transformer", transformer_from_original, (
        ("patch_embedding.weight", "blocks.0.self_attn.q.weight"),
        ("patch_embedding.weight", "blocks.0.attn1.to_q.weight"),
    )),
    ("wan-vae", "vae", autoencoder_from_original, (
        ("encoder.conv1.weight", "decoder.conv1.weight", "conv2.weight"),
        ("encoder.conv_in.weight", "decoder.conv_in.weight", "encoder.norm_out.gamma"),
    )),
    ("linear-vae", "vae", _same, (("first_basis", "next_basis"),)),
    ("umt5", "text_encoder", umt5_from_original, (
        ("token_embedding.weight", "blocks.0.pos_embedding.embedding.weight"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
         "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",),
    )),
    ("clip-vision", "image_encoder", clip_vision_from_original, (
        ("visual.cls_embedding", "visual.patch_embedding.weight"),
        ("embeddings.class_embedding", "pre_layrnorm.weight"),
        ("vision_model.embeddings.class_embedding", "vision_model.pre_layrnorm.weight"),
    )),
    ("feature-adapter", "adapter", _same, (("fc1.weight", "fc2.weight"),)),
)  # fmt: skip
