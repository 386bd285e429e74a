"""The lake: a rippled mirror with a glimpse of its floor."""

from __future__ import annotations

import math

import numpy as np

from osp_cli.procedural.lakeside.fields import (
    Array,
    colour,
    fbm,
    mix,
    power_noise,
    sample,
    smoothstep,
)
from osp_cli.procedural.lakeside.view import EYE, SKY_LIGHT, SUN, SUN_LIGHT, View, directions

# Side of the repeated wave pattern in metres, weight, direction, stretch along the crests.
_WAVES = (
    (34.0, 0.85, 0.35, 1.5),
    (13.0, 0.75, -0.55, 1.7),
    (5.1, 0.62, 0.90, 1.5),
    (2.2, 0.40, -0.20, 1.3),
)
_CLEAR_WATER = colour(0.62, 0.20, 0.24)  # light lost per metre
_DEEP = colour(0.007, 0.033, 0.038)
_FLOOR_SEEN = 32.0  # metres; further out the view is too flat to see the floor


def render_water(mirror: Array, view: View, supersampling: int) -> Array:
    """Radiance of the water in all rows below the horizon, were nothing in front of it.

    Args:
        mirror: what is above the water as seen from the eye's mirror image below it, at the
            size of the view, `(height, width, 3)`.
        view: the camera.
        supersampling: samples per pixel in each direction, at jittered places.

    Returns:
        `(rows * supersampling, width * supersampling, 3)`; the first row is that of the horizon.
    """
    generator = np.random.default_rng(77)
    top = int(view.horizon)
    shape = ((view.height - top) * supersampling, view.width * supersampling)
    jitter_x, jitter_y = generator.uniform(0, 1, (2, *shape)).astype(np.float32)
    column = (np.arange(shape[1], dtype=np.float32) + jitter_x) / supersampling
    row = top + (np.arange(shape[0], dtype=np.float32)[:, None] + jitter_y) / supersampling
    right = (column - view.width / 2) / view.focal
    down = np.maximum((row - view.horizon) / view.focal, 2.2e-4)
    z = np.minimum(EYE / down, 6000)
    x = right * z

    slope_x, slope_z, roughness = _slopes(x, z, view, generator)
    ray_x, ray_y, ray_z, _ = directions(right, -down)
    up = 1 / np.sqrt(1 + slope_x**2 + slope_z**2)
    # A wave that turns away from the eye is hidden behind the one before it.
    facing = np.minimum((ray_y - ray_x * slope_x - ray_z * slope_z) * up, -0.004)
    out_x = ray_x + 2 * facing * up * slope_x
    out_y = np.abs(ray_y - 2 * facing * up) + 1e-4
    out_z = ray_z + 2 * facing * up * slope_z
    rows, columns = mirror.shape[:2]
    seen = sample(
        mirror,
        np.clip(out_x / out_z * view.focal + view.width / 2 - 0.5, 0, columns - 1.01),
        np.clip(view.horizon - out_y / out_z * view.focal - 0.5, 0, rows - 1.01),
    )
    reflected = 0.02 + 0.98 * (1 - np.clip(-facing, 0, 1)) ** 5
    # At a grazing view rough water mirrors less than a smooth sheet would.
    reflected = (reflected / (1 + 6 * roughness))[..., None]
    below = np.broadcast_to(_DEEP, seen.shape).copy()
    near = z < _FLOOR_SEEN
    below[near] = _through_water(x[near], z[near], right[near], slope_x[near], slope_z[near])
    return mix(below, seen, reflected)


