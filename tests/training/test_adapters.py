"""What is trained: the LoRA alone, from the same start everywhere, and nothing without it."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel
from torch import nn

from osp_cli.errors import CheckpointError, InvalidRequestError
from osp_cli.models.lora_targets import Geometry, count_parameters
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.runtime.quantize import quantize_blocks
from osp_cli.training.adapters import (
    adapter_state,
    add_adapter,
    load_adapter_state,
    remove_adapter,
    target_layers,
    trained_parameters,
    unfreeze,
    unfreeze_conditioner,
    without_adapter,
)
from osp_cli.training.mini_vlm import new_conditioner

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 20,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(3)
    model = FlashI2VTransformer3DModel(**CONFIG)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def model(base):
    return copy.deepcopy(base)


def velocity(model, dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 4, 2, 4, 6, generator=generator).to(dtype)
    text = torch.randn(1, 5, 20, generator=generator).to(dtype)
    return model(latents, torch.tensor([500.0]), text, fourier_features=latents).sample


def trained(model, seed=5):
    """As if it had learnt something."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained_parameters(model).values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [
        ({}, 31.8),
        ({"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, 9.5),
    ],
)
def test_real_geometry_has_the_published_number_of_parameters(sizes, millions):
    with init_empty_weights():
        model = WanTransformer3DModel(**sizes)
    add_adapter(model, "qkv-ffn", 8, 4.0, seed=1)
    count = sum(parameter.numel() for parameter in trained_parameters(model).values())
    assert round(count / 1e6, 1) == millions
    assert count == count_parameters(Geometry.of_config(model.config), "qkv-ffn", 8)


@pytest.mark.parametrize("targets", ["qkv-ffn", "attn", "all", "paint", "blocks.0.q,ffn.2"])
def test_arithmetic_and_the_model_agree(model, targets):
    names = target_layers(model, targets)
    add_adapter(model, targets, 3, 1.0, seed=1)
    held = trained_parameters(model)
    assert [*held] == [f"{name}.lora_{side}.weight" for name in names for side in "AB"]
    assert sum(p.numel() for p in held.values()) == count_parameters(
        Geometry.of_config(CONFIG), targets, 3
    )


def test_the_picture_layers_of_inpainting_transformers():
    config = {**CONFIG, "image_dim": 16, "added_kv_proj_dim": 24}
    model = WanTransformer3DModel(**config)
    names = target_layers(model, "all")
    assert "blocks.1.attn2.add_k_proj" in names
    assert names == tuple(n for n in target_layers(model, "blocks.0,blocks.1"))
    add_adapter(model, "all", 2, 2.0, seed=1)
    assert sum(p.numel() for p in trained_parameters(model).values()) == count_parameters(
        Geometry.of_config(config), "all", 2
    )


def test_nothing_changes_before_the_first_step_and_nothing_stays_when_it_is_gone(base, model):
    expected, before = velocity(base), copy.deepcopy(base.state_dict())
    add_adapter(model, "all", 4, 4.0, seed=1)
    assert torch.equal(velocity(model), expected)
    changed = velocity(trained(model))
    assert not torch.equal(changed, expected)
    with without_adapter(model):
        assert torch.equal(velocity(model), expected)
    assert torch.equal(velocity(model), changed)
    remove_adapter(model)
    assert torch.equal(velocity(model), expected)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not trained_parameters(model)
    # And another may come.
    add_adapter(model, "attn", 2, 2.0, seed=1)


