"""What machine this is."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from osp_cli.errors import InvalidRequestError

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


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


def available_memory(device: torch.device) -> int:
    """Bytes that may still be taken on the device; on the CPU the container's limit counts."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return _available_ram()


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


def _available_ram() -> int:
    """MemAvailable of Linux, else the physical memory; never more than the container allows."""
    available = 0
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    if not available and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [available] if available else []
    for path in _CGROUP_LIMITS:
        if path.exists() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    # Where nothing can be read, nothing is refused.
    return min(limits, default=1 << 62)
