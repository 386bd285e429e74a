"""Image tokens (paper, Eq. 3), blurred by pooling."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osp_cli.conditioning.image_tokens import POSITION_FEATURES, image_tokens

sizes = st.integers(1, 9)


@settings(deadline=None, max_examples=50)
@given(sizes, sizes, st.integers(1, 5))
def test_each_token_is_the_mean_of_its_square(height, width, pool):
    latents = torch.arange(2.0 * height * width).view(1, 2, 1, height, width).sin()
    got = image_tokens(latents, pool=pool)
    squares = [
        latents[0, :, 0, y : y + pool, x : x + pool].mean(dim=(1, 2))
        for y in range(0, height, pool)
        for x in range(0, width, pool)
    ]
    torch.testing.assert_close(got[0], torch.stack(squares))


def test_pooling_by_one_changes_nothing():
    latents = torch.randn(2, 3, 1, 4, 5)
    assert torch.equal(image_tokens(latents), latents[:, :, 0].flatten(2).transpose(1, 2))


@settings(deadline=None, max_examples=50)
@given(sizes, sizes, st.integers(1, 5))
def test_positions_tell_the_tokens_apart(height, width, pool):
    latents = torch.zeros(2, 3, 1, height, width)
    got = image_tokens(latents, pool=pool, positions=True)
    assert got.shape[-1] == 3 + POSITION_FEATURES
    assert len(got[0].unique(dim=0)) == got.shape[1]
    assert torch.equal(got[0], got[1])


def test_detail_below_the_pool_does_not_pass():
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4).view(1, 1, 1, 8, 8)
    assert not image_tokens(checks, pool=2).any()


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (1, 3, 2, 4, 4)])
def test_one_latent_frame_is_needed(shape):
    with pytest.raises(ValueError, match="one latent frame"):
        image_tokens(torch.zeros(shape))


def test_an_impossible_pool_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        image_tokens(torch.zeros(1, 3, 1, 4, 4), pool=0)
