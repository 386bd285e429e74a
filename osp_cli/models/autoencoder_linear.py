"""The embedded model's causal autoencoder: a fitted linear block transform and a small refinement.

At this size a transform fitted in closed form beats a trained convolutional VAE by many decibels,
so the code is a projection: the first frame in 16x16 blocks, every later group of four frames in
16x16x4 blocks, 48 numbers each. Blocks are independent given the latents: encoding is causal, and
decoding any part of a stream equals that part of the whole decode exactly. The refinement network
sees single frames of the linear decode and removes block edges.

The interface is the part of diffusers' `AutoencoderKLWan` that the runtime uses:
`config.latents_mean/std`, `encode(x).latent_dist.mode()`, `decode(z).sample`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class ExactLatents:
    """A posterior without spread: the transform is deterministic."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents

    def mode(self) -> Tensor:
        """The latents."""
        return self.latents

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The latents; `generator` is accepted for the shared interface."""
        return self.latents


class AutoencoderLinear(ModelMixin, ConfigMixin):
    """Linear codec, 16x16x4 pixels to one cell of `z_dim` numbers.

    Args:
        z_dim: latent channels.
        block: spatial side of a block in pixels.
        block_frames: frames of every block after the first frame's.
        latents_mean: per-channel mean of raw latents, `z_dim` numbers.
        latents_std: per-channel divisor for the model's latents, `z_dim` numbers.
        refine_width: channels of the refinement, 0 for none.
        refine_blocks: its residual blocks.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        z_dim: int = 48,
        block: int = 16,
        block_frames: int = 4,
        latents_mean: Sequence[float] = (),
        latents_std: Sequence[float] = (),
        refine_width: int = 48,
        refine_blocks: int = 4,
        scale_factor_spatial: int = 16,
        scale_factor_temporal: int = 4,
    ) -> None:
        super().__init__()
        size = 3 * block * block
        self.first_basis = nn.Parameter(torch.zeros(z_dim, size))
        self.first_mean = nn.Parameter(torch.zeros(size))
        self.next_basis = nn.Parameter(torch.zeros(z_dim, size * block_frames))
        self.next_mean = nn.Parameter(torch.zeros(size * block_frames))
        self.refinement = (
            FrameRefinement(z_dim, refine_width, refine_blocks) if refine_width else None
        )

    def encode(
        self, x: Tensor, return_dict: bool = True, first: bool = True
    ) -> AutoencoderKLOutput | tuple[ExactLatents]:
        """Raw latents of a clip.

        Args:
            x: `(batch, 3, 1 + 4k, height, width)` in [-1, 1], sides divisible by the block.
            first: whether `x` begins with a clip's first frame; False continues a stream with
                `4k` frames.

        Returns:
            An output whose `latent_dist.mode()` is `(batch, z_dim, 1 + k, height/16, width/16)`;
            k latent frames when `first` is False.

        Raises:
            ValueError: another number of frames, or sides that do not divide.
        """
        frames, height, width = x.shape[2:]
        block, group = self.config.block, self.config.block_frames
        if (frames - first) % group or height % block or width % block:
            raise ValueError(
                f"a clip has {'1 + ' if first else ''}{group}k frames and sides divisible by "
                f"{block}, got {frames} frames of {width}x{height}"
            )
        parts = []
        if first:
            parts.append(self._project(x[:, :, :1], self.first_basis, self.first_mean))
        if frames > first:
            parts.append(self._project(x[:, :, int(first) :], self.next_basis, self.next_mean))
        posterior = ExactLatents(torch.cat(parts, 2))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: Tensor, return_dict: bool = True, first: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Pixels of raw latents.

        Args:
            z: `(batch, z_dim, frames, height/16, width/16)`.
            first: whether `z` begins with a clip's first latent; False continues a stream.

        Returns:
            `.sample`, `(batch, 3, 1 + 4 (frames - 1), height, width)`, clamped to [-1, 1]; four
            frames for every latent when `first` is False.
        """
        video = self.decode_linear(z, first=first)
        if self.refinement is not None:
            group = self.config.block_frames
            pieces, start = [], 0
            # Frame groups one by one: memory stays flat for any length.
            for index in range(z.shape[2]):
                count = 1 if first and index == 0 else group
                piece = video[:, :, start : start + count]
                pieces.append(self.refinement(piece, z[:, :, index]))
                start += count
            video = torch.cat(pieces, 2)
        video = video.clamp(-1.0, 1.0)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def decode_linear(self, z: Tensor, first: bool = True) -> Tensor:
        """The transform's own inverse, without refinement or clamping."""
        parts = []
        if first:
            parts.append(self._expand(z[:, :, :1], self.first_basis, self.first_mean, 1))
            z = z[:, :, 1:]
        if z.shape[2]:
            group = self.config.block_frames
            parts.append(self._expand(z, self.next_basis, self.next_mean, group))
        return torch.cat(parts, 2)

    def mirrored(self, z: Tensor, axis: int) -> Tensor:
        """Raw first-frame latents of the same blocks turned over, each in its own place.

        Args:
            z: `(batch, z_dim, 1, rows, columns)`.
            axis: -1 left for right, -2 top for bottom.
        """
        side = self.config.block
        basis = self.first_basis.float()
        shape = (-1, 3, 1, side, side)
        turned = basis.reshape(shape).flip(axis).flatten(1)
        mean = self.first_mean.float()
        offset = (mean.reshape(shape[1:]).flip(axis).flatten() - mean) @ basis.T
        return torch.einsum("bcfhw,cd->bdfhw", z, turned @ basis.T) + offset.reshape(1, -1, 1, 1, 1)

    def _project(self, x: Tensor, basis: Tensor, mean: Tensor) -> Tensor:
        """Blocks to latents, scaled so that a still group has its first frame's latents."""
        group = basis.shape[1] // (3 * self.config.block**2)
        blocks = to_blocks(x, self.config.block, group)
        scale = group**-0.5
        return F.linear(blocks - mean, basis * scale).permute(0, 4, 1, 2, 3)

    def _expand(self, z: Tensor, basis: Tensor, mean: Tensor, group: int) -> Tensor:
        blocks = F.linear(z.permute(0, 2, 3, 4, 1), (basis * group**0.5).T) + mean
        return from_blocks(blocks, self.config.block, group)


