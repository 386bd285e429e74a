"""One training run: plan, encode, load, train, export, as a stream of events.

The data's path: windows of clips -> encoded once, in the cache -> samples of steps -> the adapter
-> checkpoints -> the finished file, which is installed under its name. Encoders are gone before the
transformer comes.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from osp_cli.errors import CheckpointError, InvalidRequestError, WontFitError
from osp_cli.events import (
    CheckpointSaved,
    Done,
    Event,
    Loaded,
    Notice,
    StageStarted,
    TrainingPlanned,
    TrainStepDone,
)
from osp_cli.hub.lora_install import check_name
from osp_cli.media.files import explained
from osp_cli.plan import Plan
from osp_cli.registry import ModelSpec, presets_dir
from osp_cli.runtime.devices import resolve_device
from osp_cli.runtime.loading import load_parts
from osp_cli.runtime.memory_errors import is_out_of_memory
from osp_cli.runtime.models import set_tiling
from osp_cli.runtime.sizes import transformer_shape
from osp_cli.runtime.train_check import write_report
from osp_cli.runtime.train_encoding import ClipStore, Encoders
from osp_cli.runtime.train_export import export, export_full
from osp_cli.runtime.train_page import RunPage
from osp_cli.runtime.train_planning import plan_training
from osp_cli.runtime.train_samples import TrainingSamples, sample_pictures
from osp_cli.stopping import StopSignal
from osp_cli.train_plan import TrainPlan
from osp_cli.train_request import AUTO, NEVER, TrainRequest
from osp_cli.training.adapters import (
    adapter_state,
    add_adapter,
    unfreeze,
    unfreeze_conditioner,
)
from osp_cli.training.checkpoints import checkpoints_in, find_checkpoint
from osp_cli.training.conditions import condition_source
from osp_cli.training.dataset.cache import ClipCache
from osp_cli.training.dataset.entries import DatasetReport, condition_of
from osp_cli.training.dataset.windows import read_source, read_window
from osp_cli.training.distributed import (
    DataGroup,
    check_context,
    enable_context_parallel,
    join_group,
    leave_group,
    shard,
)
from osp_cli.training.memory import prepare_base
from osp_cli.training.objective import ClipObjective, ObjectiveSettings
from osp_cli.training.order import SampleOrder
from osp_cli.training.trainer import LoopSettings, Trainer

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Pictures that samples begin with, where the user names none.
_PICTURES = 3
_PHOTO = "photo.jpg"


@dataclass(slots=True)
class _Run:
    """What the stages of a run hand on."""

    request: TrainRequest
    report: DatasetReport
    plan: TrainPlan
    spec: ModelSpec
    weights: Path
    group: DataGroup
    store: ClipStore
    samples: TrainingSamples | None
    vae: Any = None
    conditions: Any = None
    conditioner: Any = None
    transformer: Any = None

    @property
    def device(self) -> torch.device:
        return torch.device(self.plan.device)


def train(
    request: TrainRequest,
    report: DatasetReport | None,
    *,
    stop: StopSignal | None = None,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Yield the events of a run; closing the iterator stops it and saves nothing by itself.

    Args:
        request: what to train.
        report: of the data, which can be trained on; of several processes the first has looked at
            them, and tells the others.
        stop: asked after each step whether to save and end.
        dry_run: end with the plan.

    Raises:
        OspError: as named by its class; `kept` names the checkpoint to go on from.
    """
    started = time.perf_counter()
    timings: dict[str, float] = {}
    skipped = 0
    stop = stop or StopSignal()
    group = DataGroup()
    if not dry_run:
        group = join_group(request.context_parallel, resolve_device(request.device))
        report = group.told(report)
    assert report is not None
    try:
        for event in _explained(request, _train(request, report, group, stop, dry_run=dry_run)):
            if isinstance(event, TrainStepDone):
                timings["training"] = timings.get("training", 0.0) + event.seconds
                skipped += event.skipped
            elif isinstance(event, Loaded):
                timings["load"] = timings.get("load", 0.0) + event.seconds
            if group.writes:
                yield event
    finally:
        leave_group()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if group.writes and not dry_run:
        yield Done(time.perf_counter() - started, timings, skipped)


def _explained(request: TrainRequest, events: Iterator[Event]) -> Iterator[Event]:
    """Turns the end of memory into an error with a way out."""
    try:
        yield from events
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise WontFitError(
            f"training {request.model} ran out of memory; its checkpoints are kept",
            hint="--swap-blocks, --quant fp8, a smaller --size or fewer --frames, then the same "
            "command goes on",
        ) from error


