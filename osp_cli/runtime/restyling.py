"""Makes one video of another: window by window, each kept on the disk until the whole is there.

Whatever ends a run, be it Ctrl-C, SIGKILL or a power cut, the same command goes on from the first
window that is missing and comes to the very bytes of an uninterrupted run. Memory does not grow
with the length: frames are read, latents made, and pictures written as streams.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from osp_cli.errors import InterruptedRunError, OspError, RuntimeFailureError, WontFitError
from osp_cli.events import (
    ChunkDone,
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
from osp_cli.media.source_video import read_frames
from osp_cli.models.latents import uint8_frames
from osp_cli.pipelines.restyle import Renoising, Showing, Window
from osp_cli.pipelines.steadying import MORPHING_SHARE, SHARE, steadied
from osp_cli.requests import RestyleRequest
from osp_cli.runtime.memory_errors import is_out_of_memory
from osp_cli.runtime.models import CONDITIONING, DECODING, SAMPLING, Models
from osp_cli.runtime.restyle_settling import Job, settle_restyle, way_of
from osp_cli.runtime.settling import in_less_memory
from osp_cli.runtime.source_latents import SourceLatents
from osp_cli.runtime.stages import sampling_inputs, way_text
from osp_cli.sampling.step_cache import MagCacheConfig, StepCacheConfig
from osp_cli.stopping import StopSignal


def run_restyle(
    request: RestyleRequest, *, stop: StopSignal | None = None, models: Models | None = None
) -> Iterator[Event]:
    """Yields the events of one video; closing the iterator stops it and frees the device.

    Args:
        request: what to make.
        stop: asked between two steps whether to end; the windows that are whole are kept.
        models: what is in memory already, and stays there.

    Raises:
        OspError: as named by its class; nothing is left half-written, and `kept` names the folder
            of the windows from which the same command goes on.
    """
    started = time.perf_counter()
    timings: dict[str, float] = {}
    skipped = 0
    try:
        for event in _run(request, stop or StopSignal(), models or Models()):
            stage = _stage_of(event)
            if stage is not None:
                timings[stage[0]] = timings.get(stage[0], 0.0) + stage[1]
            if isinstance(event, StepDone):
                skipped += event.cached
            yield event
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    yield Done(time.perf_counter() - started, timings, skipped)


def _stage_of(event: Event) -> tuple[str, float] | None:
    """The stage that an event tells the seconds of."""
    match event:
        case Loaded():
            return "load", event.seconds
        case StageFinished():
            return event.name, event.seconds
        case StepDone():
            return "sampling", event.seconds
        case _:
            return None


def _run(request: RestyleRequest, stop: StopSignal, models: Models) -> Iterator[Event]:
    job, notices = settle_restyle(request)
    yield Planned(job.clip.plan)
    yield from map(Notice, notices)
    maker = _Maker(job, models, stop)
    with _keeping(job, stop):
        yield from maker.make_windows()
        saved = yield from maker.save()
    try:
        yield saved
    finally:
        # Also when nobody listens any more.
        job.kept.discard()


@contextlib.contextmanager
def _keeping(job: Job, stop: StopSignal) -> Iterator[None]:
    """Inside, whatever goes wrong tells where the windows are that are made.

    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM.
        RuntimeFailureError: anything that has no sentence of its own.
    """
    try:
        yield
    except BrokenPipeError:
        # Nobody wants the video any more.
        job.kept.discard()
        raise
    except OspError as error:
        error.kept = (*error.kept, *_kept(job))
        raise
    except KeyboardInterrupt as error:
        if not job.kept.count:
            raise
        raise _interrupted(job, stop, kept=_kept(job)) from error
    except Exception as error:
        if not job.kept.count:
            raise
        raise RuntimeFailureError(
            f"{job.request.video} could not be restyled: {error}", kept=_kept(job)
        ) from error


def _kept(job: Job) -> tuple[Path, ...]:
    return (job.kept.folder,) if job.kept.count else ()


def _interrupted(job: Job, stop: StopSignal, *, kept: tuple[Path, ...] = ()) -> InterruptedRunError:
    return stop.error(
        f"interrupted after window {job.kept.count} of {len(job.windows)}, "
        "the same command goes on from there",
        kept=kept,
    )


class _Maker:
    """Makes the windows of a video, and the video of the windows.

    Args:
        job: as settled; where the memory ends, its plan changes.
        models: what is in memory; the parts that are missing are loaded.
        stop: looked at after each step.
    """

    def __init__(self, job: Job, models: Models, stop: StopSignal) -> None:
        self._job = job
        self._clip = job.clip
        self._models = models
        self._stop = stop
        self._stage = "condition"

    def make_windows(self) -> Iterator[Event]:
        """All windows that are missing; each is on the disk when its `ChunkDone` is told.

        Raises:
            InterruptedRunError: a signal came.
            WontFitError: the memory ended and there is no way that needs less.
        """
        while True:
            try:
                yield from self._missing_windows()
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # Its frames hold on to what must be gone when memory is looked at.
                failure = error.with_traceback(None)
            self._models.drop()
            yield self._step_down(failure)

    def save(self) -> Generator[Event, None, Saved]:
        """From windows to the file under its final name; returns the event that tells of it."""
        job = self._job
        while True:
            yield from self._load(DECODING)
            yield StageStarted("encode")
            started = time.perf_counter()
            sink = open_sink(
                job.request.output,
                fps=job.request.fps,
                recipe=self._clip.recipe,
                overwrite=job.request.overwrite,
                metadata=job.request.metadata,
                audio=job.source.sound(job.num_frames / job.request.fps),
            )
            try:
                saved = sink.write(self._pictures())
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = error.with_traceback(None)
            yield self._less_to_decode(failure)
        yield StageFinished("encode", time.perf_counter() - started)
        yield from map(Notice, sink.notices)
        return saved

    def _missing_windows(self) -> Iterator[Event]:
        job = self._job
        missing = range(job.kept.count, len(job.windows))
        if not missing:
            return
        yield from self._load(CONDITIONING)
        encoder = way_of(job.request).encoder(self._models.vae)
        way: Renoising | Showing | None = None
        with self._source() as source:
            for index in missing:
                started = time.perf_counter()
                window = job.windows[index]
                yield from self._load(CONDITIONING)
                latents, picture = source.window(window, encoder)
                if job.request.strength == 0:
                    job.kept.add(latents[:, :, window.known :])
                else:
                    if way is None:
                        assert source.first_picture is not None
                        way = self._way(source.first_picture)
                        yield from self._cut_notices(picture)
                    yield from self._make(way, window, latents, picture)
                done = 1 + (window.stop - 1) * job.group
                yield ChunkDone(
                    index + 1,
                    len(job.windows),
                    time.perf_counter() - started,
                    min(done, job.num_frames),
                )
                if self._stop.requested:
                    raise _interrupted(job, self._stop)

    def _make(
        self, way: Renoising | Showing, window: Window, source: Tensor, picture: Image.Image
    ) -> Iterator[Event]:
        """Sample one window and keep it."""
        job, models = self._job, self._models
        self._stage = "condition"
        yield StageStarted("condition")
        started = time.perf_counter()
        shown = picture if job.request.spec.image_to_video else None
        conditions = way.condition(models.pipeline, window, source, shown)
        yield StageFinished("condition", time.perf_counter() - started)
        yield from self._load(SAMPLING)
        self._stage = "sampling"
        known = job.kept.known(source)
        sampling = way.sampling(models.pipeline, window, conditions, source, known)
        with sampling as sampled, self._stop.patience():
            for step in sampled.steps():
                yield step
                if self._stop.requested and sampled.step < sampled.num_steps:
                    raise _interrupted(job, self._stop)
            job.kept.add(sampled.latents[:, :, window.known :])

    def _way(self, first_picture: Image.Image) -> Renoising | Showing:
        request, inputs = self._job.request, sampling_inputs(self._clip)
        # Figures of a step cache count from noise on; here the way begins in the middle.
        inputs = replace(inputs, step_cache=_of_the_rest(inputs.step_cache, request.strength))
        if way_of(request) is Showing:
            inputs = replace(inputs, image=first_picture)
        return way_of(request)(inputs, request.strength, self._job.num_latent_frames)

    def _cut_notices(self, picture: Image.Image) -> Iterator[Notice]:
        """What of the prompts does not fit, once for all windows."""
        inputs, conditioner = sampling_inputs(self._clip), self._models.pipeline.conditioner
        shown = picture if self._job.request.spec.image_to_video else None
        texts = (inputs.prompt, *(prompt.text for prompt in inputs.also))
        cuts = (conditioner.notice(text, shown) for text in texts)
        yield from map(Notice, dict.fromkeys(filter(None, cuts)))

    def _source(self) -> SourceLatents:
        job = self._job
        return SourceLatents(
            job.source,
            job.size,
            job.request.fps,
            num_frames=job.num_frames,
            num_padded_frames=job.num_padded_frames,
            group=job.group,
        )

    def _pictures(self) -> Iterator[NDArray[np.uint8]]:
        """The frames of the result, one at a time."""
        for frame in self._calmed(self._painted()):
            levels = uint8_frames(frame[None, :, None] * 2 - 1)
            yield levels[0, 0].cpu().numpy()

    def _painted(self) -> Iterator[Tensor]:
        """The frames as the model painted them, `(3, height, width)` in [0, 1]."""
        decoder = way_of(self._job.request).decoder(self._models.vae)
        left = self._job.num_frames
        for latents in self._job.kept.all_latents():
            for piece in latents.split(1, dim=2):
                frames = decoder.push(piece)[0, :, :left].transpose(0, 1)
                left -= len(frames)
                yield from (frames + 1) / 2

    def _calmed(self, painted: Iterator[Tensor]) -> Iterator[Tensor]:
        """The frames, those of a model that knows one at a time led along with the source."""
        job, request = self._job, self._job.request
        if way_of(request) is Renoising or request.strength == 0:
            yield from painted
            return
        frames = read_frames(job.source, job.size, request.fps, num_frames=job.num_frames)
        source = (torch.from_numpy(frame).permute(2, 0, 1).float() / 255 for frame in frames)
        mix = request.mix
        screen = 0.0 if mix is None else mix.screen
        share = MORPHING_SHARE if mix is not None and mix.is_morph else SHARE
        try:
            yield from steadied(painted, source, share * request.strength, screen)
        finally:
            # Ends the program that reads the file.
            frames.close()

    def _load(self, names: tuple[str, ...]) -> Iterator[Event]:
        """The parts of the next stage; all of them, where the plan keeps all."""
        clip = self._clip
        load = (clip.request.spec, clip.plan, clip.weights)
        only = clip.plan.frees_parts or names == DECODING
        yield from self._models.load(*load, names) if only else self._models.load(*load)

    def _step_down(self, failure: BaseException) -> Notice:
        """A plan that needs less; what is kept stays.

        Raises:
            WontFitError: there is none.
        """
        plan = self._clip.plan
        try:
            self._clip = in_less_memory(self._clip, self._stage)
        except WontFitError as refusal:
            elsewhere = "" if plan.device == "cpu" else ", or --device cpu"
            raise WontFitError(
                f"{plan.model} ran out of memory on {plan.device}",
                hint=f"{refusal.hint}{elsewhere}",
            ) from failure
        return Notice(
            f"out of memory after window {self._job.kept.count} of {len(self._job.windows)}, "
            f"going on with {way_text(self._clip)}"
        )

    def _less_to_decode(self, failure: BaseException) -> Notice:
        """Without any part but the autoencoder.

        Raises:
            WontFitError: that is so already.
        """
        plan = self._clip.plan
        if plan.frees_parts:
            raise WontFitError(
                f"{plan.model} ran out of memory while decoding on {plan.device}",
                hint="use a smaller --size, or finish it with --device cpu",
            ) from failure
        self._clip = replace(self._clip, plan=replace(plan, offload="model"))
        return Notice(f"out of memory while decoding, going on with {way_text(self._clip)}")


def _of_the_rest(config: StepCacheConfig, strength: float) -> StepCacheConfig:
    """Settings of a step cache for the last part of the sampler's grid."""
    if not isinstance(config, MagCacheConfig):
        return config
    count = max(1, round(len(config.mag_ratios) * strength))
    return replace(config, mag_ratios=config.mag_ratios[-count:])
