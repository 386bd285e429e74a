"""The thirteen styles as image operators: what the embedded model is taught to paint.

Each style has two parts. `paint` works on a canvas and therefore moves with the things in it:
colours, contours, brush marks. `screen` works on finished frames and stays put on the screen:
pixels, bricks, paper, brush relief, scan lines. Screen patterns repeat every 32 pixels, the side of
the embedded model's tokens, deliberately: a pattern that falls on the same place of every token is
one the codec and the model can keep sharp.

The operators are inspired by the looks that section 6.2 of the paper names; they redraw light,
line and colour, not characters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from osp_cli.procedural.noise import (
    coordinates,
    gaussian_blur,
    luminance,
    power_noise,
    saturate,
)

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class StyleOperator:
    """Two stages on `(batch, 3, height, width)` pictures in [0, 1]."""

    paint: Operator
    screen: Operator


def apply_style(name: str, images: Tensor) -> Tensor:
    """The finished look of still pictures, `(batch, 3, height, width)` in [0, 1].

    Raises:
        KeyError: no such style.
    """
    style = STYLE_OPERATORS[name]
    return style.screen(style.paint(images)).clamp(0.0, 1.0)


# --- building blocks -------------------------------------------------------------------------


def kuwahara(images: Tensor, radius: int) -> Tensor:
    """Edge-keeping smoothing: each pixel takes the calmest of its four corner windows."""
    size = radius + 1
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    grey = luminance(padded)
    stacked = torch.cat([padded, grey, grey * grey], 1)
    rows = F.avg_pool2d(stacked, (size, 1), stride=1)
    means = F.avg_pool2d(rows, (1, size), stride=1)
    height, width = images.shape[2:]
    corners = [
        means[:, :, dy : dy + height, dx : dx + width] for dy in (0, radius) for dx in (0, radius)
    ]
    best = corners[0]
    least = best[:, 4:5] - best[:, 3:4] ** 2
    for corner in corners[1:]:
        spread = corner[:, 4:5] - corner[:, 3:4] ** 2
        calmer = spread < least
        best = torch.where(calmer, corner, best)
        least = torch.where(calmer, spread, least)
    return best[:, :3]


def contours(images: Tensor, sigma: float, gain: float, threshold: float = 0.0) -> Tensor:
    """Ink lines by difference of Gaussians, 0 = no line, 1 = full line, `(batch, 1, h, w)`."""
    grey = luminance(images)
    difference = gaussian_blur(grey, sigma * 1.6) - gaussian_blur(grey, sigma)
    return ((difference - threshold) * gain).clamp(0.0, 1.0)


def edges(images: Tensor) -> Tensor:
    """Gradient magnitude of the luma, `(batch, 1, height, width)`."""
    grey = F.pad(luminance(images), (1, 1, 1, 1), mode="replicate")
    gx = grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]
    gy = grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]
    return torch.sqrt(gx**2 + gy**2 + 1e-8)


def posterise(images: Tensor, levels: int, softness: float = 0.15) -> Tensor:
    """Steps with slightly soft flanks; hard steps would ring in any codec."""
    scaled = images * (levels - 1)
    base = torch.floor(scaled)
    step = ((scaled - base - 0.5) / softness).clamp(-0.5, 0.5) + 0.5
    return (base + step) / (levels - 1)


def _colour(images: Tensor, rgb: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rgb, device=images.device, dtype=images.dtype).reshape(1, 3, 1, 1)


def _gradient_map(grey: Tensor, stops: list[tuple[float, tuple[float, float, float]]]) -> Tensor:
    """Replaces luma by a colour ramp."""
    result = (
        _colour(grey, stops[0][1]).expand(-1, -1, *grey.shape[2:]).expand(len(grey), -1, -1, -1)
    )
    for (low, _), (high, rgb) in pairwise(stops):
        weight = ((grey - low) / (high - low)).clamp(0.0, 1.0)
        result = result * (1 - weight) + _colour(grey, rgb) * weight
    return result


def _grain(images: Tensor, exponent: float, seed: int, angle: float | None = None) -> Tensor:
    """Paper and brush hair that do not flicker: a field of period `TILE`, `(1, 1, height, width)`,
    the same for every picture."""
    height, width = images.shape[2:]
    generator = torch.Generator(device=images.device).manual_seed(seed)
    tile = power_noise(generator, (1, TILE, TILE), exponent, angle)
    return tile.repeat(1, -(-height // TILE), -(-width // TILE))[:, None, :height, :width]


def _unchanged(images: Tensor) -> Tensor:
    return images


def _vignette(images: Tensor, strength: float, start: float = 0.5) -> Tensor:
    y, x = coordinates(images.shape[2], images.shape[3], images.device)
    radius = torch.sqrt(x**2 + y**2)
    return (1.0 - strength * ((radius - start) / (1.42 - start)).clamp(0.0, 1.0) ** 1.5)[None, None]


# --- animation -------------------------------------------------------------------------------


def _ghibli_paint(images: Tensor) -> Tensor:
    flat = kuwahara(kuwahara(images, 4), 3)
    flat = flat.clamp(1e-4, 1.0) ** 0.72
    flat = saturate(flat, 1.35)
    grey = luminance(flat)
    # Gouache landscape: lights lean to warm cream, darks to teal-green, never to black.
    flat = flat * _colour(flat, (1.0, 1.02, 0.96)) + (1 - grey) * _colour(flat, (0.02, 0.13, 0.12))
    flat = flat * 0.88 + _colour(flat, (0.08, 0.09, 0.06))
    # Summer skies: what is light and high up turns azure.
    y, _ = coordinates(images.shape[2], images.shape[3], images.device)
    sky = torch.sigmoid(-(y + 0.1) * 6)[None, None] * torch.sigmoid((grey - 0.6) * 14)
    flat = flat * (1 - 0.4 * sky) + _colour(flat, (0.42, 0.74, 0.97)) * 0.4 * sky
    line = contours(images, 1.4, 13.0, 0.012)
    return (flat * (1 - 0.6 * line) + _colour(flat, (0.29, 0.2, 0.13)) * 0.6 * line).clamp(0, 1)


def _disney_paint(images: Tensor) -> Tensor:
    flat = saturate(kuwahara(images, 3), 1.9).clamp(0, 1)
    curve = flat * flat * (3 - 2 * flat)
    curve = curve * _colour(flat, (1.08, 1.0, 0.9)) + _colour(flat, (0.03, 0.01, 0.05))
    glow = gaussian_blur((curve - 0.55).clamp_min(0.0), 7.0)
    lit = curve + glow * _colour(flat, (1.9, 1.35, 0.6))
    rim = gaussian_blur(edges(flat), 1.5)
    return (lit + rim * _colour(flat, (0.35, 0.22, 0.05))).clamp(0, 1)


def _chibi_paint(images: Tensor) -> Tensor:
    flat = kuwahara(kuwahara(images, 6), 4)
    grey = luminance(flat)
    stepped = posterise(grey.clamp(0, 1) ** 0.8, 4)
    candy = saturate(flat / (grey + 0.12) * (stepped + 0.1) * 0.9, 2.1)
    candy = candy * 0.72 + _colour(flat, (1.0, 0.72, 0.82)) * 0.3
    line = contours(gaussian_blur(images, 1.5), 2.4, 30.0, 0.008)
    return (candy * (1 - line) + _colour(flat, (0.28, 0.06, 0.2)) * line).clamp(0, 1)


def _chibi_screen(images: Tensor) -> Tensor:
    """Screentone: dots that grow in the shadows, as in printed comics."""
    height, width = images.shape[2:]
    ys = (torch.arange(height, device=images.device) % 8 + 0.5) / 8 - 0.5
    xs = (torch.arange(width, device=images.device) % 8 + 0.5) / 8 - 0.5
    radius = torch.sqrt(ys[:, None] ** 2 + xs[None, :] ** 2)
    shade = (0.62 - gaussian_blur(luminance(images), 3.0)).clamp(0, 0.5)
    dots = torch.sigmoid((0.1 + 0.62 * shade - radius) * 22) * (shade * 8).clamp(0, 1)
    return images * (1 - 0.45 * dots) + _colour(images, (0.75, 0.2, 0.5)) * 0.45 * dots


def _fairy_paint(images: Tensor) -> Tensor:
    soft = kuwahara(gaussian_blur(images, 1.2), 4)
    grey = luminance(soft)
    pastel = saturate(soft, 0.85) * 0.62 + 0.3
    pastel = pastel + (1 - grey) * _colour(soft, (0.04, -0.1, 0.17))
    glow = gaussian_blur((grey - 0.5).clamp_min(0.0), 9.0)
    return (pastel + glow * _colour(soft, (1.1, 0.75, 0.1))).clamp(0, 1)


def _fairy_screen(images: Tensor) -> Tensor:
    sparkle = _sparkles(images)
    cream = 1 - _vignette(images, 0.75, 0.62)
    framed = images * (1 - cream) + _colour(images, (1.0, 0.95, 0.82)) * cream
    return framed * (1 - sparkle) + _colour(images, (1.0, 0.98, 0.85)) * sparkle


def _sparkles(images: Tensor) -> Tensor:
    """Four-pointed stars, one in every tile, that shine where the picture is light."""
    height, width = images.shape[2:]
    ys = torch.arange(height, device=images.device)[:, None] % TILE - TILE / 2 + 0.5
    xs = torch.arange(width, device=images.device)[None, :] % TILE - TILE / 2 + 0.5
    arms = torch.sqrt(xs.abs() + 0.01) + torch.sqrt(ys.abs() + 0.01)
    star = torch.exp(-(arms**2) / 9.0)
    light = _cells(luminance(images), TILE)
    mean = light.mean((2, 3), keepdim=True)
    return (star * torch.sigmoid((light - mean - 0.06) * 40)).clamp(0, 1)


# --- traditional -----------------------------------------------------------------------------


def _oil_paint(images: Tensor) -> Tensor:
    flat = saturate(kuwahara(kuwahara(images, 6), 5), 1.5)
    grey = luminance(flat)
    # Warm varnish in the shadows, butter in the lights.
    tinted = flat * _colour(flat, (1.06, 0.98, 0.8)) + (1 - grey) * _colour(flat, (0.07, 0.03, 0.0))
    return tinted.clamp(0, 1)


def _oil_screen(images: Tensor) -> Tensor:
    """Bristle relief, light from the upper left; strokes cross where the picture is busy."""
    hair_a = gaussian_blur(_grain(images, 0.8, 11, angle=0.6), 0.8)
    hair_b = gaussian_blur(_grain(images, 0.8, 12, angle=-0.9), 0.8)
    turn = torch.sigmoid((gaussian_blur(edges(images), 5.0) - 0.04) * 90)
    relief = hair_a * (1 - turn) + hair_b * turn
    return (images + 0.11 * relief * (0.35 + luminance(images))).clamp(0, 1)


def _ink_paint(images: Tensor) -> Tensor:
    grey = luminance(kuwahara(images, 3))
    mean = grey.mean((2, 3), keepdim=True)
    wash = posterise((0.62 + (grey - mean) * 1.25).clamp(0, 1), 5, 0.5)
    wash = 0.3 + 0.7 * gaussian_blur(wash, 1.2)
    line = contours(images, 1.5, 22.0, 0.01)
    tone = wash * (1 - 0.92 * line)
    return (tone * _colour(images, (0.98, 0.95, 0.86))).clamp(0, 1)


def _ink_screen(images: Tensor) -> Tensor:
    paper = gaussian_blur(_grain(images, 0.8, 21, angle=0.0), 0.8)
    return images * (1 + 0.05 * paper) * _vignette(images, 0.12)


def _watercolor_paint(images: Tensor) -> Tensor:
    flat = kuwahara(kuwahara(images, 6), 4)
    wash = 1 - (1 - saturate(flat, 1.25)) * 0.8
    # Pigment gathers at the rim of a wash.
    rim = gaussian_blur(edges(flat), 1.0)
    return (wash * 0.92 + 0.1 - 0.9 * rim).clamp(0, 1)


def _watercolor_screen(images: Tensor) -> Tensor:
    """Pigment settles in the paper's tooth, more of it in the darks; a ragged white margin."""
    y, x = coordinates(images.shape[2], images.shape[3], images.device)
    tooth = gaussian_blur(_grain(images, 1.2, 33), 1.0)
    settled = images + 0.07 * tooth * (1.1 - luminance(images))
    ragged = 0.06 * _grain(images, 1.3, 34)
    border = 1 - torch.maximum(x.abs().expand_as(ragged[0, 0]), y.abs().expand_as(ragged[0, 0]))
    weight = ((border[None, None] + ragged - 0.06) * 14).clamp(0, 1)
    paper = _colour(images, (0.985, 0.97, 0.93)) + 0.02 * tooth
    return settled * weight + paper * (1 - weight)


