"""The golden folder, `OSP_GOLDEN_DIR` or the copy in this tree, and models of its weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from osp_cli.models.state_dict import load_transformer


@pytest.fixture(scope="session")
def golden_dir():
    return Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")


@pytest.fixture(scope="session")
def inference_cutoff(golden_dir):
    """The percentile with which every recorded run was made."""
    return json.loads((golden_dir / "fourier.json").read_text())["extractor"]["inference_ratio"]


@pytest.fixture(scope="session")
def transformer(golden_dir):
    """Fixture 3's model, read from its original key names; also runs fixture 4."""
    return load_transformer(
        golden_dir / "transformer.weights.safetensors",
        config=golden_dir / "transformer.config.json",
    )


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield
