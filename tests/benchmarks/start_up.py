"""Where the time of a default run goes: imports by library, then the run stage by stage.

    python tests/benchmarks/start_up.py --against ../earlier --repeats 5

Runs of the two checkouts alternate, so that a busy machine is busy for both; what is printed are
medians. CPU seconds are user and system time; of wall seconds, believe those of an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("imports", "load", "condition", "sampling", "decode", "encode")
TOP = 12

# Counts the CPU time of every module's own code, without that of the modules it imports. Loaders
# are wrapped and not `-X importtime` read, which leaves out what `importlib.import_module` does.
PROBE = """
import json, sys, time
from collections import Counter
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
own, inner, modules = Counter(), [0.0], Counter()
def count(loader, method):
    real = getattr(loader, method)
    def call(self, subject):
        inner.append(0.0)
        started = time.process_time()
        try:
            return real(self, subject)
        finally:
            spent = time.process_time() - started
            name = getattr(subject, "__name__", None) or subject.name
            own[name.partition(".")[0]] += spent - inner.pop()
            inner[-1] += spent
            modules[name.partition(".")[0]] += method == "exec_module"
    setattr(loader, method, call)
count(SourceFileLoader, "exec_module")
count(ExtensionFileLoader, "create_module")
count(ExtensionFileLoader, "exec_module")
from osp_cli.cli.app import main
code = main(sys.argv[1:])
print("PROBE" + json.dumps([dict(own), dict(modules)]))
sys.exit(code)
"""


def command(checkout: Path, output: Path) -> list[str]:
    """The arguments of the default run."""
    photo = checkout / "presets" / "examples" / "lake.jpg"
    return ["generate", str(photo), "the camera pans left", "--seed", "1", "-y", "-o", str(output)]


def run(checkout: Path, args: list[str]) -> tuple[str, float, float]:
    """What a process prints, its wall seconds and its CPU seconds."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *args], cwd=checkout, env=environment, capture_output=True, text=True
    )
    after, wall = os.times(), time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu = after.children_user + after.children_system
    return done.stdout, wall, cpu - before.children_user - before.children_system


def imports_by_library(checkout: Path, folder: Path) -> dict[str, float]:
    """CPU seconds that each library's modules took in one short run, and how many they were."""
    short = ["--frames", "5", "--steps", "1", "--quiet"]
    printed, _, _ = run(checkout, ["-c", PROBE, *command(checkout, folder / "short.mp4"), *short])
    [line] = [line for line in printed.splitlines() if line.startswith("PROBE")]
    seconds, modules = json.loads(line.removeprefix("PROBE"))
    return {**seconds, "all": sum(seconds.values()), "modules": float(sum(modules.values()))}


def default_run(checkout: Path, folder: Path) -> dict[str, float]:
    """Wall seconds of each stage of the default run, and of the process with its CPU seconds."""
    args = command(checkout, folder / "clip.mp4")
    printed, wall, cpu = run(checkout, ["-m", "osp_cli", *args, "--json"])
    done = json.loads(printed.splitlines()[-1])
    timings = done["timings"]
    return {**timings, "outside": wall - done["seconds"], "wall": wall, "CPU": cpu}


def show(title: str, rows: list[str], results: dict[str, list[dict[str, float]]]) -> None:
    """A table of medians, with the ratio of the first checkout to the second."""
    names = list(results)
    head = "".join(f"{name:>12}" for name in names)
    lines = ["", title, f"{'':18}{head}" + ("   ratio" if names[1:] else "")]
    for row in rows:
        medians = [statistics.median(it.get(row, 0.0) for it in results[name]) for name in names]
        line = f"{row:18}" + "".join(f"{median:12.2f}" for median in medians)
        if len(medians) == 2 and medians[1]:
            line += f"{medians[0] / medians[1]:8.2f}"
        lines.append(line)
    sys.stdout.write("\n".join([*lines, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--imports-only", action="store_true", help="leave out the default run")
    asked = parser.parse_args()
    checkouts = {"here": ROOT}
    if asked.against is not None:
        checkouts["against"] = asked.against.resolve()

    imports, runs = defaultdict(list), defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.repeats):
            for name, checkout in checkouts.items():
                imports[name].append(imports_by_library(checkout, Path(folder)))
                if not asked.imports_only:
                    runs[name].append(default_run(checkout, Path(folder)))
    first = {key for found in imports.values() for key in found[0]} - {"all", "modules"}
    largest = sorted(
        first, key=lambda key: -max(found[0].get(key, 0) for found in imports.values())
    )
    show("CPU seconds of imports", [*largest[:TOP], "all", "modules"], imports)
    if runs:
        show("Wall seconds of the default run", [*STAGES, "outside", "wall", "CPU"], runs)


if __name__ == "__main__":
    main()
