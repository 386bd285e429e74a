"""Which way of running fits a machine: arithmetic on sizes, so that any card is tried on a laptop.

Ways that compute exactly the same come first. Smaller weights and a tiled decode, which change the
picture a little, are taken where nothing else fits, or where they are half as quick again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from osp_cli.errors import WontFitError
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.activations import Activations
from osp_cli.runtime.sizes import PartSize

# Python, torch and the libraries themselves; what a driver and the allocator keep for themselves.
HOST_BYTES = 500 * 2**20
_DRIVER_BYTES = 600 * 2**20
_FRAGMENTS = 1.05
# Numbers stored as one byte, with their scales.
_STORAGE = {"none": 1.0, "fp8": 0.51, "int8": 0.53, "nf4": 0.30, "gguf": 1.0}
# Bytes a second to the device: from page-locked memory, from other memory, from a disk.
_PINNED, _PAGED, _DISK = 20e9, 6e9, 1.5e9
# Operations a second where nobody measured: modest figures of each kind.
_SPEEDS = {"cuda": 80e12, "mps": 5e12, "cpu": 0.1e12}
_WORTH_A_CHANGE = 1.5
# Torch rounds each page-locked tensor up to a power of two: by half for Wan's layers.
_LOCKED = 1.6
_NOTHING = PartSize(parameters=0, bytes=0, largest=0, outside=0, stored=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there is.

    Attributes:
        device: a torch device's name.
        device_bytes: free on the device; on the CPU the host's.
        ram_bytes: free on the host, a container's limit read.
        disk_bytes: free where weights can be put for the time of a run.
        speed: operations a second of large products; None where nobody measured.
    """

    device: str
    device_bytes: int
    ram_bytes: int
    disk_bytes: int = 1 << 62
    speed: float | None = None

    @property
    def kind(self) -> str:
        """`cuda`, `mps` or `cpu`."""
        return self.device.partition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be computed: see `Plan` for the meaning of the numbers."""

    sizes: Mapping[str, PartSize]
    activations: Activations
    passes: int
    operations: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One way of running.

    Attributes:
        offload: `none`: all parts stay on the device; `model`: each while it is used; `group`: of
            the transformer, block by block; `sequential`: layer by layer; `disk`: block by block
            from the disk.
        quant: how the transformer's weights are stored.
        vae_tiling: encode and decode in tiles.
        pinned: blocks wait in page-locked memory, from where they come quickest.
        streamed: parts that reach the device piece by piece.
        stages: expected peak of each stage on the device, in bytes.
        ram_bytes: of the host that are needed, besides what the system may take back.
        disk_bytes: that are written for the time of the run.
        seconds: of sampling, roughly; only for comparisons.
    """

    offload: str
    quant: str
    vae_tiling: bool
    pinned: bool = False
    streamed: tuple[str, ...] = ()
    stages: Mapping[str, int]
    ram_bytes: int
    disk_bytes: int = 0
    seconds: float = 0.0

    @property
    def peak_bytes(self) -> int:
        """Of the highest stage."""
        return max(self.stages.values())

    @property
    def is_exact(self) -> bool:
        """Computes the very same numbers as when all weights lie on the device."""
        return self.quant in ("none", "gguf") and not self.vae_tiling


def choose(
    work: Work,
    machine: Machine,
    request: GenerateRequest,
    below: Mapping[str, int] | None = None,
) -> Strategy:
    """The best way that fits, of those that the request allows.

    Args:
        work: what is to be computed.
        machine: what there is.
        request: what the user wants.
        below: stages that must need less than so many bytes, since these turned out too many.

    Raises:
        WontFitError: none does; the message has the figures of the smallest, and the hint what
            would help.
    """
    machine = limited(machine, request)
    ways = list(_ways(work, machine, request))
    below = below or {}
    fitting = [way for way in ways if _fits(way, machine, below)]
    if not fitting:
        raise _wont_fit(request, ways, work, machine, below)
    exact = [way for way in fitting if way.is_exact]
    others = [way for way in fitting if not way.is_exact]
    best = exact[0] if exact else others[0]
    quickest = min(others, key=lambda way: way.seconds, default=best)
    if exact and quickest.seconds * _WORTH_A_CHANGE < best.seconds:
        return quickest
    return best


def limited(machine: Machine, request: GenerateRequest) -> Machine:
    """The machine within the bounds that the user set."""
    ram = min(machine.ram_bytes, request.max_ram or machine.ram_bytes)
    device = machine.device_bytes
    if machine.kind == "cpu":
        device = ram = min(device, ram)
    elif request.max_vram is not None:
        device = min(device, request.max_vram)
    return replace(machine, device_bytes=device, ram_bytes=ram)


