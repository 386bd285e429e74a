"""The order of things in a run, with stand-ins for what takes long."""

from __future__ import annotations

import signal
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from osp_cli.events import SampleMade
from osp_cli.runtime import train_steps
from osp_cli.stopping import StopSignal


class ThreeSamples:
    """Makes three, and knows whether it was left in order."""

    left = False

    def make(self, step: int, *_: Any, write: bool) -> Generator[SampleMade]:
        try:
            for number in range(3):
                yield SampleMade(Path(f"{number}.mp4"), step, "snow")
        finally:
            self.left = True


@pytest.mark.parametrize(("world", "made"), [(1, 1), (2, 3)])
def test_who_stops_waits_for_one_sample_only(world, made):
    samples, stop = ThreeSamples(), StopSignal()
    run: Any = SimpleNamespace(
        samples=samples, transformer=None, vae=None, conditions=None,
        group=SimpleNamespace(world=world, writes=True),
    )  # fmt: skip
    events = train_steps._samples(run, 5, stop)
    seen = [type(next(events)).__name__, type(next(events)).__name__]
    stop.note(signal.SIGINT)
    seen += [type(event).__name__ for event in events]
    # Processes that share a model have to make all of them together.
    assert seen == ["StageStarted", *["SampleMade"] * made]
    assert samples.left
