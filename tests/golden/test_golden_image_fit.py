"""Fixture 12: the released preprocessing of the input picture."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from osp_cli.media.image import cover_resize_crop, to_tensor_values

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")
FACTS = json.loads((DATA / "image_prep.json").read_text())
TENSORS = load_file(DATA / "image_prep.safetensors")


@pytest.mark.parametrize("case", FACTS["cases"])
def test_picture(case):
    height, width = FACTS["cases"][case]["target_hw"]
    picture = Image.fromarray(np.ascontiguousarray(TENSORS[f"in.{case}"].transpose(1, 2, 0)))
    fitted = cover_resize_crop(picture, width, height)

    levels = np.abs(np.asarray(fitted).transpose(2, 0, 1).astype(int) - TENSORS[f"resized.{case}"])
    assert levels.max() <= FACTS["tolerance"]["resized_uint8_max_diff"]
    difference = np.abs(to_tensor_values(fitted) - TENSORS[f"out.{case}"])
    assert difference.max() <= FACTS["tolerance"]["out_max_abs"]
