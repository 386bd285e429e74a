"""The training loop: optimisers, schedule, moving average, exact checkpoints.

The loop knows nothing of what is trained: it is handed modules and a function from step number to
loss. All randomness of a step comes from (seed, step), so a resumed run continues exactly as if it
had not stopped.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from osp_cli.errors import CheckpointError, InvalidRequestError


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long and how fast.

    Attributes:
        steps: optimiser steps in all.
        learning_rate: AdamW's, for everything but block matrices.
        matrix_learning_rate: Muon's, for the two-dimensional weights of transformer blocks.
        warmup: steps of linear rise.
        decay_from: share of the steps after which both rates fall linearly to zero.
        weight_decay: AdamW's.
        max_grad_norm: clipping.
        ema: decay of the moving average, reached by the warm-up (1 + n) / (10 + n).
        save_every: steps between checkpoints.
        seed: of every random choice.
    """

    steps: int
    learning_rate: float = 1.5e-3
    matrix_learning_rate: float = 0.02
    warmup: int = 20
    decay_from: float = 0.5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema: float = 0.998
    save_every: int = 100
    seed: int = 42

    def rate(self, step: int) -> float:
        """Multiplier of both learning rates at a 0-based step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = int(self.steps * self.decay_from)
        if step < start:
            return 1.0
        return max(0.0, (self.steps - step) / max(1, self.steps - start))


@dataclass(frozen=True, slots=True)
class StepReport:
    """One line of `metrics.jsonl`."""

    step: int
    loss: float
    grad_norm: float
    seconds: float


def step_generator(seed: int, purpose: str, step: int) -> torch.Generator:
    """Randomness of one purpose at one step, whatever came before."""
    text = f"{seed}/{purpose}/{step}".encode()
    value = 1469598103934665603
    for byte in text:  # FNV-1a: stable across runs, unlike hash()
        value = ((value ^ byte) * 1099511628211) & ((1 << 63) - 1)
    return torch.Generator().manual_seed(value)


def share_work(processes: int, work: Callable[..., None], *arguments: Any) -> None:
    """Runs `work(rank, *arguments)` in processes of one thread each, whose trainers share steps.

    On a processor this beats as many threads in one process. One process is this one.
    """
    if processes == 1:
        work(0, *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        torch.multiprocessing.spawn(_join, (processes, meeting, work, arguments), nprocs=processes)


def _join(
    rank: int, processes: int, meeting: str, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    distributed.init_process_group("gloo", meeting, rank=rank, world_size=processes)
    try:
        work(rank, *arguments)
    finally:
        distributed.destroy_process_group()


def _end_with_parent(parent: int) -> None:
    """A process whose parent was killed would train on, unseen, for hours."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


