"""One video from another: order of operations, window by window. Loads nothing, prints nothing.

The source's latents are partly re-noised and sampled anew (SDEdit over latent frames), in windows
of as many frames as the model sees at once. Windows overlap: what an earlier one has made is held
in place, at each step with as much noise as the sampler is at, so that the next joins without a
seam. A model that does not read the noise is shown every frame as a picture of its own instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from osp_cli.conditioning.vlm import QwenVLConditioner
from osp_cli.events import StepDone
from osp_cli.models.latents import with_surroundings
from osp_cli.models.streaming import (
    PictureDecoder,
    PictureEncoder,
    StreamingDecoder,
    StreamingEncoder,
)
from osp_cli.pipelines.flash_i2v import (
    Conditions,
    FlashI2VPipeline,
    Sampling,
    SamplingInputs,
    SamplingState,
)
from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.guidance import uses_guidance
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.style_mix import weight_left, weights_along

# Latent frames that a window shares with the one before it.
CONTEXT = 3
# The timestep of pure noise, for a model that does not look at it.
_PURE_NOISE = 1000.0


class Window(NamedTuple):
    """Latent frames `start` to `stop` of a video, of which the first `known` are made already."""

    start: int
    stop: int
    known: int

    @property
    def num_frames(self) -> int:
        """Latent frames that the model sees."""
        return self.stop - self.start


def split(num_frames: int, size: int, context: int) -> list[Window]:
    """Windows that cover a video.

    Where they share frames, all have the same size, as a model knows how clips begin and end; so
    the last one begins earlier and knows more. Otherwise the last one may be shorter.

    Args:
        num_frames: latent frames of the video.
        size: of a window, at most.
        context: frames shared by two of them; at most half a window.

    Raises:
        ValueError: there are no frames.
    """
    if num_frames < 1 or size < 1:
        raise ValueError(f"there is nothing to split: {num_frames} frames, {size} at once")
    context = min(context, size // 2)
    windows = [Window(0, min(size, num_frames), 0)]
    while (made := windows[-1].stop) < num_frames:
        start = min(made - context, num_frames - size) if context else made
        windows.append(Window(start, min(start + size, num_frames), made - start))
    return windows


def num_steps(strength: float, num_inference_steps: int) -> int:
    """Steps that are left of the sampler's grid where it begins at `strength`; 0 makes none."""
    return max(1, round(num_inference_steps * strength)) if strength else 0


def noise_at(seed: int, window: Window, like: Tensor) -> Tensor:
    """epsilon of a window, fp32, in which each latent frame of the video has its own.

    It is the same wherever a window begins.

    Args:
        seed: of the video.
        window: whose frames.
        like: latents of one or more frames, `(1, channels, frames, h, w)`.
    """
    shape = (1, like.shape[1], 1, *like.shape[3:])
    frames = []
    for index in range(window.start, window.stop):
        mixed = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        frames.append(torch.randn(shape, generator=generator))
    return torch.cat(frames, 2).to(like.device)


class WindowSampling(Protocol):
    """One window on its way.

    Attributes:
        latents: `(1, channels, latent_frames, h, w)` fp32; the window itself after the last step.
        step, num_steps: how many steps are done, and how many there are.
    """

    @property
    def latents(self) -> Tensor: ...

    @property
    def step(self) -> int: ...

    @property
    def num_steps(self) -> int: ...

    def steps(self) -> Iterator[StepDone]:
        """Do the steps."""
        ...


