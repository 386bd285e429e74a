"""Files of many jobs: one video per line of text, JSON or a table.

- `.txt`: a prompt per line; ` --flag value` behind it sets what holds for this line alone, spelled
  as on the command line: ` -s ink`, ` --vae-tiling` and ` --no-metadata` too. Empty lines and those
  that begin with `#` are skipped.
- `.jsonl`: an object per line.
- `.csv`: a table with the names in its first row; an empty field counts as not given.

Names are those of the long flags, and `image` and `text`.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osp_cli.dials import DIALS, SHORT_NAMES, canonical_name, read_value
from osp_cli.errors import InvalidRequestError
from osp_cli.registry import nearest

MAX_JOBS = 10_000
MAX_BYTES = 64 * 2**20
KINDS = (".txt", ".jsonl", ".csv")

_INPUTS = ("image", "text")
_NAMES = (*DIALS, *_INPUTS)
# Where the flags of a line begin: a word of two dashes and a letter, or of a dash and one letter.
_FIRST_FLAG = re.compile(r"(?:^|\s)(?=--[a-z]|-[A-Za-z](?:\s|$))")


@dataclass(frozen=True, slots=True)
class Job:
    """One line.

    Attributes:
        place: `jobs.csv, line 3`.
        values: dials by field name.
        image, text: what the video is made of, where the line says so.
        error: why the line cannot be read; then there is nothing else.
    """

    place: str
    values: Mapping[str, Any] = field(default_factory=dict)
    image: str | None = None
    text: str | None = None
    error: InvalidRequestError | None = None


def read_jobs(text: str, kind: str, called: str) -> list[Job]:
    """The jobs of a file, unreadable lines among them as jobs with an error.

    Args:
        text: the whole file.
        kind: one of `KINDS`.
        called: the file's name, for messages.

    Raises:
        InvalidRequestError: no jobs, too many, a table without names, or another kind of file.
    """
    match kind:
        case ".txt":
            rows = _text_rows(text, called)
        case ".jsonl":
            rows = _json_rows(text, called)
        case ".csv":
            rows = _table_rows(text, called)
        case _:
            raise InvalidRequestError(
                f"--from-file reads {', '.join(KINDS)}, got {called!r}",
                hint="one prompt per line of a .txt file is the simplest",
            )
    jobs: list[Job] = []
    for place, row in rows:
        if len(jobs) == MAX_JOBS:
            raise InvalidRequestError(f"{called} holds more than {MAX_JOBS} jobs")
        jobs.append(Job(place, error=row) if isinstance(row, Exception) else _job(place, row))
    if not jobs:
        raise InvalidRequestError(f"{called} holds no jobs", hint="one prompt per line")
    return jobs


def read_file(path: Path) -> tuple[str, str]:
    """The text of a file of jobs and its kind.

    Raises:
        InvalidRequestError: it cannot be read, or is no text.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidRequestError(f"{path} is larger than {MAX_BYTES // 2**20} MB")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{path} is not UTF-8 text") from error
    return text, path.suffix.lower()


def kind_of(text: str) -> str:
    """The kind of a file that came through a pipe, without a name to tell it."""
    first = text.lstrip().partition("\n")[0]
    if first.startswith("{"):
        return ".jsonl"
    names = [name.strip().lower() for name in first.split(",")]
    return ".csv" if len(names) > 1 and set(names) <= {*_NAMES} else ".txt"


_Rows = Iterator[tuple[str, Mapping[str, object] | InvalidRequestError]]


def _text_rows(text: str, called: str) -> _Rows:
    # At the line ends of text files only: a prompt may hold the other ones of Unicode.
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        place = f"{called}, line {number}"
        prompt, rest = split_flags(line)
        try:
            yield place, {**({"prompt": prompt} if prompt else {}), **read_flags(rest, place)}
        except InvalidRequestError as error:
            yield place, error


def split_flags(line: str) -> tuple[str, str]:
    """What a line says, and the flags behind it as one text."""
    flags = _FIRST_FLAG.search(line)
    return (line, "") if flags is None else (line[: flags.start()], line[flags.end() :])


