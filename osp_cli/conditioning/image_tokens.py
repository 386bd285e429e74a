"""Image tokens of the visual branch (paper, section 3.2, Eq. 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from osp_cli.models.positions import grid_axis

# x, y and half of x^2 + y^2: with the last, a product of a query and a key is a distance.
POSITION_FEATURES = 3


def image_tokens(image_latents: Tensor, *, patch: int = 1, positions: bool = False) -> Tensor:
    """`F_img = E_img(I_0)`: the first frame's latents as a sequence.

    Args:
        image_latents: `(batch, channels, 1, height, width)`.
        patch: Edge of the square of latents that makes one token, channel by channel.
        positions: Append x, y and (x^2 + y^2) / 2 of the token's centre, in grid coordinates.
            Cross-attention knows no order, so without them the tokens are an unordered set.

    Returns:
        `(batch, height / patch * width / patch, channels * patch^2 (+ 3))`, row by row.

    Raises:
        ValueError: More than one latent frame, or sides that `patch` does not divide.
    """
    if image_latents.ndim != 5 or image_latents.shape[2] != 1:
        raise ValueError(
            f"expected one latent frame (b, c, 1, h, w), got {tuple(image_latents.shape)}"
        )
    frame = image_latents[:, :, 0]
    height, width = frame.shape[-2:]
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"squares of {patch} do not tile {height} x {width} latents")
    folded = F.pixel_unshuffle(frame, patch)
    tokens = folded.flatten(2).transpose(1, 2)
    if not positions:
        return tokens
    x = grid_axis(width, patch, device=frame.device)
    y = grid_axis(height, patch, device=frame.device)
    across, down = torch.meshgrid(x, y, indexing="xy")
    centres = torch.stack([across, down, (across**2 + down**2) / 2], dim=-1).flatten(0, 1)
    return torch.cat([tokens, centres.to(tokens.dtype).expand(len(tokens), -1, -1)], dim=-1)


def blur_latents(image_latents: Tensor, factor: int = 4) -> Tensor:
    """The same frame without detail finer than `factor` latents.

    For training: image tokens that are always sharp would let the transformer copy the picture
    through cross-attention, the very leak that latent shifting removes.

    Args:
        image_latents: `(batch, channels, 1, height, width)`.
    """
    frame = image_latents[:, :, 0]
    coarse = F.avg_pool2d(frame, factor, ceil_mode=True, count_include_pad=False)
    return F.interpolate(coarse, size=frame.shape[-2:], mode="bilinear")[:, :, None]
