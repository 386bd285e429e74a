"""What `osp stylize` is given: pictures, videos, folders of them, and the prompt behind them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from osp_cli.dials import prompt_text
from osp_cli.errors import InvalidRequestError
from osp_cli.media.kinds import PICTURE_EXTENSIONS, VIDEO_EXTENSIONS
from osp_cli.media.recipes import sidecar_path

MAX_INPUTS = 10_000
_KINDS = PICTURE_EXTENSIONS | VIDEO_EXTENSIONS


def split_arguments(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The inputs, and the prompt if the last word is none of them.

    A word is an input if there is such a file, or if it looks like one, so that a mistyped name is
    missed and not taken for a prompt. The first word is an input whatever it is.

    Raises:
        InvalidRequestError: a prompt of several words without quotes.
    """
    if len(words) < 2:
        return list(words), None
    *others, last = words
    prose = [word for word in words[1:] if word != "-" and not _is_input(word)]
    if len(prose) > 1 and prose == list(words[-len(prose) :]):
        raise InvalidRequestError(
            f"{len(prose)} words are no files: {' '.join(prose)}",
            hint=f'put quotes around a prompt: osp stylize {words[0]} "{" ".join(prose)}"',
        )
    if _is_input(last):
        return list(words), None
    return others, last if last == "-" else prompt_text(last)


def _is_input(word: str) -> bool:
    if word == "-" or word.startswith("@"):
        return False
    # Unlike the method of paths, this takes any text for a name.
    return os.path.exists(word) or re.fullmatch(r"\S*\.\w{1,5}", word) is not None  # noqa: PTH110


def unfolded(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """The inputs with folders replaced by what is in them, and sentences about what is left out.

    Raises:
        InvalidRequestError: a folder without pictures and videos, or too many files.
    """
    found: list[str] = []
    notices: list[str] = []
    for name in inputs:
        # Unlike the method of paths, this takes any text for a name.
        if not os.path.isdir(name):  # noqa: PTH112
            found.append(name)
            continue
        inside, told = _inside(Path(name))
        found += inside
        notices += told
    if len(found) > MAX_INPUTS:
        raise InvalidRequestError(f"{len(found)} inputs are more than {MAX_INPUTS}")
    return list(dict.fromkeys(found)), notices


def _inside(folder: Path) -> tuple[list[str], list[str]]:
    """The pictures and videos of a folder in the order of their names, less what osp made."""
    try:
        paths = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in _KINDS and path.is_file() and not path.name.startswith(".")
        )
    except OSError as error:
        raise InvalidRequestError(f"{folder} cannot be read: {error.strerror}") from error
    ours = [path for path in paths if sidecar_path(path).exists()]
    kept = [path for path in paths if path not in ours]
    if not kept:
        raise InvalidRequestError(
            f"{folder} holds no pictures or videos"
            + (f" but {len(ours)} that osp made" if ours else ""),
            hint="name files, or another folder",
        )
    told = [f"left out of {folder}: {len(ours)} that osp made"] if ours else []
    return list(map(str, kept)), told