def test_only_the_adapter_takes_steps(model):
    add_adapter(model, "qkv-ffn", 4, 4.0, seed=1)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(trained_parameters(model).values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        velocity(model).square().mean().backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == ("lora_" not in name), name


def test_the_start_follows_from_seed_and_name_alone(base):
    def start(targets="all", seed=1, dtype=torch.float32, before=0):
        torch.manual_seed(before)
        model = copy.deepcopy(base).to(dtype)
        add_adapter(model, targets, 4, 4.0, seed)
        return adapter_state(model)

    one = start()
    for other in (start(before=9), start(dtype=torch.bfloat16)):
        assert all(torch.equal(one[name], other[name]) for name in one)
    # What else is trained, or in which order, plays no part.
    fewer = start("blocks.1.ffn")
    assert len(fewer) == 4
    assert all(torch.equal(one[name], value) for name, value in fewer.items())
    key = "blocks.0.attn1.to_q.lora_A.weight"
    assert not torch.equal(one[key], start(seed=2)[key])
    assert not torch.equal(one[key], one[key.replace("to_q", "to_k")])
    bound = 1 / 24**0.5
    assert 0.8 * bound < one[key].abs().max() <= bound
    assert not one[key.replace("lora_A", "lora_B")].any()


def test_the_random_numbers_of_others_are_left_alone(model):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    add_adapter(model, "all", 4, 4.0, seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("quant", ["none", "fp8"])
def test_it_is_in_single_precision_whatever_the_base_is(model, quant):
    model = model.to(torch.bfloat16)
    add_adapter(model, "all", 4, 4.0, seed=1)
    quantize_blocks(model, quant, compute_dtype=torch.bfloat16, device=torch.device("cpu"))
    stored = model.get_parameter("blocks.0.attn1.to_q.base_layer.weight").dtype
    assert stored == (torch.float8_e4m3fn if quant == "fp8" else torch.bfloat16)
    velocity(model, torch.bfloat16).float().square().mean().backward()
    for name, parameter in trained_parameters(model).items():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name
        assert bool(parameter.grad.any()) == name.endswith("lora_B.weight"), name


def test_its_strength_is_alpha_over_rank(base, model):
    add_adapter(model, "blocks.0.self_attn.q", 8, 4.0, seed=1)
    trained(model)
    state = adapter_state(model)
    name = "blocks.0.attn1.to_q"
    expected = copy.deepcopy(base)
    product = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
    expected.get_submodule(name).weight.data += 0.5 * product
    torch.testing.assert_close(velocity(model), velocity(expected), atol=1e-5, rtol=1e-5)


def test_numbers_go_out_and_come_back(base, model):
    add_adapter(model, "all", 4, 4.0, seed=1)
    state = adapter_state(trained(model))
    assert all(value.device.type == "cpu" and not value.requires_grad for value in state.values())
    other = copy.deepcopy(base)
    add_adapter(other, "all", 4, 4.0, seed=2)
    load_adapter_state(other, state)
    assert torch.equal(velocity(other), velocity(model))
    # Copies: training on does not change them.
    kept = copy.deepcopy(state)
    trained(model, seed=6)
    assert all(torch.equal(state[name], kept[name]) for name in state)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.popitem(), "1 missing: blocks.1.ffn.net.2.lora_B.weight"),
        (lambda state: state.update(other=torch.ones(1)), "1 unknown: other"),
        (
            lambda state: state.update({"blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 24)}),
            "1 of another shape: blocks.0.attn1.to_q.lora_A.weight",
        ),
    ],
)
def test_numbers_of_another_adapter_are_refused_whole(model, change, told):
    add_adapter(model, "all", 4, 4.0, seed=1)
    before = adapter_state(model)
    state = {name: value + 1 for name, value in before.items()}
    change(state)
    with pytest.raises(CheckpointError, match=told):
        load_adapter_state(model, state)
    after = adapter_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_shared_out_weights_go_out_whole_and_come_back(base, model):
    from torch.distributed import HashStore, destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    add_adapter(model, "all", 4, 4.0, seed=1)
    before = adapter_state(trained(model))
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(p, DTensor) for p in trained_parameters(model).values())
        state = adapter_state(model)
        assert not any(isinstance(value, DTensor) for value in state.values())
        assert state.keys() == before.keys()
        assert all(torch.equal(state[name], before[name]) for name in before)
        load_adapter_state(model, {name: value + 1 for name, value in before.items()})
        after = adapter_state(model)
        assert all(torch.equal(after[name], before[name] + 1) for name in before)
    finally:
        destroy_process_group()


def test_wrappers_do_not_show_in_names(model):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    add_adapter(model, "all", 4, 4.0, seed=1)
    names = [*trained_parameters(model)]
    model.blocks[0] = checkpoint_wrapper(model.blocks[0])
    assert [*trained_parameters(model)] == names
    assert [*trained_parameters(torch.nn.ModuleDict({"_orig_mod": model}))] == names


def test_a_second_adapter_and_unknown_layers_are_refused(model):
    with pytest.raises(InvalidRequestError, match="'kv' means no layer"):
        add_adapter(model, "q,kv", 4, 4.0, seed=1)
    # Nothing was changed by that.
    assert all(parameter.requires_grad for parameter in model.parameters())
    add_adapter(model, "q", 4, 4.0, seed=1)
    with pytest.raises(ValueError, match="has an adapter already"):
        add_adapter(model, "q", 4, 4.0, seed=1)


def test_all_weights_or_some_parts(model):
    model.requires_grad_(False)
    unfreeze(model, ["learnable_proj"])
    assert {name.split(".")[0] for name in trained_parameters(model)} == {"learnable_proj"}
    unfreeze(model)
    assert trained_parameters(model).keys() == dict(model.named_parameters()).keys()


def test_the_maps_before_the_transformer():
    conditioner = new_conditioner(1, 24)
    conditioner.adapter.to(torch.bfloat16).requires_grad_(False)
    found = unfreeze_conditioner(conditioner)
    assert [*found] == [
        f"{part}.fc{layer}.{kind}"
        for part in ("adapter", "image_adapter")
        for layer in (1, 2)
        for kind in ("weight", "bias")
    ]
    assert all(p.requires_grad and p.dtype == torch.float32 for p in found.values())
    with pytest.raises(InvalidRequestError, match="without an adapter"):
        unfreeze_conditioner(object())
