"""Making training fit: how a frozen base and its adapter lie in memory while they are trained.

Order matters: first the adapter, then what is here, as a LoRA beside weights in float8 would be
made in float8, too.

The LoRA's weights, gradients and moments are in single precision; its two thin products are
computed in the precision of what they are given. PEFT would widen that to single precision and keep
it for the backward pass, once for each layer: with the default targets a block of Wan 1.3B would
keep 141 KB a token instead of 102 (by the sizes of saved tensors, in bfloat16), for products of
what was rounded already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers.hooks import apply_layerwise_casting
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from osp_cli.training.block_swap import BlockSwap, HostBuffer

# Beside the model's own lists, and what diffusers leaves alone by itself in blocks.
_KEPT = ("norm", "lora_")


class PreparedBase:
    """A model as `prepare_base` made it; closing it undoes all but the rounding to float8.

    Attributes:
        model: what was given.
        swap: of its blocks, or None.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.swap: BlockSwap | None = None
        self._undo: list[Callable[[], object]] = []

    @property
    def host_bytes(self) -> int:
        """Of the host's memory that swapped weights take."""
        return 0 if self.swap is None else self.swap.host_bytes

    def on_close(self, action: Callable[[], object]) -> None:
        """Notes what undoes a change; the last change is undone first."""
        self._undo.append(action)

    def close(self) -> None:
        """Undo; what was swapped is on the host then."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def prepare_base(
    model: Any,
    *,
    dtype: torch.dtype,
    quant: str = "none",
    device: torch.device,
    grad_checkpoint: bool = True,
    swap_blocks: int = 0,
    offload_activations: bool = False,
) -> PreparedBase:
    """Bring a transformer with its adapter to the device, in the way that the plan wants.

    Args:
        model: of diffusers, with `blocks`; loaded in `dtype`, frozen but for its adapter.
        dtype: that it computes in.
        quant: how frozen linear layers of the blocks are stored: `none`, or `fp8` for
            float8_e4m3fn. Norms, tables, embeddings, phi and the Fourier branch stay as they are.
        device: where it computes.
        grad_checkpoint: of each block only its input is kept; the rest is computed again.
        swap_blocks: so many frozen blocks wait in the host's memory.
        offload_activations: inputs of blocks wait in the host's memory.

    Raises:
        ValueError: swapping or moving inputs without checkpointing; weights that are trained are
            to be swapped or stored in float8; there are fewer blocks.
    """
    if (swap_blocks or offload_activations) and not grad_checkpoint:
        raise ValueError("swapped blocks and inputs on the host need gradient checkpointing")
    if quant not in ("none", "fp8"):
        raise ValueError(f"a base that is trained on is stored as none or fp8, not {quant}")
    if swap_blocks or quant != "none":
        _check_frozen(model)
    prepared = PreparedBase(model)
    try:
        for layer in _lora_layers(model):
            _widen(layer)
            _compute_as_given(layer, prepared)
        _place(model, prepared, dtype, quant, device, swap_blocks)
        if grad_checkpoint:
            function = _checkpointing(prepared.swap, device if offload_activations else None)
            model.enable_gradient_checkpointing(function)
            prepared.on_close(model.disable_gradient_checkpointing)
    except BaseException:
        prepared.close()
        raise
    return prepared


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that were taken so far: of the device, on the CPU of the process.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _check_frozen(model: Any) -> None:
    for name, parameter in model.blocks.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            raise ValueError(f"blocks.{name} is trained: it can be neither swapped nor rounded")


def _lora_layers(model: nn.Module) -> Iterator[BaseTunerLayer]:
    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


def _widen(layer: BaseTunerLayer) -> None:
    """Single precision for what is trained: steps of 1e-4 are lost in bfloat16."""
    for name, parameter in layer.named_parameters():
        if "lora_" in name and parameter.requires_grad:
            parameter.data = parameter.data.float()


def _compute_as_given(layer: BaseTunerLayer, prepared: PreparedBase) -> None:
    """The LoRA's products in the precision of their input, which PEFT is told to leave alone."""
    before = layer.__dict__.get("cast_input_dtype_enabled", True)
    layer.cast_input_dtype_enabled = False
    prepared.on_close(partial(setattr, layer, "cast_input_dtype_enabled", before))
    for name in ("lora_A", "lora_B"):
        for module in getattr(layer, name, {}).values():
            if isinstance(module, nn.Linear):
                module.forward = MethodType(_linear_as_given, module)
                prepared.on_close(partial(module.__dict__.pop, "forward", None))


def _linear_as_given(self: nn.Linear, values: Tensor) -> Tensor:
    bias = None if self.bias is None else self.bias.to(values.dtype)
    return F.linear(values, self.weight.to(values.dtype), bias)


def _place(
    model: Any,
    prepared: PreparedBase,
    dtype: torch.dtype,
    quant: str,
    device: torch.device,
    swap_blocks: int,
) -> None:
    """Block by block, so that never more than one is on the device that does not stay there."""
    for name, child in model.named_children():
        if name != "blocks":
            child.to(device)
    for tensor in (*model.parameters(recurse=False), *model.buffers(recurse=False)):
        tensor.data = tensor.data.to(device)
    if swap_blocks:
        prepared.swap = BlockSwap(model.blocks, swap_blocks, device)
        prepared.on_close(prepared.swap.close)
    lists = (model._keep_in_fp32_modules, model._skip_layerwise_casting_patterns)
    kept = (*_KEPT, *(name for names in lists for name in names or ()))
    for index, block in enumerate(model.blocks):
        block.to(device)
        if quant == "fp8":
            apply_layerwise_casting(
                block,
                storage_dtype=torch.float8_e4m3fn,
                compute_dtype=dtype,
                skip_modules_pattern=kept,
            )
        if prepared.swap is not None:
            prepared.swap.take(index)
    if prepared.swap is not None:
        prepared.swap.start()


def _checkpointing(swap: BlockSwap | None, offload_from: torch.device | None) -> Callable[..., Any]:
    """What diffusers calls for each block when gradients are wanted."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        if swap is None:
            return nullcontext(), nullcontext()
        return swap.checkpointed(), swap.recomputing()

    def run(module: nn.Module, hidden_states: Tensor, *others: Any) -> Any:
        if offload_from is None or not hidden_states.requires_grad:
            return checkpoint(
                module, hidden_states, *others, use_reentrant=False, context_fn=contexts
            )
        with _inputs_on_host(hidden_states, offload_from):
            return checkpoint(
                module, hidden_states, *others, use_reentrant=False, context_fn=contexts
            )

    return run


@contextmanager
def _inputs_on_host(hidden_states: Tensor, device: torch.device) -> Iterator[None]:
    """Inside, this tensor is kept for the backward pass in the host's memory; others as usual.

    `torch.autograd.graph.save_on_cpu` would also take what all blocks share, once for each, and
    waste what page-locked memory is rounded up by.
    """

    def pack(tensor: Tensor) -> Any:
        if tensor.data_ptr() != hidden_states.data_ptr() or tensor.shape != hidden_states.shape:
            return tensor
        flat = tensor.detach().contiguous()
        host = HostBuffer(flat.nbytes, pinned=device.type == "cuda")
        host.read(flat.view(torch.uint8).view(-1))
        return host, tensor.shape, tensor.dtype

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        host, shape, dtype = packed
        tensor = torch.empty(shape, dtype=dtype, device=device)
        host.write(tensor.view(torch.uint8).view(-1))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
