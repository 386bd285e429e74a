"""What a repository holds: names, sizes and hashes of its files, remembered to check them by."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from osp_cli.errors import OspError
from osp_cli.media.files import atomic_output
from osp_cli.registry import weights_home

if TYPE_CHECKING:
    from hashlib import _Hash

    from osp_cli.registry import ModelSpec

_COMMIT = re.compile(r"[0-9a-f]{40}")
# In the folder of a model, by its installation.
_RECORD = "osp-install.json"
# Control characters would be orders to the terminal that shows the name.
_NO_NAME = re.compile(r"[\\\x00-\x1f\x7f-\x9f]")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a repository at one commit.

    Attributes:
        path: inside the repository, with slashes.
        size: in bytes.
        digest: SHA-256 in hex digits of a large file, the hash of git (SHA-1) of a small one; this
            is also the name of its blob in the cache.
    """

    repo: str
    commit: str
    path: str
    size: int
    digest: str

    def __post_init__(self) -> None:
        # They become names of files here, and a server may say anything.
        parts = PurePosixPath(self.path).parts
        if not parts or parts[0] == "/" or ".." in parts or _NO_NAME.search(self.path):
            raise ValueError(f"no possible name of a file: {self.path!r}")
        if not (_COMMIT.fullmatch(self.commit) and _DIGEST.fullmatch(self.digest)):
            raise ValueError(f"no hashes: {self.commit!r}, {self.digest!r}")
        if self.size < 0:
            raise ValueError(f"no possible size: {self.size}")

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the contents, where the hub tells it."""
        return self.digest if len(self.digest) == 64 else None

    def hasher(self) -> _Hash:
        """A hash to be fed with the contents, whose hex digits should be `digest`."""
        if self.sha256 is not None:
            return hashlib.sha256()
        # What git calls a blob: the contents after a header that tells their length.
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of a repository at `commit`, which is what `revision` meant when it was asked."""

    repo: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]

    def matching(self, patterns: Iterable[str]) -> tuple[RemoteFile, ...]:
        """The files that match any of `patterns`, in which `*` also stands for slashes."""
        wanted = tuple(patterns)
        return tuple(file for file in self.files if matches(file.path, wanted))


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path in a repository matches any of the patterns; `folder/` means all inside."""
    return any(
        fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern)
        for pattern in patterns
    )


def remember(listing: Listing) -> None:
    """Keep a listing, so that what it lists can be checked without a network.

    Where it cannot be written, the cache's own names of files must do.
    """
    path = _record(listing.repo, listing.commit)
    values = {**asdict(listing), "files": [[f.path, f.size, f.digest] for f in listing.files]}
    with contextlib.suppress(OSError, OspError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(path, overwrite=True) as part:
            part.write_text(json.dumps(values), "utf-8")


def recall(repo: str, revision: str, commit: str) -> Listing | None:
    """The listing of a commit, if it was remembered."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values: dict[str, Any] = json.loads(_record(repo, commit).read_text("utf-8"))
        files = tuple(
            RemoteFile(repo=repo, commit=commit, path=path, size=size, digest=digest)
            for path, size, digest in values["files"]
        )
        return Listing(repo=repo, revision=revision, commit=commit, files=files)
    return None


def note_installed(model: str, commits: dict[str, str]) -> None:
    """Keep what an installed model was made of: the commit of each repository."""
    path = _receipt(model)
    with contextlib.suppress(OSError, OspError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(path, overwrite=True) as part:
            part.write_text(json.dumps(commits), "utf-8")


def installed_from(model: str) -> dict[str, str]:
    """The commits that a model was made of, by repository; empty where nobody knows."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(_receipt(model).read_text("utf-8"))
        if isinstance(found, dict):
            return {str(repo): str(commit) for repo, commit in found.items()}
    return {}


def forget_installed(model: str) -> None:
    """Have the next download install the model anew."""
    with contextlib.suppress(OSError):
        _receipt(model).unlink()


def install_record(spec: ModelSpec) -> dict[str, Any]:
    """What the installation of a model wrote down in its folder; empty where it wrote nothing."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((spec.weights_places()[-1] / _RECORD).read_text("utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def is_from_elsewhere(spec: ModelSpec) -> bool:
    """Whether a model is installed, but not from a hub: built in, or with files of the user's."""
    if spec.find_weights() is None:
        return False
    parts = install_record(spec).get("parts", {}).values()
    if parts:
        return not all("repo" in (part.get("source") or {}) for part in parts)
    return not installed_from(spec.name)


def _receipt(model: str) -> Path:
    return weights_home().parent / "listings" / f"{model}.json"


def _record(repo: str, commit: str) -> Path:
    return weights_home().parent / "listings" / repo.replace("/", "--") / f"{commit}.json"
