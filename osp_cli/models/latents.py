"""Between pixels in [-1, 1] and the normalised latents that the transformer sees.

For `AutoencoderKLWan` and any class with the same interface: `config.latents_mean`,
`config.latents_std`, `config.scale_factor_temporal`, `encode(x).latent_dist.mode()`,
`decode(z).sample`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def latent_statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """The card's per-channel mean and deviation, each `(1, channels, 1, 1, 1)` in fp32."""
    mean = torch.tensor(vae.config.latents_mean, device=like.device, dtype=torch.float32)
    std = torch.tensor(vae.config.latents_std, device=like.device, dtype=torch.float32)
    return mean.reshape(1, -1, 1, 1, 1), std.reshape(1, -1, 1, 1, 1)


@torch.no_grad()
def encode_latents(vae: Any, video: Tensor) -> Tensor:
    """Normalised posterior mean `(mu - mean) / std`, fp32; never a sample.

    Args:
        vae: The autoencoder; the video is moved to its device and dtype.
        video: `(batch, 3, frames, height, width)` in [-1, 1]; frames are 1 + 4k, and the latent of
            the first frame depends on that frame alone.

    Returns:
        `(batch, channels, 1 + (frames - 1) / 4, height / 8, width / 8)` for a Wan VAE.

    Raises:
        ValueError: A number of frames that the VAE would silently cut.
    """
    ratio = vae.config.scale_factor_temporal
    if video.ndim != 5 or (video.shape[2] - 1) % ratio:
        raise ValueError(
            f"expected (batch, 3, 1 + {ratio}k frames, height, width), got {tuple(video.shape)}"
        )
    latents = vae.encode(video.to(vae.device, vae.dtype)).latent_dist.mode().float()
    mean, std = latent_statistics(vae, latents)
    return (latents - mean) / std


@torch.no_grad()
def with_surroundings(vae: Any, first: Tensor, cells: int) -> Tensor:
    """A first frame's normalised latents with the mirrored picture around them.

    A camera that leaves the picture then finds something there. Latents of mirrored pixels, so not
    merely mirrored latents: the autoencoder turns over what is inside each cell.

    Args:
        vae: an autoencoder that has `mirrored`.
        first: `(batch, channels, 1, rows, columns)`.
        cells: width of the margin; at most what there is to mirror is taken.

    Returns:
        The same with both sides longer by twice the margin.
    """
    cells = min(cells, *first.shape[-2:])
    if not cells:
        return first
    mean, std = latent_statistics(vae, first)
    latents = first.float() * std + mean
    for axis in (-1, -2):
        size = latents.shape[axis]
        before = latents.narrow(axis, 0, cells).flip(axis)
        after = latents.narrow(axis, size - cells, cells).flip(axis)
        parts = (vae.mirrored(before, axis), latents, vae.mirrored(after, axis))
        latents = torch.cat(parts, axis)
    return (latents - mean) / std


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Pixels of normalised latents, `(batch, 3, 1 + 4 (frames - 1), h, w)` fp32 in [-1, 1].

    The decoder is causal and runs latent frame by latent frame through its feature cache: decoding
    the first frames of a clip gives the first frames of its decode. Later frames decoded on their
    own are another clip, because the cache then starts empty.
    """
    latents = latents.to(vae.device, torch.float32)
    mean, std = latent_statistics(vae, latents)
    video: Tensor = vae.decode((latents * std + mean).to(vae.dtype)).sample
    return video.float().clamp(-1.0, 1.0)


def uint8_frames(video: Tensor) -> Tensor:
    """`(batch, 3, frames, h, w)` in [-1, 1] as pictures `(batch, frames, h, w, 3)` uint8."""
    levels = ((video.float() + 1.0) * 127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
