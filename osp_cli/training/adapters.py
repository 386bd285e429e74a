"""What is trained: a LoRA beside a frozen transformer, all of its weights, or the small maps before
it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from osp_cli.errors import CheckpointError, InvalidRequestError
from osp_cli.models.lora_targets import select_layers
from osp_cli.training.trainer import step_generator

# PEFT makes it a name of modules, so it may be no method of them: `train` fails.
ADAPTER = "trained"
# Names that wrappers put between those of modules.
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:base_layer|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\."
)
_OF_LORA = re.compile(rf"\.(lora_[AB])\.{ADAPTER}\.")
# The parts of a transformer that only the paper's method has: phi (Eq. 16) and W^F (Eq. 21).
BRANCHES = ("learnable_proj", "fourier_embedding")
CONDITIONER_ADAPTERS = ("adapter", "image_adapter")
_MOST_NAMED = 5


def target_layers(model: nn.Module, targets: str) -> tuple[str, ...]:
    """Full names of a transformer's layers that the targets mean, in the model's order.

    Raises:
        InvalidRequestError: a part of the targets means no layer; see `models.lora_targets`.
    """
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return select_layers(linear, targets)


def add_adapter(model: Any, targets: str, rank: int, alpha: float, seed: int) -> None:
    """Put a LoRA beside layers of a transformer of diffusers, which is frozen.

    What is added is `alpha / rank * up @ down @ x`. `down` is drawn as PEFT draws it, uniformly up
    to `1 / sqrt(in)`, from the seed and the layer's name, so that it is the same on any machine and
    number of processes; `up` is zero, so nothing changes before the first step. Both are in single
    precision whatever the base is stored in, as are their gradients: steps of 1e-4 are lost in
    bfloat16. They are computed with in the precision of what they are given.

    Quantising comes after this: weights that are small already would make small LoRAs.

    Args:
        model: as loaded; it is changed.
        targets: see `models.lora_targets`.
        rank, alpha: of the LoRA.
        seed: of the run.

    Raises:
        InvalidRequestError: a part of the targets means no layer.
        ValueError: the model has an adapter already.
    """
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ValueError("the model has an adapter already")
    names = target_layers(model, targets)
    model.requires_grad_(False)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(names), init_lora_weights=False
    )
    # Its own random numbers are thrown away, and those of others must not change by that.
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(config, adapter_name=ADAPTER)
        layers = {_clean(name): m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
        assert layers.keys() == set(names), "PEFT chose other layers than were named"
        _replace_factors(layers, seed)


def _replace_factors(layers: Mapping[str, Any], seed: int) -> None:
    """Give PEFT's layers factors in single precision, drawn from the seed."""
    for name, layer in layers.items():
        # Else PEFT would keep what each layer reads once more, in single precision.
        layer.cast_input_dtype_enabled = False
        down, up = _Factor.like(layer.lora_A[ADAPTER]), _Factor.like(layer.lora_B[ADAPTER])
        layer.lora_A[ADAPTER], layer.lora_B[ADAPTER] = down, up
        if down.weight.is_meta:
            continue
        start = torch.empty(down.weight.shape)
        generator = step_generator(seed, f"lora/{name}", 0)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            down.weight.copy_(start)
            up.weight.zero_()


class _Factor(nn.Linear):
    """One half of a LoRA: kept in single precision, multiplied in that of what comes in."""

    @classmethod
    def like(cls, layer: nn.Linear) -> _Factor:
        return cls(
            layer.in_features,
            layer.out_features,
            bias=False,
            device=layer.weight.device,
            dtype=torch.float32,
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.linear(hidden_states, self.weight.to(hidden_states.dtype))


def remove_adapter(model: Any) -> None:
    """Take the LoRA away; the model is what it was, bit for bit, and stays frozen."""
    model.unload_lora()


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The base alone, inside the block; not between a forward pass and its backward pass."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def unfreeze(model: nn.Module, parts: Iterable[str] = ()) -> None:
    """Train weights of the model itself: all, or those of some of its parts, as `BRANCHES` are."""
    modules = [model.get_submodule(part) for part in parts] or [model]
    for module in modules:
        module.requires_grad_(True)


def unfreeze_conditioner(conditioner: Any) -> dict[str, nn.Parameter]:
    """Train the maps from frozen features to the transformer's conditions (Eq. 2 and 4).

    They are brought to single precision, in which the steps are not lost.

    Returns:
        Their parameters, as `adapter.fc1.weight` and `image_adapter.fc1.weight`.

    Raises:
        InvalidRequestError: this conditioner has none.
    """
    found: dict[str, nn.Parameter] = {}
    for part in CONDITIONER_ADAPTERS:
        module = getattr(conditioner, part, None)
        if module is not None:
            module.float().requires_grad_(True)
            found |= {f"{part}.{name}": p for name, p in module.named_parameters()}
    if not found:
        raise InvalidRequestError(
            "this model reads its prompts without an adapter, so there is none to train",
            hint="leave --train-adapter out",
        )
    return found


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Everything that takes steps, by its name: of a LoRA `blocks.0.attn1.to_q.lora_A.weight`.

    Neither PEFT's name of the adapter is in it, nor those of wrappers: a checkpoint fits whatever
    the model is wrapped in.
    """
    return {_clean(name): p for name, p in model.named_parameters() if p.requires_grad}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all trained numbers on the host, whole where processes share them.

    All processes of a group that shares them must call this together.
    """
    return {name: _whole(p) for name, p in trained_parameters(model).items()}


@torch.no_grad()
def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put numbers of `adapter_state` back.

    Raises:
        CheckpointError: they are of another adapter; nothing was changed.
    """
    held = trained_parameters(model)
    misshapen = [n for n in held.keys() & state.keys() if held[n].shape != state[n].shape]
    problems = [
        f"{len(names)} {kind}: {', '.join(sorted(names)[:_MOST_NAMED])}"
        for kind, names in (
            ("missing", held.keys() - state.keys()),
            ("unknown", state.keys() - held.keys()),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"these are weights of another adapter: {'; '.join(problems)}")
    for name, parameter in held.items():
        value = state[name]
        if isinstance(parameter, DTensor):
            value = distribute_tensor(
                value.to(parameter.device, parameter.dtype),
                parameter.device_mesh,
                parameter.placements,
            )
        parameter.copy_(value)


def _clean(name: str) -> str:
    return _OF_LORA.sub(r".\1.", _WRAPPERS.sub("", name))


def _whole(parameter: Tensor) -> Tensor:
    value = parameter.detach()
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.to("cpu", copy=True).contiguous()
