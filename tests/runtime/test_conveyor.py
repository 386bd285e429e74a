"""Two workers in a row: bounded, in order, and gone when they are not needed."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from osp_cli.runtime.conveyor import Conveyor


def counted(last: int):
    """Makes 1, 2, ... `last`, then None."""
    numbers = iter(range(1, last + 1))
    return lambda: next(numbers, None)


def workers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name in ("osp-make", "osp-decode")]


def until(condition, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture(autouse=True)
def no_threads_left():
    yield
    assert workers() == []


def test_all_come_in_order():
    with Conveyor(counted(20), lambda made: made * 10, ahead=2) as conveyor:
        taken = []
        for shown in conveyor:
            taken.append(shown)
            conveyor.advance()
    assert taken == [number * 10 for number in range(1, 21)]


def test_each_worker_has_a_thread_of_its_own():
    made, decoded = set(), set()

    def make():
        made.add(threading.current_thread().name)
        return None if len(decoded) else 1

    def decode(_):
        decoded.add(threading.current_thread().name)
        return 2

    with Conveyor(make, decode, ahead=1) as conveyor:
        assert conveyor.take() == 2
        conveyor.advance()
        assert conveyor.take() is None
    assert (made, decoded) == ({"osp-make"}, {"osp-decode"})


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_no_more_are_begun_than_asked_for(ahead):
    begun = itertools.count(1)
    seen = []

    def make():
        seen.append(next(begun))
        return seen[-1]

    with Conveyor(make, lambda made: made, ahead=ahead) as conveyor:
        for taken in range(1, 6):
            most = taken - 1 + ahead
            assert until(lambda most=most: len(seen) == most)
            # Long enough for a worker that does not know its limit.
            time.sleep(0.03)
            assert len(seen) == most
            assert conveyor.take() == taken
            time.sleep(0.03)
            assert len(seen) == most
            conveyor.advance()


def test_two_ahead_are_made_while_one_is_decoded():
    decoding, go = threading.Event(), threading.Event()
    made = []

    def make():
        made.append(len(made) + 1)
        return made[-1]

    def decode(number):
        decoding.set()
        assert go.wait(5)
        return number

    with Conveyor(make, decode, ahead=2) as conveyor:
        assert decoding.wait(5)
        assert until(lambda: made == [1, 2])
        assert until(lambda: conveyor.depths == (1, 0))
        go.set()
        assert conveyor.take() == 1


@pytest.mark.parametrize("slow", ["make", "decode", "take"])
def test_the_slowest_sets_the_pace(slow):
    """Eight chunks of 40 ms take 8 times 40 ms, not longer: the others work meanwhile."""
    pause, count = 0.04, 8
    work = {"make": 0.01, "decode": 0.01, "take": 0.01, slow: pause}
    make, decoded = counted(count), []

    def making():
        time.sleep(work["make"])
        return make()

    def decoding(made):
        time.sleep(work["decode"])
        decoded.append(made)
        return made

    began = time.monotonic()
    with Conveyor(making, decoding, ahead=2) as conveyor:
        for taken in conveyor:
            conveyor.advance()
            time.sleep(work["take"])
            assert len(decoded) <= taken + 2
    passed = time.monotonic() - began
    assert passed >= count * pause
    # One after the other it would be the sum of the three; half of that is left for a busy machine.
    assert passed < count * pause + 0.3


@pytest.mark.parametrize("error", [ValueError, MemoryError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["make", "decode"])
def test_what_a_worker_raises_arrives_behind_what_came_before(where, error):
    numbers = counted(9)

    def work(stage, value):
        if stage == where and value == 3:
            raise error("on purpose")
        return value

    taken = []
    with (
        pytest.raises(error, match="on purpose"),
        Conveyor(
            lambda: work("make", numbers()), lambda made: work("decode", made), ahead=1
        ) as conveyor,
    ):
        for shown in conveyor:
            taken.append(shown)
            conveyor.advance()
    assert taken == [1, 2]


def test_finishing_lets_those_come_that_were_begun():
    numbers = itertools.count(1)
    with Conveyor(lambda: next(numbers), lambda made: made, ahead=3) as conveyor:
        assert until(lambda: sum(conveyor.depths) >= 2)
        assert conveyor.take() == 1
        time.sleep(0.05)
        conveyor.finish()
        conveyor.advance()
        assert list(conveyor) == [2, 3]
        assert conveyor.take.__self__ is conveyor
    assert next(numbers) == 4


def test_finishing_while_nothing_may_be_begun_ends_it_too():
    with Conveyor(lambda: 1, lambda made: made, ahead=1) as conveyor:
        assert conveyor.take() == 1
        conveyor.finish()
        assert conveyor.take() is None


def test_who_waits_is_asked_again_and_again_and_may_raise():
    go, asked = threading.Event(), []

    def idle():
        asked.append(1)
        if len(asked) == 3:
            raise InterruptedError("enough")

    with (
        pytest.raises(InterruptedError),
        Conveyor(lambda: go.wait(1) or None, lambda made: made, ahead=1) as conveyor,
    ):
        try:
            conveyor.take(idle)
        finally:
            go.set()
    assert len(asked) == 3


def test_leaving_early_waits_for_the_chunk_at_work():
    """Otherwise a thread would use the model while it is being freed."""
    ended, begun = [], threading.Event()

    def make():
        begun.set()
        time.sleep(0.15)
        ended.append(1)
        return 1

    with Conveyor(make, lambda made: made, ahead=2):
        assert begun.wait(5)
    assert ended == [1]


def test_a_second_interrupt_does_not_wait_for_a_long_chunk(monkeypatch):
    monkeypatch.setattr("osp_cli.runtime.conveyor._PATIENCE", 0.5)
    go, begun = threading.Event(), threading.Event()

    def make():
        begun.set()
        go.wait(30)

    began = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        Conveyor(make, lambda made: made, ahead=1),
    ):
        assert begun.wait(5)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 5
    go.set()
    assert until(lambda: not workers())


def test_at_least_one_must_be_ahead():
    with pytest.raises(ValueError, match="at least one"):
        Conveyor(lambda: None, lambda made: made, ahead=0)
