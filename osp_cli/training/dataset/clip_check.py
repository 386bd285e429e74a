"""Looking at one clip: what is wrong with it, and which windows it gives."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.gates import ClipMeasures, measure_clip
from osp_cli.media.image import load_image
from osp_cli.training.dataset.buckets import (
    MAX_ASPECT,
    bucket_frames,
    bucket_of,
    frames_within,
    least_frames,
)
from osp_cli.training.dataset.entries import Entry, Finding, Window
from osp_cli.training.dataset.opening import Facts, Notes, open_entry, shortened
from osp_cli.training.dataset.settings import CheckSettings
from osp_cli.training.dataset.windows import (
    frame_seconds,
    window_starts,
)

# Of a clip that gives no windows, so much is looked at.
_LOOK_SECONDS = 20.0
_CAPTION_PIECES = re.compile(r"[⺀-鿿가-힯぀-ヿ]|\w{1,6}|[^\w\s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedClip:
    """What was found about an entry.

    Attributes:
        findings: in the order in which people would mend them.
        windows: none where there are errors.
        content: SHA-256 of the file, empty where it cannot be read.
        digest: of content, caption, cut, picture and repeats.
        seconds: of what can be used.
    """

    findings: tuple[Finding, ...]
    windows: tuple[Window, ...] = ()
    content: str = ""
    digest: str = ""
    seconds: float = 0.0


def check_clip(entry: Entry, settings: CheckSettings, *, blamed: bool = False) -> CheckedClip:
    """Look at an entry and its files; what is wrong with them becomes findings.

    Args:
        blamed: the listing says already what is wrong with its caption.

    Raises:
        RuntimeFailureError: ffmpeg is missing.
    """
    notes = Notes(entry.place)
    if not blamed:
        _check_caption(entry, settings, notes)
    source_content = _check_source(entry, settings, notes)
    facts = open_entry(entry, settings, notes)
    if facts is None:
        return CheckedClip(findings=tuple(notes.found))
    size = _check_shape(facts, settings, notes)
    num_frames = _check_length(entry, facts, settings, size, notes)
    windows: tuple[Window, ...] = ()
    if size is not None and num_frames is not None:
        step = frame_seconds(facts.fps, settings.fps, settings.stride)
        windows = tuple(
            Window(
                entry=entry,
                start=facts.start + first * step,
                num_frames=num_frames,
                size=size,
                content=facts.content,
                source_content=source_content,
            )
            for first in window_starts(
                facts.available,
                num_frames,
                settings.windows,
                seed=settings.seed,
                identity=f"{facts.content}/{entry.cut}",
            )
        )
    if facts.video is not None:
        _check_pictures(facts, windows, settings, notes)
    if notes.has_errors:
        windows = ()
    told = [facts.content, source_content, entry.caption or "", entry.cut, entry.repeats]
    return CheckedClip(
        findings=tuple(notes.found),
        windows=windows,
        content=facts.content,
        digest=hashlib.sha256(json.dumps(told).encode()).hexdigest(),
        seconds=facts.seconds if windows else 0.0,
    )


def about_tokens(caption: str) -> int:
    """How many tokens a caption has, roughly: tokenizers come with the models, and differ."""
    return len(_CAPTION_PIECES.findall(caption))


def _check_caption(entry: Entry, settings: CheckSettings, notes: Notes) -> None:
    if not entry.caption:
        if not settings.allow_empty:
            notes.error(
                "no-caption",
                "nothing tells what it shows",
                "write it in a .txt file of the clip's name, or in the list; "
                "--allow-empty trains without",
            )
        return
    tokens = about_tokens(entry.caption)
    if tokens > settings.max_tokens:
        notes.warning(
            "caption-long",
            f"the caption has about {tokens} tokens, the model reads {settings.max_tokens}",
            "what matters should come first",
        )


def _check_source(entry: Entry, settings: CheckSettings, notes: Notes) -> str:
    """SHA-256 of the picture that the clip follows from, empty where none is used."""
    if not settings.uses_sources:
        return ""
    if entry.source is None:
        if settings.condition == "source":
            notes.error(
                "no-source",
                "there is no picture of it before it was styled",
                "--condition first, or put the picture beside the clip as NAME.source.png",
            )
        return ""
    if not entry.source.is_file():
        notes.error("missing-file", f"{entry.source.name} does not exist")
        return ""
    try:
        return load_image(entry.source).sha256
    except UnreadableMediaError as error:
        notes.error("unreadable", error.message, error.hint or "")
        return ""


def _check_shape(facts: Facts, settings: CheckSettings, notes: Notes) -> tuple[int, int] | None:
    """The bucket of a clip's shape."""
    width, height = facts.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        notes.error(
            "extreme-aspect",
            f"{width}x{height} is {height / width:.2f} as high as it is wide, "
            f"{1 / MAX_ASPECT:g} to {MAX_ASPECT:g} are taken",
            "cut it first",
        )
        return None
    size = bucket_of(facts.size, settings.sizes, allow_upscale=settings.allow_upscale)
    if size is None:
        wanted = bucket_of(facts.size, settings.sizes, allow_upscale=True)
        assert wanted is not None
        notes.error(
            "too-small",
            f"{width}x{height}, its bucket is {wanted[0]}x{wanted[1]}",
            f"--allow-upscale enlarges it, --size {_fitting(facts.size, settings)} fits it",
        )
    return size


