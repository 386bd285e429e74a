"""Stages of rising resolution within one chunk (paper, section 7.1), by Pyramid Flow's rule.

Of S stages, number i covers the share `[i / S, (i + 1) / S]` of the flow from noise to latents.
What one leaves is enlarged without smoothing, so its noise comes in blocks of equal numbers; block
noise, anti-correlated within each block, makes that white again and adds what is missing to the
level at which the next stage begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Of the covariance within a block: 1 at the diagonal, -gamma elsewhere. At 1/3 the four numbers of
# a block add up to exactly zero, the most that four can repel each other.
GAMMA = 1 / 3

# Standard normal numbers of a shape, from wherever the caller's randomness comes.
Draw = Callable[[tuple[int, ...]], Tensor]


def shrunk_noise(noise: Tensor, halvings: int) -> Tensor:
    """White noise of a lower resolution: each halving is a bilinear half, times two.

    A bilinear half is the mean of 2x2, whose deviation is half; times two, it is 1 again.

    Args:
        noise: `(batch, channels, frames, h, w)`; h and w multiples of `2 ** halvings`.
        halvings: how often.
    """
    for _ in range(halvings):
        noise = _frames(noise, lambda flat: F.interpolate(flat, _half(flat), mode="bilinear") * 2)
    return noise


def shrunk_picture(latents: Tensor, halvings: int) -> Tensor:
    """Clean latents at a lower resolution: the means of 2x2, each time.

    Args and shapes as in `shrunk_noise`.
    """
    for _ in range(halvings):
        latents = _frames(latents, lambda flat: F.interpolate(flat, _half(flat), mode="bilinear"))
    return latents


def renoise_factors(signal: float, gamma: float = GAMMA) -> tuple[float, float]:
    """alpha and beta of `renoise`.

    Args:
        signal: s, the share of latents in what the last stage left, `1 - sigma` at its end.
        gamma: of the block noise.

    Returns:
        `alpha = 1 / (s + (1 - s) sqrt(1 + 1 / gamma))` and `beta = alpha (1 - s) / sqrt(gamma)`.

    Raises:
        ValueError: a share outside of [0, 1].
    """
    if not 0 <= signal <= 1:
        raise ValueError(f"the share of latents lies in [0, 1], got {signal}")
    alpha = 1 / (signal + (1 - signal) * math.sqrt(1 + 1 / gamma))
    return alpha, alpha * (1 - signal) / math.sqrt(gamma)


def renoise(latents: Tensor, signal: float, draw: Draw, gamma: float = GAMMA) -> Tensor:
    """What the next stage begins with: `alpha nearest2x(x) + beta n`.

    Args:
        latents: x of the last stage, `(batch, channels, frames, h, w)`.
        signal: as in `renoise_factors`.
        draw: where the randomness of n comes from.
        gamma: of the block noise.

    Returns:
        `(batch, channels, frames, 2 h, 2 w)`.
    """
    alpha, beta = renoise_factors(signal, gamma)
    large = _frames(latents, lambda flat: F.interpolate(flat, scale_factor=2, mode="nearest"))
    noise = block_noise(tuple(large.shape), draw, gamma).to(large)
    return alpha * large + beta * noise


def block_noise(shape: tuple[int, ...], draw: Draw, gamma: float = GAMMA) -> Tensor:
    """n, each 2x2 block of it `N(0, (1 + gamma) I - gamma 11^T)`.

    In closed form, as that covariance is singular at a gamma of 1/3 and has no Cholesky factor:
    `n = sqrt(1 + gamma) (z - kappa mean(z))`, `kappa = 1 - sqrt((1 - 3 gamma) / (1 + gamma))`.

    Args:
        shape: `(batch, channels, frames, h, w)` with even h and w.
        draw: gives z, white.
        gamma: at most 1/3.

    Raises:
        ValueError: an odd side, or a gamma that no noise can have.
    """
    *_, height, width = shape
    if height % 2 or width % 2:
        raise ValueError(f"blocks of 2x2 do not tile {height} x {width} latents")
    if not 0 <= gamma <= GAMMA:
        raise ValueError(f"gamma lies in [0, 1/3], got {gamma}")
    white = draw(shape)
    kappa = 1 - math.sqrt(max(0.0, 1 - 3 * gamma) / (1 + gamma))
    blocks = white.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))
    means = blocks.mean(dim=(-3, -1), keepdim=True)
    repelled = (blocks - kappa * means).flatten(-4, -3).flatten(-2)
    return math.sqrt(1 + gamma) * repelled


def enlarged(latents: Tensor) -> Tensor:
    """A clean estimate at twice the resolution, smoothly (trilinear, the frames as they are)."""
    return _frames(latents, lambda flat: F.interpolate(flat, scale_factor=2, mode="bilinear"))


def _half(flat: Tensor) -> tuple[int, int]:
    height, width = flat.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(f"{height} x {width} latents cannot be halved")
    return height // 2, width // 2


def _frames(latents: Tensor, each: Callable[[Tensor], Tensor]) -> Tensor:
    """Do something to every latent frame as a picture."""
    batch = latents.shape[0]
    flat: Tensor = each(latents.transpose(1, 2).flatten(0, 1))
    return torch.unflatten(flat, 0, (batch, -1)).transpose(1, 2).contiguous()
