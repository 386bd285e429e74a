"""Datasets that are lists: lines of JSON, a JSON array or object, tables, lines of text."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from osp_cli.errors import InvalidRequestError
from osp_cli.training.dataset.entries import Entry
from osp_cli.training.dataset.listing import (
    BadRowError,
    Draft,
    inside,
    is_clean,
    kind_of,
    one_line,
    read_text,
)

PATH_NAMES = ("file_name", "file_path", "path", "video_path", "image_path", "video", "image")
CAPTION_NAMES = ("text", "caption", "cap", "prompt")
SOURCE_NAMES = ("source", "source_image")
_MAX_REPEATS = 10_000

# A row, or the sentence that says why it is none, and the line where it begins.
_Rows = Iterator[tuple[int, Mapping[str, Any] | str]]


def read_rows(path: Path) -> _Rows:
    """The rows of a `.jsonl`, `.json` or `.csv` file.

    Raises:
        InvalidRequestError: the file cannot be read, or is of another kind.
    """
    text = read_text(path)
    match path.suffix.lower():
        case ".jsonl":
            return _lines_of_json(text)
        case ".json":
            return _array(text)
        case ".csv":
            return _table(text)
    raise InvalidRequestError(f"{path} is no list of clips", hint="lists are .jsonl, .json or .csv")


def add_rows(draft: Draft, path: Path, *, root: Path | None = None, repeats: int = 1) -> None:
    """Take the clips of a metadata file.

    Args:
        root: folder of the clips; that of the file if not told.
        repeats: of clips that tell none themselves.
    """
    root = path.parent if root is None else root
    name = draft.place(path)
    above = 0
    for item, (line, row) in enumerate(read_rows(path), 1):
        # Programs write arrays without line breaks.
        place = f"{name}:{line}" + (f", item {item}" if line == above else "")
        above = line
        if isinstance(row, str):
            draft.bad_row(place, row)
        else:
            add_row(draft, row, place, root, repeats=repeats)


def add_row(
    draft: Draft, row: Mapping[str, Any], place: str, root: Path, *, repeats: int = 1
) -> None:
    """Take the clip of one row, or note what is wrong with it."""
    named = _first(row, PATH_NAMES)
    if named is None:
        draft.bad_row(place, f"no path: one of {', '.join(PATH_NAMES)} is needed")
        return
    caption_name = next((name for name in CAPTION_NAMES if name in row), None)
    if caption_name is None and not draft.allow_empty:
        draft.bad_row(place, f"no caption: one of {', '.join(CAPTION_NAMES)} is needed")
        return
    try:
        path = inside(root, named)
        pictured = _first(row, SOURCE_NAMES)
        source = None if pictured is None else inside(root, pictured)
        cut = _cut(row)
        repeats = _repeats(row, repeats)
    except BadRowError as error:
        draft.bad_row(place, error.message, error.hint, code=error.code)
        return
    caption = None if caption_name is None else _caption(draft, row[caption_name], place)
    draft.add(
        Entry(
            path=path,
            kind=kind_of(path),
            caption=caption,
            place=place,
            repeats=repeats,
            cut=cut,
            source=source,
            style=str(row.get("style") or ""),
        )
    )


def add_manifest(draft: Draft, path: Path) -> str:
    """Take the clips of `osp.jsonl` that the builder has finished; the layout in words."""
    total = taken = 0
    name = draft.place(path)
    for line, row in read_rows(path):
        place = f"{name}:{line}"
        total += 1
        if isinstance(row, str):
            draft.bad_row(place, row)
        elif row.get("accepted") is True and row.get("stage") == "done":
            taken += 1
            add_row(draft, row, place, path.parent)
    return f"manifest {path.name}, {taken} of {total} records are finished and accepted"


def add_flash_list(draft: Draft, path: Path) -> None:
    """Take the clips of FlashI2V's lists of lists: lines of a folder, a comma, and a JSON file.

    The list is its user's own, so the folders may be anywhere; what a JSON file names is below its
    folder.
    """
    name = draft.place(path)
    for line, text in enumerate(read_text(path).split("\n"), 1):
        if not text.strip() or text.startswith("#"):
            continue
        folder, _, listed = (part.strip() for part in text.rpartition(","))
        place = f"{name}:{line}"
        annotation = path.parent / listed
        if not folder or "\0" in text or annotation.suffix.lower() not in (".json", ".jsonl"):
            draft.bad_row(place, "a line is a folder, a comma and a .json file")
        elif not annotation.is_file():
            draft.bad_row(place, f"{listed} does not exist", code="missing-file")
        else:
            add_rows(draft, annotation, root=path.parent / folder)


def is_flash_list(path: Path) -> bool:
    """Whether the first line of a text file is one of such a list."""
    if not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = next(
                (line for line in iter(lambda: file.readline(4096), "") if line.strip()), ""
            )
    except OSError:
        return False
    return re.fullmatch(r"[^,]+,\s*\S[^,]*\.jsonl?", first.strip(), re.IGNORECASE) is not None


def add_line_pairs(draft: Draft, videos: Path, prompts: Path) -> None:
    """Take clips of two files whose lines belong together."""
    paths = read_text(videos).split("\n")
    captions = read_text(prompts).split("\n")
    for lines in (paths, captions):
        while lines and not lines[-1].strip():
            lines.pop()
    for line in range(1, max(len(paths), len(captions)) + 1):
        place = f"{draft.place(videos)}:{line}"
        if line > len(paths):
            draft.bad_row(
                f"{draft.place(prompts)}:{line}", f"no video: {videos.name} has {len(paths)} lines"
            )
        elif line > len(captions):
            draft.bad_row(place, f"no caption: {prompts.name} has {len(captions)} lines")
        elif paths[line - 1].strip() or captions[line - 1].strip():
            row = {"video": paths[line - 1], "caption": captions[line - 1]}
            add_row(draft, row, place, videos.parent)


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of these columns that holds anything."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _caption(draft: Draft, value: object, place: str) -> str | None:
    """A caption, the first of several; None where there is none."""
    if isinstance(value, list):
        # Conditions are made once for each clip, so one has to do.
        value = next((each for each in value if each), None)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str):
        draft.caption_trouble(place, f"the caption is no text: {value!r:.60}")
        return None
    if not is_clean(value):
        draft.caption_trouble(place, "the caption is not UTF-8 text", "save the list as UTF-8")
        return None
    return one_line(value)


def _cut(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """The part of the file in seconds.

    FlashI2V's own lists, which are known by their `cap`, count frames.
    """
    value = row.get("cut")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRowError("bad-row", f"cut is [start, end], got {value!r:.60}") from None
    if value in (None, "", []):
        return None
    numbers = [_number(each) for each in value] if isinstance(value, list) else []
    start, end = numbers if len(numbers) == 2 else (None, None)
    if start is None or end is None:
        raise BadRowError("bad-row", f"cut is [start, end], got {value!r:.60}")
    if "cap" in row:
        fps = _number(row.get("fps"))
        if fps is None or fps <= 0:
            raise BadRowError("bad-row", "cut counts frames here, and no fps tells their rate")
        start, end = start / fps, end / fps
    if not 0 <= start < end:
        raise BadRowError("bad-row", f"cut ends before it begins: {value!r:.60}")
    return start, end


def _number(value: object) -> float | None:
    """A finite number, which tables hold as a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _repeats(row: Mapping[str, Any], default: int) -> int:
    value = row.get("num_repeats", row.get("repeats"))
    if value in (None, ""):
        return default
    text = str(value)
    if not re.fullmatch(r"\d{1,5}", text) or not 1 <= int(text) <= _MAX_REPEATS:
        raise BadRowError("bad-row", f"repeats are 1 to {_MAX_REPEATS}, got {value!r:.60}")
    return int(text)


