"""The plan of one run: what will be computed, where, and how many bytes that takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settled before any weight is read, by arithmetic alone.

    Attributes:
        model: name of the model card.
        device: `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: of the transformer's weights: `bfloat16`, `float16` or `float32`.
        width: of the video, in pixels.
        height: of the video, in pixels.
        num_frames: frames of the video, `4k + 1`.
        num_latent_frames: frames after the autoencoder's temporal compression.
        num_tokens: length of the transformer's sequence.
        seed: of the noise.
        steps: sampler steps.
        sampler: `euler` or `unipc`.
        cache: the step cache with its threshold, as in `teacache:0.1`.
        guidance: scale of classifier-free guidance; above 1 each step has one more pass.
        weights_bytes: of all components on disk.
        expected_peak_bytes: memory at the highest point of the run.
        disk_bytes: at most so much is written: the latents and the video.
        operations: multiplications and additions of all passes of the transformer, where its files
            tell.
        expected_seconds: of sampling and decoding, where the device's speed is known.
        passes_per_step: how often each step runs the model: once for each style of a mixture, once
            for what they leave unstyled, once more with guidance.
    """

    model: str
    device: str
    dtype: str
    width: int
    height: int
    num_frames: int
    num_latent_frames: int
    num_tokens: int
    seed: int
    steps: int
    sampler: str
    cache: str
    guidance: float
    weights_bytes: int
    expected_peak_bytes: int
    disk_bytes: int
    operations: float | None
    expected_seconds: float | None = None
    passes_per_step: int = 1

    def as_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return asdict(self)