def read_flags(text: str, place: str) -> dict[str, object]:
    """The values of `--style ink --seed=4` by the names of the flags, as they are written.

    Raises:
        InvalidRequestError: an unknown flag, or one without a value; the message names `place`.
    """
    # Quotes group words; a backslash is a letter, as in the paths of Windows.
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    try:
        words = deque(lexer)
    except ValueError as error:
        raise InvalidRequestError(f"{place}: a quotation mark is not closed") from error
    values: dict[str, object] = {}
    while words:
        name, value = _next_flag(words, place)
        # Of most names the last one holds; each LoRA is one more, as on the command line.
        values[name] = [*_listed(values.get(name)), value] if name == "lora" else value
    return values


def _next_flag(words: deque[str], place: str) -> tuple[str, object]:
    """Take the first flag off `words`, with its value: `--seed 4`, `-s ink`, `--no-metadata`."""
    word = words.popleft()
    if re.fullmatch(r"-[A-Za-z]", word):
        if word[1] not in SHORT_NAMES:
            known = ", ".join(f"-{letter}" for letter in SHORT_NAMES)
            raise InvalidRequestError(
                f"{place}: unknown name {word!r}", hint=f"the short names are: {known}"
            )
        written, given, value = SHORT_NAMES[word[1]], "", ""
    elif word.startswith("--"):
        written, given, value = word[2:].partition("=")
    else:
        raise InvalidRequestError(
            f"{place}: {word!r} stands behind a value", hint="put quotes around values"
        )
    refused = _spelled(written.removeprefix("no-"))
    if written.startswith("no-") and refused in DIALS and DIALS[refused].is_switch:
        if given:
            raise InvalidRequestError(f"{place}: --{written} takes no value")
        return refused, False
    name = _known(written, place)
    if given:
        return name, value
    if name in DIALS and DIALS[name].is_switch and (not words or words[0].startswith("-")):
        return name, True
    if not words:
        raise InvalidRequestError(f"{place}: {word} has no value")
    return name, words.popleft()


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _json_rows(text: str, called: str) -> _Rows:
    # Only at line feeds: JSON strings may hold the other line ends of Unicode.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{called}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield place, InvalidRequestError(f"{place} is not JSON: {error}")
            continue
        if isinstance(row, dict):
            # null is JSON's way to leave something out.
            yield place, {name: value for name, value in row.items() if value is not None}
        else:
            yield place, InvalidRequestError(f"{place} is no JSON object", hint='{"prompt": "..."}')


def _table_rows(text: str, called: str) -> _Rows:
    # People put a space after a comma, and then a quotation mark.
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    names: list[str] | None = None
    try:
        for row in reader:
            place = f"{called}, line {reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if names is None:
                names = _checked_names(row, place)
                continue
            if len(row) > len(names):
                yield (
                    place,
                    InvalidRequestError(
                        f"{place} has {len(row)} fields, the first row names {len(names)}",
                        hint='put quotes around a field with commas: "slowly, to the left"',
                    ),
                )
                continue
            cells = zip(names, row, strict=False)
            yield place, {name: cell.strip() for name, cell in cells if cell.strip()}
    except csv.Error as error:
        raise InvalidRequestError(f"{called}, line {reader.line_num}: {error}") from error


def _checked_names(row: Iterable[str], place: str) -> list[str]:
    """The names of the columns; all of them must be known, or every line would be wrong."""
    names = [cell.strip() for cell in row]
    if len(names) == 1 and ";" in names[0]:
        raise InvalidRequestError(
            f"{place}: fields are separated by commas, not by semicolons",
            hint="save the table as CSV with commas",
        )
    for name in names:
        _known(name, place)
    return names


def _job(place: str, row: Mapping[str, object]) -> Job:
    try:
        values: dict[str, Any] = {}
        inputs: dict[str, str] = {}
        for key, value in row.items():
            name = _known(key, place)
            if name in _INPUTS:
                if not isinstance(value, str):
                    raise InvalidRequestError(f"{place}: {name} is a text, got {value!r}")
                inputs[name] = value
            else:
                values[DIALS[name].field] = read_value(name, value, place)
        return Job(place, values, inputs.get("image"), inputs.get("text"))
    except InvalidRequestError as error:
        return Job(place, error=error)


def _known(key: str, place: str) -> str:
    name = _spelled(key)
    if name in _NAMES:
        return name
    guesses = nearest(name, _NAMES)
    raise InvalidRequestError(
        f"{place}: unknown name {key!r}",
        hint=f"did you mean {' or '.join(guesses)}?"
        if guesses
        else f"the names are: {', '.join(_NAMES)}",
    )


def _spelled(key: str) -> str:
    return canonical_name(key.strip().lower().replace("_", "-"))
