"""What a run takes of the host and of the device; for the programs beside this file."""

from __future__ import annotations

import statistics
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")


class HostPeak:
    """Inside, a thread looks at the process's memory again and again. Linux only.

    Attributes:
        anonymous: bytes that no file holds, at the highest point seen; what a machine must have.
        resident: bytes with mapped pages of files, which the system takes back when it needs them.
        before: `anonymous` at the beginning.
    """

    def __init__(self, interval: float = 0.02) -> None:
        self.anonymous = self.resident = 0
        self._look()
        self.before = self.anonymous
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> HostPeak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    @property
    def added(self) -> int:
        """Anonymous bytes above those at the beginning."""
        return self.anonymous - self.before

    def _watch(self) -> None:
        while not self._done.wait(self._interval):
            self._look()

    def _look(self) -> None:
        # Counters that the kernel keeps anyway; `smaps_rollup` walks all pages for the same.
        fields = dict(
            line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line
        )
        self.anonymous = max(self.anonymous, _bytes(fields.get("RssAnon", "0 kB")))
        self.resident = max(self.resident, _bytes(fields.get("VmRSS", "0 kB")))


def _bytes(field: str) -> int:
    """Of `   1234 kB`."""
    return int(field.split()[0]) * 1024


class Measured:
    """Inside, what host and device give; whoever samples tells of each step by `step`.

    Args:
        device: where it is computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._host = HostPeak()
        self._ends: list[float] = []
        self._peak_before = 0

    def __enter__(self) -> Measured:
        if self._cuda:
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats()
        self._host.__enter__()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._host.__exit__()

    def wait(self) -> float:
        """Seconds since the beginning, when all that was asked of the device is done."""
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - self._started

    def step(self) -> None:
        """One step is done; from the first on, peaks are those of sampling alone."""
        self._ends.append(self.wait())
        if self._cuda and len(self._ends) == 1:
            self._peak_before = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()

    def figures(self) -> dict[str, Any]:
        """All of it, in bytes and seconds; the median is that of the steps after the first."""
        found: dict[str, Any] = {
            "host_anonymous": self._host.added,
            "host_resident": self._host.resident,
        }
        if len(self._ends) > 1:
            each = [after - before for before, after in pairwise(self._ends)]
            found |= {"step_seconds": statistics.median(each), "steps": each}
        return found | (self._of_device() if self._cuda else {})

    def _of_device(self) -> dict[str, Any]:
        free, total = torch.cuda.mem_get_info()
        # What was rounded up, and is locked away from everybody else. Not in every release.
        locked = getattr(torch.cuda, "host_memory_stats", dict)()
        return {
            "device": torch.cuda.get_device_name(),
            "peak_allocated": torch.cuda.max_memory_allocated(),
            "peak_reserved": torch.cuda.max_memory_reserved(),
            "peak_before": self._peak_before,
            "device_used": total - free,
            "host_locked": locked.get("allocated_bytes.peak"),
        }
