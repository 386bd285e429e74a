"""`osp dataset check`: what is wrong with the clips of a dataset, before any model is loaded."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osp_cli.cli import console
from osp_cli.cli.options import DebugOpt, FpsOpt, FramesOpt, JsonOpt, ModelOpt, QuietOpt
from osp_cli.dials import Size, size, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from osp_cli.train_request import TrainRequest
    from osp_cli.training.dataset.entries import DatasetReport, Finding

EXAMPLES = """\
\b
Examples:
  osp dataset check ./clips
  osp dataset check ./clips --model wan2.1-t2v-1.3b --size 832x480 --frames 81
  osp dataset check metadata.jsonl --json --report report.json
"""

_MOST_CLIPS = 40
_MOST_HINTS = 3


def check(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="A folder of clips, or a file that lists them"),
    ],
    model: ModelOpt = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", metavar="NAME", help="flash, t2v or inpaint [the model's]"),
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option(
            "--condition", metavar="NAME", help="auto, first, source or plain [the model's]"
        ),
    ] = None,
    chosen_size: Annotated[
        Size | None,
        typer.Option("--size", metavar="WxH", parser=size, help="Pixels [512x512; osp-mini's own]"),
    ] = None,
    frames: FramesOpt = None,
    fps: FpsOpt = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            metavar="N",
            parser=whole_number("--stride"),
            help="Every n-th frame of a file instead, whatever its rate",
        ),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(
            "--windows",
            metavar="N",
            parser=whole_number("--windows"),
            help="Parts of a long clip that are used, at most [4]",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", parser=whole_number("--seed"), help="Where the parts lie [42]"
        ),
    ] = None,
    no_bucket: Annotated[
        bool,
        typer.Option("--no-bucket", help="Cut all clips to one size and length"),
    ] = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Clips may come without a caption")
    ] = False,
    allow_upscale: Annotated[
        bool, typer.Option("--allow-upscale", help="Clips may be smaller than what is trained at")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write all findings to a .json file"),
    ] = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Check clips and captions: everything that is wrong with them, at once.

    The exit code is 2 where something cannot be trained on.
    """
    from osp_cli.config import TRAINING, stored_layers
    from osp_cli.train_settings import settle_training

    # As `osp train-lora` would settle them, so that both say the same about the same clips.
    settled = settle_training(
        data,
        Path("check"),
        layers=stored_layers(TRAINING, None),
        manner={"allow_empty": allow_empty, "allow_upscale": allow_upscale},
        model=model,
        mode=mode,
        condition=condition,
        size=chosen_size,
        num_frames=frames,
        fps=fps,
        stride=stride,
        windows=windows,
        bucket=False if no_bucket else None,
        seed=seed,
    )
    request = settled.request
    if not quiet:
        for notice in settled.notices:
            console.say(notice)
    from osp_cli.media.files import check_writable
    from osp_cli.training.dataset.check import CheckSettings, check_dataset
    from osp_cli.training.dataset.entries import refuse

    if report is not None:
        check_writable(report, overwrite=True)
    with _progress(quiet or as_json) as listener:
        found = check_dataset(data, CheckSettings.of(request), listener)
    if report is not None:
        write_report(found, report)
    if as_json:
        from osp_cli.events import DatasetChecked

        console.write_json(DatasetChecked(found.as_json()).as_json())
    elif not quiet:
        _write(found, request)
    refuse(found, skip_invalid=False)


def write_report(report: DatasetReport, path: Path) -> None:
    """Write all of a report as JSON.

    Raises:
        InvalidRequestError: the file cannot be written there.
    """
    import json

    from osp_cli.media.files import atomic_output

    with atomic_output(path, overwrite=True) as part:
        text = json.dumps(report.as_json(), indent=2, ensure_ascii=False)
        # Names of files may be no text in any encoding.
        part.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def show_report(report: DatasetReport) -> None:
    """Show a report on stderr."""
    for line in report_lines(report, console.columns(sys.stderr)):
        console.say(line)


