"""Where the camera stands, and the light. Metres; x to the right, y up from the water, z ahead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osp_cli.procedural.lakeside.fields import Array, colour, unit

EYE = 2.3

# From the left, a little behind the camera: shapes are modelled and colours are full.
SUN = unit([-0.78, 0.48, -0.36])
SUN_LIGHT = colour(1.0, 0.83, 0.62) * 3.3
SKY_LIGHT = colour(0.42, 0.60, 0.98) * 0.75


@dataclass(frozen=True, slots=True)
class View:
    """A picture of `width` x `height` pixels, 55 degrees wide, the camera held level."""

    width: int = 1344
    height: int = 768

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return 0.9606 * self.width

    @property
    def horizon(self) -> float:
        """Row of the horizon, counted from the top."""
        return 0.5273 * self.height

    def slopes(self, supersampling: int) -> tuple[Array, Array]:
        """Rise to the right and upwards of each pixel's ray per metre ahead, 1-D each."""
        columns = (np.arange(self.width * supersampling) + 0.5) / supersampling
        rows = (np.arange(self.height * supersampling) + 0.5) / supersampling
        right = (columns - self.width / 2) / self.focal
        up = (self.horizon - rows) / self.focal
        return right.astype(np.float32), up.astype(np.float32)


def directions(right: Array, up: Array) -> tuple[Array, Array, Array, Array]:
    """Unit vectors of rays with these rises, as x, y, z, and the length before scaling."""
    length = np.sqrt(1 + right * right + up * up)
    return right / length, up / length, 1 / length, length
