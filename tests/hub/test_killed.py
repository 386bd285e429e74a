"""Killed at any moment: the next run goes on, and in the end the bytes are right."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import hub_kit
import pytest
from fake_hub import FakeHub

ROOT = Path(__file__).parents[2]
FILES = {path: data for path, data in hub_kit.REPOS["own/wee"].items() if "/" in path}
TOTAL = sum(map(len, FILES.values()))


class Runs:
    """Runs of the command in processes of their own, and what they leave on the disk."""

    def __init__(self, folder, hub):
        self.folder = folder
        self.environment = {
            **os.environ,
            "OSP_HOME": str(folder / "home"),
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": hub.url,
            "PYTHONPATH": str(ROOT),
        }

    def start(self, *args):
        return subprocess.Popen(
            [sys.executable, str(hub_kit.SCRIPT), "download", "wee", *args],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kept_bytes(self):
        """Of all contents, finished or not."""
        blobs = self.folder / "hf" / "hub" / "models--own--wee" / "blobs"
        if not blobs.is_dir():
            return 0
        total = 0
        for path in blobs.iterdir():
            # A part takes its name under our eyes.
            with contextlib.suppress(FileNotFoundError):
                total += 0 if path.name.endswith(".etags") else path.stat().st_size
        return total

    def wait_for_bytes(self, count, process):
        """Until so many bytes are on the disk, or the run is over."""
        while self.kept_bytes() < count and process.poll() is None:
            time.sleep(0.002)

    def finish(self):
        """Let one run come to its end; gives what it said."""
        process = self.start()
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return out, err

    def check(self):
        """Everything is there, right, and under its name, and nothing else is left."""
        place = self.folder / "home" / "models" / "wee"
        found = {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*.*")}
        assert found == FILES
        names = [p.name for p in (self.folder / "hf").rglob("*") if "incomplete" in p.name]
        assert names == []


@pytest.fixture
def slow_hub():
    hub = FakeHub({repo: dict(files) for repo, files in hub_kit.REPOS.items()})
    hub.faults.bytes_per_second = 2_000_000
    yield hub
    hub.close()


def kill_at_random(runs, rng, kills):
    """Kill so many runs, each after some bytes or some time, then let one end.

    Returns:
        How many of them left a file half-fetched.
    """
    halves = 0
    for _ in range(kills):
        process = runs.start("-q")
        if rng.random() < 0.8:
            here = runs.kept_bytes()
            runs.wait_for_bytes(here + rng.randrange(1, max(2, TOTAL - here)), process)
        else:
            # Also before the first byte and after the last one.
            time.sleep(rng.uniform(0, 1.5))
        process.kill()
        process.communicate()
        halves += any((runs.folder / "hf").rglob("*.incomplete"))
    runs.finish()
    runs.check()
    return halves


def test_killed_a_few_times_it_still_ends_well(tmp_path, slow_hub):
    rng = random.Random(5)
    assert kill_at_random(Runs(tmp_path, slow_hub), rng, 3)


@pytest.mark.slow
def test_killed_fifty_times_it_still_ends_well(tmp_path, slow_hub):
    rng = random.Random(50)
    killed = number = halves = 0
    while killed < 50:
        kills = min(rng.randint(1, 4), 50 - killed)
        halves += kill_at_random(Runs(tmp_path / str(number), slow_hub), rng, kills)
        killed, number = killed + kills, number + 1
    # Else nothing was tested.
    assert halves > 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_and_what_is_kept_is_told(tmp_path, slow_hub, number, code):
    runs = Runs(tmp_path, slow_hub)
    slow_hub.faults.bytes_per_second = 300_000
    process = runs.start()
    runs.wait_for_bytes(100_000, process)
    started = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 8
    assert (process.returncode, out) == (code, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: interrupted, ")
    assert "of 560.0 kB are kept; the same command goes on from there" in last
    assert "Traceback" not in err
    kept = runs.kept_bytes()
    assert kept >= 100_000
    slow_hub.faults.bytes_per_second = None
    before = len(slow_hub.log)
    _, err = runs.finish()
    assert "are here" in err
    ranged = [headers for *_, headers in slow_hub.log[before:] if "range" in headers]
    assert ranged
    runs.check()


def test_a_signal_ends_it_while_a_server_is_silent(tmp_path, slow_hub):
    runs = Runs(tmp_path, slow_hub)
    slow_hub.faults.silent = True
    process = runs.start("-q")
    deadline = time.monotonic() + 20
    while not any("?path" in path for _, _, path, _ in slow_hub.log):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - started < 8
