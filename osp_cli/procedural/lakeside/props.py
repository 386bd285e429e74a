"""The things by the shore: a rowing boat, the jetty it is moored to, reeds."""

from __future__ import annotations

import enum
import math

import numpy as np

from osp_cli.procedural.lakeside.fields import Array, unit
from osp_cli.procedural.lakeside.mesh import Mesh, MeshBuilder


class Material(enum.IntEnum):
    """What a surface is made of."""

    HULL = 0
    LINING = 1
    SEAT = 2
    TRIM = 3
    OAR = 4
    DECK = 5
    POST = 6
    ROPE = 7
    REED = 8


def build_props() -> Mesh:
    """Everything within a stone's throw of the camera."""
    generator = np.random.default_rng(11)
    builder = MeshBuilder()
    boat = _Boat(builder, np.array([-1.45, 0.0, 11.1]), math.radians(14))
    boat.add()
    post = _add_jetty(builder, generator)
    _add_rope(builder, boat.bow(), post + np.array([-0.09, -0.16, 0]), slack=0.16)
    _add_coil(builder, post)
    _add_reeds(builder, generator)
    return builder.build()


class _Boat:
    """A rowing boat of 4.4 m. Its own axes: x towards the bow, y up, z across."""

    half_length = 2.2

    def __init__(self, builder: MeshBuilder, centre: Array, heading: float) -> None:
        self._builder = builder
        self._centre = centre
        c, s = math.cos(heading), math.sin(heading)
        self._turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        self._station = np.linspace(-1, 1, 72)

    @staticmethod
    def _beam(s: Array) -> Array:
        """Half the width at the rail, by station from -1 (stern) to 1 (bow)."""
        fore = (1 - np.clip((s + 0.15) / 1.15, 0, 1) ** 2.3) ** 0.85
        aft = 1 - 0.34 * np.clip((-0.15 - s) / 0.85, 0, 1) ** 1.8
        return 0.74 * np.where(s > -0.15, fore, aft)

    @staticmethod
    def _sheer(s: Array) -> Array:
        """Height of the rail above the water."""
        return 0.40 + 0.26 * np.clip(s, 0, 1) ** 2.2 + 0.09 * np.clip(-s, 0, 1) ** 2

    @staticmethod
    def _keel(s: Array) -> Array:
        fore = 0.50 * np.clip((s - 0.55) / 0.45, 0, 1) ** 2.6
        return -0.14 + fore + 0.05 * np.clip(-s, 0, 1) ** 2

    def bow(self) -> Array:
        """Where the rope is made fast."""
        end = np.array(1.0)
        return self._placed(np.array([self.half_length + 0.12, float(self._sheer(end)), 0]))

    def add(self) -> None:
        """Put all parts of the boat into the mesh."""
        hull, lining = self._shell(0.0), self._shell(0.035)
        height = np.broadcast_to(np.linspace(0, 1, hull.shape[1])[None], hull.shape[:2])
        along = np.broadcast_to((self._station * self.half_length)[:, None], hull.shape[:2])
        texture = np.stack([along, height, np.zeros_like(height)], -1)
        for side in (1, -1):
            flip = np.array([1, 1, side])
            for shell, outwards, material in (
                (hull, 1, Material.HULL),
                (lining, -1, Material.LINING),
            ):
                normal = _sheet_normals(shell) * outwards
                self._sheet(shell * flip, normal * flip, texture, material)
            self._add_rail(hull[:, -1], flip)
        self._add_transom(hull[0], -1, Material.HULL, 0.0)
        self._add_transom(lining[0], 1, Material.LINING, 0.03)
        self._add_fittings()
        self._add_oars()

    def _placed(self, points: Array) -> Array:
        return points @ self._turn + self._centre

    def _sheet(self, points: Array, normals: Array, texture: Array, material: Material) -> None:
        self._builder.sheet(self._placed(points), normals @ self._turn, texture, material)

    def _shell(self, inset: float) -> Array:
        """One side of the hull, from keel to rail, `(stations, 15, 3)`."""
        s = self._station
        t = np.linspace(0, 1, 15)[None]
        beam = np.maximum(self._beam(s) - inset, 0)[:, None]
        keel = (self._keel(s) + inset)[:, None]
        across = beam * np.sin(t * np.pi / 2) ** 0.75 * (0.80 + 0.20 * t)
        up = keel + (self._sheer(s)[:, None] - keel) * t**1.55
        # The stem rakes forward.
        rake = 0.16 * t**1.2 * np.clip(s, 0, 1)[:, None] ** 6
        along = (s * self.half_length)[:, None] + rake
        return np.stack([along, up, across], -1)

    def _add_rail(self, edge: Array, flip: Array) -> None:
        """A square strip along the upper edge of one side."""
        section = np.array(
            [[0, -0.035, 0.018], [0, 0.022, 0.018], [0, 0.022, -0.055], [0, -0.035, -0.055]]
        )
        # At the bow both rails meet: the strip narrows there.
        narrow = np.clip(edge[:, 2:] / 0.04, 0, 1)
        scale = np.concatenate([np.ones_like(narrow), np.ones_like(narrow), narrow], 1)
        along = np.broadcast_to((self._station * self.half_length)[:, None], (len(edge), 2))
        across = np.broadcast_to(np.array([[0, 0.05]]), along.shape)
        texture = np.stack([along, across, np.full(along.shape, 3.0)], -1)
        for corner in range(4):
            a, b = section[corner], section[(corner + 1) % 4]
            strip = np.stack([edge + a * scale, edge + b * scale], 1)
            outwards = np.array([0, a[2] - b[2], b[1] - a[1]])
            if outwards @ ((a + b) / 2 + np.array([0, 0.006, 0.018])) < 0:
                outwards = -outwards
            normal = np.broadcast_to(outwards, strip.shape) * flip
            self._sheet(strip * flip, normal, texture, Material.TRIM)

    def _add_transom(self, section: Array, facing: int, material: Material, inset: float) -> None:
        """The flat stern between both sides."""
        flat = np.stack([section * np.array([1, 1, -1]), section])
        flat[..., 0] = -self.half_length + inset
        height = np.broadcast_to(np.linspace(0, 1, section.shape[0])[None], flat.shape[:2])
        texture = np.stack([flat[..., 2], height, np.zeros_like(height)], -1)
        normal = np.broadcast_to(np.array([facing, 0.0, 0.0]), flat.shape)
        self._sheet(flat, normal, texture, material)

    def _add_fittings(self) -> None:
        along, up, across = self._turn
        athwart = np.stack([across, up, along])
        stern = self._placed(np.array([-self.half_length, 0.485, 0]))
        self._builder.box(stern, athwart, [0.50, 0.02, 0.035], Material.TRIM, 5)
        for number, (station, half) in enumerate(((-0.74, 0.20), (-0.12, 0.13), (0.42, 0.12))):
            reach = float(self._beam(np.array(station))) * 0.93 - 0.06
            centre = self._placed(np.array([station * self.half_length, 0.275, 0]))
            self._builder.box(centre, athwart, [reach, 0.014, half], Material.SEAT, 10 + number)
        for number in range(5):
            off = number - 2
            centre = self._placed(np.array([-0.1, 0.03, off * 0.15]))
            size = [1.35 - 0.10 * abs(off), 0.01, 0.066]
            self._builder.box(centre, self._turn, size, Material.SEAT, 20 + number)
        foredeck = np.array([1.86, float(self._sheer(np.array(0.86))), 0])
        self._builder.box(self._placed(foredeck), athwart, [0.17, 0.014, 0.13], Material.SEAT, 30)
        for side in (1, -1):
            rowlock = np.array([[-0.35, 0.40, side * 0.70], [-0.35, 0.50, side * 0.70]])
            self._builder.tube(self._placed(rowlock), 0.013, Material.ROPE, 6, 0)

    def _add_oars(self) -> None:
        """Two oars, laid over the seats."""
        t = np.linspace(0, 1, 20)
        radius = np.interp(t, [0, 0.06, 0.1, 0.8, 1], [0.018, 0.018, 0.026, 0.024, 0.020])
        for number, (z, splay) in enumerate(((0.24, -0.10), (-0.24, 0.09))):
            handle, neck = np.array([-1.75, 0.315, z]), np.array([1.30, 0.43, z + splay])
            path = handle + (neck - handle) * t[:, None]
            self._builder.tube(self._placed(path), radius, Material.OAR, 8, number)
            along = unit(neck - handle)
            axes = np.stack([along, np.array([0, 1, 0]), np.array([0, 0, 1])]) @ self._turn
            blade = self._placed(neck + along * 0.20)
            self._builder.box(blade, axes, [0.30, 0.010, 0.075], Material.OAR, 40 + number)


