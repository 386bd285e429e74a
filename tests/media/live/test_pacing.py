"""The clock of a stream, with a clock that the test turns."""

from __future__ import annotations

import threading
from fractions import Fraction

import pytest

from osp_cli.media.live import Pacer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_frames_are_due_at_even_distances():
    clock = Clock()
    pacer = Pacer(16, clock)
    assert [pacer.delay() for _ in range(4)] == pytest.approx([0, 1 / 16, 2 / 16, 3 / 16])
    clock.now += 0.2
    assert pacer.delay() == pytest.approx(4 / 16 - 0.2)
    assert pacer.rebuffers == 0


def test_hours_of_an_odd_rate_do_not_shift_the_clock():
    clock = Clock()
    pacer = Pacer(Fraction(30000, 1001), clock)
    for _ in range(100_000):
        last = pacer.delay()
    assert last == pytest.approx(float(99_999 / Fraction(30000, 1001)), abs=1e-6)


def test_a_late_frame_shifts_the_clock_and_is_counted():
    clock = Clock()
    pacer = Pacer(10, clock)
    pacer.delay()
    clock.now += 1.1  # due after 0.1
    assert pacer.delay() == 0
    assert (pacer.rebuffers, pacer.late_seconds) == (1, pytest.approx(1.0))
    # Nothing is hurried through afterwards.
    assert pacer.delay() == pytest.approx(0.1)


def test_a_start_is_no_rebuffer():
    clock = Clock()
    pacer = Pacer(10, clock, start_frames=1)
    pacer.delay()
    clock.now += 3
    assert pacer.delay() == 0
    assert pacer.rebuffers == 0
    assert pacer.delay() == pytest.approx(0.1)
    clock.now += 3
    assert pacer.delay() == 0
    assert (pacer.rebuffers, pacer.late_seconds) == (1, pytest.approx(2.8))


def test_a_little_late_is_caught_up():
    clock = Clock()
    pacer = Pacer(10, clock)
    pacer.delay()
    clock.now += 0.15
    assert pacer.delay() == 0
    assert pacer.delay() == pytest.approx(0.05)
    assert pacer.rebuffers == 0


def test_waiting_ends_when_it_is_stopped():
    stop = threading.Event()
    pacer = Pacer(0.01)
    assert pacer.wait(stop)
    threading.Timer(0.05, stop.set).start()
    assert not pacer.wait(stop)


def test_a_rate_must_be_one():
    with pytest.raises(ValueError, match="positive"):
        Pacer(0)
