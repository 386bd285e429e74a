"""A prepared base trains as an unprepared one does, and keeps what it says in what it says."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.training import memory
from osp_cli.training.memory import peak_memory, prepare_base

BASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "lora_bases.py")))
new_base, take_steps, gradients = BASES.new_base, BASES.take_steps, BASES.gradients
CPU = torch.device("cpu")


def prepared(model, **changes):
    settings = {"dtype": model.patch_embedding.weight.dtype, "device": CPU, **changes}
    return prepare_base(model, **settings)


def flat(found):
    return torch.cat([value.flatten().double() for _, value in sorted(found.items())])


def cosine(left, right):
    return float(torch.cosine_similarity(flat(left), flat(right), dim=0))


def saved_bytes(model):
    """Of all that one loss keeps for its gradients, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        BASES.loss_of(model, 0)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"grad_checkpoint": False},
        {},
        {"offload_activations": True},
        {"swap_blocks": 2},
        {"swap_blocks": 2, "offload_activations": True},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_way_gives_the_same_numbers_to_the_bit(changes, dtype):
    plain = new_base(dtype=dtype)
    with prepared(plain, grad_checkpoint=False):
        losses = take_steps(plain, 3)
    model = new_base(dtype=dtype)
    with prepared(model, **changes):
        assert take_steps(model, 3) == losses
        found = gradients(model)
    for name, gradient in gradients(plain).items():
        assert torch.equal(found[name], gradient), name


def test_in_single_precision_peft_computes_the_same():
    plain, model = new_base(), new_base()
    losses = take_steps(plain, 3)
    with prepared(model):
        assert take_steps(model, 3) == losses


def test_in_bfloat16_gradients_are_near_those_that_peft_computes_and_less_is_kept():
    plain, model = new_base(dtype=torch.bfloat16), new_base(dtype=torch.bfloat16)
    take_steps(plain, 1)
    wide = saved_bytes(plain)
    with prepared(model, grad_checkpoint=False):
        take_steps(model, 1)
        narrow = saved_bytes(model)
    assert cosine(gradients(plain), gradients(model)) > 0.999
    assert narrow < 0.85 * wide


@pytest.mark.parametrize("quant", ["none", "fp8"])
def test_what_is_trained_is_in_single_precision_throughout(quant):
    model = new_base(dtype=torch.bfloat16, lora_dtype=torch.bfloat16)
    with prepared(model, quant=quant):
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(trained.values())
        BASES.loss_of(model, 0).backward()
        optimizer.step()
    assert trained.keys() == {n for n, _ in model.named_parameters() if "lora_" in n}
    for parameter in trained.values():
        moments = optimizer.state[parameter]
        kinds = {parameter.dtype, parameter.grad.dtype}
        kinds |= {moments[name].dtype for name in ("exp_avg", "exp_avg_sq")}
        assert kinds == {torch.float32}


def test_float8_is_of_linear_layers_of_frozen_blocks_alone():
    model = new_base(dtype=torch.bfloat16)
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    with prepared(model, quant="fp8"):
        take_steps(model, 1)
    for name, parameter in model.named_parameters():
        is_small = "base_layer" in name or ".to_out." in name
        wanted = torch.float8_e4m3fn if is_small else before[name]
        assert parameter.dtype == wanted, name
    # Names that would be skipped are there, so that the above says something of them.
    for word in ("norm_q", "scale_shift_table", "fourier_embedding", "learnable_proj", "lora_A"):
        assert any(word in name for name in before), word


@pytest.mark.parametrize("grad_checkpoint", [True, False])
def test_float8_trains_as_a_model_of_rounded_weights(grad_checkpoint):
    rounded, model = (new_base(dtype=torch.bfloat16) for _ in range(2))
    for block in rounded.blocks:
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear) and "lora_" not in name:
                for parameter in module.parameters():
                    small = parameter.data.to(torch.float8_e4m3fn)
                    parameter.data = small.to(parameter.dtype)
    whole = new_base(dtype=torch.bfloat16)
    with (
        prepared(whole),
        prepared(rounded),
        prepared(model, quant="fp8", grad_checkpoint=grad_checkpoint),
    ):
        losses = take_steps(rounded, 2, learning_rate=0.0)
        assert take_steps(model, 2, learning_rate=0.0) == losses
        assert take_steps(whole, 2, learning_rate=0.0) != losses
        assert cosine(gradients(rounded), gradients(model)) > 0.99999
        assert 0.97 < cosine(gradients(whole), gradients(model)) < 0.99999


