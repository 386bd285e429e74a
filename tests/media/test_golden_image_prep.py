"""Fixture 12: the released preprocessing of the input picture."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from osp_cli.media.image import cover_resize_crop, cover_size, to_tensor_values

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parents[1] / "golden" / "data")
FACTS = json.loads((DATA / "image_prep.json").read_text())
TENSORS = load_file(DATA / "image_prep.safetensors")


@pytest.mark.parametrize("case", FACTS["cases"])
def test_cover_resize_and_crop(case):
    facts = FACTS["cases"][case]
    height, width = facts["target_hw"]
    source = Image.fromarray(np.ascontiguousarray(TENSORS[f"in.{case}"].transpose(1, 2, 0)))
    assert list(reversed(cover_size(*source.size, width, height))) == facts["resize_to"]
    fitted = cover_resize_crop(source, width, height)

    pixels = np.asarray(fitted).transpose(2, 0, 1).astype(int)
    levels = np.abs(pixels - TENSORS[f"resized.{case}"]).max()
    assert levels <= facts["pillow_bicubic_max_diff_levels"]
    assert levels <= FACTS["tolerance"]["resized_uint8_max_diff"]

    difference = np.abs(to_tensor_values(fitted) - TENSORS[f"out.{case}"]).max()
    assert difference <= FACTS["tolerance"]["out_max_abs"]


@pytest.mark.parametrize("case", FACTS["cases"])
def test_values_of_the_same_pixels_are_equal(case):
    resized = TENSORS[f"resized.{case}"].transpose(1, 2, 0)
    values = to_tensor_values(Image.fromarray(np.ascontiguousarray(resized)))
    np.testing.assert_allclose(values, TENSORS[f"out.{case}"], atol=1e-6)
