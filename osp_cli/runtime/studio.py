"""Many clips of one loaded model, kept in memory: for whoever looks at them instead of saving."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from osp_cli.dials import Seeds, Size, StepCacheChoice
from osp_cli.evaluation.cache_bench import Take
from osp_cli.events import Event, StepDone
from osp_cli.models.latents import decode_latents, encode_latents, uint8_frames
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.adapters import adapter_problem
from osp_cli.runtime.devices import resolve_device, this_machine
from osp_cli.runtime.models import Models
from osp_cli.runtime.planner import make_plan
from osp_cli.runtime.settling import settle
from osp_cli.runtime.stages import decode, sample
from osp_cli.settings import Source, settle_generate
from osp_cli.stopping import StopSignal

Frames = NDArray[np.uint8]
_Result = TypeVar("_Result")


class Studio:
    """Makes clips exactly as `osp generate` does, from one load.

    Args:
        model: name of a card.
        weights: a folder of that card's layout; None for where its weights are installed.
        folder: for what a run leaves on disk meanwhile.
        stop: looked at between two steps.
        device: as of `--device`.
        seed: of all clips.

    Attributes:
        weights: the folder that was loaded.
        num_clips: made so far.
        seconds: that making them took, without loading.
    """

    def __init__(
        self,
        model: str,
        *,
        folder: Path,
        weights: Path | None = None,
        stop: StopSignal | None = None,
        device: str = "auto",
        seed: int = 1,
    ) -> None:
        self._model, self._folder, self._seed = model, folder, seed
        self._stop = stop or StopSignal()
        self._device = str(resolve_device(device))
        self._models = Models()
        # Any request will do: which parts are loaded does not depend on it.
        request = GenerateRequest(image=folder / "any.png", model=model, num_frames=1, seed=seed)
        self.weights = weights or request.spec.weights_dir()
        plan = make_plan(
            request,
            request.spec,
            size=request.spec.default_size,
            machine=this_machine(resolve_device(device)),
            weights=self.weights,
        )
        deque(self._models.load(request.spec, plan, self.weights), maxlen=0)
        self.num_clips, self.seconds = 0, 0.0

    def clip(
        self,
        photo: Path,
        size: tuple[int, int],
        num_frames: int,
        *,
        prompt: str | None = None,
        style: str | None = None,
        cutoff: float | None = None,
    ) -> Frames:
        """Frames of one clip with the card's defaults, `(num_frames, height, width, 3)`.

        Args:
            photo: of any size.
            size: width, height of the clip.
            num_frames: `4k + 1`.
            prompt: what happens; by default what the card says where nothing is asked.
            style: as `--style` takes it.
            cutoff: as `--cutoff` takes it; by default the card's.

        Raises:
            OspError: it cannot be made.
        """
        return self.take(
            photo, num_frames=num_frames, prompt=prompt, style=style, size=size, cutoff=cutoff
        ).frames

    def take(
        self,
        photo: Path,
        *,
        num_frames: int,
        prompt: str | None = None,
        style: str | None = None,
        steps: int | None = None,
        cache: StepCacheChoice | None = None,
        size: tuple[int, int] | None = None,
        cutoff: float | None = None,
    ) -> Take:
        """One clip with the card's defaults, and what its sampling took.

        Args:
            photo: of any size.
            num_frames: `4k + 1`.
            prompt: what happens; by default what the card says where nothing is asked.
            style: as `--style` takes it.
            steps: of the sampler; by default the card's.
            cache: as `--cache` takes it; by default the card's.
            size: width, height of the clip; by default the card's nearest to the photo.
            cutoff: as `--cutoff` takes it; by default the card's.

        Raises:
            OspError: it cannot be made.
        """
        settled = settle_generate(
            Source(image=photo, overwrite=True, misfit=adapter_problem),
            model=self._model,
            prompt=prompt,
            style=style,
            cutoff=cutoff,
            size=None if size is None else Size(*size),
            num_inference_steps=steps,
            cache=cache,
            num_frames=num_frames,
            seed=Seeds([self._seed]),
            device=self._device,
            output=str(self._folder / "clip.mp4"),
        )
        started = time.perf_counter()
        clip, _ = settle(settled.request)
        clip = replace(clip, weights=self.weights)
        done: list[StepDone] = []
        sampled = _result(sample(clip, self._models, self._stop), done)
        sampled.kept.unlink(missing_ok=True)
        clip, latents = sampled.clip, sampled.sampling.latents
        del sampled
        _, frames = _result(decode(clip, self._models, latents))
        self.num_clips += 1
        self.seconds += time.perf_counter() - started
        return Take(
            frames,
            seconds=sum(step.seconds for step in done),
            skipped=sum(step.cached for step in done),
            num_steps=len(done),
        )

    def round_trip(self, pictures: Frames) -> Frames:
        """Pictures through the codec and back, each as if it were alone.

        Args:
            pictures: `(count, height, width, 3)` uint8.
        """
        return np.concatenate([self.video_round_trip(picture[None]) for picture in pictures])

    def video_round_trip(self, video: Frames) -> Frames:
        """A video through the codec and back.

        Args:
            video: `(4k + 1, height, width, 3)` uint8.
        """
        pixels = torch.from_numpy(np.array(video)).permute(3, 0, 1, 2)[None]
        latents = encode_latents(self._models.vae, pixels.float() / 127.5 - 1)
        frames: Frames = uint8_frames(decode_latents(self._models.vae, latents))[0].cpu().numpy()
        return frames


def _result(
    events: Generator[Event, None, _Result], steps: list[StepDone] | None = None
) -> _Result:
    """What a stream of events returns at its end; of the events only the steps are kept."""
    while True:
        try:
            event = next(events)
            if steps is not None and isinstance(event, StepDone):
                steps.append(event)
        except StopIteration as end:
            result: _Result = end.value
            return result
