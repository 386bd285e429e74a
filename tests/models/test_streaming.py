"""A video in pieces is the video in one piece, whatever the pieces."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.models.latents import decode_latents, encode_latents
from osp_cli.models.streaming import (
    PictureDecoder,
    PictureEncoder,
    StreamingDecoder,
    StreamingEncoder,
)

_CHEAP = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


def _linear():
    vae = AutoencoderLinear(
        refine_width=8, refine_blocks=1, latents_mean=[0.1] * 48, latents_std=[0.9] * 48
    )
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return vae


@pytest.fixture(
    scope="module",
    params=[
        "linear",
        pytest.param("wan"),
        # As of Wan 2.2: residual blocks over squares of pixels.
        pytest.param("wan-patched"),
    ],
)
def vae(request):
    torch.manual_seed(4)
    if request.param == "linear":
        return _linear().eval()
    patched = {
        "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12,
        "scale_factor_spatial": 16,
    }  # fmt: skip
    return AutoencoderKLWan(**_CHEAP, **(patched if "patched" in request.param else {})).eval()


@pytest.fixture(scope="module")
def video():
    torch.manual_seed(5)
    return torch.rand(1, 3, 17, 32, 48) * 2 - 1


@pytest.mark.parametrize("pieces", [(17,), (1, 16), (5, 4, 8), (1, 4, 4, 4, 4)])
def test_encoding_in_pieces_is_encoding_the_whole(vae, video, pieces):
    encoder = StreamingEncoder(vae)
    latents = torch.cat([encoder.push(piece) for piece in video.split(pieces, dim=2)], 2)
    whole = encode_latents(vae, video)
    assert whole.shape[2] == 5
    if isinstance(vae, AutoencoderLinear):
        # One product of matrices there, several here.
        torch.testing.assert_close(latents, whole, rtol=0, atol=1e-5)
    else:
        assert torch.equal(latents, whole)


@pytest.mark.parametrize("pieces", [(5,), (1, 4), (2, 1, 2), (1, 1, 1, 1, 1)])
def test_decoding_in_pieces_is_decoding_the_whole(vae, video, pieces):
    latents = encode_latents(vae, video)
    decoder = StreamingDecoder(vae)
    frames = torch.cat([decoder.push(piece) for piece in latents.split(pieces, dim=2)], 2)
    whole = decode_latents(vae, latents)
    assert whole.shape == video.shape
    if isinstance(vae, AutoencoderLinear):
        torch.testing.assert_close(frames, whole, rtol=0, atol=1e-5)
    else:
        assert torch.equal(frames, whole)


def test_others_may_use_the_autoencoder_between_two_pieces(vae, video):
    whole = encode_latents(vae, video)
    encoder, other, decoder = StreamingEncoder(vae), StreamingEncoder(vae), StreamingDecoder(vae)
    latents, frames = [], []
    for piece in video.split((5, 4, 8), dim=2):
        latents.append(encoder.push(piece))
        frames.append(decoder.push(latents[-1]))
        encoder.rest()
        decoder.rest()
        encode_latents(vae, video[:, :, :1].flip(-1))
        decode_latents(vae, whole[:, :, :2].flip(-1))
        if not other._begun:
            other.push(video[:, :, :9].flip(-1))
    torch.testing.assert_close(torch.cat(latents, 2), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(frames, 2), decode_latents(vae, whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("pieces", "told"), [((4,), r"1 \+ 4k"), ((5, 5), r"\(batch, 3, 4k")])
def test_pieces_that_would_be_cut_are_refused(vae, video, pieces, told):
    encoder = StreamingEncoder(vae)
    with pytest.raises(ValueError, match=told):
        for piece in video[:, :, : sum(pieces)].split(pieces, dim=2):
            encoder.push(piece)


def test_no_latents_are_refused(vae):
    with pytest.raises(ValueError, match=r"latents|frames"):
        StreamingDecoder(vae).push(torch.zeros(1, 16, 0, 4, 6))


def test_tiles_are_refused():
    vae = AutoencoderKLWan(**_CHEAP)
    vae.enable_tiling()
    for kind in (StreamingEncoder, StreamingDecoder):
        with pytest.raises(ValueError, match="tiles"):
            kind(vae)


def test_pictures_know_nothing_of_each_other(vae, video):
    latents = PictureEncoder(vae).push(video[:, :, :6])
    alone = torch.cat([encode_latents(vae, frame) for frame in video[:, :, :6].split(1, 2)], 2)
    torch.testing.assert_close(latents, alone, rtol=0, atol=1e-5)
    frames = PictureDecoder(vae).push(latents)
    alone = torch.cat([decode_latents(vae, frame) for frame in latents.split(1, 2)], 2)
    assert frames.shape == (1, 3, 6, 32, 48)
    torch.testing.assert_close(frames, alone, rtol=0, atol=1e-5)
