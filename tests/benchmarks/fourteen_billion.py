"""A 14B of random weights at 832x480x49, each way of running it, beside plain diffusers.

    python tests/benchmarks/fourteen_billion.py --folder /tmp/big --json 14b.json --seconds 560
    python tests/benchmarks/fourteen_billion.py --folder /tmp/big --json 14b.json --table
    python tests/benchmarks/fourteen_billion.py --folder /tmp/small --json tiny.json --tiny

For one CUDA device with 40 GB or more, 96 GB of RAM and 30 GB of disk; the folder keeps its
checkpoint for the next call. Each part runs in a process of its own, and the file is written anew
after each; parts that are in it already are not done again, and with `--seconds` none is begun
that may not end in time. The last thing printed is the table of all that is there.

What runs is the runtime's own: real plans, `Models`, the pipeline's sampling; only texts and the
picture are random numbers. "Capped" parts get a plan for `--cap` GB, and torch refuses more than
that less what a driver takes. Diffusers runs `WanImageToVideoPipeline` on the same blocks, with 36
channels in. Seconds are medians of steps after the first; a step is two passes. What is planned
holds 0.6 GB for a driver, which `reserved`, the most that torch took, does not.

`--tiny` does all parts on the CPU with a model of two layers: no streams, caps or page-locked
memory, and figures that mean nothing.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from diffusers.hooks import apply_group_offloading
from memory import Measured
from PIL import Image
from safetensors.torch import load_file, save_file
from synthetic import write_checkpoint

from osp_cli.models.latents import encode_latents
from osp_cli.models.state_dict import fill, load_autoencoder, read_state_dict
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.pipelines.flash_i2v import Conditions, SamplingInputs, decode_frames
from osp_cli.plan import Plan
from osp_cli.registry import find_model
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.devices import this_machine
from osp_cli.runtime.models import DECODING, SAMPLING, Models
from osp_cli.runtime.planner import make_plan

MODEL = "uniworld-osp2-14b"
# What a driver keeps for itself of a card is not torch's to give.
DRIVER_BYTES = 600 * 2**20
GUIDANCE = 5.0
# Of diffusers' model only; the first-frame condition and its mask come in as channels.
I2V_CHANNELS = 36
_STARTED = time.perf_counter()
FLASH_ONLY = ("fourier_embedding.", "learnable_proj.")


@dataclass(frozen=True)
class Part:
    """One row of the table.

    Attributes:
        title: of the row.
        run: what is measured.
        request: fields of the request.
        capped: with as much of the device as a smaller card has.
        seconds: that it takes at most, roughly.
    """

    title: str
    run: Callable[[Job], dict[str, Any]]
    request: dict[str, Any] = field(default_factory=dict)
    capped: bool = False
    seconds: int = 100


@dataclass(frozen=True)
class Job:
    """A part with what it runs on."""

    part: Part
    options: argparse.Namespace

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cpu" if self.options.tiny else "cuda")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return (64, 64) if self.options.tiny else (832, 480)

    @property
    def num_frames(self) -> int:
        """Of the clip."""
        return 5 if self.options.tiny else 49

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of the clip."""
        width, height = self.size
        return (1, 16, 1 + (self.num_frames - 1) // 4, height // 8, width // 8)

    @property
    def steps(self) -> int:
        """With the one that only warms up."""
        return int(self.options.steps) + 1

    def random(self, *shape: int, seed: int = 0) -> torch.Tensor:
        """The same numbers in every part."""
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return drawn.to(self.device)

    def texts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What a text encoder would have made of a prompt and a negative prompt."""
        length = 16 if self.options.tiny else find_model(MODEL).max_sequence_length
        width = json.loads((self.options.folder / "transformer" / "config.json").read_text())
        shape = (1, length, int(width["text_dim"]))
        return self.random(*shape, seed=1), self.random(*shape, seed=2)

    def plan(self) -> Plan:
        """As a run would make it on this machine, of the files that are there."""
        request = GenerateRequest(
            image=Path("picture.png"),
            prompt="x",
            model=MODEL,
            seed=0,
            num_frames=self.num_frames,
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            max_vram=int(self.options.cap * 1e9) if self._is_capped else None,
            **self.part.request,
        )
        return make_plan(
            request,
            find_model(MODEL),
            size=self.size,
            machine=this_machine(self.device),
            weights=self.options.folder,
        )

    def cap(self) -> None:
        """From here on, torch gets no more of the device than a smaller card has."""
        if self._is_capped:
            _, total = torch.cuda.mem_get_info()
            share = (self.options.cap * 1e9 - DRIVER_BYTES) / total
            torch.cuda.set_per_process_memory_fraction(min(1.0, share))

    @property
    def _is_capped(self) -> bool:
        return self.part.capped and self.device.type == "cuda"


def run_ours(job: Job) -> dict[str, Any]:
    """Loads by plan and samples, as a run does; the latents are kept and compared."""
    plan, spec, models = job.plan(), find_model(MODEL), Models()
    job.cap()
    with Measured(job.device) as measured:
        for _ in models.load(spec, plan, job.options.folder, SAMPLING):
            pass
        loaded = measured.wait()
        cond, uncond = job.texts()
        first = job.random(*job.latent_shape[:2], 1, *job.latent_shape[3:], seed=3)
        conditions = Conditions(cond=cond, uncond=uncond, first=first, projected=None)
        with models.pipeline.sampling(_inputs(job), conditions) as sampling:
            for _ in sampling.steps():
                measured.step()
    return {
        **_of_plan(plan, "sampling"),
        **measured.figures(),
        "load_seconds": loaded,
        "passes": plan.passes_per_step,
        **_compared(job, sampling.latents.cpu()),
    }


def _inputs(job: Job) -> SamplingInputs:
    return SamplingInputs(
        image=None,
        prompt="x",
        negative_prompt="",
        width=job.size[0],
        height=job.size[1],
        num_frames=job.num_frames,
        num_inference_steps=job.steps,
        guidance_scale=GUIDANCE,
        shift=7.0,
        cutoff=(0.1, 0.1),
        seed=0,
    )


def _of_plan(plan: Plan, stage: str) -> dict[str, Any]:
    return {
        "plan": {
            name: getattr(plan, name)
            for name in ("offload", "quant", "vae_tiling", "pinned", "compile")
        },
        "expected_peak": plan.expected_stage_bytes[stage],
        "expected_ram": plan.expected_ram_bytes,
    }


def _compared(job: Job, latents: torch.Tensor) -> dict[str, Any]:
    """How far they are from those of the part called `full`, which leaves its own."""
    path = job.options.folder / "full.safetensors"
    if job.options.child == "full":
        save_file({"latents": latents}, path)
    if not path.is_file():
        return {"finite": bool(latents.isfinite().all())}
    full = load_file(path)["latents"]
    return {
        "finite": bool(latents.isfinite().all()),
        "same": torch.equal(latents, full),
        "relative_error": float((latents - full).norm() / full.norm()),
    }


def run_diffusers(job: Job, *, offloaded: bool = False) -> dict[str, Any]:
    """The library's own pipeline on the same blocks."""
    folder = job.options.folder
    job.cap()
    with Measured(job.device) as measured:
        transformer = _diffusers_transformer(folder)
        if offloaded:
            streams = {"use_stream": True} if job.device.type == "cuda" else {}
            apply_group_offloading(
                transformer, job.device, offload_type="block_level", num_blocks_per_group=1,
                **streams,
            )  # fmt: skip
        else:
            transformer.to(job.device)
        loaded = measured.wait()
        pipeline = WanImageToVideoPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=load_autoencoder(folder / "vae", dtype=torch.float32).to(job.device),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            transformer=transformer,
        )
        pipeline.set_progress_bar_config(disable=True)

        def after_step(_: Any, __: int, ___: Any, values: dict[str, Any]) -> dict[str, Any]:
            measured.step()
            return values

        cond, uncond = job.texts()
        pipeline(
            image=Image.new("RGB", job.size, (90, 120, 150)),
            width=job.size[0],
            height=job.size[1],
            num_frames=job.num_frames,
            num_inference_steps=job.steps,
            guidance_scale=GUIDANCE,
            prompt_embeds=cond,
            negative_prompt_embeds=uncond,
            output_type="latent",
            callback_on_step_end=after_step,
        )
    return {**measured.figures(), "load_seconds": loaded, "passes": 2}


