"""Runs one request: plan, load, sample, save, as a stream of events."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from osp_cli.errors import OspError, RuntimeFailureError, UnreadableMediaError, WontFitError
from osp_cli.events import (
    Done,
    Event,
    LatentsSaved,
    Loaded,
    Notice,
    Planned,
    Preview,
    StageFinished,
    StageStarted,
    StepDone,
)
from osp_cli.media.files import check_free_space
from osp_cli.media.image import (
    LoadedImage,
    choose_bucket,
    cover_resize_crop,
    decode_image,
    load_image,
)
from osp_cli.media.sheet import contact_sheet, save_sheet
from osp_cli.media.sinks import check_output, open_sink
from osp_cli.outputs import STDOUT, latents_path, preview_path
from osp_cli.pipelines.flash_i2v import (
    FlashI2VPipeline,
    Sampling,
    SamplingInputs,
    decode_frames,
    decode_glimpse,
)
from osp_cli.plan import Plan
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.caching import step_cache_config
from osp_cli.runtime.devices import available_memory, measured_speed, resolve_device
from osp_cli.runtime.freezing import Frozen, freeze, thaw
from osp_cli.runtime.models import Models
from osp_cli.runtime.planner import check_fits, make_plan, with_time
from osp_cli.runtime.replay import differences, same_clip, unfinished_work
from osp_cli.stopping import StopSignal

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One clip, settled: what is known before anything is loaded.

    Attributes:
        request: what was asked.
        plan: what will be computed.
        recipe: what its files will say.
        image: the first frame at the clip's size; None for text to video, or where only decoding
            is left.
        frozen: from where it goes on; None where it begins with noise.
        weights: the folder of the weights.
    """

    request: GenerateRequest
    plan: Plan
    recipe: dict[str, Any]
    image: Image.Image | None
    frozen: Frozen | None
    weights: Path


def _run(request: GenerateRequest, stop: StopSignal, models: Models) -> Iterator[Event]:
    check_output(request.output, overwrite=request.overwrite, fps=request.fps)
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
    with _keeping(kept, stop), _explained(request):
        yield from _finish(clip, models.vae, latents)
    _discard(kept, clip)


def preview_plan(request: GenerateRequest) -> tuple[Planned, list[str]]:
    """What a run would do and how long sampling would take, without reading any weights.

    Raises:
        OspError: as `run` would before it begins.
    """
    check_output(request.output, overwrite=request.overwrite, fps=request.fps)
    clip, notices = settle(request)
    device = torch.device(clip.plan.device)
    speed = measured_speed(device, getattr(torch, clip.plan.dtype))
    return Planned(with_time(clip.plan, speed)), notices


def settle(request: GenerateRequest) -> tuple[Clip, list[str]]:
    """Everything about a clip that is known before weights are read, and what to tell of it.

    Raises:
        OspError: it cannot be made here.
    """
    spec = request.spec
    weights = spec.weights_dir()
    frozen = thaw(request.latents) if request.latents is not None else None
    loaded = _picture(request) if frozen is None else None
    size = _choose_size(request, loaded)
    device = resolve_device(request.device)
    plan = make_plan(request, spec, size=size, device=str(device), weights=weights)
    check_fits(plan, available_memory(device))
    if request.output != STDOUT:
        check_free_space(request.output.parent, plan.disk_bytes, what="the video")

    recipe = _recipe(request, plan, loaded, weights)
    notices = list(loaded.notices) if loaded is not None else []
    if loaded is not None:
        notices += _fit_notices(loaded, size)
    if request.replayed is not None:
        notices += differences(request.replayed, recipe, request.replayed_from)
    if frozen is not None:
        # Sampled with what its file says; only the dials of the output may have changed since.
        recipe = {**frozen.recipe, "fps": request.fps}
    elif (frozen := _unfinished(request, recipe)) is not None:
        notices.append(f"going on from {frozen.path}, which an earlier run left")
    image = None
    if frozen is not None:
        image = frozen.image
    elif loaded is not None:
        image = cover_resize_crop(loaded.image, *size)
    clip = Clip(
        request=request, plan=plan, recipe=recipe, image=image, frozen=frozen, weights=weights
    )
    return clip, notices


def _picture(request: GenerateRequest) -> LoadedImage | None:
    if request.image_data is not None:
        return decode_image(request.image_data, name="the picture on stdin")
    return load_image(request.image) if request.image is not None else None


def _unfinished(request: GenerateRequest, recipe: Mapping[str, Any]) -> Frozen | None:
    """What an interrupted run of the very same clip has left beside the output."""
    path = latents_path(request.output)
    if request.output == STDOUT or not path.exists():
        return None
    if request.overwrite:
        # Damaged or of another clip, it may be replaced.
        with suppress(UnreadableMediaError):
            frozen = thaw(path)
            return frozen if same_clip(frozen.recipe, recipe) else None
        return None
    frozen = thaw(path)
    if not same_clip(frozen.recipe, recipe):
        raise unfinished_work(path)
    return frozen


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
    if (cut := pipeline.conditioner.notice(inputs.prompt, inputs.image)) is not None:
        yield Notice(cut)
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
    return SamplingInputs(
        image=clip.image,
        # Of the recipe: a clip goes on with the words that it began with.
        prompt=clip.recipe["full_prompt"],
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
def _keeping(kept: Path, stop: StopSignal) -> Iterator[None]:
    """Inside, sampling is done: whatever goes wrong tells where its result is.

    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM.
        RuntimeFailureError: anything that has no sentence of its own.
    """
    try:
        yield
    except BrokenPipeError:
        # Nobody wants the clip any more.
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


def _finish(clip: Clip, vae: Any, latents: torch.Tensor) -> Iterator[Event]:
    """From latents to the file under its final name."""
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
    yield saved


def _discard(kept: Path, clip: Clip) -> None:
    """The clip is whole: what stood in for it may go, but never a file that the user named."""
    if kept != clip.request.latents:
        kept.unlink(missing_ok=True)
    if clip.request.output != STDOUT:
        preview_path(clip.request.output).unlink(missing_ok=True)


def _choose_size(request: GenerateRequest, loaded: LoadedImage | None) -> tuple[int, int]:
    """Asked size, else the card's bucket nearest to the picture, else the card's default."""
    if request.width is not None and request.height is not None:
        return request.width, request.height
    if loaded is None:
        return request.spec.default_size
    return choose_bucket(loaded.image.width, loaded.image.height, request.spec.sizes)


def _fit_notices(loaded: LoadedImage, size: tuple[int, int]) -> Iterator[str]:
    """Says what the crop takes away, when it is more than a sliver."""
    source = loaded.image.width / loaded.image.height
    target = size[0] / size[1]
    kept = min(source, target) / max(source, target)
    if kept < 0.97:
        sides = "left and right" if source > target else "top and bottom"
        yield (
            f"the picture of {loaded.image.width}x{loaded.image.height} fills {size[0]}x{size[1]}, "
            f"{1 - kept:.0%} of it is cut at {sides}"
        )


def _recipe(
    request: GenerateRequest, plan: Plan, loaded: LoadedImage | None, weights: Path
) -> dict[str, object]:
    """The request's recipe with what only the run knows: settled size and hashes."""
    return {
        **request.recipe(),
        "width": plan.width,
        "height": plan.height,
        "dtype": plan.dtype,
        "image_sha256": None if loaded is None else loaded.sha256,
        "weights_sha256": weights_hash(weights),
    }


def weights_hash(folder: Path) -> dict[str, str]:
    """SHA-256 of each weight file by its path below the folder."""
    hashes = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        hashes[path.relative_to(folder).as_posix()] = digest
    return hashes