def _train(
    request: TrainRequest,
    report: DatasetReport,
    group: DataGroup,
    stop: StopSignal,
    *,
    dry_run: bool,
) -> Generator[Event]:
    _refuse_paths(request)
    if not (request.cache_only or dry_run):
        _refuse_name(request)
    # A plan asks for no weights: whether a card is worth the download is what it is for.
    weights = request.spec.find_weights() if dry_run else request.spec.weights_dir()
    # One plan for all: they may have less or more memory free at this moment.
    plan = group.told(plan_training(request, report) if group.writes else None)
    yield TrainingPlanned(plan)
    if request.context_parallel > 1:
        _check_context(request, report, weights)
    if weights is None:
        yield Notice(f"planned by the card of {plan.model}, whose weights are not installed")
    if weights is None or dry_run:
        return
    if group.device is not None:
        plan = replace(plan, device=str(group.device))
    run = _new_run(request, report, plan, weights, group)
    if group.writes:
        if not request.cache_only:
            _make_run_folder(request)
            write_report(request, report)
        yield from _encode(run, stop)
    group.wait_for_all()
    if request.cache_only:
        return
    yield from _load(run)
    yield from _run_steps(run, stop)


def _refuse_paths(request: TrainRequest) -> None:
    """What is named must be there before minutes are spent.

    Raises:
        CheckpointError: the checkpoint of `--resume` is missing or damaged.
        OspError: a picture of `--sample-image` is missing or no picture.
    """
    sample_pictures(request.sample_images)
    if request.resume not in (AUTO, NEVER):
        path = Path(request.resume)
        try:
            find_checkpoint(request.output, path)
        except CheckpointError as error:
            inside = checkpoints_in(path) or checkpoints_in(request.output)
            if inside and not error.hint:
                error.hint = f"--resume {inside[-1]} is the newest one"
            raise