# --- digital ---------------------------------------------------------------------------------


def _render3d_paint(images: Tensor) -> Tensor:
    smooth = kuwahara(gaussian_blur(images, 1.6), 7)
    height_map = gaussian_blur(luminance(smooth), 3.5)
    padded = F.pad(height_map, (2, 2, 2, 2), mode="replicate")
    gx = padded[:, :, 2:-2, 4:] - padded[:, :, 2:-2, :-4]
    gy = padded[:, :, 4:, 2:-2] - padded[:, :, :-4, 2:-2]
    norm = torch.sqrt(gx**2 + gy**2 + 0.02)
    diffuse = (0.141 + 0.5 * (gx + gy)) / norm
    specular = diffuse.clamp(0, 1.2) ** 8
    hollow = (gaussian_blur(height_map, 9.0) - height_map).clamp_min(0.0)
    plastic = saturate(smooth, 1.3) * (0.45 + 0.5 * diffuse) - 1.6 * hollow
    return (plastic + 0.22 * specular + 0.05).clamp(0, 1)


def _cells(images: Tensor, size: int) -> Tensor:
    """Mean colour of each `size` x `size` cell, at full resolution; edges may hold part cells."""
    height, width = images.shape[2:]
    mean = F.avg_pool2d(images, size, ceil_mode=True, count_include_pad=False)
    big = mean.repeat_interleave(size, 2).repeat_interleave(size, 3)
    return big[:, :, :height, :width]


