"""What a terminal shows of a training run, however narrow it is."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from osp_cli.cli.training_display import open_training_display
from osp_cli.events import SampleMade, StageStarted, TrainStepDone


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Terminal]:
    """Put a terminal of so many columns in the place of stderr."""

    def make(width: int) -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        for name, value in (("TERM", "xterm"), ("COLUMNS", str(width)), ("LINES", "24")):
            monkeypatch.setenv(name, value)
        return terminal

    return make


def show_steps() -> None:
    shown = open_training_display(quiet=False, verbose=False, as_json=False)
    assert shown is not None
    with shown:
        for step in (1, 2):
            shown.show(TrainStepDone(step, 300, 0.125, 1.0, 1e-3, 3.0, False))
        shown.show(StageStarted("samples"))
        shown.show(SampleMade(Path("glass/samples/step-000002-1.mp4"), 2, "snow"))
        shown.show(TrainStepDone(3, 300, 0.125, 1.0, 1e-3, 3.0, False))
        shown.show(StageStarted("samples"))


@pytest.mark.parametrize(("width", "has_bar"), [(60, False), (75, False), (76, True), (100, True)])
def test_loss_and_time_left_are_shown_where_there_is_room(screen, width, has_bar):
    terminal = screen(width)
    show_steps()
    text = terminal.getvalue()
    # Sixty columns have no room for a bar besides, and lines that do not fit would pile up.
    assert "loss 0.125, 3.00 s/step, 15 min left" in text
    assert ("━" in text.split("loss")[0]) == has_bar


def test_forty_columns_show_how_far_it_is(screen):
    terminal = screen(40)
    show_steps()
    text = terminal.getvalue()
    assert "step 2/300" in text
    assert "loss" not in text


def test_samples_are_told_of_every_time_they_are_made(capsys):
    show_steps()
    assert capsys.readouterr().err.splitlines().count("samples") == 2