def run_diffusers_offloaded(job: Job) -> dict[str, Any]:
    """The same, block by block from page-locked memory."""
    return run_diffusers(job, offloaded=True)


def _diffusers_transformer(folder: Path) -> WanTransformer3DModel:
    """Wan's own class around the weights in our folder, but for the first layer, which is wider."""
    state = {
        name: tensor
        for name, tensor in read_state_dict(folder / "transformer").items()
        if not name.startswith(FLASH_ONLY)
    }
    width, _, *patch = state["patch_embedding.weight"].shape
    first = torch.randn(width, I2V_CHANNELS, *patch, generator=torch.Generator().manual_seed(4))
    state["patch_embedding.weight"] = (first * 0.02).to(torch.bfloat16)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    known = inspect.signature(WanTransformer3DModel.__init__).parameters
    settings = {name: value for name, value in config.items() if name in known}
    with init_empty_weights():
        model = WanTransformer3DModel(**{**settings, "in_channels": I2V_CHANNELS})
    fill(model, state, folder, dtype=torch.bfloat16)
    return model.eval()


def run_decode(job: Job) -> dict[str, Any]:
    """The clip's pictures from random latents, with nothing else on the device."""
    plan, models = job.plan(), Models()
    with Measured(job.device) as measured:
        for _ in models.load(find_model(MODEL), plan, job.options.folder, DECODING):
            pass
        latents = job.random(*job.latent_shape)
        started = measured.wait()
        frames = decode_frames(models.vae, latents)
        seconds = measured.wait() - started
    assert frames.shape[0] == job.num_frames
    return {**_of_plan(plan, "decode"), **measured.figures(), "seconds": seconds}