def _pixel_paint(images: Tensor) -> Tensor:
    return saturate(kuwahara(images, 3), 1.45).clamp(0, 1)


def _pixel_screen(images: Tensor) -> Tensor:
    cell = _cells(images, PIXEL_CELL)
    ys = torch.arange(images.shape[2], device=images.device) % PIXEL_CELL
    xs = torch.arange(images.shape[3], device=images.device) % PIXEL_CELL
    gap = ((ys % (PIXEL_CELL - 1) == 0)[:, None] | (xs % (PIXEL_CELL - 1) == 0)[None, :]).float()
    return posterise(cell, 5, 0.2) * (1 - 0.3 * gap)


def _lego_paint(images: Tensor) -> Tensor:
    return saturate(images, 1.5).clamp(0, 1)


def _lego_screen(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    cell = posterise(_cells(images, BRICK_CELL), 6, 0.3) * 0.86 + 0.05
    ys = (torch.arange(height, device=images.device) % BRICK_CELL + 0.5) / BRICK_CELL - 0.5
    xs = (torch.arange(width, device=images.device) % BRICK_CELL + 0.5) / BRICK_CELL - 0.5
    y, x = ys[:, None], xs[None, :]
    radius = torch.sqrt(x**2 + y**2)
    ring = torch.exp(-(((radius - 0.31) / 0.06) ** 2))
    # Light from the upper left: the stud's rim shines there and shades opposite; seams are dark.
    side = -(x + y) / (radius + 0.1)
    stud = 0.3 * ring * side + 0.07 * (radius < 0.31)
    seam = ((torch.maximum(x.abs(), y.abs()) - 0.4) / 0.1).clamp(0, 1)
    return (cell * (1 - 0.5 * seam) + stud * (0.35 + 0.65 * luminance(cell))).clamp(0, 1)


def _vapor_paint(images: Tensor) -> Tensor:
    grey = luminance(kuwahara(images, 3))
    mean, spread = grey.mean((2, 3), keepdim=True), grey.std((2, 3), keepdim=True) + 0.08
    tone = torch.sigmoid((grey - mean) / spread * 1.5)
    ramp: list[tuple[float, tuple[float, float, float]]] = [
        (0.0, (0.13, 0.02, 0.3)),
        (0.35, (0.5, 0.1, 0.65)),
        (0.65, (1.0, 0.42, 0.78)),
        (1.0, (0.5, 0.98, 1.0)),
    ]
    mapped = _gradient_map(tone, ramp)
    # Tape misregistration: red to the left, blue to the right.
    red, green, blue = mapped.chunk(3, 1)
    red = F.pad(red, (0, 3, 0, 0), mode="replicate")[..., 3:]
    blue = F.pad(blue, (3, 0, 0, 0), mode="replicate")[..., :-3]
    return torch.cat([red, green, blue], 1)


def _vapor_screen(images: Tensor) -> Tensor:
    rows = torch.arange(images.shape[2], device=images.device)
    line = 1 - 0.2 * ((rows % 8) < 3).float()
    return images * line.reshape(1, 1, -1, 1)


# --- thematic --------------------------------------------------------------------------------


def _cyberpunk_paint(images: Tensor) -> Tensor:
    grey = luminance(images)
    mean = grey.mean((2, 3), keepdim=True)
    tone = torch.sigmoid((grey - mean) * 6)
    base = _gradient_map(
        tone, [(0.0, (0.01, 0.01, 0.06)), (0.6, (0.12, 0.05, 0.26)), (1.0, (0.85, 0.12, 0.55))]
    )
    edge = (edges(gaussian_blur(images, 1.0)) * 6).clamp(0, 1)
    neon = gaussian_blur(edge, 1.3) * 0.9 + gaussian_blur(edge, 6.0) * 0.9
    return (base + neon * _colour(images, (0.05, 0.95, 0.95))).clamp(0, 1)


def _noir_paint(images: Tensor) -> Tensor:
    grey = luminance(kuwahara(images, 2))
    mean = grey.mean((2, 3), keepdim=True)
    hard = torch.sigmoid((grey - mean - 0.06) * 9)
    return (hard * _colour(images, (0.9, 0.97, 1.06)) * 0.95 + 0.01).clamp(0, 1)


def _noir_screen(images: Tensor) -> Tensor:
    # Light through blinds, falling across the whole frame.
    rows = torch.arange(images.shape[2], device=images.device)
    blinds = 0.5 + 0.5 * torch.tanh(2.5 * torch.sin((rows + 0.5) * (2 * torch.pi / TILE)))
    return images * (0.45 + 0.55 * blinds)[None, None, :, None] * _vignette(images, 0.85, 0.35)


TILE = 32
PIXEL_CELL = 8
BRICK_CELL = 16

STYLE_OPERATORS: dict[str, StyleOperator] = {
    "ghibli": StyleOperator(_ghibli_paint, _unchanged),
    "3d-rendering": StyleOperator(_render3d_paint, _unchanged),
    "cyberpunk": StyleOperator(_cyberpunk_paint, _unchanged),
    "ink": StyleOperator(_ink_paint, _ink_screen),
    "oil": StyleOperator(_oil_paint, _oil_screen),
    "pixel-art": StyleOperator(_pixel_paint, _pixel_screen),
    "vaporwave": StyleOperator(_vapor_paint, _vapor_screen),
    "disney": StyleOperator(_disney_paint, _unchanged),
    "fairy-tale": StyleOperator(_fairy_paint, _fairy_screen),
    "gotham-noir": StyleOperator(_noir_paint, _noir_screen),
    "lego": StyleOperator(_lego_paint, _lego_screen),
    "chibi": StyleOperator(_chibi_paint, _chibi_screen),
    "watercolor": StyleOperator(_watercolor_paint, _watercolor_screen),
}

__all__ = ["STYLE_OPERATORS", "StyleOperator", "apply_style"]
