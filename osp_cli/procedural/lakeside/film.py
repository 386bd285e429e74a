"""From radiance to a developed photograph: lens, exposure, tone curve, grain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from osp_cli.procedural.lakeside.fields import Array, colour

_LUMINANCE = colour(0.2126, 0.7152, 0.0722)


def develop(radiance: Array, exposure: float = 0.85) -> NDArray[np.uint8]:
    """Turn linear radiance `(height, width, 3)` into 8-bit sRGB.

    The lens blurs a little, glows around bright places and darkens the corners; the film has a
    soft shoulder and fine grain.
    """
    generator = np.random.default_rng(9)
    height, width = radiance.shape[:2]
    unit = width / 1344
    light = blurred(np.maximum(radiance, 0), 0.45 * unit)
    bright = np.minimum(light, 4)
    light = 0.93 * light + 0.05 * blurred(bright, 9 * unit) + 0.02 * blurred(bright, 45 * unit)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    corner = (2 * x / width - 1) ** 2 + 0.55 * (2 * y / height - 1) ** 2
    light = light * (1 - 0.17 * corner)[..., None] * colour(1.03, 1.0, 0.965)
    grey = (light @ _LUMINANCE)[..., None]
    light = np.maximum(grey + (light - grey) * 1.10, 0)

    picture = _srgb(_filmic(light * exposure))
    centred = picture - 0.5
    picture = np.clip(picture + 0.10 * centred * (1 - 4 * centred**2), 0, 1)
    grain = 0.0070 * _grain(generator, (height, width, 1))
    grain = grain + 0.0025 * _grain(generator, (height, width, 3))
    picture = picture + grain * (1 - 0.6 * picture.mean(-1, keepdims=True))
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def blurred(picture: Array, sigma: float) -> Array:
    """Gaussian blur of `(height, width, channels)`, the borders mirrored; sigma in pixels."""
    height, width = picture.shape[:2]
    frequency = np.fft.fftfreq(2 * height)[:, None] ** 2 + np.fft.rfftfreq(2 * width)[None] ** 2
    kernel = np.exp(-2 * (np.pi * sigma) ** 2 * frequency)
    result = np.empty_like(picture)
    for channel in range(picture.shape[2]):
        padded = np.pad(picture[..., channel], ((0, height), (0, width)), mode="symmetric")
        spectrum = np.fft.rfft2(padded) * kernel
        result[..., channel] = np.fft.irfft2(spectrum, s=padded.shape)[:height, :width]
    return result


def _filmic(light: Array) -> Array:
    """A smooth curve from 0 to 1 with a toe and a long shoulder."""
    curve = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)
    return np.clip(curve, 0, 1)


def _srgb(linear: Array) -> Array:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _grain(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Noise of unit deviation whose grains are a little larger than a pixel."""
    noise = blurred(generator.standard_normal(shape, dtype=np.float32), 0.55)
    return noise / noise.std()
