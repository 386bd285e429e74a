"""Endless video by a 14B of random weights, each way of running it, beside plain diffusers.

    python tests/benchmarks/realtime_14b.py --json live.json --seconds 560
    python tests/benchmarks/realtime_14b.py --json live.json --table
    python tests/benchmarks/realtime_14b.py --json tiny.json --tiny

For one CUDA device with 80 GB or more; nothing is read from a disk, weights are drawn where they
run. Each part runs in a process of its own, and the file is written anew after each; parts that are
in it already are not done again, and with `--seconds` none is begun that may not end in time. The
last thing printed is the table of all that is there.

What runs is the engine itself, `RealtimePipeline`, and for the whole loop the runtime's conveyor
and file; only texts are random numbers. diffusers runs `HeliosPyramidPipeline` on the same model,
drawing its block noise as ours, since its own has no Cholesky factor. Chunks are of nine latents,
33 pictures each on its own, 36 in a continuous stream; fps is their number by the median second.
Two chunks warm up: the first of a Helios has twice its steps.

`--tiny` does all parts on the CPU with models of two layers: figures that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from random_models import (
    TEXT_TOKENS,
    autoencoder,
    helios,
    stage_schedule,
    use_channels_last,
    use_fp8,
    wan,
)
from torch import Tensor

from osp_cli.media.live.sinks import open_live
from osp_cli.models.latents import decode_latents, uint8_frames
from osp_cli.models.streaming import StreamingDecoder
from osp_cli.pipelines.layouts import HeliosLayout
from osp_cli.pipelines.realtime import RealtimePipeline, StreamInputs, StreamState, Words
from osp_cli.realtime_card import RealtimeFigures
from osp_cli.runtime.conveyor import Conveyor
from osp_cli.sampling.stages import block_noise

WARM_UPS = 2
_STARTED = time.perf_counter()


@dataclass(frozen=True)
class Part:
    """One row of the table.

    Attributes:
        title: of the row.
        run: what is measured, with `settings`.
        seconds: that it takes at most, roughly.
    """

    title: str
    run: Callable[..., dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: int = 60


@dataclass(frozen=True)
class Job:
    """Where and how often a part runs."""

    tiny: bool
    runs: int
    size: tuple[int, int]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cpu" if self.tiny else "cuda")

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of latents."""
        return self.size[1] // 8, self.size[0] // 8

    @property
    def frames(self) -> int:
        """Latents of a chunk."""
        return 3 if self.tiny else 9

    def pictures(self, layout: str) -> int:
        """That a chunk decodes to."""
        return 4 * self.frames - 3 * (layout == "helios")

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Not zeros, of which products are quicker."""
        return torch.randn(shape, device=self.device).to(dtype)

    def words(self) -> Words:
        """What a text encoder would have made of a prompt."""
        return Words(self.random(1, *((7, 32) if self.tiny else (TEXT_TOKENS, 4096))))

    def timed(self, call: Callable[[], object]) -> dict[str, float]:
        """Median and best seconds of a call, each waited for, after two that warm up."""
        seconds = []
        for run in range(WARM_UPS + self.runs):
            self.wait()
            started = time.perf_counter()
            call()
            self.wait()
            if run >= WARM_UPS:
                seconds.append(time.perf_counter() - started)
        return {"seconds": statistics.median(seconds), "best": min(seconds)}

    def wait(self) -> None:
        """Until the device has done all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> dict[str, float]:
        """Memory of the device so far."""
        if self.device.type != "cuda":
            return {}
        return {"peak_bytes": float(torch.cuda.max_memory_allocated())}


def run_rates(job: Job) -> dict[str, Any]:
    """Products and attention alone: what the device can do at all, in TFLOP/s."""
    side, length, heads = (64, 32, 2) if job.tiny else (8192, 11040, 40)
    a, b = (job.random(side, side, dtype=torch.bfloat16) for _ in range(2))
    one = torch.ones((), device=job.device)
    small_a, small_b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    queries = job.random(1, heads, length, 128, dtype=torch.bfloat16)
    product, attention = 2 * side**3, 4 * heads * length**2 * 128
    calls: dict[str, tuple[int, Callable[[], object]]] = {
        "bf16": (product, lambda: a @ b),
        "fp8": (
            product,
            lambda: torch._scaled_mm(
                small_a, small_b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16
            ),
        ),
        "attention": (
            attention,
            lambda: F.scaled_dot_product_attention(queries, queries, queries),
        ),
    }
    return {
        f"{name}_tflops": flop / job.timed(call)["seconds"] / 1e12
        for name, (flop, call) in calls.items()
    }


