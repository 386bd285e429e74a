"""What a training step is made of: encoded clips, and which of them come when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """One window of a clip, encoded once and kept.

    Attributes:
        latents: x, normalised posterior mean, `(channels, latent_frames, h, w)`.
        first: s, of the picture that it follows from, `(channels, 1, h, w)`: `latents[:, :1]`
            where that is the clip's own first frame.
        conditions: what the frozen conditioner says of caption and picture, before any adapter
            that may be trained; by name, as `training.conditions` wants it.
        empty: the same with an empty caption and the same picture.
    """

    latents: Tensor
    first: Tensor
    conditions: Mapping[str, Tensor]
    empty: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class SampleNumber:
    """One sample of a run.

    Attributes:
        number: counted from 0 over the whole run, whatever the number of processes; all its
            randomness follows from it and the seed.
        index: of the window in the dataset.
        epoch: counted from 0.
    """

    number: int
    index: int
    epoch: int