def _lines_of_json(text: str) -> _Rows:
    # Only at line feeds: JSON strings may hold the other line ends of Unicode.
    for line, row in enumerate(text.split("\n"), 1):
        if row.strip():
            yield line, _object(row)


def _object(text: str) -> Mapping[str, Any] | str:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"no JSON object: {text.strip():.60}"


def _array(text: str) -> _Rows:
    """Objects of an array, or the values of an object whose names are those of files.

    Read one by one, since the line of each is wanted.
    """
    decoder = json.JSONDecoder()
    blank = re.compile(r"[\s,]*")
    at = _after(blank, text, 0)
    opening = text[at : at + 1]
    if opening not in ("[", "{"):
        yield 1, "not JSON: a list of objects is needed"
        return
    at = _after(blank, text, at + 1)
    line, counted = 1, 0
    while at < len(text) and text[at] not in "]}":
        line, counted = line + text.count("\n", counted, at), at
        try:
            named: dict[str, Any] = {}
            if opening == "{":
                name, at = decoder.raw_decode(text, at)
                at = _after(re.compile(r"\s*:\s*"), text, at)
                named = {"file_name": name}
            row, at = decoder.raw_decode(text, at)
            if named and isinstance(row, str):
                row = {"caption": row}
        except (ValueError, RecursionError) as error:
            yield line, f"not JSON from here on: {error}"
            return
        yield line, named | row if isinstance(row, dict) else f"no JSON object: {row!r:.60}"
        at = _after(blank, text, at)
    if at >= len(text):
        yield line + text.count("\n", counted), "the file is cut short: its last bracket is missing"


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


def _table(text: str) -> _Rows:
    # People put a space after a comma, and then a quotation mark.
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    names: list[str] | None = None
    line = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                if names is None:
                    names = [cell.strip() for cell in row]
                elif len(row) != len(names):
                    yield line, f"{len(row)} fields, the first row names {len(names)}"
                else:
                    yield line, dict(zip(names, row, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        yield line, f"no table from here on: {error}"
