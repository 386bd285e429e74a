"""LoRAs of every layout: equal factors make equal weights, fused or attached, alone or stacked."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from osp_cli.errors import CheckpointError
from osp_cli.models import safetensors_header
from osp_cli.models.lora import (
    Strong,
    attach_loras,
    can_fuse,
    fuse_loras,
    parameter_shapes,
    strengths,
    weight_norms,
)
from osp_cli.models.lora_file import read_lora
from osp_cli.models.lora_fit import fit_lora
from osp_cli.models.state_dict import load_transformer
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel

# Helpers that other rooms' tests share.
FILES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "lora_files.py")))
factors, write = FILES.factors, FILES.write

EVERYWHERE = r".*"


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(3)
    model = FlashI2VTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=20,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def velocity(model):
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 4, 2, 4, 6, generator=generator)
    text = torch.randn(1, 5, 20, generator=generator)
    with torch.inference_mode():
        return model(latents, torch.tensor([500.0]), text, fourier_features=latents).sample


def strong(model, path, strength=1.0):
    lora = read_lora(path)
    return Strong(lora, fit_lora(lora, parameter_shapes(model), "tiny"), strength)


def applied(base, *files, apply=fuse_loras):
    """A copy of the model with LoRAs, each a path or a path and its strength."""
    model = copy.deepcopy(base)
    pairs = [file if isinstance(file, tuple) else (file, 1.0) for file in files]
    apply(model, [strong(model, *pair) for pair in pairs])
    return model


def by_hand(base, *sums):
    """The model's weights plus `scale * up @ down` of each `(factors, scale)`, layer by layer."""
    model = copy.deepcopy(base)
    for pairs, scale in sums:
        for name, (down, up) in pairs.items():
            weight = model.get_submodule(name).weight
            factor = scale[name] if isinstance(scale, dict) else scale
            for row in range(weight.shape[0]):
                weight[row] += factor * torch.tensordot(up[row].flatten(), down, dims=1)
    return model


def assert_same_weights(got, expected):
    torch.testing.assert_close(got.state_dict(), expected.state_dict(), atol=1e-6, rtol=1e-5)


# --- Layouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [*FILES.LAYOUTS, *FILES.SPELLINGS])
def test_every_layout_makes_the_same_weights(base, tmp_path, layout):
    pairs = factors(base, EVERYWHERE)
    told = None if layout == "comfy" else 6.0
    path = write(tmp_path / "a.safetensors", layout, pairs, alpha=told)
    model = applied(base, (path, 0.5))
    assert_same_weights(model, by_hand(base, (pairs, 0.5 * (6.0 if told else 3.0) / 3)))
    assert not strong(base, path).fit.left_out


@pytest.mark.parametrize("layout", FILES.LAYOUTS)
def test_the_layout_is_named(base, tmp_path, layout):
    has_alpha = layout in ("videox", "musubi", "comfy_alpha")
    path = write(
        tmp_path / "a.safetensors", layout, factors(base), alpha=1.0 if has_alpha else None
    )
    assert read_lora(path).layout == layout


def test_without_alpha_videox_is_its_peft_form_and_counts_in_full(base, tmp_path):
    pairs = factors(base)
    path = write(tmp_path / "a.safetensors", "videox", pairs)
    assert read_lora(path).layout == "videox_peft"
    assert_same_weights(applied(base, path), by_hand(base, (pairs, 1.0)))


