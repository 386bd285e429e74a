"""Which layers of a Wan-style transformer a LoRA is trained on: told by names alone, without torch.

A target is the name of a preset, or a list with commas of layers by their names in diffusers or in
the original code, whole or cut at a dot, of all blocks or of some:

    to_q                 attn1.to_q and attn2.to_q of each block
    cross_attn           all of cross-attention
    blocks.1-2.ffn       both feed-forward layers of blocks 1 and 2
    blocks.8-.attn       a preset, of block 8 and those after it
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osp_cli.errors import InvalidRequestError
from osp_cli.models.original_names import TRANSFORMER_BLOCK_PARTS
from osp_cli.registry import Architecture, nearest

_QKV = tuple(f"{attention}.to_{side}" for attention in ("attn1", "attn2") for side in "qkv")
_OUT = ("attn1.to_out.0", "attn2.to_out.0")
_FFN = ("ffn.net.0.proj", "ffn.net.2")
# What reads the picture's features, in inpainting transformers alone.
_IMAGE = ("attn2.add_k_proj", "attn2.add_v_proj")

# Sizes at rank 8: 31.8, 26.2 and 38.3 million for Wan 14B, 9.5, 5.9 and 10.9 for 1.3B.
PRESETS: Mapping[str, tuple[str, ...]] = {
    "qkv-ffn": (*_QKV, *_FFN),
    "attn": (*_QKV, *_OUT),
    "all": (*_QKV, *_OUT, *_FFN, *_IMAGE),
    # What osp-mini paints with: its first block only looks things up.
    "paint": tuple(f"blocks.1-.{layer}" for layer in _FFN),
}
DEFAULT_TARGETS = "qkv-ffn"
_PARTS = (*_QKV, *_OUT, *_FFN, *_IMAGE)
_ORIGINAL = {new: old for old, new in TRANSFORMER_BLOCK_PARTS.items()}
_TERM = re.compile(
    r"(?:blocks\.(?P<blocks>\*|\d+(?:-\d*)?|-\d+))?(?:(?:^|\.)(?P<part>[a-z][\w.-]*))?"
)


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the sizes of a transformer's linear layers follow from.

    Attributes:
        layers: blocks.
        width: channels of its hidden states.
        ffn: channels inside its feed-forward layers.
        image: channels of the picture's features; None where it reads none.
    """

    layers: int
    width: int
    ffn: int
    image: int | None = None

    @classmethod
    def of_card(cls, card: Architecture, *, image_to_video: bool = False) -> Geometry:
        """As a model's card tells; `image_to_video` of Wan's own inpainting transformers."""
        return cls(card.layers, card.width, card.ffn, card.width if image_to_video else None)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Geometry:
        """As the `config.json` of a transformer in diffusers' format tells."""
        return cls(
            config["num_layers"],
            config["num_attention_heads"] * config["attention_head_dim"],
            config["ffn_dim"],
            config.get("added_kv_proj_dim"),
        )

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Channels in and out of each linear layer of the blocks, by its name in diffusers."""
        sizes = dict.fromkeys((*_QKV, *_OUT), (self.width, self.width))
        sizes |= {"ffn.net.0.proj": (self.width, self.ffn), "ffn.net.2": (self.ffn, self.width)}
        if self.image is not None:
            sizes |= dict.fromkeys(_IMAGE, (self.image, self.width))
        return {
            f"blocks.{block}.{part}": size
            for block in range(self.layers)
            for part, size in sizes.items()
        }


def count_parameters(geometry: Geometry, targets: str, rank: int) -> int:
    """Numbers of a LoRA: `rank * (in + out)` of each layer.

    Raises:
        InvalidRequestError: as `select_layers`.
    """
    sizes = geometry.linear_layers()
    return rank * sum(sum(sizes[name]) for name in select_layers(sizes, targets))


def select_layers(names: Iterable[str], targets: str) -> tuple[str, ...]:
    """Those of a transformer's layers that the targets mean, in the order of `names`.

    Args:
        names: of its linear layers, as diffusers calls them.
        targets: as at the top of this module.

    Raises:
        InvalidRequestError: a part of the targets means none of them.
    """
    known = [name for name in names if _part_of(name) is not None]
    found: set[str] = set()
    for term in (part.strip() for part in targets.split(",")):
        matched = _matches(term, known)
        if not matched:
            raise _nothing(term, known)
        found |= matched
    return tuple(name for name in known if name in found)


def original_layer(name: str) -> str:
    """What the original code calls a layer: `blocks.0.attn1.to_q` -> `blocks.0.self_attn.q`.

    Raises:
        ValueError: it is no linear layer of a block.
    """
    part = _part_of(name)
    if part is None:
        raise ValueError(f"{name} is no linear layer of a transformer's block")
    return f"{name.removesuffix(part)}{_ORIGINAL[part]}"


def _part_of(name: str) -> str | None:
    """What a layer is within its block; None of others."""
    found = re.fullmatch(r"blocks\.\d+\.(.+)", name)
    return found[1] if found and found[1] in _PARTS else None


def _matches(term: str, names: Sequence[str]) -> set[str]:
    found = _TERM.fullmatch(term)
    if not term or found is None:
        return set()
    inside, part = found["blocks"], found["part"]
    here = [name for name in names if inside is None or _is_inside(_block_of(name), inside)]
    if part in PRESETS:
        # A preset's layers for pictures are no mistake where there are none.
        return {name for entry in PRESETS[part] for name in _matches(entry, here)}
    return {name for name in here if part is None or _is_called(_part_of(name) or "", part)}


def _is_called(layer: str, part: str) -> bool:
    return any(
        called == part or called.startswith(f"{part}.") or called.endswith(f".{part}")
        for called in (layer, _ORIGINAL[layer])
    )


def _block_of(name: str) -> int:
    return int(name.split(".")[1])


def _is_inside(block: int, blocks: str) -> bool:
    if blocks == "*":
        return True
    first, dash, last = blocks.partition("-")
    if not dash:
        return block == int(first)
    return int(first or 0) <= block and (not last or block <= int(last))


def _nothing(term: str, names: Sequence[str]) -> InvalidRequestError:
    if not term:
        return InvalidRequestError(
            "--targets has an empty name", hint=f"there are: {', '.join(PRESETS)}"
        )
    parts = dict.fromkeys(_part_of(name) or "" for name in names)
    words = [*PRESETS, *parts, *(_ORIGINAL[part] for part in parts)]
    # Of less than three letters there is one in nearly everything.
    words += [end for word in words if len(end := word.partition(".")[2]) > 2]
    blocks = sorted({_block_of(name) for name in names})
    found = _TERM.fullmatch(term)
    if found and found["blocks"] and not any(_is_inside(b, found["blocks"]) for b in blocks):
        return InvalidRequestError(
            f"--targets {term!r} means no layer of this model: it has {len(blocks)} blocks, the "
            f"first is 0"
        )
    part = re.sub(r"^blocks\.[^.]*\.", "", term)
    guesses = nearest(part, words)
    return InvalidRequestError(
        f"--targets {term!r} means no layer of this model",
        hint=f"did you mean {' or '.join(guesses)}?"
        if guesses
        else f"there are: {', '.join([*PRESETS, *parts])}",
    )
