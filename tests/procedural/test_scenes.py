"""Canvases: repeatable, in range, and with the unevenness of photographs."""

from __future__ import annotations

import pytest
import torch

from osp_cli.procedural.noise import luminance
from osp_cli.procedural.scenes import make_canvases, sharp_canvases


def canvases(seed, batch=2, height=40, width=56):
    return make_canvases(torch.Generator().manual_seed(seed), batch, height, width)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 40, 56), (3, 33, 31), (2, 64, 36)])
def test_pictures_have_the_asked_shape_and_range(batch, height, width):
    pictures = canvases(3, batch, height, width)
    assert pictures.shape == (batch, 3, height, width)
    assert pictures.dtype == torch.float32
    assert 0.0 <= pictures.min() <= pictures.max() <= 1.0


def test_the_same_seed_draws_the_same_pictures():
    assert torch.equal(canvases(11), canvases(11))
    difference = (canvases(11) - canvases(12)).abs().mean((1, 2, 3))
    assert (difference > 0.05).all()


def test_nothing_is_drawn_from_the_global_generator():
    torch.manual_seed(1)
    one = canvases(11)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(one, canvases(11))
    assert torch.equal(before, torch.get_rng_state())


def test_pictures_are_neither_flat_nor_grey_nor_alike():
    pictures = canvases(4, batch=16)
    assert (luminance(pictures).flatten(1).std(1) > 0.03).all()
    # Most have colour; a few grey ones belong to the world.
    colourful = (pictures.max(1).values - pictures.min(1).values).mean((1, 2)) > 0.05
    assert colourful.float().mean() > 0.6
    flat = pictures.flatten(1)
    distances = torch.cdist(flat, flat) + torch.eye(16) * 1e3
    assert distances.min() > 0.05 * flat.shape[1] ** 0.5


def test_neighbouring_pixels_resemble_each_other_as_in_photographs():
    grey = luminance(canvases(5, batch=8, height=64, width=64))
    centred = grey - grey.mean((2, 3), keepdim=True)
    near = (centred[..., 1:] * centred[..., :-1]).mean() / centred.square().mean()
    far = (centred[..., 24:] * centred[..., :-24]).mean() / centred.square().mean()
    assert near > 0.8
    assert far < near - 0.3


def test_sharp_canvases_are_drawn_at_twice_the_size():
    sharp = sharp_canvases(torch.Generator().manual_seed(6), 2, 40, 56)
    twice = make_canvases(torch.Generator().manual_seed(6), 2, 80, 112)
    reduced = twice.unflatten(3, (56, 2)).mean(4).unflatten(2, (40, 2)).mean(3)
    torch.testing.assert_close(sharp, reduced)
