"""The plan of a run, by arithmetic on the card and on file sizes."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

from osp_cli.errors import WontFitError
from osp_cli.plan import Plan
from osp_cli.registry import ModelSpec
from osp_cli.requests import GenerateRequest

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Python, torch and the libraries themselves.
_BASE_BYTES = 500 * 2**20
# Hidden states, attention and feed-forward of one pass, per token; and the decoder's
# full-resolution intermediates, per output pixel. Both are upper ends of what was measured.
_BYTES_PER_TOKEN = 60_000
_BYTES_PER_PIXEL = 3 * 4 * 4
# What a file takes at most per pixel of all frames; an mp4 of noise at this quality takes 0.6.
_FILE_BYTES_PER_PIXEL = {".mp4": 0.75, ".gif": 1.2, ".webp": 1.2, ".png": 3.1}
_MAX_HEADER_BYTES = 100 * 2**20
_EFFICIENCY = 0.5


def make_plan(
    request: GenerateRequest,
    spec: ModelSpec,
    *,
    size: tuple[int, int],
    device: str,
    weights: Path,
) -> Plan:
    """What this run will compute and need.

    Args:
        request: settled.
        spec: its model card.
        size: width, height of the video.
        device: a torch device's name.
        weights: the folder of the weights; only file sizes are read.
    """
    width, height = size
    frames = request.num_frames
    latent_frames = 1 + (frames - 1) // spec.scale_factor_temporal
    # Two latent cells along each side make a token, for every model here.
    cell = spec.scale_factor_spatial * 2
    tokens = latent_frames * (height // cell) * (width // cell)
    dtype = spec.dtypes["transformer"] if request.dtype == "auto" else request.dtype
    stored = sum(path.stat().st_size for path in weights.rglob("*.safetensors"))
    one_pass = _operations(weights / "transformer", spec, tokens, size)
    passes_per_step = len(request.prompts) + (request.guidance_scale > 1)
    passes = request.num_inference_steps * passes_per_step
    expected = (
        _BASE_BYTES
        + stored * _DTYPE_BYTES[dtype] // 2
        + tokens * _BYTES_PER_TOKEN
        + frames * width * height * _BYTES_PER_PIXEL
    )
    return Plan(
        model=spec.name,
        device=device,
        dtype=dtype,
        width=width,
        height=height,
        num_frames=frames,
        num_latent_frames=latent_frames,
        num_tokens=tokens,
        seed=request.seed,
        steps=request.num_inference_steps,
        sampler=request.sampler,
        cache=str(request.cache),
        guidance=request.guidance_scale,
        passes_per_step=passes_per_step,
        weights_bytes=stored,
        expected_peak_bytes=expected,
        disk_bytes=_disk_bytes(request, spec, size, latent_frames),
        operations=None if one_pass is None else passes * one_pass,
    )


def _disk_bytes(
    request: GenerateRequest, spec: ModelSpec, size: tuple[int, int], latent_frames: int
) -> int:
    """At most so much is written: latents in single precision, and the video."""
    width, height = size
    cells = (width // spec.scale_factor_spatial) * (height // spec.scale_factor_spatial)
    latents = 4 * spec.latent_channels * latent_frames * cells
    # stdout gets an MP4.
    per_pixel = _FILE_BYTES_PER_PIXEL.get(request.output.suffix.lower(), 0.75)
    return latents + int(request.num_frames * width * height * per_pixel) + 2**20


def _operations(folder: Path, spec: ModelSpec, tokens: int, size: tuple[int, int]) -> float | None:
    """Multiplications and additions of one pass of the transformer; None where files cannot tell.

    Each weight meets each token; beside that, the attention of tokens to each other and to the
    conditioning's rows. Damage to the files is the business of whoever loads them.
    """
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        width = config["num_attention_heads"] * config["attention_head_dim"]
        weights, layers = _num_weights(folder), config["num_layers"]
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    context = spec.max_sequence_length
    if "image_adapter" in spec.parts:
        cells = (size[0] // spec.scale_factor_spatial) * (size[1] // spec.scale_factor_spatial)
        context += cells // spec.image_token_patch**2
    return 2.0 * weights * tokens + 4.0 * width * tokens * (tokens + context) * layers


def _num_weights(folder: Path) -> int:
    """How many numbers the files of a folder hold, told by their headers."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        header.pop("__metadata__", None)
        count += sum(math.prod(tensor["shape"]) for tensor in header.values())
    return count


def with_time(plan: Plan, operations_per_second: float) -> Plan:
    """The plan with the seconds that sampling will take on a device of this speed."""
    if plan.operations is None:
        return plan
    # Measured on osp-mini, the passes reach this share of what one large product reaches.
    seconds = plan.operations / (operations_per_second * _EFFICIENCY)
    return replace(plan, expected_seconds=float(f"{seconds:.3g}"))


def check_fits(plan: Plan, available_bytes: int) -> None:
    """Refuses a plan that cannot fit, before anything is loaded.

    Raises:
        WontFitError: the plan needs more than there is.
    """
    if plan.expected_peak_bytes > available_bytes:
        raise WontFitError(
            f"{plan.model} needs about {_gigabytes(plan.expected_peak_bytes)} on {plan.device}, "
            f"{_gigabytes(available_bytes)} are free",
            hint="use fewer --frames, a smaller --size, or --model osp-mini",
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
