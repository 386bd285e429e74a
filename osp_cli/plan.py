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
        guidance: scale of classifier-free guidance; above 1 each step runs the model twice.
        weights_bytes: of all components on disk.
        expected_peak_bytes: memory at the highest point of the run.
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
    guidance: float
    weights_bytes: int
    expected_peak_bytes: int

    def as_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return asdict(self)
