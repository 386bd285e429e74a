"""One download of a repository at a time; the second says whom it waits for."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from osp_cli.events import Notice
from osp_cli.hub.refusals import explanation

if TYPE_CHECKING:
    from osp_cli.events import Event
    from osp_cli.hub.cache import Cache

_SECONDS_BETWEEN_LOOKS = 0.5
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)


def held(stack: contextlib.ExitStack, cache: Cache, repos: Iterable[str]) -> Iterator[Event]:
    """Hold the repositories until `stack` is left, waiting for other processes.

    The system lets go of a lock when its process dies, however it dies.

    Yields:
        A notice about each process that is waited for.
    """
    # In one order, so that two commands never wait for each other.
    for repo in sorted(repos):
        path = cache.lock(repo, "osp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield from _hold(stack, path, repo)
        except OSError as error:
            # A cache that is only read, as one shared by many: nobody can write beside us either.
            if error.errno not in _NOT_OURS:
                raise explanation(cache.root, error) from error


def _hold(stack: contextlib.ExitStack, path: Path, repo: str) -> Iterator[Event]:
    from filelock import Timeout

    owner = path.with_suffix(".owner")
    told = False
    while True:
        try:
            take(stack, path, _SECONDS_BETWEEN_LOOKS)
            break
        except Timeout:
            if not told:
                yield Notice(f"waiting for {_owner(owner)}, which fetches {repo} just now")
                told = True
    with contextlib.suppress(OSError):
        owner.write_text(f"{os.getpid()} {socket.gethostname()}", "utf-8")


def take(stack: contextlib.ExitStack, path: Path, seconds: float) -> None:
    """Hold a lock until `stack` is left.

    Args:
        seconds: to wait for it at most.

    Raises:
        filelock.Timeout: somebody else holds it.
    """
    from filelock import FileLock, SoftFileLock

    try:
        # Others of one group may share the cache, and shall be able to wait too.
        stack.enter_context(FileLock(path, timeout=seconds, mode=0o664))
    except NotImplementedError:
        # Some shared disks cannot lock; there, a file that is present must do.
        stack.enter_context(SoftFileLock(path, timeout=seconds))


def _owner(path: Path) -> str:
    """What to call the process that holds a lock."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        number, _, host = path.read_text("utf-8").strip().partition(" ")
        if number.isdigit():
            place = "" if host == socket.gethostname() else f" on {host}"
            return f"another osp (process {number}{place})"
    return "another osp"