def _write(report: DatasetReport, request: TrainRequest) -> None:
    """A report on stdout: a table for people, a line of tabs for each finding for programs."""
    if console.is_terminal(sys.stdout):
        for line in report_lines(report, console.columns(), request):
            console.write_line(line)
        return
    for each in report.findings:
        cells = (each.place, each.level, each.code, each.message, each.hint)
        console.write_line("\t".join(console.visible(cell).replace("\t", " ") for cell in cells))
    for line in _summary(report, request):
        console.say(line)


def report_lines(
    report: DatasetReport, columns: int, request: TrainRequest | None = None
) -> list[str]:
    """A report in lines of so many columns, without colour.

    Args:
        request: of the training; with it, the picture that clips follow from is told too.
    """
    lines = [line for text in _summary(report, request) for line in _wrapped(text, "", columns)]
    if not report.findings:
        return lines
    by_place: dict[str, list[Finding]] = {}
    for each in report.findings:
        by_place.setdefault(each.place, []).append(each)
    # What stops the training comes first, should there not be room for all.
    places = sorted(by_place, key=lambda place: all(f.level != "error" for f in by_place[place]))
    width = max(len(each.code) for each in report.findings)
    for place in places[:_MOST_CLIPS]:
        lines += ["", *_wrapped(place, "", columns)]
        for each in by_place[place]:
            lines += _wrapped(each.message, f"  {each.level:<7}  {each.code:<{width}}  ", columns)
    if len(places) > _MOST_CLIPS:
        lines += ["", f"and {len(places) - _MOST_CLIPS} more; --report FILE holds all"]
    hints = list(_hints(report))
    if hints:
        lines += ["", "what helps"]
    for code, hint in hints:
        lines += _wrapped(hint, f"  {code:<{width}}  ", columns)
    return lines


def _summary(report: DatasetReport, request: TrainRequest | None = None) -> list[str]:
    """How many clips there are, and what they become."""
    if not report.num_entries and not report.findings:
        return [console.visible(f"{report.root}: no clips in it")]
    used = len({window.entry.place for window in report.windows})
    lines = [
        f"{report.root}: {report.layout}",
        f"{_count(report.num_entries, 'clip')}, {used} can be used: "
        f"{_count(len(report.windows), 'sample')} out of {report.seconds:.1f} s",
    ]
    lines += [f"{count} x {bucket} frames" for bucket, count in report.buckets.items()]
    if request is not None and report.windows:
        lines.append(_conditions_text(report, request))
    num_errors = len(report.errors)
    num_warnings = len(report.findings) - num_errors
    lines.append(f"{_count(num_errors, 'error')}, {_count(num_warnings, 'warning')}")
    return [console.visible(line) for line in lines]


def _conditions_text(report: DatasetReport, request: TrainRequest) -> str:
    """Which pictures the samples follow from, the one thing that nobody sees in the numbers."""
    from collections import Counter

    from osp_cli.training.dataset.entries import condition_of

    words = {
        "source": "the pictures beside them",
        "first": "their own first frames",
        "plain": "their first frames, robbed of their style",
        "none": "their captions alone",
    }
    kinds = Counter(condition_of(window, request) for window in report.windows)
    told = [f"{'' if len(kinds) == 1 else f'{n} '}from {words[kind]}" for kind, n in kinds.items()]
    return f"the samples follow {', '.join(told)}"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _hints(report: DatasetReport) -> Iterator[tuple[str, str]]:
    """What helps against each kind of trouble; a few of those that differ from clip to clip."""
    by_code: dict[str, list[str]] = {}
    for each in report.findings:
        hints = by_code.setdefault(each.code, [])
        if each.hint and each.hint not in hints and len(hints) < _MOST_HINTS:
            hints.append(each.hint)
    for code, hints in by_code.items():
        for index, hint in enumerate(hints):
            yield "" if index else code, hint


def _wrapped(text: str, label: str, columns: int) -> list[str]:
    """A text behind its label; further lines stand below its beginning."""
    text = console.visible(" ".join(text.split()))
    label = label if columns - len(label) >= 20 else f"{label.strip()} "
    indent = " " * len(label) if columns - len(label) >= 20 else "  "
    return textwrap.wrap(
        text,
        max(columns, 20),
        initial_indent=label,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [label.rstrip()]


@contextmanager
def _progress(hidden: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal's stderr while clips are looked at."""
    if hidden or not console.is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
