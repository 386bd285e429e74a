"""Clips on the way: what the adapter can do by now, made without disturbing the run.

Their noise comes from generators of their own and nothing draws from the global ones, so a run with
samples ends with the same weights as one without.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from osp_cli.events import SampleMade
from osp_cli.media.files import make_folder
from osp_cli.media.image import cover_resize_crop, load_image
from osp_cli.media.sinks import open_sink
from osp_cli.pipelines.flash_i2v import (
    Conditions,
    FlashI2VPipeline,
    SamplingInputs,
    decode_frames,
)
from osp_cli.registry import ModelSpec
from osp_cli.runtime.loading_wan import make_pipeline
from osp_cli.runtime.train_encoding import prompt_with_trigger
from osp_cli.settings import PAPER_DEFAULTS
from osp_cli.train_request import TrainRequest
from osp_cli.training.conditions import ConditionSource
from osp_cli.training.page import SampleRecord, write_strip

SAMPLES = "samples"
BUILT_IN_PROMPTS = (
    "the camera slowly pans to the left",
    "the camera moves closer",
    "gentle movement",
)
# Of the card's; a look on the way is enough.
_SHARE_OF_STEPS = 0.4
_CONTEXT = "encoder_hidden_states"
# Of a sample: its step, and its number from 1 on.
_NAME = re.compile(r"step-(\d{6,})-([1-9]\d*)\.mp4", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A sample with everything that needs the conditioner."""

    inputs: SamplingInputs
    conditions: Conditions
    prompt: str
    rows: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None


