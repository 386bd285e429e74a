"""Noise and smooth functions on arrays of coordinates, float32."""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Float32 throughout; arithmetic with Python numbers keeps it, which the type checker cannot see.
Array: TypeAlias = NDArray[Any]


def colour(red: float, green: float, blue: float) -> Array:
    """A linear RGB triple."""
    return np.array([red, green, blue], np.float32)


def unit(vector: Any) -> Array:
    """The vector scaled to length one, along the last axis."""
    vector = np.asarray(vector, np.float32)
    return vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-9)


def smoothstep(low: float, high: float, x: Any) -> Array:
    """0 below `low`, 1 above `high`, smooth between; `low` may be the larger one."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a: Any, b: Any, t: Any) -> Array:
    """`a` where t is 0, `b` where it is 1."""
    return a + (b - a) * t


def power_noise(seed: int, size: int, exponent: float, lowest: float = 0.5) -> Array:
    """Periodic square noise with amplitudes 1/f^exponent, zero mean, unit deviation.

    Args:
        seed: of the generator.
        size: side of the square.
        exponent: 1 looks like a photograph, 2 like hills.
        lowest: frequencies below this many waves per side are left out.
    """
    generator = np.random.default_rng(seed)
    across = np.fft.rfftfreq(size)[None] * size
    down = np.fft.fftfreq(size)[:, None] * size
    radius = np.sqrt(across**2 + down**2)
    weight = np.maximum(radius, 0.5) ** -exponent * (radius > lowest)
    spectrum = np.fft.rfft2(generator.standard_normal((size, size))) * weight
    field = np.fft.irfft2(spectrum, s=(size, size))
    return ((field - field.mean()) / field.std()).astype(np.float32)


def sample(grid: Array, x: Array, y: Array) -> Array:
    """Bilinear look-up in a periodic grid `(rows, columns[, channels])`; x counts columns."""
    rows, columns = grid.shape[:2]
    left, top = np.floor(x), np.floor(y)
    fx, fy = (x - left).astype(np.float32), (y - top).astype(np.float32)
    x0, y0 = left.astype(np.int32) % columns, top.astype(np.int32) % rows
    x1, y1 = (x0 + 1) % columns, (y0 + 1) % rows
    flat = grid.reshape(rows * columns, *grid.shape[2:])
    if grid.ndim == 3:
        fx, fy = fx[..., None], fy[..., None]
    upper = mix(flat[y0 * columns + x0], flat[y0 * columns + x1], fx)
    lower = mix(flat[y1 * columns + x0], flat[y1 * columns + x1], fx)
    return mix(upper, lower, fy)


@functools.cache
def _gradients(seed: int) -> tuple[Array, Array]:
    angle = np.random.default_rng(1000 + seed).uniform(0, 2 * np.pi, 65536)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def perlin(x: Array, y: Array, seed: int = 0) -> Array:
    """Gradient noise with one wave per unit or so, roughly in [-1, 1]; repeats after 256 units."""
    gradient_x, gradient_y = _gradients(seed)
    left, top = np.floor(x), np.floor(y)
    fx, fy = (x - left).astype(np.float32), (y - top).astype(np.float32)
    x0, y0 = left.astype(np.int32) & 255, top.astype(np.int32) & 255
    x1, y1 = (x0 + 1) & 255, (y0 + 1) & 255
    y0, y1 = y0 << 8, y1 << 8

    def corner(index: NDArray[np.int32], dx: Array, dy: Array) -> Array:
        return gradient_x[index] * dx + gradient_y[index] * dy

    u = fx * fx * fx * (fx * (fx * 6 - 15) + 10)
    v = fy * fy * fy * (fy * (fy * 6 - 15) + 10)
    upper = mix(corner(y0 + x0, fx, fy), corner(y0 + x1, fx - 1, fy), u)
    lower = mix(corner(y1 + x0, fx, fy - 1), corner(y1 + x1, fx - 1, fy - 1), u)
    return mix(upper, lower, v) * np.float32(1.5)


def fbm(x: Array, y: Array, octaves: int, seed: int = 0, gain: float = 0.5) -> Array:
    """Sum of `octaves` gradient noises, each twice as fine and `gain` times as strong."""
    total = np.zeros(np.broadcast(x, y).shape, np.float32)
    amplitude = 1.0
    for octave in range(octaves):
        total += amplitude * perlin(x, y, seed + octave)
        x, y = x * 2.03 + 17.1, y * 2.03 + 5.3
        amplitude *= gain
    return total


def ridged(x: Array, y: Array, octaves: int, seed: int = 0) -> Array:
    """Noise with sharp crests, finer crests growing on coarser ones; about 0 to 2."""
    total = np.zeros(np.broadcast(x, y).shape, np.float32)
    amplitude = 1.0
    weight: Any = 1.0
    for octave in range(octaves):
        crest = (1 - np.abs(perlin(x, y, seed + octave))) ** 2 * weight
        total += amplitude * crest
        weight = np.clip(crest * 1.8, 0, 1)
        x, y = x * 2.07 + 7.7, y * 2.07 + 3.1
        amplitude *= 0.5
    return total
