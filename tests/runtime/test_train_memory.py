"""The figures of a step against what a block really keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from osp_cli.models.state_dict import kept_in_fp32
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.runtime.sizes import PartSize, TransformerShape
from osp_cli.runtime.train_memory import Step, step_operations, step_parts
from osp_cli.train_request import TrainRequest
from osp_cli.training.adapters import add_adapter
from osp_cli.training.memory import prepare_base

WIDTH, FFN, LAYERS = 384, 2048, 2
SHAPE = TransformerShape(layers=LAYERS, width=WIDTH, ffn=FFN, heads=3)
PART = PartSize(parameters=1000, bytes=2000, largest=1000, outside=0, stored=2000)


def request_of(**changes):
    return TrainRequest(
        dataset=Path("clips"), name="glass", output=Path("runs"), model="flashi2v-1.3b", **changes
    )


def parts_of(tokens, *, dtype="bfloat16", **changes):
    step = Step(tokens=tokens, samples=1, rows=16, trained=100)
    return step_parts(request_of(**changes), PART, SHAPE, step, dtype=dtype, swap_blocks=0)


def kept_bytes(rows, dtype, *, grad_checkpoint):
    """Of all that a pass over `4 * rows` tokens keeps for its gradients, weights aside."""
    torch.manual_seed(0)
    model = FlashI2VTransformer3DModel(
        num_attention_heads=3, attention_head_dim=WIDTH // 3, in_channels=4, out_channels=4,
        text_dim=16, freq_dim=16, ffn_dim=FFN, num_layers=LAYERS, rope_max_seq_len=64,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if not kept_in_fp32(model, name):
            parameter.data = parameter.data.to(dtype)
    add_adapter(model, "qkv-ffn", 8, 4.0, 0)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with (
        prepare_base(
            model, dtype=dtype, device=torch.device("cpu"), grad_checkpoint=grad_checkpoint
        ),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        model(
            torch.randn(1, 4, 1, 2 * rows, 8, dtype=dtype), torch.tensor([500.0]),
            torch.randn(1, 16, 16, dtype=dtype), torch.randn(1, 4, 1, 2 * rows, 8, dtype=dtype),
            return_dict=False,
        )  # fmt: skip
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.bfloat16, "bfloat16"), (torch.float32, "float32")]
)
def test_what_blocks_keep_is_what_the_figures_say(dtype, name):
    few, many = (kept_bytes(rows, dtype, grad_checkpoint=False) for rows in (8, 24))
    per_token = (many - few) / (4 * 16)
    figures = [parts_of(tokens, dtype=name, grad_checkpoint=False) for tokens in (32, 96)]
    expected = (figures[1]["block"] - figures[0]["block"]) / 64
    assert 0.8 * expected < per_token < 1.05 * expected


def test_with_checkpoints_inputs_are_kept():
    few, many = (kept_bytes(rows, torch.bfloat16, grad_checkpoint=True) for rows in (8, 24))
    inputs = (parts_of(96)["inputs"] - parts_of(32)["inputs"]) / 64
    assert inputs == WIDTH * 2 * LAYERS
    # And what the head behind the blocks keeps.
    assert inputs < (many - few) / 64 < inputs + 20 * WIDTH


def test_gradients_cost_what_they_cost():
    """Counted by torch: forward, again, and backward without gradients of frozen weights."""
    torch.manual_seed(0)
    model = FlashI2VTransformer3DModel(
        num_attention_heads=2, attention_head_dim=32, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=256, num_layers=3, rope_max_seq_len=64,
    )  # fmt: skip
    add_adapter(model, "qkv-ffn", 1, 1.0, 0)
    tokens, rows = 256, 16
    blocks = sum(
        p.numel() for n, p in model.blocks.named_parameters() if p.dim() == 2 and "lora" not in n
    )
    # Keys and values of the conditioning are made of its rows, of which there are few.
    told = sum(2 * block.attn2.to_k.base_layer.weight.numel() for block in model.blocks)
    part = PartSize(parameters=blocks - told, bytes=1, largest=1, outside=0, stored=1)
    shape = TransformerShape(layers=3, width=64, ffn=256, heads=2)
    for checkpoint in (True, False):
        with (
            prepare_base(
                model, dtype=torch.float32, device=torch.device("cpu"), grad_checkpoint=checkpoint
            ),
            # Of the processor's own attention torch counts nothing.
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            latents = torch.randn(1, 4, 1, 32, 32)
            model(latents, torch.tensor([1.0]), torch.randn(1, rows, 16), latents)[
                0
            ].mean().backward()
        expected = step_operations(
            request_of(grad_checkpoint=checkpoint), part, shape, tokens, rows
        )
        assert counter.get_total_flops() == pytest.approx(expected, rel=0.15), checkpoint
