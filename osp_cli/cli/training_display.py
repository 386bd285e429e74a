"""The story of a training run: what the data are, what it will take, how the loss falls."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from osp_cli import events
from osp_cli.cli import console
from osp_cli.cli.display import SECONDS_BETWEEN_LINES, BarDisplay, Display
from osp_cli.cli.showing import bytes_text, duration_text

if TYPE_CHECKING:
    from rich.progress import Progress

    from osp_cli.train_plan import TrainPlan

# Steps over which speed and loss are averaged.
_RECENT = 20
# Widths of terminals with room for a step's figures, and for a bar before them.
_BARE_COLUMNS, _BAR_COLUMNS = 56, 76


class _Training(Display):
    """What both displays tell of training; everything else is as of clips."""

    def __init__(self, *, verbose: bool = False, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(verbose=verbose, now=now)
        self._losses: list[float] = []
        self._seconds: list[float] = []

    def progress(self, label: str, done: int, total: int, pace: str) -> None:
        """Some of a known number are done."""
        if self._now() - self._last_line >= SECONDS_BETWEEN_LINES or done == total:
            self._last_line = self._now()
            self.line(f"{label}{', ' if pace else ''}{pace}")

    def show(self, event: events.Event) -> None:
        """Tell about one event."""
        match event:
            case events.DatasetChecked():
                # Shown already, as wide as the screen is.
                pass
            case events.TrainingPlanned(plan):
                self.rest()
                for line in plan_lines(plan):
                    self.line(line)
            case events.ClipEncoded(clip, num_clips, cached, _):
                if not cached or clip == num_clips:
                    self.progress(f"encode {clip}/{num_clips}", clip, num_clips, "")
            case events.TrainStepDone():
                self._show_train_step(event)
            case events.CheckpointSaved(path, step) if self._verbose:
                self.line(f"checkpoint after step {step}: {path}")
            case events.CheckpointSaved():
                pass
            case events.SampleMade(path, step, prompt):
                name = "before training" if step == 0 else f"after step {step}"
                self.line(f"sample {name}: {path}  {prompt}")
            case events.Saved():
                self.rest()
            case events.Done(_, timings, skipped):
                self.rest()
                parts = [f"{name} {seconds:.1f}" for name, seconds in timings.items()]
                if skipped:
                    parts.append(f"{skipped} {'step' if skipped == 1 else 'steps'} skipped")
                self.line(f"done in {self._now() - self._started:.1f} s: {', '.join(parts)}")
            case _:
                super().show(event)

    def _show_train_step(self, event: events.TrainStepDone) -> None:
        self._stage = "step"
        if event.skipped or event.loss is None:
            self.line(f"step {event.step} skipped: its loss or gradient was not finite")
            return
        self._losses = [*self._losses[-_RECENT + 1 :], event.loss]
        self._seconds = [*self._seconds[-_RECENT + 1 :], event.seconds]
        loss = sum(self._losses) / len(self._losses)
        pace = sum(self._seconds) / len(self._seconds)
        left = duration_text(pace * (event.num_steps - event.step))
        self.progress(
            f"step {event.step}/{event.num_steps}",
            event.step,
            event.num_steps,
            f"loss {loss:.4g}, {pace:.2f} s/step, {left} left",
        )


class _TrainingBars(_Training, BarDisplay):
    """The same with a live line."""

    def progress(self, label: str, done: int, total: int, pace: str) -> None:
        self._update(label, total, done, pace)

    def _new_progress(self) -> Progress:
        from rich.progress import Progress, SpinnerColumn, TextColumn

        if not _BARE_COLUMNS <= self._console.width < _BAR_COLUMNS:
            return super()._new_progress()
        # The loss and the time that is left say more than a bar.
        label, pace = TextColumn("{task.description}"), TextColumn("{task.fields[pace]}")
        shown = (SpinnerColumn("line"), label, pace)
        return Progress(*shown, console=self._console, transient=True, refresh_per_second=4)


def plan_lines(plan: TrainPlan) -> list[str]:
    """A plan for people."""
    what = "all weights" if plan.full else f"LoRA of rank {plan.rank}, alpha {plan.alpha:g}"
    steps = "step" if plan.steps == 1 else "steps"
    samples = f"{plan.num_windows} sample{'' if plan.num_windows == 1 else 's'}"
    time_left = ""
    if plan.expected_seconds is not None:
        time_left = f", about {duration_text(plan.expected_seconds)}"
    lines = [
        f"{plan.model}: {what} on {plan.targets}, {plan.trained_parameters / 1e6:.3g} M numbers, "
        f"mode {plan.mode}",
        f"{plan.steps} {steps} of {plan.batch} from {samples}{time_left} "
        f"on {plan.device}{f' x{plan.processes}' if plan.processes > 1 else ''}, {plan.dtype}"
        f"{'' if plan.quant == 'none' else f' base in {plan.quant}'}",
    ]
    ways = [
        *(["gradient checkpointing"] if plan.grad_checkpoint else []),
        *([f"{plan.swap_blocks} blocks wait in RAM"] if plan.swap_blocks else []),
        *(["activations wait in RAM"] if plan.offload_activations else []),
    ]
    free = "" if plan.device_bytes is None else f" of {bytes_text(plan.device_bytes)} free"
    memory = f"memory: {bytes_text(plan.expected_peak_bytes)} expected{free}"
    lines.append(", ".join([memory, *ways]))
    return lines


def open_training_display(*, quiet: bool, verbose: bool, as_json: bool) -> Display | None:
    """The display that fits stderr; None when nothing is to be said."""
    if quiet or sys.stderr is None:
        return None
    # JSON on the same screen would run through the live line.
    if console.is_terminal(sys.stderr) and not (as_json and console.is_terminal(sys.stdout)):
        return _TrainingBars(verbose=verbose)
    return _Training(verbose=verbose)
