"""Endless video, one chunk after the other (paper, section 7.1).

A chunk of nine noise latents is sampled beside what came before, which stays clean; then it is
what came before. Nothing is decoded and encoded again in between, and all that goes on is a
`StreamState`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from osp_cli.conditioning.vlm import QwenVLConditioner
from osp_cli.events import StepDone
from osp_cli.models.latents import with_surroundings
from osp_cli.pipelines.layouts import Paint, Predict, layout_of
from osp_cli.pipelines.stream import StreamInputs, StreamState, Words
from osp_cli.realtime_card import RealtimeFigures
from osp_cli.sampling.few_steps import (
    ChunkSampler,
    OneSize,
    RisingSizes,
    TrainedStages,
    stage_scheduler,
)
from osp_cli.sampling.guidance import classifier_free_guidance, uses_guidance
from osp_cli.sampling.hooks import LEADING_CONTEXT, UNCONDITIONAL_CONTEXT
from osp_cli.sampling.stages import Draw
from osp_cli.sampling.step_cache import (
    FBCacheConfig,
    NoCacheConfig,
    StepCacheConfig,
    enable_step_cache,
)

__all__ = ["RealtimePipeline", "StreamInputs", "StreamState", "Words"]

# What may be done to the latents of a chunk before they are history.
Anchor = Callable[[Tensor], Tensor]


class RealtimePipeline:
    """Order of operations of a stream. Loads nothing, prints nothing, remembers nothing.

    Args:
        transformer: the velocity model; may be None while only prompts are read.
        vae: causal autoencoder; only its geometry counts, and its mirror for image tokens.
        conditioner: of prompts and pictures; may be None while only chunks are made.
        figures: the card's table `[realtime]`.
        surround: cells of the mirrored picture around it that image tokens show too.
        scheduler: of the stages, as its folder says; None takes that of equal shares.
    """

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        conditioner: Any,
        figures: RealtimeFigures,
        surround: int = 0,
        scheduler: Any = None,
    ) -> None:
        self.transformer = transformer
        self.vae = vae
        self.conditioner = conditioner
        self.figures = figures
        self.surround = surround
        self._scheduler = scheduler
        self._layout = layout_of(figures.layout, figures.context)

    @torch.no_grad()
    def read(
        self, prompt: str, negative: str | None = None, image: Image.Image | None = None
    ) -> Words:
        """What the model reads of a prompt. It may run beside `chunk`, in a thread of its own.

        Args:
            prompt: of the chunks to come.
            negative: the other side of guidance; None where there is no guidance.
            image: the stream's first picture, for models that read pictures.
        """
        uncond = None if negative is None else self._rows(negative, image)
        return Words(self._rows(prompt, image), uncond)

    def blend(self, a: Words, b: Words, share: float) -> Words:
        """The words between `a` and `b`; 0 is all `a`."""
        return a.blend(b, share)

    def begin(
        self,
        inputs: StreamInputs,
        context_latents: Tensor | None = None,
        image_latents: Tensor | None = None,
        picture: Image.Image | None = None,
    ) -> StreamState:
        """A stream before its first chunk.

        Args:
            inputs: of the stream.
            context_latents: of the video to be continued, normalised, newest last.
            image_latents: of the first picture, one latent frame; the only context where there is
                no video. None takes the first of the video, if there is one.
            picture: the frame that the first chunk goes on from; only models that remember it look
                at it.

        Raises:
            ValueError: latents of another size.
        """
        cell = self.vae.config.scale_factor_spatial
        shape = (
            1,
            len(self.vae.config.latents_mean),
            0,
            inputs.height // cell,
            inputs.width // cell,
        )
        history = torch.zeros(shape, device=self.vae.device)
        sink = image_latents
        for latents in (context_latents, image_latents):
            if latents is None:
                continue
            if (*latents.shape[:2], 0, *latents.shape[3:]) != shape:
                raise ValueError(f"latents {tuple(latents.shape)} are none of a stream {shape}")
        if context_latents is not None:
            history = context_latents.float()
            sink = context_latents[:, :, :1] if sink is None else sink
        elif image_latents is not None:
            history = image_latents.float()
        generator = torch.Generator().manual_seed(inputs.seed)
        return StreamState(
            0, self._kept(history), None if sink is None else sink.float(), generator.get_state()
        )

    @torch.no_grad()
    def chunk(
        self,
        inputs: StreamInputs,
        state: StreamState,
        words: Words,
        *,
        cutoff: float = 0.1,
        paint: bool = False,
        anchor: Anchor | None = None,
        shown: Tensor | None = None,
    ) -> Generator[StepDone, None, tuple[Tensor, StreamState]]:
        """Make the next chunk; yields its steps, and returns its latents and the state after it.

        On a GPU the seconds of a step are those of handing it over; the last one waits for all.

        Args:
            inputs: of the stream.
            state: before the chunk; it is not changed, the same may be asked for again.
            words: of `read`.
            cutoff: percentile of the Fourier filter in image mode.
            paint: image mode, for cards that have it: a style or cutoff comes into the picture.
            anchor: is given the chunk's latents and returns what takes their place.
            shown: the frame that image tokens show, with what lies around it, normalised latents;
                None takes the newest of the state, mirrored all around.

        Returns:
            `(1, channels, latent_frames, h, w)`, normalised, fp32; and the state.

        Raises:
            ValueError: words without a negative prompt where there is guidance, or settings that
                this layout does not have.
        """
        if uses_guidance(inputs.guidance_scale) and words.uncond is None:
            raise ValueError("guidance needs a negative prompt's words")
        generator = torch.Generator()
        generator.set_state(state.generator.clone())
        state = self._moved(state)
        device = state.history.device

        def draw(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator).to(device)

        latents = draw(self._noise_shape(inputs, state))
        sampler = self._sampler(inputs, state, draw, device)
        texts = self._with_image_rows(words, state, shown)
        painted = Paint(cutoff) if paint else None
        step = 0
        for stage in range(sampler.num_stages):
            latents = sampler.enter(stage, latents)
            view = self._layout.view(self.transformer, state, tuple(latents.shape), painted)
            with enable_step_cache(self.transformer, self._stage_cache(inputs, sampler)) as cache:
                for index, timestep in enumerate(sampler.timesteps):
                    started = time.perf_counter()
                    velocity = self._velocity(view, latents, timestep, texts, inputs)
                    latents = sampler.step(index, velocity, latents)
                    step += 1
                    if latents.is_cuda and step == sampler.num_steps:
                        # Only the chunk is waited for: between steps the device never runs dry.
                        torch.cuda.current_stream(latents.device).synchronize()
                    seconds = time.perf_counter() - started
                    yield StepDone(step, sampler.num_steps, seconds, cache.last_step_skipped)
        if anchor is not None:
            latents = anchor(latents)
        history = torch.cat([state.history, latents.float()], dim=2)
        sink = latents[:, :, :1].float().clone() if state.sink is None else state.sink
        after = StreamState(state.chunk + 1, self._kept(history), sink, generator.get_state())
        return latents, after

    def _rows(self, prompt: str, image: Image.Image | None) -> Tensor:
        """A prompt's rows without image tokens, which belong to a chunk and not to a prompt."""
        images = None if image is None else [image]
        rows: Tensor = self.conditioner.encode([prompt], images=images, image_latents=None)
        return rows

    def _with_image_rows(
        self, words: Words, state: StreamState, shown: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Both sides of guidance, with the image tokens of the newest frame where there are any."""
        conditioner = self.conditioner
        if not (isinstance(conditioner, QwenVLConditioner) and conditioner.image_adapter):
            return words.cond, words.uncond
        known = self.figures.conditions == "context" and state.history.shape[2] > 0
        newest = state.history[:, :, -1:] if known else self._empty_frame(state)
        if shown is not None:
            newest = shown
        elif self.surround:
            newest = with_surroundings(self.vae, newest, self.surround)
        # Without a picture the image tokens are dropped, not left out: lengths never change.
        rows = conditioner.image_rows(newest) * float(known)

        def joined(text: Tensor) -> Tensor:
            return torch.cat([text, rows.to(text.dtype)], dim=1)

        return joined(words.cond), None if words.uncond is None else joined(words.uncond)

    def _velocity(
        self,
        view: Predict,
        latents: Tensor,
        timestep: Tensor,
        texts: tuple[Tensor, Tensor | None],
        inputs: StreamInputs,
    ) -> Tensor:
        """Guided v, fp32."""
        cond, uncond = texts
        with self.transformer.cache_context(LEADING_CONTEXT):
            velocity = view(latents, timestep, cond).float()
        if not uses_guidance(inputs.guidance_scale) or uncond is None:
            return velocity
        with self.transformer.cache_context(UNCONDITIONAL_CONTEXT):
            other = view(latents, timestep, uncond).float()
        return classifier_free_guidance(velocity, other, inputs.guidance_scale)

    def _sampler(
        self, inputs: StreamInputs, state: StreamState, draw: Draw, device: torch.device
    ) -> ChunkSampler:
        steps = inputs.num_inference_steps
        if inputs.stages == 1 and self.figures.layout == "osp":
            return OneSize(inputs.sampler, steps[0], inputs.shift, draw, device)
        if inputs.sampler == "dmd":
            scheduler = self._scheduler or stage_scheduler(inputs.stages)
            twice = inputs.amplify_first and state.chunk == 0 and self.figures.layout == "helios"
            patch = self.transformer.config.patch_size
            return TrainedStages(scheduler, steps, draw, patch, twice=twice)
        if self.figures.layout == "helios":
            raise ValueError(f"weights for stages are sampled by dmd, not by {inputs.sampler}")
        return RisingSizes(inputs.sampler, steps, inputs.shift, draw, device)

    def _stage_cache(self, inputs: StreamInputs, sampler: ChunkSampler) -> StepCacheConfig:
        """The step cache of one stage: shapes change with the next."""
        config = inputs.step_cache
        if isinstance(config, NoCacheConfig | FBCacheConfig):
            return config
        return replace(config, num_inference_steps=len(sampler.timesteps))

    def _noise_shape(self, inputs: StreamInputs, state: StreamState) -> tuple[int, ...]:
        batch, channels, _, *size = state.history.shape
        return (batch, channels, inputs.latent_frames, *size)

    def _empty_frame(self, state: StreamState) -> Tensor:
        batch, channels, _, *size = state.history.shape
        return state.history.new_zeros(batch, channels, 1, *size)

    def _kept(self, history: Tensor) -> Tensor:
        """The newest that the model looks back, as numbers of their own."""
        return history[:, :, max(0, history.shape[2] - self._layout.lookback) :].clone()

    def _moved(self, state: StreamState) -> StreamState:
        """The state where the transformer computes; it may have come from a file."""
        device = self.transformer.device
        sink = None if state.sink is None else state.sink.to(device)
        return replace(state, history=state.history.to(device), sink=sink)
