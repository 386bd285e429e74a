"""What layers are called in LoRA files: kohya's underscores, prefixes of every program, both the
original and diffusers' names; told without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

from osp_cli.models.original_names import (
    TRANSFORMER_BLOCK_PARTS,
    TRANSFORMER_ROOTS,
    transformer_name,
)

# Layers for the picture's features, of inpainting transformers alone; theirs, and as diffusers
# calls them.
_IMAGE_BLOCK_PARTS = {
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
}
_IMAGE_ROOTS = {
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
}
# Layers that are called alike everywhere.
_OWN_ROOTS = (
    "patch_embedding",
    "fourier_embedding.0",
    "fourier_embedding.1",
    "learnable_proj.proj.0",
    "learnable_proj.proj.2",
    "position_embedding",
)
_PARTS = {**TRANSFORMER_BLOCK_PARTS, **_IMAGE_BLOCK_PARTS}
_ROOTS = {**TRANSFORMER_ROOTS, **_IMAGE_ROOTS, **{name: name for name in _OWN_ROOTS}}
_KNOWN_PARTS, _KNOWN_ROOTS = set(_PARTS.values()), set(_ROOTS.values())
_IMAGE_MODULES = {*_IMAGE_BLOCK_PARTS.values(), *_IMAGE_ROOTS.values()}


def _flat(table: Mapping[str, str]) -> dict[str, str]:
    """Both namings with underscores for dots, as kohya's trainers write them."""
    names = {**table, **{new: new for new in table.values()}}
    return {name.replace(".", "_"): new for name, new in names.items()}


_FLAT_PARTS, _FLAT_ROOTS = _flat(_PARTS), _flat(_ROOTS)

# Prefix -> layout. The longer ones first; `module.` and the like may stand before any of them.
_FLAT_PREFIXES = {
    "lora_unet__": "videox",
    "lora_unet_": "musubi",
    "lora_transformer_": "musubi",
}
_DOTTED_PREFIXES = {
    "diffusion_model.": "comfy",
    "model.diffusion_model.": "comfy",
    "transformer.": "diffusers",
    "base_model.model.": "peft",
    "pipe.dit.": "peft",
    "module.": "peft",
    "model.": "peft",
}
_TEXT_ENCODER = re.compile(r"(lora_te\d*_|text_encoder[_\d]*\.|text_model\.)")


def module_name(module: str) -> tuple[str, str] | None:
    """Layout, and the layer's name in our transformer; None of what no such transformer has."""
    if _TEXT_ENCODER.match(module):
        return None
    for prefix, layout in _FLAT_PREFIXES.items():
        if module.startswith(prefix):
            flat = module.removeprefix(prefix)
            if block := re.fullmatch(r"blocks_(\d+)_(.+)", flat):
                part = _FLAT_PARTS.get(block[2])
                return (layout, f"blocks.{block[1]}.{part}") if part else None
            return (layout, _FLAT_ROOTS[flat]) if flat in _FLAT_ROOTS else None
    layout, rest = "peft", module
    while prefix := next((known for known in _DOTTED_PREFIXES if rest.startswith(known)), ""):
        rest = rest.removeprefix(prefix)
        layout = _DOTTED_PREFIXES[prefix] if layout == "peft" else layout
    if block := re.fullmatch(r"(blocks\.\d+)\.(.+)", rest):
        name = f"{block[1]}.{_IMAGE_BLOCK_PARTS.get(block[2], block[2])}"
    else:
        name = _IMAGE_ROOTS.get(rest, rest)
    name = transformer_name(name)
    part = re.sub(r"^blocks\.\d+\.", "", name)
    known = _KNOWN_ROOTS if part == name else _KNOWN_PARTS
    return (layout, name) if part in known else None


def is_of_image(name: str) -> bool:
    """Whether a layer reads a picture's features, which inpainting transformers alone do."""
    return re.sub(r"^blocks\.\d+\.", "", name) in _IMAGE_MODULES
