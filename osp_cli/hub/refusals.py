"""What the disk of the cache refuses, as sentences about the cache."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from osp_cli.errors import InvalidRequestError, OspError, RuntimeFailureError, WontFitError


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into sentences about the cache `folder`."""
    try:
        yield
    except OSError as error:
        raise explanation(folder, error) from error


def explanation(folder: Path, error: OSError) -> OspError:
    """The sentence of one refusal."""
    elsewhere = "HF_HUB_CACHE=FOLDER puts the cache on another disk"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WontFitError(
            f"no space left in {folder}; what was fetched is kept",
            hint=f"free some space and give the same command again, or {elsewhere}",
        )
    if error.errno == errno.EFBIG:
        return WontFitError(f"files in {folder} may not be that large", hint=elsewhere)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InvalidRequestError(f"the cache {folder} may not be written to", hint=elsewhere)
    return RuntimeFailureError(
        f"the cache {folder} cannot be used: {error.strerror or error}", hint=elsewhere
    )
