"""LoRAs in tensors: added to a transformer's weights, or attached beside them.

Both compute `W x + strength * (alpha / rank) * up @ down @ x`. Fusing costs nothing per step and
rounds the sum to the weight's type; attaching leaves the weights alone, which those must be that
are quantised, or mapped from disk and not to be copied.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from osp_cli.errors import CheckpointError
from osp_cli.models.lora_file import DAMAGED_HINT, Change, Difference, LoraFile, LowRank, Shape
from osp_cli.models.lora_fit import Fit
from osp_cli.models.original_names import transformer_name
from osp_cli.models.safetensors_header import not_finite

# Of the one adapter that all LoRAs are joined to; peft takes it for a name of modules too.
_ADAPTER = "osp_lora"


@dataclass(frozen=True, slots=True)
class Strong:
    """A LoRA with what of it fits, and the strength that was asked for."""

    lora: LoraFile
    fit: Fit
    strength: float


def parameter_shapes(model: nn.Module) -> dict[str, Shape]:
    """Shapes of all parameters; of quantised layers those that they had before."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            # Packed formats keep a parameter of other numbers.
            shapes[f"{name}.weight"] = (module.out_features, module.in_features)
    return shapes


def can_fuse(model: nn.Module) -> bool:
    """Whether all weights are plain floating-point numbers, to which others can be added."""
    return not getattr(model, "is_quantized", False) and all(
        _is_plain(parameter) for parameter in model.parameters()
    )


@torch.no_grad()
def fuse_loras(model: nn.Module, loras: Sequence[Strong]) -> None:
    """Add LoRAs to the weights, in single precision and rounded once.

    Each weight that changes becomes a new tensor on its device: the file from which the old one is
    mapped stays as it is.

    Raises:
        CheckpointError: a weight is quantised.
    """
    with _opened(loras) as files:
        for target, changes in _by_target(loras).items():
            _add(model, target, (_product(files, change, strong) for change, strong in changes))


@torch.no_grad()
def attach_loras(model: Any, loras: Sequence[Strong]) -> None:
    """Attach LoRAs beside the weights of a diffusers model, as one adapter of peft.

    Factors of several LoRAs stand side by side in it, `[up1 up2] @ [down1; down2]`, so that any
    number of them costs two small products a layer. Whole differences have no factors; they are
    added to the weights.

    Raises:
        CheckpointError: a whole difference belongs to a weight that is quantised.
    """
    state: dict[str, Tensor] = {}
    with _opened(loras) as files:
        for target, changes in _by_target(loras).items():
            _add(
                model,
                target,
                (_product(files, c, strong) for c, strong in changes if isinstance(c, Difference)),
            )
            downs, ups = [], []
            for change, strong in changes:
                if isinstance(change, LowRank):
                    down, up = _factors(files[strong.lora.path], change)
                    downs.append(down)
                    ups.append(up * (change.scale * strong.strength))
            if downs:
                name = target.removesuffix(".weight")
                state[f"{name}.lora_A.weight"] = torch.cat(downs)
                state[f"{name}.lora_B.weight"] = torch.cat(ups, dim=1)
    if state:
        # Scales are in the factors already; without alphas peft's own is 1.
        model.load_lora_adapter(state, prefix=None, adapter_name=_ADAPTER)


def strengths(
    lora: LoraFile, changes: Iterable[Change], norms: Mapping[str, float] | None
) -> dict[str, float]:
    """How much each layer is changed at strength 1: `||scale * up @ down||`, by its target.

    Args:
        lora: the file.
        changes: those of interest.
        norms: `||W||` of the weights; with them the numbers are relative, and a target that is not
            among them, or is all zeros as before training, is left out.

    Raises:
        CheckpointError: the file holds numbers that are not finite.
    """
    found = {}
    with safe_open(lora.path, framework="pt") as tensors:
        file = _File(lora.path, tensors)
        for change in changes:
            before = 1.0 if norms is None else norms.get(change.target, 0.0)
            if before:
                found[change.target] = _norm_of(file, change) / before
    return found


def weight_norms(folder: Path, targets: Collection[str]) -> dict[str, float]:
    """`||W||` of those parameters of the transformer in a folder of weights that are named."""
    norms = {}
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if (target := transformer_name(name)) in targets:
                    norms[target] = float(file.get_tensor(name).float().norm())
    return norms


def _norm_of(file: _File, change: Change) -> float:
    if isinstance(change, Difference):
        return float(_read(file, change.key).norm())
    down, up = _factors(file, change)
    down, up = down.flatten(1), up.flatten(1)
    # ||up @ down||^2 = sum of (up^T up) * (down down^T): two products as small as the rank.
    square = float(((up.T @ up) * (down @ down.T)).sum())
    return abs(change.scale) * math.sqrt(max(square, 0.0))


class _File(NamedTuple):
    """A file that is open, and what it is called."""

    path: Path
    tensors: Any


_Files = Mapping[Path, _File]


@contextmanager
def _opened(loras: Iterable[Strong]) -> Iterator[_Files]:
    """The files of all LoRAs, by their path."""
    with ExitStack() as stack:
        yield {
            path: _File(path, stack.enter_context(safe_open(path, framework="pt")))
            for path in (strong.lora.path for strong in loras)
        }


def _by_target(loras: Iterable[Strong]) -> dict[str, list[tuple[Change, Strong]]]:
    """What happens to each parameter, so that it is written once."""
    found = defaultdict(list)
    for strong in loras:
        for change in strong.fit.changes:
            found[change.target].append((change, strong))
    return found


def _factors(file: _File, change: LowRank) -> tuple[Tensor, Tensor]:
    """`down` and `up` in single precision, shaped as peft wants them: as the layer's weight is."""
    down, up = _read(file, change.down), _read(file, change.up)
    ones = (1,) * (down.ndim - 2)
    return down, up.reshape(*up.shape[:2], *ones)


def _read(file: _File, key: str) -> Tensor:
    tensor: Tensor = file.tensors.get_tensor(key).float()
    # One of them is enough to blacken a whole video.
    if not tensor.isfinite().all():
        raise CheckpointError(not_finite(file.path, key), hint=DAMAGED_HINT)
    return tensor


def _product(files: _Files, change: Change, strong: Strong) -> Tensor:
    """What is added to the weight, in single precision."""
    file = files[strong.lora.path]
    if isinstance(change, Difference):
        return _read(file, change.key) * strong.strength
    down, up = _factors(file, change)
    product = up.flatten(1) @ down.flatten(1)
    return product.mul_(change.scale * strong.strength).reshape(change.shape)


def _add(model: nn.Module, target: str, terms: Iterable[Tensor]) -> None:
    terms = list(terms)
    if not terms:
        return
    parameter = model.get_parameter(target)
    if not _is_plain(parameter):
        raise CheckpointError(
            f"{target} is quantised, and a LoRA changes it as a whole",
            hint="leave the LoRA out, or use weights that are not quantised",
        )
    total = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
    for term in terms:
        total = total + term.to(parameter.device)
    # Not in place: the old numbers may be those of a file that is mapped into memory.
    parameter.data = total.to(parameter.dtype)


def _is_plain(parameter: nn.Parameter) -> bool:
    # Numbers of one byte are storage alone, and subclasses pack something else.
    plain = type(parameter) is nn.Parameter and parameter.is_floating_point()
    return plain and parameter.element_size() > 1 and not parameter.is_meta
