"""A picture robbed of its style, for clips that came without the picture they were made from.

An adapter that is shown a clip's own first frame learns nothing of its style: it is in the picture
already. So the lines are closed, the texture is smoothed away and the light is changed, each time
in another way, until all that is left is what a photograph of the scene would have too. What it
learns to add then is the style.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from osp_cli.procedural.noise import gaussian_blur, luminance

_CLOSING = 0.85  # how often dark lines are closed
_OPENING = 0.2  # and light ones
_LINES = (5, 13)  # pixels that they are wide at most
_GRAIN = 0.06
_SHARP, _SOFT = 0.3, 2.0  # blur; what it takes from the condition, the adapter learns to miss


def plain_picture(images: Tensor, generator: torch.Generator) -> Tensor:
    """One of many plain pictures of a styled one.

    Args:
        images: `(1, 3, height, width)` in [0, 1].
        generator: decides which, on the processor.

    Returns:
        The same shape, in [0, 1].
    """

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    width = int(between(*_LINES)) | 1
    # Drawn whether they are used or not, so that every picture takes the same numbers.
    closed, opened = between(0, 1) < _CLOSING, between(0, 1) < _OPENING
    plain = images
    if closed:
        plain = _darkest(_lightest(plain, width), width)
    if opened:
        plain = _lightest(_darkest(plain, width), width)
    plain = gaussian_blur(plain, between(_SHARP, _SOFT))
    grey = luminance(plain)
    plain = (grey + (plain - grey) * between(0.3, 1.1)).clamp(1e-3, 1.0)
    plain = plain ** between(0.7, 1.5)
    mean = plain.mean((2, 3), keepdim=True)
    plain = (plain - mean) * between(0.6, 1.1) + mean * between(0.7, 1.2)
    plain = plain * (1 + 0.2 * torch.randn(1, 3, 1, 1, generator=generator))
    # Photographs have a texture of their own.
    plain = plain * (1 + between(0, _GRAIN) * _grain(generator, images.shape[2], images.shape[3]))
    return plain.clamp(0.0, 1.0)


def _lightest(images: Tensor, width: int) -> Tensor:
    return F.max_pool2d(images, width, stride=1, padding=width // 2)


def _darkest(images: Tensor, width: int) -> Tensor:
    return -_lightest(-images, width)


def _grain(generator: torch.Generator, height: int, width: int) -> Tensor:
    """Noise of two sizes, `(1, 1, height, width)`."""
    parts = []
    for size in (2, 6):
        small = torch.randn(1, 1, -(-height // size), -(-width // size), generator=generator)
        parts.append(F.interpolate(small, size=(height, width), mode="bilinear"))
    return torch.stack(parts).sum(0)
