"""The training objective (paper, Eq. 22) and how noise levels are drawn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from osp_cli.sampling.latent_shift import shift_latents


def add_noise(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """`(1 - sigma) x + sigma eps` (Eq. 10) in fp32; `sigmas` broadcasts, one per sample or
    frame."""
    return (1 - sigmas) * latents.float() + sigmas * noise.float()


def flash_loss(
    velocity: Callable[[Tensor], Tensor],
    latents: Tensor,
    noise: Tensor,
    sigmas: Tensor,
    projected: Tensor | None,
    sigma_power: float = 0.0,
    channel_weights: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the velocity, `|| v(z_t - phi(s)) - (eps - x) ||^2` (Eq. 22).

    Args:
        velocity: the denoiser with everything but its latents filled in.
        latents: x, `(batch, channels, frames, height, width)`.
        noise: eps, same shape.
        sigmas: t of Eq. 22, `(batch,)`.
        projected: phi(s), or None for text-to-video (gamma = 0).
        sigma_power: weight of a sample, `sigma ** sigma_power`. 0 is Eq. 22; 2 is the error of the
            clip that the velocity points at, x = z - sigma v, instead of the velocity's own.
        channel_weights: `(channels,)` weights of the squared error; None counts all alike.
    """
    noisy = add_noise(latents, noise, sigmas.reshape(-1, 1, 1, 1, 1))
    if projected is not None:
        noisy = shift_latents(noisy, projected)
    error = velocity(noisy).float() - (noise.float() - latents.float())
    return _weighted(error, sigmas, sigma_power, channel_weights)


def _weighted(
    error: Tensor, sigmas: Tensor, sigma_power: float, channel_weights: Tensor | None
) -> Tensor:
    if channel_weights is not None:
        error = error * channel_weights.sqrt().reshape(-1, 1, 1, 1)
    return (error.square().flatten(1).mean(1) * sigmas**sigma_power).mean()


def continuation_loss(
    velocity: Callable[[Tensor], Tensor],
    latents: Tensor,
    noise: Tensor,
    sigmas: Tensor,
    context_frames: int,
    sigma_power: float = 0.0,
    channel_weights: Tensor | None = None,
) -> Tensor:
    """The same error over the frames after a clean context (paper, section 7.1).

    `velocity` must give the first `context_frames` latent frames timestep 0; they are neither
    noised nor scored.
    """
    noisy = add_noise(latents, noise, sigmas.reshape(-1, 1, 1, 1, 1))
    noisy[:, :, :context_frames] = latents[:, :, :context_frames].float()
    error = velocity(noisy).float() - (noise.float() - latents.float())
    return _weighted(error[:, :, context_frames:], sigmas, sigma_power, channel_weights)


def logit_normal_sigmas(
    generator: torch.Generator, count: int, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Noise levels `sigmoid(N(mean, std))`, one from each of `count` equal parts of the
    distribution.

    Stratified, so that a small batch always sees both ends.
    """
    strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return torch.sigmoid(mean + std * torch.special.ndtri(strata.clamp(1e-4, 1 - 1e-4)))
