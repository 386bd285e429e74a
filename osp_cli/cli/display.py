"""The story of a run on stderr, told to whoever watches; its results on stdout.

Both only listen to events. On a terminal one live line moves below what was said before;
elsewhere there are short lines.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from osp_cli import events
from osp_cli.cli import console
from osp_cli.cli.live_line import LiveLine, plain_line
from osp_cli.cli.showing import (
    device_text,
    frames_text,
    memory_text,
    steps_text,
    time_text,
    way_text,
)
from osp_cli.outputs import STDOUT

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 10.0
_LARGE_BYTES = 10**9

# What the stages are called on the screen; others keep their name.
_STAGE_NAMES = {"encode": "save"}


class Display:
    """Tells the story of a run in short lines on stderr, where there is no terminal.

    Args:
        verbose: also tell what each component took to load.
        now: seconds of a steady clock.

    Attributes:
        is_live: a line changes in its place, which somebody who types must not disturb.
    """

    is_live = False

    def __init__(self, *, verbose: bool = False, now: Callable[[], float] = time.monotonic) -> None:
        self._verbose = verbose
        self._noted: set[str] = set()
        self._now = now
        self._started = now()
        self._last_line = self._started
        self._sampling_seconds = 0.0
        self._stage = ""
        self._preview: Path | None = None
        self._windows = _Windows(now)
        self._streams = False
        self._untold: events.ChunkStreamed | None = None

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.rest()

    def line(self, text: str) -> None:
        """Write a line that stays."""
        console.say(text)

    def stage(self, name: str) -> None:
        """A stage without countable steps begins."""
        self.line(name)

    def step(self, step: int, num_steps: int, pace: str) -> None:
        """A sampler step is done; `pace` tells the speed and the time left."""
        if self._now() - self._last_line >= SECONDS_BETWEEN_LINES or step == num_steps:
            self._last_line = self._now()
            self.line(f"step {step}/{num_steps}, {pace}")

    def window(self, number: int, num_windows: int, pace: str) -> None:
        """A window of a long video is done; `pace` tells the speed and the time left."""
        if self._now() - self._last_line >= SECONDS_BETWEEN_LINES or number == num_windows:
            self._last_line = self._now()
            self.line(f"window {number} of {num_windows}, {pace}")

    def chunk(self, event: events.ChunkStreamed) -> None:
        """A chunk of a stream is done."""
        self._untold = event
        if event.chunk == 1 or self._now() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = self._now()
            self._untold = None
            self.line(plain_line(event))

    def typed(self, text: str | None) -> None:
        """What somebody has typed of a line by now; None where nobody types."""

    def rest(self) -> None:
        """Leave the screen to others until the next stage."""

    def begin(self, stage: str) -> None:
        """Enter `stage`, if it is not the present one."""
        if stage != self._stage:
            self._stage = stage
            self.stage(stage)

    def show(self, event: events.Event) -> None:
        """Tell about one event."""
        match event:
            case events.Planned(plan):
                self._windows.begin(plan.num_windows, plan.total_frames)
                self.line(
                    f"{plan.model}: {plan.width}x{plan.height}, {frames_text(plan)}, "
                    f"{steps_text(plan)}, seed {plan.seed}, {device_text(plan)} {plan.dtype}"
                )
                changed = plan.quant != "none" or plan.compile or plan.vae_tiling
                if plan.weights_bytes > _LARGE_BYTES or plan.offload != "none" or changed:
                    # What it will cost, where that is more than a moment, and what is unusual.
                    parts = (way_text(plan), memory_text(plan), time_text(plan))
                    self.line(f"weights {'; '.join(filter(None, parts))}")
            case events.Notice(message):
                # The videos of a batch have much in common.
                if message not in self._noted:
                    self._noted.add(message)
                    self.line(f"note: {message}")
            case events.ChunkStreamed():
                self._streams = True
                self.chunk(event)
            case events.StepDone() | events.StageStarted() if self._streams:
                # The line of the stream says it all.
                pass
            case events.Loaded(component, seconds):
                self.begin("load")
                if self._verbose:
                    self.line(f"loaded {component} in {seconds:.1f} s")
            case events.StageStarted("condition") if self._windows.number > 1:
                # Told once; then the windows are what goes on.
                pass
            case events.StageStarted(name):
                self.begin(_STAGE_NAMES.get(name, name))
            case events.StepDone(step, num_steps, seconds):
                self._show_step(step, num_steps, seconds)
            case events.ChunkDone(chunk, num_chunks, _, num_frames):
                self._windows.done(chunk, num_frames)
                if num_chunks > 1:
                    self.window(chunk, num_chunks, self._windows.pace())
            case events.Saved():
                self._stage, self._streams = "", False
                if self._untold is not None:
                    # How far it came.
                    self.line(plain_line(self._untold))
                    self._untold = None
                self.rest()
            case events.ItemStarted(item, num_items, output):
                self.rest()
                self.line(f"video {item} of {num_items}: {output}")
            case events.Failed(message, hint, _, kept):
                self.rest()
                console.say_error(message, hint)
                for path in kept:
                    self.line(f"kept: {path}")
            case events.Preview(path) if path != self._preview:
                # Drawn anew again and again, told once.
                self._preview = path
                self.line(f"preview: {path}")
            case events.LatentsSaved(path, step, num_steps) if step < num_steps:
                self.line(f"latents after step {step} of {num_steps}: {path}")
            case events.Done(_, timings, skipped):
                self.rest()
                self._show_done(timings, skipped)

    def _show_done(self, timings: Mapping[str, float], skipped: int) -> None:
        parts = [
            f"{_STAGE_NAMES.get(name, name)} {seconds:.1f}" for name, seconds in timings.items()
        ]
        if skipped:
            parts.append(f"{skipped} {'step' if skipped == 1 else 'steps'} from the cache")
        self.line(f"done in {self._now() - self._started:.1f} s: {', '.join(parts)}")

    def _show_step(self, step: int, num_steps: int, seconds: float) -> None:
        if step == 1:
            self._sampling_seconds = 0.0
        self._stage = "step"
        if num_steps == 1 and self._windows.total > 1:
            # The window says it all.
            return
        self._sampling_seconds += seconds
        per_step = self._sampling_seconds / step
        left = round(per_step * (num_steps - step))
        where = f"window {self._windows.number}/{self._windows.total}, "
        self.step(
            step,
            num_steps,
            f"{where if self._windows.total > 1 else ''}{per_step:.2f} s/it, {_left(left)}",
        )


class _Windows:
    """How far a long video has come, by the windows that this run has made."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._frames: int | None = None
        self._made: list[tuple[float, int]] = []
        self.number, self.total = 1, 1

    def begin(self, total: int, frames: int | None) -> None:
        """A video of so many windows and frames."""
        self.number, self.total, self._frames, self._made = 1, total, frames, []

    def done(self, number: int, num_frames: int) -> None:
        """That window is done, and with it so many frames of the whole."""
        self.number = min(number + 1, self.total)
        self._made.append((self._now(), num_frames))

    def pace(self) -> str:
        """Frames a second and the time that is left, as far as two windows tell."""
        (began, first), (ended, last) = self._made[0], self._made[-1]
        if last == first or ended <= began:
            return f"{last} frames"
        rate = (last - first) / (ended - began)
        return f"{rate:.1f} frames/s, {_left(round(((self._frames or last) - last) / rate))}"