def _fits(way: Strategy, machine: Machine, below: Mapping[str, int]) -> bool:
    return all(way.stages[name] < below[name] for name in below) and (
        way.peak_bytes <= machine.device_bytes
        and way.ram_bytes <= machine.ram_bytes
        and way.disk_bytes <= machine.disk_bytes
    )


def _ways(work: Work, machine: Machine, request: GenerateRequest) -> Iterator[Strategy]:
    """All ways that are allowed, in the order of preference among equals."""
    offloads = [request.offload]
    if request.offload == "auto":
        # On the CPU nothing is moved anywhere; there, `disk` leaves the weights in their files.
        offloads = (
            ["none", "model", "disk"]
            if machine.kind == "cpu"
            else ["none", "model", "group", "disk"]
        )
        if request.gpus > 1:
            # Each would have its own copy there.
            offloads.remove("disk")
    quants = [request.quant]
    if request.quant == "auto" and work.sizes.get("transformer", _NOTHING).gguf:
        quants = ["gguf"]
    elif request.quant == "auto":
        # Made for the speed of the CPU's cache it is not; no Apple GPU knows its type.
        quants = ["none", "fp8"] if machine.kind == "cuda" else ["none"]
    tilings = [False, True] if request.vae_tiling is None else [request.vae_tiling]
    for tiling in tilings:
        for quant in quants:
            for offload in offloads:
                yield from _ways_of(work, machine, offload, quant, tiling)


def _ways_of(
    work: Work, machine: Machine, offload: str, quant: str, tiling: bool
) -> Iterator[Strategy]:
    sizes = work.sizes
    # Where its files are missing, it is told by whoever loads them.
    transformer = sizes.get("transformer", _NOTHING)
    share = _STORAGE[quant]
    whole = int(transformer.bytes * share)
    # One block computes while the next one arrives.
    pieces = int(2 * transformer.largest * share) + transformer.outside
    if offload == "sequential":
        pieces = transformer.largest + transformer.outside
    keeps_apart = offload in ("group", "sequential", "disk")
    on_device = pieces if keeps_apart else whole
    if machine.kind == "cpu" and keeps_apart:
        # The device is the host: weights in files can be dropped from memory, others cannot.
        on_device = 0 if _is_lazy(transformer, quant) else whole
    conditioner, streamed = _conditioner_bytes(machine, offload, work, tiling=tiling)
    if keeps_apart:
        streamed = ("transformer", *streamed)
    stages = _stages(work, machine, offload, on_device, conditioner, tiling=tiling)
    moved = 0.0 if not keeps_apart or machine.kind == "cpu" else whole
    compute = (work.operations or 0.0) / max(1, work.passes)
    compute /= 0.5 * (machine.speed or _SPEEDS[machine.kind])
    ram = _ram_bytes(sizes, machine, quant)
    way = Strategy(
        offload=offload,
        quant=quant,
        vae_tiling=tiling,
        streamed=streamed,
        stages=stages,
        ram_bytes=ram,
    )

    def timed(rate: float, **changes: Any) -> Strategy:
        return replace(way, seconds=work.passes * max(compute, moved / rate), **changes)

    # What is not as it lies in its file is made on the host, whole, before it goes anywhere.
    waiting = 0 if _is_lazy(transformer, quant) else whole
    if offload == "disk" and machine.kind != "cpu":
        yield timed(_DISK, disk_bytes=whole, ram_bytes=ram + waiting + 2 * transformer.largest)
    elif keeps_apart and machine.kind == "cuda":
        # It is let go of only when all of it has its locked copy.
        yield timed(_PINNED, pinned=True, ram_bytes=ram + waiting + int(_LOCKED * whole))
        # Files that the memory cannot hold are read again in each pass.
        there = waiting > 0 or machine.ram_bytes >= ram + whole
        rate = _PAGED if there else _DISK
        yield timed(rate, ram_bytes=ram + waiting + 2 * transformer.largest)
    elif keeps_apart and machine.kind == "mps":
        yield timed(_PAGED, ram_bytes=ram + whole)
    else:
        yield timed(_PINNED)


def _is_lazy(size: PartSize, quant: str) -> bool:
    """Whether the part's weights stay in their files until they reach the device."""
    return size.lazy and quant == "none"


