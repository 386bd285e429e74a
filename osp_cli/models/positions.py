"""Coordinates: where in the picture, and when, a token lies.

Released checkpoints have none of this; the embedded small model needs it. Rotary positions are
relative and cross-attention has no positions at all, so neither says where a border is. Sines tell
places of the frame, whatever its size; grid coordinates count latent cells, so that a sum of a
place and a displacement is a place again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Latent frames of a 49-frame clip less one: absolute time runs from 0 to 1 over such a clip.
_FRAMES_PER_UNIT_TIME = 12.0
# Latent cells in a unit of the grid coordinates: a common clip then lies within [-1, 1].
CELLS_PER_UNIT = 16.0
# x, y, width and height of the frame, time.
GRID_CHANNELS = 5


def waves(coordinates: Tensor, num_octaves: int) -> Tensor:
    """Sines, then cosines, of `pi 2^k u / 2` for k < `num_octaves`: `(n,)` -> `(n, 2 octaves)`."""
    octaves = 2.0 ** torch.arange(num_octaves, device=coordinates.device) * (math.pi / 2)
    angles = coordinates[:, None] * octaves
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def cell_centres(size: int, cell: int = 1, *, device: torch.device | None = None) -> Tensor:
    """Centres, in [-1, 1], of cells of `cell` units along `size` units; the last may be cut."""
    starts = torch.arange(0, size, cell, device=device)
    return (starts + (starts + cell).clamp(max=size)) / size - 1


def sine_coordinates(
    size: tuple[int, int, int],
    channels: int,
    *,
    frame_indices: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Coordinates of every token of a clip, `(frames, height, width, channels)` fp32.

    Args:
        size: Token frames, height and width.
        channels: A multiple of 6: sines and cosines of x, then y, then t. x and y are in [-1, 1]
            at token centres whatever the size; t is the latent frame index / 12.
        frame_indices: `(frames,)`; None means 0, 1, 2, ...
    """
    frames, height, width = size
    num_octaves = channels // 6
    if frame_indices is None:
        frame_indices = torch.arange(frames, device=device)
    t = frame_indices.to(device=device, dtype=torch.float32) / _FRAMES_PER_UNIT_TIME
    shape = (frames, height, width, -1)
    parts = [
        waves(cell_centres(width, device=device), num_octaves)[None, None, :].expand(shape),
        waves(cell_centres(height, device=device), num_octaves)[None, :, None].expand(shape),
        waves(t, num_octaves)[:, None, None].expand(shape),
    ]
    return torch.cat(parts, dim=-1)


def grid_axis(size: int, cell: int = 1, *, device: torch.device | None = None) -> Tensor:
    """Centres of squares of `cell` latents, counted in latents from the middle of the axis, divided
    by `CELLS_PER_UNIT`."""
    steps = torch.arange(size // cell, device=device) * cell + (cell - 1) / 2
    return (steps - (size - 1) / 2) / CELLS_PER_UNIT


def grid_coordinates(
    size: tuple[int, int, int],
    cell: int,
    *,
    frame_indices: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Straight coordinates of every token, `(frames, height, width, GRID_CHANNELS)` fp32.

    Args:
        size: Token frames, height and width.
        cell: Edge of a token in latents.
        frame_indices: `(frames,)`; None means 0, 1, 2, ...
    """
    frames, height, width = size
    if frame_indices is None:
        frame_indices = torch.arange(frames, device=device)
    t = frame_indices.to(device=device, dtype=torch.float32) / _FRAMES_PER_UNIT_TIME
    x = grid_axis(width * cell, cell, device=device)
    y = grid_axis(height * cell, cell, device=device)
    whole = x.new_tensor([width * cell, height * cell]) / CELLS_PER_UNIT
    shape = (frames, height, width)
    parts = (
        x[None, None, :].expand(shape),
        y[None, :, None].expand(shape),
        whole[0].expand(shape),
        whole[1].expand(shape),
        t[:, None, None].expand(shape),
    )
    return torch.stack(parts, dim=-1)
