"""FlashI2V sampling: image to video with latent shifting and Fourier guidance (paper, section
4)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from osp_cli.conditioning.base import Conditioner
from osp_cli.events import Event, FramesReady, StageFinished, StageStarted, StepDone
from osp_cli.media.image import to_tensor_values
from osp_cli.models.latents import decode_latents, encode_latents, uint8_frames
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.sampling.fourier import cutoff_at, fourier_features
from osp_cli.sampling.guidance import classifier_free_guidance, uses_guidance
from osp_cli.sampling.latent_shift import project_first_frame, shift_latents
from osp_cli.sampling.schedulers import euler_schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingInputs:
    """One clip to be made.

    Attributes:
        image: the first frame at the clip's size, or None for text to video.
        prompt: what the model reads.
        negative_prompt: the other side of classifier-free guidance.
        width, height: of the clip in pixels.
        num_frames: `4k + 1`.
        num_inference_steps, guidance_scale, shift: of the sampler.
        cutoff: percentile of the Fourier filter at the first and the last step.
        seed: of the noise, drawn on the CPU so that devices agree on it.
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


@dataclass(frozen=True, slots=True)
class Conditions:
    """What stays the same over all steps.

    Attributes:
        cond, uncond: `encoder_hidden_states`; `uncond` is None without guidance.
        first: s, normalised latents of the first frame; None for text to video.
        projected: phi(s) (Eq. 16); None for text to video, the gamma = 0 case of Eq. 15.
    """

    cond: Tensor
    uncond: Tensor | None
    first: Tensor | None
    projected: Tensor | None


class FlashI2VPipeline:
    """Order of operations: condition, sample, decode. Loads nothing, prints nothing.

    Args:
        transformer: v_theta of Eq. 22, with phi inside.
        vae: causal autoencoder.
        conditioner: of prompts and pictures.
    """

    def __init__(
        self, transformer: FlashI2VTransformer3DModel, vae: Any, conditioner: Conditioner
    ) -> None:
        self.transformer = transformer
        self.vae = vae
        self.conditioner = conditioner

    @torch.no_grad()
    def __call__(self, inputs: SamplingInputs) -> Iterator[Event]:
        """Yields stages and steps, then the frames."""
        yield StageStarted("condition")
        started = time.perf_counter()
        conditions = self.condition(inputs)
        yield StageFinished("condition", time.perf_counter() - started)

        latents = self.initial_noise(inputs)
        for step, after in self.sample(inputs, conditions, latents):
            latents = after
            yield step

        yield StageStarted("decode")
        started = time.perf_counter()
        frames = uint8_frames(decode_latents(self.vae, latents))[0].cpu().numpy()
        yield StageFinished("decode", time.perf_counter() - started)
        yield FramesReady(frames)

    def condition(self, inputs: SamplingInputs) -> Conditions:
        """Everything that depends on prompt and picture but not on the noise."""
        first = None
        images = None
        if inputs.image is not None:
            pixels = torch.from_numpy(to_tensor_values(inputs.image))[None, :, None]
            first = encode_latents(self.vae, pixels)
            images = [inputs.image]
        # Without a picture the image tokens are dropped, not left out: lengths never change.
        image_latents = first if first is not None else self._empty_frame(inputs)

        def encode(prompt: str) -> Tensor:
            return self.conditioner.encode([prompt], images=images, image_latents=image_latents)

        guided = uses_guidance(inputs.guidance_scale)
        return Conditions(
            cond=encode(inputs.prompt),
            uncond=encode(inputs.negative_prompt) if guided else None,
            first=first,
            projected=None if first is None else project_first_frame(self.transformer, first),
        )

    def initial_noise(self, inputs: SamplingInputs) -> Tensor:
        """epsilon, `(1, channels, latent_frames, h, w)` fp32."""
        generator = torch.Generator().manual_seed(inputs.seed)
        frame = self._empty_frame(inputs)
        temporal = self.vae.config.scale_factor_temporal
        shape = list(frame.shape)
        shape[2] = 1 + (inputs.num_frames - 1) // temporal
        return torch.randn(shape, generator=generator).to(frame.device)

    def sample(
        self, inputs: SamplingInputs, conditions: Conditions, latents: Tensor
    ) -> Iterator[tuple[StepDone, Tensor]]:
        """The Euler loop in unshifted space; its end is x itself (Eq. 19)."""
        scheduler = euler_schedule(inputs.num_inference_steps, inputs.shift, device=latents.device)
        total = inputs.num_inference_steps
        cutoff, features = None, torch.zeros_like(latents)
        for index, timestep in enumerate(scheduler.timesteps):
            started = time.perf_counter()
            wanted = cutoff_at(index, total, *inputs.cutoff)
            if conditions.first is not None and wanted != cutoff:
                cutoff = wanted
                features = fourier_features(conditions.first, cutoff, latents.shape[2])
            velocity = self.velocity(latents, timestep, conditions, features, inputs.guidance_scale)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            yield StepDone(index + 1, total, time.perf_counter() - started), latents

    def velocity(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditions: Conditions,
        features: Tensor,
        guidance_scale: float,
    ) -> Tensor:
        """Guided v, fp32, of latents that are shifted only here (Eq. 18)."""
        shifted = latents
        if conditions.projected is not None:
            shifted = shift_latents(latents, conditions.projected)
        dtype = self.transformer.dtype

        def run(name: str, context: Tensor) -> Tensor:
            with self.transformer.cache_context(name):
                output = self.transformer(
                    shifted.to(dtype),
                    timestep.expand(len(latents)),
                    context.to(dtype),
                    features.to(dtype),
                    return_dict=False,
                )
            return output[0].float()

        cond = run("cond", conditions.cond)
        if conditions.uncond is None:
            return cond
        return classifier_free_guidance(cond, run("uncond", conditions.uncond), guidance_scale)

    def _empty_frame(self, inputs: SamplingInputs) -> Tensor:
        """Zero latents of one frame, on the transformer's device."""
        cell = self.vae.config.scale_factor_spatial
        shape = (
            1,
            self.transformer.config.in_channels,
            1,
            inputs.height // cell,
            inputs.width // cell,
        )
        return torch.zeros(shape, device=self.transformer.device)
