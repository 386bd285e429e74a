"""A folder of numbered PNG frames that appears whole or not at all.

It is asked for as ffmpeg asks for it: `frames/%04d.png` is the folder `frames` with `0001.png`,
`0002.png` and so on, and the recipe among them as `recipe.json`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from osp_cli.errors import InvalidRequestError
from osp_cli.media.files import (
    check_folder,
    exists_already,
    explained,
    flush_file,
    flush_folder,
    hidden_sibling,
    leftovers,
)
from osp_cli.media.frames import checked_frames

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECIPE_NAME = "recipe.json"

_NUMBER = re.compile(r"%(?:0([1-9]))?d")
# What file managers drop into every folder that they show.
_DROPPINGS = (".DS_Store", "Thumbs.db", "desktop.ini")


def frames_folder(output: Path) -> Path | None:
    """The folder of `FOLDER/%04d.png`, or None where `output` is no such pattern.

    The name must hold one number, `%d` or `%01d` to `%09d`, and no other per cent sign.
    """
    if output.suffix.lower() != ".png" or output.name.count("%") != 1:
        return None
    return output.parent if _NUMBER.search(output.name) else None


def check_frames_output(pattern: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder of frames that cannot be written, before any model is loaded for it.

    Raises:
        InvalidRequestError: no pattern of frames, a folder that is missing, read-only, or not to
            be replaced: only one that is empty is, or with `overwrite` one that holds nothing but
            such frames and their recipe.
    """
    folder = frames_folder(pattern)
    if folder is None:
        raise InvalidRequestError(
            f"{pattern} does not number its frames",
            hint=f"name a folder and a number in it: -o {pattern.with_suffix('')}/%04d.png",
        )
    with explained(folder):
        if folder.name in ("", "..") or folder.absolute() == Path.cwd():
            raise InvalidRequestError(
                f"{pattern} names no folder of its own", hint=f"-o frames/{pattern.name}"
            )
        check_folder(folder.parent)
        if folder.is_symlink() or folder.is_mount():
            raise InvalidRequestError(
                f"{folder} leads to another place and cannot be replaced",
                hint="name a folder inside it, or the one it leads to",
            )
        _check_contents(folder, pattern, overwrite=overwrite)


def write_frames(
    frames: Iterable[NDArray[np.uint8]],
    pattern: Path,
    *,
    recipe: bytes | None = None,
    overwrite: bool = False,
) -> int:
    """Save frames as `FOLDER/%04d.png`, numbered from 1.

    Equal frames give equal bytes with the same Pillow and zlib. Frames are pulled one at a time.

    Args:
        frames: uint8 RGB of shape `(height, width, 3)` each, all of one size.
        pattern: as `check_frames_output` takes it.
        recipe: contents of the `recipe.json` among them.
        overwrite: replace a folder that holds such frames.

    Returns:
        The size of all frames in bytes.

    Raises:
        ValueError: no frames, or frames of a wrong shape, type or size.
        InvalidRequestError: as `check_frames_output`.
        WontFitError: the disk is full.
        RuntimeFailureError: the place disappears meanwhile.
    """
    from PIL import Image

    num_bytes = 0
    with _atomic_folder(pattern, overwrite=overwrite) as part:
        for number, frame in enumerate(checked_frames(frames), start=1):
            # In memory first: Pillow may hide the system's reason for not writing.
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, format="PNG")
            path = part / _frame_name(pattern, number)
            num_bytes += path.write_bytes(buffer.getbuffer())
            flush_file(path)
        if recipe is not None:
            (part / RECIPE_NAME).write_bytes(recipe)
            flush_file(part / RECIPE_NAME)
    return num_bytes


@contextlib.contextmanager
def _atomic_folder(pattern: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give an empty hidden folder beside that of `pattern`; let it take its place at the end."""
    check_frames_output(pattern, overwrite=overwrite)
    folder = pattern.parent
    _clear_leftovers(folder, pattern)
    part, old = hidden_sibling(folder, "part"), hidden_sibling(folder, "old")
    with explained(folder):
        try:
            _remove(part, pattern)
            part.mkdir()
            yield part
            flush_folder(part)
            # Once more: frames take their time, and somebody may have put something there.
            check_frames_output(pattern, overwrite=overwrite)
            _publish(part, folder, old)
        finally:
            _remove(part, pattern)
            # The former frames go only where there are new ones.
            if folder.is_dir():
                _remove(old, pattern)
        flush_folder(folder.parent)


def _publish(part: Path, folder: Path, old: Path) -> None:
    try:
        if folder.is_dir() and any(folder.iterdir()):
            folder.rename(old)
        elif folder.is_dir():
            # Not every system renames over an empty folder.
            folder.rmdir()
        part.rename(folder)
    except BaseException as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise exists_already(folder) from error
        raise


def _check_contents(folder: Path, pattern: Path, *, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise exists_already(folder)
    entries = list(folder.iterdir())
    if not entries:
        return
    if not overwrite:
        raise exists_already(folder)
    foreign = sorted(entry.name for entry in entries if not _is_ours(entry, pattern))
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise InvalidRequestError(
            f"{folder} holds other things than frames and is not replaced: {foreign[0]}{more}",
            hint="move them away, or name another folder with -o",
        )
    # To take the frames out of it later.
    check_folder(folder)


def _is_ours(entry: Path, pattern: Path) -> bool:
    """Whether a file may go: a frame of this pattern, with any number of digits, or a recipe."""
    before, _, after = _NUMBER.sub("\0", pattern.name).partition("\0")
    is_frame = re.fullmatch(rf"{re.escape(before)}\d+{re.escape(after)}", entry.name) is not None
    known = is_frame or entry.name in (RECIPE_NAME, *_DROPPINGS)
    return known and entry.is_file() and not entry.is_symlink()


def _clear_leftovers(folder: Path, pattern: Path) -> None:
    """Undo what a killed process left: former frames return to their name where it is free."""
    for old in leftovers(folder, "old"):
        with contextlib.suppress(OSError):
            if os.path.lexists(folder):
                _remove(old, pattern)
            else:
                old.rename(folder)
    for part in leftovers(folder, "part"):
        _remove(part, pattern)


def _remove(folder: Path, pattern: Path) -> None:
    """Delete a folder of frames; one that holds anything else stays, without a word."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if _is_ours(entry, pattern):
                entry.unlink()
        folder.rmdir()


def _frame_name(pattern: Path, number: int) -> str:
    return _NUMBER.sub(lambda match: f"{number:0{match[1] or 1}d}", pattern.name)