class Renoising:
    """Restyles with the usual conditions of a clip, those of each window's first frame.

    Args:
        inputs: of the whole video; picture, length and span are those of each window.
        strength: how far the latents are re-noised, above 0; 1 begins with noise alone.
        num_frames: latent frames of the video.

    Attributes:
        context: latent frames that windows share.
        encoder, decoder: classes of what makes latents of frames, and frames of latents.
        kept_dtype: that latents can be kept in without being seen to.
    """

    context = CONTEXT
    encoder = StreamingEncoder
    decoder = StreamingDecoder
    # The next window begins with them.
    kept_dtype = torch.float32

    def __init__(self, inputs: SamplingInputs, strength: float, num_frames: int) -> None:
        self._inputs = replace(inputs, start=strength)
        self._strength = strength
        self._num_frames = num_frames

    @torch.no_grad()
    def condition(
        self,
        pipeline: FlashI2VPipeline,
        window: Window,
        source: Tensor,
        picture: Image.Image | None,
    ) -> Conditions:
        """Everything about a window that does not depend on the noise.

        Args:
            pipeline: its transformer may be None.
            window: which.
            source: its latents.
            picture: its first frame; None for a model that is shown none.
        """
        return pipeline.condition(self._inputs_of(pipeline, window, picture))

    @contextmanager
    def sampling(
        self,
        pipeline: FlashI2VPipeline,
        window: Window,
        conditions: Conditions,
        source: Tensor,
        known: Tensor,
    ) -> Iterator[WindowSampling]:
        """A window to be sampled.

        Args:
            pipeline: its conditioner may be None.
            window: which.
            conditions: from `condition`.
            source: latents of the video there, `(1, channels, latent_frames, h, w)` fp32.
            known: latents that are made already, as many as the window knows.
        """
        noise = noise_at(self._inputs.seed, window, source)
        inputs = self._inputs_of(pipeline, window, None)
        # Its latents are put in place below, when the first sigma is known.
        with pipeline.sampling(inputs, conditions, SamplingState(noise, 0)) as sampling:
            if self._strength < 1:
                sampling.latents = _mixed(source, noise, sampling.sigma)
            yield _Held(sampling, known, noise)

    def _inputs_of(
        self, pipeline: FlashI2VPipeline, window: Window, picture: Image.Image | None
    ) -> SamplingInputs:
        every = pipeline.vae.config.scale_factor_temporal
        moments = _moments(window, self._num_frames)
        return replace(
            self._inputs,
            image=picture,
            num_frames=1 + every * (window.num_frames - 1),
            span=(moments[0], moments[-1]),
        )


def _moments(window: Window, num_frames: int) -> list[float]:
    """Where the frames of a window lie in a video of so many, 0 its first and 1 its last moment."""
    return [index / max(1, num_frames - 1) for index in range(window.start, window.stop)]


class _Held:
    """A sampling whose first frames are what they have to become, as noisy as all others."""

    def __init__(self, sampling: Sampling, known: Tensor, noise: Tensor) -> None:
        self._sampling = sampling
        self._known = known.to(noise.device)
        self._noise = noise[:, :, : known.shape[2]]
        self._hold()

    @property
    def latents(self) -> Tensor:
        return self._sampling.latents

    @property
    def step(self) -> int:
        return self._sampling.step

    @property
    def num_steps(self) -> int:
        return self._sampling.num_steps

    def steps(self) -> Iterator[StepDone]:
        for done in self._sampling.steps():
            self._hold()
            yield done

    def _hold(self) -> None:
        count = self._known.shape[2]
        if not count:
            return
        held = _mixed(self._known, self._noise, self._sampling.sigma)
        self._sampling.latents = torch.cat([held, self._sampling.latents[:, :, count:]], 2)


