"""Fixture 8: umT5 from its original key names."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from osp_cli.conditioning.umt5 import umt5_states
from osp_cli.models.state_dict import load_umt5

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")
FACTS = json.loads((DATA / "t5.json").read_text())
TENSORS = load_file(DATA / "t5.safetensors")
TOLERANCE = FACTS["tolerance"]["fp32_max_abs"]
RAW = sorted(name for name in TENSORS if name.startswith("raw_hidden_first"))
SAMPLES = range(len(TENSORS["ids"]))


@pytest.fixture(scope="module")
def encoder():
    weights = DATA / "t5.weights.safetensors"
    shapes = {name: list(tensor.shape) for name, tensor in load_file(weights).items()}
    assert shapes == FACTS["keys"]
    return load_umt5(weights, config=FACTS["config"])


@pytest.fixture(scope="module")
def states(encoder):
    return umt5_states(encoder, TENSORS["ids"], TENSORS["mask"])


@pytest.mark.parametrize("sample", SAMPLES)
def test_context(states, sample):
    assert int(TENSORS["mask"][sample].sum()) == FACTS["lens"][sample]
    assert states.shape == TENSORS["context"].shape
    assert states.shape[1] == FACTS["text_len"]
    difference = states[sample] - TENSORS["context"][sample]
    assert difference.abs().max().item() <= TOLERANCE


@pytest.mark.parametrize("sample", SAMPLES)
def test_rows_behind_the_text_are_exactly_zero(states, sample):
    assert not states[sample, FACTS["lens"][sample] :].any()


@pytest.mark.parametrize("name", RAW)
def test_states_before_zeroing(encoder, name):
    count = int(re.fullmatch(r"raw_hidden_first(\d+)", name)[1])
    got = encoder(input_ids=TENSORS["ids"], attention_mask=TENSORS["mask"]).last_hidden_state
    assert (got[:, :count] - TENSORS[name]).abs().max().item() <= TOLERANCE
