"""Trains the embedded model's transformer: Eq. 22 on the rendered pool, section 7.1 beside it.

A step looks at a few latent frames of a clip, at their true places in time, rather than at all
thirteen: every frame of a clip is nearly determined by the picture, the prompt and its place, so
the same compute sees two to three times as many clips. The last part of the run uses whole clips,
which is what sampling does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from osp_cli.conditioning.image_tokens import blur_latents
from osp_cli.conditioning.vlm import QwenVLConditioner
from osp_cli.models.latent_projector import LatentProjector
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.training.losses import continuation_loss, flash_loss, logit_normal_sigmas
from osp_cli.training.mini_data import Shard, load_shard
from osp_cli.training.trainer import step_generator

GEOMETRY = {
    "num_attention_heads": 8,
    "attention_head_dim": 32,
    "in_channels": 48,
    "out_channels": 48,
    "text_dim": 256,
    "ffn_dim": 1024,
    "num_layers": 6,
    "projection_channels": 128,
    "position_channels": 24,
    "rope_max_seq_len": 256,
}
# Where image tokens are dropped, N latent frames share phi(s) = -k s but not their noise: s is
# then known at t = 1 up to a variance of 1 / (1 + N k^2). With k = 2 and 13 frames that is 17 dB
# below the picture, and no fewer than 5 frames are ever shown. A larger k would leave the cutoff
# nothing to do.
PROJECTION_GAIN = 2.0


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a step may be.

    Attributes:
        batch_size: samples in a step of four frames; longer ones take fewer.
        caption_drop: share of samples with an empty prompt (paper: 0.1).
        image_token_drop: share without image tokens, so that they do not become the leak.
        image_token_blur: share whose image tokens lack detail, for the same reason.
        cutoff: range of the cutoff percentile (paper: U[0.05, 0.95]).
        continuation: share of steps that continue a clean context, without any image condition.
        text_to_video: share of steps with neither context nor image.
        whole_from: share of the run after which every step sees whole clips.
        plain_until: share of the run in which two of three steps see unstyled clips only.
    """

    batch_size: int = 12
    caption_drop: float = 0.1
    image_token_drop: float = 0.25
    image_token_blur: float = 0.2
    cutoff: tuple[float, float] = (0.05, 0.95)
    continuation: float = 0.12
    text_to_video: float = 0.02
    whole_from: float = 0.85
    plain_until: float = 0.35


def new_transformer(
    seed: int, geometry: dict[str, int] | None = None
) -> FlashI2VTransformer3DModel:
    """A model that starts near the solution's trivial part, so that training begins with the
    rest."""
    torch.manual_seed(seed)
    model = FlashI2VTransformer3DModel(**(geometry or GEOMETRY))
    start_as_identity(model.learnable_proj, PROJECTION_GAIN)
    _start_as_pass_through(model)
    return model