@pytest.mark.parametrize("apply", [fuse_loras, attach_loras])
def test_each_layer_has_its_own_rank_and_alpha(base, tmp_path, apply):
    pairs = {
        **factors(base, r".*attn1\..*", rank=2, seed=1),
        **factors(base, r".*ffn.*", rank=5, seed=2),
        **factors(base, r"condition.*|proj_out", rank=1, seed=3),
    }
    alphas = {name: 0.5 + index for index, name in enumerate(pairs)}
    path = write(tmp_path / "a.safetensors", "musubi", pairs, alpha=alphas)
    assert read_lora(path).ranks == (1, 2, 5)
    scales = {name: alphas[name] / len(pairs[name][0]) for name in pairs}
    got = velocity(applied(base, path, apply=apply))
    torch.testing.assert_close(got, velocity(by_hand(base, (pairs, scales))), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("pattern", [r"blocks\.1\..*", r".*ffn.*", "patch_embedding", "proj_out"])
@pytest.mark.parametrize("apply", [fuse_loras, attach_loras])
def test_a_lora_may_touch_only_some_layers(base, tmp_path, pattern, apply):
    pairs = factors(base, pattern)
    path = write(tmp_path / "a.safetensors", "comfy", pairs)
    got = velocity(applied(base, path, apply=apply))
    torch.testing.assert_close(got, velocity(by_hand(base, (pairs, 1.0))), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, velocity(base), atol=1e-3)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_half_precision_files(base, tmp_path, dtype, error):
    pairs = factors(base)
    halves = {name: (down.to(dtype), up.to(dtype)) for name, (down, up) in pairs.items()}
    path = write(tmp_path / "a.safetensors", "peft", halves)
    # A number of the file is rounded, the sum is not.
    rounded = {name: (down.float(), up.float()) for name, (down, up) in halves.items()}
    assert_same_weights(applied(base, path), by_hand(base, (rounded, 1.0)))
    exact = by_hand(base, (pairs, 1.0)).state_dict()
    for name, weight in applied(base, path).state_dict().items():
        torch.testing.assert_close(weight, exact[name], atol=error, rtol=error)


# --- What other programs write ----------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 8},
        {"lora_alpha": 8, "use_rslora": True},
        {"lora_alpha": 8, "rank_pattern": {"attn1.to_q": 2}, "alpha_pattern": {"to_v": 1}},
        {"lora_alpha": 8, "alpha_pattern": {r"blocks\.1\.attn2\.to_k": 3, "to_k": 5}},
    ],
)
def test_a_folder_of_peft(base, tmp_path, settings):
    torch.manual_seed(5)
    config = LoraConfig(
        r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False, **settings
    )
    # A plain module of the same layers, as PEFT takes no notice of diffusers.
    wrapped = get_peft_model(nn.ModuleDict({"blocks": copy.deepcopy(base.blocks)}), config)
    wrapped.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    merged = copy.deepcopy(base)
    merged.blocks = wrapped.merge_and_unload()["blocks"]
    assert_same_weights(applied(base, file), merged)
    assert read_lora(file).notes == (f"alpha is from {tmp_path / 'adapter_config.json'}",)


@pytest.mark.parametrize("name", ["to_q", "to_out.0", "ffn.net.0.proj"])
def test_a_file_of_diffusers(base, tmp_path, name):
    torch.manual_seed(5)
    model = copy.deepcopy(base)
    config = LoraConfig(r=4, lora_alpha=9, target_modules=[name], init_lora_weights=False)
    model.add_adapter(config, adapter_name="mine")
    model.save_lora_adapter(tmp_path, adapter_name="mine")
    [file] = tmp_path.iterdir()
    expected = velocity(model)
    torch.testing.assert_close(velocity(applied(base, file)), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, velocity(base), atol=1e-3)


def test_peft_s_file_counts_only_beside_its_own_weights(base, tmp_path):
    pairs = factors(base)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 30}))
    path = write(tmp_path / "a.safetensors", "peft", pairs)
    assert read_lora(path).alphas == (30.0,)
    # Of two files nobody knows whose it is.
    write(tmp_path / "b.safetensors", "peft", pairs)
    assert read_lora(path).alphas == (None,)
    # And what speaks of another rank is another's.
    (tmp_path / "b.safetensors").unlink()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 30}))
    assert read_lora(path).alphas == (None,)
    assert "another rank" in read_lora(path).notes[0]


# --- Several, whole differences, and other storage --------------------------------------------


