"""The story of a download on stderr, and its plan on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from osp_cli import events
from osp_cli.cli import console
from osp_cli.cli.display import SECONDS_BETWEEN_LINES, Display
from osp_cli.hub.haul import in_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, TaskID

_Key = tuple[str, str]


class Tally:
    """How much of a download is on the disk, told by its events."""

    def __init__(self) -> None:
        self._here: dict[_Key, int] = {}
        self._sizes: dict[_Key, int] = {}

    @property
    def here_bytes(self) -> int:
        """On the disk, whole files and beginnings."""
        return sum(self._here.values())

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(self._sizes.values())

    def watch(self, run: Iterator[events.Event]) -> Iterator[events.Event]:
        """The same events, counted as they pass."""
        for event in run:
            self.see(event)
            yield event

    def see(self, event: events.Event) -> None:
        """Count one event."""
        match event:
            case events.FilePlanned():
                self._sizes[event.repo, event.path] = event.bytes
                self._here[event.repo, event.path] = event.here_bytes
            case events.FileProgress(stage="fetch"):
                self._set(event.repo, event.path, event.done_bytes)
            case events.FileFetched():
                self._set(event.repo, event.path, event.bytes)

    def _set(self, repo: str, path: str, count: int) -> None:
        # The same contents in a second repository are counted once, in the first.
        if (repo, path) in self._here:
            self._here[repo, path] = count

    def told(self) -> str:
        """What is kept by a stop, in words."""
        if not self.here_bytes:
            return "nothing was fetched yet"
        return (
            f"{in_words(self.here_bytes)} of {in_words(self.total_bytes)} are kept; "
            "the same command goes on from there"
        )


class FetchDisplay(Display):
    """Tells about a download in short lines, where there is no terminal."""

    def __init__(self, tally: Tally, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(now=now)
        self._tally = tally
        self._told_bytes = 0

    def show(self, event: events.Event) -> None:
        match event:
            case events.DownloadPlanned():
                self._told_bytes = self._tally.here_bytes
                for line in plan_lines(event):
                    self.line(line)
            case events.FileProgress():
                self.progress(event)
            case events.FileFetched():
                self.fetched(event)
            case events.FileVerified():
                self.fetched(event)
                if event.problem is not None:
                    self.line(f"damaged: {event.path} of {event.repo} {event.problem}")
            case events.Verified():
                self.rest()
                self.line(_verdict(event))
            case events.PartFound():
                self.rest()
                self.line(f"{event.part}: {event.title}")
            case events.ShardConverted():
                self.converted(event)
            case events.Installed():
                what = f", converted: {', '.join(event.converted)}" if event.converted else ""
                self.line(f"{event.model} is installed{what}")
            case events.Saved():
                self.rest()
            case events.Done(seconds):
                self.rest()
                self.line(f"done in {_clock(seconds)}")
            case _:
                super().show(event)

    def progress(self, event: events.FileProgress) -> None:
        """A file has come further."""
        passed = self._now() - self._last_line
        if passed < SECONDS_BETWEEN_LINES:
            return
        if event.stage == "check":
            share = f"{in_words(event.done_bytes)} of {in_words(event.bytes)}"
            self.line(f"check {event.path}: {share}")
        else:
            here, total = self._tally.here_bytes, self._tally.total_bytes
            rate = max(0, here - self._told_bytes) / passed
            left = f", {_clock((total - here) / rate)} left" if rate else ""
            self.line(f"{in_words(here)} of {in_words(total)}, {in_words(round(rate))}/s{left}")
        self._last_line, self._told_bytes = self._now(), self._tally.here_bytes

    def fetched(self, event: events.FileFetched | events.FileVerified) -> None:
        """A file is whole."""

    def converted(self, event: events.ShardConverted) -> None:
        """A file of a converted part is whole."""
        is_last = event.shard == event.num_shards
        if is_last or self._now() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = self._now()
            self.line(f"convert {event.part}: file {event.shard} of {event.num_shards}")


class FetchBars(FetchDisplay):
    """The same on a terminal: a bar of each file on its way, and one of all together."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(tally)
        from rich.console import Console

        self._console: Console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._bars: Progress | None = None
        self._tasks: dict[_Key, TaskID] = {}
        self._total_task: TaskID | None = None

    def line(self, text: str) -> None:
        # Through rich, which lifts the line above the bars.
        self._console.print(console.visible(text))

    def rest(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._total_task = None, None
        self._tasks.clear()

    def stage(self, name: str) -> None:
        self.rest()
        self.line(name)

    def progress(self, event: events.FileProgress) -> None:
        bars = self._start()
        key = (event.repo, event.path)
        done, total = event.done_bytes, event.bytes
        name = event.path.rpartition("/")[2].removesuffix(".safetensors")
        label = _short(f"check {name}" if event.stage == "check" else name, self._label_columns)
        if key not in self._tasks:
            self._tasks[key] = bars.add_task(label, total=total, completed=done)
        task = self._tasks[key]
        if bars.tasks[bars.task_ids.index(task)].description != label:
            # From the reading of what was here to the fetching of the rest: another speed.
            bars.reset(task, total=total, completed=done, description=label)
        bars.update(task, completed=done)
        self._update_total()

    def fetched(self, event: events.FileFetched | events.FileVerified) -> None:
        if self._bars is None:
            return
        task = self._tasks.pop((event.repo, event.path), None)
        if task is not None:
            self._bars.remove_task(task)
        self._update_total()

    def _update_total(self) -> None:
        if self._bars is not None and self._total_task is not None:
            self._bars.update(self._total_task, completed=self._tally.here_bytes)

    @property
    def _bar_columns(self) -> int:
        return 0 if self._console.width < 80 else min(30, self._console.width - 68)

    @property
    def _label_columns(self) -> int:
        # The figures take 36 columns; the ^C that a terminal writes shall not break the line.
        return min(32, max(8, self._console.width - self._bar_columns - 42))

    def _start(self) -> Progress:
        if self._bars is None:
            self._bars = self._new_bars()
            if self._tally.total_bytes:
                self._total_task = self._bars.add_task(
                    "total", total=self._tally.total_bytes, completed=self._tally.here_bytes
                )
            self._bars.start()
        return self._bars

    def _new_bars(self) -> Progress:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        shown: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            DownloadColumn(),
        ]
        if self._console.width >= 50:
            shown += [TransferSpeedColumn(), TimeRemainingColumn(compact=True)]
        if self._bar_columns:
            shown.insert(1, BarColumn(self._bar_columns))
        return Progress(*shown, console=self._console, transient=True, refresh_per_second=4)


