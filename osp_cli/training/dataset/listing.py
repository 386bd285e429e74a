"""What the readers of all layouts give, and what they share: paths, captions, pieces of text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from osp_cli.errors import InvalidRequestError
from osp_cli.media.kinds import MediaKind, media_kind
from osp_cli.training.dataset.entries import ERROR, WARNING, Entry, Finding

MAX_LIST_BYTES = 512 * 2**20
_MAX_CAPTION_BYTES = 2**20
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A dataset as its files list it.

    Attributes:
        root: the folder that it is in.
        layout: in words.
        entries: in the order of the dataset, those with findings among them.
        findings: in the same order.
        places: of all clips that are listed, rows that cannot be read among them.
    """

    root: Path
    layout: str
    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...]
    places: tuple[str, ...]

    @property
    def num_entries(self) -> int:
        """Clips that are listed."""
        return len(self.places)


@dataclass(slots=True)
class Draft:
    """A listing while it is made.

    Attributes:
        root: of the whole dataset; places are told from here.
        allow_empty: clips may come without a caption.
    """

    root: Path
    allow_empty: bool = False
    entries: list[Entry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Take a clip."""
        self.places.append(entry.place)
        self.entries.append(entry)

    def place(self, path: Path) -> str:
        """What a file is called in messages."""
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return str(path)

    def error(self, code: str, place: str, message: str, hint: str = "") -> None:
        """Note what makes an entry unusable."""
        self.findings.append(
            Finding(code=code, level=ERROR, place=place, message=message, hint=hint)
        )

    def warning(self, code: str, place: str, message: str, hint: str = "") -> None:
        """Note what people should know."""
        self.findings.append(
            Finding(code=code, level=WARNING, place=place, message=message, hint=hint)
        )

    def bad_row(self, place: str, message: str, hint: str = "", *, code: str = "bad-row") -> None:
        """Note a row that lists a clip, and of which nothing can be used."""
        self.places.append(place)
        self.error(code, place, message, hint)

    def caption_trouble(self, place: str, message: str, hint: str = "") -> None:
        """Note a caption that cannot be read: as good as none, which may be allowed."""
        note = self.warning if self.allow_empty else self.error
        note("caption-encoding", place, message, hint)

    def finish(self, layout: str) -> Listing:
        """The listing."""
        return Listing(
            root=self.root,
            layout=layout,
            entries=tuple(self.entries),
            findings=tuple(self.findings),
            places=tuple(self.places),
        )


class BadRowError(ValueError):
    """A row of a list that cannot be used, with the code of the finding."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


def inside(root: Path, name: object) -> Path:
    """The file that a list calls `name`, which has to be below `root`.

    A list is somebody's data: it says which clips belong together, and has no business with other
    files. Links inside of the folder are followed, wherever they lead: no list can make one, while
    people lay out collections with them, and so does the hub's own cache.

    Raises:
        BadRowError: it is no path, or leaves the folder.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise BadRowError("bad-row", f"{name!r} is no path of a file")
    name = name.strip()
    if _ADDRESS.match(name):
        raise BadRowError("bad-row", f"{name} is an address", "fetch the clips first")
    # Cleared of `..` as text, and opened so: what was checked is what is read. A whole path may
    # name the folder by where it really is.
    tops = [os.path.normpath(root.absolute()), os.path.realpath(root)]
    path = os.path.normpath(Path(tops[0]) / name)
    for top in tops:
        if path == top:
            raise BadRowError("bad-row", f"{name} is the dataset itself")
        if _common(top, path) == top:
            return root / Path(path).relative_to(top)
    raise BadRowError(
        "outside-root",
        f"{name} is outside of the dataset",
        f"lists name files below {root}: put it there, or a link to it",
    )


def _common(top: str, path: str) -> str:
    try:
        return os.path.commonpath([top, path])
    except ValueError:  # other drives
        return ""


def kind_of(path: Path) -> str:
    """The kind of an entry by the first bytes of its file, or by its name where there is none."""
    if path.is_dir():
        return "frames"
    return "image" if media_kind(path) is MediaKind.PICTURE else "video"


def one_line(text: str) -> str:
    """A caption without line breaks and doubled spaces."""
    return " ".join(text.split())


def read_caption_file(path: Path, draft: Draft, place: str) -> str | None:
    """The caption in a text file, None without one; findings about it go to `place`."""
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        data = path.read_bytes() if path.stat().st_size <= _MAX_CAPTION_BYTES else None
    except OSError as error:
        draft.caption_trouble(place, f"{path.name} cannot be read ({error.strerror})")
        return None
    if data is None:
        draft.caption_trouble(place, f"{path.name} is no caption: it is larger than a megabyte")
        return None
    try:
        return one_line(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        draft.caption_trouble(
            place, f"{path.name} is not UTF-8 text (line {line})", "save it as UTF-8"
        )
        return None


def read_text(path: Path) -> str:
    """A list's text; bytes that are not UTF-8 become characters that no text has.

    Raises:
        InvalidRequestError: it cannot be read, or is too large for a list.
    """
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise InvalidRequestError(f"{path} is larger than {MAX_LIST_BYTES // 2**20} MB")
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}") from error


def is_clean(text: str) -> bool:
    """Whether a text is one in any encoding, without those stand-ins."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def natural(names: Iterable[Path]) -> list[Path]:
    """Files in the order in which people count: 2 before 10."""

    def key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"(\d+)", path.name.lower())
        marks = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
        return marks, path.name

    return sorted(names, key=key)
