"""Random fields and small filters that scenes and styles share; any device, batched."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


def uniform(
    generator: torch.Generator, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Uniform numbers on the generator's own device."""
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def power_noise(
    generator: torch.Generator,
    shape: tuple[int, int, int],
    exponent: Tensor | float,
    angle: float | None = None,
) -> Tensor:
    """Noise with spectrum 1/f^exponent, `(batch, height, width)`, zero mean, unit deviation.

    Args:
        generator: source of randomness; its device is the result's.
        shape: batch, height, width.
        exponent: 0 is white, 1 looks like a photograph, 2 like fog; `(batch,)` or a number.
        angle: stretches the field along this direction (radians), as in grass or brush hair.
    """
    _, height, width = shape
    device = generator.device
    fy = torch.fft.fftfreq(height, device=device)[:, None] * height
    fx = torch.fft.rfftfreq(width, device=device)[None, :] * width
    if angle is not None:
        c, s = math.cos(angle), math.sin(angle)
        fx, fy = 4.0 * (c * fx + s * fy), c * fy - s * fx
    radius = torch.sqrt(fx**2 + fy**2).clamp_min(1.0)
    exponents = torch.as_tensor(exponent, device=device, dtype=torch.float32).reshape(-1, 1, 1)
    white = torch.randn(shape, generator=generator, device=device)
    field = torch.fft.irfft2(torch.fft.rfft2(white) * radius**-exponents, s=(height, width))
    field = field - field.mean((1, 2), keepdim=True)
    return field / field.std((1, 2), keepdim=True).clamp_min(1e-6)


def box_blur(images: Tensor, radius: int) -> Tensor:
    """Mean over a `(2 radius + 1)` square, `(batch, channels, height, width)`, edges repeated."""
    if radius < 1:
        return images
    size = 2 * radius + 1
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    rows = F.avg_pool2d(padded, (size, 1), stride=1)
    return F.avg_pool2d(rows, (1, size), stride=1)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Three box blurs of the same variance as a Gaussian of `sigma` pixels."""
    radius = max(1, round((sigma**2 + 0.25) ** 0.5 - 0.5))
    for _ in range(3):
        images = box_blur(images, radius)
    return images


def luminance(images: Tensor) -> Tensor:
    """Rec. 601 luma, `(batch, 1, height, width)`."""
    weights = torch.tensor(LUMA, device=images.device, dtype=images.dtype)
    return (images * weights.reshape(1, 3, 1, 1)).sum(1, keepdim=True)


def saturate(images: Tensor, factor: float) -> Tensor:
    """Moves colours away from (`factor` > 1) or towards their grey."""
    grey = luminance(images)
    return grey + (images - grey) * factor


def coordinates(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel-centre coordinates in [-1, 1]: `y` `(height, 1)` and `x` `(1, width)`."""
    y = (torch.arange(height, device=device) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=device) + 0.5) / width * 2 - 1
    return y[:, None], x[None, :]
