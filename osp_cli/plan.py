"""The plan of one run: what will be computed, where, and how many bytes that takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from osp_cli.dials import LoraChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settled before any weight is read, by arithmetic alone.

    Attributes:
        model: name of the model card.
        device: `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: of the transformer's weights: `bfloat16`, `float16` or `float32`.
        width: of the video, in pixels.
        height: of the video, in pixels.
        num_frames: frames of the video, `4k + 1`; of a restyled one, those of a window.
        num_latent_frames: frames after the autoencoder's temporal compression.
        num_tokens: length of the transformer's sequence.
        seed: of the noise.
        steps: sampler steps.
        sampler: `euler` or `unipc`.
        cache: the step cache with its threshold, as in `teacache:0.1`.
        guidance: scale of classifier-free guidance; above 1 each step has one more pass.
        weights_bytes: of all components on disk.
        offload: where weights wait that are not in use: `none`, `model`, `group`, `sequential` or
            `disk`.
        quant: how the transformer's weights are stored: `none`, `fp8`, `int8`, `nf4` or `gguf`.
        attention: which kernels: `sdpa`, `flash` or `sage`.
        vae_tiling: the autoencoder works in tiles.
        compile: the transformer's blocks are compiled.
        pinned: what is offloaded waits in page-locked memory.
        streamed: parts that reach the device piece by piece.
        gpus: how many devices, or processes on the CPU, share the sampling; all figures of memory
            are those of each.
        expected_peak_bytes: memory of the device at the highest point of the run.
        expected_stage_bytes: the same for each stage.
        expected_ram_bytes: of the host that the run needs; on the CPU it is the device.
        device_bytes: that were free on the device, or that the user allows; None where nobody
            looked.
        disk_bytes: at most so much is written: the latents and the video.
        offload_bytes: that are written for the time of the run, for `disk`.
        operations: multiplications and additions of all passes of the transformer, where its files
            tell.
        expected_seconds: of sampling and decoding, where the device's speed is known.
        loras: that are added to the transformer.
        num_windows: windows of a video that is restyled; frames, tokens, steps and memory are those
            of each.
        total_frames: of the restyled video.
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
    num_windows: int = 1
    total_frames: int | None = None
    offload: str = "none"
    quant: str = "none"
    attention: str = "sdpa"
    vae_tiling: bool = False
    compile: bool = False
    gpus: int = 1
    pinned: bool = False
    streamed: tuple[str, ...] = ()
    expected_stage_bytes: dict[str, int] = field(default_factory=dict)
    expected_ram_bytes: int = 0
    device_bytes: int | None = None
    offload_bytes: int = 0
    loras: tuple[LoraChoice, ...] = ()

    @property
    def frees_parts(self) -> bool:
        """Each part is let go of as soon as its stage is over."""
        return self.offload != "none"

    def as_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        loras = list(map(str, self.loras))
        return {**asdict(self), "streamed": list(self.streamed), "loras": loras}
