"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from osp_cli.errors import InvalidRequestError, OspError, RuntimeFailureError, WontFitError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
# A folder deleted, a stick pulled out, a network share that went away.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.EIO, errno.ESTALE)

# The leftovers of a process that was killed are ours to clear after this long. Its number alone
# does not say that it is dead: on a shared disk it may be running on another machine.
_LEFTOVER_SECONDS = 600.0
_MAX_NAME_BYTES = 200


def check_writable(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuse an output path that cannot work, before any work is done for it.

    Raises:
        InvalidRequestError: the file exists and `overwrite` is off, it is a folder, or its folder
            is missing or read-only.
    """
    path = Path(path)
    with explained(path):
        if path.is_dir():
            raise InvalidRequestError(
                f"{path} is a folder", hint="name the file to write, as in -o clip.mp4"
            )
        check_folder(path.parent)
        # A dangling link is something too: writing through it or over it would surprise its owner.
        if not overwrite and os.path.lexists(path):
            raise exists_already(path)


def check_folder(folder: Path) -> None:
    """Refuse a folder in which nothing can be made.

    Raises:
        InvalidRequestError: it is missing or read-only.
    """
    if not folder.is_dir():
        raise InvalidRequestError(
            f"the folder {folder} does not exist", hint=f"create it: mkdir -p '{folder}'"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _read_only(folder)


def make_folder(folder: Path) -> None:
    """Make a folder inside one that is there already.

    Raises:
        InvalidRequestError: the outer one is missing or read-only.
        WontFitError: the disk is full.
    """
    with explained(folder):
        try:
            folder.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise InvalidRequestError(
                f"the folder {folder.parent} does not exist",
                hint=f"create it: mkdir -p '{folder}'",
            ) from None


@contextlib.contextmanager
def atomic_output(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well.

    The file is on disk (fsync) before it takes its name. When the block ends in any exception,
    KeyboardInterrupt included, nothing is left and a file that was there before is untouched.
    What a killed process left here for the same path is cleared away first.

    Yields:
        An empty file in the same folder, named after this process, to be filled.

    Raises:
        InvalidRequestError: as `check_writable`, also when the file appears during the block.
        WontFitError: the disk or the quota is full.
        RuntimeFailureError: the folder disappears during the block.
    """
    path = Path(path)
    check_writable(path, overwrite=overwrite)
    # The suffix once more at the end: some programs choose the format by it.
    ending = f"part{path.suffix[:8]}"
    for leftover in leftovers(path, ending):
        with contextlib.suppress(OSError):
            leftover.unlink()
    part = hidden_sibling(path, ending)
    with explained(path):
        try:
            part.unlink(missing_ok=True)
            # The mode that the user's umask asks for; a `tempfile` would be private for ever.
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            yield part
            flush_file(part)
            publish(part, path, overwrite=overwrite)
        finally:
            # What went wrong before tells more than what goes wrong here.
            with contextlib.suppress(OSError):
                part.unlink()
        flush_folder(path.parent)


def check_free_space(
    folder: Path,
    needed_bytes: int,
    *,
    what: str,
    hint: str = "free some space or choose another folder with -o",
) -> None:
    """Refuse a run whose files cannot fit, before it starts.

    Args:
        folder: where they go; it may be missing yet.
        needed_bytes: how many they are, at most.
        what: who needs them, as in `the latents`.
        hint: what to do about it.

    Raises:
        WontFitError: fewer bytes are free. Where the system does not say, nothing is refused.
    """
    there = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), folder)
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        return
    if free < needed_bytes:
        needed, left = _in_words(needed_bytes, free)
        raise WontFitError(f"{folder} has {left} free, {what} would take {needed}", hint=hint)


def hidden_sibling(path: Path, ending: str) -> Path:
    """Where this process prepares `path`: `clip.mp4` -> `.clip.mp4.1234.part`."""
    return path.with_name(f".{_short_name(path)}.{os.getpid()}.{ending}")