def _mixed(clip: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """z at `sigma`, `(1 - sigma) x + sigma epsilon`; exactly x at 0."""
    return (1 - sigma) * clip + sigma * noise if sigma else clip


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the vision-language model says to a prompt, before adapters (Eq. 1)."""

    states: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class ShownFrames:
    """What stays the same over a window whose latent frames are pictures of their own.

    Attributes:
        prompts: conditions of each prompt, a batch of as many clips of one latent frame as the
            window has, with its weight for each of them, `(clips, 1, 1, 1, 1)`.
        uncond: the same without the prompts, where there is guidance.
    """

    prompts: tuple[tuple[Conditions, Tensor], ...]
    uncond: Conditions | None


class Showing:
    """Restyles with a model that does not read the noise, in a single step.

    Such a model answers with the same clip from any noise, so each frame of the video is shown to
    it as the first frame of a clip of its own, and is all of that clip: a latent frame is a frame
    here. (Four to a latent frame would take a quarter of the time, but what moves within them is
    lost in a style, and the video would stutter.) Windows know nothing of each other, and all of
    them read the prompt with the video's first frame: there can be no seam.

    Since re-noising changes nothing, `strength` weighs the answer against the source:
    `v = s v_model + (1 - s) (z - x_source) / sigma`, which ends at `s x_model + (1 - s) x_source`.

    Args:
        inputs: of the whole video; its picture is the video's first frame.
        strength: s.
        num_frames: of the video.

    Attributes:
        context, encoder, decoder, kept_dtype: as of `Renoising`.
    """

    context = 0
    encoder = PictureEncoder
    decoder = PictureDecoder
    kept_dtype = torch.float16

    def __init__(self, inputs: SamplingInputs, strength: float, num_frames: int) -> None:
        self._inputs = inputs
        self._strength = strength
        self._num_frames = num_frames
        self._readings: tuple[_Reading, ...] = ()

    @torch.no_grad()
    def condition(
        self,
        pipeline: FlashI2VPipeline,
        window: Window,
        source: Tensor,
        picture: Image.Image | None,
    ) -> ShownFrames:
        """As of `Renoising`; the picture of the window is not looked at."""
        conditioner, inputs = pipeline.conditioner, self._inputs
        assert isinstance(conditioner, QwenVLConditioner)
        texts = [inputs.prompt, *(prompt.text for prompt in inputs.also)]
        if uses_guidance(inputs.guidance_scale):
            texts.append(inputs.negative_prompt)
        if not self._readings:
            images = None if inputs.image is None else [inputs.image]
            readings = (conditioner.hidden_states([text], images) for text in texts)
            self._readings = tuple(_Reading(*reading) for reading in readings)
        # Frames as samples of a batch: (frames, channels, 1, h, w).
        frames = source[0].transpose(0, 1)[:, :, None]
        tokens = frames
        if pipeline.surround:
            tokens = with_surroundings(pipeline.vae, frames, pipeline.surround)

        def show(reading: _Reading) -> Conditions:
            states, mask = (
                part.expand(len(frames), *part.shape[1:]) for part in (reading.states, reading.mask)
            )
            context = conditioner.project(states, mask, tokens)
            return Conditions(cond=context, uncond=None, first=frames, projected=None)

        shown = [show(reading) for reading in self._readings]
        rows = weights_along(inputs.also, _moments(window, self._num_frames))
        left = [weight_left(row[index] for row in rows) for index in range(window.num_frames)]
        weights = [source.new_tensor(row).reshape(-1, 1, 1, 1, 1) for row in (left, *rows)]
        guided = uses_guidance(inputs.guidance_scale)
        return ShownFrames(
            # Without the one that guidance leads away from, which has no weight.
            prompts=tuple(zip(shown, weights, strict=False)),
            uncond=shown[-1] if guided else None,
        )

    @contextmanager
    def sampling(
        self,
        pipeline: FlashI2VPipeline,
        window: Window,
        conditions: ShownFrames,
        source: Tensor,
        known: Tensor,
    ) -> Iterator[WindowSampling]:
        """As of `Renoising`; nothing is known."""
        noise = noise_at(self._inputs.seed, window, source)
        yield _OneStep(self, pipeline, conditions, source, noise)

    @torch.no_grad()
    def velocity(
        self, pipeline: FlashI2VPipeline, conditions: ShownFrames, source: Tensor, noise: Tensor
    ) -> Tensor:
        """v at sigma 1, weighed against the source; like `source`."""
        latents = noise[0].transpose(0, 1)[:, :, None]
        frames = conditions.prompts[0][0].first
        assert frames is not None
        features = fourier_features(frames, self._inputs.cutoff[0], 1)
        projected = project_first_frame(pipeline.transformer, frames)
        timestep = torch.full((1,), _PURE_NOISE, device=latents.device)

        def answer(shown: Conditions) -> Tensor:
            # One prompt at a time; together they are put below.
            alone = replace(shown, projected=projected)
            return pipeline.velocity(latents, timestep, alone, features, 1.0)

        velocity = sum(
            (weight * answer(shown) for shown, weight in conditions.prompts),
            torch.zeros_like(latents),
        )
        if conditions.uncond is not None:
            without = answer(conditions.uncond)
            velocity = without + self._inputs.guidance_scale * (velocity - without)
        velocity = velocity[:, :, 0].transpose(0, 1)[None]
        return self._strength * velocity + (1 - self._strength) * (noise - source)


class _OneStep:
    """From noise to the answer in one step of Euler."""

    num_steps = 1

    def __init__(
        self,
        showing: Showing,
        pipeline: FlashI2VPipeline,
        conditions: ShownFrames,
        source: Tensor,
        noise: Tensor,
    ) -> None:
        self.latents = noise
        self.step = 0
        self._velocity = lambda: showing.velocity(pipeline, conditions, source, noise)

    def steps(self) -> Iterator[StepDone]:
        started = time.perf_counter()
        # From sigma 1 to 0.
        self.latents = self.latents - self._velocity()
        self.step = 1
        if self.latents.is_cuda:
            # Its kernels are only queued by now.
            torch.cuda.synchronize(self.latents.device)
        yield StepDone(self.step, self.num_steps, time.perf_counter() - started)
