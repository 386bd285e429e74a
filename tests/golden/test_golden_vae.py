"""Fixture 7: the causal VAE with its feature cache, from the keys of `Wan2.1_VAE.pth`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osp_cli.models.latents import decode_latents, encode_latents, uint8_frames
from osp_cli.models.state_dict import load_autoencoder

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")
FACTS = json.loads((DATA / "vae.json").read_text())
TENSORS = load_file(DATA / "vae.safetensors")
ENCODE = FACTS["tolerance"]["encode_fp32_max_abs"]
DECODE = FACTS["tolerance"]["decode_fp32_max_abs"]
# The longest recorded latents; every decode is of a part of them.
LATENTS = max(
    (tensor for name, tensor in TENSORS.items() if name.startswith("dec.in.")),
    key=lambda tensor: tensor.shape[2],
)


def cases(prefix):
    return sorted(n.removeprefix(prefix) for n in TENSORS if n.startswith(prefix))


def latents_of(case):
    """`z3` is the first three latent frames, `z3_5_fresh` frames 3 and 4 on their own."""
    start, stop = re.fullmatch(r"z(?:(\d+)_)?(\d+)(?:_fresh)?", case).groups()
    return LATENTS[:, :, int(start or 0) : int(stop)]


def assert_close(got, name, tolerance):
    assert got.shape == TENSORS[name].shape
    assert (got - TENSORS[name]).abs().max().item() <= tolerance


@pytest.fixture(scope="module")
def vae():
    weights = DATA / "vae.weights.safetensors"
    shapes = {name: list(tensor.shape) for name, tensor in load_file(weights).items()}
    assert shapes == FACTS["keys"]
    statistics = {name: TENSORS[name].tolist() for name in ("latents_mean", "latents_std")}
    return load_autoencoder(weights, config={**FACTS["config"], **statistics})


def test_the_folder_has_cases():
    for prefix in ("enc.out.", "enc.raw_mu.", "enc.moments.", "dec.out.", "dec.raw.", "dec.uint8."):
        assert cases(prefix), prefix


@pytest.mark.parametrize("case", cases("enc.out."))
def test_encode(vae, case):
    assert_close(encode_latents(vae, TENSORS[f"enc.in.{case}"]), f"enc.out.{case}", ENCODE)


@pytest.mark.parametrize("case", cases("enc.raw_mu."))
def test_posterior_mean(vae, case):
    posterior = vae.encode(TENSORS[f"enc.in.{case}"]).latent_dist
    assert_close(posterior.mode(), f"enc.raw_mu.{case}", ENCODE)


@pytest.mark.parametrize("case", cases("enc.moments."))
def test_moments(vae, case):
    posterior = vae.encode(TENSORS[f"enc.in.{case}"]).latent_dist
    assert_close(posterior.parameters, f"enc.moments.{case}", ENCODE)


@pytest.mark.parametrize("case", cases("dec.out."))
def test_decode(vae, case):
    assert_close(decode_latents(vae, latents_of(case)), f"dec.out.{case}", DECODE)


@pytest.mark.parametrize("case", cases("dec.raw."))
def test_decode_before_clamping(vae, case):
    pieces = []
    handle = vae.decoder.register_forward_hook(lambda *call: pieces.append(call[-1].clone()))
    clamped = decode_latents(vae, latents_of(case))
    handle.remove()
    assert_close(torch.cat(pieces, dim=2), f"dec.raw.{case}", DECODE)
    difference = clamped - TENSORS[f"dec.raw.{case}"].clamp(-1, 1)
    assert difference.abs().max().item() <= DECODE


@pytest.mark.parametrize("case", cases("dec.uint8."))
def test_frames(vae, case):
    got, want = uint8_frames(decode_latents(vae, latents_of(case))), TENSORS[f"dec.uint8.{case}"]
    assert (got.shape, got.dtype) == (want.shape, torch.uint8)
    assert (got.int() - want.int()).abs().max().item() <= FACTS["tolerance"]["uint8_max_diff"]
