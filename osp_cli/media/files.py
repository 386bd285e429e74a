"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from osp_cli.errors import InvalidRequestError, WontFitError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def check_writable(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuse an output path that cannot work, before any work is done for it.

    Raises:
        InvalidRequestError: the file exists and `overwrite` is off, it is a folder, or its folder
            is missing or read-only.
    """
    path = Path(path)
    with _explained(path):
        _check(path, overwrite=overwrite)


@contextlib.contextmanager
def atomic_output(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well.

    The file is on disk (fsync) before it takes its name. When the block ends in any exception,
    KeyboardInterrupt included, nothing is left and a file that was there before is untouched.

    Yields:
        An empty file in the same folder, named after this process, to be filled.

    Raises:
        InvalidRequestError: as `check_writable`, also when the file appears during the block.
        WontFitError: the disk or the quota is full.
    """
    path = Path(path)
    check_writable(path, overwrite=overwrite)
    # The name is cut, since file systems allow 255 bytes and it may have been at the limit.
    part = path.with_name(f".{path.name[:50]}.{os.getpid()}.part{path.suffix[:8]}")
    with _explained(path):
        try:
            part.unlink(missing_ok=True)
            # The mode that the user's umask asks for; a `tempfile` would be private for ever.
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            yield part
            _flush_to_disk(part)
            _publish(part, path, overwrite=overwrite)
        finally:
            part.unlink(missing_ok=True)
        _flush_folder(path.parent)


def no_space(path: Path) -> WontFitError:
    """The error of a full disk."""
    return WontFitError(
        f"no space left to write {path}", hint="free some space or choose another folder with -o"
    )


def _check(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise InvalidRequestError(
            f"{path} is a folder", hint="name the file to write, as in -o clip.mp4"
        )
    if not path.parent.is_dir():
        raise InvalidRequestError(
            f"the folder {path.parent} does not exist", hint=f"create it: mkdir -p '{path.parent}'"
        )
    # A dangling link is something too: writing through it or over it would surprise its owner.
    if not overwrite and os.path.lexists(path):
        raise _exists(path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise _read_only(path)


def _exists(path: Path) -> InvalidRequestError:
    return InvalidRequestError(
        f"{path} exists already", hint="-y overwrites it, -o names another file"
    )


def _read_only(path: Path) -> InvalidRequestError:
    return InvalidRequestError(
        f"the folder {path.parent} may not be written to", hint="choose another folder with -o"
    )


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the file system's refusals into errors with a sentence; let all others pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_space(path) from error
        if error.errno in _FORBIDDEN:
            raise _read_only(path) from error
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidRequestError(f"the file name {path.name} is too long") from error
        raise


def _flush_to_disk(part: Path) -> None:
    # Opened for writing: some systems refuse to flush what was opened to be read.
    with part.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where folders can be flushed at all."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _publish(part: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        part.replace(path)
        return
    try:
        # Unlike a rename, a link never replaces a file that has appeared in the meantime.
        os.link(part, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError:
        # No hard links here (FAT, some network shares).
        if os.path.lexists(path):
            raise _exists(path) from None
        part.replace(path)
