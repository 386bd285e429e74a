"""The training loop: schedule, moving average, exact checkpoints, one process or many.

The loop knows nothing of what is trained: it is handed modules and a function from step number to
loss. All randomness of a step comes from numbers (seed, sample), so a resumed run continues exactly
as if it had not stopped.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from osp_cli.errors import CheckpointError, OspError, RuntimeFailureError
from osp_cli.stopping import StopSignal
from osp_cli.training.checkpoints import (
    AUTO,
    NEVER,
    Checkpoint,
    State,
    checkpoints_in,
    find_checkpoint,
    folder_of,
    name_of,
    prune,
    remove_unfinished,
    step_of,
    write_checkpoint,
)
from osp_cli.training.distributed import (
    DataGroup,
    clip_gradients,
    current_group,
    gradient_norm,
    has_lost_touch,
    like,
    own_part,
    put,
    whole,
)
from osp_cli.training.metrics import MetricsLog
from osp_cli.training.optimizers import IsMatrix, new_optimizers
from osp_cli.training.randomness import step_generator

__all__ = ["LoopSettings", "StepReport", "Trainer", "share_work", "step_generator"]

LossOf = Callable[[int], Tensor | Iterable[Tensor]]
OnSave = Callable[[Path, int], None]
SamplesOf = Callable[[int], Sequence[int | str]]

# So many steps in a row that are not finite end the run.
_MOST_SKIPPED = 3
# A run may be made longer, and kept and shown differently; what shapes a step may not change.
_FREE = ("steps", "save_every", "keep")


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long and how fast.

    Attributes:
        steps: optimiser steps in all.
        learning_rate: AdamW's, for everything but matrices.
        matrix_learning_rate: Muon's, for matrices.
        warmup: steps of linear rise.
        lr_schedule: of both rates after it: `constant`; `linear` or `cosine`, falling to zero at
            the end; or `decay`, constant first and falling linearly from `decay_from`.
        decay_from: that share of the steps.
        weight_decay: decoupled.
        betas, eps: AdamW's.
        optimizer: `adamw`, `adamw8bit` or `muon`.
        max_grad_norm: clipping.
        ema: decay of the moving average, reached by the warm-up (1 + n) / (10 + n); 0 for none.
        save_every: steps between checkpoints; 0 for none but the last.
        keep: checkpoints that are kept.
        seed: of every random choice.
    """

    steps: int
    learning_rate: float = 1.5e-3
    matrix_learning_rate: float = 0.02
    warmup: int = 20
    lr_schedule: str = "decay"
    decay_from: float = 0.5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    optimizer: str = "adamw"
    max_grad_norm: float = 1.0
    ema: float = 0.998
    save_every: int = 100
    keep: int = 3
    seed: int = 42

    def __post_init__(self) -> None:
        if self.lr_schedule not in ("constant", "linear", "cosine", "decay"):
            raise ValueError(f"there is no schedule {self.lr_schedule!r}")

    def rate(self, step: int) -> float:
        """Multiplier of both learning rates at a 0-based step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.lr_schedule == "constant":
            return 1.0
        start = self.warmup
        if self.lr_schedule == "decay":
            start = int(self.steps * self.decay_from)
        if step < start:
            return 1.0
        left = max(0.0, (self.steps - step) / max(1, self.steps - start))
        return (1 - math.cos(math.pi * left)) / 2 if self.lr_schedule == "cosine" else left


@dataclass(frozen=True, slots=True)
class StepReport:
    """What became of a step.

    Attributes:
        step: counted from 1.
        loss: mean over the step's samples, of all processes.
        grad_norm: before clipping.
        learning_rate: of AdamW.
        seconds: that it took.
        skipped: loss or gradient were not finite, so nothing was changed.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    skipped: bool = False


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

    With several processes each makes one, over the same modules; the first alone writes.

    Args:
        modules: what is trained, by name; parameters that do not require gradients stay as they
            are. They may be in shards.
        settings: the loop's numbers.
        folder: where checkpoints and `metrics.jsonl` go.
        matrices: whether a parameter of this name goes to Muon; by default as the optimizer's name
            says.
        fingerprint: what else a resumed run may not change, JSON values by name.
        group: the processes; by default those that have met.
        resume: `auto` for the newest checkpoint that is whole, `never`, or a checkpoint's folder.
        batch: samples of a step over all processes, noted in checkpoints.
        logs: beside `metrics.jsonl`; there is `tensorboard`.

    Attributes:
        step: steps that are done.
        parameters: that are trained, by `module.parameter`.
        average: their moving averages; empty if none are kept.
        resumed: the checkpoint that the run goes on from.
        notices: what was done differently from what was asked, in sentences.

    Raises:
        InvalidRequestError: the run to resume has other settings; all are named.
        CheckpointError: it has other modules, or the named checkpoint is missing or damaged.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        settings: LoopSettings,
        folder: Path,
        matrices: IsMatrix | None = None,
        *,
        fingerprint: Mapping[str, Any] | None = None,
        group: DataGroup | None = None,
        resume: str | Path = AUTO,
        batch: int | None = None,
        logs: Sequence[str] = (),
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.group = group or current_group()
        self.parameters: dict[str, nn.Parameter] = {
            f"{name}.{key}": parameter
            for name, module in modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.average: dict[str, Tensor] = {}
        if settings.ema:
            self.average = {k: p.detach().clone() for k, p in self.parameters.items()}
        self.optimizers = new_optimizers(self.parameters, settings, matrices)
        loop = {key: value for key, value in asdict(settings).items() if key not in _FREE}
        self._fingerprint = {**loop, **(fingerprint or {}), "batch": batch}
        self._batch = batch
        self._logs = tuple(logs)
        self._skipped = 0
        self.step = 0
        self.resumed, self.notices = find_checkpoint(folder, resume)
        if self.resumed is not None:
            self._take_up(self.resumed)
        self._saved = self.resumed.path if self.resumed is not None else None
        # Of a run that is not gone on with; they give way to this run's first checkpoint.
        self._foreign = {
            path for path in checkpoints_in(folder) if resume == NEVER or step_of(path) > self.step
        }
        folder.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        loss_of: LossOf,
        stop: StopSignal | None = None,
        on_save: OnSave | None = None,
        samples_of: SamplesOf | None = None,
    ) -> Iterator[StepReport]:
        """Yields a report after every step; stopping the iteration saves nothing by itself.

        Args:
            loss_of: the loss of a 0-based step, or of each pass of it, one after the other; their
                sum, averaged over the processes with data of their own, is what is minimised.
            stop: what was asked for by signals; a step is finished and saved first. While the
                iteration lasts, also between steps, a first signal is only noted.
            on_save: called, in every process, when a checkpoint is whole.
            samples_of: names of a step's samples, for the log.

        Raises:
            InterruptedRunError: it was stopped; the checkpoint is named.
            RuntimeFailureError: three steps in a row were not finite, a checkpoint could not be
                written, or another process has ended.
        """
        log = None
        if self.group.writes:
            remove_unfinished(self.folder)
            log = MetricsLog(self.folder, self.step, self._logs)
        try:
            with contextlib.nullcontext() if stop is None else stop.patience():
                yield from self._steps(loss_of, stop, on_save, samples_of, log)
        except RuntimeError as error:
            if self.group.world == 1 or not has_lost_touch(error):
                raise
            raise RuntimeFailureError(
                "another process of the run has ended", kept=self._last_good
            ) from error
        finally:
            if log is not None:
                log.close()

    def _steps(
        self,
        loss_of: LossOf,
        stop: StopSignal | None,
        on_save: OnSave | None,
        samples_of: SamplesOf | None,
        log: MetricsLog | None,
    ) -> Iterator[StepReport]:
        while True:
            if self._asked_to_stop(stop):
                self._stop(stop, log, on_save)
            if self.step >= self.settings.steps:
                return
            report = self._take_step(loss_of)
            if log is not None:
                values = asdict(report)
                del values["step"]
                if report.skipped and samples_of is not None:
                    values["samples"] = list(samples_of(self.step - 1))
                log.write(report.step, values)
            self._refuse_to_go_on()
            every = self.settings.save_every
            due = self.step == self.settings.steps or (every and self.step % every == 0)
            if due or self._asked_to_stop(stop):
                self._save(log, on_save)
            yield report

    def _take_step(self, loss_of: LossOf) -> StepReport:
        started = time.perf_counter()
        scale = self.settings.rate(self.step)
        for optimizer, rate in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.zero_grad(set_to_none=True)
        loss = self.group.mean(self._backward(loss_of(self.step)))
        self.group.average_gradients(self.parameters)
        length = gradient_norm(self.parameters)
        norm = float(length)
        # The same in all processes, as both numbers are.
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        if not skipped:  # one bad batch must not end a run; it is reported as it is
            clip_gradients(self.parameters, self.settings.max_grad_norm, length)
            for optimizer, _ in self.optimizers:
                optimizer.step()
            self._update_average()
        self._skipped = self._skipped + 1 if skipped else 0
        self.step += 1
        seconds = time.perf_counter() - started
        return StepReport(
            self.step, loss, norm, self.settings.learning_rate * scale, seconds, skipped
        )

    def _backward(self, passes: Tensor | Iterable[Tensor]) -> float:
        """Back-propagate each pass as it comes; the sum of losses."""
        losses = []
        for loss in [passes] if isinstance(passes, Tensor) else passes:
            # Gradients are averaged over all processes, but those that share a sample each have
            # only their tokens' part, of which the sum is wanted.
            parts = self.group.context_world
            (loss * parts if parts > 1 else loss).backward()
            losses.append(loss.detach().float())
        return math.fsum(torch.stack(losses).tolist())

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for key, average in self.average.items():
            own_part(average).lerp_(own_part(self.parameters[key]), 1 - decay)

    @torch.no_grad()
    def use_average(self) -> None:
        """Puts the moving average into the modules, for evaluation or export; if it is kept."""
        for key, average in self.average.items():
            self.parameters[key].copy_(average)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the modules hold the moving average, if it is kept; then what they held."""
        held = {key: self.parameters[key].detach().clone() for key in self.average}
        self.use_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for key, value in held.items():
                    self.parameters[key].copy_(value)

    def weights(self) -> dict[str, Tensor]:
        """What is to be used of the run: the moving averages if they are kept, or the parameters.

        Whole and on the CPU, by `module.parameter`. All processes must call it.
        """
        return {key: whole(value).cpu() for key, value in (self.average or self.parameters).items()}

    def _refuse_to_go_on(self) -> None:
        """After a few bad steps in a row."""
        if self._skipped < _MOST_SKIPPED:
            return
        last = self._last_good
        raise RuntimeFailureError(
            f"loss or gradient were not finite in {_MOST_SKIPPED} steps in a row, "
            f"up to step {self.step}; "
            + (f"the last good checkpoint is {last[0]}" if last else "there is no checkpoint yet"),
            hint="metrics.jsonl names the samples; a lower --lr may help",
            kept=last,
        )

    @property
    def _last_good(self) -> tuple[Path, ...]:
        return () if self._saved is None else (self._saved,)

    def _asked_to_stop(self, stop: StopSignal | None) -> bool:
        """Whether any process was; all must ask."""
        if stop is None:
            return False
        signum = self.group.maximum(stop.signum or 0)
        if signum:
            stop.note(signum)
        return signum > 0

    def _stop(
        self, stop: StopSignal | None, log: MetricsLog | None, on_save: OnSave | None
    ) -> NoReturn:
        assert stop is not None, "nobody else asks"
        if self.step and (self._saved is None or step_of(self._saved) != self.step):
            self._save(log, on_save)
        raise stop.error(
            f"stopped after step {self.step} of {self.settings.steps}", kept=self._last_good
        )

    def save(self) -> Path:
        """Writes a checkpoint of this step; older ones that are not kept give way. All must call
        it."""
        tensors = {f"parameter/{k}": whole(p) for k, p in self.parameters.items()}
        tensors |= {f"average/{k}": whole(p) for k, p in self.average.items()}
        numbers: dict[str, float] = {}
        for name, state in self._optimizer_states().items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{key}/{name}"] = whole(value)
                else:
                    numbers[f"optimizer/{key}/{name}"] = value
        path = self._written(tensors, numbers)
        self._saved, self._foreign = path, set()
        return path

    def _written(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> Path:
        """Where the checkpoint is, once it is whole."""
        path = folder_of(self.folder) / name_of(self.step)
        problem: OspError | None = None
        if self.group.writes:
            state = State(
                step=self.step,
                batch=self._batch,
                settings=asdict(self.settings),
                fingerprint=self._fingerprint,
                numbers=numbers,
            )
            try:
                write_checkpoint(self.folder, tensors, state)
                prune(self.folder, self._kept(path))
            except OspError as error:
                problem = error
        # Nobody goes on, or looks for the file, before.
        failed = self.group.maximum(problem is not None)
        if problem is not None:
            raise problem
        if failed:
            raise RuntimeFailureError(f"the checkpoint {path} could not be written")
        return path

    def _kept(self, newest: Path) -> set[Path]:
        """The checkpoints of this run that stay."""
        former = self._foreign - {newest}
        ours = [path for path in checkpoints_in(self.folder) if path not in former]
        return set(ours[-self.settings.keep :])

    def _save(self, log: MetricsLog | None, on_save: OnSave | None) -> None:
        if log is not None:
            log.force_to_disk()
        path = self.save()
        if on_save is not None:
            on_save(path, self.step)

    def _take_up(self, checkpoint: Checkpoint) -> None:
        checkpoint.check(self._fingerprint)
        tensors = checkpoint.load()
        self._check_parameters(checkpoint, tensors)
        for key, parameter in self.parameters.items():
            put(tensors[f"parameter/{key}"], parameter)
        for key, average in self.average.items():
            put(tensors[f"average/{key}"], average)
        self._restore_optimizers({**tensors, **checkpoint.state.numbers})
        self.step = checkpoint.state.step

    def _optimizer_states(self) -> dict[str, dict[str, Any]]:
        """What the optimizers remember, by the parameter's name, whichever of them has it."""
        return {
            name: optimizer.state[parameter]
            for name, parameter in self.parameters.items()
            for optimizer, _ in self.optimizers
            if parameter in optimizer.state
        }

    def _restore_optimizers(self, values: Mapping[str, Any]) -> None:
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        states: dict[str, dict[str, Any]] = {}
        for path, value in values.items():
            if path.startswith("optimizer/"):
                _, key, name = path.split("/", 2)
                states.setdefault(name, {})[key] = value
        for optimizer, _ in self.optimizers:
            held = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                index: {
                    key: like(value, parameter) if isinstance(value, Tensor) else value
                    for key, value in states[names[id(parameter)]].items()
                }
                for index, parameter in enumerate(held)
                if names[id(parameter)] in states
            }
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _check_parameters(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
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
            raise CheckpointError(f"{checkpoint.path} is of a run {'; '.join(problems)}")
