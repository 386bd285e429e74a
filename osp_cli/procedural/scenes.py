"""Canvases: wide pictures with the statistics of photographs, drawn without any photograph.

A canvas is layered like a view: background (sky and ridges, or a soft room), a few hundred possible
shapes painted back to front (dead leaves), and one large subject near the middle. Every sample has
its own palette, light and focus. Batched torch, so the same code fills a GPU.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from osp_cli.procedural.noise import (
    box_blur,
    coordinates,
    gaussian_blur,
    luminance,
    power_noise,
    uniform,
)


def make_canvases(generator: torch.Generator, batch: int, height: int, width: int) -> Tensor:
    """Pictures in [0, 1], `(batch, 3, height, width)`, on the generator's device."""
    canvas = _background(generator, batch, height, width)
    canvas = _shapes(generator, canvas, count=18)
    canvas = _subject(generator, canvas)
    canvas = _windows(generator, canvas)
    return _photograph(generator, canvas)


def sharp_canvases(generator: torch.Generator, batch: int, height: int, width: int) -> Tensor:
    """The same drawn at twice the size and reduced: as sharp as a photograph that was."""
    return F.avg_pool2d(make_canvases(generator, batch, 2 * height, 2 * width), 2)


def _palette(generator: torch.Generator, batch: int, colours: int) -> Tensor:
    """Related colours, `(batch, colours, 3)`: a base hue, near hues, and an accent."""
    hue = uniform(generator, (batch, 1))
    spread = uniform(generator, (batch, 1), 0.03, 0.28)
    hues = hue + spread * torch.randn((batch, colours), generator=generator, device=hue.device)
    accent = uniform(generator, (batch, colours)) < 0.2
    hues = torch.where(accent, hues + 0.5, hues) % 1.0
    saturation = uniform(generator, (batch, colours)) ** 1.4 * 0.85
    value = uniform(generator, (batch, colours), 0.06, 1.0)
    return _hsv_to_rgb(hues, saturation, value)


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Standard hexcone, channels last."""
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (offset + hue * 6.0) % 6.0
        ramp = torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)
        channels.append(value - value * saturation * ramp)
    return torch.stack(channels, -1)


def _colourise(field: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Mixes two `(batch, 3)` colours by a `(batch, height, width)` field in [0, 1]."""
    weight = field[:, None]
    return low[:, :, None, None] * (1 - weight) + high[:, :, None, None] * weight


def _background(generator: torch.Generator, batch: int, height: int, width: int) -> Tensor:
    device = generator.device
    y, _ = coordinates(height, width, device)
    palette = _palette(generator, batch, 4)
    exponent = uniform(generator, (batch,), 0.9, 2.0)
    texture = torch.sigmoid(1.3 * power_noise(generator, (batch, height, width), exponent))
    plain = _colourise(texture, palette[:, 0], palette[:, 1])

    # Landscapes: a bright sky above, clouds in it, ridges that fade into the distance.
    sky_top = _sky_colour(generator, batch)
    sky_low = 0.55 * sky_top + 0.45 * uniform(generator, (batch, 3), 0.6, 1.0)
    ramp = ((y + 1) / 2).expand(height, width)[None].expand(batch, -1, -1)
    sky = _colourise(ramp.clamp(0, 1), sky_top, sky_low)
    clouds = power_noise(generator, (batch, height, width), 1.7, angle=0.0)
    cover = uniform(generator, (batch, 1, 1), -0.4, 1.4)
    weight = torch.sigmoid(3.0 * (clouds - cover)) * (1 - 0.6 * ramp)
    view = sky * (1 - 0.8 * weight[:, None]) + 0.8 * weight[:, None]
    fog = view.mean((2, 3))
    for layer in range(4):
        base = uniform(generator, (batch, 1, 1), -0.25, 0.15) + 0.28 * layer
        rough = power_noise(generator, (batch, 2, width), 1.6)[:, :1]
        height_of = base - uniform(generator, (batch, 1, 1), 0.03, 0.22) * rough
        mask = torch.sigmoid((y[None] - height_of) * height * 0.35)
        depth = 1.0 - layer / 4.0
        grain = torch.sigmoid(
            power_noise(generator, (batch, height, width), uniform(generator, (batch,), 0.6, 1.4))
        )
        ground = _colourise(grain, palette[:, layer % 4] * 0.55, palette[:, layer % 4])
        ground = ground * (1 - 0.6 * depth) + fog[:, :, None, None] * 0.6 * depth
        view = view * (1 - mask[:, None]) + ground * mask[:, None]
    is_view = (uniform(generator, (batch, 1, 1, 1)) < 0.6).float()
    return view * is_view + plain * (1 - is_view)


