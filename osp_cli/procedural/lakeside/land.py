"""The land as the camera sees it: which point each pixel shows, and its colour."""

from __future__ import annotations

import numpy as np

from osp_cli.procedural.lakeside.fields import Array, colour, fbm, mix, perlin, smoothstep
from osp_cli.procedural.lakeside.sky import clouded_sky, through_air
from osp_cli.procedural.lakeside.terrain import EXTENT, Land
from osp_cli.procedural.lakeside.view import EYE, SKY_LIGHT, SUN, SUN_LIGHT, View, directions

_EARTH_LIGHT = colour(0.30, 0.26, 0.20) * 0.22


def render_land(
    land: Land, view: View, supersampling: int, *, mirrored: bool = False, steps: int = 1500
) -> tuple[Array, Array]:
    """Sky and mountains without trees.

    Args:
        land: the terrain.
        view: the camera.
        supersampling: pixels per final pixel in each direction.
        mirrored: seen from below the water, as a calm surface reflects it.
        steps: distances at which the terrain is probed.

    Returns:
        Radiance `(rows, columns, 3)` and depth along z `(rows, columns)`, infinite for sky and
        water; where there is water the radiance is that of the sky at the horizon or zero.
    """
    eye = -EYE if mirrored else EYE
    distances = np.geomspace(110, EXTENT - 40, steps).astype(np.float32)
    depth = _cast(land, view, supersampling, eye, distances)
    right, up = np.meshgrid(*view.slopes(supersampling))
    if not mirrored:
        water = np.where(up < -1e-4, EYE / np.maximum(-up, 1e-4), np.inf)
        depth[depth > water] = np.inf
    x, y, z, length = directions(right, up)
    radiance = np.zeros((*depth.shape, 3), np.float32)
    ground = np.isfinite(depth)
    sky = ~ground & (up > -0.02)
    radiance[sky] = clouded_sky(x[sky], y[sky], z[sky])
    ahead = depth[ground]
    height = up[ground] * ahead + eye
    lit = _shade(land, right[ground] * ahead, ahead, height)
    radiance[ground] = through_air(lit, ahead * length[ground], height, x[ground], z[ground])
    return radiance, depth


def forest_cover(x: Array, z: Array, height: Array, slope: Array) -> Array:
    """1 where trees stand: ragged at the tree line, absent on cliffs and in a few meadows."""
    ragged = perlin(x / 14, z / 14, 121) * 0.6 + perlin(x / 5.5, z / 5.5, 122) * 0.5
    line = 560 + 120 * fbm(x / 420, z / 420, 3, seed=110) + 170 * ragged
    meadow = fbm(x / 210, z / 210, 3, seed=120) + 0.55 * ragged
    low_enough = smoothstep(30, -30, height - line)
    return (
        low_enough * smoothstep(3.2, 2.6, slope + 0.45 * ragged) * smoothstep(-0.72, -0.62, meadow)
    )


def _cast(land: Land, view: View, supersampling: int, eye: float, distances: Array) -> Array:
    """Depth of the first ground in each pixel, all columns walked away from the camera at once."""
    right, _ = view.slopes(supersampling)
    rows = view.height * supersampling
    row_of = np.empty((len(distances), len(right)), np.float32)
    for index, distance in enumerate(distances):
        height = Land.look_up(land.height, right * distance, np.full_like(right, distance))
        row = (view.horizon - view.focal * (height - eye) / distance) * supersampling
        row_of[index] = np.where(height <= 0, 1e9, row)
    # The skyline so far: ground shows where it rises above all that stands before it.
    skyline = np.minimum.accumulate(row_of, axis=0)
    centres = (np.arange(rows) + 0.5).astype(np.float32)
    depth = np.full((rows, len(right)), np.inf, np.float32)
    for column in range(len(right)):
        first = np.searchsorted(-skyline[:, column], -centres)
        step = np.clip(first, 1, len(distances) - 1)
        before, after = row_of[step - 1, column], row_of[step, column]
        part = np.clip((centres - before) / np.minimum(after - before, -1e-6), 0, 1)
        part = np.where(before > 1e8, 1, part)
        ahead = mix(distances[step - 1], distances[step], part)
        depth[:, column] = np.where(first < len(distances), ahead, np.inf)
    return depth


