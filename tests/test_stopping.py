"""Signals: the first asks, the second insists, and what was there before comes back."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from osp_cli.errors import InterruptedRunError, TerminatedRunError
from osp_cli.stopping import StopSignal

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of a program that Python has started, whatever started pytest."""
    before = {number: signal.getsignal(number) for number in BOTH}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", BOTH)
def test_the_first_stops_at_once_where_nothing_is_to_be_finished(number):
    with StopSignal().installed() as stop:
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert stop.requested


@pytest.mark.parametrize("number", BOTH)
def test_the_first_is_only_noted_while_there_is_patience(number):
    with StopSignal().installed() as stop, stop.patience():
        assert not stop.requested
        send(number)
        assert stop.requested


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("second", BOTH)
def test_the_second_stops_even_a_patient_run(first, second):
    with StopSignal().installed() as stop, stop.patience():
        send(first)
        with pytest.raises(KeyboardInterrupt):
            send(second)


def test_patience_ends_with_its_block():
    with StopSignal().installed() as stop:
        with stop.patience(), stop.patience():
            pass
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_patience_of_an_outer_block_outlives_the_inner():
    with StopSignal().installed() as stop, stop.patience():
        with stop.patience():
            pass
        send(signal.SIGINT)
        assert stop.requested


@pytest.mark.parametrize(
    ("sent", "kind", "code"),
    [
        (signal.SIGINT, InterruptedRunError, 130),
        (signal.SIGTERM, TerminatedRunError, 143),
    ],
)
def test_the_error_tells_which_signal_it_was(sent, kind, code):
    with StopSignal().installed() as stop, stop.patience():
        send(sent)
        error = stop.error("stopped", kept=(Path("a"),))
    assert type(error) is kind
    assert (error.exit_code, error.message, error.kept) == (code, "stopped", (Path("a"),))


def test_the_first_of_two_signals_names_the_error():
    with StopSignal().installed() as stop, stop.patience():
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert type(stop.error("stopped")) is TerminatedRunError


@pytest.mark.parametrize("leave", [None, KeyboardInterrupt, ValueError])
def test_former_handlers_return(leave):
    def mine(number, frame):
        raise AssertionError("never called")

    signal.signal(signal.SIGTERM, mine)
    before = [signal.getsignal(number) for number in BOTH]
    try:
        with StopSignal().installed():
            assert signal.getsignal(signal.SIGTERM) is not mine
            if leave is not None:
                raise leave
    except (KeyboardInterrupt, ValueError):
        pass
    assert [signal.getsignal(number) for number in BOTH] == before


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignal().installed() as stop:
        send(signal.SIGINT)
        assert not stop.requested
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_other_threads_leave_the_handlers_alone():
    before = [signal.getsignal(number) for number in BOTH]
    seen: list[object] = []

    def other() -> None:
        with StopSignal().installed() as stop:
            seen.extend(signal.getsignal(number) for number in BOTH)
            seen.append(stop.requested)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [*before, False]


@pytest.mark.parametrize(("talk", "said"), [(True, 1), (False, 0)])
def test_patience_is_told_once(capfd, talk, said):
    with StopSignal(talk=talk).installed() as stop, stop.patience():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert capfd.readouterr().err.count("finishing this step") == said
