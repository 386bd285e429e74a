"""Runs one build of a dataset: gates, keyframes, styles, motion, as a stream of events."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from osp_cli.dials import Seeds, Size
from osp_cli.errors import InvalidRequestError, RuntimeFailureError
from osp_cli.events import DatasetBuilt, Done, Event, Notice, StageFinished, StageStarted
from osp_cli.hub.hashes import weights_hash
from osp_cli.hub.whole import whole_weights_dir
from osp_cli.registry import find_model
from osp_cli.runtime.adapters import adapter_problem
from osp_cli.runtime.editors import editor_folder, editor_of, load_editor
from osp_cli.runtime.judging import ClipJudge, check_judge
from osp_cli.runtime.models import Models
from osp_cli.runtime.settling import settle
from osp_cli.runtime.stages import decode, sample
from osp_cli.settings import Source as ClipSource
from osp_cli.settings import settle_generate
from osp_cli.stopping import StopSignal
from osp_cli.training.building.engines import Animator, Shot, Stylizer
from osp_cli.training.building.manifest import MANIFEST, Manifest
from osp_cli.training.building.procedural import ProceduralAnimator, ProceduralStylizer
from osp_cli.training.building.request import PROCEDURAL, BuildRequest, judged_words
from osp_cli.training.building.settings import keep_settings, settle_folder
from osp_cli.training.building.stages import Build, check_files, forget

_Result = TypeVar("_Result")
_LOCK = ".osp-build.lock"
# What of a clip's recipe tells how the model was used, apart from the clip itself.
_DIALS = ("num_inference_steps", "guidance_scale", "shift", "sampler", "cutoff", "cache", "quant")


def run(request: BuildRequest, *, stop: StopSignal | None = None) -> Iterator[Event]:
    """Yields the events of one build.

    Args:
        request: what to build.
        stop: asked between two items whether to end.

    Raises:
        OspError: as named by its class; whatever was done is kept, and the same request goes on.
    """
    started = time.perf_counter()
    stop = stop or StopSignal()
    timings: dict[str, float] = {}
    check_engines(request)
    anew = settle_folder(request.folder, request.settings, overwrite=request.overwrite)
    with _alone(request.folder):
        manifest = Manifest(request.folder / MANIFEST)
        if anew:
            forget(request.folder, manifest)
            keep_settings(request.folder, request.settings)
        if lost := check_files(request.folder, manifest):
            yield Notice(f"{lost} rows lack their files, which are made again")
        for event in _stages(request, Build(request.folder, request.settings, manifest, stop)):
            if isinstance(event, StageFinished):
                timings[event.name] = event.seconds
            yield event
        yield _built(manifest)
    yield Done(time.perf_counter() - started, timings)


def check_engines(request: BuildRequest) -> None:
    """Refuse engines whose weights are not here, before anything is done.

    Raises:
        OspError: as named by its class.
    """
    settings = request.settings
    if settings.stylizer != PROCEDURAL:
        editor_of(editor_folder(settings.stylizer))
    if settings.animator != PROCEDURAL:
        whole_weights_dir(find_model(settings.animator))
    if settings.judge is not None:
        check_judge(Path(settings.judge))


def _stages(request: BuildRequest, build: Build) -> Iterator[Event]:
    settings, manifest = request.settings, build.manifest
    yield from _timed("gate", build.gate(request.sources, request.captions, request.styles))
    yield from _timed("keyframe", build.take_keyframes(request.sources))
    judge = None
    if settings.judge is not None and manifest.at("keyframed", "stylised", "animated"):
        # Small beside the engines, so it stays.
        words = judged_words(request.styles)
        judge = ClipJudge(Path(settings.judge), words, request.device)
    # An engine is loaded when there is something for it to do, and gone before the next one.
    if manifest.at("keyframed"):
        with _stylizer(settings.stylizer, request.device) as stylizer:
            yield from _timed("stylise", build.stylise(stylizer, judge))
    if manifest.at("stylised", "animated"):
        with _animator(request) as animator:
            yield from _timed("animate", build.animate(animator, judge))


def _timed(name: str, events: Iterator[Event]) -> Iterator[Event]:
    yield StageStarted(name)
    started = time.perf_counter()
    yield from events
    yield StageFinished(name, time.perf_counter() - started)


def _built(manifest: Manifest) -> DatasetBuilt:
    """What has become of it.

    Raises:
        RuntimeFailureError: nothing passed.
    """
    rows = [row for row in manifest if "stage" in row]
    rejected = [row for row in rows if row.get("accepted") is not True]
    done = manifest.at("done")
    if not done:
        first = rejected[0]["reason"] if rejected else "there are no rows"
        raise RuntimeFailureError(
            f"none of {len(rows)} clips passed its gates, the first one not for this: {first}",
            hint=f"{manifest.path} tells of all; --no-gates takes them as they are",
            kept=(manifest.path,),
        )
    return DatasetBuilt(manifest.path, len(done), len(rejected), len(rows))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second build out of the folder; the system lets go when this process dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InvalidRequestError(
            f"another osp is building in {folder}", hint="wait for it, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _stylizer(name: str, device: str) -> Iterator[Stylizer]:
    if name == PROCEDURAL:
        yield ProceduralStylizer()
        return
    try:
        yield load_editor(name, device)
    finally:
        _free()


@contextlib.contextmanager
def _animator(request: BuildRequest) -> Iterator[Animator]:
    settings = request.settings
    if settings.animator == PROCEDURAL:
        yield ProceduralAnimator(paints=settings.stylizer == PROCEDURAL)
        return
    animator = ModelAnimator(settings.animator, request.device)
    try:
        yield animator
    finally:
        animator.drop()


class ModelAnimator:
    """Any image-to-video card, used exactly as `osp generate` does, from one load.

    The style is in the picture already; the model is told only what happens.

    Args:
        model: name of a card.
        device: as of `--device`.
    """

    is_seeded = True

    def __init__(self, model: str, device: str = "auto") -> None:
        self._model, self._device = model, device
        self._models = Models()
        self._dials: dict[str, Any] = {}
        self._weights: str | None = None

    def animate(self, shot: Shot) -> Iterator[NDArray[np.uint8]]:
        """The frames of one clip."""
        with tempfile.TemporaryDirectory(prefix="osp-build-") as folder:
            picture = Path(folder) / "picture.png"
            shot.picture.save(picture)
            settled = settle_generate(
                ClipSource(image=picture, overwrite=True, misfit=adapter_problem),
                model=self._model,
                prompt=shot.prompt or None,
                size=Size(*shot.picture.size),
                num_frames=shot.num_frames,
                fps=shot.fps,
                seed=Seeds([shot.seed]),
                device=self._device,
                output=str(Path(folder) / "clip.mp4"),
            )
            clip, _ = settle(settled.request)
            self._dials = {name: clip.recipe.get(name) for name in _DIALS}
            # A signal of its own that never comes: a clip that was begun is finished.
            sampled = _result(sample(clip, self._models, StopSignal()))
            clip, latents = sampled.clip, sampled.sampling.latents
            del sampled
            _, frames = _result(decode(clip, self._models, latents))
        yield from frames

    def describe(self) -> dict[str, Any]:
        """Card, hash of the weights, licence, and the dials of the last clip."""
        spec = find_model(self._model)
        if self._weights is None:
            hashes = json.dumps(weights_hash(spec.weights_dir()), sort_keys=True)
            self._weights = hashlib.sha256(hashes.encode()).hexdigest()
        return {
            "name": spec.name,
            "weights_sha256": self._weights,
            "licence": spec.licence,
            **self._dials,
        }

    def drop(self) -> None:
        """Lets go of the weights."""
        self._models.drop()


def _result(events: Generator[Event, None, _Result]) -> _Result:
    """What a stream of events returns at its end."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            result: _Result = end.value
            return result


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