def _shade(land: Land, x: Array, z: Array, height: Array) -> Array:
    """Radiance of ground points: rock, meadow, wood and snow under sun and sky."""
    slope_x, slope_z = Land.look_up(land.slope_x, x, z), Land.look_up(land.slope_z, x, z)
    slope = np.hypot(slope_x, slope_z)
    # Bumps smaller than the grid; the finest are left out where a pixel would average them.
    fine = smoothstep(7000, 1500, z)
    bump_a = perlin(x / 11, height / 9 + z / 13, 130)
    bump_b = perlin(x / 4.3 + 9, height / 3.7 + z / 5, 131) * fine
    bump_c = perlin(x / 29, height / 15 + z / 31, 132)
    rough = 0.5 * bump_a + 0.3 * bump_b + 0.6 * bump_c
    slope_x = slope_x + 0.35 * bump_a + 0.30 * bump_c + 0.25 * bump_b
    slope_z = slope_z + 0.35 * perlin(x / 12 + 40, height / 9 + z / 12, 133)
    facing_up = 1 / np.sqrt(1 + slope_x**2 + slope_z**2)
    facing_sun = (SUN[1] - slope_x * SUN[0] - slope_z * SUN[2]) * facing_up
    sun = np.clip(facing_sun, 0, 1) * Land.look_up(land.sunlight, x, z)

    albedo = _rock(x, z, height, rough, bump_c)
    soil = smoothstep(1.25, 0.8, slope + 0.3 * rough)
    soil = soil * smoothstep(1150, 700, height + 150 * bump_c)
    albedo = mix(albedo, _meadow(x, z), soil[..., None])
    wood = forest_cover(x, z, height, slope)
    albedo = mix(albedo, _wood(x, z, rough), wood[..., None])
    line = 800 + 210 * fbm(x / 600, z / 600, 4, seed=160)
    snow = smoothstep(-110, 230, height - line + 110 * rough)
    snow = snow * smoothstep(1.95, 1.25, slope + 0.32 * rough)
    albedo = mix(albedo, colour(0.86, 0.88, 0.92), snow[..., None])

    openness = Land.look_up(land.openness, x, z)
    sky = SKY_LIGHT * ((0.45 + 0.55 * facing_up) * openness)[..., None] + _EARTH_LIGHT
    sun = sun * np.where(wood > 0.5, 0.85, 1.0)
    return albedo * (SUN_LIGHT * sun[..., None] + sky) * np.float32(1.55 / np.pi)


def _rock(x: Array, z: Array, height: Array, rough: Array, bump: Array) -> Array:
    layers = np.sin(height / 13 + 2.2 * fbm(x / 300, z / 300, 2, seed=140) + bump)
    light = np.clip(0.45 + 0.25 * layers + 0.35 * rough, 0, 1)
    return mix(colour(0.235, 0.215, 0.20), colour(0.37, 0.34, 0.315), light[..., None])


def _meadow(x: Array, z: Array) -> Array:
    dry = np.clip(0.5 + 0.6 * fbm(x / 90, z / 90, 3, seed=150), 0, 1)
    return mix(colour(0.085, 0.115, 0.030), colour(0.20, 0.19, 0.065), dry[..., None])


def _wood(x: Array, z: Array, rough: Array) -> Array:
    """Forest too far away to be drawn tree by tree."""
    shade = np.clip(1 + 0.75 * rough, 0.25, 2.2)
    larch = smoothstep(0.0, 0.9, fbm(x / 130, z / 130, 3, seed=155))
    tint = mix(colour(1, 1, 1), colour(1.7, 1.35, 0.8), larch[..., None])
    return colour(0.020, 0.040, 0.018) * shade[..., None] * tint
