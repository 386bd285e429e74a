"""The steps of a training run, with checkpoints and samples on the way, and what they end with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from torch import nn

from osp_cli.events import (
    CheckpointSaved,
    Event,
    Notice,
    StageStarted,
    TrainStepDone,
)
from osp_cli.runtime.train_export import export, export_full
from osp_cli.runtime.train_page import RunPage
from osp_cli.runtime.train_parts import Run
from osp_cli.stopping import StopSignal
from osp_cli.train_plan import TrainPlan
from osp_cli.train_request import NEVER, TrainRequest
from osp_cli.training.adapters import (
    adapter_state,
)
from osp_cli.training.checkpoints import find_checkpoint
from osp_cli.training.distributed import (
    enable_context_parallel,
    shard,
)
from osp_cli.training.memory import prepare_base
from osp_cli.training.objective import ClipObjective, ObjectiveSettings
from osp_cli.training.order import SampleOrder
from osp_cli.training.trainer import LoopSettings, Trainer

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def run_steps(run: Run, stop: StopSignal) -> Iterator[Event]:
    """Prepare the transformer, take all steps, and write what was trained.

    Raises:
        OspError: as of `Trainer`; `kept` names the checkpoint to go on from.
    """
    request, plan, group = run.request, run.plan, run.group
    device = run.device
    with ExitStack() as stack:
        stack.enter_context(
            prepare_base(
                run.transformer,
                dtype=_DTYPES["float32" if request.full else plan.dtype],
                quant=plan.quant,
                device=device,
                grad_checkpoint=plan.grad_checkpoint,
                swap_blocks=plan.swap_blocks,
                offload_activations=plan.offload_activations,
            )
        )
        if group.context_world > 1:
            enable_context_parallel(run.transformer, group)
        if group.world > 1 and plan.sharded:
            shard(run.transformer, group)
        batch = _batch(run)
        order = _order(run, batch)
        trainer = Trainer(
            _trained_modules(run),
            _loop_settings(request, order, plan),
            request.output,
            fingerprint={**request.fingerprint(), "dataset": run.report.sha256},
            group=group,
            resume=request.resume if request.resume in ("auto", NEVER) else Path(request.resume),
            batch=batch,
            logs=[log for log in request.logs if log != "jsonl"],
        )
        yield from map(Notice, trainer.notices)
        if trainer.resumed is not None:
            yield Notice(_resumed_notice(trainer))
            before = trainer.resumed.state.settings["steps"]
            if request.lr_schedule != "constant" and before != trainer.settings.steps:
                yield Notice(
                    f"the learning rate falls until step {trainer.settings.steps} now, "
                    f"not {before}: it is {trainer.settings.rate(trainer.step):.0%} of --lr here"
                )
            if batch != _asked_batch(run):
                yield Notice(f"the run keeps its batch: {batch} samples a step")
        page = (
            RunPage(request, run.report, plan, run.samples, trainer.step) if group.writes else None
        )
        yield from _steps(run, trainer, order, stop, page)
        yield from _finish(run, trainer, page)


def _resumed_notice(trainer: Trainer) -> str:
    done, steps = trainer.step, trainer.settings.steps
    if done >= steps:
        return f"the run is finished, after step {done}: --max-steps {2 * done} would go on"
    return f"going on after step {done} of {steps}"


def _finish(run: Run, trainer: Trainer, page: RunPage | None) -> Iterator[Event]:
    """Gather what was trained, from all processes, and write it."""
    request = run.request
    adapters = run.conditions.adapters if request.train_adapter else {}
    with trainer.averaged():
        state = adapter_state(run.transformer)
        companion = {
            f"{part}.{name}": parameter.detach().cpu().clone()
            for part, module in adapters.items()
            for name, parameter in module.named_parameters()
        }
        if page is None:
            return
        common = (request, run.report, run.weights, state)
        if request.full:
            yield from export_full(*common, run.transformer, adapters, trainer.step)
        else:
            yield from export(*common, companion, trainer.step)
    yield Notice(f"loss and samples: {page.write()}")


def _trained_modules(run: Run) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {"transformer": run.transformer}
    if run.request.train_adapter:
        modules |= run.conditions.adapters
    return modules


def _batch(run: Run) -> int:
    """Samples of a step; a run that is taken up keeps its own, on any number of processes."""
    request = run.request
    if request.resume != NEVER:
        which = request.resume if request.resume == "auto" else Path(request.resume)
        found, _ = find_checkpoint(request.output, which)
        if found is not None and found.state.batch:
            return int(found.state.batch)
    return _asked_batch(run)


def _asked_batch(run: Run) -> int:
    return run.request.batch_size * run.request.accumulate * run.group.data_world


def _order(run: Run, batch: int) -> SampleOrder:
    windows = run.report.windows
    return SampleOrder(
        [(window.size, window.num_frames) for window in windows],
        [window.entry.repeats for window in windows],
        batch,
        run.request.seed,
    )


def _loop_settings(request: TrainRequest, order: SampleOrder, plan: TrainPlan) -> LoopSettings:
    steps = request.max_steps or request.epochs * order.steps_per_epoch
    return LoopSettings(
        steps=steps,
        learning_rate=request.learning_rate,
        # Of whatever matrices take, there is one flag.
        matrix_learning_rate=request.learning_rate,
        warmup=request.warmup,
        lr_schedule=request.lr_schedule,
        weight_decay=request.weight_decay,
        betas=request.betas,
        eps=request.eps,
        optimizer=request.optimizer,
        max_grad_norm=request.max_grad_norm,
        ema=request.ema,
        save_every=request.save_every,
        keep=request.keep,
        seed=request.seed,
    )


def _steps(
    run: Run, trainer: Trainer, order: SampleOrder, stop: StopSignal, page: RunPage | None
) -> Iterator[Event]:
    """All steps, with checkpoints and samples on the way."""
    request, group = run.request, run.group
    objective = ClipObjective(
        run.transformer,
        run.conditions,
        run.store,
        order.batch,
        ObjectiveSettings(
            mode=request.mode,
            seed=request.seed,
            caption_drop=request.caption_drop,
            cutoff=request.cutoff,
            timesteps=request.timesteps,
            sigma_shift=request.sigma_shift,
            sigma_power=request.sigma_power,
            latent_frames=request.latent_frames,
        ),
        run.device,
        group.data_rank,
        group.data_world,
        request.batch_size,
    )
    saved: list[CheckpointSaved] = []
    run.transformer.train()
    if _samples_are_missing(run, trainer):
        with trainer.averaged():
            yield from _samples(run, trainer.step, stop)

    def samples_of(step: int) -> list[str]:
        return [run.report.windows[s.index].entry.place for s in order.batch(step)]

    steps = trainer.run(
        objective,
        stop,
        on_save=lambda path, step: saved.append(CheckpointSaved(path, step)),
        samples_of=samples_of,
    )
    for report in steps:
        yield TrainStepDone(
            report.step,
            trainer.settings.steps,
            _finite(report.loss),
            _finite(report.grad_norm),
            report.learning_rate,
            report.seconds,
            report.skipped,
        )
        if saved:
            yield from saved
            saved.clear()
            if page is not None:
                page.write()
        if _has_samples(run, report.step, trainer):
            with trainer.averaged():
                yield from _samples(run, report.step, stop)


def _has_samples(run: Run, step: int, trainer: Trainer) -> bool:
    every = run.request.sample_every
    return bool(every) and (step % every == 0 or step == trainer.settings.steps)


def _samples_are_missing(run: Run, trainer: Trainer) -> bool:
    """Whether samples come before the first step: the base's, or what a killed run did not reach.

    All processes ask, and hear the same.
    """
    step = trainer.step
    if run.samples is None or not _has_samples(run, step, trainer):
        return False
    return run.group.maximum(run.group.writes and (not step or run.samples.missing(step))) > 0


def _finite(value: float) -> float | None:
    """The number, or None where JSON has none for it."""
    return value if math.isfinite(value) else None


def _samples(run: Run, step: int, stop: StopSignal) -> Iterator[Event]:
    if run.samples is None:
        return
    yield StageStarted("samples")
    made = run.samples.make(step, run.transformer, run.vae, run.conditions, write=run.group.writes)
    with closing(made):
        for event in made:
            yield event
            # Whoever stops need not wait for all; those that are missing are made when the run
            # goes on. Processes that share a model cannot leave one another alone.
            if stop.requested and run.group.world == 1:
                break
