"""Fixture 1: high-frequency magnitudes as the released code computes them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osp_cli.sampling.fourier import cutoff_radius, fourier_features, high_frequency_magnitude

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")
FACTS = json.loads((DATA / "fourier.json").read_text())
TENSORS = load_file(DATA / "fourier.safetensors")
TOLERANCE = {
    torch.float32: FACTS["tolerance"]["fp32_max_abs"],
    torch.float16: FACTS["tolerance"]["f16_max_abs"],
    torch.bfloat16: FACTS["tolerance"]["bf16_max_abs"],
}
PLAIN = sorted(n for n in TENSORS if re.fullmatch(r"out(_b?f16)?\.\w+\.r[\d.]+", n))
DRAWN = sorted(n for n in TENSORS if re.match(r"out\.\w+\.rand_", n))
FED = sorted(n for n in TENSORS if n.startswith("fed."))


def assert_close(got, name):
    want = TENSORS[name]
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert (got.float() - want.float()).abs().max().item() <= TOLERANCE[want.dtype]


def squared(radii):
    """Rings are told apart by their squared radius, an integer: exact, whatever sqrt rounds to."""
    return [round(radius**2) for radius in radii]


def test_the_folder_has_cases():
    assert PLAIN
    assert DRAWN
    assert FED
    assert FACTS["cutoff_radius"]


@pytest.mark.parametrize("name", PLAIN)
def test_magnitude(name):
    kind, case, ratio = re.fullmatch(r"out((?:_b?f16)?)\.(\w+)\.r([\d.]+)", name).groups()
    assert_close(high_frequency_magnitude(TENSORS[f"in{kind}.{case}"], float(ratio)), name)


@pytest.mark.parametrize("name", FACTS["cutoff_radius"])
def test_cutoff_radius_is_the_recorded_ring(name):
    case, ratio = name.split(".r", 1)
    radii = cutoff_radius(TENSORS[f"in.{case}"], float(ratio)).tolist()
    assert squared(radii) == squared(FACTS["cutoff_radius"][name])
    # The last bit of a square root differs between machines; nothing else may.
    assert radii == pytest.approx(FACTS["cutoff_radius"][name], rel=2e-7)


@pytest.mark.parametrize("name", DRAWN)
def test_one_cutoff_per_sample(name):
    latents, ratios = TENSORS[f"in.{FACTS['rand']['case']}"], TENSORS["rand.ratio_b"]
    assert ratios.tolist() == FACTS["rand"]["ratio_b"]
    assert_close(high_frequency_magnitude(latents, ratios), name)
    radii = cutoff_radius(latents, ratios).tolist()
    assert squared(radii) == squared(FACTS["rand"]["cutoff_radius"])


@pytest.mark.parametrize("name", FED)
def test_features_as_fed_to_the_transformer(name):
    case, ratio, frames = re.fullmatch(r"fed\.(\w+)\.r([\d.]+)\.t(\d+)", name).groups()
    first = TENSORS[f"in.{case}"][:, :, None]
    assert_close(fourier_features(first, float(ratio), int(frames)), name)


@pytest.mark.parametrize("case", FACTS["degenerate"])
def test_degenerate_pictures(case):
    limits = FACTS["degenerate"][case]
    ratios = [float(n.split(".r")[1]) for n in PLAIN if n.startswith(f"out.{case}.")]
    assert ratios
    for ratio in ratios:
        got = high_frequency_magnitude(TENSORS[f"in.{case}"], ratio)
        assert abs(got.max().item() - limits["max_out"]) <= TOLERANCE[torch.float32]
        assert abs(got.min().item() - limits["min_out"]) <= TOLERANCE[torch.float32]
