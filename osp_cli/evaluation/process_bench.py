"""What the default clip costs as a whole process, and what the package weighs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import osp_cli
from osp_cli.errors import RuntimeFailureError
from osp_cli.evaluation.footprint import measure
from osp_cli.evaluation.mini_bench import Line
from osp_cli.registry import find_model

_PACKAGE = Path(osp_cli.__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent
_MB = 1e6
# In full mode the clip is made so often, and the quickest counts: what else runs on the machine
# only ever adds.
_NUM_RUNS = 3


def process_lines(
    photo: Path, weights: Path, folder: Path, tell: Callable[[str], None], *, full: bool
) -> Iterator[Line]:
    """Time, memory and sizes.

    Args:
        photo: of which the clip is made.
        weights: that are measured.
        folder: to work in.
        tell: is told what is being measured.
        full: several runs, and the size of a wheel.

    Raises:
        RuntimeFailureError: the clip cannot be made.
    """
    yield from _clip_lines(photo, weights, folder, tell, _NUM_RUNS if full else 1)
    size = sum(path.stat().st_size for path in weights.rglob("*") if path.is_file())
    yield Line(
        "weights", "embedded weights", size / _MB, "MB", 32.0, 32.0, more_is_better=False,
        note="all files of their folder",
    )  # fmt: skip
    if full:
        tell("wheel")
        yield _wheel_line(folder)


def _clip_lines(
    photo: Path, weights: Path, folder: Path, tell: Callable[[str], None], num_runs: int
) -> Iterator[Line]:
    code = _package_with(weights, folder)
    runs = []
    for number in range(1, num_runs + 1):
        tell(f"default clip as a process, {number} of {num_runs}")
        runs.append(_one_run(photo, code, folder))
    best = min(runs, key=lambda run: run["seconds"])
    timings = best["done"]["timings"]
    inside = best["seconds"] - timings["imports"] - timings["load"]
    details = {
        "timings": timings,
        "cpu_seconds": best["cpu_seconds"],
        "seconds_of_all_runs": [round(run["seconds"], 2) for run in runs],
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }
    note = f"49 frames, {best['cores']} cores, best of {num_runs}"
    yield Line(
        "clip-process", "default clip, whole process", best["seconds"], "s", 12.0, 12.0,
        more_is_better=False, note=note, details=details,
    )  # fmt: skip
    yield Line(
        "clip-alone", "default clip, without imports and load", inside, "s", 6.0, 6.0,
        more_is_better=False, note=note,
    )  # fmt: skip
    peak = best["peak_bytes"]
    yield Line(
        "memory", "peak memory of that process", None if peak is None else peak / 1e9, "GB",
        1.5, 1.5, more_is_better=False,
        note="this system does not tell" if peak is None else "resident",
    )  # fmt: skip


def _one_run(photo: Path, code: Path, folder: Path) -> dict[str, Any]:
    """One clip by the command line in a process of its own, with the events' last line."""
    paths = os.pathsep.join(part for part in (str(code), os.environ.get("PYTHONPATH")) if part)
    # Nobody's settings but the program's own.
    env = {name: value for name, value in os.environ.items() if not name.startswith("OSP_")}
    command = [sys.executable, "-m", "osp_cli", "generate", str(photo.resolve())]
    output = str(folder / "default.mp4")
    run = measure(
        [*command, "--seed", "1", "--output", output, "-y", "--json", "--quiet"],
        folder=folder,
        env={**env, "PYTHONPATH": paths, "OSP_HOME": str(folder / "home")},
    )
    done = json.loads(run["stdout"].splitlines()[-1])
    return {**run, "done": done}


def _package_with(weights: Path, folder: Path) -> Path:
    """A folder from which `osp_cli` is imported with these weights embedded in it."""
    spec = find_model("osp-mini")
    if spec.find_weights() == weights:
        return _CHECKOUT
    copy = folder / "package"
    ignored = shutil.ignore_patterns("__pycache__", spec.weights)
    shutil.copytree(_PACKAGE, copy / _PACKAGE.name, ignore=ignored)
    if (_CHECKOUT / "presets").is_dir():
        shutil.copytree(_CHECKOUT / "presets", copy / "presets")
    shutil.copytree(weights, copy / _PACKAGE.name / "assets" / spec.weights)
    return copy


def _wheel_line(folder: Path) -> Line:
    """Of the packaged weights, where this is a checkout from which a wheel can be made."""
    size, note = None, ""
    try:
        size = _wheel_bytes(folder / "wheel") / _MB
    except RuntimeFailureError as error:
        note = error.message
    return Line(
        "wheel", "wheel", size, "MB", 60.0, 60.0, more_is_better=False, note=note
    )  # fmt: skip


def _wheel_bytes(folder: Path) -> int:
    if not (_CHECKOUT / "pyproject.toml").is_file():
        raise RuntimeFailureError("not a checkout, from which a wheel could be built")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", str(folder), str(_CHECKOUT)],
        capture_output=True,
        text=True,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        raise RuntimeFailureError(f"no wheel can be built here: {last}")
    return wheels[0].stat().st_size
