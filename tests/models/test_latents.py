"""Pixels to normalised latents and back, on a tiny Wan VAE."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from osp_cli.models.latents import decode_latents, encode_latents, uint8_frames


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
