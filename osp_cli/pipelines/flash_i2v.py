"""FlashI2V sampling: image to video with latent shifting and Fourier guidance (paper, section
4)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from osp_cli.conditioning.base import Conditioner
from osp_cli.events import Event, FramesReady, StageFinished, StageStarted, StepDone
from osp_cli.media.image import to_tensor_values
from osp_cli.models.latents import (
    decode_latents,
    encode_latents,
    uint8_frames,
    with_surroundings,
)
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.sampling.fourier import cutoff_at, fourier_features
from osp_cli.sampling.guidance import classifier_free_guidance, uses_guidance
from osp_cli.sampling.hooks import UNCONDITIONAL_CONTEXT, conditional_context
from osp_cli.sampling.latent_shift import project_first_frame, shift_latents
from osp_cli.sampling.schedulers import (
    euler_schedule,
    restore_solver,
    solver_state,
    unipc_schedule,
)
from osp_cli.sampling.step_cache import (
    NoCacheConfig,
    StepCache,
    StepCacheConfig,
    enable_step_cache,
)
from osp_cli.style_mix import Weight, WeightedPrompt, sums_along, weight_left, weights_along


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingInputs:
    """One clip to be made.

    Attributes:
        image: the first frame at the clip's size, or None for text to video.
        prompt: what the model reads.
        also: further prompts with their weights. The clip follows the weighted mean of what the
            model answers to each, where `prompt` has the weight that these leave to 1. Each takes
            one more pass a step. Weights may change while the clip plays.
        negative_prompt: the other side of classifier-free guidance.
        width, height: of the clip in pixels.
        num_frames: `4k + 1`.
        num_inference_steps, guidance_scale, shift: of the sampler.
        cutoff: percentile of the Fourier filter at the first and the last step.
        seed: of the noise, drawn on the CPU so that devices agree on it.
        sampler: `euler` or `unipc`.
        step_cache: what may be skipped.
        span: which part of a whole video the clip is, 0 its first and 1 its last moment; weights
            that change do so over the whole video.
        start: where the sampler's grid begins: 1 is noise, less a clip that is only partly noise.
    """

    image: Image.Image | None
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    shift: float
    cutoff: tuple[float, float]
    seed: int
    sampler: str = "euler"
    step_cache: StepCacheConfig = field(default_factory=NoCacheConfig)
    start: float = 1.0
    also: tuple[WeightedPrompt, ...] = ()
    span: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        weights = [weight for _, weight in self.also]
        if not (
            all(map(_is_weight, weights)) and all(total < 1 + 1e-6 for total in sums_along(weights))
        ):
            raise ValueError(f"weights must be positive and add up to 1 at most, got {weights}")
        if not 0 <= self.span[0] <= self.span[1] <= 1:
            raise ValueError(f"span must lie in 0 to 1 and not run backwards, got {self.span}")


@dataclass(frozen=True, slots=True)
class SamplingState:
    """A clip between two steps; with the same inputs, all that is needed to go on bit-exactly.

    Attributes:
        latents: z, `(1, channels, latent_frames, h, w)` fp32; after the last step the clip itself.
        step: how many steps are done.
        solver: what the sampler remembers of earlier steps.
        cache: what the step cache remembers.
    """

    latents: Tensor
    step: int
    solver: Mapping[str, Tensor] = field(default_factory=dict)
    cache: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What stays the same over all steps.

    Attributes:
        cond, uncond: `encoder_hidden_states`; `uncond` is None without guidance.
        first: s, normalised latents of the first frame; None for text to video.
        projected: phi(s) (Eq. 16); None for text to video, the gamma = 0 case of Eq. 15, and before
            the transformer is there.
        also: `encoder_hidden_states` of further prompts, with their weights; `cond` has the weight
            that these leave to 1. A weight is one number, or one for each latent frame.
    """

    cond: Tensor
    uncond: Tensor | None
    first: Tensor | None
    projected: Tensor | None
    also: tuple[tuple[Tensor, Weight], ...] = ()


