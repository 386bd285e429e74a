"""Pixels to normalised latents and back, on a tiny Wan VAE; surroundings, on a linear codec."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.models.latents import (
    decode_latents,
    encode_latents,
    uint8_frames,
    with_surroundings,
)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=3,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.5, -1.0, 2.0],
        latents_std=[2.0, 0.5, 4.0],
    ).eval()


@pytest.fixture(scope="module")
def video():
    return torch.rand(1, 3, 9, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_latents_are_the_normalised_mean(vae, video):
    raw = vae.encode(video).latent_dist.mode()
    mean, std = (
        torch.tensor(vae.config[k]).view(1, 3, 1, 1, 1) for k in ("latents_mean", "latents_std")
    )
    latents = encode_latents(vae, video)
    assert latents.shape == (1, 3, 3, 2, 3)
    torch.testing.assert_close(latents * std + mean, raw)
    torch.testing.assert_close(decode_latents(vae, latents), vae.decode(raw).sample)


def test_the_first_latent_is_of_the_first_frame_alone(vae, video):
    first = encode_latents(vae, video[:, :, :1])
    torch.testing.assert_close(encode_latents(vae, video)[:, :, :1], first)


def test_decoding_is_causal(vae, video):
    latents = encode_latents(vae, video)
    whole = decode_latents(vae, latents)
    assert whole.shape == video.shape
    torch.testing.assert_close(decode_latents(vae, latents[:, :, :2]), whole[:, :, :5])


@pytest.mark.parametrize("frames", [2, 4, 8])
def test_frames_that_would_be_cut_silently_are_refused(vae, video, frames):
    with pytest.raises(ValueError, match="1 \\+ 4k"):
        encode_latents(vae, video[:, :, :frames])


def test_half_precision_returns_fp32(vae, video):
    half = AutoencoderKLWan.from_config(vae.config).to(torch.bfloat16)
    latents = encode_latents(half, video[:, :, :1])
    assert latents.dtype == torch.float32
    assert decode_latents(half, latents).dtype == torch.float32


def test_no_gradient_reaches_the_frozen_vae(vae, video):
    assert not encode_latents(vae, video[:, :, :1].requires_grad_()).requires_grad


def test_pixels_become_levels():
    levels = torch.arange(256).view(1, 1, 1, 16, 16).expand(1, 3, 1, 16, 16)
    frames = uint8_frames(levels / 127.5 - 1)
    assert torch.equal(frames, levels.permute(0, 2, 3, 4, 1).to(torch.uint8))
    assert uint8_frames(torch.full((1, 3, 1, 1, 1), 1.5)).unique().tolist() == [255]


# --- surroundings ----------------------------------------------------------------------------

BLOCK = 2
EXACT = 3 * BLOCK * BLOCK  # channels that hold all of a block
ROWS, COLUMNS = 3, 5


def linear_codec(z_dim=EXACT):
    """With a mean that is another one mirrored, and statistics of its own for every channel."""
    torch.manual_seed(z_dim)
    model = AutoencoderLinear(
        z_dim=z_dim,
        block=BLOCK,
        refine_width=0,
        latents_mean=torch.randn(z_dim).tolist(),
        latents_std=torch.rand(z_dim).add(0.5).tolist(),
    )
    torch.nn.init.orthogonal_(model.first_basis)
    torch.nn.init.normal_(model.first_mean, std=0.3)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def picture():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, 1, BLOCK * ROWS, BLOCK * COLUMNS, generator=generator)


@pytest.mark.parametrize("axis", [-1, -2])
def test_mirrored_latents_are_those_of_mirrored_pixels(picture, axis):
    codec = linear_codec()
    latents = codec.encode(picture).latent_dist.mode()
    turned = codec.encode(picture.flip(axis)).latent_dist.mode()
    # A mirrored picture is its cells in the other order, each turned over.
    torch.testing.assert_close(codec.mirrored(latents, axis).flip(axis), turned)
    torch.testing.assert_close(codec.mirrored(codec.mirrored(latents, axis), axis), latents)
    assert not torch.allclose(codec.mirrored(latents, axis), latents, atol=0.1)


@pytest.mark.parametrize("axis", [-1, -2])
def test_a_codec_of_few_channels_mirrors_what_it_can_show(axis):
    codec = linear_codec(5)
    latents = torch.randn(2, 5, 1, ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    shown = codec.decode_linear(latents)
    expected = codec.encode(shown.flip(axis)).latent_dist.mode()
    torch.testing.assert_close(codec.mirrored(latents, axis).flip(axis), expected)


@pytest.mark.parametrize("cells", [1, 2, 3])
def test_surroundings_are_the_picture_mirrored_at_its_borders(picture, cells):
    codec = linear_codec()
    first = encode_latents(codec, picture)
    wide = with_surroundings(codec, first, cells)
    assert wide.shape == (2, EXACT, 1, ROWS + 2 * cells, COLUMNS + 2 * cells)
    inside = (..., slice(cells, cells + ROWS), slice(cells, cells + COLUMNS))
    torch.testing.assert_close(wide[inside], first)
    margin = (cells * BLOCK, cells * BLOCK)
    pixels = np.pad(picture.numpy(), ((0, 0),) * 3 + (margin, margin), mode="symmetric")
    torch.testing.assert_close(
        wide, encode_latents(codec, torch.from_numpy(pixels)), atol=1e-5, rtol=1e-5
    )


def test_surroundings_are_no_wider_than_what_there_is_to_mirror(picture):
    codec = linear_codec()
    first = encode_latents(codec, picture)
    widest = with_surroundings(codec, first, ROWS)
    assert torch.equal(with_surroundings(codec, first, 50), widest)
    assert torch.equal(with_surroundings(codec, first, 0), first)


def test_surroundings_of_a_codec_in_half_precision_are_fp32(picture):
    codec = linear_codec()
    first = encode_latents(codec, picture)
    wide = with_surroundings(codec, first, 2)
    half = with_surroundings(codec.to(torch.bfloat16), first, 2)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, wide, atol=0.1, rtol=0.02)
