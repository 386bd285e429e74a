"""Targets of LoRAs: names in, layers out, and how many numbers that makes."""

from __future__ import annotations

import pytest

from osp_cli.errors import InvalidRequestError
from osp_cli.models.lora_targets import (
    PRESETS,
    Geometry,
    count_parameters,
    original_layer,
    select_layers,
)
from osp_cli.models.original_names import transformer_name
from osp_cli.registry import find_model

SMALL = Geometry(layers=4, width=24, ffn=32)
PICTURED = Geometry(layers=2, width=24, ffn=32, image=20)


def chosen(targets, geometry=SMALL):
    return select_layers(geometry.linear_layers(), targets)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("wan2.1-t2v-14b", (31.8, 26.2, 38.3)), ("wan2.1-t2v-1.3b", (9.5, 5.9, 10.9))],
)
def test_sizes_are_those_that_are_published(name, millions):
    geometry = Geometry.of_card(find_model(name).architecture)
    counted = (
        count_parameters(geometry, targets, 8) / 1e6 for targets in ("qkv-ffn", "attn", "all")
    )
    assert tuple(round(count, 1) for count in counted) == millions


def test_a_configuration_says_what_a_card_says():
    card = find_model("wan2.1-i2v-14b-480p").architecture
    config = {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128,
              "ffn_dim": 13824, "added_kv_proj_dim": 5120}  # fmt: skip
    assert Geometry.of_config(config) == Geometry.of_card(card, image_to_video=True)
    assert Geometry.of_config({**config, "added_kv_proj_dim": None}) == Geometry.of_card(card)


def test_presets_nest_and_pictures_have_their_own_layers():
    assert {*chosen("qkv-ffn")} | {*chosen("attn")} == {*chosen("all")} == {*SMALL.linear_layers()}
    assert {*chosen("all", PICTURED)} - {*chosen("qkv-ffn,attn", PICTURED)} == {
        f"blocks.{block}.attn2.add_{side}_proj" for block in (0, 1) for side in "kv"
    }


def test_painting_layers_are_all_but_the_first_blocks_feed_forward():
    layers = ("ffn.net.0.proj", "ffn.net.2")
    expected = tuple(f"blocks.{block}.{layer}" for block in (1, 2, 3) for layer in layers)
    assert chosen("paint") == chosen("blocks.1-.ffn") == expected


@pytest.mark.parametrize(
    ("typed", "count"),
    [
        ("to_q", 8),
        ("q", 8),
        ("self_attn.q", 4),
        ("attn1.to_q", 4),
        ("cross_attn", 16),
        ("attn2", 16),
        ("ffn.0", 4),
        ("ffn.net.0.proj", 4),
        ("blocks.2", 10),
        ("blocks.1-2.ffn", 4),
        ("blocks.-1.to_v", 4),
        ("blocks.3-.attn", 8),
        ("blocks.*.ffn.2", 4),
        ("attn, blocks.0.ffn", 34),
    ],
)
def test_names_of_both_kinds_and_ranges(typed, count):
    assert len(chosen(typed)) == count


def test_both_names_of_a_layer_mean_it():
    for name in PICTURED.linear_layers():
        original = original_layer(name)
        assert transformer_name(original) == name
        assert chosen(name, PICTURED) == chosen(original, PICTURED) == (name,)


def test_the_order_is_the_models_however_it_is_typed():
    assert chosen("ffn.2,blocks.1.to_q,ffn.0") == tuple(
        name for name in SMALL.linear_layers() if name in chosen("ffn,blocks.1.to_q")
    )


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("attn1.to_w", "attn1.to_"),
        ("to_qq", "to_q"),
        ("qkv_ffn", "qkv-ffn"),
        ("q,cros_attn.q", "cross_attn.q"),
        ("k_img", "there are"),
        ("patch_embedding", "there are"),
        ("blocks.x.q", "there are|did you mean"),
        ("q,,k", "qkv-ffn"),
    ],
)
def test_what_means_nothing_is_named_with_what_is_near(typed, told):
    with pytest.raises(InvalidRequestError, match="--targets") as caught:
        chosen(typed)
    assert any(part in caught.value.hint for part in told.split("|"))


def test_blocks_that_are_not_there():
    with pytest.raises(InvalidRequestError, match="it has 4 blocks, the first is 0"):
        chosen("blocks.4-6.q")
    with pytest.raises(InvalidRequestError, match="'paint' means no layer"):
        chosen("paint", Geometry(layers=1, width=24, ffn=32))


def test_every_preset_is_of_known_layers():
    for entries in PRESETS.values():
        for entry in entries:
            assert chosen(entry, PICTURED)