def leftovers(path: Path, ending: str) -> list[Path]:
    """Hidden siblings of `path` made by processes that died without clearing them away."""
    if os.name == "nt":
        # `os.kill` is no question there but an answer.
        return []
    pattern = re.compile(rf"\.{re.escape(_short_name(path))}\.(\d{{1,10}})\.{re.escape(ending)}")
    found = []
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            if match is None or _is_alive(int(match[1])):
                continue
            if time.time() - entry.stat(follow_symlinks=False).st_mtime > _LEFTOVER_SECONDS:
                found.append(Path(entry.path))
    return found


def no_space(path: Path) -> WontFitError:
    """The error of a full disk."""
    return WontFitError(
        f"no space left to write {path}", hint="free some space or choose another folder with -o"
    )


def file_too_large(path: Path) -> WontFitError:
    """The error of a limit on the size of one file (FAT, `ulimit -f`)."""
    return WontFitError(
        f"{path} is larger than a file may be here", hint="choose another folder with -o"
    )


def exists_already(path: Path) -> InvalidRequestError:
    """The error of a name that is taken."""
    return InvalidRequestError(
        f"{path} exists already", hint="-y overwrites it, -o names another file"
    )


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the file system's refusals into errors with a sentence; let all others pass."""
    try:
        yield
    except OSError as error:
        sentence = _explanation(path, error)
        if sentence is None:
            raise
        raise sentence from error


def flush_file(path: Path) -> None:
    """Wait until the contents of a file are on the disk."""
    # Opened for writing: some systems refuse to flush what was opened to be read.
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where folders can be flushed at all."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _explanation(path: Path, error: OSError) -> OspError | None:
    if error.errno in _FULL:
        return no_space(path)
    if error.errno == errno.EFBIG:
        return file_too_large(path)
    if error.errno in _FORBIDDEN:
        # A file of another owner, or, on Windows, one that is open in a player.
        if os.path.lexists(path) and os.access(path.parent, os.W_OK | os.X_OK):
            return InvalidRequestError(
                f"{path} cannot be replaced, it is protected or open in another program",
                hint="close it there, or choose another name with -o",
            )
        return _read_only(path.parent)
    if error.errno == errno.ENAMETOOLONG:
        return InvalidRequestError(f"the file name {path.name} is too long")
    if error.errno in _GONE and not path.parent.is_dir():
        return RuntimeFailureError(
            f"the folder {path.parent} disappeared while {path.name} was written",
            hint="choose another folder with -o",
        )
    return None


def _read_only(folder: Path) -> InvalidRequestError:
    return InvalidRequestError(
        f"the folder {folder} may not be written to", hint="choose another folder with -o"
    )


def publish(part: Path, path: Path, *, overwrite: bool) -> None:
    """Give a finished file its name.

    Raises:
        InvalidRequestError: something has that name, and `overwrite` is off.
        OSError: the file system refuses; see `explained`.
    """
    if overwrite:
        part.replace(path)
        return
    try:
        # Unlike a rename, a link never replaces a file that has appeared in the meantime.
        os.link(part, path)
    except FileExistsError as error:
        raise exists_already(path) from error
    except (OSError, AttributeError):
        # No hard links here (FAT, some network shares, Android's Python).
        if os.path.lexists(path):
            raise exists_already(path) from None
        part.replace(path)


def _short_name(path: Path) -> str:
    """The name, or something as telling of at most 200 bytes: file systems allow 255."""
    name = path.name
    if len(os.fsencode(name)) <= _MAX_NAME_BYTES:
        return name
    return f"{name[:40]}-{zlib.crc32(os.fsencode(name)):08x}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's, or no number of ours
    return True


def _in_words(*counts: int) -> tuple[str, ...]:
    """Byte counts in one unit, small enough that a lack does not vanish in the rounding."""
    unit, divisor = ("GB", 1e9) if max(counts) >= 1e9 else ("MB", 1e6)
    return tuple(f"{count / divisor:.1f} {unit}" for count in counts)
