"""The loss of a step: which samples it has, what is drawn for each, and Eq. 22.

Everything that is random of a sample follows from the seed and its number in the run: how it is
shared out, or taken up again, changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.training.conditions import ConditionSource
from osp_cli.training.losses import flash_loss
from osp_cli.training.order import share
from osp_cli.training.samples import EncodedClip, SampleNumber
from osp_cli.training.trainer import step_generator

# In `EncodedClip.conditions`, of models with a mask: `(variants, 4 + channels, frames, h, w)`.
KNOWN = "known"
_IMAGE = "encoder_hidden_states_image"
# Of clips of which nothing is known, how often latents are left out too; of pictures, CLIP's view.
_EMPTY_LATENTS_DROP = 0.9
_CLIP_DROP = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSettings:
    """What a sample may be.

    Attributes:
        mode: `flash`, `t2v` or `inpaint`.
        seed: of all that is drawn.
        caption_drop: share of samples with an empty prompt.
        cutoff: range of the Fourier cutoff percentile.
        timesteps: `uniform`, `logit-normal`, or `logit-normal-shift`, where the shift follows from
            the size.
        sigma_shift: `s l / (1 + (s - 1) l)` of what was drawn.
        sigma_power: see `flash_loss`.
        latent_frames: of a clip that one sample looks at, the first among them; 0 for all.
    """

    mode: str = "flash"
    seed: int = 42
    caption_drop: float = 0.1
    cutoff: tuple[float, float] = (0.05, 0.95)
    timesteps: str = "uniform"
    sigma_shift: float = 1.0
    sigma_power: float = 0.0
    latent_frames: int = 0


@dataclass(frozen=True, slots=True)
class Draws:
    """What is drawn for a batch.

    Attributes:
        drop: whose prompt is empty, `(batch,)` bool.
        cutoff: `(batch,)`.
        noise: eps, `(batch, channels, frames, h, w)`.
        sigmas: `(batch,)`.
        frames: latent frames that are looked at, rising from 0, `(frames,)`; None for all.
        masks: numbers in [0, 1), `(batch, 3)`: which variant of what is known, and what is dropped.
    """

    drop: Tensor
    cutoff: Tensor
    noise: Tensor
    sigmas: Tensor
    frames: Tensor | None
    masks: Tensor


class ClipObjective:
    """The losses of a step, pass by pass, as `Trainer.run` wants them.

    Args:
        model: the transformer, with what of it trains.
        conditions: of the model.
        clip_of: an encoded clip by the number of its window.
        batch_of: samples of a whole step, by its 0-based number.
        settings: of the samples.
        device: where to compute.
        rank, world: of this process among those with samples of their own.
        batch_size: samples that are computed at once, at most.
    """

    def __init__(
        self,
        model: Any,
        conditions: ConditionSource,
        clip_of: Callable[[int], EncodedClip],
        batch_of: Callable[[int], Sequence[SampleNumber]],
        settings: ObjectiveSettings,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        batch_size: int = 1,
    ) -> None:
        self.model = model
        self.conditions = conditions
        self.clip_of = clip_of
        self.batch_of = batch_of
        self.settings = settings
        self.device = torch.device(device)
        self.rank, self.world, self.batch_size = rank, world, batch_size

    def __call__(self, step: int) -> Iterator[Tensor]:
        """Losses whose sum over passes and mean over processes is the mean over all samples."""
        batch = self.batch_of(step)
        for part in share(batch, self.rank, self.world, self.batch_size):
            yield self.loss(part.samples, batch[0].number) * part.weight

    def loss(self, samples: Sequence[SampleNumber], moments: int = 0) -> Tensor:
        """Mean loss of samples of one shape.

        Args:
            samples: of one pass.
            moments: number from which the latent frames follow that are looked at.
        """
        clips = [self.clip_of(sample.index) for sample in samples]
        numbers = [sample.number for sample in samples]
        draws = draw(self.settings, numbers, (len(clips), *clips[0].latents.shape), moments)
        return clip_loss(self.model, self.conditions, clips, draws, self.settings, self.device)


def clip_loss(
    model: Any,
    conditions: ConditionSource,
    clips: Sequence[EncodedClip],
    draws: Draws,
    settings: ObjectiveSettings,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Eq. 22 of some clips of one shape, with everything drawn; nothing here is random.

    `t2v` is the case gamma = 0 of Eq. 15: neither shift nor picture, Fourier features zero.
    """
    device = torch.device(device)
    latents = torch.stack([clip.latents for clip in clips]).to(device, torch.float32)
    noise = draws.noise.to(device)
    if draws.frames is not None:
        latents = latents[:, :, draws.frames.to(device)]
    first = None
    if settings.mode != "t2v":
        first = torch.stack([clip.first for clip in clips]).to(device, torch.float32)
    rows = [
        clip.empty if dropped else clip.conditions
        for clip, dropped in zip(clips, draws.drop.tolist(), strict=True)
    ]
    arguments = conditions.join(rows, first, device)
    projected = None
    if settings.mode == "inpaint":
        known, seen = _known(clips, draws, device)
        arguments[_IMAGE] = arguments[_IMAGE] * seen.to(arguments[_IMAGE])[:, None, None]
    elif hasattr(model, "learnable_proj"):
        features = torch.zeros_like(latents)
        if first is not None:
            projected = project_first_frame(model, first)
            features = fourier_features(first, draws.cutoff.to(device), latents.shape[2])
        arguments["fourier_features"] = features
        arguments["frame_indices"] = draws.frames
    sigmas = draws.sigmas.to(device)
    dtype = model.dtype
    arguments = {key: _as(dtype, value) for key, value in arguments.items()}

    def velocity(noisy: Tensor) -> Tensor:
        shown = torch.cat([noisy, known], dim=1) if settings.mode == "inpaint" else noisy
        output: Tensor = model(shown.to(dtype), sigmas * 1000, **arguments, return_dict=False)[0]
        return output

    return flash_loss(velocity, latents, noise, sigmas, projected, settings.sigma_power)


