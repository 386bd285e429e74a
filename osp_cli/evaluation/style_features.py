"""What became of a photo as some ninety numbers: colour, line, grain, grids, frame.

Made by hand and not learnt, so that whoever judges by them has not seen what the model was taught
with. None of them tells what the picture shows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from osp_cli.evaluation.metrics import Frames

Plane = NDArray[np.floating]
# Of grids that styles draw on the screen, in pixels.
_PERIODS = (8, 16)


def changes_of(photo: Frames) -> Callable[[Frames], NDArray[np.float64]]:
    """A function from pictures made of a photo to what sets them apart from it.

    The photo's own numbers are taken away: a dark photo in any style is dark, and only what became
    of it tells the style. The camera may have moved by a few pixels in between.

    Args:
        photo: `(height, width, 3)` uint8, as the pictures will be.
    """
    before, cells = style_features(photo), _cell_colours(photo)
    return lambda image: np.concatenate(
        [style_features(image) - before, _recolouring(_cell_colours(image), cells)]
    )


def style_features(image: Frames) -> NDArray[np.float64]:
    """The numbers of one picture, `(height, width, 3)` uint8; the same count for any size."""
    rgb = image.astype(np.float32) / 255
    luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    parts = [_colours(rgb, luma), _lines(luma), _grids(luma), _layout(rgb, luma)]
    return np.concatenate([np.asarray(part, np.float64) for part in parts])


def _recolouring(after: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine map of colours that is nearest to what was done, what it leaves, and the tones."""
    known = np.concatenate([before, np.ones((len(before), 1))], 1)
    # A little ridge: a photo may have hardly any colour to map.
    square = known.T @ known + np.diag([0.02, 0.02, 0.02, 0]) * len(before)
    found = np.linalg.solve(square, known.T @ after)
    left = np.sqrt(((after - known @ found) ** 2).mean(0))
    order = np.argsort(before.mean(1), kind="stable")
    tones = [after[part].mean(0) - before[part].mean(0) for part in np.array_split(order, 5)]
    return np.concatenate([found.reshape(-1), left, *tones])


def _cell_colours(image: Frames) -> NDArray[np.float64]:
    """Mean colour of each cell of 8 pixels, `(cells, 3)` in [0, 1]."""
    height, width = (side - side % 8 for side in image.shape[:2])
    cells = image[:height, :width].reshape(height // 8, 8, width // 8, 8, 3)
    return np.asarray(cells.mean((1, 3), dtype=np.float64)).reshape(-1, 3) / 255


def _colours(rgb: Plane, luma: Plane) -> list[float]:
    """Moments, percentiles, and which colour the darks, middles and lights have."""
    # Every fourth pixel says as much of colours as all of them.
    flat, luma = rgb[::2, ::2].reshape(-1, 3), luma[::2, ::2]
    mean, spread = flat.mean(0), flat.std(0) + 1e-3
    skew = (((flat - mean) / spread) ** 3).mean(0)
    saturation = flat.max(1) - flat.min(1)
    found = [*mean, *spread, *skew, saturation.mean(), saturation.std()]
    found += list(np.percentile(luma, (2, 10, 25, 50, 75, 90, 98)))
    grey = luma.reshape(-1)
    lower, upper = np.percentile(grey, (33, 67))
    for chosen in (grey <= lower, (grey > lower) & (grey < upper), grey >= upper):
        tone = flat[chosen].mean(0) if chosen.any() else mean
        found += [*(tone - tone.mean()), tone.mean()]
    centred = (flat - mean) / spread
    found += [float((centred[:, a] * centred[:, b]).mean()) for a, b in ((0, 1), (0, 2), (1, 2))]
    # How many colours there are, coarsely.
    cells = (flat * 7.999).astype(np.int64) @ np.array([64, 8, 1])
    shares = np.bincount(cells, minlength=512) / cells.size
    found.append(float(-(shares * np.log(shares + 1e-9)).sum()))
    return [float(value) for value in found]


def _lines(luma: Plane) -> list[float]:
    """Gradients from fine to coarse, dark lines and bright ones, and how much lies flat."""
    from scipy.ndimage import gaussian_filter

    found = []
    for sigma in (0.0, 1.0, 2.0, 4.0):
        smooth = gaussian_filter(luma, sigma) if sigma else luma
        gy, gx = np.gradient(smooth)
        size = np.hypot(gx, gy)
        mean = float(size.mean()) + 1e-4
        found += [np.log(mean), size.std() / mean, float((size < 0.006).mean())]
        # Brush strokes and scan lines have a direction.
        found.append(np.log((np.abs(gx).mean() + 1e-4) / (np.abs(gy).mean() + 1e-4)))
    for sigma in (1.0, 2.0):
        line = gaussian_filter(luma, sigma * 1.6) - gaussian_filter(luma, sigma)
        dark, light = np.clip(line, 0, None), np.clip(-line, 0, None)
        found += [np.log(dark.mean() + 1e-4), np.log((dark.mean() + 1e-4) / (light.mean() + 1e-4))]
        found.append(float(np.percentile(dark, 99)) / (float(dark.mean()) + 1e-3))
    return [float(value) for value in found]


def _grids(luma: Plane) -> list[float]:
    """What repeats every 8 or 16 pixels of the screen, along rows, along columns, and in tiles."""
    height, width = luma.shape
    found: list[float] = []
    for period in _PERIODS:
        tall, wide = height - height % period, width - width % period
        across = np.abs(np.diff(luma, axis=1, append=luma[:, -1:])).mean(0)[:wide]
        down = np.abs(np.diff(luma, axis=0, append=luma[-1:])).mean(1)[:tall]
        rows = luma.mean(1)[:tall]
        for profile in (across, down):
            folded = profile.reshape(-1, period).mean(0)
            found.append(folded.std() / (folded.mean() + 1e-4))
        # Local means away, so that a sky above a meadow is no scan line.
        cells = rows.reshape(-1, period)
        found.append((cells - cells.mean(1, keepdims=True)).mean(0).std() * 20)
        tiles = luma[:tall, :wide].reshape(tall // period, period, wide // period, period)
        tiles = tiles - tiles.mean((1, 3), keepdims=True)
        shared = tiles.mean((0, 2))
        found += [shared.std() * 20, shared.std() / (tiles.std() + 1e-3)]
    return [float(value) for value in found]


def _layout(rgb: Plane, luma: Plane) -> list[float]:
    """Borders and corners against the middle: paper, vignettes, blinds."""
    height, width = luma.shape
    y = np.abs(np.linspace(-1, 1, height))[:, None]
    x = np.abs(np.linspace(-1, 1, width))[None]
    rim = np.maximum(np.broadcast_to(y, luma.shape), np.broadcast_to(x, luma.shape))
    middle = rgb[rim < 0.6].mean(0)
    border = rgb[rim > 0.94].mean(0)
    corners = rgb[np.hypot(y, x) > 1.15].mean(0)
    spread = luma[rim > 0.94].std()
    return [float(value) for value in (*(border - middle), *(corners - middle), spread)]
