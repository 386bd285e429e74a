"""The mountains: a landscape uplifted and carved by its own rivers, as real ones are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from osp_cli.procedural.lakeside.fields import (
    Array,
    fbm,
    mix,
    power_noise,
    ridged,
    sample,
    smoothstep,
)
from osp_cli.procedural.lakeside.view import SUN

EXTENT = 9000.0  # side of the square of land: x from -4500 to 4500, z from 0 to 9000


def shore_distance(x: Array, z: Array) -> Array:
    """Distance inland from the water's edge in metres, negative on the lake; only roughly true."""
    wobble = fbm(x / 180, z / 180, 3, seed=40) * 45 + fbm(x / 700, z / 700, 2, seed=45) * 60
    left = 215 - 70 * smoothstep(150, 420, z)
    right = 300 - 60 * smoothstep(400, 800, z)
    side = np.abs(x) - np.where(x < 0, left, right)
    far = z - (820 + 0.12 * x)
    # The larger one of both, with the corner rounded over 60 m.
    rounding = 15 * np.maximum(0, 1 - np.abs(side - far) / 60) ** 2
    return np.maximum(side, far) + rounding + wobble


def height_field(coarse_cells: int, fine_cells: int, steps: int) -> Array:
    """Heights above the water, `(fine_cells, fine_cells)`, row = z, column = x; -0.5 in the lake.

    Args:
        coarse_cells: side of the grid that is eroded.
        fine_cells: side of the result.
        steps: of uplift and erosion; sixty are enough for the rivers to settle.
    """
    x, z = _coordinates(coarse_cells)
    inland = shore_distance(x, z)
    lake = inland < 0
    start = np.where(lake, 0, 2 + 3 * np.abs(power_noise(3, coarse_cells, 1.5)))
    # Steepest slope that rock of this strength can hold.
    talus = np.clip(1.1 + 0.3 * power_noise(5, coarse_cells, 1.6), 0.6, 1.8)
    eroded = _erode(start, _uplift(x, z, inland), talus, lake, EXTENT / coarse_cells, steps)
    return _refine((eroded * 1.4).astype(np.float32), fine_cells)


def _coordinates(cells: int) -> tuple[Array, Array]:
    middle = ((np.arange(cells) + 0.5) * (EXTENT / cells)).astype(np.float32)
    x, z = np.meshgrid(middle - EXTENT / 2, middle)
    return x, z


def _uplift(x: Array, z: Array, inland: Array) -> Array:
    """Metres by which the ground rises per step."""

    def massif(cx: float, cz: float, rx: float, rz: float, rate: float, turn: float = 0) -> Array:
        c, s = math.cos(turn), math.sin(turn)
        along = ((x - cx) * c + (z - cz) * s) / rx
        across = ((z - cz) * c - (x - cx) * s) / rz
        return rate * np.exp(-(along**2 + across**2))

    rate = 1.2 * smoothstep(0, 1200, inland)
    rate += massif(-2100, 3300, 1100, 1700, 17, 0.25) + massif(2300, 3500, 1000, 1900, 15, -0.2)
    rate += massif(350, 6900, 1700, 1000, 29) + massif(750, 6200, 620, 700, 20)
    rate += massif(-1500, 7300, 1500, 1000, 20) + massif(2600, 7000, 1500, 1100, 18)
    rate += massif(-900, 1500, 420, 600, 4.5) + massif(1050, 1700, 450, 700, 4.0)
    # A valley in the middle leaves the view open to the main summit.
    valley = np.exp(-(((x - 150 - 0.05 * z) / (330 + 0.06 * z)) ** 2))
    rate *= 1 - 0.75 * valley * (1 - smoothstep(4200, 6200, z))
    rate *= 1 + 0.35 * fbm(x / 900, z / 900, 3, seed=60)
    return np.maximum(rate * 1.9, 0)


def _erode(
    start: Array, uplift: Array, talus: Array, lake: NDArray[np.bool_], cell: float, steps: int
) -> NDArray[np.float64]:
    """Stream-power erosion, solved implicitly from the rivers' mouths upwards.

    Each cell drains to its lowest neighbour; it is lowered towards that neighbour the faster the
    more land drains through it (dh/dt = uplift - 0.3 area^0.46 slope), and slopes beyond `talus`
    slide down. Valleys, ridges and spurs follow from that alone.
    """
    height = start.astype(np.float64)
    rows, columns = height.shape
    count = rows * columns
    row, column = np.mgrid[0:rows, 0:columns]
    fixed = lake.ravel().tolist()
    rise = np.where(lake, 0, uplift).ravel()
    for _ in range(steps):
        padded = np.pad(height, 1, mode="edge")
        steepest = np.zeros_like(height)
        receiver = row * columns + column
        distance = np.full_like(height, cell)
        for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
            length = cell * math.hypot(dy, dx)
            there = padded[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]
            slope = (height - there) / length
            better = slope > steepest
            steepest = np.where(better, slope, steepest)
            neighbour = np.clip(row + dy, 0, rows - 1) * columns
            neighbour = neighbour + np.clip(column + dx, 0, columns - 1)
            receiver = np.where(better, neighbour, receiver)
            distance = np.where(better, length, distance)
        flat = height.ravel()
        # Plain lists: the order matters, one cell after the other, and numpy is slow at that.
        downwards = np.argsort(-flat, kind="stable").tolist()
        to = receiver.ravel().tolist()
        area = [cell * cell] * count
        for here in downwards:
            if to[here] != here:
                area[to[here]] += area[here]
        strength = (0.30 * np.asarray(area) ** 0.46 / distance.ravel()).tolist()
        drop = (talus * distance).ravel().tolist()
        risen = (flat + rise).tolist()
        for here in reversed(downwards):
            if to[here] == here or fixed[here]:
                continue
            below, level = risen[to[here]], risen[here]
            if level > below:
                level = (level + strength[here] * below) / (1 + strength[here])
            risen[here] = min(level, below + drop[here])
        height = np.asarray(risen).reshape(rows, columns)
    return height