class FlashI2VPipeline:
    """Order of operations: condition, sample, decode. Loads nothing, prints nothing.

    Parts may be None outside of the stage that needs them: the conditioner while it samples, the
    transformer while it conditions.

    Args:
        transformer: v_theta of Eq. 22, with phi inside.
        vae: causal autoencoder.
        conditioner: of prompts and pictures.
        surround: cells of the mirrored picture around it that image tokens show too.
    """

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        conditioner: Any,
        surround: int = 0,
    ) -> None:
        self.transformer: FlashI2VTransformer3DModel = transformer
        self.vae = vae
        self.conditioner: Conditioner = conditioner
        self.surround = surround

    @torch.no_grad()
    def __call__(self, inputs: SamplingInputs) -> Iterator[Event]:
        """Yields stages and steps, then the frames."""
        yield StageStarted("condition")
        started = time.perf_counter()
        conditions = self.condition(inputs)
        yield StageFinished("condition", time.perf_counter() - started)

        with self.sampling(inputs, conditions) as sampling:
            yield from sampling.steps()

        yield StageStarted("decode")
        started = time.perf_counter()
        frames = decode_frames(self.vae, sampling.latents)
        yield StageFinished("decode", time.perf_counter() - started)
        yield FramesReady(frames)

    @contextmanager
    def sampling(
        self,
        inputs: SamplingInputs,
        conditions: Conditions,
        state: SamplingState | None = None,
    ) -> Iterator[Sampling]:
        """A clip to be sampled, from noise or from where `state` left it.

        Inside the `with`, the transformer carries the step cache.
        """
        if state is None:
            state = SamplingState(self.initial_noise(inputs), 0)
        conditions = self.with_projection(conditions)
        with enable_step_cache(self.transformer, inputs.step_cache) as cache:
            yield Sampling(self, inputs, conditions, state, cache)

    @torch.no_grad()
    def condition(self, inputs: SamplingInputs) -> Conditions:
        """Everything that depends on prompt and picture but not on the noise."""
        first = None
        images = None
        if inputs.image is not None:
            pixels = torch.from_numpy(to_tensor_values(inputs.image))[None, :, None]
            first = encode_latents(self.vae, pixels)
            images = [inputs.image]
        # Without a picture the image tokens are dropped, not left out: lengths never change.
        image_latents = self._empty_frame(inputs)
        if first is not None:
            image_latents = first
            if self.surround:
                image_latents = with_surroundings(self.vae, first, self.surround)

        def encode(prompt: str) -> Tensor:
            return self.conditioner.encode([prompt], images=images, image_latents=image_latents)

        guided = uses_guidance(inputs.guidance_scale)
        conditions = Conditions(
            cond=encode(inputs.prompt),
            uncond=encode(inputs.negative_prompt) if guided else None,
            first=first,
            projected=None,
            also=tuple(
                (encode(prompt.text), weight)
                for prompt, weight in zip(inputs.also, self._weights(inputs), strict=True)
            ),
        )
        return conditions if self.transformer is None else self.with_projection(conditions)

    @torch.no_grad()
    def with_projection(self, conditions: Conditions) -> Conditions:
        """The conditions with phi(s), which the transformer makes; the same where it is there."""
        if conditions.first is None or conditions.projected is not None:
            return conditions
        return replace(
            conditions, projected=project_first_frame(self.transformer, conditions.first)
        )

    def initial_noise(self, inputs: SamplingInputs) -> Tensor:
        """epsilon, `(1, channels, latent_frames, h, w)` fp32."""
        generator = torch.Generator().manual_seed(inputs.seed)
        frame = self._empty_frame(inputs)
        shape = list(frame.shape)
        shape[2] = self._num_latent_frames(inputs)
        return torch.randn(shape, generator=generator).to(frame.device)

    def _weights(self, inputs: SamplingInputs) -> list[Weight]:
        """Of each further prompt: its constant weight, or one for each latent frame.

        Latent frame k of K lies at k / (K - 1) of the clip; one alone is its first moment.
        """
        count = self._num_latent_frames(inputs)
        first, last = inputs.span
        shares = [index / max(1, count - 1) for index in range(count)]
        rows = weights_along(inputs.also, [first * (1 - share) + last * share for share in shares])
        return [
            tuple(row) if isinstance(prompt.weight, tuple) else prompt.weight
            for prompt, row in zip(inputs.also, rows, strict=True)
        ]

    def sample(
        self, inputs: SamplingInputs, conditions: Conditions, latents: Tensor
    ) -> Iterator[tuple[StepDone, Tensor]]:
        """Each step and the latents after it, from `latents` on."""
        with self.sampling(inputs, conditions, SamplingState(latents, 0)) as sampling:
            for event in sampling.steps():
                yield event, sampling.latents

    def velocity(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditions: Conditions,
        features: Tensor,
        guidance_scale: float,
    ) -> Tensor:
        """Guided v, fp32, of latents that are shifted only here (Eq. 18).

        Of several prompts it is the weighted mean, `v = sum_i w_i v(prompt_i)`: exact at both ends
        of each weight, for any model. Guidance leads from the unconditional v to that mean.
        Weights that change are those of each latent frame.
        """
        hidden_states = self.model_input(latents, conditions)
        timestep = timestep.expand(len(latents))

        def run(name: str, context: Tensor) -> Tensor:
            with self.transformer.cache_context(name):
                return self.predict(hidden_states, timestep, context, conditions, features).float()

        cond = run(conditional_context(0), conditions.cond)
        if conditions.also:
            # A lone prompt is not even multiplied by 1.
            cond = cond * _factor(_left([weight for _, weight in conditions.also]), cond)
        for number, (context, weight) in enumerate(conditions.also, 1):
            cond = cond + _factor(weight, cond) * run(conditional_context(number), context)
        if conditions.uncond is None:
            return cond
        uncond = run(UNCONDITIONAL_CONTEXT, conditions.uncond)
        return classifier_free_guidance(cond, uncond, guidance_scale)

    def model_input(self, latents: Tensor, conditions: Conditions) -> Tensor:
        """What the model is shown at one step; the loop itself goes on from `latents`."""
        if conditions.projected is None:
            return latents
        return shift_latents(latents, conditions.projected)

    def predict(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        context: Tensor,
        conditions: Conditions,
        features: Tensor,
    ) -> Tensor:
        """v of one prompt, in the transformer's precision: one pass.

        Args:
            hidden_states: from `model_input`.
            timestep: `(1,)`.
            context: `encoder_hidden_states` of that prompt.
            conditions: of the clip.
            features: of the Fourier filter at this step.
        """
        dtype = self.transformer.dtype
        output: Tensor = self.transformer(
            hidden_states.to(dtype),
            timestep,
            context.to(dtype),
            features.to(dtype),
            return_dict=False,
        )[0]
        return output

    def _num_latent_frames(self, inputs: SamplingInputs) -> int:
        every: int = self.vae.config.scale_factor_temporal
        return 1 + (inputs.num_frames - 1) // every

    def _empty_frame(self, inputs: SamplingInputs) -> Tensor:
        """Zero latents of one frame, on the device where all is computed."""
        cell = self.vae.config.scale_factor_spatial
        shape = (
            1,
            len(self.vae.config.latents_mean),
            1,
            inputs.height // cell,
            inputs.width // cell,
        )
        return torch.zeros(shape, device=self.vae.device)