def prepared(job: Job, model: Any, *, fp8: bool, compiled: bool, backend: str, fused: bool) -> Any:
    """The model as a part wants it run."""
    if fused:
        for block in model.blocks:
            block.attn1.fuse_projections()
    if fp8:
        assert use_fp8(model)
    if backend != "native" and not job.tiny:
        model.set_attention_backend(backend)
    if compiled:
        # The same graphs without a compiler where nothing is measured.
        how = {"backend": "eager"} if job.tiny else {}
        model.compile_repeated_blocks(fullgraph=True, dynamic=False, **how)
    return model


@torch.no_grad()
def run_passes(
    job: Job, *, fp8: bool = False, compiled: bool = True, backend: str = "_native_cudnn",
    fused: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """One pass of Helios at each of its three resolutions, with a full history."""
    model = helios(job.device, tiny=job.tiny)
    prepared(job, model, fp8=fp8, compiled=compiled, backend=backend, fused=fused)
    rows, columns = job.cells
    history = job.random(1, 16, HeliosLayout.lookback, rows, columns)
    state = StreamState(1, history, history[:, :, :1], torch.empty(0, dtype=torch.uint8))
    texts, timestep = job.words().cond, torch.tensor(500)
    found: dict[str, Any] = {}
    for divisor in (4, 2, 1):
        latents = job.random(1, 16, job.frames, rows // divisor, columns // divisor)
        view = HeliosLayout().view(model, state, tuple(latents.shape), None)
        timed = job.timed(lambda view=view, z=latents: view(z, timestep, texts))
        found[f"pass_{divisor}"] = timed["seconds"]
    return {**found, **job.peak()}


def stream(
    job: Job, layout: str, steps: tuple[int, ...], *, context: int = 9, small: bool = False,
    fp8: bool = False, compiled: bool = True, graphs: bool = False,
) -> tuple[RealtimePipeline, StreamInputs]:  # fmt: skip
    """The engine around a random model, ready for its first chunk."""
    is_helios = layout == "helios"
    if is_helios:
        model = helios(job.device, tiny=job.tiny)
    else:
        model = wan(job.device, tiny=job.tiny, small=small)
    prepared(
        job, model, fp8=fp8, compiled=compiled and not graphs, backend="_native_cudnn", fused=False
    )
    if graphs and not job.tiny:
        model.compile(mode="reduce-overhead", dynamic=False)
    figures = RealtimeFigures(
        layout=layout,
        context=context,
        steps=steps,
        stages=len(steps),
        vae_chunks="independent" if is_helios else "continuous",
        trained=True,
    )
    vae = autoencoder(job.device, tiny=job.tiny)
    pipeline = RealtimePipeline(
        model, vae, None, figures, scheduler=stage_schedule() if is_helios else None
    )
    inputs = StreamInputs(
        width=job.size[0],
        height=job.size[1],
        latent_frames=job.frames,
        num_inference_steps=steps,
    )
    return pipeline, inputs


def run_chunks(job: Job, *, layout: str, steps: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Chunks of latents, one after the other, as a stream makes them."""
    pipeline, inputs = stream(job, layout, steps, **more)
    words, state = job.words(), _begun(job, pipeline, inputs)

    def one() -> None:
        nonlocal state
        _, state = _finished(pipeline.chunk(inputs, state, words))

    timed = job.timed(one)
    assert state.history.isfinite().all()
    return {**timed, "fps": job.pictures(layout) / timed["seconds"], **job.peak()}


def _begun(job: Job, pipeline: RealtimePipeline, inputs: StreamInputs) -> StreamState:
    """A stream with all the context that it may have, so that shapes never change."""
    known = max(1, pipeline.figures.context)
    is_helios = pipeline.figures.layout == "helios"
    return pipeline.begin(inputs, None if is_helios else job.random(1, 16, known, *job.cells))


def _finished(chunk: Any) -> tuple[Tensor, StreamState]:
    while True:
        try:
            next(chunk)
        except StopIteration as end:
            return end.value


def run_diffusers(job: Job, *, steps: tuple[int, ...]) -> dict[str, Any]:
    """The library's own pipeline on the same model, with the decoder that it always runs."""
    from diffusers import HeliosPyramidPipeline

    class Theirs(HeliosPyramidPipeline):
        def sample_block_noise(self, *shape: Any) -> Tensor:
            *size, _patch, device, generator = shape
            drawn = lambda wanted: torch.randn(wanted, generator=generator)  # noqa: E731
            return block_noise(tuple(size), drawn).to(device)

    model = helios(job.device, tiny=job.tiny)
    prepared(job, model, fp8=False, compiled=True, backend="_native_cudnn", fused=False)
    vae = autoencoder(job.device, torch.float32, tiny=job.tiny)
    decoding: list[float] = []
    genuine = vae.decode

    def decode(*args: Any, **kwargs: Any) -> Any:
        job.wait()
        started = time.perf_counter()
        answer = genuine(*args, **kwargs)
        job.wait()
        decoding.append(time.perf_counter() - started)
        return answer

    vae.decode = decode
    pipeline = Theirs(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=stage_schedule(), transformer=model,
        is_distilled=True,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    texts = job.words().cond

    def chunks(count: int) -> None:
        pipeline(
            prompt_embeds=texts, height=job.size[1], width=job.size[0],
            num_frames=job.pictures("helios") * count, guidance_scale=1.0, output_type="latent",
            num_latent_frames_per_chunk=job.frames,
            pyramid_num_inference_steps_list=list(steps),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    chunks(1)
    decoding.clear()
    job.wait()
    started = time.perf_counter()
    count = max(2, job.runs // 2)
    chunks(count)
    job.wait()
    seconds = (time.perf_counter() - started) / count
    decoded = statistics.median(decoding)
    return {
        "seconds": seconds,
        "fps": job.pictures("helios") / seconds,
        "decode": decoded,
        "fps_without_decode": job.pictures("helios") / (seconds - decoded),
        **job.peak(),
    }


@torch.no_grad()
def run_decode(
    job: Job, *, dtype: str, channels_last: bool = False, compiled: bool = False, at_once: int = 1
) -> dict[str, Any]:
    """Pictures of one chunk in a continuous stream, whose decoder remembers; and of one alone."""
    vae = autoencoder(job.device, getattr(torch, dtype), tiny=job.tiny)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if channels_last:
        use_channels_last(vae)
    if compiled:
        vae.decoder = torch.compile(vae.decoder, **({"backend": "eager"} if job.tiny else {}))
    latents = job.random(1, 16, job.frames, *job.cells)
    if at_once == 1:
        decoder = StreamingDecoder(vae)
        decoder.push(latents[:, :, :1])
        continuous = job.timed(lambda: decoder.push(latents))["seconds"]
    else:
        continuous = _several_at_once(job, vae, latents, at_once)
    alone = job.timed(lambda: decode_latents(vae, latents))["seconds"]
    return {
        "seconds": continuous,
        "alone": alone,
        "fps": job.pictures("osp") / continuous,
        **job.peak(),
    }


def _several_at_once(job: Job, vae: Any, latents: Tensor, at_once: int) -> float:
    """Seconds of a chunk whose latents pass the decoder several in a call: fewer, larger calls."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    places = sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
    memory: list[Any] = [None] * places
    latents = latents.to(vae.dtype)

    def decode(pieces: Tensor, *, first: bool = False) -> None:
        for piece in pieces.split(1 if first else at_once, dim=2):
            vae.decoder(
                vae.post_quant_conv(piece), feat_cache=memory, feat_idx=[0], first_chunk=first
            )

    decode(latents[:, :, :1], first=True)
    return job.timed(lambda: decode(latents))["seconds"]


def run_loop(job: Job, *, layout: str, steps: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Latents, pictures and file together: the decoder on a stream of its own, beside the next."""
    pipeline, inputs = stream(job, layout, steps, **more)
    if not job.tiny:
        use_channels_last(pipeline.vae)
    is_helios, chunks = layout == "helios", 3 if job.tiny else 20
    words, state = job.words(), _begun(job, pipeline, inputs)
    side = torch.cuda.Stream() if job.device.type == "cuda" else None
    decoder = StreamingDecoder(pipeline.vae)
    left = WARM_UPS + chunks

    def make() -> Tensor | None:
        nonlocal state, left
        if not left:
            return None
        left -= 1
        # The engine waits for a chunk's end, so another stream may read it.
        latents, state = _finished(pipeline.chunk(inputs, state, words))
        return latents

    def decode(latents: Tensor) -> Any:
        with torch.no_grad(), torch.cuda.stream(side):
            fresh = StreamingDecoder(pipeline.vae) if is_helios else decoder
            return uint8_frames(fresh.push(latents))[0].cpu().numpy()

    depths, marks, written = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "loop.mp4"
        sink = open_live(
            ["file"], output=output, width=job.size[0], height=job.size[1], fps=24, recipe={},
            chunk_frames=job.pictures(layout), metadata=False,
        )  # fmt: skip
        with Conveyor(make, decode, ahead=2) as conveyor:
            for frames in conveyor:
                sink.write(frames)
                written += len(frames)
                depths.append(max(conveyor.depths))
                marks.append((time.perf_counter(), len(frames), job.peak().get("peak_bytes", 0)))
                conveyor.advance()
        sink.close()
        size = output.stat().st_size
    measured = marks[WARM_UPS:]
    seconds = measured[-1][0] - measured[0][0]
    return {
        "fps": sum(count for _, count, _ in measured[1:]) / seconds,
        "seconds": seconds / (len(measured) - 1),
        "frames": written,
        "bytes": size,
        "deepest_queue": max(depths),
        "growth_bytes": measured[-1][2] - measured[0][2],
        **job.peak(),
    }


def _helios(*steps: int, **more: Any) -> dict[str, Any]:
    return {"layout": "helios", "steps": steps, **more}


def _osp(*steps: int, **more: Any) -> dict[str, Any]:
    return {"layout": "osp", "steps": steps, **more}


# The most telling first: time may run out.
PARTS = {
    "loop": Part("Helios [1,1,1], whole loop to a file", run_loop, _helios(1, 1, 1), 150),
    "diffusers": Part("diffusers, Helios [1,1,1]", run_diffusers, {"steps": (1, 1, 1)}, 150),
    "helios": Part("Helios [1,1,1]", run_chunks, _helios(1, 1, 1), 100),
    "helios-fp8": Part("Helios [1,1,1], FP8", run_chunks, _helios(1, 1, 1, fp8=True), 120),
    "osp-3": Part("osp C=3 [1,1,2]", run_chunks, _osp(1, 1, 2, context=3), 120),
    "osp-9": Part("osp C=9 [1,1,2]", run_chunks, _osp(1, 1, 2), 120),
    "osp-9-fp8": Part("osp C=9 [1,1,2], FP8", run_chunks, _osp(1, 1, 2, fp8=True), 140),
    "decode": Part("decode bf16", run_decode, {"dtype": "bfloat16"}, 40),
    "decode-last": Part(
        "decode bf16, channels last", run_decode, {"dtype": "bfloat16", "channels_last": True}, 40
    ),
    "decode-fp32": Part("decode fp32 (TF32)", run_decode, {"dtype": "float32"}, 60),
    "decode-two": Part(
        "decode bf16, channels last, 2 latents a call", run_decode,
        {"dtype": "bfloat16", "channels_last": True, "at_once": 2}, 40,
    ),
    "decode-eight": Part(
        "decode bf16, channels last, 8 latents a call", run_decode,
        {"dtype": "bfloat16", "channels_last": True, "at_once": 8}, 60,
    ),
    "rates": Part("products and attention", run_rates, {}, 30),
    "passes": Part("Helios passes", run_passes, {}, 90),
    "passes-eager": Part("Helios passes, eager", run_passes, {"compiled": False}, 70),
    "passes-native": Part("Helios passes, plain SDPA", run_passes, {"backend": "native"}, 90),
    "passes-fused": Part("Helios passes, fused QKV", run_passes, {"fused": True}, 90),
    "passes-fp8": Part("Helios passes, FP8", run_passes, {"fp8": True}, 100),
    "helios-two": Part("Helios [2,2,2]", run_chunks, _helios(2, 2, 2), 120),
    "osp-one": Part("osp C=9 [4]", run_chunks, _osp(4), 150),
    "loop-fp8": Part("Helios, FP8, whole loop", run_loop, _helios(1, 1, 1, fp8=True), 150),
    "small": Part("osp 1.3B C=9 [1,1,2]", run_chunks, _osp(1, 1, 2, small=True), 80),
    "small-graphs": Part(
        "osp 1.3B C=9 [1,1,2], CUDA graphs", run_chunks, _osp(1, 1, 2, small=True, graphs=True), 150
    ),
    "decode-compiled": Part(
        "decode bf16, compiled", run_decode, {"dtype": "bfloat16", "compiled": True}, 240
    ),
}  # fmt: skip


def measure(name: str, job: Job, timeout: float | None) -> dict[str, Any]:
    """One part in a process of its own; what went wrong where it did not end well."""
    if job.tiny:
        # Graphs of another part would count as this one's.
        torch.compiler.reset()
        return PARTS[name].run(job, **PARTS[name].settings)
    command = [sys.executable, __file__, "--child", name, "--runs", str(job.runs)]
    command += ["--size", f"{job.size[0]}x{job.size[1]}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {timeout:.0f} s"}
    if done.returncode:
        _say(done.stderr)
        return {"error": (done.stderr.strip().splitlines() or ["no word"])[-1][:300]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """All results that are there, in Markdown."""
    yield "|part|fps|s a chunk|peak GB|more|"
    yield "|---" * 5 + "|"
    for name, part in PARTS.items():
        row = found.get(name, {})
        if "error" in row:
            yield f"|{part.title}|failed||| {row['error']}|"
        elif row:
            more = {
                key: value for key, value in row.items()
                if key not in ("fps", "seconds", "best", "peak_bytes")
            }  # fmt: skip
            told = ", ".join(f"{key} {value:.4g}" for key, value in more.items())
            cells = (row.get("fps"), row.get("seconds"), row.get("peak_bytes", 0) / 1e9 or None)
            shown = "|".join("" if cell is None else f"{cell:.3g}" for cell in cells)
            yield f"|{part.title}|{shown}|{told}|"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return width, height


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="of the results", default=Path("live.json"))
    parser.add_argument("--table", action="store_true", help="only show what is in that file")
    parser.add_argument("--parts", nargs="+", choices=PARTS)
    parser.add_argument("--runs", type=int, default=10, help="that count")
    parser.add_argument("--size", type=_size, default=(640, 384), help="multiples of 64")
    parser.add_argument("--seconds", type=float, help="begin nothing that may end later")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    job = Job(options.tiny, options.runs, (64, 64) if options.tiny else options.size)
    if options.child is not None:
        part = PARTS[options.child]
        sys.stdout.write("\n" + json.dumps(part.run(job, **part.settings)) + "\n")
        return
    found: dict[str, dict[str, Any]] = {}
    if options.json.is_file():
        found = json.loads(options.json.read_text())
    for name in () if options.table else options.parts or PARTS:
        if name in found and "error" not in found[name]:
            continue
        left = None
        if options.seconds is not None:
            left = options.seconds - (time.perf_counter() - _STARTED)
            if left < PARTS[name].seconds:
                _say(f"{name}: no time left for it")
                continue
        found[name] = measure(name, job, left)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
        _say(f"{name}: {json.dumps(found[name])}")
    sys.stdout.write("\n".join([*table(found), ""]))


if __name__ == "__main__":
    main()
