"""Checkpoints of random numbers, written piece by piece: a 14B needs no memory to be made."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
# Drawn once and repeated; no multiple of a layer's width, so that no two of its rows are the same.
_NUM_DRAWN = 2**24 + 4099
_SCALE = 0.02


def write_checkpoint(
    folder: Path, model: Any, dtype: torch.dtype = torch.bfloat16, *, shards: int = 1
) -> int:
    """Write `config.json` and safetensors with random weights for a model of diffusers.

    Args:
        folder: made here.
        model: on the meta device.
        dtype: of all tensors in the file.
        shards: files; with more than one there is an index beside them.

    Returns:
        Bytes of the weights.
    """
    folder.mkdir(parents=True)
    model.save_config(folder)
    tensors = list(model.state_dict().items())
    drawn = torch.randn(_NUM_DRAWN, generator=torch.Generator().manual_seed(0)).mul_(_SCALE)
    drawn = drawn.to(dtype)
    share = -(-len(tensors) // shards)
    where: dict[str, str] = {}
    total = 0
    for number in range(shards):
        part = dict(tensors[number * share : (number + 1) * share])
        name = "diffusion_pytorch_model"
        name += f"-{number + 1:05}-of-{shards:05}.safetensors" if shards > 1 else ".safetensors"
        total += _write(folder / name, part, drawn)
        where |= dict.fromkeys(part, name)
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        text = json.dumps(index)
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    return total


def _write(path: Path, tensors: dict[str, Tensor], drawn: Tensor) -> int:
    """One file, of which only the shapes of `tensors` are used."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * drawn.element_size()
        header[name] = {
            "dtype": _NAMES[drawn.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            for piece in _numbers(name, tensor, drawn):
                file.write(piece.view(torch.uint8).numpy().data)
    return end


def _numbers(name: str, tensor: Tensor, drawn: Tensor) -> Iterator[Tensor]:
    """What a fresh model would hold: norms of one, biases of zero, the rest small and random."""
    left = tensor.numel()
    if name.endswith(".bias"):
        yield torch.zeros(left, dtype=drawn.dtype)
    elif "norm" in name:
        yield torch.ones(left, dtype=drawn.dtype)
    else:
        # Each tensor begins elsewhere.
        start = hash_of(name) % len(drawn)
        while left:
            piece = drawn[start : start + left]
            left -= len(piece)
            start = 0
            yield piece


def hash_of(name: str) -> int:
    """The same in every process, unlike `hash`."""
    return int.from_bytes(name.encode()[-8:], "little")