@pytest.mark.parametrize("apply", [fuse_loras, attach_loras])
def test_loras_stack(base, tmp_path, apply):
    one, two = factors(base, rank=2, seed=1), factors(base, r".*attn.*", rank=4, seed=2)
    first = write(tmp_path / "a.safetensors", "videox", one, alpha=1.0)
    second = write(tmp_path / "b.safetensors", "diffusers", two)
    model = applied(base, (first, 0.7), (second, -1.3), apply=apply)
    expected = by_hand(base, (one, 0.7 / 2), (two, -1.3))
    torch.testing.assert_close(velocity(model), velocity(expected), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("apply", [fuse_loras, attach_loras])
def test_whole_differences(base, tmp_path, apply):
    torch.manual_seed(6)
    changes = {
        "blocks.0.self_attn.q.diff_b": ("blocks.0.attn1.to_q.bias", 24),
        "blocks.1.cross_attn.norm_k.diff": ("blocks.1.attn2.norm_k.weight", 24),
        "blocks.0.norm3.diff": ("blocks.0.norm2.weight", 24),
        "blocks.0.norm3.diff_b": ("blocks.0.norm2.bias", 24),
        "patch_embedding.diff": ("patch_embedding.weight", (24, 4, 1, 2, 2)),
        "head.head.diff_b": ("proj_out.bias", 16),
        "blocks.1.modulation.diff": ("blocks.1.scale_shift_table", (1, 6, 24)),
        "blocks.0.diff_m": ("blocks.0.scale_shift_table", (1, 6, 24)),
        "head.diff_m": ("scale_shift_table", (1, 2, 24)),
    }
    extra = {key: torch.randn(shape) for key, (_, shape) in changes.items()}
    pairs = factors(base, r"blocks\.0\.attn1\.to_q")
    path = write(
        tmp_path / "a.safetensors",
        "comfy",
        pairs,
        **{f"diffusion_model.{key}": value for key, value in extra.items()},
    )
    expected = by_hand(base, (pairs, 0.5))
    for key, (target, _) in changes.items():
        expected.get_parameter(target).add_(0.5 * extra[key])
    model = applied(base, (path, 0.5), apply=apply)
    torch.testing.assert_close(velocity(model), velocity(expected), atol=1e-4, rtol=1e-4)


def test_weights_on_disk_stay_as_they_are(base, tmp_path):
    base.save_pretrained(tmp_path / "transformer")
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    path = write(tmp_path / "a.safetensors", "peft", factors(base, EVERYWHERE))
    model = load_transformer(tmp_path / "transformer", dtype=torch.float32)
    assert can_fuse(model)
    fuse_loras(model, [strong(model, path)])
    assert not torch.allclose(velocity(model), velocity(base), atol=1e-3)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before
    again = load_transformer(tmp_path / "transformer", dtype=torch.float32)
    assert torch.equal(velocity(again), velocity(base))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_sum_is_rounded_once_to_the_weights_type(base, tmp_path, dtype):
    pairs = factors(base, r"blocks\.0\.attn1\.to_q")
    path = write(tmp_path / "a.safetensors", "peft", pairs)
    model = copy.deepcopy(base)
    weight = model.blocks[0].attn1.to_q.weight
    weight.data = weight.data.to(dtype)
    down, up = pairs["blocks.0.attn1.to_q"]
    expected = (weight.double() + (up @ down).double()).to(dtype)
    fuse_loras(model, [strong(model, path)])
    got = model.blocks[0].attn1.to_q.weight
    assert got.dtype == dtype
    steps = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(got, expected, atol=steps, rtol=steps)


@pytest.mark.parametrize("apply", [fuse_loras, attach_loras])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_offloading_afterwards_changes_nothing(base, tmp_path, apply, kind):
    path = write(tmp_path / "a.safetensors", "peft", factors(base, EVERYWHERE))
    model = applied(base, path, apply=apply)
    expected = velocity(model)
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=kind,
        **blocks,
    )
    assert torch.equal(velocity(model), expected)


@pytest.mark.parametrize("apply", [fuse_loras, attach_loras])
def test_fp8_storage_afterwards_costs_as_little_as_without(base, tmp_path, apply):
    def stored(model):
        model.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
        )
        return velocity(model)

    path = write(tmp_path / "a.safetensors", "peft", factors(base))
    small = applied(base, (path, 0.3), apply=apply)
    exact = velocity(small)
    error = (stored(small) - exact).norm() / exact.norm()
    plain = velocity(base)
    error_without = (stored(copy.deepcopy(base)) - plain).norm() / plain.norm()
    assert 0 < error < max(2e-2, 1.5 * error_without)


def test_what_is_no_plain_number_is_not_fused(base, tmp_path):
    pairs = factors(base, r"blocks\.0\.attn1\.to_q")
    path = write(tmp_path / "a.safetensors", "peft", pairs)
    model = copy.deepcopy(base)
    weight = model.blocks[0].attn1.to_q.weight
    weight.data = weight.data.to(torch.float8_e4m3fn)
    assert not can_fuse(model)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn1\.to_q\.weight is quantised"):
        fuse_loras(model, [strong(model, path)])


