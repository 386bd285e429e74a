"""Latent shifting: the first frame enters as a shift of the noisy latents (paper, section 4.2)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class HasProjection(Protocol):
    """What a model must offer for latent shifting: the learned phi."""

    learnable_proj: nn.Module


def project_first_frame(model: HasProjection, start_frame_latents: Tensor) -> Tensor:
    """phi(s) (paper, Eq. 16); computed once per clip, since it does not depend on the timestep.

    Args:
        model: A transformer with `learnable_proj`.
        start_frame_latents: s, `(batch, channels, 1, height, width)`.

    Returns:
        Same shape, fp32.

    Raises:
        ValueError: More than one latent frame is given.
    """
    if start_frame_latents.shape[2] != 1:
        raise ValueError(f"s must hold one latent frame, got {start_frame_latents.shape[2]}")
    projected: Tensor = model.learnable_proj(start_frame_latents)
    return projected


def shift_latents(latents: Tensor, projected: Tensor) -> Tensor:
    """Model input of one step, `z_t - phi(s)` (paper, Eq. 18).

    Args:
        latents: z_t, `(batch, channels, frames, height, width)`.
        projected: phi(s), same shape with one latent frame. Text-to-video has none: it is the case
            gamma = 0 of Eq. 15, and the caller leaves the latents as they are.

    Returns:
        Same shape as `latents`, fp32.

    Raises:
        ValueError: `projected` covers more than one latent frame.
    """
    if projected.shape[2] != 1:
        raise ValueError(f"phi(s) must hold one latent frame, got {projected.shape[2]}")
    # Only the model's input is shifted: the loop stays unshifted, so its end is already x.
    return latents.float() - projected.float()