def _fitting(size: tuple[int, int], settings: CheckSettings) -> str:
    """The largest size that a clip need not be enlarged for."""
    step = settings.multiple_of
    return "x".join(str(max(step, side // step * step)) for side in size)


def _check_length(
    entry: Entry,
    facts: Facts,
    settings: CheckSettings,
    size: tuple[int, int] | None,
    notes: Notes,
) -> int | None:
    """How many frames its windows have."""
    if entry.kind == "image":
        return 1
    longest = settings.longest
    if size is not None:
        longest = frames_within(size, longest, settings.max_pixels)
    num_frames = bucket_frames(facts.available, longest, bucket=settings.bucket)
    if num_frames is not None:
        return num_frames
    least = least_frames(longest, bucket=settings.bucket)
    step = frame_seconds(facts.fps, settings.fps, settings.stride)
    # The last frame has to begin before the end.
    needed = (least - 1) * step + (1 / settings.fps if facts.fps is None else float(1 / facts.fps))
    rate = f"{settings.fps} fps" if settings.stride is None else f"--stride {settings.stride}"
    what = "its cut lasts" if entry.cut else "lasts"
    fitting = (facts.available - 1) // 4 * 4 + 1
    notes.error(
        "too-short",
        f"{what} {facts.seconds:.2f} s, {least} frames at {rate} take {needed:.2f} s",
        f"--frames {fitting}" if fitting >= 5 else "leave it out",
    )
    return None


def _check_pictures(
    facts: Facts, windows: tuple[Window, ...], settings: CheckSettings, notes: Notes
) -> None:
    """Warn of what stands still, is dark, or is two clips, in the parts that are used."""
    assert facts.video is not None
    step = frame_seconds(facts.fps, settings.fps, settings.stride)
    if settings.longest == 1:  # one frame neither stands still nor changes
        return
    spans = [(w.start - facts.start, (w.num_frames - 1) * step) for w in windows]
    told: set[str] = set()
    for start, seconds in spans or [(0.0, min(facts.seconds, _LOOK_SECONDS))]:
        try:
            found = measure_clip(facts.video, start, seconds)
        except UnreadableMediaError as error:
            notes.error("unreadable", shortened(error.message, facts.video.path))
            return
        where = f" in the part from {facts.start + start:.1f} s" if len(spans) > 1 else ""
        for is_so, code, message in _gates(found):
            if is_so and code not in told:
                told.add(code)
                notes.warning(code, message + where)


def _gates(found: ClipMeasures) -> Iterator[tuple[bool, str, str]]:
    """Whether a gate is closed, its code, and what it says."""
    repeats = f"{found.duplicate_fraction:.0%} of its frames repeat the one before"
    yield found.is_frozen, "frozen", repeats
    yield found.is_black, "black", f"{found.black_fraction:.0%} of its frames are black"
    yield found.has_cut, "has-cut", f"the scene changes (score {found.cut_score:.0f})"
