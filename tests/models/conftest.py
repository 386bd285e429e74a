"""Real classes at tiny size."""

from __future__ import annotations

import pytest
import torch

from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}


@pytest.fixture
def tiny_config():
    """Arguments that the Wan parent takes too."""
    return dict(TINY)


@pytest.fixture
def make_transformer():
    """Builds a seeded model; `trained` gives the zero-initialised layers weights."""

    def make(*, trained=True, **settings):
        torch.manual_seed(0)
        model = FlashI2VTransformer3DModel(**{**TINY, "projection_channels": 6, **settings})
        if trained:
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
        return model.eval()

    return make


@pytest.fixture
def inputs():
    """Positional arguments of a forward: latents, two different timesteps, text."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 4, 3, 4, 6, generator=generator),
        torch.tensor([12.5, 803.25]),
        torch.randn(2, 5, 8, generator=generator),
    )


@pytest.fixture
def features():
    return torch.rand(2, 4, 3, 4, 6, generator=torch.Generator().manual_seed(2))