def _sky_colour(generator: torch.Generator, batch: int) -> Tensor:
    """Blue days mostly, sunsets and grey weather otherwise, `(batch, 3)`."""
    hue = torch.where(
        uniform(generator, (batch,)) < 0.65,
        uniform(generator, (batch,), 0.52, 0.66),
        uniform(generator, (batch,), 0.95, 1.12) % 1.0,
    )
    saturation = uniform(generator, (batch,), 0.05, 0.75)
    return _hsv_to_rgb(hue, saturation, uniform(generator, (batch,), 0.45, 1.0))


def _shapes(generator: torch.Generator, canvas: Tensor, count: int) -> Tensor:
    """Dead leaves: occluding ellipses, boxes and triangles with a cubic size law."""
    batch, _, height, width = canvas.shape
    device = canvas.device
    y, x = coordinates(height, width, device)
    aspect = width / height
    palette = _palette(generator, batch, count)
    stripes_of = power_noise(generator, (batch, height, width), 1.1)
    number = uniform(generator, (batch,), 0.0, count)
    order = torch.linspace(1.0, 0.0, count)
    for index in range(count):
        # Large shapes first: far away things should not cover near details.
        size = 0.05 + 0.5 * order[index].item() ** 2 * uniform(generator, (batch, 1, 1), 0.4, 1.0)
        cy = uniform(generator, (batch, 1, 1), -1.0, 1.1)
        cx = uniform(generator, (batch, 1, 1), -1.0, 1.0)
        stretch = torch.exp(0.5 * torch.randn((batch, 1, 1), generator=generator, device=device))
        turn = uniform(generator, (batch, 1, 1), 0.0, math.pi)
        dy, dx = (y[None] - cy), (x[None] - cx) * aspect
        u = (torch.cos(turn) * dx + torch.sin(turn) * dy) / (size * stretch)
        v = (-torch.sin(turn) * dx + torch.cos(turn) * dy) / (size / stretch)
        kind = torch.randint(0, 3, (batch, 1, 1), generator=generator, device=device)
        ellipse = torch.sqrt(u**2 + v**2 + 1e-9) - 1
        box = torch.maximum(u.abs(), v.abs()) - 0.85
        triangle = torch.maximum(u.abs() * 1.2 + v * 0.7, -v) - 0.6
        distance = torch.where(kind == 0, ellipse, torch.where(kind == 1, box, triangle))
        scale = size * height / 2
        mask = torch.sigmoid(-distance * scale * 1.2)
        mask = mask * (index < number).float().reshape(batch, 1, 1)
        shade = 1.0 + uniform(generator, (batch, 1, 1), -0.45, 0.45) * v.clamp(-1, 1)
        lit = 0.3 * torch.exp(-((u - 0.35) ** 2 + (v + 0.35) ** 2) * 6)
        lit = lit * (uniform(generator, (batch, 1, 1)) < 0.35).float()
        rough = uniform(generator, (batch, 1, 1), 0.0, 0.22)
        bands = torch.sin(u * uniform(generator, (batch, 1, 1), 4.0, 22.0))
        bands = bands * (uniform(generator, (batch, 1, 1)) < 0.2).float() * 0.3
        tone = (shade + rough * stripes_of + bands)[:, None]
        colour = palette[:, index, :, None, None] * tone + lit[:, None]
        outline = torch.exp(-((distance * scale / 1.5) ** 2))
        outline = outline * (uniform(generator, (batch, 1, 1)) < 0.18).float()
        mask = mask[:, None]
        canvas = canvas * (1 - mask) + colour * mask
        canvas = canvas * (1 - 0.8 * outline * (index < number).float().reshape(-1, 1, 1))[:, None]
    return canvas


