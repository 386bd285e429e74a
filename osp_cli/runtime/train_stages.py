"""What the stages before and beside training need: clips and captions, samples, the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from osp_cli.registry import ModelSpec
from osp_cli.runtime.activations import activations, clip_encoding, reading
from osp_cli.runtime.sizes import PartSize, TransformerShape
from osp_cli.runtime.strategy import HOST_BYTES, Machine
from osp_cli.train_request import TrainRequest

# What a driver and the allocator keep for themselves, as in `strategy`.
_DRIVER_BYTES = 600 * 2**20
_FRAGMENTS = 1.05
# Channels of the conditioner's rows as they are kept: Qwen2.5-VL-7B's, umT5's.
_ROW_CHANNELS = {"qwen2.5-vl-released": 3584, "qwen2.5-vl": 3584, "umt5": 4096}
# How many ways of knowing a part of a clip are kept, for models with a mask.
MASKS = 4
# CLIP's view of a picture, in single precision.
_VIEW_BYTES = 257 * 1280 * 4


def with_overhead(size: float, machine: Machine) -> int:
    """Bytes of a stage with what is there beside it."""
    beside = HOST_BYTES if machine.kind == "cpu" else _DRIVER_BYTES
    return int(size * _FRAGMENTS) + beside


def encoding_bytes(
    spec: ModelSpec,
    sizes: Mapping[str, PartSize],
    size: tuple[int, int],
    num_frames: int,
    machine: Machine,
) -> tuple[int, bool, tuple[str, ...]]:
    """Bytes while clips and captions are encoded, in tiles or not, and what comes in pieces.

    Of the ways that fit the first, else the least. On the CPU, what lies in its files as it is
    computed with can be dropped and read again.
    """
    vae = sizes["vae"].bytes if "vae" in sizes else 0
    clip = clip_encoding(spec, size, num_frames)
    text = sizes.get("conditioner")
    told = sum(sizes[name].bytes for name in ("conditioner", "image_encoder") if name in sizes)
    read = reading() if text is not None and not spec.embedded else 0
    less = told
    if text is not None and machine.kind == "cuda":
        # Leaf by leaf; the table of words is the largest.
        less = told - text.bytes + text.largest + text.outside
    elif text is not None and machine.kind == "cpu":
        less = told - text.bytes * text.lazy
    ways = [
        (vae + weights + max(clip[tiling], read), bool(tiling), weights)
        for weights in (told, less)
        for tiling in (0, 1)
    ]
    needed, tiling, weights = next(
        (way for way in ways if with_overhead(way[0], machine) <= machine.device_bytes),
        min(ways, key=lambda way: way[0]),
    )
    in_pieces = weights < told and machine.kind == "cuda"
    return needed, tiling, ("conditioner",) if in_pieces else ()


def sampling_bytes(
    request: TrainRequest,
    sizes: Mapping[str, PartSize],
    shape: TransformerShape,
    machine: Machine,
    *,
    size: tuple[int, int],
    num_frames: int,
    tokens: int,
    dtype: str,
    stays: int,
) -> tuple[int, bool]:
    """Bytes while samples are made beside what stays of training, and whether in tiles."""
    need = activations(
        request.spec,
        shape,
        size=size,
        num_frames=num_frames,
        tokens=tokens,
        dtype=dtype,
        passes_per_step=1,
        cache="none",
        gpus=request.gpus,
    )
    decode = stays + (sizes["vae"].bytes if "vae" in sizes else 0)
    tiling = with_overhead(decode + need.decode, machine) > machine.device_bytes
    decode += need.decode_tiled if tiling else need.decode
    return max(stays + need.sampling, decode), tiling


def cached_bytes(
    spec: ModelSpec,
    weights: Path | None,
    rows: int,
    windows: Mapping[tuple[tuple[int, int], int], int],
) -> int:
    """Of all windows: latents, the picture's, and what the conditioner says, with and without
    words; for models with a mask also what is known of a clip.

    Args:
        spec: the base's card.
        weights: its folder, or None.
        rows: of the conditioning.
        windows: how many there are of each `(size, frames)`.
    """
    told = 2 * 2 * rows * _row_channels(spec, weights)
    total = 0
    for (size, frames), count in windows.items():
        cells = (size[0] // spec.scale_factor_spatial) * (size[1] // spec.scale_factor_spatial)
        latent_frames = 2 + (frames - 1) // spec.scale_factor_temporal
        each = 2 * spec.latent_channels * latent_frames * cells + told + 2**12
        if spec.pipeline == "wan-i2v":
            channels = spec.scale_factor_temporal + spec.latent_channels
            each += 2 * MASKS * channels * (latent_frames - 1) * cells + 2 * _VIEW_BYTES
        total += count * each
    return total


def _row_channels(spec: ModelSpec, weights: Path | None) -> int:
    config = {}
    if weights is not None:
        path = weights / "text_encoder" / "config.json"
        try:
            config = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            config = {}  # damage is the business of whoever loads it
    inner = config.get("text_config") or config
    found = inner.get("hidden_size") or inner.get("d_model")
    return found if isinstance(found, int) else _ROW_CHANNELS.get(spec.conditioner, 4096)
