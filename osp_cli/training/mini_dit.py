"""Trains the embedded model's transformer: Eq. 22 on the rendered pool, section 7.1 beside it.

A step looks at the few latent frames that the pool keeps of a clip, at their true places in time:
every frame of a clip is nearly determined by the picture, the prompt and its place, so the same
compute sees several times as many clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from osp_cli.conditioning.image_tokens import blur_latents
from osp_cli.conditioning.vlm import QwenVLConditioner
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.procedural.motions import Motion
from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.training.losses import (
    add_noise,
    continuation_loss,
    flash_loss,
    logit_normal_sigmas,
)
from osp_cli.training.mini_data import Shard, load_shard
from osp_cli.training.mini_lookups import Sample
from osp_cli.training.mini_motion import told_motion
from osp_cli.training.mini_start import write_start
from osp_cli.training.trainer import step_generator

GEOMETRY = {
    "num_attention_heads": 34,
    "attention_head_dim": 16,
    "in_channels": 64,
    "out_channels": 64,
    "text_dim": 544,
    "ffn_dim": 960,
    "num_layers": 3,
    "projection_channels": 128,
    "position_channels": 24,
    "rope_max_seq_len": 256,
}

# The error of the predicted clip counts, not the velocity's: the start divides by t, and a sample
# without image tokens would otherwise weigh a hundred times as much at t = 0.1 as one with them.
SIGMA_POWER = 2.0


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a step may be.

    Attributes:
        batch_size: samples in a step.
        caption_drop: share of samples with an empty prompt (paper: 0.1). None here: the clip
            follows from picture and prompt, so there is nothing for guidance to sharpen, and no
            words should mean the gentle life they mean in the pool, not a mean over all prompts.
        image_token_drop: share without image tokens, so that they do not become the leak.
        image_token_blur: share whose image tokens lack detail, for the same reason.
        cutoff: range of the cutoff percentile (paper: U[0.05, 0.95]).
        continuation: share of steps that continue a clean context: neither latent shift nor Fourier
            features (section 7.1), the image tokens being the context's.
    """

    batch_size: int = 12
    caption_drop: float = 0.0
    image_token_drop: float = 0.05
    image_token_blur: float = 0.3
    cutoff: tuple[float, float] = (0.05, 0.95)
    continuation: float = 0.0


def new_transformer(
    seed: int, conditioner: QwenVLConditioner, geometry: dict[str, int] | None = None
) -> FlashI2VTransformer3DModel:
    """A model that, with its adapters, starts as a still clip of its picture (`mini_start`)."""
    torch.manual_seed(seed)
    model = FlashI2VTransformer3DModel(**(geometry or GEOMETRY))
    write_start(model, conditioner)
    return model