def _check_context(request: TrainRequest, report: DatasetReport, weights: Path | None) -> None:
    """Refuse samples whose tokens the processes could not share out evenly."""
    spec = request.spec
    cell = 2 * spec.scale_factor_spatial
    tokens = [
        (window.size[0] // cell)
        * (window.size[1] // cell)
        * (1 + (window.num_frames - 1) // spec.scale_factor_temporal)
        for window in report.windows
    ]
    shape = transformer_shape(spec, weights)
    if shape is not None:
        check_context(shape.heads, tokens, request.context_parallel)


def _refuse_name(request: TrainRequest) -> None:
    """An adapter of that name may not be lost; one that this very run made is its own."""
    if not request.full:
        finished = request.output / f"{request.name}.safetensors"
        check_name(request.name, overwrite=request.overwrite or finished.is_file())


def _make_run_folder(request: TrainRequest) -> None:
    output = request.output
    strange = output.is_dir() and any(output.iterdir()) and not _is_run(output)
    if strange and not request.overwrite:
        raise InvalidRequestError(
            f"{output} is there already, and is no training run",
            hint=f"--out {request.name}-2, or -y to use it",
        )
    if request.resume == NEVER and checkpoints_in(output) and not request.overwrite:
        raise InvalidRequestError(
            f"{output} holds a run, which --resume never would begin anew",
            hint="-y replaces it, another --out keeps it",
        )
    with explained(output):
        output.mkdir(parents=True, exist_ok=True)


def _is_run(folder: Path) -> bool:
    from osp_cli.runtime.train_check import REPORT

    return (folder / REPORT).is_file() or (folder / "checkpoints").is_dir()


def _new_run(
    request: TrainRequest, report: DatasetReport, plan: TrainPlan, weights: Path, group: DataGroup
) -> _Run:
    from osp_cli.hub.hashes import part_hash, weights_hash

    spec = request.spec
    hashes = weights_hash(weights)
    told = [part for part in spec.parts if part not in ("transformer", "vae")]
    store = ClipStore(
        ClipCache(request.cache_dir),
        report.windows,
        request,
        part_hash(hashes, "vae"),
        "/".join(part_hash(hashes, part) for part in told),
    )
    samples = None
    if request.sample_every and not request.cache_only:
        samples = TrainingSamples(spec, request, _pictures(request, report))
    return _Run(request, report, plan, spec, weights, group, store, samples)


def _pictures(request: TrainRequest, report: DatasetReport) -> list[Any]:
    """What samples begin with: the user's pictures, or a photo and some of the data's own.

    Not first frames that have the style already, where the adapter is to bring it to plain ones.
    """
    from PIL import Image

    if request.mode == "t2v":
        return []
    if request.sample_images:
        return sample_pictures(request.sample_images)
    found: list[Any] = [Image.open(presets_dir() / "training" / _PHOTO).convert("RGB")]
    seen: set[Path] = set()
    for window in report.windows:
        kind = condition_of(window, request)
        if kind == "plain" or window.entry.path in seen:
            continue
        seen.add(window.entry.path)
        if kind == "source":
            found.append(read_source(window))
        else:
            found.append(Image.fromarray(read_window(window, request.fps, request.stride)[0]))
        if len(found) == _PICTURES:
            break
    return found


def _encode(run: _Run, stop: StopSignal) -> Iterator[Event]:
    """Encode what is not in the cache, and prepare the samples; then the encoders go."""
    loaded: list[Event] = []

    def load() -> Encoders:
        return _load_encoders(run, loaded.append)

    if run.store.missing():
        yield StageStarted("encode clips")
    for event in run.store.encode(load):
        yield from loaded
        loaded.clear()
        yield event
        if stop.requested:
            raise stop.error("interrupted; what was encoded is kept, the same command goes on")


def _load_encoders(run: _Run, tell: Callable[[Event], object]) -> Encoders:
    if run.vae is None:
        plan = _loading_plan(run, str(run.device))
        for loaded, part in load_parts(run.spec, plan, run.weights, ("vae", "conditioner")):
            tell(loaded)
            if loaded.component == "vae":
                run.vae = part
                set_tiling(run.vae, run.plan.encode_tiling)
            else:
                run.conditioner = part
        run.conditions = condition_source(run.conditioner, run.vae, run.spec.image_token_surround)
    return Encoders(run.vae, run.conditions)


def _load(run: _Run) -> Iterator[Event]:
    """The transformer with what will be trained; of the conditioner only what steps need."""
    request, plan = run.request, run.plan
    loaded: list[Event] = []
    _load_encoders(run, loaded.append)
    yield from loaded
    set_tiling(run.vae, plan.sample_tiling)
    if run.samples is not None:
        source = run.conditions if request.train_adapter else None
        run.samples.prepare(run.vae, run.conditioner, source)
    for adapter in run.conditions.adapters.values():
        # Or every step would work out gradients that nobody asks for.
        adapter.requires_grad_(False)
    if request.train_adapter:
        unfreeze_conditioner(run.conditioner)
    run.conditions.unload()
    run.conditioner = None
    if not run.spec.image_token_surround:
        # Needed for samples alone by now; small ones help to join conditions.
        run.vae.to("cpu")
    gc.collect()
    for event, part in load_parts(
        run.spec, _loading_plan(run, "cpu"), run.weights, ("transformer",)
    ):
        run.transformer = part
        yield event
    if request.full:
        run.transformer.float()
        unfreeze(run.transformer)
    else:
        add_adapter(run.transformer, plan.targets, plan.rank, plan.alpha, request.seed)


def _loading_plan(run: _Run, device: str) -> Plan:
    """A plan of clips that loads everything as it is."""
    request, plan = run.request, run.plan
    return Plan(
        model=plan.model,
        device=device,
        dtype=plan.dtype,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        num_latent_frames=1 + (request.num_frames - 1) // run.spec.scale_factor_temporal,
        num_tokens=plan.num_tokens,
        seed=request.seed,
        steps=1,
        sampler="euler",
        cache="none",
        guidance=1.0,
        streamed=plan.streamed,
        weights_bytes=plan.weights_bytes,
        expected_peak_bytes=plan.expected_peak_bytes,
        disk_bytes=0,
        operations=None,
    )


def _run_steps(run: _Run, stop: StopSignal) -> Iterator[Event]:
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


def _finish(run: _Run, trainer: Trainer, page: RunPage | None) -> Iterator[Event]:
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


def _trained_modules(run: _Run) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {"transformer": run.transformer}
    if run.request.train_adapter:
        modules |= run.conditions.adapters
    return modules


def _batch(run: _Run) -> int:
    """Samples of a step; a run that is taken up keeps its own, on any number of processes."""
    request = run.request
    if request.resume != NEVER:
        which = request.resume if request.resume == "auto" else Path(request.resume)
        found, _ = find_checkpoint(request.output, which)
        if found is not None and found.state.batch:
            return int(found.state.batch)
    return _asked_batch(run)


def _asked_batch(run: _Run) -> int:
    return run.request.batch_size * run.request.accumulate * run.group.data_world


def _order(run: _Run, batch: int) -> SampleOrder:
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
    run: _Run, trainer: Trainer, order: SampleOrder, stop: StopSignal, page: RunPage | None
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


def _has_samples(run: _Run, step: int, trainer: Trainer) -> bool:
    every = run.request.sample_every
    return bool(every) and (step % every == 0 or step == trainer.settings.steps)


def _samples_are_missing(run: _Run, trainer: Trainer) -> bool:
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


def _samples(run: _Run, step: int, stop: StopSignal) -> Iterator[Event]:
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
