"""What keeps the latents of an endless stream where they began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# How much of the context that a user supplies becomes noise: the range that Helios draws from.
# Latents of real pictures are cleaner than any that the model has made itself.
CONTEXT_SIGMAS = (0.111, 0.135)

# Below this a channel has no variation that could be scaled.
_NOTHING = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class LatentAnchor:
    """Mean and standard deviation of each channel of some latents, to come back to.

    In the latent space of a video autoencoder these are much of a picture's colours and contrast,
    and say little of what it shows.

    Attributes:
        mean, std: `(channels,)`, fp32.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, latents: Tensor) -> LatentAnchor:
        """The anchor at these latents, `(1, channels, frames, height, width)`."""
        mean, std = _statistics(latents)
        return cls(mean.cpu(), std.cpu())

    def pull(self, latents: Tensor, weight: float) -> Tensor:
        """Bring each channel's mean and standard deviation nearer to those of the anchor.

        Args:
            latents: `(1, channels, frames, height, width)`.
            weight: 0 returns the latents themselves, 1 gives them the anchor's statistics; in
                between, both statistics lie in between.

        Returns:
            Same shape, precision and device.

        Raises:
            ValueError: the weight is not from 0 to 1, or the channels are not the anchor's.
        """
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"an anchor pulls by 0 to 1, got {weight}")
        if latents.ndim != 5 or latents.shape[:2] != (1, len(self.mean)):
            raise ValueError(
                f"the anchor is of one video of {len(self.mean)} channels, got {latents.shape}"
            )
        if weight == 0:
            return latents
        mean, std = _statistics(latents)
        anchor_mean, anchor_std = self.mean.to(mean.device), self.std.to(std.device)
        wanted = std + weight * (anchor_std - std)
        gain = torch.where(std > _NOTHING, wanted / std.clamp_min(_NOTHING), torch.ones_like(std))
        pulled = (latents.float() - _wide(mean)) * _wide(gain)
        return (pulled + _wide(mean + weight * (anchor_mean - mean))).to(latents.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed stream needs."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LatentAnchor:
        """The anchor whose `tensors` these are.

        Raises:
            ValueError: they are none.
        """
        mean, std = tensors.get("mean"), tensors.get("std")
        if mean is None or std is None or mean.ndim != 1 or mean.shape != std.shape:
            raise ValueError("an anchor is a mean and a standard deviation of each channel")
        return cls(mean.float().cpu(), std.float().cpu())


def noisy_context(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Make latents that a user supplies look like a model's own: `(1 - sigma) x + sigma noise`.

    Each latent frame has its own sigma, drawn evenly from `CONTEXT_SIGMAS`. What the model has made
    is not for this.

    Args:
        latents: `(batch, channels, frames, height, width)`.
        generator: what is drawn comes from here; it may be on another device.

    Returns:
        Same shape, precision and device.
    """
    low, high = CONTEXT_SIGMAS
    frames, device = latents.shape[2], generator.device
    sigmas = torch.rand(frames, generator=generator, device=device) * (high - low) + low
    noise = torch.randn(latents.shape, generator=generator, device=device)
    share = sigmas.view(1, 1, frames, 1, 1).to(latents.device)
    mixed = (1 - share) * latents.float() + share * noise.to(latents.device)
    return mixed.to(latents.dtype)


def _statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, fp32."""
    std, mean = torch.std_mean(latents.float(), dim=(0, 2, 3, 4), correction=0)
    return mean, std


def _wide(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1, 1)
