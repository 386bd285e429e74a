"""What machine this is."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch

from osp_cli.errors import InvalidRequestError
from osp_cli.host import usable_memory
from osp_cli.runtime.strategy import Machine

# Where nothing can be read, nothing is refused.
_UNKNOWN = 1 << 62


def resolve_device(name: str) -> torch.device:
    """The device of `--device`; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        InvalidRequestError: the named device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        here = f"--device {name} is not one of the {count} CUDA devices here"
        raise InvalidRequestError(
            here
            if count
            else f"--device {name}: this machine has no CUDA device that torch can use",
            hint="leave --device out, or use --device cpu",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InvalidRequestError("this machine has no MPS device", hint="use --device cpu")
    return device


def check_gpus(count: int, asked: str, device: torch.device) -> None:
    """Refuse more devices than there are.

    Args:
        count: of `--gpus`.
        asked: of `--device`; processes on the CPU must be asked for.
        device: that it was resolved to.

    Raises:
        InvalidRequestError: the hint tells how many there are.
    """
    if count == 1 or asked == "cpu":
        return
    if device.type == "cpu":
        raise InvalidRequestError(
            f"--gpus {count}: this machine has no CUDA device that torch can use",
            hint=f"leave out --gpus; --device cpu would share the work among {count} processes",
        )
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if count > there:
        raise InvalidRequestError(
            f"--gpus {count} asks for more graphics cards than this machine has",
            hint=f"there {'is 1' if there == 1 else f'are {there}'}: "
            + ("leave out --gpus" if there == 1 else f"--gpus {there}"),
        )


def available_memory(device: torch.device) -> int:
    """Bytes that may still be taken on the device; on the CPU the container's limit counts."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return available_ram()


def available_ram() -> int:
    """Bytes of the host that may still be taken, within a container's limit."""
    found = usable_memory()
    return _UNKNOWN if found is None else found


def offload_folder() -> Path:
    """Where weights are put for the time of a run: beside the installed ones."""
    from osp_cli.registry import weights_home

    return weights_home().parent / "offload"


def this_machine(device: torch.device, *, measure: bool = False) -> Machine:
    """What there is to run on.

    Args:
        device: as `resolve_device` gave it.
        measure: also how quick it is, which takes a tenth of a second.
    """
    folder = offload_folder()
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    speed = None
    if measure:
        speed = measured_speed(device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    return Machine(
        device=str(device),
        device_bytes=available_memory(device),
        ram_bytes=available_ram(),
        disk_bytes=shutil.disk_usage(there).free,
        speed=speed,
    )


def measured_speed(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.1) -> float:
    """Multiplications and additions a second of large products on the device.

    Args:
        device: where to measure.
        dtype: of the numbers.
        seconds: how long to measure; on a device with its own queue, at least three products.
    """
    edge = 512 if device.type == "cpu" else 4096
    left = torch.randn(edge, edge, device=device).to(dtype)
    right = left.T.contiguous()
    wait = (lambda: None) if device.type == "cpu" else torch.accelerator.synchronize
    # The first product starts threads and kernels.
    best = 0.0
    ends = time.perf_counter() + seconds
    count = 0
    while count < 4 or time.perf_counter() < ends:
        started = time.perf_counter()
        left @ right
        wait()
        best = max(best, 2 * edge**3 / (time.perf_counter() - started)) if count else best
        count += 1
    return best
