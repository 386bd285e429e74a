"""What one command costs as a process: time on the wall, time of the processors, and memory.

A process begins with the peak memory of the one that started it, so the command is started by a
small process in between, and not by whoever has loaded a model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osp_cli.errors import RuntimeFailureError

# The goals are stated for a laptop's share.
NUM_CORES = 2


def measure(command: Sequence[str], *, folder: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """Run `command` on two cores and tell what it took.

    Args:
        command: what to run; its stdout is kept.
        folder: where.
        env: the whole environment.

    Returns:
        `seconds` on the wall, `cpu_seconds`, `peak_bytes` (None where the system does not tell),
        `cores` and `stdout`.

    Raises:
        RuntimeFailureError: it failed.
    """
    # The package that measures may be another than the one that is measured.
    here = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", _START, here, *command],
        cwd=folder,
        env=dict(env),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise RuntimeFailureError(f"{' '.join(command[:4])} ... failed: {last}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


_START = """
import json, sys
sys.path.insert(0, sys.argv[1])
from osp_cli.evaluation.footprint import run
print(json.dumps(run(sys.argv[2:])))
"""


def run(command: Sequence[str]) -> dict[str, Any]:
    """The same from within the small process."""
    cores = _keep_to(NUM_CORES)
    started = time.perf_counter()
    child = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": str(cores)}, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    stdout = child.stdout.read()
    code = child.wait()
    seconds = time.perf_counter() - started
    if code:
        raise SystemExit(code)
    return {"seconds": seconds, **_used(), "cores": cores, "stdout": stdout.decode("utf-8")}


def _keep_to(num_cores: int) -> int:
    """Leave this process and its children only so many cores; how many they have then."""
    if not hasattr(os, "sched_setaffinity"):
        return min(num_cores, os.cpu_count() or 1)
    cores = sorted(os.sched_getaffinity(0))[:num_cores]
    os.sched_setaffinity(0, cores)
    return len(cores)


def _used() -> dict[str, Any]:
    """Of all children that have ended: processor time, and the peak of the largest."""
    try:
        import resource
    except ImportError:  # Windows
        return {"cpu_seconds": None, "peak_bytes": None}
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Counted in bytes on a Mac and in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * unit}
