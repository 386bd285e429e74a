"""What a training step needs, by arithmetic: weights, what is kept for the backward pass, moments.

Saved bytes per token and block are measured on the shapes of Wan 1.3B and 14B with a LoRA of rank 8
beside queries, keys, values and feed-forward layers, whose products are computed in the base's
precision: 113 and 312 KB in bfloat16, which is 50 bytes per channel and 4 per channel of the
feed-forward layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from osp_cli.runtime.sizes import DTYPE_BYTES, PartSize, TransformerShape
from osp_cli.train_request import TrainRequest

# What a block keeps per token, by bytes of a number: per channel, and per channel inside its
# feed-forward layer.
_SAVED_WIDTH = {2: 50.05, 4: 70.0}
_SAVED_FFN = {2: 4.03, 4: 8.06}
# What is there while its gradients are computed: two of the feed-forward layer, and of hidden
# states some in single precision.
_GRADIENT_WIDTH, _GRADIENT_FFN = 12.0, 2.0
# The conditioning's rows, embedded, and their keys and values, per channel.
_CONTEXT = 16.0
# Storage of a block in float8, its biases and norms as they are.
_FP8 = 0.51
# Swapped blocks that are on the device at once, see `training.block_swap`; of sharded ones, that
# which computes and that which comes.
_SLOTS = 2
# Of moments per trained number: two in single precision; one byte each with their scales; Muon's.
_MOMENTS = {"adamw": 8.0, "adamw8bit": 2.1, "muon": 4.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one process computes at once in a step.

    Attributes:
        tokens: of one sample, on this device.
        samples: in one pass.
        rows: of the conditioning.
        trained: numbers in all.
        processes: among which weights and moments are shared out; 1 where each has all.
    """

    tokens: int
    samples: int
    rows: int
    trained: int
    processes: int = 1


def step_parts(
    request: TrainRequest,
    transformer: PartSize,
    shape: TransformerShape,
    step: Step,
    *,
    dtype: str,
    swap_blocks: int,
) -> dict[str, int]:
    """Bytes on the device in the highest moment of a step, by what takes them.

    Args:
        request: as asked; its `swap_blocks` is not read.
        transformer: the base.
        shape: of it.
        step: see there.
        dtype: that it computes in.
        swap_blocks: of its blocks, that wait on the host.
    """
    width = DTYPE_BYTES[dtype]
    tokens = step.tokens * step.samples
    inputs = tokens * shape.width * width
    saved = _SAVED_WIDTH[width] * shape.width + _SAVED_FFN[width] * shape.ffn
    gradient = _GRADIENT_WIDTH * shape.width + _GRADIENT_FFN * width * shape.ffn
    if not request.grad_checkpoint:
        kept, live = 0, tokens * saved * shape.layers
    else:
        # On the host they wait one by one, while the next is made.
        kept = inputs * (2 if request.offload_activations else shape.layers)
        live = tokens * saved
    average = 4 if request.ema else 0
    trained = step.trained / step.processes
    rest = tokens * gradient + step.samples * step.rows * shape.width * _CONTEXT
    if request.quant == "fp8":
        # Of a block whose gradients are computed, the weights are there in both precisions; without
        # checkpointing, of all.
        rest += _block(transformer, shape) * (1 if request.grad_checkpoint else shape.layers)
    return {
        "weights": resident_bytes(request, transformer, shape, step, swap_blocks),
        "adapter": int(trained * (8 if not request.full else 4)),
        "optimizer": int(trained * (_MOMENTS[request.optimizer] + average)),
        "inputs": int(kept),
        "block": int(live),
        "rest": int(rest),
    }


def resident_bytes(
    request: TrainRequest,
    transformer: PartSize,
    shape: TransformerShape,
    step: Step,
    swap_blocks: int,
) -> int:
    """Of the base's weights, those on the device."""
    block = stored_block(request, transformer, shape)
    if request.full:
        # What is trained is in single precision.
        gathered = _SLOTS * block if step.processes > 1 else 0
        return int(4 * transformer.parameters / step.processes + gathered)
    if step.processes > 1:
        return int(transformer.bytes / step.processes + _SLOTS * block)
    there = shape.layers - swap_blocks + min(_SLOTS, swap_blocks)
    return int(_outside(transformer, shape) + there * block)


def stored_block(request: TrainRequest, transformer: PartSize, shape: TransformerShape) -> float:
    """Bytes of one block as it is stored."""
    return _block(transformer, shape) * (_FP8 if request.quant == "fp8" else 1.0)


def host_bytes(
    request: TrainRequest,
    transformer: PartSize,
    shape: TransformerShape,
    step: Step,
    *,
    dtype: str,
    swap_blocks: int,
) -> int:
    """Of the host's memory, what waits there; page-locked, in pieces that waste nothing."""
    waiting = swap_blocks * stored_block(request, transformer, shape)
    if request.offload_activations:
        tokens = step.tokens * step.samples
        waiting += tokens * shape.width * DTYPE_BYTES[dtype] * shape.layers
    return int(waiting)


def step_operations(
    request: TrainRequest, transformer: PartSize, shape: TransformerShape, tokens: int, rows: int
) -> float:
    """Multiplications and additions for one sample, forth and back.

    Weights meet each token once in the forward pass, once for the gradients of what came in, once
    more where they are trained themselves, and once for what was not kept. Attention's backward
    pass is two and a half times its forward pass.
    """
    forward = 2.0 * transformer.parameters * tokens
    attention = 4.0 * shape.width * tokens * (tokens + rows) * shape.layers
    again = 1.0 if request.grad_checkpoint else 0.0
    return forward * (2.0 + again + request.full) + attention * (3.5 + again)


def _block(transformer: PartSize, shape: TransformerShape) -> float:
    return (transformer.bytes - transformer.outside) / shape.layers


def _outside(transformer: PartSize, shape: TransformerShape) -> float:
    return transformer.bytes - _block(transformer, shape) * shape.layers
