"""Smaller weights: how far off, what stays as it is, and what is refused."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from osp_cli.errors import InvalidRequestError
from osp_cli.media.recipes import read_recipe
from osp_cli.media.video import read_video
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.runtime.offload import place_transformer
from osp_cli.runtime.quantize import check_quant, quantize_blocks
from osp_cli.runtime.runner import run
from osp_cli.runtime.settling import settle

CPU = torch.device("cpu")
# Relative errors that the documentation states, with room for another random model.
STATED = {"fp8": 0.02, "int8": 0.01, "nf4": 0.04}
PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    model = FlashI2VTransformer3DModel(
        num_attention_heads=4, attention_head_dim=64, ffn_dim=512, num_layers=3, text_dim=64
    )
    keep = set(model._keep_in_fp32_modules)
    for name, parameter in model.named_parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
        if not keep & set(name.split(".")):
            parameter.data = parameter.data.bfloat16()
    return model.eval()


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 3, 8, 12, generator=generator).bfloat16()
    context = torch.randn(1, 20, 64, generator=generator).bfloat16()
    return latents, torch.tensor([700.0]), context, latents


def output(model, inputs):
    with torch.no_grad():
        return model(*inputs, return_dict=False)[0].float()


def smaller(transformer, quant):
    if (package := PACKAGES.get(quant)) and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    model = copy.deepcopy(transformer)
    quantize_blocks(model, quant, compute_dtype=torch.bfloat16, device=CPU)
    return model


def error(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("quant", STATED)
def test_the_error_is_the_stated_one(transformer, inputs, quant):
    model = smaller(transformer, quant)
    off = error(output(model, inputs), output(transformer, inputs))
    assert 0 < off < STATED[quant]
    # What it computes in, not what it stores.
    assert model.dtype == torch.bfloat16


def test_fp8_halves_the_blocks_and_spares_the_rest(transformer):
    model = smaller(transformer, "fp8")

    def size(part):
        return sum(p.numel() * p.element_size() for p in part.parameters())

    # The shifts and scales of norms stay in four bytes.
    assert 0.5 < size(model.blocks) / size(transformer.blocks) < 0.52
    block = model.blocks[0]
    assert block.attn1.to_q.weight.dtype == torch.float8_e4m3fn
    assert block.attn1.norm_q.weight.dtype == torch.bfloat16
    assert block.scale_shift_table.dtype == torch.float32
    for name in ("patch_embedding", "fourier_embedding", "learnable_proj", "proj_out"):
        dtypes = {p.dtype for p in getattr(model, name).parameters()}
        assert torch.float8_e4m3fn not in dtypes


@pytest.mark.parametrize("offload", ["group", "sequential"])
def test_offload_of_smaller_weights_changes_nothing(
    transformer, inputs, request_for, tmp_path, offload
):
    plan = replace(settle(request_for())[0].plan, offload=offload)
    expected = output(smaller(transformer, "fp8"), inputs)
    placed = place_transformer(smaller(transformer, "fp8"), plan, CPU, tmp_path)
    for _ in range(2):
        assert torch.equal(output(placed, inputs), expected)


def test_nothing_is_done_where_nothing_is_asked(transformer, inputs):
    for quant in ("none", "gguf"):
        model = smaller(transformer, quant)
        assert torch.equal(output(model, inputs), output(transformer, inputs))


def test_a_run_with_smaller_weights_says_so_and_looks_alike(request_for):
    list(run(request_for(output=Path("plain.mp4"))))
    list(run(request_for(output=Path("small.mp4"), quant="fp8")))
    assert read_recipe("plain.mp4")["quant"] == "none"
    assert read_recipe("small.mp4")["quant"] == "fp8"
    plain, small = (read_video(f"{name}.mp4").astype(int) for name in ("plain", "small"))
    assert (plain != small).any()
    assert abs(plain - small).mean() < 8


def test_a_device_without_the_type_is_told():
    with pytest.raises(InvalidRequestError, match="Apple") as refused:
        check_quant("fp8", torch.device("mps"))
    assert refused.value.exit_code == 2
    check_quant("fp8", CPU)
