"""What LoRA files hold, told from headers alone, and whether it fits: good files and refusals."""

from __future__ import annotations

import json
import re
import shutil
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osp_cli.errors import InvalidRequestError
from osp_cli.models.lora_file import Size, read_lora, size_of
from osp_cli.models.lora_fit import (
    NO_LAYER,
    NO_TRANSFORMER,
    OF_IMAGE,
    cards_of_size,
    fit_lora,
    installed_shapes,
    size_of_card,
)
from osp_cli.models.lora_names import module_name
from osp_cli.models.safetensors_header import read_header
from osp_cli.registry import find_model

BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}


def write(path, shapes, metadata=None, values=None, dtype="F32"):
    """A safetensors file of zeros, or of the bytes given."""
    table, data = {}, b""
    for name, shape in shapes.items():
        count = 1
        for length in shape:
            count *= length
        raw = (values or {}).get(name, bytes(count * BYTES[dtype]))
        table[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    if metadata:
        table["__metadata__"] = metadata
    head = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return path


def pair(module, out, inside, rank=2, down="lora_A", up="lora_B"):
    return {f"{module}.{down}.weight": (rank, inside), f"{module}.{up}.weight": (out, rank)}


def wan(layers=2, width=8, ffn=12, channels=4):
    """Shapes of a transformer's weights, by our names."""
    shapes = {"patch_embedding.weight": (width, channels, 1, 2, 2)}
    for number in range(layers):
        block = f"blocks.{number}"
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                shapes[f"{block}.{attention}.{part}.weight"] = (width, width)
        shapes[f"{block}.ffn.net.0.proj.weight"] = (ffn, width)
        shapes[f"{block}.ffn.net.2.weight"] = (width, ffn)
    return shapes


@pytest.fixture
def file(tmp_path):
    return tmp_path / "style.safetensors"


# --- Names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "named"),
    [
        ("lora_unet__blocks_11_cross_attn_k_img", ("videox", "blocks.11.attn2.add_k_proj")),
        ("lora_unet_blocks_3_ffn_0", ("musubi", "blocks.3.ffn.net.0.proj")),
        ("lora_unet_time_projection_1", ("musubi", "condition_embedder.time_proj")),
        ("lora_unet__head_head", ("videox", "proj_out")),
        ("img_emb.proj.1", ("peft", "condition_embedder.image_embedder.ff.net.0.proj")),
        ("diffusion_model.blocks.0.norm3", ("comfy", "blocks.0.norm2")),
        ("blocks.0.modulation", ("peft", "blocks.0.scale_shift_table")),
        ("pipe.dit.blocks.0.self_attn.o", ("peft", "blocks.0.attn1.to_out.0")),
        ("transformer.blocks.0.attn2.add_v_proj", ("diffusers", "blocks.0.attn2.add_v_proj")),
        ("base_model.model.transformer.blocks.0.attn1.to_q", ("diffusers", "blocks.0.attn1.to_q")),
        ("fourier_embedding.1", ("peft", "fourier_embedding.1")),
        ("lora_unet_learnable_proj_proj_2", ("musubi", "learnable_proj.proj.2")),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", None),
        ("text_encoder.blocks.0.self_attn.q", None),
        ("lora_unet_down_blocks_0_attentions_0", None),
        ("lora_unet_blocks_0_self_attn_qkv", None),
        ("blocks.x.self_attn.q", None),
        ("vace_blocks.0.self_attn.q", None),
        ("transformer.transformer_blocks.0.attn1.to_q", None),
    ],
)  # fmt: skip
def test_modules(module, named):
    assert module_name(module) == named


def test_sizes_are_told_by_shapes_alone():
    assert size_of(wan(3, 8, 12)) == Size(8, 12, 3)
    assert size_of({"blocks.4.ffn.net.2.weight": (8, 12)}) == Size(8, 12, 5)
    assert size_of({"blocks.0.attn1.to_q.bias": (8,)}) == Size(None, None, 0)


STRAY = "diffusion_model.blocks.99.self_attn.q"


