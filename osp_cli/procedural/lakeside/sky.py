"""Sky, clouds, and the air between the camera and what it sees."""

from __future__ import annotations

import numpy as np

from osp_cli.procedural.lakeside.fields import Array, colour, fbm, mix, smoothstep
from osp_cli.procedural.lakeside.view import SUN

_ZENITH = colour(0.055, 0.16, 0.50)
_MIDDLE = colour(0.20, 0.40, 0.80)
_HORIZON = colour(0.84, 0.84, 0.82)
# How much air swallows per metre, blue most: far mountains turn blue and pale.
_EXTINCTION = colour(0.62, 0.86, 1.30) * 8.5e-5
_MIST = colour(0.90, 0.90, 0.90)


def sky_colour(x: Array, y: Array, z: Array) -> Array:
    """Radiance of a cloudless sky along unit directions, `(..., 3)`."""
    down = 1 - np.clip(y, 0, 1)
    low = down**7.5
    blue = mix(_ZENITH, _MIDDLE, (down**2.6)[..., None])
    blue = mix(blue, _HORIZON, (low * 0.92)[..., None])
    sunwards = smoothstep(-0.2, 1.0, x * SUN[0] + z * SUN[2]) * low
    warm = 1 + (colour(1.0, 0.80, 0.58) - 1) * (sunwards * 0.55)[..., None]
    return blue * warm * (1 + 0.25 * sunwards[..., None])


def clouded_sky(x: Array, y: Array, z: Array) -> Array:
    """Radiance of the sky with fair-weather clouds along unit directions, `(..., 3)`."""
    # A layer overhead; the constant keeps it from shrinking to nothing at the horizon.
    rise = np.maximum(y, 0) + 0.08
    across, ahead = x / rise * 1.2 + 0.4, z / rise * 1.2 + 7.7
    bend_x = fbm(across * 0.9, ahead * 0.9, 5, seed=10)
    bend_z = fbm(across * 0.9 + 9, ahead * 0.9, 5, seed=14)

    def density(u: Array, v: Array) -> Array:
        return fbm(u * 0.62 + 0.12 * bend_x, v * 0.62 + 0.12 * bend_z, 9, seed=28, gain=0.6)

    here = density(across, ahead)
    sunwards = density(across + SUN[0] * 0.16, ahead + SUN[2] * 0.16)
    lit = 0.78 - 0.35 * np.clip(sunwards, -0.3, 1) + 0.9 * np.clip(here - sunwards, -0.6, 0.6)
    bright, dark = colour(1.23, 1.18, 1.12), colour(0.57, 0.63, 0.74)
    cloud = mix(dark, bright, np.clip(lit, 0.25, 1.2)[..., None])
    return mix(sky_colour(x, y, z), cloud, 0.85 * smoothstep(0.05, 0.80, here)[..., None])


def through_air(radiance: Array, distance: Array, height: Array, x: Array, z: Array) -> Array:
    """What is left of `radiance` after `distance` metres of air, and what the air adds.

    Args:
        radiance: `(..., 3)`.
        distance: metres.
        height: of the point above the lake, metres; the air is thinner up there.
        x: of the unit direction towards the point.
        z: likewise.
    """
    height = np.maximum(height, 0)
    thickness = distance * (0.55 + 0.45 * np.exp(-height / 700))
    passed = np.exp(-thickness[..., None] * _EXTINCTION)
    air = sky_colour(x, np.full_like(x, 0.10), z) * colour(0.80, 0.92, 1.08)
    mist = 0.16 * (1 - np.exp(-distance / 1300)) * np.exp(-height / 45)
    return mix(mix(air, radiance, passed), _MIST, mist[..., None])
