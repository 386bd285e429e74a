"""The key names and shapes of the full-size checkpoints, built without memory.

The folder may come without `checkpoint_layout.json`; then there is nothing to compare.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan

from osp_cli.models.adapter import FeatureAdapter
from osp_cli.models.original_names import autoencoder_from_original, transformer_from_original
from osp_cli.models.state_dict import transformer_config
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")
FILE = DATA / "checkpoint_layout.json"
LAYOUT = json.loads(FILE.read_text()) if FILE.is_file() else {}
TRANSFORMERS = [name for name, facts in LAYOUT.items() if "saved_config" in facts]


def meta_state(facts):
    state = {}
    for pattern, entry in facts["keys"].items():
        shape, count = (entry["shape"], entry["count"]) if isinstance(entry, dict) else (entry, 1)
        for index in range(count):
            state[pattern.replace("{i}", str(index))] = torch.empty(shape, device="meta")
    assert len(state) == facts["tensors"]
    assert sum(tensor.numel() for tensor in state.values()) == facts["parameters"]
    return state


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformer(name):
    facts = LAYOUT[name]
    state = transformer_from_original(meta_state(facts))
    settings = transformer_config(facts["saved_config"], state, FILE)
    with init_empty_weights():
        model = FlashI2VTransformer3DModel(**settings)
    assert shapes(model.state_dict()) == shapes(state)


@pytest.mark.parametrize("name", [name for name in LAYOUT if "VAE" in name])
def test_autoencoder(name):
    with init_empty_weights():
        model = AutoencoderKLWan()
    assert shapes(model.state_dict()) == shapes(autoencoder_from_original(meta_state(LAYOUT[name])))


@pytest.mark.parametrize("name", [name for name in LAYOUT if "adapter" in name])
def test_adapter(name):
    with init_empty_weights():
        model = FeatureAdapter()
    assert shapes(model.state_dict()) == shapes(meta_state(LAYOUT[name]))
