"""Runs one request: plan, load, sample, save, as a stream of events."""

from __future__ import annotations

import gc
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from osp_cli.errors import OspError, RuntimeFailureError, WontFitError
from osp_cli.events import (
    Done,
    Event,
    Loaded,
    Notice,
    Planned,
    Saved,
    StageFinished,
    StageStarted,
    StepDone,
)
from osp_cli.media.sinks import open_sink
from osp_cli.outputs import STDOUT, latents_path, preview_path
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.devices import resolve_device
from osp_cli.runtime.memory_errors import is_out_of_memory
from osp_cli.runtime.models import Models
from osp_cli.runtime.settling import Clip, settle
from osp_cli.runtime.stages import decode, sample
from osp_cli.runtime.stillness import CacheWatch, stillness_notice
from osp_cli.stopping import StopSignal


def run(
    request: GenerateRequest, *, stop: StopSignal | None = None, models: Models | None = None
) -> Iterator[Event]:
    """Yields the events of one request; closing the iterator stops it and frees the device.

    Args:
        request: what to make.
        stop: asked between two steps whether to save and end.
        models: what is in memory already, and stays there.

    Raises:
        OspError: as named by its class; nothing is left half-written, and `kept` names the latents
            where sampling was done.
    """
    started = time.perf_counter()
    timings: dict[str, float] = {}
    skipped = 0
    stop = stop or StopSignal()
    try:
        with _explained(request):
            for event in _run(request, stop, models or Models()):
                if isinstance(event, Loaded):
                    timings["load"] = timings.get("load", 0.0) + event.seconds
                elif isinstance(event, StageFinished):
                    timings[event.name] = event.seconds
                elif isinstance(event, StepDone):
                    timings["sampling"] = timings.get("sampling", 0.0) + event.seconds
                    skipped += event.cached
                yield event
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    yield Done(time.perf_counter() - started, timings, skipped)


@contextmanager
def _explained(request: GenerateRequest) -> Iterator[None]:
    """Turns the end of memory, whoever tells it, into an error with a way out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        elsewhere = "" if resolve_device(request.device).type == "cpu" else ", or --device cpu"
        raise WontFitError(
            f"{request.model} ran out of memory",
            hint=f"use fewer --frames or a smaller --size{elsewhere}",
        ) from error


def _run(request: GenerateRequest, stop: StopSignal, models: Models) -> Iterator[Event]:
    clip, notices = settle(request)
    yield Planned(clip.plan)
    yield from map(Notice, notices)
    if clip.frozen is not None and clip.frozen.is_sampled:
        latents, kept, watch = clip.frozen.state.latents, clip.frozen.path, clip.frozen.watch
    else:
        sampled = yield from sample(clip, models, stop)
        clip, latents, kept = sampled.clip, sampled.sampling.latents, sampled.kept
        watch = sampled.watch
        # It holds on to the transformer.
        del sampled
    with _keeping(kept, clip, stop), _explained(request):
        saved = yield from _finish(clip, models, latents, watch)
    try:
        yield saved
    finally:
        # Also when nobody listens any more.
        _discard(kept, clip)


@contextmanager
def _keeping(kept: Path, clip: Clip, stop: StopSignal) -> Iterator[None]:
    """Inside, sampling is done: whatever goes wrong tells where its result is.

    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM.
        RuntimeFailureError: anything that has no sentence of its own.
    """
    try:
        yield
    except BrokenPipeError:
        # Nobody wants the clip any more; latents that the user named are not ours to remove.
        if kept != clip.request.latents:
            kept.unlink(missing_ok=True)
        raise
    except OspError as error:
        error.kept = (*error.kept, kept)
        raise
    except KeyboardInterrupt as error:
        raise stop.error("interrupted while the video was being saved", kept=(kept,)) from error
    except Exception as error:
        raise RuntimeFailureError(
            f"the latents could not be made a video: {error}", kept=(kept,)
        ) from error


def _finish(
    clip: Clip, models: Models, latents: torch.Tensor, watch: CacheWatch
) -> Generator[Event, None, Saved]:
    """From latents to the file under its final name; returns the event that tells of it."""
    request = clip.request
    clip, frames = yield from decode(clip, models, latents)
    told = stillness_notice(
        watch,
        request.cache,
        request.num_inference_steps,
        frames,
        latents,
        models.vae,
        styled=request.style is not None,
    )
    yield from map(Notice, filter(None, [told]))
    yield StageStarted("encode")
    started = time.perf_counter()
    sink = open_sink(
        request.output,
        fps=request.fps,
        recipe=clip.recipe,
        overwrite=request.overwrite,
        metadata=request.metadata,
    )
    saved = sink.write(frames)
    yield StageFinished("encode", time.perf_counter() - started)
    return saved


def _discard(kept: Path, clip: Clip) -> None:
    """The clip is whole: what stood in for it may go.

    Latents that the user made another file of, with `--from A.latents.safetensors -o b.gif`, stay.
    """
    output = clip.request.output
    if kept != clip.request.latents or (output != STDOUT and kept == latents_path(output)):
        kept.unlink(missing_ok=True)
    if output != STDOUT:
        preview_path(output).unlink(missing_ok=True)