class Sampling:
    """One clip on its way from noise to latents, in unshifted space: its end is x itself (Eq. 19).

    Args:
        pipeline: of the models.
        inputs, conditions: of the clip.
        state: where it stands.
        cache: that the transformer carries.

    Attributes:
        latents: z after the steps done, fp32.
        step: how many steps are done.
        num_steps: how many there are.
        cache: what was skipped.
    """

    def __init__(
        self,
        pipeline: FlashI2VPipeline,
        inputs: SamplingInputs,
        conditions: Conditions,
        state: SamplingState,
        cache: StepCache,
    ) -> None:
        self.latents = state.latents.to(pipeline.transformer.device)
        self.step = state.step
        self.num_steps = inputs.num_inference_steps
        self.cache = cache
        self._pipeline = pipeline
        self._inputs = inputs
        self._conditions = conditions
        make = unipc_schedule if inputs.sampler == "unipc" else euler_schedule
        self._scheduler = make(
            self.num_steps, inputs.shift, device=self.latents.device, start=inputs.start
        )
        # The final 0 belongs to the grid.
        self._sigmas = [float(sigma) for sigma in self._scheduler.sigmas]
        self._last: tuple[Tensor, Tensor, float] | None = None
        if state.step:
            restore_solver(self._scheduler, state.step, state.solver)
        if state.cache:
            cache.restore(state.cache, self.latents.device)

    @property
    def sigma(self) -> float:
        """How much of `latents` is noise: 0 after the last step."""
        return self._sigmas[self.step]

    @torch.no_grad()
    def steps(self) -> Iterator[StepDone]:
        """Do the steps that are left; after each, `latents` and `step` have moved on."""
        inputs, conditions = self._inputs, self._conditions
        cutoff, features = None, torch.zeros_like(self.latents)
        for timestep in self._scheduler.timesteps[self.step :]:
            started = time.perf_counter()
            wanted = cutoff_at(self.step, self.num_steps, *inputs.cutoff)
            if conditions.first is not None and wanted != cutoff:
                cutoff = wanted
                features = fourier_features(conditions.first, cutoff, self.latents.shape[2])
            velocity = self._pipeline.velocity(
                self.latents, timestep, conditions, features, inputs.guidance_scale
            )
            self._last = self.latents, velocity, self._sigmas[self.step]
            self.latents = self._scheduler.step(
                velocity, timestep, self.latents, return_dict=False
            )[0]
            self.step += 1
            if self.latents.is_cuda:
                # Its kernels are only queued by now.
                torch.cuda.synchronize(self.latents.device)
            seconds = time.perf_counter() - started
            yield StepDone(self.step, self.num_steps, seconds, self.cache.last_step_skipped)

    def state(self) -> SamplingState:
        """Where the clip stands now."""
        if self.step == self.num_steps:
            return SamplingState(self.latents, self.step)
        return SamplingState(
            self.latents, self.step, solver_state(self._scheduler), self.cache.state()
        )

    def estimate(self) -> Tensor:
        """What the last step took the clip to be, `x = z_t - sigma v`, like `latents`.

        Raises:
            ValueError: no step has been done here.
        """
        if self._last is None:
            raise ValueError("there is no estimate before the first step")
        latents, velocity, sigma = self._last
        return latents - sigma * velocity


