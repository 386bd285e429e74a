"""Opening the files of one clip: what they are, and whether they can be read to their end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.gates import FROZEN_FRACTION
from osp_cli.media.image import load_image
from osp_cli.media.source_video import SourceVideo, probe_source, read_frames
from osp_cli.training.dataset.entries import ERROR, WARNING, Entry, Finding
from osp_cli.training.dataset.folders import frame_files
from osp_cli.training.dataset.settings import CheckSettings
from osp_cli.training.dataset.windows import available_frames, part_of

# Files write 15.99 for 16: no frame of ten seconds is shown twice for that.
_RATE_SLACK = 0.99
# Pictures a second that are looked at: all are decoded, these alone are scaled as well.
_LOOK_FPS = 4
# Reading begins ten seconds early: what is closer is decoded on the way.
_APART_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Facts:
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
class Notes:
    """Findings about one clip while it is looked at."""

    place: str
    found: list[Finding] = field(default_factory=list)

    def error(self, code: str, message: str, hint: str = "") -> None:
        """Note what makes it unusable."""
        self.found.append(
            Finding(code=code, level=ERROR, place=self.place, message=message, hint=hint)
        )

    def warning(self, code: str, message: str, hint: str = "") -> None:
        """Note what people should know."""
        self.found.append(
            Finding(code=code, level=WARNING, place=self.place, message=message, hint=hint)
        )

    @property
    def has_errors(self) -> bool:
        """Whether anything makes it unusable."""
        return any(finding.level == ERROR for finding in self.found)


def open_entry(entry: Entry, settings: CheckSettings, notes: Notes) -> Facts | None:
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
    reader: Callable[[Entry, CheckSettings, Notes], Facts | None] = {
        "video": _open_video,
        "image": _open_image,
        "frames": _open_frames,
    }[entry.kind]
    try:
        return reader(entry, settings, notes)
    except UnreadableMediaError as error:
        lacks = error.message.removeprefix(str(entry.path)).startswith(" holds no video")
        code = "no-video-stream" if lacks else "unreadable"
        notes.error(code, shortened(error.message, entry.path), error.hint or "")
    except OSError as error:
        notes.error("unreadable", f"it cannot be read ({error.strerror})")
    return None


def shortened(message: str, path: Path) -> str:
    """A sentence without the path, which is told beside it."""
    return "it" + rest if (rest := message.removeprefix(str(path))) != message else message


def _open_video(entry: Entry, settings: CheckSettings, notes: Notes) -> Facts | None:
    source = probe_source(entry.path)
    if not _is_whole(source, notes):
        return None
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
    return Facts(
        size=(source.width, source.height),
        available=available_frames(part, settings.fps, settings.stride),
        seconds=part.duration,
        fps=source.fps,
        content=source.sha256,
        start=start,
        video=part,
    )


def _is_whole(source: SourceVideo, notes: Notes) -> bool:
    """Whether a file has all the pictures that it tells of."""
    for notice in source.notices:
        if " is cut short: " in notice:
            notes.error("unreadable", notice, "copy or download it again")
            return False
        if ", its pictures end after " in notice:
            hint = "play it to its end; copy or download it again"
            if not source.has_audio:
                notes.error("unreadable", notice, hint)
                return False
            # Sound may go on for longer, by intent.
            notes.warning("unreadable", notice, hint)
    return True


def _decode(part: SourceVideo) -> None:
    """Decode the middle and the end; probing has decoded the beginning.

    Raises:
        UnreadableMediaError: they cannot be.
    """
    total = part.num_frames_at(_LOOK_FPS)
    middle, end = total // 2, max(0, total - 1 - _LOOK_FPS)
    if end - middle > _APART_SECONDS * _LOOK_FPS:
        for _ in read_frames(part, (16, 16), _LOOK_FPS, start_frame=middle, num_frames=1):
            pass
        middle = end
    # A decoder may lose its last pictures, and reading does without half a second of them.
    for _ in read_frames(part, (16, 16), _LOOK_FPS, start_frame=middle):
        pass


def _open_image(entry: Entry, settings: CheckSettings, notes: Notes) -> Facts:
    loaded = load_image(entry.path)
    return Facts(loaded.image.size, 1, 0.0, None, loaded.sha256)


def _open_frames(entry: Entry, settings: CheckSettings, notes: Notes) -> Facts | None:
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
    # A picture that is there twice; those that only look alike would have to be decoded.
    repeated = sum(before == after for before, after in pairwise(digests))
    if repeated > FROZEN_FRACTION * max(1, len(digests) - 1):
        notes.warning("frozen", f"{repeated} of {len(paths)} pictures repeat the one before")
    if entry.cut is not None:
        begin, end = (round(seconds * settings.fps) for seconds in entry.cut)
        if begin >= len(paths):
            notes.error("too-short", f"{len(paths)} pictures, its cut begins at {begin}")
            return None
    else:
        begin, end = 0, len(paths)
    count = min(end, len(paths)) - begin
    return Facts(
        size=first,
        available=(count - 1) // (settings.stride or 1) + 1,
        seconds=count / settings.fps,
        fps=None,
        content=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        start=begin / settings.fps,
    )