def test_quantised_weights_carry_loras_beside_them(base, tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    from diffusers import TorchAoConfig

    base.save_pretrained(tmp_path / "transformer")
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    path = write(tmp_path / "a.safetensors", "peft", factors(base))
    model = FlashI2VTransformer3DModel.from_pretrained(
        tmp_path / "transformer", quantization_config=config, dtype=torch.float32
    ).eval()
    assert not can_fuse(model)
    attach_loras(model, [strong(model, path)])
    exact = velocity(applied(base, path))
    assert (velocity(model) - exact).norm() < 0.03 * exact.norm()


def test_numbers_that_are_not_finite_are_refused(base, tmp_path):
    pairs = factors(base, r"blocks\.0\.attn1\.to_q")
    pairs["blocks.0.attn1.to_q"][0][0, 0] = torch.inf
    path = write(tmp_path / "a.safetensors", "peft", pairs)
    with pytest.raises(CheckpointError) as caught:
        applied(base, path)
    assert caught.value.message == (
        f"{path} is damaged: blocks.0.self_attn.q.lora_A.weight holds numbers that are not finite "
        "(NaN or infinity)"
    )
    assert "leave it out" in caught.value.hint


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *itertools.product(
            (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2),
            (math.nan, math.inf, -math.inf),
        ),
        # It knows no infinity.
        (torch.float8_e4m3fn, math.nan),
    ],
)
def test_such_numbers_are_found_without_torch(tmp_path, dtype, value, monkeypatch):
    # The last piece is shorter than the others, and ends with the culprit.
    monkeypatch.setattr(safetensors_header, "_CHUNK_NUMBERS", 4)
    limits = torch.finfo(dtype)
    numbers = [0.0, -1.0, 3.0, limits.max, limits.min, limits.tiny] * 3
    good = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    state = {"good": good, "bad": torch.cat([good, torch.tensor([value]).to(dtype)])}
    state["count"] = torch.full((3,), -1)
    save_file(state, tmp_path / "a.safetensors")
    header = safetensors_header.read_header(tmp_path / "a.safetensors")
    assert header.first_not_finite(["good", "count"]) is None
    assert header.first_not_finite(header.entries) == "bad"


# --- Strength ---------------------------------------------------------------------------------


def test_strength_is_the_norm_of_the_product(base, tmp_path):
    pairs = factors(base, EVERYWHERE)
    extra = {"diffusion_model.blocks.0.norm3.diff": torch.arange(24.0)}
    path = write(tmp_path / "a.safetensors", "comfy_alpha", pairs, alpha=6.0, **extra)
    lora = read_lora(path)
    plain = strengths(lora, lora.changes, None)
    for name, (down, up) in pairs.items():
        product = 2.0 * up.flatten(1) @ down.flatten(1)
        assert plain[f"{name}.weight"] == pytest.approx(product.norm().item(), rel=1e-4)
    assert plain["blocks.0.norm2.weight"] == pytest.approx(torch.arange(24.0).norm().item())

    base.save_pretrained(tmp_path / "transformer")
    norms = weight_norms(tmp_path, {"proj_out.weight", "blocks.1.ffn.net.2.weight"})
    relative = strengths(lora, lora.changes, norms)
    assert relative.keys() == norms.keys()
    weight = base.proj_out.weight.norm().item()
    assert relative["proj_out.weight"] == pytest.approx(plain["proj_out.weight"] / weight)


def test_weights_of_zeros_have_no_share(base, tmp_path):
    path = write(tmp_path / "a.safetensors", "peft", factors(base, "proj_out"))
    lora = read_lora(path)
    assert strengths(lora, lora.changes, {"proj_out.weight": 0.0}) == {}


# --- Files of the tests themselves ------------------------------------------------------------


def test_the_layouts_of_the_tests_differ(base, tmp_path):
    keys = set()
    for layout in FILES.LAYOUTS:
        path = write(tmp_path / "a.safetensors", layout, factors(base, "proj_out"))
        keys.add(frozenset(load_file(path)))
    assert len(keys) == len(FILES.LAYOUTS)
    assert FILES.original("blocks.7.ffn.net.0.proj") == "blocks.7.ffn.0"
    assert len(FILES.layers(base)) == 20