@pytest.mark.parametrize("first", [False, True])
def test_a_stray_layer_does_not_decide_on_the_size(file, first):
    stray = pair(STRAY, 4, 4)
    rest = {**pair(Q, 8, 8), **pair("diffusion_model.blocks.1.ffn.0", 12, 8)}
    write(file, {**stray, **rest} if first else {**rest, **stray})
    lora = read_lora(file)
    assert lora.size == Size(8, 12, 2)
    assert [change.name for change in lora.misfits] == ["blocks.99.attn1.to_q"]
    fit = fit_lora(lora, wan(), "mini")
    assert fit.left_out == dict.fromkeys(pair(STRAY, 4, 4), NO_LAYER)
    assert len(fit.changes) == 2


def test_a_block_counts_by_its_own_width_or_where_nothing_tells_it():
    shapes = {**wan(2, 8, 12), "blocks.0.attn1.to_k.weight": (4, 4)}
    # The first block has layers of both widths, the last one layers that tell none.
    shapes |= {"blocks.3.norm2.weight": (8,), "blocks.7.attn2.to_v.weight": (4, 4)}
    assert size_of(shapes) == Size(8, 12, 4)
    assert size_of({"blocks.0.ffn.net.0.proj.weight": (8,)}) == Size(None, None, 1)


def test_both_alphas_of_one_number_are_read(file):
    shapes = pair("diffusion_model.blocks.0.self_attn.q", 8, 8)
    alpha = "diffusion_model.blocks.0.self_attn.q.alpha"
    for dtype, raw in (
        ("F32", struct.pack("<f", 4)),
        ("F16", struct.pack("<e", 4)),
        ("BF16", struct.pack("<f", 4)[2:]),
        ("I64", struct.pack("<q", 4)),
    ):
        for shape in ((), (1,)):
            write(file, {**shapes, alpha: shape}, values={alpha: raw}, dtype=dtype)
            [change] = read_lora(file).changes
            assert (change.alpha, change.scale) == (4.0, 2.0)


# --- Refusals ---------------------------------------------------------------------------------

Q = "diffusion_model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({}, "holds no LoRA"),
        (wan(), "holds no LoRA"),
        (pair("transformer.single_transformer_blocks.0.attn.to_q", 8, 8), "those of Flux"),
        (pair("lora_unet_input_blocks_4_1_proj_in", 8, 8), "those of Stable Diffusion"),
        (pair("lora_unet_down_blocks_0_attentions_0_proj_in", 8, 8), "those of Stable Diffusion"),
        (pair("transformer.transformer_blocks.0.attn1.to_q", 8, 8), "another transformer"),
        (pair("unheard_of.1", 8, 8), "keys such as unheard_of.1.lora_A.weight"),
        ({**pair(Q, 8, 8), f"{Q}.dora_scale": (8,)}, "is a DoRA file"),
        ({**pair(Q, 8, 8), f"{Q}.lora_magnitude_vector": (8,)}, "is a DoRA file"),
        ({f"{Q}.lokr_w1": (2, 2), f"{Q}.lokr_w2": (4, 4)}, "is a LoKr file"),
        ({f"{Q}.hada_w1_a": (2, 2)}, "is a LoHa file"),
        ({f"{Q}.lora_A.weight": (2, 8)}, "no layer in it has both its factors"),
        ({f"{Q}.lora_A.weight": (2, 8), f"{Q}.lora_B.weight": (8, 3)}, "are no two factors"),
        ({f"{Q}.lora_A.weight": (2,), f"{Q}.lora_B.weight": (8, 2)}, "are no two factors"),
        ({f"{Q}.lora_A.weight": (0, 8), f"{Q}.lora_B.weight": (8, 0)}, "is empty"),
        ({**pair(Q, 8, 8), f"{Q}.alpha": (2,)}, "alpha is not one number"),
        ({**pair(Q, 8, 8), **pair(f"model.{Q}", 8, 8)}, "more than one LoRA"),
        (
            {
                "blocks.0.ffn.0.lora_A.a.weight": (2, 8),
                "blocks.0.ffn.0.lora_A.b.weight": (2, 8),
            },
            "more than one LoRA",
        ),
    ],
)
def test_refused_for_what_it_holds(file, shapes, told):
    write(file, shapes)
    with pytest.raises(InvalidRequestError) as caught:
        read_lora(file)
    assert told in caught.value.message
    assert str(file) in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_alpha_that_is_no_number_is_refused(file, value):
    alpha = f"{Q}.alpha"
    write(file, {**pair(Q, 8, 8), alpha: ()}, values={alpha: struct.pack("<f", value)})
    with pytest.raises(InvalidRequestError, match="is no number"):
        read_lora(file)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234",
        struct.pack("<Q", 2**60),
        struct.pack("<Q", 4) + b"none",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 13) + b'{"a": {"x":1}',
        struct.pack("<Q", 20_000) + b"[" * 20_000,
    ],
)
def test_no_safetensors_file_is_refused(file, data):
    file.write_bytes(data)
    with pytest.raises(InvalidRequestError, match="is not a safetensors file"):
        read_lora(file)