def _sheet_normals(points: Array) -> Array:
    """Normals of one side of the boat, pointing outwards (z > 0 amidships)."""
    normal = unit(np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1)))
    return normal if normal[len(normal) // 2, -1, 2] > 0 else -normal


def _add_jetty(builder: MeshBuilder, generator: np.random.Generator) -> Array:
    """Planks, beams and posts, leading away from the camera; returns the top of the end post."""
    left, right, deck, start, end = 1.62, 3.0, 0.50, 2.5, 13.4
    z, number = start, 0
    while z < end:
        width = 0.135 + generator.uniform(-0.006, 0.006)
        out_left, out_right = generator.uniform(-0.035, 0.035, 2)
        height = deck + generator.uniform(-0.006, 0.006)
        yaw, roll = generator.normal(0, 0.006, 2)
        axes = [[math.cos(yaw), roll, math.sin(yaw)], [-roll, 1, 0], [-math.sin(yaw), 0, 1]]
        centre = [(left + right + out_left + out_right) / 2, height, z + width / 2]
        half = [(right - left + out_right - out_left) / 2, 0.022, width / 2]
        builder.box(centre, axes, half, Material.DECK, number)
        number += 1
        z += width + 0.013 + abs(generator.normal(0, 0.003))
    for x in (left + 0.14, right - 0.14):
        middle = [x, deck - 0.12, (start + end) / 2]
        lengthwise = [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
        builder.box(middle, lengthwise, [(end - start) / 2, 0.09, 0.05], Material.DECK, 100 + x)
    tops = []
    for row, z in enumerate(np.arange(end - 0.25, 3, -2.35)):
        for column, x in enumerate((left - 0.06, right + 0.06)):
            above = 0.50 if row == 0 or column == 0 else 0.10
            top = deck + above + generator.uniform(-0.06, 0.06)
            lean = generator.normal(0, 0.02, 2)
            bottom = np.array([x, -1.2, z])
            path = bottom + (np.array([x + lean[0], top, z + lean[1]]) - bottom) * np.linspace(
                0, 1, 14
            ).reshape(-1, 1)
            radius = 0.083 + generator.uniform(-0.008, 0.010)
            builder.tube(path, radius, Material.POST, 16, row * 2 + column + 200)
            tops.append(path[-1])
    return tops[0]


def _add_rope(builder: MeshBuilder, start: Array, end: Array, slack: float) -> None:
    t = np.linspace(0, 1, 60)
    path = start + (end - start) * t[:, None]
    path[:, 1] -= slack * 4 * t * (1 - t)
    builder.tube(path, 0.013, Material.ROPE, 8, 0)


def _add_coil(builder: MeshBuilder, post: Array) -> None:
    turn = np.linspace(0, 8 * np.pi, 90)
    offset = [0.10 * np.cos(turn), 0.022 * turn / (2 * np.pi) - 0.20, 0.10 * np.sin(turn)]
    builder.tube(post + np.stack(offset, 1), 0.014, Material.ROPE, 8, 0)


def _add_reeds(builder: MeshBuilder, generator: np.random.Generator) -> None:
    clumps = (
        *((-4.05, 9.3, 120, 0.42), (-3.1, 8.2, 55, 0.26), (-5.9, 11.6, 90, 0.55)),
        *((-4.9, 8.6, 60, 0.30), (5.6, 11.2, 90, 0.45), (4.75, 9.6, 50, 0.25)),
    )
    t = np.linspace(0, 1, 9)
    for x, z, count, spread in clumps:
        for _ in range(count):
            foot = [x + generator.normal(0, spread), -0.1, z + generator.normal(0, spread * 0.8)]
            length = generator.uniform(0.55, 1.35) * (1.0 if spread > 0.4 else 0.85)
            lean_x, lean_z = generator.normal([0.10, 0], 0.16) * length
            droop = generator.uniform(0, 0.5) ** 2
            blade = np.stack(
                [
                    lean_x * t**1.8 * (1 + droop),
                    length * (t - droop * 0.55 * t**3),
                    lean_z * t**1.8,
                ],
                1,
            ) + np.array(foot)
            width = generator.uniform(0.0035, 0.008) * (1 - 0.95 * t**2.2)
            angle = generator.uniform(0, np.pi)
            across = np.array([math.cos(angle), 0, math.sin(angle) * 0.6])
            edge = across * width[:, None]
            normal = unit(np.cross(np.gradient(blade, axis=0), across))
            tone = generator.uniform(0, 1)
            texture = np.zeros((9, 2, 3))
            texture[..., 0], texture[..., 2] = t[:, None], tone
            sides = np.stack([blade - edge, blade + edge], 1)
            builder.sheet(sides, np.repeat(normal[:, None], 2, 1), texture, Material.REED)