def _conditioner_bytes(
    machine: Machine, offload: str, work: Work, *, tiling: bool
) -> tuple[int, tuple[str, ...]]:
    """On the device while the prompt is read, and the parts that come in pieces then."""
    sizes = work.sizes
    parts = [sizes[name] for name in ("conditioner", "image_encoder") if name in sizes]
    whole = sum(part.bytes for part in parts)
    conditioner = sizes.get("conditioner")
    if offload == "none" or conditioner is None:
        return whole, ()
    if offload == "model" and machine.kind != "cuda":
        return whole, ()
    if machine.kind == "cpu":
        return 0 if conditioner.lazy else whole, ()
    need = work.activations
    encode = need.condition_tiled if tiling else need.condition
    in_one = int((whole + encode + _vae_bytes(sizes)) * _FRAGMENTS) + _beside(machine)
    if in_one <= machine.device_bytes:
        return whole, ()
    # Leaf by leaf; the table of words is the largest leaf and lies outside of the blocks.
    in_pieces = conditioner.largest + conditioner.outside
    return whole - conditioner.bytes + in_pieces, ("conditioner",)


def _stages(
    work: Work,
    machine: Machine,
    offload: str,
    transformer: int,
    conditioner: int,
    *,
    tiling: bool,
) -> dict[str, int]:
    need, vae = work.activations, _vae_bytes(work.sizes)
    condition = need.condition_tiled if tiling else need.condition
    decode = need.decode_tiled if tiling else need.decode
    beside = _beside(machine)
    if offload == "none":
        weights = transformer + conditioner + vae
        parts = {
            "condition": weights + condition,
            "sampling": weights + need.sampling,
            "decode": weights + decode,
        }
    else:
        parts = {
            "condition": conditioner + vae + condition,
            "sampling": transformer + vae + need.sampling,
            # The transformer has gone by then.
            "decode": vae + decode,
        }
    return {stage: int(size * _FRAGMENTS) + beside for stage, size in parts.items()}


def _beside(machine: Machine) -> int:
    return HOST_BYTES if machine.kind == "cpu" else _DRIVER_BYTES


def _vae_bytes(sizes: Mapping[str, PartSize]) -> int:
    return sizes["vae"].bytes if "vae" in sizes else 0


def _ram_bytes(sizes: Mapping[str, PartSize], machine: Machine, quant: str) -> int:
    """Of the host while weights are on their way to a device of its own."""
    if machine.kind == "cpu":
        # Weights and results are counted by stages already.
        return HOST_BYTES
    # In another precision than stored, a part is made on the host as a whole before it moves.
    copied = [part.bytes for part in sizes.values() if not part.lazy]
    largest = max((part.largest for part in sizes.values()), default=0)
    return HOST_BYTES + 10**9 + max(copied, default=min(largest, 10**9))


def _wont_fit(
    request: GenerateRequest,
    ways: list[Strategy],
    work: Work,
    machine: Machine,
    below: Mapping[str, int],
) -> WontFitError:
    """The error with the figures of the least demanding way, and what else would do."""
    least = min(ways, key=lambda way: (way.peak_bytes, way.ram_bytes))
    device = "memory" if machine.kind == "cpu" else f"{machine.device}'s memory"
    where, needed, free = device, least.peak_bytes, machine.device_bytes
    limit = request.max_ram if machine.kind == "cpu" else request.max_vram
    if needed <= free and least.ram_bytes > machine.ram_bytes:
        where, needed, free = "the computer's memory", least.ram_bytes, machine.ram_bytes
        limit = request.max_ram
    elif needed <= free:
        where, needed, free = "the disk", least.disk_bytes, machine.disk_bytes
        limit = None
    stage = max(least.stages, key=lambda name: least.stages[name])
    doing = f" {_DOING[stage]}" if where == device else ""
    less = ["use fewer --frames", "a smaller --size"]
    less += [] if request.spec.embedded else ["or --model osp-mini"]
    return WontFitError(
        f"{request.model} needs about {needed / 1e9:.1f} GB of {where}{doing}, "
        f"{free / 1e9:.1f} GB are {'allowed' if limit == free else 'free'}",
        hint=_way_out(request, work, machine, below)
        + (", ".join(less) if len(less) > 2 else " or ".join(less)),
    )


_DOING = {
    "condition": "to read the prompt",
    "sampling": "to sample",
    "decode": "to decode the video",
}


def _way_out(
    request: GenerateRequest, work: Work, machine: Machine, below: Mapping[str, int]
) -> str:
    """What the user forbids and would fit, as the beginning of a hint; empty if nothing does."""
    free = replace(request, offload="auto", quant="auto", vae_tiling=None)
    for way in _ways(work, machine, free):
        if _fits(way, machine, below):
            flags = f"--offload {way.offload}"
            flags += "" if way.quant == "none" else f" --quant {way.quant}"
            flags += " --vae-tiling" if way.vae_tiling else ""
            return f"{flags} would fit; else "
    return ""
