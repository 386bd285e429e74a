"""Looking at one clip: what is wrong with it, and which windows it gives."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.gates import ClipMeasures, measure_clip
from osp_cli.media.image import load_image
from osp_cli.media.source_video import SourceVideo, probe_source, read_frames
from osp_cli.training.dataset.buckets import (
    MAX_ASPECT,
    bucket_frames,
    bucket_of,
    frames_within,
    least_frames,
)
from osp_cli.training.dataset.entries import ERROR, WARNING, Entry, Finding, Window
from osp_cli.training.dataset.folders import frame_files
from osp_cli.training.dataset.settings import CheckSettings
from osp_cli.training.dataset.windows import (
    available_frames,
    frame_seconds,
    part_of,
    window_starts,
)

# Of a clip that gives no windows, so much is looked at.
_LOOK_SECONDS = 20.0
# Files write 15.99 for 16: no frame of ten seconds is shown twice for that.
_RATE_SLACK = 0.99
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


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a file is.

    Attributes:
        size: width and height as players show them.
        available: frames at the rate that is trained at, after the cut.
        seconds: it lasts, after the cut.
        fps: of the file; None where it has none of its own.
        content: SHA-256.
        start: where the cut begins, in seconds.
        video: the part to be used; None for pictures.
    """

    size: tuple[int, int]
    available: int
    seconds: float
    fps: Fraction | None
    content: str
    start: float = 0.0
    video: SourceVideo | None = None


@dataclass(slots=True)
class _Notes:
    place: str
    found: list[Finding] = field(default_factory=list)

    def error(self, code: str, message: str, hint: str = "") -> None:
        self.found.append(
            Finding(code=code, level=ERROR, place=self.place, message=message, hint=hint)
        )

    def warning(self, code: str, message: str, hint: str = "") -> None:
        self.found.append(
            Finding(code=code, level=WARNING, place=self.place, message=message, hint=hint)
        )

    @property
    def has_errors(self) -> bool:
        return any(finding.level == ERROR for finding in self.found)


def check_clip(entry: Entry, settings: CheckSettings, *, blamed: bool = False) -> CheckedClip:
    """Look at an entry and its files; what is wrong with them becomes findings.

    Args:
        blamed: the listing says already what is wrong with its caption.

    Raises:
        RuntimeFailureError: ffmpeg is missing.
    """
    notes = _Notes(entry.place)
    if not blamed:
        _check_caption(entry, settings, notes)
    source_content = _check_source(entry, settings, notes)
    facts = _open(entry, settings, notes)
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


def _check_caption(entry: Entry, settings: CheckSettings, notes: _Notes) -> None:
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


def _check_source(entry: Entry, settings: CheckSettings, notes: _Notes) -> str:
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


def _open(entry: Entry, settings: CheckSettings, notes: _Notes) -> _Facts | None:
    """Open the file; None where nothing more can be said about it."""
    if not entry.path.exists():
        notes.error("missing-file", f"{entry.path.name} does not exist")
        return None
    if entry.kind == "image" and settings.mode != "t2v":
        notes.error(
            "needs-video",
            f"a picture does not move, and --mode {settings.mode} learns from what does",
            "pictures are for --mode t2v",
        )
        return None
    reader: Callable[[Entry, CheckSettings, _Notes], _Facts | None] = {
        "video": _open_video,
        "image": _open_image,
        "frames": _open_frames,
    }[entry.kind]
    try:
        return reader(entry, settings, notes)
    except UnreadableMediaError as error:
        lacks = error.message.removeprefix(str(entry.path)).startswith(" holds no video")
        code = "no-video-stream" if lacks else "unreadable"
        notes.error(code, _shortened(error.message, entry.path), error.hint or "")
    except OSError as error:
        notes.error("unreadable", f"it cannot be read ({error.strerror})")
    return None


def _shortened(message: str, path: Path) -> str:
    """A sentence without the path, which is told beside it."""
    return "it" + rest if (rest := message.removeprefix(str(path))) != message else message


