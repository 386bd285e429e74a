"""`osp.jsonl`: what has become of every source in every style, one JSON object a line.

The file is always whole: a new one is written beside it and renamed. Keys that are not known here
stay as they are, so other programs may add their own.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from osp_cli.errors import InvalidRequestError
from osp_cli.media.files import atomic_output, explained

MANIFEST = "osp.jsonl"
# How far a row has come. The last but one is a clip that has not been judged yet.
STAGES = ("gated", "keyframed", "stylised", "animated", "done")
# Of the time, at most one part in so many goes into saving: a manifest of many thousand rows takes
# a while. What a killed run has not saved is made again, to the same bits.
_SHARE_OF_SAVING = 20

# In this order in every line; what others have added follows.
_KEYS = (
    *("id", "video", "caption", "style", "source", "keyframe", "stage", "accepted"),
    *("problems", "reason"),
    *("prompt", "instruction", "seed", "num_frames", "fps", "width", "height"),
    *("source_id", "origin", "gates"),
    *("stylizer", "style_tries", "style_scores", "animator", "clip_tries", "clip_scores"),
    *("source_sha256", "source_bytes", "keyframe_sha256", "keyframe_bytes"),
    *("video_sha256", "video_bytes"),
)

# What stands for files, and what files are called after.
_FILES = ("video", "source", "keyframe")
_ID = re.compile(r"[^/\\\0]{1,255}")

Row = dict[str, Any]


class Manifest:
    """The rows of a dataset, in the order in which they were begun.

    Args:
        path: of the file; it need not exist yet.

    Raises:
        InvalidRequestError: a line is no row, and not the last one, cut short; or it names files
            elsewhere.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, Row] = {}
        self._save_after = 0.0
        self._unsaved = False
        for number, row in _lines(path):
            if (problem := _strange(row)) is not None:
                raise InvalidRequestError(
                    f"{path}, line {number}: {problem}", hint="remove the line, or build elsewhere"
                )
            # Lines of others have no name, and only stay.
            self._rows[str(row.get("id", f"\0{number}"))] = row

    def __iter__(self) -> Iterator[Row]:
        return iter(list(self._rows.values()))

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, name: str) -> Row | None:
        """The row of that id, None where there is none."""
        return self._rows.get(name)

    def at(self, *stages: str) -> list[Row]:
        """Accepted rows that have come as far as one of these stages, and no further."""
        return [row for row in self if row.get("accepted") is True and row.get("stage") in stages]

    def put(self, row: Row) -> None:
        """Keeps a row, new or changed; saves all if that is due."""
        self._rows[row["id"]] = row
        self._unsaved = True
        if time.monotonic() >= self._save_after:
            self.save()

    def clear(self) -> None:
        """Forgets all rows."""
        self._rows.clear()
        self._unsaved = True

    def save(self) -> None:
        """Writes what is not in the file yet.

        Raises:
            OspError: the file cannot be written.
        """
        if not self._unsaved:
            return
        started = time.monotonic()
        with atomic_output(self.path, overwrite=True) as part:
            part.write_text(
                "".join(json.dumps(_ordered(row), ensure_ascii=False) + "\n" for row in self),
                "utf-8",
            )
        self._unsaved = False
        now = time.monotonic()
        self._save_after = now + _SHARE_OF_SAVING * (now - started)


def _ordered(row: Row) -> Row:
    known = {key: row[key] for key in _KEYS if key in row}
    return {**known, **{key: value for key, value in row.items() if key not in known}}


def _strange(row: Row) -> str | None:
    """What of a row would lead out of the dataset's folder: files are made and removed by it."""
    if "id" not in row:
        return None
    if not _ID.fullmatch(str(row["id"])) or str(row["id"]) in (".", ".."):
        return f"{row['id']!r} is no id"
    for key in _FILES:
        name = row.get(key)
        parts = PurePath(name.replace("\\", "/")).parts if isinstance(name, str) else ()
        if ".." in parts or (parts and PurePath(*parts).is_absolute()):
            return f"{key} {name!r} is not in the dataset's folder"
    return None


def _lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Numbers from 1 on and rows of a file, of which the last line may be cut short."""
    with explained(path):
        if not path.exists():
            return
        lines = path.read_bytes().split(b"\n")
    torn = len(lines)  # what follows the last line end: nothing, or a line cut short
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            if not isinstance(row, dict):
                raise ValueError("no object")
        except ValueError as error:
            if number == torn:
                return
            raise InvalidRequestError(
                f"{path}, line {number}, is no row of a dataset ({error})",
                hint="mend or remove the line",
            ) from error
        yield number, row
