"""Fixture 11: LoRAs of every recorded layout, fused and attached, against the reference's merge."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osp_cli.models.lora import Strong, attach_loras, fuse_loras, parameter_shapes
from osp_cli.models.lora_file import read_lora
from osp_cli.models.lora_fit import fit_lora

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")
FACTS = json.loads((DATA / "lora.json").read_text())
TOLERANCE = FACTS["tolerance"]["fp32_max_abs"]
IO = load_file(DATA / "transformer.io.safetensors")
EXPECTED = load_file(DATA / "lora.expected.safetensors")
CASES = sorted(name for name in EXPECTED if name != "base")


def output(transformer):
    return transformer(
        IO["x_shifted"], IO["t2"], IO["ctx_a"], fourier_features=IO["fourier_features"]
    ).sample


def with_lora(transformer, case, apply):
    layout, _, strength = case.partition(".m")
    lora = read_lora(DATA / f"lora_{layout}.safetensors")
    assert lora.layout == layout
    model = copy.deepcopy(transformer)
    fit = fit_lora(lora, parameter_shapes(model), "golden")
    assert not fit.left_out
    apply(model, [Strong(lora, fit, float(strength))])
    return model


def test_the_folder_has_cases():
    files = {name.removeprefix("lora_").removesuffix(".safetensors") for name in FACTS["files"]}
    assert {case.partition(".m")[0] for case in CASES} == files


def test_without_a_lora(transformer):
    assert (output(transformer) - EXPECTED["base"]).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize("apply", [fuse_loras, attach_loras])
@pytest.mark.parametrize("case", CASES)
def test_output(transformer, case, apply):
    with torch.inference_mode(False):
        model = with_lora(transformer, case, apply)
    got = output(model)
    assert (got - EXPECTED[case]).abs().max().item() <= TOLERANCE
    # Far enough from the model without it for the comparison to say something.
    assert (got - EXPECTED["base"]).abs().max().item() > 50 * TOLERANCE


@pytest.mark.parametrize("layout", sorted(FACTS["files"]))
def test_what_the_header_tells(layout):
    facts = FACTS["files"][layout]
    lora = read_lora(DATA / layout)
    keys = {key for change in lora.changes for key in change.keys}
    alphas = len(lora.changes) if lora.alphas != (None,) else 0
    assert len(keys) + alphas == facts["n_keys"]
    assert lora.ranks == (8,)
    assert lora.alphas == ((float(facts["alpha"]),) if "alpha" in facts else lora.alphas)
    assert not lora.strangers