def _as(dtype: torch.dtype, value: Tensor | None) -> Tensor | None:
    floating = value is not None and value.is_floating_point()
    return value.to(dtype) if floating and value is not None else value


def _known(
    clips: Sequence[EncodedClip], draws: Draws, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What each sample is told of its clip, and who sees the picture as CLIP does."""
    told = []
    for clip, (which, empty, _) in zip(clips, draws.masks.tolist(), strict=True):
        variants = clip.conditions[KNOWN]
        known = variants[int(which * len(variants))].float()
        channels = known.shape[0] - clip.latents.shape[0]
        if empty < _EMPTY_LATENTS_DROP and not known[:channels].any():
            known = torch.zeros_like(known)
        told.append(known)
    known = torch.stack(told).to(device)
    return known, (draws.masks[:, 2] >= _CLIP_DROP).to(device)


def draw(
    settings: ObjectiveSettings, numbers: Sequence[int], shape: Sequence[int], moments: int = 0
) -> Draws:
    """Everything random of some samples, each by its own number.

    Args:
        settings: of the samples.
        numbers: of them in the run.
        shape: of their latents, `(batch, channels, frames, h, w)`.
        moments: from which it follows which latent frames are looked at: one number for a whole
            step, however it is shared out.
    """
    frames = _frames(settings, moments, shape[2])
    count = shape[2] if frames is None else len(frames)
    low, high = settings.cutoff
    drops, cutoffs, noises, levels, masks = [], [], [], [], []
    for number in numbers:
        generator = step_generator(settings.seed, "sample", number)
        drops.append(torch.rand(1, generator=generator) < settings.caption_drop)
        cutoffs.append(low + (high - low) * torch.rand(1, generator=generator))
        noises.append(torch.randn(shape[1], count, *shape[3:], generator=generator))
        levels.append(_level(settings, generator))
        masks.append(torch.rand(3, generator=generator))
    shift = settings.sigma_shift
    if settings.timesteps == "logit-normal-shift":
        shift *= dynamic_shift(shape[3], shape[4])
    return Draws(
        torch.cat(drops),
        torch.cat(cutoffs),
        torch.stack(noises),
        shift_sigmas(torch.cat(levels), shift),
        frames,
        torch.stack(masks),
    )


def _frames(settings: ObjectiveSettings, number: int, count: int) -> Tensor | None:
    """The first latent frame, and some others."""
    if not 0 < settings.latent_frames < count:
        return None
    generator = step_generator(settings.seed, "frames", number)
    others = torch.randperm(count - 1, generator=generator)[: settings.latent_frames - 1] + 1
    return torch.cat([torch.zeros(1, dtype=torch.int64), others.sort().values])


def _level(settings: ObjectiveSettings, generator: torch.Generator) -> Tensor:
    """A noise level before its shift, `(1,)`."""
    if settings.timesteps == "uniform":
        return torch.rand(1, generator=generator)
    return torch.sigmoid(torch.randn(1, generator=generator))


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """`s l / (1 + (s - 1) l)`."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def dynamic_shift(height: int, width: int) -> float:
    """The released training's shift for latents of a size: `exp(mu)`, where mu grows with tokens.

    Args:
        height, width: of the latents, whose frames are not counted.
    """
    tokens = height * width // 4
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def merged(clip: EncodedClip, more: Mapping[str, Tensor]) -> EncodedClip:
    """The clip with further tensors among its conditions."""
    return EncodedClip(clip.latents, clip.first, {**clip.conditions, **more}, clip.empty)
