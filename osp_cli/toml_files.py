"""TOML files that people write: read with refusals that name the file, and the line where it can
be told."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from osp_cli.errors import InvalidRequestError


def read_toml(path: Path, called: str | None = None) -> tuple[str, dict[str, Any]]:
    """The text of a file, and what it says.

    Args:
        path: of the file.
        called: what the user calls it.

    Raises:
        InvalidRequestError: no readable TOML.
    """
    called = called or str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        return text, tomllib.loads(text)
    except OSError as error:
        raise InvalidRequestError(f"{called} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{called} is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        # Besides its own errors the reader lets those of Python's numbers and stack through.
        raise InvalidRequestError(f"{called} is not valid TOML: {error}") from error


def line_of(text: str, key: str, table: str) -> str:
    """`, line N` of a key, or of the table `key` at the top; nothing where it cannot be told.

    TOML's reader keeps no lines.
    """
    inside = ""
    for number, line in enumerate(text.split("\n"), 1):
        if header := re.match(r"\s*\[+\s*([\w-]+)\s*\]", line):
            inside = header[1]
            if not table and inside == key:
                return f", line {number}"
        elif inside == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
            return f", line {number}"
    return ""