def _subject(generator: torch.Generator, canvas: Tensor) -> Tensor:
    """A figure near the middle: body, head, two eyes or a pattern; it is what 'sways'."""
    batch, _, height, width = canvas.shape
    device = canvas.device
    y, x = coordinates(height, width, device)
    aspect = width / height
    palette = _palette(generator, batch, 3)
    present = (uniform(generator, (batch, 1, 1)) < 0.55).float()
    cx = uniform(generator, (batch, 1, 1), -0.35, 0.35)
    cy = uniform(generator, (batch, 1, 1), -0.05, 0.45)
    size = uniform(generator, (batch, 1, 1), 0.2, 0.5)
    texture = power_noise(generator, (batch, height, width), 1.0)

    def blob(dx0: Tensor | float, dy0: Tensor | float, rx: Tensor, ry: Tensor) -> Tensor:
        dx = (x[None] - cx) * aspect - dx0
        dy = (y[None] - cy) - dy0
        return torch.sigmoid(-(torch.sqrt((dx / rx) ** 2 + (dy / ry) ** 2 + 1e-9) - 1) * 14)

    body = blob(0.0, size * 0.55, size * 0.75, size * 0.85)
    head = blob(0.0, -size * 0.55, size * 0.5, size * 0.55)
    light = (1.0 + 0.35 * ((x[None] - cx) * aspect / size).clamp(-1, 1) + 0.12 * texture)[:, None]
    for mask, colour in ((body, palette[:, 0]), (head, palette[:, 1])):
        weight = (mask * present)[:, None]
        canvas = canvas * (1 - weight) + colour[:, :, None, None] * light * weight
    face = present * (uniform(generator, (batch, 1, 1)) < 0.7).float()
    for side in (-1.0, 1.0):
        eye = blob(side * size * 0.2, -size * 0.6, size * 0.1, size * 0.12)
        pupil = blob(side * size * 0.2, -size * 0.58, size * 0.05, size * 0.06)
        canvas = canvas * (1 - (eye * face)[:, None]) + (eye * face)[:, None] * 0.95
        canvas = canvas * (1 - (pupil * face)[:, None])
    return canvas


def _windows(generator: torch.Generator, canvas: Tensor) -> Tensor:
    """A lit grid over part of the picture, as on facades, shelves and fences."""
    batch, _, height, width = canvas.shape
    y, x = coordinates(height, width, canvas.device)
    period = uniform(generator, (batch, 1, 1), 0.08, 0.3)
    phase = uniform(generator, (batch, 1, 1), 0.0, 1.0)
    aspect = width / height
    cell_x = (x[None] * aspect / period + phase) % 1.0
    cell_y = (y[None] / period * 0.7 + phase) % 1.0
    inside = ((cell_x - 0.5).abs() < 0.3) & ((cell_y - 0.5).abs() < 0.33)
    left = uniform(generator, (batch, 1, 1), -1.0, 0.4)
    area = (
        (x[None] > left)
        & (x[None] < left + 0.7)
        & (y[None] > uniform(generator, (batch, 1, 1)) - 1)
    )
    chosen = uniform(generator, (batch, 1, 1)) < 0.25
    mask = (inside & area & chosen).float()[:, None]
    mask = box_blur(mask, 1)
    colour = uniform(generator, (batch, 3, 1, 1), 0.0, 1.0)
    return canvas * (1 - 0.75 * mask) + colour * 0.75 * mask


def _photograph(generator: torch.Generator, canvas: Tensor) -> Tensor:
    """Light, lens and film: broad illumination, contrast, gamma, focus, grain."""
    batch, _, height, width = canvas.shape
    light = power_noise(generator, (batch, height, width), 2.2)[:, None]
    canvas = canvas * (1 + uniform(generator, (batch, 1, 1, 1), 0.0, 0.3) * light)
    mean = luminance(canvas).mean((2, 3), keepdim=True)
    contrast = uniform(generator, (batch, 1, 1, 1), 0.8, 1.45)
    canvas = mean + (canvas - mean) * contrast + uniform(generator, (batch, 1, 1, 1), -0.14, 0.14)
    canvas = canvas.clamp(1e-4, 1.0) ** uniform(generator, (batch, 1, 1, 1), 0.7, 1.5)
    soft = gaussian_blur(canvas, 1.6)
    weight = (uniform(generator, (batch, 1, 1, 1)) < 0.35).float()
    canvas = canvas * (1 - weight) + soft * weight
    grain = torch.randn(canvas.shape, generator=generator, device=canvas.device)
    return (canvas + grain * uniform(generator, (batch, 1, 1, 1), 0.0, 0.02)).clamp(0.0, 1.0)
