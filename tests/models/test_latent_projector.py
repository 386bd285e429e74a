"""phi starts at zero, works in fp32 and keeps frames apart unless told otherwise."""

from __future__ import annotations

import pytest
import torch

from osp_cli.models.latent_projector import LatentProjector


def trained(**settings):
    torch.manual_seed(0)
    projector = LatentProjector(4, 6, **settings)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return projector


@pytest.mark.parametrize("conv3x3x3", [False, True])
def test_starts_as_no_shift_and_can_learn(conv3x3x3):
    projector = LatentProjector(4, 6, conv3x3x3)
    latents = torch.randn(1, 4, 1, 5, 5)
    assert not projector(latents).any()
    projector(latents).sum().backward()
    assert projector.proj[2].bias.grad.any()


@torch.no_grad()
@pytest.mark.parametrize("conv3x3x3", [False, True])
def test_frames_mix_only_with_the_deep_kernel(conv3x3x3):
    projector = trained(conv3x3x3=conv3x3x3)
    latents = torch.randn(1, 4, 3, 5, 5)
    alone = torch.cat([projector(frame) for frame in latents.split(1, dim=2)], dim=2)
    assert torch.allclose(projector(latents), alone, atol=1e-5) is not conv3x3x3


@torch.no_grad()
def test_autocast_does_not_reach_it():
    projector, latents = trained(), torch.randn(1, 4, 1, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = projector(latents)
    assert torch.equal(got, projector.proj(latents))
