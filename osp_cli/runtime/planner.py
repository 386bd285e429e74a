"""The plan of a run, by arithmetic on the card and on the headers of weight files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from osp_cli.errors import InvalidRequestError
from osp_cli.extend_request import ExtendRequest
from osp_cli.plan import Plan
from osp_cli.registry import ModelSpec
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.activations import activations
from osp_cli.runtime.sizes import PartSize, TransformerShape, part_sizes, transformer_shape
from osp_cli.runtime.strategy import Machine, Strategy, Work, choose, limited

# What a file takes at most per pixel of all frames; an mp4 of noise at this quality takes 0.6.
_FILE_BYTES_PER_PIXEL = {".mp4": 0.75, ".gif": 1.2, ".webp": 1.2, ".png": 3.1}


def make_plan(
    request: GenerateRequest,
    spec: ModelSpec,
    *,
    size: tuple[int, int],
    machine: Machine,
    weights: Path | None,
    below: Mapping[str, int] | None = None,
) -> Plan:
    """What this run will compute and need, and the best way in which it fits the machine.

    Args:
        request: settled.
        spec: its model card.
        size: width, height of the video.
        machine: what there is.
        weights: the folder of the weights, of which only headers are read; None plans with the
            card's figures.
        below: stages that must need less than so many bytes.

    Raises:
        WontFitError: it fits in no way.
    """
    width, height = size
    frames, gpus = request.num_frames, request.gpus
    machine = _share(machine, gpus)
    latent_frames = 1 + (frames - 1) // spec.scale_factor_temporal
    # Two latent cells along each side make a token, for every model here.
    cell = spec.scale_factor_spatial * 2
    tokens = latent_frames * (height // cell) * (width // cell)
    has_context = False
    if isinstance(request, ExtendRequest):
        helios = request.figures.layout == "helios"
        tokens += history_tokens(width // cell, height // cell) if helios else 0
        has_context = helios or request.context > 0
    dtype = spec.dtypes["transformer"] if request.dtype == "auto" else request.dtype
    sizes = part_sizes(spec, weights, {**spec.dtypes, "transformer": dtype})
    _check_format(request, sizes)
    shape = transformer_shape(spec, weights)
    passes_per_step = len(request.prompts) + (request.guidance_scale > 1)
    passes = request.num_inference_steps * passes_per_step
    one_pass = _operations(sizes.get("transformer"), shape, spec, tokens, size)
    work = Work(
        sizes=sizes,
        activations=activations(
            spec,
            shape,
            size=size,
            num_frames=frames,
            tokens=tokens,
            dtype=dtype,
            passes_per_step=passes_per_step,
            cache=request.cache.kind,
            gpus=gpus,
            tokenwise=has_context,
        ),
        passes=passes,
        operations=None if one_pass is None else passes * one_pass / gpus,
    )
    plan = Plan(
        model=spec.name,
        device=machine.device,
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
        weights_bytes=sum(part.stored for part in sizes.values()),
        attention="sdpa" if request.attention == "auto" else request.attention,
        compile=request.compile,
        loras=request.loras,
        gpus=gpus,
        device_bytes=limited(machine, request).device_bytes,
        expected_peak_bytes=0,
        disk_bytes=_disk_bytes(request, spec, size, latent_frames),
        operations=None if one_pass is None else passes * one_pass,
    )
    strategy = choose(work, machine, request, below)
    plan = _with_strategy(plan, strategy)
    if machine.speed is None or work.operations is None:
        return plan
    return replace(plan, expected_seconds=float(f"{strategy.seconds:.3g}"))


def history_tokens(columns: int, rows: int) -> int:
    """Tokens of what a Helios looks back to: two latents whole, two and sixteen ever coarser.

    Args:
        columns, rows: of the tokens of one latent frame.
    """
    middle = -(-columns // 2) * -(-rows // 2)
    long = 4 * -(-columns // 4) * -(-rows // 4)
    return 2 * columns * rows + middle + long


def _check_format(request: GenerateRequest, sizes: Mapping[str, PartSize]) -> None:
    """Refuses a kind of weights that the installed files are not, and cannot be made."""
    is_gguf = "transformer" in sizes and sizes["transformer"].gguf
    if is_gguf and request.quant not in ("auto", "gguf"):
        raise InvalidRequestError(
            f"the installed weights of {request.model} are GGUF, --quant {request.quant} needs "
            "others",
            hint="leave --quant out",
        )
    if request.quant == "gguf" and not is_gguf:
        raise InvalidRequestError(
            f"the installed weights of {request.model} are not GGUF",
            hint="leave --quant out"
            if request.spec.embedded
            else f"osp download {request.model} --local FILE.gguf installs such a file, "
            "or use --quant fp8",
        )


def _share(machine: Machine, gpus: int) -> Machine:
    """What each of several processes has of a machine: a device of its own, a part of the host."""
    if gpus == 1:
        return machine
    device = machine.device_bytes
    return replace(
        machine,
        device_bytes=device // gpus if machine.kind == "cpu" else device,
        ram_bytes=machine.ram_bytes // gpus,
    )


def _with_strategy(plan: Plan, strategy: Strategy) -> Plan:
    return replace(
        plan,
        offload=strategy.offload,
        quant=strategy.quant,
        vae_tiling=strategy.vae_tiling,
        pinned=strategy.pinned,
        streamed=strategy.streamed,
        expected_peak_bytes=strategy.peak_bytes,
        expected_stage_bytes=dict(strategy.stages),
        expected_ram_bytes=strategy.ram_bytes,
        offload_bytes=strategy.disk_bytes,
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


def _operations(
    transformer: PartSize | None,
    shape: TransformerShape | None,
    spec: ModelSpec,
    tokens: int,
    size: tuple[int, int],
) -> float | None:
    """Multiplications and additions of one pass of the transformer; None where nothing tells.

    Each weight meets each token; beside that, the attention of tokens to each other and to the
    conditioning's rows.
    """
    if transformer is None or shape is None:
        return None
    context = spec.max_sequence_length
    if "image_adapter" in spec.parts:
        cells = (size[0] // spec.scale_factor_spatial) * (size[1] // spec.scale_factor_spatial)
        context += cells // spec.image_token_patch**2
    attention = 4.0 * shape.width * tokens * (tokens + context) * shape.layers
    return 2.0 * transformer.parameters * tokens + attention