def _left(seconds: int) -> str:
    return f"{seconds // 60}:{seconds % 60:02d} left"


class BarDisplay(Display):
    """The same on a terminal, with one live line below what was said before."""

    is_live = True

    def __init__(self, *, verbose: bool = False, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(verbose=verbose, now=now)
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._live_line = LiveLine(self._console)

    def line(self, text: str) -> None:
        # Through rich, which lifts the line above the live one.
        self._console.print(console.visible(text))

    def stage(self, name: str) -> None:
        self._update(name, None, 0, "")

    def step(self, step: int, num_steps: int, pace: str) -> None:
        self._update(f"step {step}/{num_steps}", num_steps, step, pace)

    def window(self, number: int, num_windows: int, pace: str) -> None:
        self._update(f"window {number} of {num_windows}", num_windows, number, pace)

    def chunk(self, event: events.ChunkStreamed) -> None:
        self._stop_progress()
        self._live_line.show(event)

    def typed(self, text: str | None) -> None:
        self._stop_progress()
        self._live_line.show_typed(text)

    def rest(self) -> None:
        self._stop_progress()
        self._live_line.stop()

    def _stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _update(self, label: str, total: int | None, completed: int, pace: str) -> None:
        if self._progress is None:
            self._live_line.stop()
            self._progress = self._new_progress()
            self._task = self._progress.add_task("", total=None, pace="")
            self._progress.start()
        assert self._task is not None
        self._progress.update(
            self._task, description=label, total=total, completed=completed, pace=pace
        )
        # A step may keep the interpreter busy for longer than the bar's own clock ticks.
        self._progress.refresh()

    def _new_progress(self) -> Progress:
        from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn

        shown: list[ProgressColumn] = [TextColumn("{task.description}")]
        if self._console.width >= 40:
            shown = [SpinnerColumn("line"), *shown, BarColumn(20)]
        if self._console.width >= 70:
            shown.append(TextColumn("{task.fields[pace]}"))
        return Progress(*shown, console=self._console, transient=True, refresh_per_second=4)


def listen(run: Iterator[events.Event], display: Display | None, *, as_json: bool) -> None:
    """Show the events of `run` and write its results to stdout.

    Args:
        run: closed on the way out, whatever happens, so that the run frees what it holds.
        display: of stderr; None says nothing.
        as_json: write every event as JSON instead of the results' paths.

    Raises:
        StdoutClosedError: the reader of stdout has gone.
    """
    try:
        for event in run:
            if display is not None:
                display.show(event)
            elif isinstance(event, events.Failed):
                # Quiet is not deaf: which one failed, and why, is told in any case.
                console.say_error(event.message, event.hint)
            if as_json:
                console.write_json(event.as_json())
            elif isinstance(event, events.Saved) and event.path != STDOUT:
                _write_path(event.path)
    finally:
        close: Callable[[], None] | None = getattr(run, "close", None)
        if close is not None:
            close()


def _write_path(path: Path) -> None:
    """Tell a result. That nobody reads the list any more is no reason to stop making videos."""
    try:
        console.write_line(str(path))
    except console.StdoutClosedError:
        console.discard_stdout()


def open_display(*, quiet: bool, verbose: bool, as_json: bool) -> Display | None:
    """The display that fits stderr; None when nothing is to be said."""
    if quiet or sys.stderr is None:
        return None
    # JSON on the same screen would run through the live line.
    if console.is_terminal(sys.stderr) and not (as_json and console.is_terminal(sys.stdout)):
        return BarDisplay(verbose=verbose)
    return Display(verbose=verbose)
