"""The stages of one clip: conditions, sampling, pictures; each with the parts that it needs.

Where the memory ends in one of them, it is done again in a way that needs less, from the latents
that are there.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from osp_cli.errors import OspError, WontFitError
from osp_cli.events import (
    Event,
    LatentsSaved,
    Notice,
    Preview,
    StageFinished,
    StageStarted,
)
from osp_cli.media.sheet import contact_sheet, save_sheet
from osp_cli.outputs import preview_path
from osp_cli.pipelines.flash_i2v import (
    Conditions,
    Sampling,
    SamplingInputs,
    SamplingState,
    decode_frames,
    decode_glimpse,
)
from osp_cli.runtime.caching import step_cache_config
from osp_cli.runtime.freezing import freeze
from osp_cli.runtime.memory_errors import is_out_of_memory
from osp_cli.runtime.models import CONDITIONING, DECODING, SAMPLING, Models
from osp_cli.runtime.settling import Clip, in_less_memory
from osp_cli.runtime.stillness import CacheWatch
from osp_cli.stopping import StopSignal
from osp_cli.style_mix import prompts_of_recipe

if TYPE_CHECKING:
    from osp_cli.runtime.parallel import SharedSampling

# A preview is drawn about so many times while a clip is sampled.
_NUM_PREVIEWS = 4


@dataclass(frozen=True, slots=True)
class Sampled:
    """A clip of which some or all steps are done.

    Attributes:
        clip: with the plan that it was sampled by in the end.
        sampling: where it stands.
        kept: the file of its latents.
        watch: over its step cache.
    """

    clip: Clip
    sampling: Sampling | SharedSampling
    kept: Path
    watch: CacheWatch


@dataclass(slots=True)
class _Attempt:
    """What a clip has come to, kept for another attempt; `stage` is where it is."""

    clip: Clip
    state: SamplingState | None
    watch: CacheWatch
    stage: str = "condition"
    sampling: Sampling | SharedSampling | None = None
    kept: Path | None = None


def sample(
    clip: Clip, models: Models, stop: StopSignal, *, until: int | None = None
) -> Generator[Event, None, Sampled]:
    """Samples a clip and saves its latents.

    Args:
        clip: as settled.
        models: what is in memory; the parts that are missing are loaded.
        stop: looked at after each step.
        until: the step at which to stop; None does all of them.

    Raises:
        InterruptedRunError: a signal came; the latents are saved.
        WontFitError: the memory ended and there is no way that needs less; the latents after the
            last whole step are saved.
    """
    attempt = _Attempt(clip, None, CacheWatch())
    if clip.frozen is not None:
        attempt.state, attempt.watch = clip.frozen.state, clip.frozen.watch
    while True:
        try:
            yield from _steps(attempt, models, stop, until)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Its frames hold on to the transformer, which must be gone when memory is looked at.
            failure = error.with_traceback(None)
        attempt.sampling = None
        models.drop()
        yield from _step_down(attempt, failure, lost=models.is_lost)
    sampling, kept = attempt.sampling, attempt.kept
    assert sampling is not None and kept is not None
    yield LatentsSaved(kept, sampling.step, sampling.num_steps)
    if stop.requested:
        raise stop.error(
            f"interrupted after step {sampling.step} of {sampling.num_steps}", kept=(kept,)
        )
    request = clip.request
    if sampling.step == sampling.num_steps:
        told = attempt.watch.notice(request.cache, request.cache_start, sampling.num_steps)
        yield from map(Notice, filter(None, [told]))
    return Sampled(attempt.clip, sampling, kept, attempt.watch)


def _steps(
    attempt: _Attempt, models: Models, stop: StopSignal, until: int | None
) -> Iterator[Event]:
    """Conditions and steps, as far as memory goes; the attempt knows how far that was."""
    clip = attempt.clip
    inputs = sampling_inputs(clip)
    attempt.stage = "condition"
    conditions = yield from _conditions(clip, inputs, models)
    attempt.stage = "sampling"
    if clip.plan.frees_parts:
        yield from models.load(clip.request.spec, clip.plan, clip.weights, SAMPLING)
    shared = models.sampling(clip.plan, inputs, conditions, attempt.state)
    with shared as sampling, stop.patience():
        attempt.sampling = sampling
        for step in sampling.steps():
            # References, no copies: what a failing step would have changed is still whole in them.
            # Of several devices they would have to be fetched.
            if clip.plan.gpus == 1 or clip.plan.cache == "none":
                attempt.state = sampling.state()
            if clip.plan.cache != "none":
                attempt.watch.saw(step, sampling)
            yield step
            if stop.requested or sampling.step == until:
                break
            yield from _preview(clip, models.vae, sampling)
        state, output = sampling.state(), clip.request.output
        attempt.kept = freeze(
            output, clip.recipe, state, sampling.num_steps, clip.image, attempt.watch
        )


def _conditions(
    clip: Clip, inputs: SamplingInputs, models: Models
) -> Generator[Event, None, Conditions]:
    plan = clip.plan
    names = CONDITIONING if plan.frees_parts else None
    load = (clip.request.spec, plan, clip.weights)
    yield from models.load(*load, names) if names else models.load(*load)
    pipeline = models.pipeline
    yield StageStarted("condition")
    started = time.perf_counter()
    conditions = pipeline.condition(inputs)
    yield StageFinished("condition", time.perf_counter() - started)
    texts = (inputs.prompt, *(text for text, _ in inputs.also))
    cuts = [pipeline.conditioner.notice(text, inputs.image) for text in texts]
    yield from map(Notice, dict.fromkeys(filter(None, cuts)))
    return conditions


def _step_down(attempt: _Attempt, error: BaseException, *, lost: bool) -> Iterator[Event]:
    """The attempt with a plan that needs less.

    Args:
        attempt: that failed.
        error: of the memory.
        lost: other devices wait in the middle of the step, so that this run must end.

    Raises:
        WontFitError: there is none.
    """
    clip, state = attempt.clip, attempt.state
    done = 0 if state is None else state.step
    try:
        following = in_less_memory(clip, attempt.stage)
        if lost:
            raise WontFitError(
                "", hint=f"{way_text(following)} needs less, as do fewer --frames or more --gpus"
            )
        attempt.clip = following
    except WontFitError as refusal:
        kept: tuple[Path, ...] = ()
        if state is not None and done:
            output, steps = clip.request.output, clip.request.num_inference_steps
            kept = (freeze(output, clip.recipe, state, steps, clip.image, attempt.watch),)
        elsewhere = "" if clip.plan.device == "cpu" else ", or --device cpu"
        raise WontFitError(
            f"{clip.plan.model} ran out of memory on {clip.plan.device}",
            hint=f"{refusal.hint}{elsewhere}",
            kept=kept,
        ) from error
    where = f"after step {done}" if done else "before the first step"
    yield Notice(f"out of memory {where}, going on with {way_text(attempt.clip)}")


def way_text(clip: Clip) -> str:
    """What is special about a clip's plan, in the spelling of flags."""
    plan = clip.plan
    words = [f"--offload {plan.offload}"]
    words += [f"--quant {plan.quant}"] if plan.quant != "none" else []
    words += ["--vae-tiling"] if plan.vae_tiling else []
    return " ".join(words)


