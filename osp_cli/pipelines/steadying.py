"""Calms a video whose frames were painted one by one: what is painted goes along with what moves.

A model that is shown each frame on its own paints a little differently each time, and its codec
loses other detail wherever a thing lies. The source says where everything has gone, so each frame
is led towards the one before it, moved along. Where the source does not say it (something new comes
into view, the scene is cut), the frame stays as it is painted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Share of what went before: a change in the look is there within seven frames.
SHARE = 0.85
# Where the look itself changes, nearly at once: what lags behind would never arrive.
MORPHING_SHARE = 0.5
# The first frames are gone through backwards once, so that the very first is as calm as the others.
_RUN_UP = 8
# Of the flow: levels of half the size each, the smallest side on the coarsest, steps on each.
_LEVELS, _LEAST_SIDE, _STEPS = 5, 12, 4
# Side of the window in which all moves alike, and what keeps flat places from moving, for luma in
# [0, 1].
_SIDE, _STIFFNESS = 7, 2e-5
# A match that is off by so much is no match.
_MISMATCH = 0.04
# Patterns that stand on the screen are finer than this, in pixels.
_PATTERN = 8.0


class _Frame(NamedTuple):
    """What is left of a frame for the next one: the source's luma, and what came out."""

    luma: Tensor
    picture: Tensor


@torch.no_grad()
def steadied(
    painted: Iterable[Tensor], source: Iterable[Tensor], share: float, screen: float = 0.0
) -> Iterator[Tensor]:
    """The painted frames, calmed.

    Args:
        painted: `(3, height, width)` in [0, 1] each.
        source: the frames that they were painted from, alike.
        share: of the frame before in each, 0 to below 1.
        screen: share of the look that stands on the screen, such as bricks or paper, and must not
            be dragged along; only what is coarser than it is led there.

    Raises:
        ValueError: there are more frames of one than of the other.
    """
    frames = zip(painted, source, strict=True)
    first = list(islice(frames, _RUN_UP))
    before: _Frame | None = None
    for picture, seen in reversed(first[1:]):
        before = _led(picture, seen, before, share, screen)
    for picture, seen in chain(first, frames):
        before = _led(picture, seen, before, share, screen)
        yield before.picture


def _led(
    picture: Tensor, seen: Tensor, before: _Frame | None, share: float, screen: float
) -> _Frame:
    """One frame, led towards the one before it."""
    luma = _luma(seen.to(picture.device))
    if before is None:
        return _Frame(luma, picture)
    flow = _full_size(optical_flow(_halved(luma), _halved(before.luma)), luma.shape)
    trust = _trust(luma, warped(before.luma, flow), flow)
    lead = (warped(before.picture, flow) - picture) * trust
    if screen:
        lead = lead + screen * (_blurred(lead, _PATTERN) - lead)
    return _Frame(luma, (picture + share * lead).clamp(0, 1))


def _halved(image: Tensor) -> Tensor:
    """Half the size: a quarter of the work, and motion is found nearly as well."""
    return F.avg_pool2d(image[None], 2, ceil_mode=True, count_include_pad=False)[0]


def _full_size(flow: Tensor, shape: torch.Size) -> Tensor:
    height, width = shape[1:]
    big = F.interpolate(flow[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    return 2 * big[:, :height, :width]


@torch.no_grad()
def optical_flow(after: Tensor, before: Tensor) -> Tensor:
    """Where in `before` lies what is here in `after`.

    Lucas and Kanade's least squares in windows, from coarse to fine.

    Args:
        after, before: `(1, height, width)` in [0, 1].

    Returns:
        `(2, height, width)`, pixels to the right and down.
    """
    pyramid = [(after, before)]
    while len(pyramid) < _LEVELS and min(pyramid[-1][0].shape[1:]) >= 2 * _LEAST_SIDE:
        one, other = pyramid[-1]
        pyramid.append((_halved(one), _halved(other)))
    flow = torch.zeros(2, *pyramid[-1][0].shape[1:], device=after.device)
    for one, other in reversed(pyramid):
        if flow.shape[1:] != one.shape[1:]:
            flow = _full_size(flow, one.shape)
        flow = _refined(flow, one, other)
    return flow


def _refined(flow: Tensor, after: Tensor, before: Tensor) -> Tensor:
    gx, gy = _gradient(after)
    xx, xy, yy = (_window(part) for part in (gx * gx, gx * gy, gy * gy))
    determinant = (xx + _STIFFNESS) * (yy + _STIFFNESS) - xy * xy
    for _ in range(_STEPS):
        error = after - warped(before, flow)
        ex, ey = _window(gx * error), _window(gy * error)
        step = torch.cat(
            [
                ((yy + _STIFFNESS) * ex - xy * ey) / determinant,
                ((xx + _STIFFNESS) * ey - xy * ex) / determinant,
            ]
        )
        # More than a pixel is for the coarser levels to find.
        flow = flow + step.clamp(-1, 1)
    return flow


def warped(image: Tensor, flow: Tensor) -> Tensor:
    """The picture fetched from where `flow` points, `(channels, height, width)`."""
    height, width = image.shape[1:]
    y = torch.arange(height, device=image.device, dtype=image.dtype)[:, None] + flow[1]
    x = torch.arange(width, device=image.device, dtype=image.dtype)[None] + flow[0]
    grid = torch.stack([2 * x / max(1, width - 1) - 1, 2 * y / max(1, height - 1) - 1], -1)
    return F.grid_sample(
        image[None], grid[None], mode="bicubic", padding_mode="border", align_corners=True
    )[0]


def _trust(after: Tensor, fetched: Tensor, flow: Tensor) -> Tensor:
    """How well a place was found again, 0 to 1, `(1, height, width)`."""
    height, width = after.shape[1:]
    y = torch.arange(height, device=after.device)[:, None] + flow[1]
    x = torch.arange(width, device=after.device)[None] + flow[0]
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    mismatch = F.avg_pool2d((after - fetched).abs()[None], 5, 1, 2, count_include_pad=False)[0]
    return torch.exp(-((mismatch / _MISMATCH) ** 2)) * inside


def _luma(image: Tensor) -> Tensor:
    weights = image.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return (image * weights).sum(0, keepdim=True)


def _gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    gx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    gy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    return gx, gy


def _window(image: Tensor) -> Tensor:
    """Mean over the window, twice, so that it has no hard edge."""
    for _ in range(2):
        image = F.avg_pool2d(image[None], _SIDE, 1, _SIDE // 2, count_include_pad=False)[0]
    return image


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """By three means, which is nearly a Gaussian."""
    side = 2 * round(sigma * 0.94) + 1
    for _ in range(3):
        image = F.avg_pool2d(image[None], side, 1, side // 2, count_include_pad=False)[0]
    return image
