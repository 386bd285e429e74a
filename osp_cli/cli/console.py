"""stdout for data, stderr for talk. Nothing else in the package prints.

stdout carries the paths of results, or one JSON object per line; errors and notes go to
stderr, as does the progress that `display.py` draws.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO


class StdoutClosedError(Exception):
    """The reader of stdout has gone; there is nobody left to write to."""


def write_line(text: str) -> None:
    """Write one line of data to stdout at once.

    Raises:
        StdoutClosedError: the pipe is closed.
    """
    if sys.stdout is None:  # started with stdout closed
        return
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except UnicodeEncodeError:
        # A path that is no text in this terminal's encoding; its bytes still name the file.
        sys.stdout.buffer.write(os.fsencode(text) + b"\n")
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise StdoutClosedError from error


def write_json(values: Mapping[str, Any]) -> None:
    """Write one JSON object as a line of stdout."""
    import json

    write_line(json.dumps(values, ensure_ascii=True))


def say(text: str) -> None:
    """Write one line to stderr. Whoever closed it does not want to know."""
    _write_stderr(_folded(visible(text)))


def visible(text: str) -> str:
    """The text with its control characters spelled out.

    The name of a file may hold orders to a terminal; they are shown and not obeyed.
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def say_error(message: str, hint: str | None = None) -> None:
    """Write an error, and what to do about it, to stderr."""
    _say_labelled("error:", "1;31", message)
    if hint:
        say_hint(hint)


def say_hint(hint: str) -> None:
    """Write what to do to stderr."""
    _say_labelled("hint:", "36", hint)


def _say_labelled(label: str, code: str, text: str) -> None:
    folded = _folded(f"{label} {visible(text)}")
    _write_stderr(_emphasised(label, code) + folded.removeprefix(label))


def _folded(text: str) -> str:
    """The text in lines that a terminal on stderr has room for; whole for whatever else it is."""
    if not is_terminal(sys.stderr):
        return text
    room = columns(sys.stderr)
    return "\n".join(line for part in text.split("\n") for line in _wrap(part, room))


def _wrap(text: str, room: int) -> list[str]:
    """The text in lines of so many columns, words left whole: they may be paths or flags."""
    if len(text) <= room:
        return [text]
    import textwrap

    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)


def discard_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush cannot fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether `stream` is a terminal that can move its cursor."""
    return (
        stream is not None
        and stream.isatty()
        and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    )


def columns(stream: TextIO | None = None) -> int:
    """Width of the terminal that `stream` is, or stdout."""
    import shutil

    # Of a terminal whose other stream goes elsewhere, too.
    if stream is not None and not os.environ.get("COLUMNS", "").isdigit():
        with contextlib.suppress(OSError, ValueError):
            return os.get_terminal_size(stream.fileno()).columns or 80
    return shutil.get_terminal_size().columns


def write_table(
    headings: tuple[str, ...], rows: list[tuple[str, ...]], *, least_columns: int = 60
) -> None:
    """Write rows to stdout: a table on a terminal, tab-separated lines elsewhere.

    Args:
        least_columns: a narrower terminal gets the cells of a row one below the other.
    """
    if not is_terminal(sys.stdout):
        for row in rows:
            write_line("\t".join(row))
        return
    if columns() < least_columns:
        import textwrap

        for row in rows:
            write_line(row[0])
            for cell in row[1:]:
                write_line(textwrap.indent(_filled(cell, max(columns() - 2, 8)), "  "))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, style="bold" if index == 0 else "", no_wrap=index == 0)
    # Columns are three apart, and the table has a margin of one at either side.
    others = [max(map(len, column)) for column in zip(headings, *rows, strict=True)][:-1]
    room = columns() - sum(others) - 3 * len(others) - 2
    for row in rows:
        # Where the others have to be broken too, rich knows best.
        table.add_row(*row[:-1], _filled(row[-1], room) if room >= 8 else row[-1])
    Console(highlight=False, markup=False).print(table)


def write_row(name: str, text: str) -> None:
    """Write a name and its text to a terminal's stdout; the text's further lines stand below it."""
    room = max(columns() - len(name), 20)
    text = " ".join(visible(text).split("\n"))
    for number, line in enumerate(_wrap(text, room) or [""]):
        write_line((" " * len(name) if number else name) + line)


def _filled(text: str, width: int) -> str:
    """The text in lines of `width` columns, none of which ends between a figure and its unit."""
    import textwrap

    # To textwrap, unlike to rich, this space is none.
    held = re.sub(r"(?<=\d) (?=[kMG]?B\b)", "\N{NO-BREAK SPACE}", text)
    return textwrap.fill(held, width).replace("\N{NO-BREAK SPACE}", " ")


def _write_stderr(text: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def _emphasised(text: str, code: str) -> str:
    if is_terminal(sys.stderr) and not os.environ.get("NO_COLOR"):
        return f"\x1b[{code}m{text}\x1b[0m"
    return text