def run_encode(job: Job) -> dict[str, Any]:
    """The latents of a first frame."""
    plan, models = job.plan(), Models()
    with Measured(job.device) as measured:
        for _ in models.load(find_model(MODEL), plan, job.options.folder, DECODING):
            pass
        picture = job.random(1, 3, 1, job.size[1], job.size[0]).clamp(-1, 1)
        started = measured.wait()
        encode_latents(models.vae, picture)
        seconds = measured.wait() - started
    return {**_of_plan(plan, "condition"), **measured.figures(), "seconds": seconds}


def _asked(offload: str, quant: str = "none", **more: Any) -> dict[str, Any]:
    return {"offload": offload, "quant": quant, **more}


# The most telling first: time may run out.
PARTS = {
    "full": Part("all on the device", run_ours, _asked("none"), seconds=90),
    "diffusers": Part("diffusers, all on the device", run_diffusers, seconds=90),
    "capped": Part(
        "capped, what the plan chooses", run_ours, _asked("auto", "auto"), capped=True, seconds=150
    ),
    "fp8": Part("capped, fp8", run_ours, _asked("model", "fp8"), capped=True),
    "decode": Part("decode whole", run_decode, _asked("model", vae_tiling=False), seconds=60),
    "decode-tiled": Part("decode tiled", run_decode, _asked("model", vae_tiling=True), seconds=60),
    "encode": Part("encode a frame", run_encode, _asked("model"), seconds=40),
    "paged": Part(
        # With so little RAM, what waits is not page-locked.
        "capped, group, 12 GB of RAM", run_ours, _asked("group", max_ram=12 * 10**9),
        capped=True, seconds=180,
    ),
    "fp8-group": Part("capped, fp8, group", run_ours, _asked("group", "fp8"), capped=True),
    "diffusers-group": Part(
        "capped, diffusers, group", run_diffusers_offloaded, capped=True, seconds=150
    ),
    "disk": Part("capped, disk", run_ours, _asked("disk"), capped=True, seconds=240),
    "compile": Part("all on the device, compiled", run_ours, _asked("none", compile=True)),
}  # fmt: skip
# Slow, or in need of a compiler: only where they are named.
EXTRA = ("disk", "compile")


def write_weights(folder: Path, tiny: bool) -> None:
    """The checkpoint of transformer and autoencoder, where it is not there yet."""
    done = folder / "whole"
    if done.exists():
        return
    small = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 128, "text_dim": 32}
    small_vae = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    with init_empty_weights():
        transformer = FlashI2VTransformer3DModel(**({**small, "num_layers": 2} if tiny else {}))
        vae = AutoencoderKLWan(**(small_vae if tiny else {}))
    started = time.perf_counter()
    size = write_checkpoint(folder / "transformer", transformer, shards=2 if tiny else 6)
    size += write_checkpoint(folder / "vae", vae, torch.float32)
    _say(f"wrote {size / 1e9:.1f} GB in {time.perf_counter() - started:.0f} s")
    done.touch()