class Pool:
    """All shards in memory, with the frozen language model's states beside them."""

    def __init__(self, conditioner: QwenVLConditioner) -> None:
        self.conditioner = conditioner
        self.shards: list[Shard] = []
        self.states: list[dict[str, tuple[Tensor, Tensor]]] = []
        self._seen: set[Path] = set()

    def load(self, folder: Path, limit: int | None = None, chosen: int | None = None) -> int:
        """Takes in shards not yet loaded, in order, or the one with a number; returns how many
        clips there are."""
        paths = sorted(folder.glob("shard-*.safetensors"))[:limit]
        if chosen is not None:
            paths = [folder / f"shard-{chosen:05d}.safetensors"]
        for path in paths:
            if path not in self._seen:
                self._seen.add(path)
                shard = load_shard(path)
                self.shards.append(shard)
                self.states.append(self._encode(shard))
        return sum(len(shard.captions) for shard in self.shards)

    def _encode(self, shard: Shard) -> dict[str, tuple[Tensor, Tensor]]:
        """Two variants: prompt and picture, picture alone."""
        prompts = [str(caption["prompt"]) for caption in shard.captions]
        pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in shard.pictures]
        empty = [""] * len(prompts)
        states = {
            "both": self.conditioner.hidden_states(prompts, pictures),
            "picture": self.conditioner.hidden_states(empty, pictures),
        }
        return {k: (s.to("cpu", torch.bfloat16), mask.cpu()) for k, (s, mask) in states.items()}


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one bucket and one choice of latent frames."""

    latents: Tensor
    indices: Tensor
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
        channel_weights: Tensor | None = None,
        surround: Callable[[Tensor], Tensor] = lambda first: first,
        rank: int = 0,
    ) -> None:
        self.model = model
        self.conditioner = conditioner
        self.pool = pool
        self.mixture = mixture
        self.seed = seed
        self.channel_weights = channel_weights
        self.surround = surround
        self.device = next(model.parameters()).device
        # Processes that share a step draw different samples.
        self.purpose = f"dit/{rank}" if rank else "dit"

    def __call__(self, step: int) -> Tensor:
        """Loss at a 0-based step; all randomness follows from the seed and the step."""
        generator = step_generator(self.seed, self.purpose, step)
        draw = torch.rand(1, generator=generator).item()
        if draw < self.mixture.continuation:
            return self._continuation(generator)
        return self._image_to_video(generator)

    def _image_to_video(self, generator: torch.Generator) -> Tensor:
        batch = self._draw(generator)
        indices = batch.indices
        latents = batch.latents.float()
        count = len(latents)
        low, high = self.mixture.cutoff
        cutoff = low + (high - low) * torch.rand(count, generator=generator)
        cutoff = cutoff.to(self.device)
        features = fourier_features(batch.first, cutoff, len(indices))
        chance = torch.rand(count, generator=generator).to(self.device)
        keep = chance >= self.mixture.image_token_drop
        sharp = chance >= self.mixture.image_token_drop + self.mixture.image_token_blur
        shown = torch.where(sharp.reshape(-1, 1, 1, 1, 1), batch.first, blur_latents(batch.first))
        shown = self.surround(shown)
        context = self.conditioner.project(batch.states, batch.mask, shown, keep)
        sigmas = logit_normal_sigmas(generator, count, 0.4, 1.2).to(self.device)

        def velocity(noisy: Tensor) -> Tensor:
            return self._velocity(noisy, sigmas * 1000, context, features, indices)

        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        projected = project_first_frame(self.model, batch.first)
        return flash_loss(
            velocity, latents, noise, sigmas, projected, SIGMA_POWER, self.channel_weights
        )

    def _continuation(self, generator: torch.Generator) -> Tensor:
        batch = self._draw(generator, continues)
        latents, indices = continued(batch.latents, batch.indices)
        sigmas = logit_normal_sigmas(generator, len(latents), 0.4, 1.2).to(self.device)
        shown = self.surround(latents[:, :, :1])
        context = self.conditioner.project(batch.states, batch.mask, shown)
        tokens = latents.shape[3] * latents.shape[4] // 4
        timestep = (sigmas * 1000)[:, None].repeat(1, latents.shape[2] * tokens)
        timestep[:, :tokens] = 0.0

        def velocity(noisy: Tensor) -> Tensor:
            return self._velocity(noisy, timestep, context, torch.zeros_like(noisy), indices)

        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        return continuation_loss(
            velocity, latents, noise, sigmas, 1, SIGMA_POWER, self.channel_weights
        )

    def _velocity(
        self, noisy: Tensor, timestep: Tensor, context: Tensor, features: Tensor, indices: Tensor
    ) -> Tensor:
        return self.model(
            noisy, timestep, context, features, frame_indices=indices, return_dict=False
        )[0]

    def _draw(
        self,
        generator: torch.Generator,
        accept: Callable[[dict[str, str | None]], bool] = lambda _caption: True,
    ) -> Batch:
        """Random clips of one bucket and one choice of frames, a share with an empty prompt."""
        anchor = self.pool.shards[_randint(generator, len(self.pool.shards))]
        rows = [
            (number, index)
            for number, shard in enumerate(self.pool.shards)
            if shard.latents.shape == anchor.latents.shape
            and torch.equal(shard.indices, anchor.indices)
            for index, caption in enumerate(shard.captions)
            if accept(caption)
        ]
        size = self.mixture.batch_size
        chosen = [rows[_randint(generator, len(rows))] for _ in range(size)]
        dropped = torch.rand(size, generator=generator) < self.mixture.caption_drop
        states, masks = [], []
        for (number, index), drop in zip(chosen, dropped.tolist(), strict=True):
            state, mask = self.pool.states[number]["picture" if drop else "both"]
            states.append(state[index])
            masks.append(mask[index])
        return Batch(
            torch.stack([self.pool.shards[n].latents[i] for n, i in chosen]).to(self.device),
            anchor.indices,
            torch.stack([self.pool.shards[n].first[i] for n, i in chosen]).float().to(self.device),
            torch.stack(states).float().to(self.device),
            torch.stack(masks).to(self.device),
        )


def caption_motion(caption: dict[str, str | None]) -> Motion:
    """The motion that a caption tells of."""
    return Motion(caption["camera"], caption["scene"], str(caption["speed"]))


def continues(caption: dict[str, str | None]) -> bool:
    """Whether a clip's later frames follow from any one of them: its camera moves steadily."""
    return caption["camera"] is not None and caption["scene"] is None


