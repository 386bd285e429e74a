"""Runs one request: plan, load, sample, save, as a stream of events."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from osp_cli.errors import WontFitError
from osp_cli.events import (
    Done,
    Event,
    FramesReady,
    Loaded,
    Notice,
    Planned,
    StageFinished,
    StageStarted,
    StepDone,
)
from osp_cli.media.image import LoadedImage, choose_bucket, cover_resize_crop, load_image
from osp_cli.media.sinks import VideoSink, check_video_output
from osp_cli.pipelines.flash_i2v import FlashI2VPipeline, SamplingInputs
from osp_cli.plan import Plan
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.devices import available_memory, resolve_device
from osp_cli.runtime.loading import Components, load_components
from osp_cli.runtime.planner import check_fits, make_plan


def run(request: GenerateRequest) -> Iterator[Event]:
    """Yields the events of one request; closing the iterator stops it and frees the device.

    Raises:
        OspError: as named by its class; nothing is left half-written.
    """
    started = time.perf_counter()
    timings: dict[str, float] = {}
    try:
        for event in _run(request):
            if isinstance(event, Loaded):
                timings["load"] = timings.get("load", 0.0) + event.seconds
            elif isinstance(event, StageFinished):
                timings[event.name] = event.seconds
            elif isinstance(event, StepDone):
                timings["sampling"] = timings.get("sampling", 0.0) + event.seconds
            if not isinstance(event, FramesReady):
                yield event
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        elsewhere = "" if resolve_device(request.device).type == "cpu" else ", or --device cpu"
        raise WontFitError(
            f"{request.model} ran out of memory",
            hint=f"use fewer --frames or a smaller --size{elsewhere}",
        ) from error
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    yield Done(time.perf_counter() - started, timings)


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a class for it; the CPU and MPS say it in the words of a RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "out of memory"))


def _run(request: GenerateRequest) -> Iterator[Event]:
    spec = request.spec
    check_video_output(request.output, overwrite=request.overwrite)
    weights = spec.weights_dir()
    loaded = load_image(request.image) if request.image is not None else None
    size = _choose_size(request, loaded)
    device = resolve_device(request.device)
    plan = make_plan(request, spec, size=size, device=str(device), weights=weights)
    check_fits(plan, available_memory(device))
    yield Planned(plan)
    if loaded is not None:
        yield from (Notice(message) for message in (*loaded.notices, *_fit_notices(loaded, size)))

    components: Components | None = None
    for item in load_components(spec, plan, weights):
        if isinstance(item, Components):
            components = item
        else:
            yield item
    assert components is not None
    pipeline = FlashI2VPipeline(components.transformer, components.vae, components.conditioner)
    sink = VideoSink(
        request.output,
        fps=request.fps,
        recipe=_recipe(request, plan, loaded, weights),
        overwrite=request.overwrite,
    )
    for event in pipeline(_inputs(request, plan, loaded)):
        yield event
        if isinstance(event, FramesReady):
            yield StageStarted("encode")
            started = time.perf_counter()
            saved = sink.write(event.frames)
            yield StageFinished("encode", time.perf_counter() - started)
            yield saved


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


def _inputs(request: GenerateRequest, plan: Plan, loaded: LoadedImage | None) -> SamplingInputs:
    image = None
    if loaded is not None:
        image = cover_resize_crop(loaded.image, plan.width, plan.height)
    return SamplingInputs(
        image=image,
        prompt=request.full_prompt,
        negative_prompt=request.negative_prompt,
        width=plan.width,
        height=plan.height,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        shift=request.shift,
        cutoff=request.cutoff,
        seed=request.seed,
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
