"""What the machine has, told without torch, so that it can be told when torch is broken."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
# What version 1 of control groups writes for "no limit" is a number near 2^63.
_NO_LIMIT = 1 << 60


def total_memory() -> int | None:
    """Bytes of physical memory; None where the system does not tell."""
    if (total := _meminfo("MemTotal")) is not None:
        return total
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def free_memory() -> int | None:
    """Bytes that programs may still take, caches given back; None where the system is silent."""
    return _meminfo("MemAvailable")


def memory_limit() -> int | None:
    """Bytes that the container or session allows; None where nothing is limited."""
    limits = [
        int(text)
        for text in _limits("memory", "memory.max", "memory.limit_in_bytes")
        if text.isdigit() and int(text) < _NO_LIMIT
    ]
    return min(limits, default=None)


def usable_memory() -> int | None:
    """Bytes that this process may still take: free ones, within the container's limit.

    Returns:
        None where the system tells neither.
    """
    found = [] if (free := free_memory()) is None else [free]
    if not found and (total := total_memory()) is not None:
        found = [total]
    for limit, used in zip(
        _limits("memory", "memory.max", "memory.limit_in_bytes"), _used_memory(), strict=False
    ):
        if limit.isdigit() and int(limit) < _NO_LIMIT:
            found.append(max(0, int(limit) - used))
    return min(found, default=None)


def _used_memory() -> Iterator[int]:
    """What each group has taken, without caches of files, in the order of `_limits`."""
    for path in _limit_files("memory", "memory.max", "memory.limit_in_bytes"):
        used = 0
        for name in ("memory.current", "memory.usage_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                used = int((path.parent / name).read_text())
        with contextlib.suppress(OSError, ValueError):
            for line in (path.parent / "memory.stat").read_text().splitlines():
                key, _, value = line.partition(" ")
                if key in ("inactive_file", "active_file"):
                    # Given back as soon as somebody asks.
                    used -= int(value)
        yield max(0, used)


def cpu_quota() -> float | None:
    """Cores' worth of time that the container or session allows; None where all may be used."""
    quotas = []
    for text in _limits("cpu", "cpu.max", "cpu.cfs_quota_us"):
        quota, _, period = text.partition(" ")
        # Version 1 keeps the period in a file of its own; it is hardly ever changed.
        if quota.isdigit() and int(quota) > 0:
            quotas.append(int(quota) / int(period or 100_000))
    return min(quotas, default=None)


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _meminfo(key: str) -> int | None:
    """A line of Linux's memory statistics, in bytes."""
    with contextlib.suppress(OSError, ValueError):
        for line in _MEMINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return int(value.split()[0]) * 1024
    return None


def _limits(controller: str, name: str, old_name: str) -> Iterator[str]:
    """Contents of the files of `_limit_files`."""
    for path in _limit_files(controller, name, old_name):
        with contextlib.suppress(OSError):
            yield path.read_text().strip()


def _limit_files(controller: str, name: str, old_name: str) -> list[Path]:
    """A control group's file that can be read, for the own group and all around it.

    Args:
        controller: as in `memory`.
        name: of the file in version 2 of control groups.
        old_name: of the file in version 1.
    """
    # Inside a container the own group often shows as the root of what can be seen.
    paths = {_CGROUPS / name: None, _CGROUPS / controller / old_name: None}
    with contextlib.suppress(OSError):
        for line in _OWN_CGROUPS.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            own = PurePosixPath(group.lstrip("/"))
            for folder in (own, *own.parents):
                if not controllers:
                    paths[_CGROUPS / folder / name] = None
                elif controller in controllers.split(","):
                    paths[_CGROUPS / controller / folder / old_name] = None
    return [path for path in paths if os.access(path, os.R_OK)]
