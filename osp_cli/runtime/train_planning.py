"""The plan of a training run, by arithmetic on the card, the headers of weight files and the data.

Stages come one after the other and leave nothing behind: clips and captions are encoded, then is
trained; samples are made in between, while all that is trained stays. Of weights that do not fit,
the least number of blocks waits on the host that lets the rest fit, which costs no precision; what
does is never chosen here, only named where nothing else would do.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osp_cli.errors import InvalidRequestError, WontFitError
from osp_cli.models.lora_targets import Geometry, count_parameters
from osp_cli.models.safetensors_header import read_header
from osp_cli.runtime.activations import activations, clip_encoding, reading
from osp_cli.runtime.devices import resolve_device, this_machine
from osp_cli.runtime.sizes import PartSize, TransformerShape, part_sizes, transformer_shape
from osp_cli.runtime.strategy import HOST_BYTES, Machine
from osp_cli.runtime.train_memory import (
    Step,
    host_bytes,
    step_operations,
    step_parts,
    stored_block,
)
from osp_cli.train_plan import TrainPlan
from osp_cli.train_request import TrainRequest
from osp_cli.training.dataset.cache import cache_home
from osp_cli.training.dataset.entries import DatasetReport

_DRIVER_BYTES = 600 * 2**20
_FRAGMENTS = 1.05
# Bytes a second from page-locked memory to a device.
_PINNED = 20e9
# Channels of the conditioner's rows as they are kept: Qwen2.5-VL-7B's, umT5's.
_ROW_CHANNELS = {"qwen2.5-vl-released": 3584, "qwen2.5-vl": 3584, "umt5": 4096}
# Of the speed of large products, what a step reaches.
_EFFICIENCY = 0.5
_SMALL_BASE = 2 * 10**9
# On the CPU, of what comes and goes in a step: freed small pieces stay with the process. Training
# osp-mini takes two to three and a half times what is live.
_HEAP = 3.3
_MOST_HEAP = 10**9


@dataclass(frozen=True, slots=True)
class _Shapes:
    """The samples that are trained on: the largest, and how many there are of each shape."""

    size: tuple[int, int]
    frames: int
    counts: Mapping[tuple[tuple[int, int], int], int]
    windows: Mapping[tuple[tuple[int, int], int], int]


@dataclass(frozen=True, slots=True)
class _Way:
    """One way of training: what of it waits, and what that takes."""

    swap_blocks: int
    parts: Mapping[str, int]
    stages: Mapping[str, int]
    ram: int
    encode_tiling: bool
    sample_tiling: bool
    streamed: tuple[str, ...]
    sharded: bool

    @property
    def peak(self) -> int:
        return max(self.stages.values())


def plan_training(
    request: TrainRequest,
    report: DatasetReport | None = None,
    *,
    machine: Machine | None = None,
    weights: Path | None = None,
    cache_free: int | None = None,
    output_free: int | None = None,
) -> TrainPlan:
    """What this run will compute and need, and the best way in which it fits the machine.

    Args:
        request: settled.
        report: of the data; None plans for clips as the request describes them, and no number of
            steps beyond its own.
        machine: what there is; None looks at this one, its disks and the installed weights.
        weights: folder of the base, of which only headers are read; None plans by the card.
        cache_free, output_free: bytes free where encoded clips and checkpoints go; None is not
            checked.

    Raises:
        WontFitError: it fits in no way that is allowed; the hint names one that would.
        InvalidRequestError: the device lacks what was asked for, or nobody knows the base's shape.
    """
    if machine is None:
        machine = this_machine(resolve_device(request.device), measure=True)
        weights = weights or request.spec.find_weights()
        cache_free = _free(request.cache_dir or cache_home())
        output_free = _free(request.output)
    planner = _Planner(request, report, machine, weights)
    ways = list(planner.ways())
    fitting = [way for way in ways if planner.fits(way)]
    if not fitting:
        raise planner.wont_fit(ways)
    plan = planner.plan(fitting[0])
    _check_disk(plan, request, cache_free, output_free)
    return plan


class _Planner:
    """Figures of one request that all its ways share."""

    def __init__(
        self,
        request: TrainRequest,
        report: DatasetReport | None,
        machine: Machine,
        weights: Path | None,
    ) -> None:
        self.request, self.report, self.weights = request, report, weights
        self.whole = machine
        self.machine = _limited(machine, request)
        self.spec = spec = request.spec
        self.dtype = spec.dtypes["transformer"] if request.dtype == "auto" else request.dtype
        if request.full:
            # All that is trained is in single precision.
            self.dtype = "float32"
        if request.quant == "fp8" and machine.kind == "mps":
            raise InvalidRequestError(
                "--quant fp8 does not work on Apple GPUs, which lack the type"
            )
        shape = transformer_shape(spec, weights)
        self.sizes = part_sizes(spec, weights, {**spec.dtypes, "transformer": self.dtype})
        if shape is None or "transformer" not in self.sizes:
            raise InvalidRequestError(f"nothing tells how large {spec.name} is, install it first")
        self.shape: TransformerShape = shape
        self.transformer: PartSize = self.sizes["transformer"]
        self.shapes = _shapes(request, report)
        cell = 2 * spec.scale_factor_spatial
        latent_frames = 1 + (self.shapes.frames - 1) // spec.scale_factor_temporal
        width, height = self.shapes.size
        per_frame = (height // cell) * (width // cell)
        self.clip_tokens = latent_frames * per_frame
        seen = min(latent_frames, request.latent_frames or latent_frames)
        # Of what one step looks at.
        self.tokens = seen * per_frame
        self.rows = spec.max_sequence_length
        if "image_adapter" in spec.parts:
            self.rows += (
                math.prod(self.shapes.size)
                // (spec.scale_factor_spatial * spec.image_token_patch) ** 2
            )
        self.trained = self._count_trained()
        self.data_processes = request.gpus // request.context_parallel

    def ways(self) -> Iterator[_Way]:
        """All that are allowed; such that cost less time first."""
        request, machine = self.request, self.machine
        shares = (
            request.gpus > 1
            and machine.kind == "cuda"
            and request.quant == "none"
            and request.swap_blocks <= 0
            # A small base is quicker whole.
            and self.transformer.bytes > _SMALL_BASE
        )
        yield self._way(max(0, request.swap_blocks), sharded=shares)
        can_swap = (
            request.swap_blocks < 0
            and machine.kind == "cuda"
            and request.grad_checkpoint
            and not (request.full or shares)
        )
        # Up to two are on the device anyway.
        for count in range(3, self.shape.layers + 1) if can_swap else ():
            yield self._way(count, sharded=False)

    def fits(self, way: _Way) -> bool:
        """Whether the machine has all that it needs."""
        return way.peak <= self.machine.device_bytes and way.ram <= self.machine.ram_bytes

    def _way(self, swap_blocks: int, *, sharded: bool) -> _Way:
        request = self.request
        swap_blocks = min(swap_blocks, self.shape.layers)
        step = Step(
            tokens=-(-self.tokens // request.context_parallel),
            samples=request.batch_size,
            rows=self.rows,
            trained=self.trained,
            processes=request.gpus if sharded else 1,
        )
        parts = step_parts(
            request,
            self.transformer,
            self.shape,
            step,
            dtype=self.dtype,
            swap_blocks=swap_blocks,
        )
        waiting = host_bytes(
            request, self.transformer, self.shape, step, dtype=self.dtype, swap_blocks=swap_blocks
        )
        if self.machine.kind == "cpu":
            # All of it is one memory.
            live = sum(parts[name] for name in ("inputs", "block", "rest"))
            parts["rest"] += min(int((_HEAP - 1) * live), _MOST_HEAP) + waiting
        encode, encode_tiling, streamed = self._encoding()
        samples, sample_tiling = self._sampling(parts)
        stages = {"encode": encode, "train": sum(parts.values())}
        if request.sample_every:
            stages["samples"] = samples
        return _Way(
            swap_blocks=swap_blocks,
            parts=parts,
            stages={name: self._with_overhead(size) for name, size in stages.items()},
            ram=self._ram(waiting),
            encode_tiling=encode_tiling,
            sample_tiling=sample_tiling,
            streamed=streamed,
            sharded=sharded,
        )

    def _encoding(self) -> tuple[int, bool, tuple[str, ...]]:
        """Bytes while clips and captions are encoded, in tiles or not, and what comes in pieces.

        Of the ways that fit the first, else the least: on the CPU, what lies in its files as it is
        computed with can be dropped and read again.
        """
        sizes, spec = self.sizes, self.spec
        vae = sizes["vae"].bytes if "vae" in sizes else 0
        clip = clip_encoding(spec, self.shapes.size, self.shapes.frames)
        text = sizes.get("conditioner")
        told = sum(sizes[name].bytes for name in ("conditioner", "image_encoder") if name in sizes)
        read = reading() if text is not None and not spec.embedded else 0
        less = told
        if text is not None and self.machine.kind == "cuda":
            # Leaf by leaf; the table of words is the largest.
            less = told - text.bytes + text.largest + text.outside
        elif text is not None and self.machine.kind == "cpu":
            less = told - text.bytes * text.lazy
        ways = [
            (vae + weights + max(clip[tiling], read), bool(tiling), weights)
            for weights in (told, less)
            for tiling in (0, 1)
        ]
        size, tiling, weights = next(
            (way for way in ways if self._has_room(way[0])), min(ways, key=lambda way: way[0])
        )
        in_pieces = weights < told and self.machine.kind == "cuda"
        return size, tiling, ("conditioner",) if in_pieces else ()

    def _sampling(self, parts: Mapping[str, int]) -> tuple[int, bool]:
        """Bytes while samples are made beside all that is trained, and whether in tiles."""
        need = activations(
            self.spec,
            self.shape,
            size=self.shapes.size,
            num_frames=self.shapes.frames,
            tokens=self.clip_tokens,
            dtype=self.dtype,
            passes_per_step=1,
            cache="none",
            gpus=self.request.gpus,
        )
        stays = parts["weights"] + parts["adapter"] + parts["optimizer"]
        decode = stays + (self.sizes["vae"].bytes if "vae" in self.sizes else 0)
        tiling = not self._has_room(decode + need.decode)
        decode += need.decode_tiled if tiling else need.decode
        return max(stays + need.sampling, decode), tiling

    def _has_room(self, size: int) -> bool:
        return self._with_overhead(size) <= self.machine.device_bytes

    def _with_overhead(self, size: float) -> int:
        beside = HOST_BYTES if self.machine.kind == "cpu" else _DRIVER_BYTES
        return int(size * _FRAGMENTS) + beside

    def _ram(self, waiting: int) -> int:
        if self.machine.kind == "cpu":
            # Weights and results are counted by stages already.
            return HOST_BYTES
        made = 0 if self.transformer.lazy else self.transformer.bytes
        copied = max((part.bytes for part in self.sizes.values() if not part.lazy), default=0)
        return HOST_BYTES + 10**9 + max(waiting + made, copied)

    def _count_trained(self) -> int:
        request = self.request
        count = self.transformer.parameters if request.full else 0
        if not request.full:
            shape = self.shape
            image = shape.width if self.spec.pipeline == "wan-i2v" else None
            geometry = Geometry(shape.layers, shape.width, shape.ffn, image)
            count = count_parameters(geometry, request.targets, request.rank)
        if request.train_adapter:
            count += sum(map(self._numbers_in, ("adapter", "image_adapter")))
        return count

    def _numbers_in(self, part: str) -> int:
        """Numbers of a folder of the weights, by its files, else by the card."""
        if self.weights is None:
            card = self.spec.architecture
            return 0 if card is None else card.parameters.get(part, 0)
        return sum(
            entry.count
            for path in (self.weights / part).glob("*.safetensors")
            for entry in read_header(path).entries.values()
        )

    def plan(self, way: _Way) -> TrainPlan:
        """The plan of one way."""
        request = self.request
        batch = request.batch_size * request.accumulate * self.data_processes
        per_epoch = sum(-(-count // batch) for count in self.shapes.counts.values())
        steps = request.epochs * per_epoch if request.max_steps is None else request.max_steps
        epochs = request.epochs
        if request.max_steps is not None and per_epoch:
            epochs = -(-steps // per_epoch)
        return TrainPlan(
            model=self.spec.name,
            mode=request.mode,
            device=self.machine.device,
            dtype=self.dtype,
            quant=request.quant,
            full=request.full,
            rank=request.rank,
            alpha=request.alpha,
            targets=request.targets,
            trained_parameters=self.trained,
            num_windows=sum(self.shapes.counts.values()),
            num_tokens=self.tokens,
            steps=steps,
            epochs=epochs,
            batch=batch,
            processes=request.gpus,
            context_parallel=request.context_parallel,
            sharded=way.sharded,
            grad_checkpoint=request.grad_checkpoint,
            swap_blocks=way.swap_blocks,
            offload_activations=request.offload_activations,
            encode_tiling=way.encode_tiling,
            sample_tiling=way.sample_tiling,
            streamed=way.streamed,
            weights_bytes=way.parts["weights"],
            expected_peak_bytes=way.peak,
            expected_parts=dict(way.parts),
            expected_stage_bytes=dict(way.stages),
            expected_ram_bytes=way.ram,
            device_bytes=self.machine.device_bytes,
            cache_bytes=self._cache_bytes(),
            # Parameters, their two moments, and their average.
            checkpoint_bytes=self.trained * (12 + 4 * bool(request.ema)) + 2**16,
            expected_seconds=self._seconds(steps, way),
        )

    def _cache_bytes(self) -> int:
        """Of all windows: latents, the picture's, and what the conditioner says, with and without
        words."""
        spec = self.spec
        rows = 2 * 2 * self.rows * self._row_channels()
        total = 0
        for (size, frames), count in self.shapes.windows.items():
            cells = (size[0] // spec.scale_factor_spatial) * (size[1] // spec.scale_factor_spatial)
            latent_frames = 2 + (frames - 1) // spec.scale_factor_temporal
            total += count * (2 * spec.latent_channels * latent_frames * cells + rows + 2**12)
        return total

    def _row_channels(self) -> int:
        if self.weights is not None:
            path = self.weights / "text_encoder" / "config.json"
            try:
                config = json.loads(path.read_text("utf-8"))
            except (OSError, ValueError):
                config = {}
            inner = config.get("text_config") or config
            found = inner.get("hidden_size") or inner.get("d_model")
            if isinstance(found, int):
                return found
        return _ROW_CHANNELS.get(self.spec.conditioner, 4096)

    def _seconds(self, steps: int, way: _Way) -> float | None:
        if self.machine.speed is None or not steps:
            return None
        request = self.request
        samples = request.batch_size * request.accumulate
        one = step_operations(request, self.transformer, self.shape, self.tokens, self.rows)
        compute = one / request.context_parallel / (_EFFICIENCY * self.machine.speed)
        moved = 2 * way.swap_blocks * stored_block(request, self.transformer, self.shape) / _PINNED
        passes = samples * max(compute, moved / request.batch_size)
        return float(f"{steps * passes:.3g}")

    def wont_fit(self, ways: list[_Way]) -> WontFitError:
        """The error with the figures of the least demanding way, and what else would do."""
        least = min(ways, key=lambda way: (not self._fits_device(way), way.peak, way.ram))
        machine, request = self.machine, self.request
        if not self._fits_device(least):
            stage = max(least.stages, key=lambda name: least.stages[name])
            where = "memory" if machine.kind == "cpu" else f"{machine.device}'s memory"
            needed, free, doing = least.peak, machine.device_bytes, f" {_DOING[stage]}"
            limit = request.max_ram if machine.kind == "cpu" else request.max_vram
        else:
            where, needed, free, doing = "the computer's memory", least.ram, machine.ram_bytes, ""
            limit = request.max_ram
        return WontFitError(
            f"{request.model} needs about {needed / 1e9:.1f} GB of {where}{doing}, "
            f"{free / 1e9:.1f} GB are {'allowed' if limit == free else 'free'}",
            hint=self._way_out(),
        )

    def _fits_device(self, way: _Way) -> bool:
        return way.peak <= self.machine.device_bytes

    def _way_out(self) -> str:
        """Flags of the first way that would fit; what is computed exactly comes first."""
        for flags, changes in _smaller(self.request, self.shapes):
            try:
                smaller = replace(self.request, **changes)
            except InvalidRequestError:
                continue
            # Other sizes make other windows of the same clips.
            keeps_shape = not changes.keys() & {"width", "height", "num_frames"}
            report = self.report if keeps_shape else None
            other = _Planner(smaller, report, self.whole, self.weights)
            for way in other.ways():
                if other.fits(way):
                    return f"{_with_swap(flags, way, changes)} would fit"
        small = self.spec.embedded or self.request.model == "osp-mini"
        return "nothing smaller fits either" + ("" if small else "; --model osp-mini would")


_DOING = {
    "encode": "to encode clips and captions",
    "train": "to train",
    "samples": "to make samples",
}


def _with_swap(flags: str, way: _Way, changes: Mapping[str, Any]) -> str:
    return f"{flags} --swap-blocks {way.swap_blocks}".strip() if "swap_blocks" in changes else flags


def _limited(machine: Machine, request: TrainRequest) -> Machine:
    """What each process has of the machine, within the bounds that the user set."""
    ram = min(machine.ram_bytes, request.max_ram or machine.ram_bytes) // request.gpus
    device = machine.device_bytes
    if machine.kind == "cpu":
        device = ram = min(device // request.gpus, ram)
    elif request.max_vram is not None:
        device = min(device, request.max_vram)
    return replace(machine, device_bytes=device, ram_bytes=ram)


def _shapes(request: TrainRequest, report: DatasetReport | None) -> _Shapes:
    asked = ((request.width, request.height), request.num_frames)
    if report is None or not report.windows:
        return _Shapes(*asked, {}, {})
    counts: Counter[tuple[tuple[int, int], int]] = Counter()
    windows: Counter[tuple[tuple[int, int], int]] = Counter()
    for window in report.windows:
        counts[window.size, window.num_frames] += window.entry.repeats
        windows[window.size, window.num_frames] += 1
    size, frames = max(counts, key=lambda shape: math.prod(shape[0]) * shape[1])
    return _Shapes(size, frames, counts, windows)


def _smaller(request: TrainRequest, shapes: _Shapes) -> Iterator[tuple[str, dict[str, Any]]]:
    """What else might be asked for: flags, and what they change."""
    same: list[tuple[str, dict[str, Any]]] = [("", {})]
    if not request.grad_checkpoint:
        same = [("--grad-checkpoint", {"grad_checkpoint": True})]
    swap = {"swap_blocks": -1} if request.swap_blocks >= 0 and not request.full else {}
    free = [*same, *[(flags, {**changes, **swap}) for flags, changes in same if swap]]
    ways = list(free)
    if request.quant == "none" and not request.full and not request.spec.whole_weights:
        ways += [(f"--quant fp8 {flags}".strip(), {**c, "quant": "fp8"}) for flags, c in free]
    if not request.offload_activations and request.grad_checkpoint:
        ways += [
            (f"{flags} --offload-activations".strip(), {**c, "offload_activations": True})
            for flags, c in ways
        ]
    yield from ((flags, changes) for flags, changes in ways if changes)
    if request.batch_size > 1:
        batch = {"batch_size": 1, "accumulate": request.batch_size * request.accumulate}
        told = f"--batch-size 1 --accumulate {batch['accumulate']}"
        yield from ((f"{told} {flags}".strip(), {**c, **batch}) for flags, c in ways)
    others = [
        (f"--frames {frames}", {"num_frames": frames})
        for frames in (49, 33, 17, 5)
        if frames < min(shapes.frames, request.num_frames)
    ]
    unit = request.spec.multiple_of
    for share in (0.75, 0.5, 0.25):
        width, height = (max(unit, int(side * share) // unit * unit) for side in shapes.size)
        few = {"num_frames": min(17, request.num_frames)} if share < 0.5 else {}
        told = f"--size {width}x{height}" + (" --frames 17" if few else "")
        others.append((told, {"width": width, "height": height, **few}))
    for told, made in others:
        yield from ((f"{told} {flags}".strip(), {**c, **made}) for flags, c in ways)


def _free(folder: Path) -> int:
    """Bytes on the disk of a folder that may not be there yet."""
    folder = folder.absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return shutil.disk_usage(there).free


def _check_disk(
    plan: TrainPlan, request: TrainRequest, cache_free: int | None, output_free: int | None
) -> None:
    kept = (request.keep + 1) * plan.checkpoint_bytes
    for what, needed, free, hint in (
        ("encoded clips", plan.cache_bytes, cache_free, "--cache-dir names another place"),
        (f"{request.keep + 1} checkpoints", kept, output_free, "--keep 1, or another --out-dir"),
    ):
        if free is not None and needed > free:
            raise WontFitError(
                f"{what} take up to {needed / 1e9:.1f} GB of the disk, "
                f"{free / 1e9:.1f} GB are free",
                hint=hint,
            )