def _open_video(entry: Entry, settings: CheckSettings, notes: _Notes) -> _Facts | None:
    source = probe_source(entry.path)
    _check_whole(source, notes)
    start, end = entry.cut or (0.0, source.duration)
    if start >= source.duration:
        notes.error("too-short", f"lasts {source.duration:.2f} s, its cut begins at {start:.2f} s")
        return None
    part = part_of(source, start, end)
    _decode(part)
    if source.is_variable:
        way = (
            f"every {settings.stride}. frame is counted at {float(source.fps):.2f} fps on average"
            if settings.stride
            else "frames are taken by their times"
        )
        notes.warning("vfr", f"its frame rate varies: {way}")
    if source.rotation:
        notes.warning("rotated", f"is turned by {source.rotation} degrees: it is used upright")
    if source.bit_depth > 8:
        notes.warning("hdr", f"{source.bit_depth}-bit colours are rounded to 8 bits")
    if settings.stride is None and source.fps < settings.fps * _RATE_SLACK:
        notes.error(
            "low-fps",
            f"{float(source.fps):.2f} fps, trained at {settings.fps}: frames would be shown twice",
            "--stride 1 takes frames as they are, --fps trains at another rate",
        )
    return _Facts(
        size=(source.width, source.height),
        available=available_frames(part, settings.fps, settings.stride),
        seconds=part.duration,
        fps=source.fps,
        content=source.sha256,
        start=start,
        video=part,
    )


def _check_whole(source: SourceVideo, notes: _Notes) -> None:
    """Blame a file that has fewer pictures than it says."""
    for notice in source.notices:
        if " is cut short: " in notice:
            notes.error("unreadable", notice, "copy or download it again")
        elif ", its pictures end after " in notice:
            # Sound may go on for longer, by intent.
            note = notes.warning if source.has_audio else notes.error
            note("unreadable", notice, "play it to its end; copy or download it again")


def _decode(part: SourceVideo) -> None:
    """Decode the middle and the end; probing has decoded the beginning.

    Raises:
        UnreadableMediaError: they cannot be.
    """
    total = part.num_frames_at(part.fps)
    # A decoder may lose its last pictures, and reading does without half a second of them.
    near_end = max(0, total - 1 - math.ceil(part.fps))
    for _ in read_frames(part, (16, 16), part.fps, start_frame=total // 2, num_frames=1):
        pass
    for _ in read_frames(part, (16, 16), part.fps, start_frame=near_end):
        pass


def _open_image(entry: Entry, settings: CheckSettings, notes: _Notes) -> _Facts:
    loaded = load_image(entry.path)
    return _Facts(loaded.image.size, 1, 0.0, None, loaded.sha256)


def _open_frames(entry: Entry, settings: CheckSettings, notes: _Notes) -> _Facts | None:
    paths = frame_files(entry.path)
    if not paths:
        notes.error("no-video-stream", "there are no pictures in the folder")
        return None
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    looked_at = dict.fromkeys((paths[0], paths[len(paths) // 2], paths[-1]))
    sizes = {path: load_image(path).image.size for path in looked_at}
    first = sizes[paths[0]]
    if other := next((path for path, size in sizes.items() if size != first), None):
        width, height = sizes[other]
        notes.error(
            "unreadable",
            f"{other.name} is {width}x{height}, {paths[0].name} is {first[0]}x{first[1]}",
        )
        return None
    if entry.cut is not None:
        begin, end = (round(seconds * settings.fps) for seconds in entry.cut)
        if begin >= len(paths):
            notes.error("too-short", f"{len(paths)} pictures, its cut begins at {begin}")
            return None
    else:
        begin, end = 0, len(paths)
    count = min(end, len(paths)) - begin
    return _Facts(
        size=first,
        available=(count - 1) // (settings.stride or 1) + 1,
        seconds=count / settings.fps,
        fps=None,
        content=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        start=begin / settings.fps,
    )


def _check_shape(facts: _Facts, settings: CheckSettings, notes: _Notes) -> tuple[int, int] | None:
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
            "--allow-upscale enlarges it, or train at a smaller --size",
        )
    return size


def _check_length(
    entry: Entry,
    facts: _Facts,
    settings: CheckSettings,
    size: tuple[int, int] | None,
    notes: _Notes,
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
    facts: _Facts, windows: tuple[Window, ...], settings: CheckSettings, notes: _Notes
) -> None:
    """Warn of what stands still, is dark, or is two clips, in the parts that are used."""
    assert facts.video is not None
    step = frame_seconds(facts.fps, settings.fps, settings.stride)
    spans = [(w.start - facts.start, ((w.num_frames - 1) * step)) for w in windows]
    told: set[str] = set()
    for start, seconds in spans or [(0.0, min(facts.seconds, _LOOK_SECONDS))]:
        try:
            found = measure_clip(facts.video, start, max(seconds, 0.1))
        except UnreadableMediaError as error:
            notes.error("unreadable", _shortened(error.message, facts.video.path))
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
