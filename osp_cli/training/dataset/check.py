"""Checking a dataset: everything that is wrong with it, at once, before any model is loaded."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from osp_cli.training.dataset.clip_check import CheckedClip, check_clip
from osp_cli.training.dataset.entries import (
    ERROR,
    WARNING,
    DatasetReport,
    Entry,
    Finding,
    Window,
)
from osp_cli.training.dataset.layouts import read_dataset
from osp_cli.training.dataset.settings import CheckSettings as CheckSettings

# Most of the time goes to ffmpeg, which is a process of its own and has threads of its own.
_MOST_AT_ONCE = 8


def check_dataset(
    root: Path, settings: CheckSettings, progress: Callable[[int, int], None] | None = None
) -> DatasetReport:
    """Look at every clip of a dataset.

    Args:
        root: a folder, or a file that lists clips.
        progress: called with the number of clips that were looked at, and that of all.

    Raises:
        InvalidRequestError: there is no dataset, or nothing of it can be read.
        RuntimeFailureError: ffmpeg is missing.
    """
    listing = read_dataset(root, allow_empty=settings.allow_empty)
    blamed = {each.place for each in listing.findings if each.code == "caption-encoding"}
    checked: list[CheckedClip] = []
    pool = ThreadPoolExecutor(min(_MOST_AT_ONCE, os.cpu_count() or 1))
    try:
        # In the order of the dataset, whichever is done first.
        for clip in pool.map(
            lambda entry: check_clip(entry, settings, blamed=entry.place in blamed),
            listing.entries,
        ):
            checked.append(clip)
            if progress is not None:
                progress(len(checked), len(listing.entries))
    finally:
        # What has not begun is not begun: after Ctrl-C nobody waits for it.
        pool.shutdown(cancel_futures=True)
    findings = [*listing.findings, *(each for clip in checked for each in clip.findings)]
    findings += _duplicates(listing.entries, checked)
    unusable = {finding.place for finding in findings if finding.level == ERROR}
    usable = [
        clip
        for entry, clip in zip(listing.entries, checked, strict=True)
        if entry.place not in unusable and clip.windows
    ]
    windows = tuple(window for clip in usable for window in clip.windows)
    return DatasetReport(
        root=root,
        layout=listing.layout,
        windows=windows,
        findings=_in_order(findings, listing.places),
        num_entries=listing.num_entries,
        seconds=sum((clip.seconds for clip in usable), 0.0),
        sha256=_digest(usable),
        buckets=_counted(windows),
    )


def _counted(windows: tuple[Window, ...]) -> dict[str, int]:
    counts = Counter((window.size, window.num_frames) for window in windows)
    return {
        f"{width}x{height}x{num_frames}": count
        for ((width, height), num_frames), count in counts.most_common()
    }


def _digest(clips: list[CheckedClip]) -> str:
    """One number for what is trained on, whatever the files are called."""
    lines = sorted(clip.digest for clip in clips)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _duplicates(entries: tuple[Entry, ...], checked: list[CheckedClip]) -> list[Finding]:
    """Clips that are in the dataset before; parts of one file are other clips."""
    seen: dict[tuple[str, tuple[float, float] | None], str] = {}
    found = []
    for entry, clip in zip(entries, checked, strict=True):
        if not clip.content:
            continue
        first = seen.setdefault((clip.content, entry.cut), entry.place)
        if first != entry.place:
            found.append(
                Finding(
                    code="duplicate",
                    level=WARNING,
                    place=entry.place,
                    message=f"is the same as {first}",
                    hint="num_repeats, or a folder 2_NAME, says so in plain words",
                )
            )
    return found


def _in_order(findings: list[Finding], places: tuple[str, ...]) -> tuple[Finding, ...]:
    """Those about the whole first, then clip by clip; errors of a clip before its warnings."""
    order = {place: index for index, place in enumerate(places)}
    return tuple(
        sorted(findings, key=lambda each: (order.get(each.place, -1), each.level != ERROR))
    )