class Trainer:
    """Runs `settings.steps` steps over named modules, resuming from its folder if it can.

    Args:
        modules: what is trained, by name; parameters that do not require gradients stay as they
            are.
        settings: the loop's numbers.
        folder: where checkpoints and `metrics.jsonl` go.
        matrices: whether a parameter of this name goes to Muon rather than AdamW.

    Raises:
        InvalidRequestError: the folder holds a run with other settings (the seed or the rates).
        CheckpointError: it holds a run of other modules; the parameters are named.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        settings: LoopSettings,
        folder: Path,
        matrices: Callable[[str, Tensor], bool] = lambda _name, _parameter: False,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.parameters: dict[str, nn.Parameter] = {
            f"{name}.{key}": parameter
            for name, module in modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.average = {k: p.detach().clone() for k, p in self.parameters.items()}
        muon = [p for k, p in self.parameters.items() if matrices(k, p)]
        adam = [p for k, p in self.parameters.items() if not matrices(k, p)]
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        if muon:
            rate = settings.matrix_learning_rate
            optimizer = torch.optim.Muon(muon, lr=rate, weight_decay=0.0)
            self.optimizers.append((optimizer, rate))
        if adam:
            rate = settings.learning_rate
            optimizer = torch.optim.AdamW(
                adam, lr=rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
            )
            self.optimizers.append((optimizer, rate))
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def run(self, loss_of: Callable[[int], Tensor]) -> Iterator[StepReport]:
        """Yields a report after every step; stopping the iteration saves nothing by itself."""
        while self.step < self.settings.steps:
            started = time.perf_counter()
            for optimizer, rate in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * self.settings.rate(self.step)
                optimizer.zero_grad(set_to_none=True)
            loss = loss_of(self.step)
            loss.backward()
            self._share_gradients()
            norm = float(
                nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm)
            )
            if math.isfinite(norm):  # one bad batch must not end a run; it is reported as it is
                for optimizer, _ in self.optimizers:
                    optimizer.step()
                self._update_average()
            self.step += 1
            report = StepReport(self.step, loss.item(), norm, time.perf_counter() - started)
            if self._writes:
                with (self.folder / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(asdict(report)) + "\n")
                if self.step % self.settings.save_every == 0 or self.step == self.settings.steps:
                    self.save()
            yield report

    @property
    def _writes(self) -> bool:
        """Of processes that share their steps, only the first writes."""
        return not distributed.is_initialized() or distributed.get_rank() == 0

    def _share_gradients(self) -> None:
        """The mean over processes, so that all take the same step."""
        if not distributed.is_initialized():
            return
        held = list(self.parameters.values())
        for parameter in held:
            # Another process may have used what this one's samples left out.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in held])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for parameter, part in zip(held, flat.split([p.numel() for p in held]), strict=True):
            parameter.grad.copy_(part.view_as(parameter))

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for key, parameter in self.parameters.items():
            self.average[key].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def use_average(self) -> None:
        """Puts the moving average into the modules, for evaluation or export."""
        for key, parameter in self.parameters.items():
            parameter.copy_(self.average[key])

    def save(self) -> None:
        """Writes the checkpoint under a temporary name, then puts it in the place of the old
        one."""
        tensors = {f"parameter/{k}": p.detach() for k, p in self.parameters.items()}
        tensors |= {f"average/{k}": p for k, p in self.average.items()}
        for number, (optimizer, _) in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"optimizer/{number}/{index}/{key}"] = torch.as_tensor(value)
        part = self.folder / "checkpoint.part"
        metadata = {"step": str(self.step), "settings": json.dumps(asdict(self.settings))}
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, part, metadata=metadata)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(self.folder / "checkpoint.safetensors")

    def _resume(self) -> None:
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        before = json.loads(metadata["settings"])
        # The length may change (a run is extended or cut short); what shapes a step may not.
        for key in ("seed", "learning_rate", "matrix_learning_rate", "weight_decay"):
            now = getattr(self.settings, key)
            if before[key] != now:
                raise InvalidRequestError(
                    f"{self.folder} holds a run with {key} {before[key]}, not {now}",
                    hint="use the same settings or another folder",
                )
        tensors = load_file(path)
        self._check_parameters(tensors)
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter/{key}"])
                self.average[key].copy_(tensors[f"average/{key}"])
        for number, (optimizer, _) in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer/{number}/"):
                    _, _, index, name = key.split("/")
                    state.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self.step = int(metadata["step"])

    def _check_parameters(self, tensors: dict[str, Tensor]) -> None:
        """Refuses a checkpoint of other modules, whose numbers would not mean the same here."""
        prefix = "parameter/"
        held = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        misshapen = {
            key
            for key, parameter in self.parameters.items()
            if key in held and held[key].shape != parameter.shape
        }
        problems = [
            f"{kind} {', '.join(sorted(names)[:20])}"
            for kind, names in (
                ("without", self.parameters.keys() - held.keys()),
                ("with unknown", held.keys() - self.parameters.keys()),
                ("with another shape of", misshapen),
            )
            if names
        ]
        if problems:
            raise CheckpointError(f"{self.folder} holds a run {'; '.join(problems)}")
