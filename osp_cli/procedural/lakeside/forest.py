"""Spruces, each a small picture of its own, pasted from far to near."""

from __future__ import annotations

import numpy as np
from PIL import Image

from osp_cli.procedural.lakeside.fields import Array, colour, fbm, mix, power_noise, smoothstep
from osp_cli.procedural.lakeside.land import forest_cover
from osp_cli.procedural.lakeside.sky import through_air
from osp_cli.procedural.lakeside.terrain import Land, shore_distance
from osp_cli.procedural.lakeside.view import EYE, SKY_LIGHT, SUN_LIGHT, View, directions

_KINDS = 10
_ASPECT = 0.56


class Forest:
    """Trees on the near slopes, up to 2300 m away, sorted from far to near.

    Args:
        land: where they stand.
        candidates: places to try; about half of them carry a tree.
    """

    def __init__(self, land: Land, candidates: int) -> None:
        generator = np.random.default_rng(5)
        self._kinds = [_spruce(generator) for _ in range(_KINDS)]
        self._sprites: dict[tuple[int, int], tuple[Array, Array]] = {}

        z = np.sqrt(generator.uniform(150**2, 2300**2, candidates)).astype(np.float32)
        x = (generator.uniform(-0.58, 0.58, candidates) * z).astype(np.float32)
        inland = shore_distance(x, z)
        height = Land.look_up(land.height, x, z)
        slope = np.hypot(Land.look_up(land.slope_x, x, z), Land.look_up(land.slope_z, x, z))
        # Thinner with distance, where every pixel holds several trees anyway.
        chance = forest_cover(x, z, height, slope) * np.minimum(300 / z, 1) ** 0.35
        chance = chance * smoothstep(-4, 14, inland + generator.uniform(-6, 6, candidates))
        stands = (height > 0.4) & (inland > 2) & (generator.uniform(0, 1, candidates) < chance)
        order = np.nonzero(stands)[0]
        order = order[np.argsort(-z[order], kind="stable")]
        self.x, self.z, self.ground = x[order], z[order], height[order]

        count = len(order)
        sizes = 17 * np.exp(generator.normal(0, 0.28, count))
        self._size = np.clip(sizes, 6, 33).astype(np.float32)
        self._kind = generator.integers(0, _KINDS, count)
        self._sunlight = Land.look_up(land.sunlight, self.x, self.z)
        larch = fbm(self.x / 120, self.z / 120, 3, seed=170) + generator.normal(0, 0.35, count)
        tint = mix(
            colour(0.030, 0.058, 0.024),
            colour(0.085, 0.095, 0.028),
            smoothstep(-0.1, 1.2, larch)[:, None],
        )
        self._albedo = (tint * generator.uniform(0.75, 1.25, (count, 1))).astype(np.float32)

    def paste(
        self,
        radiance: Array,
        depth: Array,
        view: View,
        supersampling: int,
        *,
        mirrored: bool = False,
    ) -> None:
        """Draw all trees into a picture of the land and into its depth."""
        eye = -EYE if mirrored else EYE
        right = self.x / self.z
        pixels = np.rint(self._size / self.z * (view.focal * supersampling)).astype(int)
        middle = (right * view.focal + view.width / 2) * supersampling
        foot = (view.horizon - view.focal * (self.ground - eye) / self.z) * supersampling
        bright, dark = self._colours(right)
        for tree in np.nonzero(pixels >= 3)[0]:
            cover, light = self._sprite(int(self._kind[tree]), int(pixels[tree]))
            height, width = cover.shape
            left = round(float(middle[tree]) - width / 2)
            bottom = round(float(foot[tree]) + 0.02 * height)
            rows = slice(max(0, bottom - height), max(0, min(depth.shape[0], bottom)))
            columns = slice(max(0, left), max(0, min(depth.shape[1], left + width)))
            behind = depth[rows, columns] > self.z[tree]
            if not behind.any():
                continue
            cut = (
                slice(rows.start - bottom + height, rows.stop - bottom + height),
                slice(columns.start - left, columns.stop - left),
            )
            alpha, lit = cover[cut] * behind, light[cut] * behind
            patch = radiance[rows, columns]
            patch *= (1 - alpha)[..., None]
            patch += np.maximum(alpha - lit, 0)[..., None] * dark[tree]
            patch += lit[..., None] * bright[tree]
            depth[rows, columns][alpha > 0.5] = self.z[tree]

    def _colours(self, right: Array) -> tuple[Array, Array]:
        """Radiance of each tree's sunny and shady side, as seen through the air."""
        sky = SKY_LIGHT * 0.55 + colour(0.05, 0.05, 0.03)
        sun = SUN_LIGHT * self._sunlight[:, None] * 0.95
        bright = self._albedo * (sun + sky) * np.float32(1.9 / np.pi)
        dark = self._albedo * sky * np.float32(1.35 / np.pi)
        x, _, z, length = directions(right, np.zeros_like(right))
        distance = self.z * length
        crown = self.ground + 8
        return (
            through_air(bright, distance, crown, x, z),
            through_air(dark, distance, crown, x, z),
        )

    def _sprite(self, kind: int, pixels: int) -> tuple[Array, Array]:
        pixels = pixels if pixels <= 16 else 2 * round(pixels / 2)
        if (kind, pixels) not in self._sprites:
            size = (max(3, round(pixels * _ASPECT)), pixels)
            cover, light = (
                np.asarray(picture.resize(size, Image.Resampling.HAMMING))
                for picture in self._kinds[kind]
            )
            cover = np.clip(cover, 0, 1)
            self._sprites[kind, pixels] = (cover, np.clip(light, 0, 1.3 * cover))
        return self._sprites[kind, pixels]


def _spruce(generator: np.random.Generator, size: int = 128) -> tuple[Image.Image, Image.Image]:
    """One tree from the side: how much it covers, and how much of that the sun lights."""
    width = int(size * _ASPECT)
    x, y = np.meshgrid(
        ((np.arange(width) + 0.5) - width / 2) / size, (np.arange(size) + 0.5) / size
    )
    x = x - generator.uniform(-0.012, 0.012) * (1 - y)
    whorls = generator.uniform(13, 18)
    spread = generator.uniform(0.15, 0.21)
    # Branches droop: their saw tooth is shifted down with the distance from the stem.
    droop = np.abs(x) * generator.uniform(5, 9)
    offset = generator.uniform(0, 1) + np.where(x < 0, 0, 0.5 * generator.uniform(0.3, 1))
    branch = (y * whorls - droop + offset) % 1.0
    noise = power_noise(int(generator.integers(1 << 30)), 128, 0.9)[:, :width]
    outline = spread * (0.05 + y**0.85) * (1 - 0.25 * smoothstep(0.88, 1.0, y))
    radius = outline * (0.62 + 0.46 * branch**1.3 + 0.20 * noise)
    radius = np.where(y < 0.05, 0.010, radius)
    cover = smoothstep(0.012, -0.012, np.abs(x) - radius)
    gap = smoothstep(0.35, 0.1, branch) * smoothstep(0.3, 0.9, np.abs(x) / np.maximum(radius, 1e-4))
    cover = np.maximum(cover * (1 - 0.55 * gap), (np.abs(x) < 0.012) & (y > 0.9))
    light = 0.5 - 0.62 * x / np.maximum(outline, 0.02) + 0.25 * (branch - 0.5) + 0.30 * noise
    light = cover * np.clip(light, 0.02, 1.3)
    return (
        Image.fromarray(cover.astype(np.float32)),
        Image.fromarray(light.astype(np.float32)),
    )
