"""One training run: plan, encode, load, train, export, as a stream of events.

The data's path: windows of clips -> encoded once, in the cache -> samples of steps -> the adapter
-> checkpoints -> the finished file, which is installed under its name. Encoders are gone before the
transformer comes.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace

import torch

from osp_cli.errors import WontFitError
from osp_cli.events import (
    ClipEncoded,
    Done,
    Event,
    Loaded,
    Notice,
    SampleMade,
    Saved,
    TrainingPlanned,
    TrainStepDone,
)
from osp_cli.runtime.devices import resolve_device
from osp_cli.runtime.memory_errors import is_out_of_memory
from osp_cli.runtime.train_check import write_report
from osp_cli.runtime.train_parts import encode, load, new_run
from osp_cli.runtime.train_planning import plan_training
from osp_cli.runtime.train_refusals import (
    check_tokens,
    make_run_folder,
    refuse_name,
    refuse_paths,
)
from osp_cli.runtime.train_steps import run_steps
from osp_cli.stopping import StopSignal
from osp_cli.train_request import TrainRequest
from osp_cli.training.dataset.entries import DatasetReport
from osp_cli.training.distributed import (
    DataGroup,
    join_group,
    leave_group,
)

# What a run's seconds go to, by what it tells of.
_STAGE_OF: Mapping[type[Event], str] = {
    Loaded: "load",
    ClipEncoded: "encode",
    TrainStepDone: "training",
    SampleMade: "samples",
    Saved: "save",
}


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
    skipped, before = 0, started
    stop = stop or StopSignal()
    group = DataGroup()
    if not dry_run:
        group = join_group(request.context_parallel, resolve_device(request.device))
        report = group.told(report)
        # Another launcher's processes count as ours do.
        request = replace(request, gpus=group.world) if group.world > 1 else request
    assert report is not None
    try:
        for event in _explained(request, _train(request, report, group, stop, dry_run=dry_run)):
            now = time.perf_counter()
            if isinstance(event, TrainStepDone):
                skipped += event.skipped
            if (name := _STAGE_OF.get(type(event))) is not None:
                # What came since the event before was this.
                timings[name] = timings.get(name, 0.0) + now - before
            before = now
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
    refuse_paths(request)
    if not (request.cache_only or dry_run):
        refuse_name(request)
    # A plan asks for no weights: whether a card is worth the download is what it is for.
    weights = request.spec.find_weights() if dry_run else request.spec.weights_dir()
    # One plan for all: they may have less or more memory free at this moment.
    plan = group.told(plan_training(request, report) if group.writes else None)
    yield TrainingPlanned(plan)
    if request.context_parallel > 1:
        check_tokens(request, report, weights)
    if weights is None:
        yield Notice(f"planned by the card of {plan.model}, whose weights are not installed")
    if weights is None or dry_run:
        return
    if group.device is not None:
        plan = replace(plan, device=str(group.device))
    run = new_run(request, report, plan, weights, group)
    if group.writes:
        if not request.cache_only:
            make_run_folder(request)
            write_report(request, report)
        for event in encode(run, stop):
            # A sign of life: encoding may take longer than anybody waits in silence.
            group.maximum(1)
            yield event
        group.maximum(0)
    else:
        while group.maximum(0):
            pass
    if request.cache_only:
        return
    yield from load(run)
    yield from run_steps(run, stop)
