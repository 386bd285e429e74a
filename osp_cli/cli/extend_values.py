"""What `osp extend` reads from its arguments: inputs, stages, screenplays."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from osp_cli.dials import size
from osp_cli.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class StageList:
    """Resolutions of a chunk: how many, and the highest where sizes were listed."""

    count: int
    size: tuple[int, int] | None = None


def stage_list(text: str) -> StageList:
    """`3`, or `160x96,320x192,640x384`: each size twice the one before.

    Raises:
        InvalidRequestError: neither of the two.
    """
    if re.fullmatch(r"\d{1,2}", text.strip()):
        count = int(text)
        if not 1 <= count <= 4:
            raise InvalidRequestError(f"--stages must be 1 to 4, got {count}")
        return StageList(count)
    try:
        sizes = [tuple(size(part)) for part in text.split(",")]
    except InvalidRequestError:
        raise InvalidRequestError(
            f"--stages takes a number or sizes, got {text!r}",
            hint="--stages 160x96,320x192,640x384, or --stages 3",
        ) from None
    for low, high in itertools.pairwise(sizes):
        if (low[0] * 2, low[1] * 2) != high:
            raise InvalidRequestError(
                f"--stages doubles from one size to the next, {low[0]}x{low[1]} is followed by "
                f"{high[0]}x{high[1]}",
                hint="--stages 160x96,320x192,640x384, or --stages 3",
            )
    if len(sizes) > 4:
        raise InvalidRequestError(f"--stages must be 1 to 4, got {len(sizes)} sizes")
    return StageList(len(sizes), (sizes[-1][0], sizes[-1][1]))


def input_and_prompt(first: str | None, second: str | None) -> tuple[str | None, str | None]:
    """INPUT and PROMPT of what was typed: a lone text that is no file is the prompt."""
    if first is None or second is not None or first == "-":
        return first, second
    # Unlike the method of paths, this takes any text for a name. What looks like a file is one,
    # so that it is missed by its name and not painted by it.
    if os.path.exists(first) or re.fullmatch(r"\S*\.\w{1,11}", first):  # noqa: PTH110
        return first, None
    return None, first


def read_text(path: Path, what: str) -> str:
    """The text of a small file, with people's words where it cannot be had.

    Raises:
        InvalidRequestError: it is missing, unreadable, no text, or huge.
    """
    try:
        if path.stat().st_size > 2**20:
            raise InvalidRequestError(f"{path} is too large for {what}")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidRequestError(
            f"{what} {str(path)!r} cannot be read: {error.strerror}", hint="check the name"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{what} {str(path)!r} is not UTF-8 text") from error
