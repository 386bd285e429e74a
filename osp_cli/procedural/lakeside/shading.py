"""How the near things look: their materials, their shadows, their pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from osp_cli.procedural.lakeside.fields import Array, colour, fbm, mix, perlin, smoothstep, unit
from osp_cli.procedural.lakeside.mesh import Mesh, rasterise
from osp_cli.procedural.lakeside.props import Material
from osp_cli.procedural.lakeside.view import EYE, SKY_LIGHT, SUN, SUN_LIGHT, View

# What the lake throws back at everything above it.
_WATER_LIGHT = colour(0.34, 0.36, 0.34)


@dataclass(slots=True)
class Surface:
    """Visible points, one row each; the second half is filled in by the materials."""

    position: Array
    normal: Array
    texture: Array
    albedo: Array
    openness: Array
    shine: Array
    gloss: Array

    @classmethod
    def at(cls, position: Array, normal: Array, texture: Array) -> Surface:
        """Points without a material yet."""
        count = len(position)
        return cls(
            position=position,
            normal=normal,
            texture=texture,
            albedo=np.zeros((count, 3), np.float32),
            openness=np.ones(count, np.float32),
            shine=np.zeros(count, np.float32),
            gloss=np.full(count, 20, np.float32),
        )


class ShadowMap:
    """Which points the sun reaches: the scene drawn once as the sun sees it."""

    _cell = 0.012

    def __init__(self, mesh: Mesh) -> None:
        self._right = unit(np.cross(SUN, [0, 1, 0]))
        self._up = np.cross(self._right, SUN).astype(np.float32)
        x, y, height = mesh.position @ self._right, mesh.position @ self._up, mesh.position @ SUN
        self._x0, self._y0 = float(x.min()) - 0.1, float(y.min()) - 0.1
        width = int((float(x.max()) - self._x0) / self._cell) + 20
        rows = int((float(y.max()) - self._y0) / self._cell) + 20
        low = float(height.min()) - 1
        across, down = (x - self._x0) / self._cell, (y - self._y0) / self._cell
        nearness = rasterise(across, down, height - low, mesh.faces, width, rows).nearness
        self._height = np.where(nearness == 0, -1e9, nearness + low)

    def sunlight(self, points: Array) -> Array:
        """Share of the sun at each point, 0 to 1, with a soft edge of a few centimetres."""
        x, y, height = points @ self._right, points @ self._up, points @ SUN
        rows, columns = self._height.shape
        lit = np.zeros(len(points), np.float32)
        taps = 12
        for tap in range(taps):
            radius, angle = 0.02 * np.sqrt((tap + 0.5) / taps), tap * 2.399963
            across = (x + float(radius * np.cos(angle)) - self._x0) / self._cell
            down = (y + float(radius * np.sin(angle)) - self._y0) / self._cell
            column = np.clip(across.astype(int), 0, columns - 1)
            row = np.clip(down.astype(int), 0, rows - 1)
            lit += self._height[row, column] <= height + 0.02
        return lit / taps


def render_props(
    mesh: Mesh, shadows: ShadowMap, view: View, supersampling: int, *, mirrored: bool = False
) -> tuple[Array, Array]:
    """Radiance of the near things, already multiplied by their coverage, and that coverage.

    Args:
        mesh: the things.
        shadows: of the same mesh.
        view: the camera.
        supersampling: samples per pixel in each direction; the results are already averaged.
        mirrored: seen from below the water, as a calm surface reflects them.

    Returns:
        `(height, width, 3)` and `(height, width)` at the size of the view.
    """
    eye = -EYE if mirrored else EYE
    width, height = view.width * supersampling, view.height * supersampling
    z = mesh.position[:, 2]
    x = (mesh.position[:, 0] / z * view.focal + view.width / 2) * supersampling
    y = (view.horizon - view.focal * (mesh.position[:, 1] - eye) / z) * supersampling
    # Cut at the water: seen from below, the keel would hide what is mirrored above it.
    faces = mesh.faces
    drawn = rasterise(x, y, 1 / z, faces, width, height, level=mesh.position[:, 1])
    hit = drawn.face >= 0
    corners = faces[drawn.face[hit]]
    second, third = drawn.second[hit][:, None], drawn.third[hit][:, None]

    def between(values: Array) -> Array:
        a, b, c = values[corners[:, 0]], values[corners[:, 1]], values[corners[:, 2]]
        return a * (1 - second - third) + b * second + c * third

    surface = Surface.at(between(mesh.position), unit(between(mesh.normal)), between(mesh.texture))
    light = _shade(surface, mesh.material[corners[:, 0]], shadows, eye)
    radiance = np.zeros((height, width, 3), np.float32)
    coverage = np.zeros((height, width), np.float32)
    radiance[hit] = light
    coverage[hit] = 1
    return averaged(radiance, supersampling), averaged(coverage[..., None], supersampling)[..., 0]


def averaged(picture: Array, factor: int) -> Array:
    """Means over squares of `factor` pixels of `(rows, columns, channels)`."""
    rows, columns, channels = picture.shape
    blocks = picture.reshape(rows // factor, factor, columns // factor, factor, channels)
    return blocks.mean((1, 3), dtype=np.float32)


def _shade(surface: Surface, material: NDArray[np.int32], shadows: ShadowMap, eye: float) -> Array:
    """Radiance towards the camera: diffuse and glossy light of the sun, light of the sky."""
    for kind, paint in _PAINTERS.items():
        chosen = material == kind
        if chosen.any():
            paint(surface, chosen)
    to_eye = unit(np.array([0, eye, 0], np.float32) - surface.position)
    reed = material == Material.REED
    away = (surface.normal * to_eye).sum(1) < 0
    normal = np.where((reed & away)[:, None], -surface.normal, surface.normal)

    sunlit = shadows.sunlight(surface.position + normal * 0.012)
    towards_sun = np.clip(normal @ SUN, 0, 1)
    # Blades are thin: light comes through them, and they shade each other only in part.
    towards_sun = np.where(reed, 0.25 + 0.55 * np.abs(normal @ SUN), towards_sun)
    sunlit = np.where(reed, 0.35 + 0.65 * sunlit, sunlit)
    upward = (0.5 + 0.5 * normal[:, 1])[:, None]
    ambient = SKY_LIGHT * upward + _WATER_LIGHT * (1 - upward)
    direct = SUN_LIGHT * (towards_sun * sunlit)[:, None]
    light = surface.albedo * (direct + ambient * surface.openness[:, None])
    light = light * np.float32(1.55 / np.pi)

    half = np.clip((normal * unit(to_eye + SUN)).sum(1), 0, 1)
    lobe = surface.shine * (surface.gloss + 2) / 8 * half**surface.gloss * sunlit * towards_sun
    light = light + SUN_LIGHT * (0.8 * lobe)[:, None]
    grazing = (1 - np.clip((normal * to_eye).sum(1), 0, 1)) ** 5
    mirror = (surface.shine + 0.35 * grazing * (1 - surface.shine)) * (surface.shine > 0.028)
    return light + colour(0.25, 0.29, 0.35) * (mirror * surface.openness)[:, None]


def _wood(light: Array, dark: Array, texture: Array, seed: int) -> Array:
    """Grain along the first texture coordinate, another board for each third one."""
    along, across, piece = texture[:, 0], texture[:, 1], texture[:, 2]
    grain = fbm(along * 1.6 + piece * 13.7, across * 46 + piece * 5.1, 4, seed=200 + seed)
    fibre = fbm(along * 9 + piece * 3.3, across * 190 + piece * 9.9, 2, seed=210 + seed)
    knot = perlin(along * 1.1 + piece * 31.3, across * 6 + piece * 17.7, 220 + seed)
    amount = 0.5 + 0.5 * grain + 0.25 * fibre + 0.5 * np.clip(knot - 0.45, 0, 1)
    return mix(light, dark, np.clip(amount, 0, 1.2)[:, None])


def _paint_hull(surface: Surface, chosen: NDArray[np.bool_]) -> None:
    """Seven lapped planks, red, the uppermost white, darker and wet at the waterline."""
    along, height = surface.texture[chosen, 0], surface.texture[chosen, 1]
    above_water = surface.position[chosen, 1]
    plank = height * 7
    part = plank % 1
    red = colour(0.52, 0.036, 0.024) * (1 + 0.10 * fbm(along * 2, plank * 3, 4, 230))[:, None]
    white = colour(0.66, 0.62, 0.54) * (1 + 0.05 * fbm(along * 3, plank * 5, 3, 235))[:, None]
    paint = np.where((height > 6 / 7)[:, None], white, red)
    lap = smoothstep(0.10, 0.0, part) * 0.65 + smoothstep(0.92, 1.0, part) * 0.15
    worn = smoothstep(0.55, 0.95, fbm(along * 7, height * 9, 5, seed=240))
    paint = paint * ((1 - lap) * (1 - 0.12 * worn))[:, None]
    wet = smoothstep(0.075, 0.03, above_water + 0.01 * perlin(along * 5, along * 0, 241))
    surface.albedo[chosen] = mix(paint, paint * colour(0.35, 0.40, 0.35), wet[:, None])
    surface.shine[chosen], surface.gloss[chosen] = 0.045, 45
    # Each plank leans out over the one below.
    normal = surface.normal[chosen]
    normal[:, 1] -= (smoothstep(0.5, 1, part) - 0.3) * 0.22
    surface.normal[chosen] = unit(normal)
    surface.openness[chosen] = 0.75 + 0.25 * smoothstep(-0.05, 0.4, above_water)


def _paint_lining(surface: Surface, chosen: NDArray[np.bool_]) -> None:
    """Varnished planks with a rib every third of a metre."""
    along, height = surface.texture[chosen, 0], surface.texture[chosen, 1]
    plank = height * 7
    grain = np.stack([along, height * 0.7, np.floor(plank)], 1)
    wood = _wood(colour(0.36, 0.20, 0.090), colour(0.20, 0.095, 0.040), grain, 1)
    rib = smoothstep(0.045, 0.03, np.abs((along % 0.34) - 0.17))
    surface.albedo[chosen] = (
        wood * (1 - 0.35 * smoothstep(0.08, 0, plank % 1) - 0.25 * rib)[:, None]
    )
    surface.shine[chosen], surface.gloss[chosen] = 0.03, 30
    surface.openness[chosen] = 0.25 + 0.75 * smoothstep(-0.15, 0.50, surface.position[chosen, 1])


def _paint_seat(surface: Surface, chosen: NDArray[np.bool_]) -> None:
    wood = _wood(colour(0.46, 0.28, 0.135), colour(0.27, 0.14, 0.06), surface.texture[chosen], 2)
    surface.albedo[chosen] = wood
    surface.shine[chosen], surface.gloss[chosen] = 0.035, 35
    surface.openness[chosen] = 0.45 + 0.55 * smoothstep(-0.05, 0.32, surface.position[chosen, 1])


def _paint_trim(surface: Surface, chosen: NDArray[np.bool_]) -> None:
    wood = _wood(colour(0.40, 0.22, 0.10), colour(0.22, 0.11, 0.045), surface.texture[chosen], 3)
    surface.albedo[chosen] = wood
    surface.shine[chosen], surface.gloss[chosen] = 0.04, 50


def _paint_oar(surface: Surface, chosen: NDArray[np.bool_]) -> None:
    wood = _wood(colour(0.55, 0.40, 0.24), colour(0.38, 0.25, 0.13), surface.texture[chosen], 4)
    surface.albedo[chosen] = wood
    surface.shine[chosen], surface.gloss[chosen] = 0.03, 30


def _paint_deck(surface: Surface, chosen: NDArray[np.bool_]) -> None:
    """Boards greyed by weather, no two alike, stained where many people step."""
    texture, position = surface.texture[chosen], surface.position[chosen]
    piece = texture[:, 2]
    tone = (np.sin(piece * 91.7) * 43758.5) % 1
    warmth = (np.sin(piece * 37.1 + 2) * 9731.3) % 1
    wood = _wood(colour(0.36, 0.31, 0.255), colour(0.17, 0.135, 0.105), texture, 5)
    wood = wood * (0.72 + 0.5 * tone)[:, None]
    wood = wood * mix(colour(1, 1, 1), colour(1.12, 0.97, 0.80), warmth[:, None])
    stain = smoothstep(0.2, 0.8, fbm(position[:, 0] * 1.3, position[:, 2] * 1.3, 4, seed=250))
    surface.albedo[chosen] = wood * (1 - 0.35 * stain)[:, None]
    surface.shine[chosen], surface.gloss[chosen] = 0.02, 12
    surface.openness[chosen] = np.where(surface.normal[chosen, 1] > 0.7, 1.0, 0.45)


def _paint_post(surface: Surface, chosen: NDArray[np.bool_]) -> None:
    """Grey logs, dark with algae where the water reaches."""
    texture, above_water = surface.texture[chosen], surface.position[chosen, 1]
    wood = _wood(colour(0.27, 0.225, 0.18), colour(0.11, 0.085, 0.065), texture, 6)
    edge = above_water + 0.05 * perlin(texture[:, 1] * 30, above_water * 0, 251)
    wet = smoothstep(0.20, 0.08, edge)
    surface.albedo[chosen] = mix(wood, colour(0.045, 0.050, 0.030), (wet * 0.85)[:, None])
    surface.shine[chosen] = 0.02 + 0.05 * wet
    surface.openness[chosen] = 0.75 + 0.25 * smoothstep(0, 0.5, above_water)


def _paint_rope(surface: Surface, chosen: NDArray[np.bool_]) -> None:
    texture = surface.texture[chosen]
    strand = 0.5 + 0.5 * np.sin(texture[:, 0] * 260 + texture[:, 1] * 230)
    surface.albedo[chosen] = colour(0.50, 0.43, 0.31) * (0.55 + 0.45 * strand)[:, None]


def _paint_reed(surface: Surface, chosen: NDArray[np.bool_]) -> None:
    """Green, some blades and most tips dry."""
    texture = surface.texture[chosen]
    dry = np.clip(texture[:, 2:] ** 2 * 1.2 - 0.15 + 0.30 * texture[:, :1] ** 3, 0, 1)
    surface.albedo[chosen] = mix(colour(0.060, 0.105, 0.020), colour(0.25, 0.21, 0.095), dry)
    surface.shine[chosen] = 0.02
    surface.openness[chosen] = 0.25 + 0.75 * smoothstep(0, 0.55, surface.position[chosen, 1])


_PAINTERS = {
    Material.HULL: _paint_hull,
    Material.LINING: _paint_lining,
    Material.SEAT: _paint_seat,
    Material.TRIM: _paint_trim,
    Material.OAR: _paint_oar,
    Material.DECK: _paint_deck,
    Material.POST: _paint_post,
    Material.ROPE: _paint_rope,
    Material.REED: _paint_reed,
}
