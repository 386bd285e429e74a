"""Fixture 2: the projection phi, both kernels."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osp_cli.models.latent_projector import LatentProjector

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")
FACTS = json.loads((DATA / "latent_shift.json").read_text())
TENSORS = load_file(DATA / "latent_shift.safetensors")
CASES = sorted(name for name in TENSORS if ".out." in name)


def load_projector(variant):
    state = {
        name.removeprefix("learnable_proj."): tensor
        for name, tensor in load_file(DATA / f"latent_shift_{variant}.weights.safetensors").items()
    }
    assert {n: list(t.shape) for n, t in state.items()} == FACTS["weights"][variant]
    hidden, channels, depth = state["proj.0.weight"].shape[:3]
    assert hidden == FACTS["hidden_channels"]
    projector = LatentProjector(channels, hidden, conv3x3x3=depth == 3)
    projector.load_state_dict(state)
    return projector


def test_every_variant_has_cases():
    assert CASES
    assert {name.split(".")[0] for name in CASES} == set(FACTS["weights"])


@pytest.mark.parametrize("name", CASES)
def test_projection(name):
    variant, _, case = name.split(".")
    projector = load_projector(variant)
    assert list(projector.proj[0].padding) == FACTS["padding"][variant]
    got = projector(TENSORS[f"{variant}.in.{case}"])
    assert (got - TENSORS[name]).abs().max().item() <= FACTS["tolerance"]["fp32_max_abs"]


@pytest.mark.parametrize("variant", FACTS["weights"])
def test_projection_stays_fp32_in_a_half_precision_model(variant):
    name = next(name for name in CASES if name.startswith(f"{variant}."))
    case = name.split(".")[-1]
    latents = TENSORS[f"{variant}.in.{case}"]
    projector = load_projector(variant)
    # Weights that half precision holds exactly: what is left to see is the arithmetic.
    for weight in projector.parameters():
        weight.copy_(weight.bfloat16())
    expected = projector(latents)
    got = projector.to(torch.bfloat16)(latents)
    assert got.dtype == torch.float32
    assert (got - expected).abs().max().item() <= FACTS["tolerance"]["fp32_max_abs"]