def plan_lines(planned: events.DownloadPlanned) -> Iterator[str]:
    """What a download will do and what it will cost, in sentences."""
    here = planned.cached_bytes + planned.partial_bytes
    count = "1 file" if planned.num_files == 1 else f"{planned.num_files} files"
    what = f"{', '.join(planned.models)}: {count}, {in_words(planned.total_bytes)}"
    if not planned.fetch_bytes:
        yield f"{what}, all of it here already"
    elif here:
        yield f"{what}; {in_words(here)} are here, {in_words(planned.fetch_bytes)} to fetch"
    else:
        yield f"{what} to fetch"
    yield f"into {planned.cache}{_free(planned.cache_free_bytes)}"
    install = f"installed in {planned.home}{_free(planned.home_free_bytes)}"
    if planned.convert_bytes:
        install += f", where a converted copy takes up to {in_words(planned.convert_bytes)}"
    yield install
    if planned.unchecked:
        names = ", ".join(planned.unchecked)
        yield f"note: the card of {names} was written without a look at the hub"


def show_plan(run: Iterator[events.Event], *, as_json: bool) -> None:
    """Write the plan of a download to stdout: each file, then all of them together."""
    for event in run:
        if as_json:
            console.write_json(event.as_json())
            continue
        match event:
            case events.FilePlanned():
                state = "here" if event.here_bytes == event.bytes else "to fetch"
                if 0 < event.here_bytes < event.bytes:
                    state = f"{in_words(event.here_bytes)} here"
                console.write_line(f"{in_words(event.bytes):>10}  {state:<14}  {_place(event)}")
            case events.DownloadPlanned():
                for line in plan_lines(event):
                    console.write_line(line)
            case events.Notice(message):
                console.say(f"note: {message}")


def open_display(tally: Tally, *, quiet: bool, as_json: bool) -> FetchDisplay | None:
    """The display that fits stderr; None when nothing is to be said."""
    if quiet or sys.stderr is None:
        return None
    # JSON on the same screen would run through the bars.
    if console.is_terminal(sys.stderr) and not (as_json and console.is_terminal(sys.stdout)):
        return FetchBars(tally)
    return FetchDisplay(tally)


def _verdict(event: events.Verified) -> str:
    """What a check without findings has shown."""
    what = f"{event.num_files} files, {in_words(event.bytes)}"
    if not event.num_own_files:
        return f"{what}: all as published"
    if event.num_own_files == event.num_files:
        return f"{what}: all as they were installed"
    rest = event.num_files - event.num_own_files
    return f"{what}: {rest} as published, {event.num_own_files} as they were installed"


def _place(event: events.FilePlanned) -> str:
    return f"{event.repo}: {event.path}"


def _free(count: int | None) -> str:
    return "" if count is None else f" ({in_words(count)} free)"


def _short(name: str, columns: int) -> str:
    """A name in so many columns, its end kept: that is where shards differ."""
    return name if len(name) <= columns else f"...{name[3 - columns :]}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}" if minutes else f"{seconds:.1f} s"
