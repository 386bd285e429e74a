"""Whole weights that were trained with a LoRA, put into the parts that they are of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from osp_cli.errors import CheckpointError


@torch.no_grad()
def blend(modules: Mapping[str, nn.Module], files: Sequence[tuple[Path, float]]) -> None:
    """Move weights towards those of files, `w + sum of strength * (trained - w)`.

    At strength 1 one file's weights are there exactly, at 0 nothing changes, between the two it is
    linear, as a LoRA is; differences of several files add up. The sum is in single precision and
    rounded once. Each weight becomes a new tensor on its device.

    Args:
        modules: that may change, by the first part of the names in the files; other names are
            passed over.
        files: safetensors files, each with its strength.

    Raises:
        CheckpointError: a module has no such weight, one of another shape, or one that is
            quantised.
    """
    trained: dict[str, list[tuple[Tensor, float]]] = defaultdict(list)
    for path, strength in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                root, _, name = key.partition(".")
                if root not in modules:
                    continue
                value = file.get_tensor(key).float()
                held = dict(modules[root].named_parameters()).get(name)
                if held is None or held.shape != value.shape:
                    raise CheckpointError(
                        f"{path} does not fit: the model has no {key} of shape {tuple(value.shape)}"
                    )
                trained[key].append((value, strength))
    for key, values in trained.items():
        root, _, name = key.partition(".")
        parameter = modules[root].get_parameter(name)
        if not parameter.is_floating_point() or parameter.element_size() == 1:
            raise CheckpointError(
                f"{key} is quantised, and the LoRA's companion changes it",
                hint="leave the LoRA out, or use weights that are not quantised",
            )
        # Not in place: the old numbers may be those of a file that is mapped into memory.
        parameter.data = _blended(parameter, values).to(parameter.dtype)


def _blended(parameter: Tensor, values: Sequence[tuple[Tensor, float]]) -> Tensor:
    if len(values) == 1 and values[0][1] == 1:
        # Exactly: base + (trained - base) would round.
        return values[0][0].to(parameter.device)
    base = parameter.float()
    total = base
    for value, strength in values:
        total = total + strength * (value.to(base.device) - base)
    return total
