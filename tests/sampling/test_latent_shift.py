"""Latent shifting (paper, Eq. 15-18)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from osp_cli.models.latent_projector import LatentProjector
from osp_cli.sampling.latent_shift import project_first_frame, shift_latents


def test_the_shift_is_the_same_at_every_frame_and_noise_level():
    clip, noise = torch.randn(2, 1, 4, 3, 5, 5).unbind()
    projected = torch.randn(1, 4, 1, 5, 5)
    for sigma in (0.0, 0.3, 1.0):
        latents = (1 - sigma) * clip + sigma * noise
        shifted = shift_latents(latents, projected)
        assert torch.equal(shifted, latents - projected.expand_as(latents))


def test_half_precision_is_shifted_in_fp32():
    latents = torch.full((1, 1, 1, 1, 1), 1.0, dtype=torch.bfloat16)
    shifted = shift_latents(latents, torch.full((1, 1, 1, 1, 1), 1e-3))
    # In bfloat16 the difference would be 1 again.
    assert shifted.dtype == torch.float32
    assert shifted.item() == pytest.approx(0.999)


def test_an_untrained_projection_shifts_nothing():
    model = SimpleNamespace(learnable_proj=LatentProjector(4))
    latents = torch.randn(1, 4, 3, 5, 5)
    projected = project_first_frame(model, latents[:, :, :1])
    assert torch.equal(shift_latents(latents, projected), latents)


def test_more_than_one_frame_is_refused():
    model = SimpleNamespace(learnable_proj=LatentProjector(4))
    with pytest.raises(ValueError, match="one latent frame, got 2"):
        project_first_frame(model, torch.zeros(1, 4, 2, 5, 5))
    with pytest.raises(ValueError, match="one latent frame, got 2"):
        shift_latents(torch.zeros(1, 4, 3, 5, 5), torch.zeros(1, 4, 2, 5, 5))
