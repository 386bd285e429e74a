"""Runs one request: plan, load, sample, save, as a stream of events."""

from __future__ import annotations

import gc
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from osp_cli.errors import OspError, RuntimeFailureError, WontFitError
from osp_cli.events import (
    Done,
    Event,
    LatentsSaved,
    Loaded,
    Notice,
    Planned,
    Preview,
    Saved,
    StageFinished,
    StageStarted,
    StepDone,
)
from osp_cli.media.sheet import contact_sheet, save_sheet
from osp_cli.media.sinks import open_sink
from osp_cli.outputs import STDOUT, latents_path, preview_path
from osp_cli.pipelines.flash_i2v import (
    FlashI2VPipeline,
    Sampling,
    SamplingInputs,
    decode_frames,
    decode_glimpse,
)
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.caching import step_cache_config
from osp_cli.runtime.devices import resolve_device
from osp_cli.runtime.freezing import freeze
from osp_cli.runtime.models import Models
from osp_cli.runtime.settling import Clip, settle
from osp_cli.stopping import StopSignal
from osp_cli.style_mix import prompts_of_recipe

# A preview is drawn about so many times while a clip is sampled.
_NUM_PREVIEWS = 4


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
        if not _is_out_of_memory(error):
            raise
        elsewhere = "" if resolve_device(request.device).type == "cpu" else ", or --device cpu"
        raise WontFitError(
            f"{request.model} ran out of memory",
            hint=f"use fewer --frames or a smaller --size{elsewhere}",
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a class for it; the CPU and MPS say it in the words of a RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "out of memory"))


def _run(request: GenerateRequest, stop: StopSignal, models: Models) -> Iterator[Event]:
    clip, notices = settle(request)
    yield Planned(clip.plan)
    yield from map(Notice, notices)
    if clip.frozen is not None and clip.frozen.is_sampled:
        yield from models.load(request.spec, clip.plan, clip.weights, ("vae",))
        latents, kept = clip.frozen.state.latents, clip.frozen.path
    else:
        yield from models.load(request.spec, clip.plan, clip.weights)
        sampling, kept = yield from sample(clip, models.pipeline, stop)
        latents = sampling.latents
    with _keeping(kept, clip, stop), _explained(request):
        saved = yield from _finish(clip, models.vae, latents)
    try:
        yield saved
    finally:
        # Also when nobody listens any more.
        _discard(kept, clip)


def sample(
    clip: Clip, pipeline: FlashI2VPipeline, stop: StopSignal, *, until: int | None = None
) -> Generator[Event, None, tuple[Sampling, Path]]:
    """Samples a clip and saves its latents.

    Args:
        clip: as settled.
        pipeline: of the models.
        stop: looked at after each step.
        until: the step at which to stop; None does all of them.

    Returns:
        The sampling where it ended, and the file of its latents.

    Raises:
        InterruptedRunError: a signal came; the latents are saved.
    """
    inputs = _inputs(clip)
    yield StageStarted("condition")
    started = time.perf_counter()
    conditions = pipeline.condition(inputs)
    yield StageFinished("condition", time.perf_counter() - started)
    texts = (inputs.prompt, *(text for text, _ in inputs.also))
    cuts = [pipeline.conditioner.notice(text, inputs.image) for text in texts]
    yield from map(Notice, dict.fromkeys(filter(None, cuts)))
    state = None if clip.frozen is None else clip.frozen.state
    with pipeline.sampling(inputs, conditions, state) as sampling, stop.patience():
        for step in sampling.steps():
            yield step
            if stop.requested or sampling.step == until:
                break
            yield from _preview(clip, pipeline.vae, sampling)
        kept = freeze(
            clip.request.output, clip.recipe, sampling.state(), sampling.num_steps, clip.image
        )
    yield LatentsSaved(kept, sampling.step, sampling.num_steps)
    if stop.requested:
        raise stop.error(
            f"interrupted after step {sampling.step} of {sampling.num_steps}", kept=(kept,)
        )
    return sampling, kept


def _inputs(clip: Clip) -> SamplingInputs:
    request = clip.request
    # Of the recipe: a clip goes on with the words that it began with.
    first, *also = prompts_of_recipe(clip.recipe["full_prompt"])
    return SamplingInputs(
        image=clip.image,
        prompt=first.text,
        also=tuple(also),
        negative_prompt=request.negative_prompt,
        width=clip.plan.width,
        height=clip.plan.height,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        shift=request.shift,
        cutoff=request.cutoff,
        seed=request.seed,
        sampler=request.sampler,
        step_cache=step_cache_config(
            request.spec,
            request.cache.kind,
            request.cache.threshold,
            request.cache_start,
            request.num_inference_steps,
        ),
    )


def _preview(clip: Clip, vae: Any, sampling: Sampling) -> Iterator[Event]:
    """Now and then a strip of pictures of what the clip will be."""
    if clip.request.preview != "latent":
        return
    parts = [
        step * _NUM_PREVIEWS // sampling.num_steps for step in (sampling.step - 1, sampling.step)
    ]
    if parts[0] == parts[1]:
        return
    path = preview_path(clip.request.output)
    strip = contact_sheet({"": decode_glimpse(vae, sampling.estimate())})
    try:
        yield Preview(save_sheet(strip, path), sampling.step, sampling.num_steps)
    except OspError as error:
        # The clip does not need it.
        yield Notice(f"no preview: {error.message}")


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


def _finish(clip: Clip, vae: Any, latents: torch.Tensor) -> Generator[Event, None, Saved]:
    """From latents to the file under its final name; returns the event that tells of it."""
    request = clip.request
    yield StageStarted("decode")
    started = time.perf_counter()
    frames = decode_frames(vae, latents)
    yield StageFinished("decode", time.perf_counter() - started)
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
