"""A model of random weights in the true layout, for the rooms that run one.

Heavy libraries are imported inside: most tests need none of them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from osp_cli import registry

TINY_GEOMETRY = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 48,
    "out_channels": 48,
    "text_dim": 24,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "projection_channels": 8,
    "position_channels": 6,
    "rope_max_seq_len": 64,
}


def tiny_model_spec():
    """The card of osp-mini for smaller pictures and weights of another folder."""
    return replace(
        registry.find_model("osp-mini"),
        name="tiny",
        embedded=False,
        weights="tiny",
        sizes=((96, 64), (64, 64), (64, 96)),
        default_size=(96, 64),
        latent_channels=48,
        max_frames=17,
        text_to_video=True,
    )


def register_tiny():
    """Make `--model tiny` known, in a process of its own that never forgets it."""
    specs = {**registry.model_specs(), "tiny": tiny_model_spec()}
    registry.model_specs = lambda: specs


@pytest.fixture(scope="session")
def tiny_spec():
    """The card of osp-mini for smaller pictures and weights of another folder."""
    return tiny_model_spec()


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory):
    """What `$OSP_HOME` may point at: `models/tiny` holds every part, seeded, none of them zero."""
    import torch
    from torch import nn

    from osp_cli.models.autoencoder_linear import AutoencoderLinear
    from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
    from osp_cli.training.mini_vlm import new_conditioner, save_vlm

    home = tmp_path_factory.mktemp("home")
    folder = home / "models" / "tiny"
    conditioner = new_conditioner(1, TINY_GEOMETRY["text_dim"])
    conditioner.adapter.save_pretrained(folder / "adapter")
    conditioner.image_adapter.save_pretrained(folder / "image_adapter")
    save_vlm(conditioner, folder / "text_encoder")

    torch.manual_seed(2)
    transformer = FlashI2VTransformer3DModel(**TINY_GEOMETRY)
    vae = AutoencoderLinear(
        refine_width=8, refine_blocks=1, latents_mean=[0.1] * 48, latents_std=[0.9] * 48
    )
    for basis in (vae.first_basis, vae.next_basis):
        nn.init.orthogonal_(basis)
    for parameter in (*transformer.parameters(), *vae.refinement.exit.parameters()):
        nn.init.normal_(parameter, std=0.1)
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    return home


@pytest.fixture
def tiny_card(tiny_spec, tiny_home, monkeypatch):
    """Makes `--model tiny` known and installed; gives its card."""
    specs = {**registry.model_specs(), "tiny": tiny_spec}
    monkeypatch.setattr(registry, "model_specs", lambda: specs)
    monkeypatch.setenv("OSP_HOME", str(tiny_home))
    return tiny_spec