class TrainingSamples:
    """The samples of a run: prepared while the conditioner is there, made whenever asked.

    Args:
        spec: the base's card.
        request: of the run.
        pictures: that they begin with, one after the other; none for text to video.
    """

    def __init__(
        self, spec: ModelSpec, request: TrainRequest, pictures: Sequence[Image.Image]
    ) -> None:
        self.spec = spec
        self.request = request
        self.folder = request.output / SAMPLES
        self.records: list[SampleRecord] = []
        self._pictures = list(pictures)
        self._prepared: list[_Prepared] = []

    def prepare(self, vae: Any, conditioner: Any, source: ConditionSource | None) -> None:
        """Read prompts and pictures, before the encoders go.

        Args:
            vae, conditioner: of the model.
            source: where its adapters are trained: then conditions are joined anew each time.
        """
        parts = {"transformer": None, "vae": vae, "conditioner": conditioner}
        pipeline = make_pipeline(self.spec, parts)
        prompts = self.request.sample_prompts or BUILT_IN_PROMPTS
        for number, words in enumerate(prompts):
            prompt = prompt_with_trigger(words, self.request.trigger)
            inputs = self._inputs(prompt, number)
            conditions = _on(pipeline.condition(inputs), "cpu")
            rows = None
            if source is not None:
                negative = inputs.negative_prompt
                rows = (
                    source.prepare(prompt, inputs.image),
                    source.prepare(negative, inputs.image),
                )
            self._prepared.append(_Prepared(inputs, conditions, words, rows))

    @torch.no_grad()
    def make(
        self, step: int, transformer: Any, vae: Any, source: ConditionSource, *, write: bool = True
    ) -> Generator[SampleMade]:
        """Make all samples; processes that share the transformer make them together.

        Args:
            step: after which; 0 is before the first.
            transformer: with what was trained.
            vae: on the host, and brought to the device for decoding only.
            source: joins conditions where adapters are trained.
            write: whether this process writes files.
        """
        device = next(transformer.parameters()).device
        parts = {"transformer": transformer, "vae": vae, "conditioner": None}
        pipeline = make_pipeline(self.spec, parts)
        training = transformer.training
        transformer.eval()
        home = vae.device
        try:
            for number, prepared in enumerate(self._prepared):
                latents = self._latents(pipeline, prepared, source, device)
                if not write:
                    continue
                vae.to(device)
                frames = decode_frames(vae, latents)
                yield self._write(step, number, prepared, frames)
        finally:
            vae.to(home)
            transformer.train(training)

    def missing(self, step: int) -> bool:
        """Whether those of a step were never made, or not all of them."""
        count = len(self.request.sample_prompts or BUILT_IN_PROMPTS)
        return not all(self._path(step, k).with_suffix(".jpg").is_file() for k in range(count))

    def _path(self, step: int, number: int) -> Path:
        return self.folder / f"step-{step:06d}-{number + 1}.mp4"

    def found(self, done: int) -> None:
        """Take up the samples that an earlier part of the run left, for the page.

        Those of steps that are not done now will be made anew, and go.

        Args:
            done: steps.
        """
        self.records = []
        prompts = self.request.sample_prompts or BUILT_IN_PROMPTS
        for path in sorted(self.folder.glob("step-*-*.mp4")):
            name = _NAME.fullmatch(path.name)
            if name is None:  # of somebody else
                continue
            step, number = int(name[1]), int(name[2])
            strip = path.with_suffix(".jpg")
            if step > done:
                strip.unlink(missing_ok=True)
                path.unlink()
                continue
            if strip.is_file() and number <= len(prompts):
                self.records.append(SampleRecord(step, prompts[number - 1], path, strip))

    def _latents(
        self,
        pipeline: FlashI2VPipeline,
        prepared: _Prepared,
        source: ConditionSource,
        device: torch.device,
    ) -> torch.Tensor:
        conditions = _on(prepared.conditions, device)
        if prepared.rows is not None:
            prompt, negative = (
                source.join([row], conditions.first, device)[_CONTEXT] for row in prepared.rows
            )
            uncond = None if conditions.uncond is None else negative
            conditions = replace(conditions, cond=prompt, uncond=uncond)
        with pipeline.sampling(prepared.inputs, conditions) as sampling:
            for _ in sampling.steps():
                pass
        return sampling.latents

    def _write(self, step: int, number: int, prepared: _Prepared, frames: Any) -> SampleMade:
        make_folder(self.folder)
        path = self._path(step, number)
        sink = open_sink(path, fps=self.request.fps, recipe={}, overwrite=True, metadata=False)
        sink.write(frames)
        strip = path.with_suffix(".jpg")
        write_strip(frames, strip)
        self.records = [record for record in self.records if record.path != path]
        self.records.append(SampleRecord(step, prepared.prompt, path, strip))
        return SampleMade(path, step, prepared.prompt)

    def _inputs(self, prompt: str, number: int) -> SamplingInputs:
        request, defaults = self.request, {**PAPER_DEFAULTS, **self.spec.defaults}
        image = None
        if self._pictures:
            picture = self._pictures[number % len(self._pictures)]
            image = cover_resize_crop(picture, request.width, request.height)
        cutoff = float(defaults["cutoff"])
        return SamplingInputs(
            image=image,
            prompt=prompt,
            negative_prompt=str(defaults.get("negative_prompt", "")),
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            num_inference_steps=math.ceil(_SHARE_OF_STEPS * int(defaults["num_inference_steps"])),
            guidance_scale=float(defaults["guidance_scale"]),
            shift=float(defaults["shift"]),
            cutoff=(cutoff, cutoff),
            seed=request.seed + number,
            sampler=str(defaults["sampler"]),
        )


def sample_pictures(paths: Sequence[Path]) -> list[Image.Image]:
    """Pictures that the user wants samples of.

    Raises:
        UnreadableMediaError: one is missing or damaged.
    """
    return [load_image(path).image for path in paths]


def _on(conditions: Conditions, device: torch.device | str) -> Any:
    """The conditions with all tensors on a device, of whatever class they are."""
    moved = {
        name: value.to(device)
        for name in type(conditions).__dataclass_fields__
        if isinstance(value := getattr(conditions, name), torch.Tensor)
    }
    return replace(conditions, **moved)
