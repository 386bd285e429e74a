"""The plan of a run, by arithmetic on the card and on file sizes."""

from __future__ import annotations

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
        guidance=request.guidance_scale,
        weights_bytes=stored,
        expected_peak_bytes=expected,
    )


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
