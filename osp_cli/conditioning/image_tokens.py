"""Image tokens of the visual branch (paper, section 3.2, Eq. 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from osp_cli.models.positions import cell_centres, waves

_OCTAVES = 3
# Sines and cosines of x and of y.
POSITION_FEATURES = 4 * _OCTAVES


def image_tokens(image_latents: Tensor, *, pool: int = 1, positions: bool = False) -> Tensor:
    """`F_img = E_img(I_0)`: the first frame's latents as a sequence.

    Args:
        image_latents: `(batch, channels, 1, height, width)`.
        pool: Edge of the squares of latents that are averaged into one token. Pooled tokens say
            what is where but not in detail: sharp ones would let the transformer copy the picture
            through cross-attention, the very leak that latent shifting removes.
        positions: Append 12 sine coordinates of the token's centre, x before y. Cross-attention
            knows no order, so without them the tokens are an unordered set.

    Returns:
        `(batch, tokens, channels (+ 12))`, row by row; `ceil(height / pool) * ceil(width / pool)`
        tokens, those at the right and bottom edge averaging what is left.

    Raises:
        ValueError: More than one latent frame, or `pool` below 1.
    """
    if image_latents.ndim != 5 or image_latents.shape[2] != 1:
        raise ValueError(
            f"expected one latent frame (b, c, 1, h, w), got {tuple(image_latents.shape)}"
        )
    if pool < 1:
        raise ValueError(f"pool must be at least 1, got {pool}")
    frame = image_latents[:, :, 0]
    pooled = F.avg_pool2d(frame, pool, ceil_mode=True, count_include_pad=False)
    tokens = pooled.flatten(2).transpose(1, 2)
    if not positions:
        return tokens
    height, width = frame.shape[-2:]
    rows, columns = pooled.shape[-2:]
    x = waves(cell_centres(width, pool, device=frame.device), _OCTAVES)
    y = waves(cell_centres(height, pool, device=frame.device), _OCTAVES)
    centres = torch.cat(
        [x[None].expand(rows, -1, -1), y[:, None].expand(-1, columns, -1)], dim=-1
    ).flatten(0, 1)
    return torch.cat([tokens, centres.to(tokens.dtype).expand(len(tokens), -1, -1)], dim=-1)
