"""The learnable projection phi of latent shifting (paper, section 4.2, Eq. 16-18)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call


class LatentProjector(nn.Module):
    """phi(s): Conv3d, SiLU, Conv3d over first-frame latents, zero padded, always in fp32.

    The released checkpoints call it `learnable_proj.proj.{0,2}`, hence the nested `proj`.

    Args:
        channels: Latent channels, read and written.
        hidden_channels: Channels between the two convolutions (64 in the release).
        conv3x3x3: Both kernels 3x3x3 instead of 1x3x3 (`conv3x3x3_proj` in the release).
    """

    def __init__(self, channels: int, hidden_channels: int = 64, conv3x3x3: bool = False) -> None:
        super().__init__()
        kernel = (3, 3, 3) if conv3x3x3 else (1, 3, 3)
        padding = (1, 1, 1) if conv3x3x3 else (0, 1, 1)
        self.proj = nn.Sequential(
            nn.Conv3d(channels, hidden_channels, kernel, padding=padding),
            nn.SiLU(),
            nn.Conv3d(hidden_channels, channels, kernel, padding=padding),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as phi = 0, so that before training nothing is shifted."""
        first, last = self.proj[0], self.proj[2]
        nn.init.xavier_uniform_(first.weight.flatten(1))
        nn.init.zeros_(first.bias)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, latents: Tensor) -> Tensor:
        """Project `latents` `(batch, channels, frames, height, width)`; same shape, fp32."""
        # The shift is a small difference of large numbers: half precision would lose it, whatever
        # dtype the rest of the model runs in.
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            if self.proj[0].weight.dtype == torch.float32:
                return self.proj(latents)
            # `.to(bfloat16)` on the whole model reached the weights: compute in fp32 regardless.
            weights = {name: weight.float() for name, weight in self.proj.named_parameters()}
            return functional_call(self.proj, weights, (latents,))
