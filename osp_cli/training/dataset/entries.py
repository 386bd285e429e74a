"""What a dataset holds, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osp_cli.errors import InvalidRequestError
from osp_cli.train_request import TrainRequest

ERROR = "error"
WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One clip with its caption, as the dataset lists it; nothing of it has been opened.

    Attributes:
        path: of the video, of one picture, or of a folder of pictures that are its frames.
        kind: `video`, `image` or `frames`.
        caption: None where there is none.
        place: where it is listed, for messages: `metadata.jsonl:12`, or the file's name.
        repeats: how often it is used in each epoch.
        cut: seconds of the file that are used, `(start, end)`.
        source: the picture as it was before it was styled, which the clip is to follow from.
        style: that it is said to show.
    """

    path: Path
    kind: str
    caption: str | None
    place: str
    repeats: int = 1
    cut: tuple[float, float] | None = None
    source: Path | None = None
    style: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: as in `too-short`.
        level: `error` or `warning`.
        place: where the dataset lists it: `metadata.jsonl:12`, or the file's name.
        message: a sentence without its dot, with the numbers that matter.
        hint: what helps, or empty.
    """

    code: str
    level: str
    place: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a clip that is one sample.

    Attributes:
        entry: the clip.
        start: of the part, in seconds of the file.
        num_frames: `4k + 1`, at the rate that is trained at.
        size: `(width, height)` in pixels, its bucket.
        content: SHA-256 of the file (of the list of frames), as hex digits.
        source_content: the same of the picture that it is to follow from, empty without one.
    """

    entry: Entry
    start: float
    num_frames: int
    size: tuple[int, int]
    content: str
    source_content: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport:
    """All that the check found, before any model is loaded.

    Attributes:
        root: what was checked.
        layout: how it is laid out, in words.
        windows: samples that can be used, in the order of the dataset; entries with errors have
            none.
        findings: in the order of the dataset.
        num_entries: clips that are listed.
        seconds: of all clips that can be used.
        sha256: of contents, captions and cuts of what can be used; not of names or places.
        buckets: number of windows of each size and length, as in `512x512x49`.
    """

    root: Path
    layout: str
    windows: tuple[Window, ...]
    findings: tuple[Finding, ...]
    num_entries: int
    seconds: float
    sha256: str
    buckets: Mapping[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What makes entries unusable."""
        return tuple(finding for finding in self.findings if finding.level == ERROR)

    def as_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "root": str(self.root),
            "layout": self.layout,
            "num_entries": self.num_entries,
            "num_windows": len(self.windows),
            "seconds": self.seconds,
            "sha256": self.sha256,
            "buckets": dict(self.buckets),
            "findings": [
                {
                    "code": finding.code,
                    "level": finding.level,
                    "place": finding.place,
                    "message": finding.message,
                    "hint": finding.hint,
                }
                for finding in self.findings
            ],
        }


def condition_of(window: Window, request: TrainRequest) -> str:
    """Which picture a clip follows from: `first`, `source`, `plain`, or `none` without one."""
    if request.mode == "t2v":
        return "none"
    if window.entry.source is not None and request.condition in ("auto", "source", "plain"):
        return "source"
    return "plain" if request.condition == "plain" else "first"


def refuse(report: DatasetReport, *, skip_invalid: bool) -> None:
    """Stop where the data cannot be trained on.

    Raises:
        InvalidRequestError: there are errors, and they are not to be skipped; or nothing is left.
    """
    errors: Sequence[Finding] = report.errors
    if errors and not skip_invalid:
        places = len({finding.place for finding in errors})
        raise InvalidRequestError(
            f"{places} of {report.num_entries} clips of {report.root} cannot be trained on",
            hint="mend them, or --skip-invalid trains without them" if report.windows else None,
        )
    if not report.windows:
        raise InvalidRequestError(
            f"there is nothing to train on in {report.root}",
            hint="a folder of clips, each with a text file of its name that tells what it shows",
        )
