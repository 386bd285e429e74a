"""Image tokens (paper, Eq. 3): patches of latents with their places."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osp_cli.conditioning.image_tokens import POSITION_FEATURES, blur_latents, image_tokens

sizes = st.integers(1, 5)


@settings(deadline=None, max_examples=50)
@given(sizes, sizes, st.integers(1, 3))
def test_each_token_holds_its_square_channel_by_channel(rows, columns, patch):
    height, width = rows * patch, columns * patch
    latents = torch.arange(2.0 * height * width).view(1, 2, 1, height, width)
    got = image_tokens(latents, patch=patch)
    squares = [
        latents[0, :, 0, y : y + patch, x : x + patch].flatten()
        for y in range(0, height, patch)
        for x in range(0, width, patch)
    ]
    assert torch.equal(got[0], torch.stack(squares))


@settings(deadline=None, max_examples=50)
@given(sizes, sizes, st.integers(1, 3))
def test_positions_tell_the_tokens_apart(rows, columns, patch):
    latents = torch.zeros(2, 3, 1, rows * patch, columns * patch)
    got = image_tokens(latents, patch=patch, positions=True)
    assert got.shape[-1] == 3 * patch**2 + POSITION_FEATURES
    assert len(got[0].unique(dim=0)) == got.shape[1] == rows * columns
    assert torch.equal(got[0], got[1])


def test_blur_keeps_colour_and_loses_detail():
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4).view(1, 1, 1, 8, 8)
    torch.testing.assert_close(blur_latents(checks + 3), torch.full_like(checks, 3.0))


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (1, 3, 2, 4, 4)])
def test_one_latent_frame_is_needed(shape):
    with pytest.raises(ValueError, match="one latent frame"):
        image_tokens(torch.zeros(shape))


@pytest.mark.parametrize("patch", [0, 3])
def test_squares_must_tile_the_frame(patch):
    with pytest.raises(ValueError, match="do not tile"):
        image_tokens(torch.zeros(1, 3, 1, 4, 4), patch=patch)


def test_places_are_counted_from_the_middle_with_half_their_square():
    got = image_tokens(torch.zeros(1, 1, 1, 2, 4), positions=True)[0, :, 1:] * 16
    across, down = [-1.5, -0.5, 0.5, 1.5], [-0.5, 0.5]
    expected = [[x, y, (x * x + y * y) / 2 / 16] for y in down for x in across]
    torch.testing.assert_close(got, torch.tensor(expected))