def test_a_file_that_is_cut_short_is_refused(file):
    write(file, pair(Q, 8, 8))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InvalidRequestError, match="is cut short"):
        read_lora(file)


@pytest.mark.parametrize(
    ("note", "told"),
    [
        ('{"r": 2, "lora_alpha": 4, "use_dora": true}', "DoRA"),
        ('{"r": 2}', "lora_alpha"),
        ('{"r": 2, "lora_alpha": [1]}', "is damaged"),
        ('{"r": 2, "lora_alpha": 1, "alpha_pattern": {"(": 1}}', "is damaged"),
        ('{"r": 2, "lora_alpha": 1, "alpha_pattern": 7}', "is damaged"),
        ("[]", "is damaged"),
        ("{", "is damaged"),
    ],
)
def test_damaged_notes_on_alpha_are_refused(file, note, told):
    write(file, pair("blocks.0.self_attn.q", 8, 8))
    (file.parent / "adapter_config.json").write_text(note)
    with pytest.raises(InvalidRequestError, match=told):
        read_lora(file)
    write(file, pair("blocks.0.self_attn.q", 8, 8), {"lora_adapter_metadata": note})
    with pytest.raises(InvalidRequestError, match=told):
        read_lora(file)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
entries = json_values | st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "?"]), "shape": json_values, "data_offsets": json_values}
)


@settings(max_examples=500)
@given(
    table=st.dictionaries(
        st.sampled_from([f"{Q}.lora_A.weight", f"{Q}.lora_B.weight", f"{Q}.alpha", "__metadata__"]),
        entries,
    ),
    rest=st.binary(max_size=40),
)
def test_any_header_is_read_or_refused(tmp_path_factory, table, rest):
    head = json.dumps(table).encode()
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + rest)
    try:
        read_lora(path)
    except InvalidRequestError as error:
        assert str(path) in error.message


# --- Fit --------------------------------------------------------------------------------------


def test_what_has_no_place_is_left_out_and_counted(file):
    write(
        file,
        {
            **pair(Q, 8, 8),
            **pair("diffusion_model.blocks.0.cross_attn.k_img", 8, 8),
            **pair("diffusion_model.blocks.1.cross_attn.v_img", 8, 8),
            **pair("diffusion_model.img_emb.proj.1", 5, 5),
            # Of 36 channels, as inpainting models have.
            "diffusion_model.patch_embedding.lora_A.weight": (2, 36, 1, 2, 2),
            "diffusion_model.patch_embedding.lora_B.weight": (8, 2, 1, 1, 1),
            **pair("diffusion_model.head.head", 16, 8),
            **pair("lora_te_layers_0", 4, 4),
            "diffusion_model.blocks.0.self_attn.norm_q.diff": (8,),
        },
    )
    fit = fit_lora(read_lora(file), wan(), "mini")
    assert [change.target for change in fit.changes] == ["blocks.0.attn1.to_q.weight"]
    reasons = list(fit.left_out.values())
    assert reasons.count(OF_IMAGE) == 6
    assert reasons.count(NO_TRANSFORMER) == 2
    assert reasons.count(NO_LAYER) == 3
    assert reasons.count("of shape 8x36x1x2x2 where the model has 8x4x1x2x2") == 2
    told = fit.notice(file, "mini")
    assert told.startswith("style.safetensors: 13 keys do not fit mini and are left out (6 for the")
    assert told.endswith(", ...")


