"""What is known of a clip in inpainting-style training (paper, section 6.4), for 36-channel models.

The kinds and how often they come are those of the trainer that the paper names: nothing known 20 %,
the first one to four frames 20 %, the first and the last frame 20 %, places inside of frames 40 %.
A few are drawn once for each clip, as encoding what is known takes the autoencoder; one more says
that the first frame is known, which is what clips are made with.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from osp_cli.models.latents import encode_latents

# Weights of the kinds; the last four share what concerns places.
_KINDS = {
    "nothing": 0.2,
    "beginning": 0.2,
    "ends": 0.2,
    "block": 0.1,
    "moving block": 0.1,
    "ellipse": 0.1,
    "frames": 0.1,
}


def first_frame_known(num_frames: int, height: int, width: int) -> Tensor:
    """Image to video: `(1, frames, height, width)`, 1 where pixels are known."""
    known = torch.zeros(1, num_frames, height, width)
    known[:, 0] = 1.0
    return known


def random_mask(generator: torch.Generator, num_frames: int, height: int, width: int) -> Tensor:
    """`(1, frames, height, width)`, 1 where pixels are known."""
    weights = torch.tensor(list(_KINDS.values()))
    kind = list(_KINDS)[int(torch.multinomial(weights, 1, generator=generator))]
    known = torch.zeros(1, num_frames, height, width)
    if kind == "nothing":
        return known
    if kind == "beginning":
        known[:, : _randint(generator, 1, min(4, num_frames))] = 1.0
    elif kind == "ends":
        known[:, 0] = known[:, -1] = 1.0
    elif kind == "frames":
        known[:, torch.rand(num_frames, generator=generator) < 0.5] = 1.0
    else:
        known.fill_(1.0)
        ways = (0.0, 0.0) if kind != "moving block" else _uniform(generator, -0.5, 0.5, 2)
        known[:, _place(generator, kind, num_frames, height, width, ways)] = 0.0
    return known


def masked_latents(vae: Any, video: Tensor, known: Tensor) -> Tensor:
    """Mask and latents of what is known, as the model takes them beside the noise.

    Args:
        vae: a Wan VAE.
        video: `(1, 3, frames, height, width)` in [-1, 1].
        known: `(1, frames, height, width)`.

    Returns:
        `(ratio + channels, latent_frames, h, w)` fp32; the mask has one channel for each frame of a
        latent frame, and that of the first frame counts for all of its four.
    """
    # Unknown pixels are grey.
    latents = encode_latents(vae, video * known.to(video)[None])[0]
    ratio = vae.config.scale_factor_temporal
    repeated = torch.cat([known[:, :1].repeat(1, ratio - 1, 1, 1), known], dim=1)[0]
    small = F.interpolate(repeated[None], size=latents.shape[2:], mode="nearest")[0]
    mask = small.reshape(-1, ratio, *small.shape[1:]).transpose(0, 1)
    return torch.cat([mask.to(latents), latents])


def _place(
    generator: torch.Generator,
    kind: str,
    num_frames: int,
    height: int,
    width: int,
    ways: tuple[float, float] | Tensor,
) -> Tensor:
    """Unknown pixels `(frames, height, width)`: a box or an ellipse, perhaps on its way."""
    centre = _uniform(generator, 0.25, 0.75, 2)
    extent = _uniform(generator, 0.15, 0.45, 2)
    time = torch.linspace(0.0, 1.0, num_frames)[:, None, None]
    y = (torch.arange(height) + 0.5)[None, :, None] / height - centre[0] - float(ways[0]) * time
    x = (torch.arange(width) + 0.5)[None, None] / width - centre[1] - float(ways[1]) * time
    y, x = y / extent[0], x / extent[1]
    inside = y.square() + x.square() if kind == "ellipse" else torch.maximum(y.abs(), x.abs())
    return inside < 1.0


def _uniform(generator: torch.Generator, low: float, high: float, count: int) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _randint(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=generator))
