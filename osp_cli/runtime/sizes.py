"""How large the parts of a model are, told by the headers of their files or by the card."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from osp_cli.errors import InvalidRequestError
from osp_cli.models.safetensors_header import Entry, read_header
from osp_cli.registry import Architecture, ModelSpec

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Parts as they are loaded, and the folders of each.
FOLDERS = {
    "transformer": ("transformer",),
    "vae": ("vae",),
    "conditioner": ("text_encoder", "adapter", "image_adapter"),
    "image_encoder": ("image_encoder",),
}
_FLOATING = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_BLOCK = re.compile(r"(.*?\b(?:blocks|block|layers|layer)\.\d+)\.")
# Blocks of an encoder whose card says only how many numbers it has.
_TYPICAL_BLOCKS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSize:
    """One part.

    Attributes:
        parameters: numbers in it.
        bytes: in memory, in the precision that it is computed in.
        largest: of those, the largest block, which is what must be on the device at least.
        outside: of those, what belongs to no block.
        stored: bytes of its files.
        lazy: the files hold what is computed with, so they are mapped and never copied on the host.
        gguf: the files are quantised in that format.
    """

    parameters: int
    bytes: int
    largest: int
    outside: int
    stored: int
    lazy: bool = True
    gguf: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """What the cost of a pass depends on: see `Architecture`."""

    layers: int
    width: int
    ffn: int
    heads: int


def part_sizes(
    spec: ModelSpec, folder: Path | None, dtypes: Mapping[str, str]
) -> dict[str, PartSize]:
    """Each part's size, by the names of `FOLDERS`.

    Args:
        spec: the card.
        folder: of the weights; None where they are not installed, which leaves the card.
        dtypes: that each part is computed in.
    """
    found = {}
    for part, names in FOLDERS.items():
        dtype = dtypes.get(part, "float32")
        if folder is not None:
            size = _from_files([folder / name for name in names if name in spec.parts], dtype)
        else:
            size = _from_card(spec.architecture, names, part, dtype)
        if size is not None:
            found[part] = size
    return found


def transformer_shape(spec: ModelSpec, folder: Path | None) -> TransformerShape | None:
    """Layers and widths of the transformer, from its files, else the card; None where unknown."""
    if folder is not None:
        try:
            return _shape_of_files(folder / "transformer")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # damage is the business of whoever loads it
    card = spec.architecture
    if card is None:
        return None
    return TransformerShape(layers=card.layers, width=card.width, ffn=card.ffn, heads=card.heads)


def _shape_of_files(folder: Path) -> TransformerShape:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    heads = config.get("num_attention_heads") or config.get("num_heads")
    width = config.get("dim") or heads * config["attention_head_dim"]
    return TransformerShape(
        layers=int(config["num_layers"]),
        width=int(width),
        ffn=int(config["ffn_dim"]),
        heads=int(heads),
    )


def _from_files(folders: Iterable[Path], dtype: str) -> PartSize | None:
    tensors: list[tuple[str, Entry]] = []
    stored, is_gguf = 0, False
    for folder in folders:
        for path in (*folder.glob("*.safetensors"), *folder.glob("*.gguf")):
            stored += path.stat().st_size
            is_gguf |= path.suffix == ".gguf"
            with contextlib.suppress(InvalidRequestError):
                # Damage is the business of whoever loads it; its bytes count.
                tensors += () if is_gguf else read_header(path).entries.items()
    if not stored:
        return None
    if not tensors:
        # It takes in memory what it takes on the disk; a byte a number is near enough.
        return replace(_even(stored, stored, stored, _TYPICAL_BLOCKS), lazy=False, gguf=is_gguf)
    blocks: Counter[str] = Counter()
    for name, tensor in tensors:
        match = _BLOCK.match(name)
        blocks[match[1] if match else ""] += _bytes_of(tensor, dtype)
    outside = blocks.pop("", 0)
    as_stored = sum(tensor.bytes for _, tensor in tensors if _FLOATING.get(tensor.dtype) == dtype)
    return PartSize(
        parameters=sum(tensor.count for _, tensor in tensors),
        bytes=outside + blocks.total(),
        largest=max(blocks.values(), default=outside),
        outside=outside,
        stored=stored,
        # A few layers are kept in another precision on purpose.
        lazy=as_stored > 0.9 * sum(tensor.bytes for _, tensor in tensors),
    )


def _bytes_of(tensor: Entry, dtype: str) -> int:
    # Only floating-point numbers are cast when a model is loaded in another precision.
    return tensor.count * DTYPE_BYTES[dtype] if tensor.dtype in _FLOATING else tensor.bytes


def _from_card(
    card: Architecture | None, names: Iterable[str], part: str, dtype: str
) -> PartSize | None:
    if card is None:
        return None
    count = sum(card.parameters.get(name, 0) for name in names)
    if not count:
        return None
    size = count * DTYPE_BYTES[dtype]
    return _even(count, size, size, card.layers if part == "transformer" else _TYPICAL_BLOCKS)


def _even(parameters: int, size: int, stored: int, blocks: int) -> PartSize:
    """A part of which only the whole is known; one block more stands for what is outside."""
    block = size // (blocks + 1)
    return PartSize(parameters=parameters, bytes=size, largest=block, outside=block, stored=stored)