def test_float8_before_the_adapter_would_make_it_small_too():
    """The trap that the order of calls avoids."""
    torch.manual_seed(0)
    model = FlashI2VTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=40, num_layers=1, rope_max_seq_len=32,
    ).requires_grad_(False)  # fmt: skip
    from peft import LoraConfig

    with prepare_base(model, dtype=torch.float32, device=CPU, quant="fp8"):
        model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    small = [p.dtype for n, p in model.named_parameters() if "lora_" in n]
    assert torch.float8_e4m3fn in small


def test_inputs_of_blocks_wait_on_the_host_and_nothing_else_does(monkeypatch):
    taken = []

    class Watched(memory.HostBuffer):
        def __init__(self, size, *, pinned):
            super().__init__(size, pinned=pinned)
            taken.append(size)

    monkeypatch.setattr(memory, "HostBuffer", Watched)
    model = new_base(blocks=4)
    with prepared(model, offload_activations=True):
        BASES.loss_of(model, 0).backward()
    # 12 tokens of 24 channels in single precision; nothing is known of the first block's input that
    # would need gradients.
    assert taken == [12 * 24 * 4] * 3


def test_closing_undoes_what_can_be_undone():
    model, untouched = new_base(), new_base()
    with prepared(model, swap_blocks=2, offload_activations=True) as handle:
        assert model.is_gradient_checkpointing
        assert handle.host_bytes > 0
        take_steps(model, 1, learning_rate=0.0)
    assert not model.is_gradient_checkpointing
    assert handle.host_bytes == 0
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert saved_bytes(model) == saved_bytes(untouched)
    handle.close()


def test_what_goes_wrong_meanwhile_is_undone(monkeypatch):
    model = new_base()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def fail(*_args, **_kwargs):
        raise MemoryError("no more")

    monkeypatch.setattr(memory, "_checkpointing", fail)
    with pytest.raises(MemoryError):
        prepared(model, swap_blocks=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swap_blocks": 1, "grad_checkpoint": False}, "need gradient checkpointing"),
        ({"offload_activations": True, "grad_checkpoint": False}, "need gradient checkpointing"),
        ({"quant": "nf4"}, "none or fp8, not nf4"),
        ({"swap_blocks": 9}, "1 to 3 blocks"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        prepared(new_base(), **changes)


@pytest.mark.parametrize("changes", [{"swap_blocks": 1}, {"quant": "fp8"}])
def test_weights_that_are_trained_stay_whole_and_here(changes):
    model = new_base()
    model.blocks[1].requires_grad_(True)
    with pytest.raises(ValueError, match="is trained"):
        prepared(model, **changes)


def test_the_peak_is_of_this_process():
    before = peak_memory(CPU)
    kept = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert 2**24 < before <= peak_memory(CPU)
    assert peak_memory(CPU) >= kept.nbytes


@pytest.mark.parametrize("quant", ["none", "fp8"])
@pytest.mark.parametrize("swap_blocks", [0, 2, 3])
@pytest.mark.parametrize("quietly", [torch.no_grad, torch.inference_mode])
def test_samples_between_steps_change_nothing(quant, swap_blocks, quietly):
    found = []
    for looks in (False, True):
        model = new_base(dtype=torch.bfloat16)
        losses = []
        with prepared(model, quant=quant, swap_blocks=swap_blocks):
            for _ in range(3):
                losses += take_steps(model, 1)
                if looks:
                    with quietly():
                        assert BASES.predict(model).isfinite().all()
        found.append((losses, flat(gradients(model))))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
