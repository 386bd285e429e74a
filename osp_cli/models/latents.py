"""Pixels to the model's latents and back, for any autoencoder with `AutoencoderKLWan`'s interface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def latent_statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """The card's per-channel mean and deviation, each `(1, channels, 1, 1, 1)` in fp32."""
    mean = torch.tensor(vae.config.latents_mean, device=like.device, dtype=torch.float32)
    std = torch.tensor(vae.config.latents_std, device=like.device, dtype=torch.float32)
    return mean.reshape(1, -1, 1, 1, 1), std.reshape(1, -1, 1, 1, 1)


def encode_latents(vae: Any, video: Tensor) -> Tensor:
    """Normalised posterior mean, `(mu - mean) / std`.

    Args:
        vae: a causal autoencoder, 1 + 4k frames to 1 + k latents.
        video: `(batch, 3, 1 + 4k, height, width)` in [-1, 1].

    Returns:
        fp32 latents, `(batch, channels, 1 + k, height / s, width / s)`.
    """
    with torch.no_grad():
        raw = vae.encode(video.to(vae.dtype)).latent_dist.mode().float()
    mean, std = latent_statistics(vae, raw)
    return (raw - mean) / std


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Inverse of `encode_latents`: fp32 video in [-1, 1]."""
    mean, std = latent_statistics(vae, latents)
    with torch.no_grad():
        video = vae.decode((latents.float() * std + mean).to(vae.dtype)).sample
    return video.float().clamp(-1.0, 1.0)