def start_as_identity(projector: LatentProjector, gain: float) -> None:
    """phi(s) = -gain s exactly, since silu(x) - silu(-x) = x.

    The paper starts from phi = 0 to keep a pretrained parent's distribution. Here there is no
    parent, and a shift that already carries the picture saves the steps in which it would be found.
    """
    first, last = projector.proj[0], projector.proj[2]
    channels = first.in_channels
    if first.out_channels < 2 * channels:
        raise ValueError(f"the identity needs {2 * channels} projection channels")
    centre = tuple(size // 2 for size in first.kernel_size)
    with torch.no_grad():
        for layer in (first, last):
            layer.weight.mul_(0.1)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(last.weight)
        for channel in range(channels):
            for row, sign in ((channel, 1.0), (channels + channel, -1.0)):
                first.weight[row] = 0.0
                first.weight[(row, channel, *centre)] = sign
                last.weight[(channel, row, *centre)] = -gain * sign


def _start_as_pass_through(model: FlashI2VTransformer3DModel) -> None:
    """Orthonormal patch embedding, its transpose at the exit: noise passes through from the first
    step."""
    embedding, exit_ = model.patch_embedding, model.proj_out
    with torch.no_grad():
        nn.init.orthogonal_(embedding.weight.flatten(1))
        square = torch.empty(embedding.weight.shape[0], embedding.weight[0].numel())
        nn.init.orthogonal_(square)
        embedding.weight.copy_(square.reshape(embedding.weight.shape))
        # Output order is (patch, channel), the convolution's is (channel, patch).
        exit_.weight.copy_(
            0.4 * embedding.weight.permute(2, 3, 4, 1, 0).reshape(exit_.weight.shape)
        )
        nn.init.zeros_(exit_.bias)


class Pool:
    """All shards in memory, with the frozen language model's states beside them."""

    def __init__(self, conditioner: QwenVLConditioner) -> None:
        self.conditioner = conditioner
        self.shards: list[Shard] = []
        self.states: list[dict[str, tuple[Tensor, Tensor]]] = []
        self._seen: set[Path] = set()

    def load(self, folder: Path, limit: int | None = None) -> int:
        """Takes in shards not yet loaded, in order; returns how many clips there are."""
        for path in sorted(folder.glob("shard-*.safetensors"))[:limit]:
            if path not in self._seen:
                self._seen.add(path)
                shard = load_shard(path)
                self.shards.append(shard)
                self.states.append(self._encode(shard))
        return sum(len(shard.captions) for shard in self.shards)

    def _encode(self, shard: Shard) -> dict[str, tuple[Tensor, Tensor]]:
        """Three variants: prompt and picture, picture alone, prompt alone."""
        prompts = [str(caption["prompt"]) for caption in shard.captions]
        pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in shard.pictures]
        empty = [""] * len(prompts)
        states = {
            "both": self.conditioner.hidden_states(prompts, pictures),
            "picture": self.conditioner.hidden_states(empty, pictures),
            "prompt": self.conditioner.hidden_states(prompts),
            "nothing": self.conditioner.hidden_states(empty),
        }
        return {k: (state.to(torch.bfloat16), mask) for k, (state, mask) in states.items()}


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one bucket."""

    latents: Tensor
    first: Tensor
    states: Tensor
    mask: Tensor


class DitObjective:
    """The loss of a step, as `Trainer.run` wants it."""

    def __init__(
        self,
        model: FlashI2VTransformer3DModel,
        conditioner: QwenVLConditioner,
        pool: Pool,
        mixture: Mixture,
        seed: int,
        steps: int,
    ) -> None:
        self.model = model
        self.conditioner = conditioner
        self.pool = pool
        self.mixture = mixture
        self.seed = seed
        self.steps = steps

    def __call__(self, step: int) -> Tensor:
        """Loss at a 0-based step; all randomness follows from the seed and the step."""
        generator = step_generator(self.seed, "dit", step)
        draw = torch.rand(1, generator=generator).item()
        whole = step >= self.mixture.whole_from * self.steps
        plain = step < self.mixture.plain_until * self.steps and step % 3 != 2
        if draw < self.mixture.continuation:
            return self._continuation(generator, whole, plain)
        if draw < self.mixture.continuation + self.mixture.text_to_video:
            return self._text_to_video(generator, plain)
        return self._image_to_video(generator, whole, plain)

    def _image_to_video(self, generator: torch.Generator, whole: bool, plain: bool) -> Tensor:
        frames = 13 if whole else (5, 6, 6, 8)[_randint(generator, 4)]
        batch = self._draw(generator, frames, ("both", "picture"), plain)
        indices = _choose_frames(generator, batch.latents.shape[2], frames)
        latents = batch.latents[:, :, indices].float()
        count = len(latents)
        low, high = self.mixture.cutoff
        cutoff = low + (high - low) * torch.rand(count, generator=generator)
        features = fourier_features(batch.first, cutoff, len(indices))
        chance = torch.rand(count, generator=generator)
        keep = chance >= self.mixture.image_token_drop
        sharp = chance >= self.mixture.image_token_drop + self.mixture.image_token_blur
        shown = torch.where(sharp.reshape(-1, 1, 1, 1, 1), batch.first, blur_latents(batch.first))
        context = self.conditioner.project(batch.states, batch.mask, shown, keep)
        sigmas = logit_normal_sigmas(generator, count, 0.4, 1.2)

        def velocity(noisy: Tensor) -> Tensor:
            return self._velocity(noisy, sigmas * 1000, context, features, indices)

        noise = torch.randn(latents.shape, generator=generator)
        projected = project_first_frame(self.model, batch.first)
        return flash_loss(velocity, latents, noise, sigmas, projected)

    def _continuation(self, generator: torch.Generator, whole: bool, plain: bool) -> Tensor:
        context_frames = 1 + _randint(generator, 3)
        total = context_frames + (9 if whole else 3)
        batch = self._draw(generator, total, ("prompt", "nothing"), plain)
        start = _randint(generator, batch.latents.shape[2] - total + 1)
        latents = batch.latents[:, :, start : start + total].float()
        sigmas = logit_normal_sigmas(generator, len(latents), 0.4, 1.2)
        context = self._without_image(batch)
        tokens = latents.shape[3] * latents.shape[4] // 4
        timestep = (sigmas * 1000)[:, None].repeat(1, total * tokens)
        timestep[:, : context_frames * tokens] = 0.0
        indices = torch.arange(total)

        def velocity(noisy: Tensor) -> Tensor:
            return self._velocity(noisy, timestep, context, torch.zeros_like(noisy), indices)

        noise = torch.randn(latents.shape, generator=generator)
        return continuation_loss(velocity, latents, noise, sigmas, context_frames)

    def _text_to_video(self, generator: torch.Generator, plain: bool) -> Tensor:
        batch = self._draw(generator, 4, ("prompt", "nothing"), plain)
        indices = torch.arange(4)
        latents = batch.latents[:, :, indices].float()
        sigmas = logit_normal_sigmas(generator, len(latents), 0.4, 1.2)
        context = self._without_image(batch)

        def velocity(noisy: Tensor) -> Tensor:
            zeros = torch.zeros_like(noisy)
            return self._velocity(noisy, sigmas * 1000, context, zeros, indices)

        noise = torch.randn(latents.shape, generator=generator)
        return flash_loss(velocity, latents, noise, sigmas, None)

    def _without_image(self, batch: Batch) -> Tensor:
        dropped = torch.zeros(len(batch.first), dtype=torch.bool)
        return self.conditioner.project(batch.states, batch.mask, batch.first, dropped)

    def _velocity(
        self, noisy: Tensor, timestep: Tensor, context: Tensor, features: Tensor, indices: Tensor
    ) -> Tensor:
        return self.model(
            noisy, timestep, context, features, frame_indices=indices, return_dict=False
        )[0]

    def _draw(
        self, generator: torch.Generator, frames: int, variants: tuple[str, str], plain: bool
    ) -> Batch:
        """Random clips of one bucket, a share of them with an empty prompt."""
        anchor = self.pool.shards[_randint(generator, len(self.pool.shards))]
        shape = anchor.latents.shape[3:]
        rows = [
            (number, index)
            for number, shard in enumerate(self.pool.shards)
            if shard.latents.shape[3:] == shape
            for index, caption in enumerate(shard.captions)
            if not (plain and caption["style"])
        ]
        size = max(2, self.mixture.batch_size * 4 // max(4, frames))
        chosen = [rows[_randint(generator, len(rows))] for _ in range(size)]
        dropped = torch.rand(size, generator=generator) < self.mixture.caption_drop
        states, masks = [], []
        for (number, index), drop in zip(chosen, dropped.tolist(), strict=True):
            state, mask = self.pool.states[number][variants[1] if drop else variants[0]]
            states.append(state[index])
            masks.append(mask[index])
        return Batch(
            torch.stack([self.pool.shards[n].latents[i] for n, i in chosen]),
            torch.stack([self.pool.shards[n].first[i] for n, i in chosen]).float(),
            torch.stack(states).float(),
            torch.stack(masks),
        )


def _randint(generator: torch.Generator, high: int) -> int:
    return int(torch.randint(0, high, (1,), generator=generator))


def _choose_frames(generator: torch.Generator, available: int, count: int) -> Tensor:
    """Frame 0 mostly, then neighbours half of the time, scattered frames otherwise, in order."""
    if count >= available:
        return torch.arange(available)
    if torch.rand(1, generator=generator).item() < 0.5:
        start = _randint(generator, available - count + 1)
        run = torch.arange(start, start + count)
        if torch.rand(1, generator=generator).item() < 0.6:
            run[0] = 0
        return run
    later = torch.randperm(available - 1, generator=generator)[: count - 1] + 1
    return torch.cat([torch.zeros(1, dtype=torch.long), later.sort().values])


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Muon's share: the matrices inside transformer blocks."""
    return parameter.ndim == 2 and ".blocks." in name and "scale_shift_table" not in name