def continued(latents: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """A kept clip from its second frame on, which becomes the context, and the frames' distances
    from it."""
    return latents[:, :, 1:].float(), indices[1:] - indices[1]


def _randint(generator: torch.Generator, high: int) -> int:
    return int(torch.randint(0, high, (1,), generator=generator))


def pool_samples(
    objective: DitObjective,
    clips: int,
    accept: Callable[[dict[str, str | None]], bool],
    cutoff: float = 0.1,
) -> Iterator[Sample]:
    """Clips of the pool as the fits want them, a few at a time, the same at every call.

    Args:
        objective: with model, conditioner and pool.
        clips: at most so many.
        accept: whether a caption's clip is wanted.
        cutoff: of the Fourier features.
    """
    pool = objective.pool
    generator = step_generator(objective.seed, "samples", 0)
    taken = 0
    for number in torch.randperm(len(pool.shards), generator=generator).tolist():
        shard = pool.shards[number]
        rows = [index for index, caption in enumerate(shard.captions) if accept(caption)]
        for start in range(0, len(rows), 6):
            here = rows[start : start + 6][: clips - taken]
            if not here:
                return
            taken += len(here)
            cutoffs = torch.full((len(here),), cutoff)
            yield shard_sample(objective, number, here, cutoffs, generator)


def shard_sample(
    objective: DitObjective,
    number: int,
    rows: list[int],
    cutoffs: Tensor | None,
    generator: torch.Generator,
) -> Sample:
    """Clips of one shard at random noise levels.

    Args:
        objective: with model, conditioner and pool.
        number: of the shard.
        rows: its clips.
        cutoffs: of the Fourier features, `(clips,)`; None continues each clip from its second kept
            frame instead.
        generator: of noise and its levels.
    """
    shard = objective.pool.shards[number]
    device = objective.device
    state, mask = (x[rows].to(device) for x in objective.pool.states[number]["both"])
    latents, indices = shard.latents[rows].float().to(device), shard.indices
    told: Callable[[], AbstractContextManager[None]] = nullcontext
    if cutoffs is None:
        latents, indices = continued(latents, indices)
        first, features = latents[:, :, :1], torch.zeros_like(latents)
    else:
        first = shard.first[rows].float().to(device)
        features = fourier_features(first, cutoffs.to(device), len(indices))
        motions = [caption_motion(shard.captions[row]) for row in rows]
        told = partial(told_motion, objective.model, motions, latents, indices)
    shown = objective.surround(first)
    context = objective.conditioner.project(state.float(), mask, shown)
    sigmas = 0.05 + 0.95 * torch.rand(len(rows), generator=generator).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)

    def velocity(noisy: Tensor) -> Tensor:
        with told():
            return objective._velocity(noisy, sigmas * 1000, context, features, indices)

    return Sample(latents, add_noise(latents, noise, sigmas.reshape(-1, 1, 1, 1, 1)), velocity)


@contextmanager
def training_shortcuts(
    model: FlashI2VTransformer3DModel, compile_blocks: bool = False
) -> Iterator[None]:
    """The same numbers for less work, while the parts that `protect` froze stay as they are.

    Self-attentions that add nothing are left out; lookups get no gradient through their queries,
    which nothing that trains can move. Compiled blocks are faster still but need a C++ compiler.
    """
    kept = {block: (block.attn1, block.attn2.processor, block.forward) for block in model.blocks}
    for block in model.blocks:
        out = block.attn1.to_out[0]
        if not (out.weight.requires_grad or out.weight.any() or out.bias.any()):
            block.attn1 = _AddsNothing()
        block.attn2.processor = _FrozenLookups()
        if compile_blocks:
            block.forward = torch.compile(block.forward, dynamic=True)
    try:
        yield
    finally:
        for block, (attention, processor, forward) in kept.items():
            block.attn1 = attention
            block.attn2.processor = processor
            block.forward = forward


class _AddsNothing(torch.nn.Module):
    def forward(self, hidden_states: Tensor, *_others: object) -> Tensor:
        return torch.zeros_like(hidden_states)


class _FrozenLookups:
    """Wan's cross-attention, the weights of which are constants."""

    def __call__(
        self,
        attn: torch.nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        *_others: object,
    ) -> Tensor:
        with torch.no_grad():
            query = attn.norm_q(attn.to_q(hidden_states))
            key = attn.norm_k(attn.to_k(encoder_hidden_states))
            value = attn.to_v(encoder_hidden_states)
            query, key, value = (
                x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value)
            )
            found = torch.nn.functional.scaled_dot_product_attention(query, key, value)
            found = found.transpose(1, 2).flatten(2)
        return attn.to_out[0](found)


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Muon's share: the matrices inside transformer blocks."""
    return parameter.ndim == 2 and ".blocks." in name and "scale_shift_table" not in name
