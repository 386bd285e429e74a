"""The optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from osp_cli.errors import InvalidRequestError

IsMatrix = Callable[[str, Tensor], bool]


class OptimizerSettings(Protocol):
    """What is asked of `LoopSettings` here."""

    @property
    def optimizer(self) -> str: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def matrix_learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...


def new_optimizers(
    parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings, matrices: IsMatrix | None
) -> list[tuple[torch.optim.Optimizer, float]]:
    """The optimizers of a run, each with its learning rate.

    Args:
        parameters: by name.
        settings: `adamw`, `adamw8bit` (bitsandbytes, arXiv:2110.02861), or `muon` (Keller Jordan,
            2024) for matrices and AdamW for the rest.
        matrices: which parameters go to Muon, whatever the name says; None for all that are
            two-dimensional if the optimizer is `muon`, or none.

    Raises:
        InvalidRequestError: the optimizer is unknown, its package is missing, or it cannot work on
            parameters of which each process holds a part.
    """
    name = settings.optimizer
    if name not in ("adamw", "adamw8bit", "muon"):
        raise InvalidRequestError(
            f"unknown --optimizer {name!r}", hint="there are: adamw, adamw8bit, muon"
        )
    if matrices is None:
        matrices = _is_two_dimensional if name == "muon" else _is_none
    muon = [p for key, p in parameters.items() if matrices(key, p)]
    rest = [p for key, p in parameters.items() if not matrices(key, p)]
    sharded = any(isinstance(parameter, DTensor) for parameter in parameters.values())
    if sharded and (muon or name == "adamw8bit"):
        raise InvalidRequestError(
            f"--optimizer {'muon' if muon else name} needs whole matrices, "
            "but each process holds a part of them",
            hint="use --optimizer adamw",
        )
    made: list[tuple[torch.optim.Optimizer, float]] = []
    if muon:
        rate = settings.matrix_learning_rate
        made.append(
            (torch.optim.Muon(muon, lr=rate, weight_decay=settings.weight_decay), rate),
        )
    kind = _adamw_8bit() if rest and name == "adamw8bit" else torch.optim.AdamW
    # Shards one by one would spend more time in Python than in arithmetic; and whole parameters
    # cannot be stepped together with them.
    for is_shard, how in ((False, {}), (True, {"foreach": True})):
        held = [p for p in rest if isinstance(p, DTensor) == is_shard]
        if held:
            rate = settings.learning_rate
            optimizer = kind(
                held,
                lr=rate,
                weight_decay=settings.weight_decay,
                betas=settings.betas,
                eps=settings.eps,
                **how,
            )
            made.append((optimizer, rate))
    return made


def _is_two_dimensional(_name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2


def _is_none(_name: str, _parameter: Tensor) -> bool:
    return False


def _adamw_8bit() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InvalidRequestError(
            "--optimizer adamw8bit needs the package bitsandbytes",
            hint="pip install bitsandbytes, or --optimizer adamw",
        ) from error
    return AdamW8bit