def sampling_inputs(clip: Clip) -> SamplingInputs:
    """What the pipeline is asked for."""
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


def _preview(clip: Clip, vae: Any, sampling: Sampling | SharedSampling) -> Iterator[Event]:
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


def decode(
    clip: Clip, models: Models, latents: torch.Tensor
) -> Generator[Event, None, tuple[Clip, NDArray[np.uint8]]]:
    """The pictures of sampled latents, `(frames, height, width, 3)`, and how they were made.

    Where the memory ends, everything but the autoencoder leaves it, and then it works in tiles,
    unless the user wants it otherwise.
    """
    yield StageStarted("decode")
    started = time.perf_counter()
    load = clip.request.spec, clip.plan, clip.weights
    yield from models.load(*load, DECODING)
    while True:
        try:
            frames = decode_frames(models.vae, latents)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Its frames hold on to what the decoder was computing with.
            failure = error.with_traceback(None)
        clip = _less_to_decode(clip, failure)
        yield Notice(f"out of memory while decoding, going on with {way_text(clip)}")
        yield from models.load(clip.request.spec, clip.plan, clip.weights, DECODING)
    yield StageFinished("decode", time.perf_counter() - started)
    return clip, frames


def _less_to_decode(clip: Clip, failure: BaseException) -> Clip:
    plan = clip.plan
    if not plan.frees_parts:
        # For what is left of this clip, nothing but the autoencoder is needed.
        return replace(clip, plan=replace(plan, offload="model"))
    if not plan.vae_tiling and clip.request.vae_tiling is None:
        recipe = {**clip.recipe, "vae_tiling": True}
        return replace(clip, plan=replace(plan, vae_tiling=True), recipe=recipe)
    raise WontFitError(
        f"{plan.model} ran out of memory while decoding on {plan.device}",
        hint="use fewer --frames or a smaller --size, or finish it with --device cpu",
    ) from failure