def measure(name: str, options: argparse.Namespace, timeout: float | None) -> dict[str, Any]:
    """One part in a process of its own; what went wrong where it did not end well."""
    if options.tiny:
        # There is no device whose memory one part could leave in another state for the next.
        options.child = name
        return PARTS[name].run(Job(PARTS[name], options))
    command = [sys.executable, __file__, "--child", name, "--folder", str(options.folder)]
    command += ["--steps", str(options.steps), "--cap", str(options.cap)]
    # Weights that a plan wants on the disk go there too.
    environment = {**os.environ, "OSP_HOME": str(options.folder / "home")}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {timeout:.0f} s"}
    if done.returncode:
        _say(done.stderr)
        return {"error": (done.stderr.strip().splitlines() or ["no word"])[-1][:300]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """All results that are there, in Markdown."""
    yield (
        "|part|plan|s a step|peak GB|reserved GB|planned GB|planned / reserved|RAM GB|locked GB"
        "|loading s|error|"
    )
    yield "|---" * 11 + "|"
    for name, part in PARTS.items():
        row = found.get(name, {})
        if "error" in row:
            yield f"|{part.title}|failed: {row['error']}|" + "|" * 9
        elif row:
            yield "|".join(["", part.title, *_cells(row), ""])


def _cells(row: dict[str, Any]) -> Iterator[str]:
    def number(value: float | None, unit: float = 1.0, digits: int = 1) -> str:
        return "" if value is None else f"{value / unit:.{digits}f}"

    plan = row.get("plan", {})
    chosen = [plan.get("offload", ""), plan.get("quant", "")]
    yield " ".join(word for word in chosen if word not in ("", "none"))
    yield number(row.get("step_seconds", row.get("seconds")), digits=2)
    yield number(row.get("peak_allocated"), 1e9)
    peak, expected = row.get("peak_reserved"), row.get("expected_peak")
    yield number(peak, 1e9)
    yield number(expected, 1e9)
    yield number(expected / peak, digits=2) if expected and peak else ""
    yield number(row["host_anonymous"], 1e9)
    yield number(row.get("host_locked"), 1e9)
    yield number(row.get("load_seconds"))
    yield "" if "relative_error" not in row else f"{row['relative_error']:.1e}"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="keeps the checkpoint")
    parser.add_argument("--json", type=Path, help="of the results", default=Path("14b.json"))
    parser.add_argument("--table", action="store_true", help="only show what is in that file")
    parser.add_argument("--parts", nargs="+", choices=PARTS)
    parser.add_argument("--steps", type=int, default=4, help="that count, after the first")
    parser.add_argument("--cap", type=float, default=24.0, help="GB of the smaller card")
    parser.add_argument("--seconds", type=float, help="begin nothing that may end later")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        part = PARTS[options.child]
        sys.stdout.write("\n" + json.dumps(part.run(Job(part, options))) + "\n")
        return
    found: dict[str, dict[str, Any]] = {}
    if options.json.is_file():
        found = json.loads(options.json.read_text())
    for name in () if options.table else _parts_to_do(options, found):
        found[name] = measure(name, options, _seconds_left(options))
        options.json.write_text(json.dumps(found, indent=1) + "\n")
        _say(f"{name}: {json.dumps(found[name])}")
    sys.stdout.write("\n".join([*table(found), ""]))


def _parts_to_do(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> Iterator[str]:
    write_weights(options.folder, options.tiny)
    for name in options.parts or [name for name in PARTS if name not in EXTRA]:
        if name in found and "error" not in found[name]:
            continue
        left = _seconds_left(options)
        if left is not None and left < PARTS[name].seconds:
            _say(f"{name}: no time left for it")
        else:
            yield name


def _seconds_left(options: argparse.Namespace) -> float | None:
    if options.seconds is None:
        return None
    return float(options.seconds - (time.perf_counter() - _STARTED))


if __name__ == "__main__":
    main()