def test_what_fits_whole_is_not_talked_about(file):
    write(file, pair(Q, 8, 8))
    assert fit_lora(read_lora(file), wan(), "mini").notice(file, "mini") is None


def test_image_layers_fit_a_model_that_has_them(file):
    write(file, {**pair(Q, 8, 8), **pair("diffusion_model.blocks.0.cross_attn.k_img", 8, 8)})
    shapes = {**wan(), "blocks.0.attn2.add_k_proj.weight": (8, 8)}
    fit = fit_lora(read_lora(file), shapes, "inpainting")
    assert len(fit.changes) == 2
    assert not fit.left_out


@pytest.mark.parametrize(
    "shapes",
    [
        pair(Q, 16, 16),
        pair("diffusion_model.blocks.0.ffn.0", 24, 8),
        pair("diffusion_model.blocks.0.ffn.2", 8, 24),
        pair("diffusion_model.blocks.2.self_attn.q", 8, 8),
    ],
)
def test_another_size_of_transformer_is_refused(file, shapes):
    write(file, shapes)
    with pytest.raises(InvalidRequestError) as caught:
        fit_lora(read_lora(file), wan(), "mini")
    assert re.search(r"is for a transformer of .*, mini has width 8, .*", caught.value.message)


def test_a_lora_of_the_large_model_names_both(file):
    write(
        file,
        {
            **pair(Q, 5120, 5120),
            **pair("diffusion_model.blocks.39.ffn.0", 13824, 5120),
        },
    )
    small = find_model("flashi2v-1.3b").architecture
    with pytest.raises(InvalidRequestError) as caught:
        fit_lora(read_lora(file), wan(small.layers, small.width, small.ffn), "flashi2v-1.3b")
    for word in ("5120", "40 blocks", "uniworld-osp2-14b", "flashi2v-1.3b", "1536", "30 blocks"):
        assert word in caught.value.message
    assert "--model uniworld-osp2-14b" in caught.value.hint


def test_the_hint_names_a_model_that_can_be_run_and_is_there(file, monkeypatch, tmp_path):
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    write(file, {**pair(Q, 5120, 5120), **pair("diffusion_model.blocks.39.ffn.0", 13824, 5120)})
    lora = read_lora(file)
    cards = cards_of_size(lora.size)
    usable = [spec for spec in cards if spec.run_problem() is None]
    # Otherwise there would be nothing to choose from.
    assert len(usable) > 1
    assert len(cards) > len(usable)
    for last in (usable[0], usable[-1]):
        for part in last.parts:
            (last.weights_places()[-1] / part).mkdir(parents=True)
        with pytest.raises(InvalidRequestError) as caught:
            fit_lora(lora, wan(), "mini")
        assert caught.value.hint == f"--model {last.name}"
        shutil.rmtree(tmp_path / "home")


def test_a_lora_without_any_layer_that_fits_is_refused(file):
    write(file, pair("diffusion_model.img_emb.proj.1", 8, 8))
    with pytest.raises(InvalidRequestError, match=r"nothing in .* fits mini: for the picture"):
        fit_lora(read_lora(file), wan(), "mini")


def test_cards_are_found_by_size():
    mini = find_model("osp-mini")
    size = size_of_card(mini)
    assert size == size_of(installed_shapes(mini.weights_dir()))
    names = [card.name for card in cards_of_size(size)]
    assert "osp-mini" in names
    assert "uniworld-osp2-14b" not in names
    # One attention layer alone says the width, and fits whatever is as wide.
    assert "uniworld-osp2-14b" in [card.name for card in cards_of_size(Size(5120, None, 1))]


def test_a_header_names_every_tensor(file):
    write(file, {"a": (2, 3), "b": ()}, {"title": "x"}, values={"b": struct.pack("<f", 7)})
    header = read_header(file)
    assert {name: entry.shape for name, entry in header.entries.items()} == {"a": (2, 3), "b": ()}
    assert header.metadata == {"title": "x"}
    assert header.number("b") == 7
