"""The plan of a training run, by arithmetic on the card, the headers of weight files and the data.

Stages come one after the other and leave nothing behind: clips and captions are encoded, then is
trained; samples are made in between, while all that is trained stays. Of weights that do not fit,
the least number of blocks waits on the host that lets the rest fit, which costs no precision; what
does is never chosen here, only named where nothing else would do.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from osp_cli.errors import InvalidRequestError, WontFitError
from osp_cli.models.lora_targets import Geometry, count_parameters
from osp_cli.models.safetensors_header import read_header
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
from osp_cli.runtime.train_stages import (
    cached_bytes,
    encoding_bytes,
    sampling_bytes,
    with_overhead,
)
from osp_cli.runtime.train_ways import smaller_requests
from osp_cli.train_plan import TrainPlan
from osp_cli.train_request import TrainRequest
from osp_cli.training.dataset.cache import cache_home
from osp_cli.training.dataset.entries import DatasetReport

# Bytes a second from page-locked memory to a device.
_PINNED = 20e9
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
        waits = request.swap_blocks > 0 or request.offload_activations
        if waits and not request.grad_checkpoint:
            raise InvalidRequestError(
                "--swap-blocks and --offload-activations work with gradient checkpointing alone",
                hint="--grad-checkpoint",
            )
        shape = transformer_shape(spec, weights)
        self.sizes = part_sizes(spec, weights, {**spec.dtypes, "transformer": self.dtype})
        if shape is None or "transformer" not in self.sizes:
            raise InvalidRequestError(f"nothing tells how large {spec.name} is, install it first")
        self.shape: TransformerShape = shape
        self.transformer: PartSize = self.sizes["transformer"]
        self.shapes = _shapes(request, report)
        self.tokens = self._tokens(self.shapes.size, self.shapes.frames)
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
        size, frames = self.shapes.size, self.shapes.frames
        encode, encode_tiling, streamed = encoding_bytes(
            self.spec, self.sizes, size, frames, self.machine
        )
        samples, sample_tiling = sampling_bytes(
            request,
            self.sizes,
            self.shape,
            self.machine,
            size=size,
            num_frames=frames,
            tokens=self._clip_tokens(),
            dtype=self.dtype,
            stays=parts["weights"] + parts["adapter"] + parts["optimizer"],
        )
        stages = {"encode": encode, "train": sum(parts.values())}
        if request.sample_every:
            stages["samples"] = samples
        return _Way(
            swap_blocks=swap_blocks,
            parts=parts,
            stages={name: with_overhead(size, self.machine) for name, size in stages.items()},
            ram=self._ram(waiting),
            encode_tiling=encode_tiling,
            sample_tiling=sample_tiling,
            streamed=streamed,
            sharded=sharded,
        )

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
            cache_bytes=cached_bytes(self.spec, self.weights, self.rows, self.shapes.windows),
            # Parameters, their two moments, and their average.
            checkpoint_bytes=self.trained * (12 + 4 * bool(request.ema)) + 2**16,
            expected_seconds=self._seconds(steps, per_epoch, way),
        )

    def _seconds(self, steps: int, per_epoch: int, way: _Way) -> float | None:
        """Of all steps: what is computed for their samples, or what is moved meanwhile."""
        speed, request = self.machine.speed, self.request
        if speed is None or not per_epoch:
            return None
        moved = 2 * way.swap_blocks * stored_block(request, self.transformer, self.shape) / _PINNED
        epoch = 0.0
        for shape, count in self.shapes.counts.items():
            tokens = self._tokens(*shape)
            one = step_operations(request, self.transformer, self.shape, tokens, self.rows)
            compute = one / request.context_parallel / (_EFFICIENCY * speed)
            epoch += count * max(compute, moved / request.batch_size) / self.data_processes
        return float(f"{steps / per_epoch * epoch:.3g}")

    def _clip_tokens(self) -> int:
        """Of the largest clip as samples have it, whatever a step looks at."""
        width, height = self.shapes.size
        cell = 2 * self.spec.scale_factor_spatial
        frames = 1 + (self.shapes.frames - 1) // self.spec.scale_factor_temporal
        return frames * (height // cell) * (width // cell)

    def _tokens(self, size: tuple[int, int], frames: int) -> int:
        """Of what one step looks at of a clip."""
        latent_frames = 1 + (frames - 1) // self.spec.scale_factor_temporal
        seen = min(latent_frames, self.request.latent_frames or latent_frames)
        cell = 2 * self.spec.scale_factor_spatial
        return seen * (size[1] // cell) * (size[0] // cell)

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
        for flags, changes in smaller_requests(self.request, self.shapes.size, self.shapes.frames):
            # Other sizes make other windows of the same clips.
            keeps_shape = not changes.keys() & {"width", "height", "num_frames"}
            report = self.report if keeps_shape else None
            try:
                smaller = replace(self.request, **changes)
                other = _Planner(smaller, report, self.whole, self.weights)
            except InvalidRequestError:
                continue
            for way in other.ways():
                if other.fits(way):
                    if "swap_blocks" in changes:
                        flags = f"{flags} --swap-blocks {way.swap_blocks}".strip()
                    return f"{flags} would fit"
        small = self.spec.embedded or self.request.model == "osp-mini"
        return "nothing smaller fits either" + ("" if small else "; --model osp-mini would")


_DOING = {
    "encode": "to encode clips and captions",
    "train": "to train",
    "samples": "to make samples",
}


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
        (
            f"{request.keep + 1} checkpoints",
            kept,
            output_free,
            "--keep 1, or --out on another disk",
        ),
    ):
        if free is not None and needed > free:
            # A lack must not vanish in the rounding.
            unit, size = ("GB", 1e9) if needed >= 1e9 else ("MB", 1e6)
            raise WontFitError(
                f"{what} take up to {needed / size:.1f} {unit} of the disk, "
                f"{free / size:.1f} {unit} are free",
                hint=hint,
            )