def _is_weight(weight: Weight) -> bool:
    """Whether it is above 0 somewhere and below it nowhere."""
    values = weight if isinstance(weight, tuple) else (weight,)
    return all(value >= 0 for value in values) and any(values)


def _left(weights: Sequence[Weight]) -> Weight:
    """What these leave to 1, at each latent frame where one of them changes."""
    count = max(len(weight) if isinstance(weight, tuple) else 1 for weight in weights)
    rows = [weight if isinstance(weight, tuple) else (weight,) * count for weight in weights]
    left = tuple(map(weight_left, zip(*rows, strict=True)))
    return left if any(isinstance(weight, tuple) for weight in weights) else left[0]


def _factor(weight: Weight, velocity: Tensor) -> float | Tensor:
    """What a velocity is multiplied by: a number, or `(1, 1, latent_frames, 1, 1)`."""
    return velocity.new_tensor(weight)[:, None, None] if isinstance(weight, tuple) else weight


def decode_frames(vae: Any, latents: Tensor) -> NDArray[np.uint8]:
    """The pictures of one clip, `(frames, height, width, 3)`; of latents as `Sampling` leaves."""
    return uint8_frames(decode_latents(vae, latents))[0].cpu().numpy()


def decode_glimpse(vae: Any, latents: Tensor, num_pictures: int = 4) -> list[NDArray[np.uint8]]:
    """Single pictures spread evenly over a clip, far cheaper than all of its frames.

    Each latent frame is decoded as if it began a clip, which is near to how it will look.
    """
    last = latents.shape[2] - 1
    count = min(num_pictures, last + 1)
    wanted = [round(index * last / max(1, count - 1)) for index in range(count)]
    return [decode_frames(vae, latents[:, :, index : index + 1])[0] for index in wanted]
