"""The plan of a training run: what is trained, where, and what memory and time it takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """Settled before any weight is read, by arithmetic alone.

    Attributes:
        model, mode, device, dtype, quant: as asked, settled.
        full: all weights are trained.
        rank, alpha, targets: of the LoRA.
        trained_parameters: numbers that change.
        num_windows, num_tokens: samples of an epoch, and the longest one's length.
        steps, epochs, batch: optimiser steps in all; samples in each.
        processes, context_parallel: how many share a step, and how many of them one sample.
        sharded: weights and optimiser are shared out among processes; otherwise each has all.
        grad_checkpoint, swap_blocks, offload_activations: settled.
        encode_tiling, sample_tiling: clips are encoded, samples are decoded in tiles.
        streamed: parts that reach the device piece by piece while clips are encoded.
        weights_bytes: of the base on the device.
        expected_peak_bytes: of the device's memory.
        expected_parts: what takes it while it is trained: weights, adapter (and its gradients),
            optimizer, inputs (of blocks), block (what one keeps), rest.
        expected_stage_bytes: peaks of `encode` (clips and captions), `train` and `samples`; the
            highest is `expected_peak_bytes`.
        expected_ram_bytes: of the host's.
        device_bytes: that are free; None where nobody looked.
        cache_bytes: of encoded clips on the disk, at most; `checkpoint_bytes` of one checkpoint.
        expected_seconds: of all steps, where the device's speed is known.
    """

    model: str
    mode: str
    device: str
    dtype: str
    quant: str
    full: bool
    rank: int
    alpha: float
    targets: str
    trained_parameters: int
    num_windows: int
    num_tokens: int
    steps: int
    epochs: int
    batch: int
    processes: int = 1
    context_parallel: int = 1
    sharded: bool = False
    grad_checkpoint: bool = True
    swap_blocks: int = 0
    offload_activations: bool = False
    encode_tiling: bool = False
    sample_tiling: bool = False
    streamed: tuple[str, ...] = ()
    weights_bytes: int = 0
    expected_peak_bytes: int = 0
    expected_parts: dict[str, int] = field(default_factory=dict)
    expected_stage_bytes: dict[str, int] = field(default_factory=dict)
    expected_ram_bytes: int = 0
    device_bytes: int | None = None
    cache_bytes: int = 0
    checkpoint_bytes: int = 0
    expected_seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {**asdict(self), "streamed": list(self.streamed)}
