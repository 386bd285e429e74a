"""Renders the example picture, `presets/examples/lake.jpg`: a boat on a mountain lake.

    python -m osp_cli.procedural.example_photo OUT.jpg

Plain numpy on one core, about a minute; every run gives the same picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from osp_cli.procedural.lakeside.fields import Array
from osp_cli.procedural.lakeside.film import develop
from osp_cli.procedural.lakeside.forest import Forest
from osp_cli.procedural.lakeside.land import render_land
from osp_cli.procedural.lakeside.props import build_props
from osp_cli.procedural.lakeside.shading import ShadowMap, averaged, render_props
from osp_cli.procedural.lakeside.terrain import Land, height_field
from osp_cli.procedural.lakeside.view import View
from osp_cli.procedural.lakeside.water import render_water


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """How much work goes into a picture.

    Attributes:
        coarse_cells: side of the grid on which the mountains erode.
        fine_cells: side of the grid that is drawn.
        erosion_steps: of uplift and erosion.
        trees: places where one may stand.
        supersampling: samples per pixel in each direction.
        depth_steps: distances at which the terrain is probed.
    """

    coarse_cells: int = 256
    fine_cells: int = 2048
    erosion_steps: int = 60
    trees: int = 180_000
    supersampling: int = 2
    depth_steps: int = 1500


def render(view: View | None = None, detail: Detail | None = None) -> NDArray[np.uint8]:
    """The example picture, uint8 RGB `(height, width, 3)`; 1344x768 in full detail by default."""
    view, detail = view or View(), detail or Detail()
    land = Land(height_field(detail.coarse_cells, detail.fine_cells, detail.erosion_steps))
    forest = Forest(land, detail.trees)
    props = build_props()
    shadows = ShadowMap(props)

    def scene(supersampling: int, *, mirrored: bool) -> tuple[Array, Array]:
        radiance, depth = render_land(
            land, view, supersampling, mirrored=mirrored, steps=detail.depth_steps
        )
        forest.paste(radiance, depth, view, supersampling, mirrored=mirrored)
        return radiance, depth

    # First what the water mirrors; ripples blur it, so that one sample per pixel is enough.
    mirror, _ = scene(1, mirrored=True)
    things, coverage = render_props(props, shadows, view, 2, mirrored=True)
    mirror = mirror * (1 - coverage[..., None]) + things

    samples = detail.supersampling
    radiance, depth = scene(samples, mirrored=False)
    shore = int(view.horizon) * samples
    below = radiance[shore:]
    open_water = ~np.isfinite(depth[shore:])
    below[open_water] = render_water(mirror, view, samples)[open_water]
    picture = averaged(radiance, samples)
    things, coverage = render_props(props, shadows, view, samples)
    return develop(picture * (1 - coverage[..., None]) + things)


def main(arguments: Sequence[str] | None = None) -> None:
    """Render the picture into the JPEG file named on the command line."""
    parser = argparse.ArgumentParser(description="Render the example picture.")
    parser.add_argument("output", type=Path, help="JPEG file to write")
    output = parser.parse_args(arguments).output
    Image.fromarray(render()).save(output, "JPEG", quality=90, optimize=True, subsampling=0)


if __name__ == "__main__":
    main()
