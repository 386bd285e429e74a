"""The Hugging Face cache on this disk, in its own layout, so that all programs share the files.

models--OWNER--NAME/
    blobs/HASH                         the contents, once
    blobs/HASH.osp.incomplete          ours: the first bytes of them, from which we go on
    snapshots/COMMIT/PATH              a link to the blob
    refs/REVISION                      the commit, written last
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from osp_cli.hub.listings import Listing, RemoteFile
from osp_cli.media.files import flush_file, flush_folder

_PART_SUFFIX = ".osp.incomplete"


def cache_root() -> Path:
    """The folder of the cache, as huggingface_hub settles it, without the time of its import."""
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface"
    )
    found = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(found or Path(home, "hub"))).expanduser()


class Cache:
    """The cache below `root`; nothing is made before it is needed."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = cache_root() if root is None else root

    def repo(self, repo: str) -> Path:
        """The folder of a repository."""
        return self.root / f"models--{repo.replace('/', '--')}"

    def blob(self, file: RemoteFile) -> Path:
        """Where the contents of a file lie."""
        return self.repo(file.repo) / "blobs" / file.digest

    def part(self, file: RemoteFile) -> Path:
        """Where the first bytes of a file lie while the others are missing."""
        return self.repo(file.repo) / "blobs" / (file.digest + _PART_SUFFIX)

    def lock(self, repo: str, name: str) -> Path:
        """A lock's file, where huggingface_hub has its own of that name."""
        return self.root / ".locks" / self.repo(repo).name / f"{name}.lock"

    def snapshot(self, repo: str, commit: str) -> Path:
        """The folder of a commit."""
        return self.repo(repo) / "snapshots" / commit

    def pointer(self, file: RemoteFile) -> Path:
        """The file under its own name."""
        return self.snapshot(file.repo, file.commit) / Path(*file.path.split("/"))

    def find(self, file: RemoteFile) -> Path | None:
        """The contents of a file, if there are as many bytes as there should be."""
        # Without links, as on Windows, the contents lie under the file's own name.
        for path in (self.blob(file), self.pointer(file)):
            with contextlib.suppress(OSError):
                if path.stat().st_size == file.size:
                    return path
        return None

    def find_elsewhere(self, file: RemoteFile) -> Path | None:
        """The same contents in another repository; they are told by their hash."""
        if file.sha256 is None:
            return None
        for path in sorted(self.root.glob(f"models--*/blobs/{file.sha256}")):
            with contextlib.suppress(OSError):
                if path != self.blob(file) and path.stat().st_size == file.size:
                    return path
        return None

    def part_bytes(self, file: RemoteFile) -> int:
        """How many bytes of an unfinished file are here."""
        try:
            return min(self.part(file).stat().st_size, file.size)
        except OSError:
            return 0

    def publish(self, file: RemoteFile) -> Path:
        """Give a part, whole and checked, its name; gives the path of the contents."""
        part, blob = self.part(file), self.blob(file)
        flush_file(part)
        part.replace(blob)
        flush_folder(blob.parent)
        return blob

    def adopt(self, file: RemoteFile, source: Path) -> None:
        """Take contents that lie in another repository as a part that is whole."""
        part = self.part(file)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        try:
            os.link(os.path.realpath(source), part)
        except OSError:
            shutil.copyfile(source, part)

    def point(self, file: RemoteFile) -> Path:
        """Make the file appear under its own name; gives the path."""
        blob, pointer = self.blob(file), self.pointer(file)
        if not blob.exists():
            return pointer  # the contents lie there already
        with contextlib.suppress(OSError):
            if pointer.samefile(blob):
                return pointer
        pointer.parent.mkdir(parents=True, exist_ok=True)
        fresh = pointer.with_name(f".{pointer.name[:100]}.{os.getpid()}.osp")
        fresh.unlink(missing_ok=True)
        try:
            fresh.symlink_to(os.path.relpath(blob, pointer.parent))
        except (OSError, NotImplementedError):
            try:
                os.link(blob, fresh)
            except OSError:
                # As huggingface_hub does where nothing can be linked: there is no blob then.
                blob.replace(pointer)
                return pointer
        fresh.replace(pointer)
        return pointer

    def commit_of(self, repo: str, revision: str) -> str | None:
        """The commit that a revision meant when it was last fetched."""
        if self.snapshot(repo, revision).is_dir():
            return revision
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self.repo(repo) / "refs" / revision).read_text("ascii").strip() or None
        return None

    def write_ref(self, listing: Listing) -> None:
        """Note what the revision means by now."""
        if listing.revision == listing.commit:
            return
        path = self.repo(listing.repo) / "refs" / listing.revision
        with contextlib.suppress(OSError):
            if path.read_text("ascii") == listing.commit:
                return
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}.osp")
        fresh.write_text(listing.commit, "ascii")
        flush_file(fresh)
        fresh.replace(path)
        flush_folder(path.parent)

    def listing_on_disk(self, repo: str, revision: str) -> Listing | None:
        """What a snapshot holds, told by its links; for one that another program fetched."""
        commit = self.commit_of(repo, revision)
        if commit is None:
            return None
        folder, files = self.snapshot(repo, commit), []
        for pointer in sorted(folder.rglob("*")):
            with contextlib.suppress(OSError, ValueError):
                if not pointer.is_symlink():
                    continue
                target = pointer.readlink()
                file = RemoteFile(
                    repo=repo,
                    commit=commit,
                    path=pointer.relative_to(folder).as_posix(),
                    size=pointer.stat().st_size,
                    digest=target.name,
                )
                files.append(file)
        if not files:
            return None
        return Listing(repo=repo, revision=revision, commit=commit, files=tuple(files))