class FrameRefinement(nn.Module):
    """Residual network on single frames of the linear decode, at a quarter of their size.

    The last layer starts at zero, so an untrained refinement is the identity.
    """

    def __init__(self, z_dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.entry = nn.Conv2d(48 + z_dim, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(blocks)
        )
        self.exit = nn.Conv2d(width, 48, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(self, video: Tensor, latents: Tensor) -> Tensor:
        """Refines `(batch, 3, frames, h, w)` that one latent frame `(batch, z, ...)` gave."""
        batch, _, frames, height, width = video.shape
        images = video.transpose(1, 2).reshape(batch * frames, 3, height, width)
        low = F.pixel_unshuffle(images, 4)
        spread = F.interpolate(latents, size=low.shape[2:], mode="nearest")
        spread = spread.repeat_interleave(frames, 0)
        hidden = self.entry(torch.cat([low, spread], 1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        refined = images + F.pixel_shuffle(self.exit(F.silu(hidden)), 4)
        return refined.reshape(batch, frames, 3, height, width).transpose(1, 2)


def to_blocks(x: Tensor, block: int, group: int) -> Tensor:
    """`(batch, 3, frames, h, w)` to flat blocks `(batch, frames/group, h/block, w/block, size)`."""
    batch, channels, frames, height, width = x.shape
    shape = (batch, channels, frames // group, group, height // block, block, width // block, block)
    return x.reshape(shape).permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def from_blocks(blocks: Tensor, block: int, group: int) -> Tensor:
    """Inverse of `to_blocks`."""
    batch, frames, rows, columns, _ = blocks.shape
    x = blocks.reshape(batch, frames, rows, columns, 3, group, block, block)
    x = x.permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(batch, 3, frames * group, rows * block, columns * block)
