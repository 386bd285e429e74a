"""Triangle meshes of near things, and the z-buffer that draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osp_cli.procedural.lakeside.fields import Array, unit


@dataclass(frozen=True, slots=True)
class Mesh:
    """Triangles; the arrays but the last hold one row per vertex.

    Attributes:
        position: `(vertices, 3)`.
        normal: `(vertices, 3)`, unit length.
        texture: `(vertices, 3)`: along the grain, across it, number of the piece.
        material: `(vertices,)`.
        faces: `(triangles, 3)` vertex numbers.
    """

    position: Array
    normal: Array
    texture: Array
    material: NDArray[np.int32]
    faces: NDArray[np.int64]


class MeshBuilder:
    """Collects sheets, boxes and tubes into one mesh."""

    def __init__(self) -> None:
        self._parts: list[tuple[Any, Any, Any, Any, Any]] = []
        self._count = 0

    def build(self) -> Mesh:
        """The mesh of everything added so far."""
        return Mesh(*(np.concatenate(arrays) for arrays in zip(*self._parts, strict=True)))

    def add(self, position: Any, normal: Any, texture: Any, material: int, faces: Any) -> None:
        """Triangles given by their vertices."""
        position = np.asarray(position, np.float32).reshape(-1, 3)
        self._parts.append(
            (
                position,
                unit(np.asarray(normal, np.float32).reshape(-1, 3)),
                np.asarray(texture, np.float32).reshape(-1, 3),
                np.full(len(position), material, np.int32),
                np.asarray(faces, np.int64).reshape(-1, 3) + self._count,
            )
        )
        self._count += len(position)

    def sheet(self, position: Any, normal: Any, texture: Any, material: int) -> None:
        """A curved sheet of quads from arrays `(rows, columns, 3)`."""
        rows, columns = position.shape[:2]
        index = np.arange(rows * columns).reshape(rows, columns)
        a, b = index[:-1, :-1].ravel(), index[:-1, 1:].ravel()
        c, d = index[1:, :-1].ravel(), index[1:, 1:].ravel()
        faces = np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])
        self.add(position, normal, texture, material, faces)

    def box(self, centre: Any, axes: Any, half: Any, material: int, piece: float) -> None:
        """A box; the rows of `axes` are its directions, the first one along the grain."""
        axes = np.asarray(axes, np.float32)
        for axis in range(3):
            u, v = (other for other in range(3) if other != axis)
            for side in (-1, 1):
                corners = np.zeros((4, 3), np.float32)
                corners[:, axis] = side * half[axis]
                corners[:, u] = np.array([-1, 1, 1, -1]) * half[u]
                corners[:, v] = np.array([-1, -1, 1, 1]) * half[v]
                along = corners[:, 0] + piece * 7.31
                across = corners[:, 1] + corners[:, 2] + piece * 3.17
                texture = np.stack([along, across, np.full(4, piece)], 1)
                normal = np.repeat((axes[axis] * side)[None], 4, 0)
                position = np.asarray(centre, np.float32) + corners @ axes
                self.add(position, normal, texture, material, [[0, 1, 2], [0, 2, 3]])

    def tube(self, path: Any, radius: Any, material: int, sides: int, piece: float) -> None:
        """A round bar along a line of points, closed at both ends."""
        path = np.asarray(path, np.float32)
        count = len(path)
        radius = np.broadcast_to(np.asarray(radius, np.float32), (count,))
        along = unit(np.gradient(path, axis=0))
        reference = [0, 0, 1] if abs(along[0, 2]) < 0.9 else [1, 0, 0]
        first = unit(np.cross(along, np.asarray(reference, np.float32)))
        second = np.cross(along, first)
        turn = np.linspace(0, 2 * np.pi, sides + 1, dtype=np.float32)
        normal = first[:, None] * np.cos(turn)[None, :, None]
        normal = normal + second[:, None] * np.sin(turn)[None, :, None]
        position = path[:, None] + normal * radius[:, None, None]
        walked = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
        around = turn[None] * float(radius.mean())
        texture = np.stack(np.broadcast_arrays(walked[:, None], around, np.float32(piece)), -1)
        self.sheet(position, normal, texture, material)
        for end, side in ((0, -1), (-1, 1)):
            rim = position[end, :-1]
            faces = [[0, 1 + k, 1 + (k + 1) % sides] for k in range(sides)]
            rings = np.stack([np.cos(turn[:-1]) * 0.1, np.sin(turn[:-1]) * 0.1], 1)
            flat = np.concatenate([np.zeros((1, 2), np.float32), rings])
            texture = np.concatenate([flat, np.full((sides + 1, 1), piece)], 1)
            cap = np.repeat((along[end] * side)[None], sides + 1, 0)
            self.add(np.concatenate([path[end][None], rim]), cap, texture, material, faces)


@dataclass(frozen=True, slots=True)
class Fragments:
    """The nearest triangle of each pixel.

    Attributes:
        face: its number, -1 where there is none.
        second: weight of its second vertex; the first one has what is left.
        third: weight of its third vertex.
        nearness: as given for the vertices, 0 where there is no triangle.
    """

    face: NDArray[np.int32]
    second: Array
    third: Array
    nearness: Array


def rasterise(
    x: Array,
    y: Array,
    nearness: Array,
    faces: NDArray[np.int64],
    width: int,
    height: int,
    *,
    level: Array | None = None,
) -> Fragments:
    """Draw triangles into a z-buffer.

    Args:
        x: columns of the vertices, in pixels.
        y: rows of the vertices, in pixels.
        nearness: of the vertices, a positive number that varies linearly over the picture: one
            over the depth with a camera, and the weights are right for that; for parallel rays
            anything that falls with the distance, and only the nearness is right.
        faces: vertex numbers, `(triangles, 3)`; triangles behind the camera are left out.
        width: of the buffer.
        height: of the buffer.
        level: a number per vertex; parts of triangles where it is negative are cut away.
    """
    levels = np.ones(faces.shape, np.float32) if level is None else level[faces]
    face = np.full((height, width), -1, np.int32)
    second, third, nearest = (np.zeros((height, width), np.float32) for _ in range(3))
    xs, ys, near = x[faces], y[faces], nearness[faces]
    left, right = _pixel_range(xs, width)
    top, bottom = _pixel_range(ys, height)
    area = (xs[:, 1] - xs[:, 0]) * (ys[:, 2] - ys[:, 0])
    area = area - (xs[:, 2] - xs[:, 0]) * (ys[:, 1] - ys[:, 0])
    drawn = (right > left) & (bottom > top) & (np.abs(area) > 1e-9) & (near.min(1) > 0)
    for index in np.nonzero(drawn)[0]:
        window = (slice(top[index], bottom[index]), slice(left[index], right[index]))
        across = np.arange(left[index], right[index], dtype=np.float32) + 0.5 - xs[index, 0]
        down = np.arange(top[index], bottom[index], dtype=np.float32)[:, None] + 0.5 - ys[index, 0]
        (x1, x2), (y1, y2) = xs[index, 1:] - xs[index, 0], ys[index, 1:] - ys[index, 0]
        w1 = (across * y2 - x2 * down) / area[index]
        w2 = (x1 * down - across * y1) / area[index]
        w0 = 1 - w1 - w2
        n0, n1, n2 = near[index]
        here = w0 * n0 + w1 * n1 + w2 * n2
        wins = (w0 >= -1e-6) & (w1 >= -1e-6) & (w2 >= -1e-6) & (here > nearest[window])
        if levels[index].min() < 0:
            l0, l1, l2 = levels[index] * near[index]
            wins &= w0 * l0 + w1 * l1 + w2 * l2 >= 0
        if wins.any():
            here = here[wins]
            face[window][wins] = index
            nearest[window][wins] = here
            second[window][wins] = w1[wins] * n1 / here
            third[window][wins] = w2[wins] * n2 / here
    return Fragments(face, second, third, nearest)


def _pixel_range(corners: Array, limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # Clipped before the conversion: a vertex beside the camera projects to anywhere.
    first = np.clip(np.floor(corners.min(1) - 0.5), 0, limit).astype(np.int64)
    last = np.clip(np.ceil(corners.max(1) + 0.5), 0, limit).astype(np.int64)
    return first, last