def _refine(coarse: Array, cells: int) -> Array:
    """Enlarge the eroded grid and add the crests and bumps that are too small for it."""
    cell = EXTENT / cells
    smooth = resized(coarse, cells)
    slope_z, slope_x = np.gradient(smooth, cell)
    steep = np.hypot(slope_x, slope_z).astype(np.float32)
    height = np.full((cells, cells), -0.5, np.float32)
    x, z = _coordinates(cells)
    # The camera sees a wedge; the rest only casts shadows from the left.
    seen = (np.abs(x) < 0.6 * z + 350) | ((x < 0) & (x > -0.8 * z - 900))
    x, z = x[seen], z[seen]
    inland = shore_distance(x, z)
    # Shifted to and fro, so that the cells of the coarse grid do not show.
    shift_x = fbm(x / 140, z / 140, 3, seed=70) * 26
    shift_z = fbm(x / 140, z / 140, 3, seed=75) * 26
    land = Land.look_up(smooth, x + shift_x, z + shift_z)
    rough = smoothstep(20, 500, land) * (0.35 + 0.65 * smoothstep(0.25, 0.9, steep[seen]))
    land = land + rough * (ridged(x / 260, z / 260, 6, seed=80) - 0.9) * 62
    land += smoothstep(3, 60, land) * fbm(x / 60, z / 60, 4, seed=90) * 3
    shore = np.maximum(land, 0) + np.clip(inland, 0, 60) * 0.06
    height[seen] = np.where(inland < 0, np.minimum(-0.5, inland * 0.05), shore)
    height[~seen] = smooth[~seen]
    return height


def resized(grid: Array, cells: int) -> Array:
    """A square grid at another resolution."""
    method = Image.Resampling.BICUBIC if cells > len(grid) else Image.Resampling.BOX
    return np.asarray(Image.fromarray(grid).resize((cells, cells), method), np.float32)


class Land:
    """Heights with what follows from them: slopes, sunlight, openness to the sky."""

    def __init__(self, height: Array) -> None:
        cells = len(height)
        slope_z, slope_x = np.gradient(height, EXTENT / cells)
        self.height = height
        self.slope_x, self.slope_z = slope_x.astype(np.float32), slope_z.astype(np.float32)
        coarse = resized(height, max(1, cells // 4))
        self.sunlight = np.clip(resized(_sunlight(coarse), cells), 0, 1)
        # Higher than the surroundings is open to the sky, lower is not.
        self.openness = np.clip(
            0.72 + (height - resized(_blurred(coarse, 88), cells)) / 260, 0.35, 1.1
        )

    @staticmethod
    def look_up(grid: Array, x: Array, z: Array) -> Array:
        """Value of a grid at points of the ground, the border's beyond it."""
        cells = len(grid)
        column = np.clip((x + EXTENT / 2) * (cells / EXTENT) - 0.5, 0, cells - 1.01)
        row = np.clip(z * (cells / EXTENT) - 0.5, 0, cells - 1.01)
        return sample(grid, column, row)


def _blurred(grid: Array, metres: float) -> Array:
    cells = len(grid)
    sigma = metres * cells / EXTENT
    frequency = np.fft.fftfreq(cells)[:, None] ** 2 + np.fft.rfftfreq(cells)[None] ** 2
    spectrum = np.fft.rfft2(grid) * np.exp(-2 * (np.pi * sigma) ** 2 * frequency)
    return np.fft.irfft2(spectrum, s=grid.shape).astype(np.float32)


def _sunlight(height: Array) -> Array:
    """Share of the sun that each cell sees, 0 to 1, by walking towards the sun."""
    cells = len(height)
    cell = EXTENT / cells
    flat = math.hypot(SUN[0], SUN[2])
    step_x, step_z, rise = float(SUN[0]) / flat, float(SUN[2]) / flat, float(SUN[1]) / flat
    index = np.arange(cells, dtype=np.float32)
    column, row = np.meshgrid(index, index)
    lit = np.ones_like(height)
    walked = 1.5
    while walked * cell * rise < height.max():
        there = sample(
            height,
            np.clip(column + step_x * walked, 0, cells - 1.01),
            np.clip(row + step_z * walked, 0, cells - 1.01),
        )
        # The sun is a disc: its edge is softer the further away the ridge.
        clearance = (height + walked * cell * rise - there) / (0.02 * walked * cell + 2)
        lit = np.minimum(lit, mix(0.5, 1.0, np.clip(clearance, -1, 1)))
        walked = walked * 1.045 + 0.6
    return lit
