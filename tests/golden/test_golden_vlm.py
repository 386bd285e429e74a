"""Fixture 6: the adapter, and the genuine vision-language forward of Eq. 1."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from osp_cli.conditioning.vlm import multimodal_states
from osp_cli.models.state_dict import load_adapter

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")
FACTS = json.loads((DATA / "vlm.json").read_text())
TENSORS = load_file(DATA / "vlm.safetensors")
TOLERANCE = FACTS["tolerance"]["fp32_max_abs"]
ADAPTED = sorted(n.split(".")[0] for n in TENSORS if n.endswith(".release_embeds"))
MULTIMODAL = sorted(n.split(".")[0] for n in TENSORS if n.endswith(".multimodal_hidden"))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    (folder / "config.json").write_bytes((DATA / "vlm.config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((DATA / "vlm.weights.safetensors").read_bytes())
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.get(kind) for kind in ("missing_keys", "unexpected_keys"))
    return model.model.eval()


def largest_difference(got, name):
    assert got.shape == TENSORS[name].shape
    return (got - TENSORS[name]).abs().max().item()


def real_rows(side):
    """Token ids without padding, `(1, n_real)`."""
    ids, mask = TENSORS[f"{side}.input_ids"], TENSORS[f"{side}.attention_mask"].bool()
    assert int(mask.sum()) == FACTS[side]["n_real"]
    return ids[mask][None]


def test_the_folder_has_cases():
    assert ADAPTED
    assert MULTIMODAL


@pytest.mark.parametrize("side", ADAPTED)
def test_adapter(side):
    adapter = load_adapter(DATA / "adapter.weights.safetensors")
    assert adapter.config.in_features == FACTS["adapter"]["in_dim"]
    assert adapter.config.hidden_features == FACTS["adapter"]["hidden_dim"]
    assert adapter.config.out_features == FACTS["adapter"]["out_dim"]
    got = adapter(TENSORS[f"{side}.release_hidden"])
    assert largest_difference(got, f"{side}.release_embeds") <= TOLERANCE


@pytest.mark.parametrize("side", MULTIMODAL)
def test_multimodal_states(vlm, side):
    ids = real_rows(side)
    assert int((ids == vlm.config.image_token_id).sum()) == FACTS["n_image_tokens"]
    assert TENSORS["image_grid_thw"].tolist() == [FACTS["grid_thw"]]
    got = multimodal_states(
        vlm, ids, torch.ones_like(ids), TENSORS["pixel_values"], TENSORS["image_grid_thw"]
    )
    assert largest_difference(got, f"{side}.multimodal_hidden") <= TOLERANCE


@pytest.mark.parametrize("side", MULTIMODAL)
def test_padding_changes_no_real_row(vlm, side):
    ids, mask = TENSORS[f"{side}.input_ids"], TENSORS[f"{side}.attention_mask"]
    # A few rows of padding show the same as a thousand; the side decides at which end.
    padding = slice(None, FACTS[side]["n_real"] + 8)
    if side == "left":
        padding = slice(-FACTS[side]["n_real"] - 8, None)
    ids, mask = ids[:, padding], mask[:, padding]
    got = multimodal_states(vlm, ids, mask, TENSORS["pixel_values"], TENSORS["image_grid_thw"])
    assert largest_difference(got[mask.bool()][None], f"{side}.multimodal_hidden") <= TOLERANCE


@pytest.mark.parametrize("side", MULTIMODAL)
def test_positions_are_two_dimensional_inside_the_picture(vlm, side):
    ids = real_rows(side)
    positions, _ = vlm.get_rope_index(
        ids,
        mm_token_type_ids=(ids == vlm.config.image_token_id).int(),
        image_grid_thw=TENSORS["image_grid_thw"],
    )
    assert torch.equal(positions, TENSORS[f"{side}.multimodal_position_ids"])


def test_vision_tower(vlm):
    features = vlm.get_image_features(TENSORS["pixel_values"], TENSORS["image_grid_thw"])
    assert largest_difference(torch.cat(features.pooler_output), "image_features") <= TOLERANCE


@pytest.mark.parametrize("side", MULTIMODAL)
def test_other_pixels_give_other_states(vlm, side):
    ids = real_rows(side)
    got = multimodal_states(
        vlm, ids, torch.ones_like(ids), TENSORS["pixel_values_other"], TENSORS["image_grid_thw"]
    )
    # The released shortcut, which never looks, would return the same states.
    assert largest_difference(got, f"{side}.multimodal_hidden") > 10 * TOLERANCE