def _slopes(
    x: Array, z: Array, view: View, generator: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Slopes of the surface to the right and ahead, and their typical size."""
    surface = power_noise(301, 512, 2.1, lowest=3.5)
    along, across = (np.roll(surface, -1, axis) - np.roll(surface, 1, axis) for axis in (1, 0))
    scale = math.sqrt(float((along**2 + across**2).mean()) / 2)
    along, across = along / scale, across / scale

    # Wind ruffles some patches and leaves others calm.
    wind = fbm(x / 38 + 3, z / 120, 4, seed=310) + 0.3 * fbm(x / 7, z / 26, 3, seed=315)
    roughness = mix(0.0042, 0.019, 0.5 + 0.5 * np.tanh(2.2 * wind - 0.77))
    roughness = roughness * (0.75 + 0.25 * smoothstep(6, 60, z))
    length_of_pixel = z * z / (view.focal * EYE)
    slope_x, slope_z, lost = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for side, weight, direction, stretch in _WAVES:
        c, s = math.cos(direction), math.sin(direction)
        u = (x * c + z * s) * (512 / side / stretch)
        v = (z * c - x * s) * (512 / side)
        kept = np.exp(-((length_of_pixel * (9 * 0.55 / side)) ** 2))
        a, b = sample(along, u, v) / stretch, sample(across, u, v)
        slope_x += weight * kept * (a * c - b * s)
        slope_z += weight * kept * (a * s + b * c)
        lost += weight**2 * (1 - kept**2)
    # Waves smaller than a pixel are not gone: every sample meets one of them by chance.
    spread = np.sqrt(lost)
    slope_x += spread * generator.standard_normal(x.shape, dtype=np.float32)
    slope_z += spread * generator.standard_normal(x.shape, dtype=np.float32)
    return slope_x * roughness, slope_z * roughness, roughness


def _through_water(x: Array, z: Array, right: Array, slope_x: Array, slope_z: Array) -> Array:
    """Light that comes up through the surface: the floor, dimmed, and the water's own colour."""
    depth = _depth(x, z)
    # The refracted ray meets the floor further out; slopes of the surface shift it about.
    floor_x = x + 1.1 * depth * 0.6 * right - slope_x * depth * 2.2
    floor_z = z + 1.1 * depth - slope_z * depth * 6
    caustics = 1 + 0.55 * np.clip(fbm(x * 2.3, z * 2.3, 3, seed=350), -0.6, 1)
    light = SUN_LIGHT * float(SUN[1]) * 0.85 * caustics[..., None] + SKY_LIGHT * 0.8
    passed = np.exp(-2.2 * _depth(floor_x, floor_z)[..., None] * _CLEAR_WATER)
    floor = _floor(floor_x, floor_z) * light * passed * np.float32(0.7 / np.pi)
    fade = smoothstep(_FLOOR_SEEN, _FLOOR_SEEN / 2.5, z)[..., None]
    return _DEEP * (1 - passed * fade) + floor * fade


def _depth(x: Array, z: Array) -> Array:
    return 1.8 + 0.18 * np.clip(z - 7, 0, None) + 0.15 * fbm(x / 5, z / 5, 2, seed=320)


def _floor(x: Array, z: Array) -> Array:
    """Pebbles of two sizes with sand between."""
    bend = 0.16 * fbm(x * 1.7, z * 1.7, 3, seed=322)
    x, z = x + bend, z + 0.16 * fbm(x * 1.7 + 9, z * 1.7, 3, seed=324)
    big_gap, big_tone = _cells(x / 0.30, z / 0.30, 1)
    small_gap, small_tone = _cells(x / 0.12, z / 0.12, 2)
    stone = mix(colour(0.10, 0.095, 0.075), colour(0.34, 0.31, 0.25), big_tone[..., None])
    grain = 0.75 + 0.5 * small_tone * smoothstep(0, 0.3, small_gap)
    stone = stone * (smoothstep(0, 0.22, big_gap) * grain)[..., None]
    sand = colour(0.21, 0.185, 0.13) * (1 + 0.25 * fbm(x / 1.4, z / 1.4, 4, seed=330))[..., None]
    stony = smoothstep(-0.2, 0.3, fbm(x / 3.1, z / 4.5, 3, seed=340) + 0.25)
    return mix(sand, stone, stony[..., None])


def _cells(x: Array, y: Array, seed: int) -> tuple[Array, Array]:
    """A pattern of cells around scattered points: distance from the border, tone of the cell."""
    generator = np.random.default_rng(seed)
    offset_x, offset_y, tones = generator.uniform(0.15, 0.85, (3, 64, 64)).astype(np.float32)
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    nearest, second = np.full(x.shape, 9, np.float32), np.full(x.shape, 9, np.float32)
    tone = np.zeros(x.shape, np.float32)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            i, j = (column + dx) % 64, (row + dy) % 64
            distance = np.hypot(column + dx + offset_x[i, j] - x, row + dy + offset_y[i, j] - y)
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            tone = np.where(closer, tones[i, j], tone)
            nearest = np.minimum(nearest, distance)
    return second - nearest, (tone - 0.15) / 0.7
