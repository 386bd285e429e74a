"""One file from a hub into the cache: gone on with, never begun anew without need, and checked.

The hash is computed over every byte that ends up on the disk; those of an earlier run are read
again first. Only what has the right hash gets its name.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from osp_cli.errors import ChecksumError, WeightsMissingError
from osp_cli.events import FileFetched, FileProgress, Notice
from osp_cli.hub import hashes
from osp_cli.hub.client import Body, Endpoint, Hub, Patience, Stopped
from osp_cli.hub.locks import take
from osp_cli.hub.refusals import explained
from osp_cli.hub.troubles import Kind, Trouble, final_error

if TYPE_CHECKING:
    from osp_cli.events import Event
    from osp_cli.hub.cache import Cache
    from osp_cli.hub.listings import RemoteFile

_SECONDS_BETWEEN_REPORTS = 0.5


class Limiter:
    """Keeps all files together below a rate.

    Args:
        bytes_per_second: None for as fast as it goes.
    """

    def __init__(self, bytes_per_second: int | None = None) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def pause(self, count: int) -> float:
        """Seconds to wait after `count` bytes."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._rate
            return self._free_at - now


class Part:
    """The first bytes of a file on the disk, and the hash of them.

    Args:
        path: it is made where it is not there.
        file: what it shall become.
        stop: ends the reading of what is there.
    """

    def __init__(self, path: Path, file: RemoteFile, stop: threading.Event) -> None:
        self._path, self._wanted, self._stop = path, file, stop
        self._hasher = file.hasher()
        self.bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer: what was written is kept, however this process ends.
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)

    def close(self) -> None:
        """Leave the bytes where they are."""
        self._file.close()

    def read_again(self, report: Callable[[int], None]) -> None:
        """Hash what an earlier run left.

        Args:
            report: told how many bytes were read so far.
        """
        while chunk := self._file.read(1 << 20):
            if self._stop.is_set():
                raise Stopped
            self._hasher.update(chunk)
            self.bytes += len(chunk)
            report(self.bytes)
        if self.bytes > self._wanted.size:
            self.begin_anew()

    def begin_anew(self) -> None:
        """Drop all bytes."""
        self._file.seek(0)
        self._file.truncate()
        self._hasher = self._wanted.hasher()
        self.bytes = 0
        self._etags_path.unlink(missing_ok=True)

    def append(self, chunk: bytes) -> None:
        """Add what comes next; what is too much is left out, the hash tells the rest."""
        view = memoryview(chunk)[: self._wanted.size - self.bytes]
        self._hasher.update(view)
        while view:
            written = self._file.write(view)
            self.bytes += written
            view = view[written:]

    @property
    def missing_bytes(self) -> int:
        """How many are left to come; whether the others are the right ones tells `digest`."""
        return self._wanted.size - self.bytes

    @property
    def digest(self) -> str:
        """The hash of the bytes so far, as `RemoteFile.digest` has it."""
        return self._hasher.hexdigest()

    @property
    def etags(self) -> dict[str, str]:
        """What servers called the contents that these bytes are of, by host."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._etags_path.read_text("utf-8"))
            if isinstance(found, dict):
                return {str(host): str(etag) for host, etag in found.items()}
        return {}

    def note_etag(self, host: str, etag: str) -> None:
        """Keep what a server calls the contents."""
        if etag and self.etags.get(host) != etag:
            self._etags_path.write_text(json.dumps({**self.etags, host: etag}), "utf-8")

    def discard(self) -> None:
        """Remove everything."""
        self.close()
        self._path.unlink(missing_ok=True)
        self._etags_path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Leave only the bytes, ready for their name."""
        self.close()
        self._etags_path.unlink(missing_ok=True)

    @property
    def _etags_path(self) -> Path:
        return self._path.with_name(self._path.name.removesuffix(".incomplete") + ".etags")


class Transfer:
    """Brings files into the cache; usable from several threads at once.

    Args:
        report: given every event.
    """

    def __init__(
        self, hub: Hub, cache: Cache, *, limiter: Limiter, report: Callable[[Event], None]
    ) -> None:
        self._hub, self._cache, self._limiter, self._report = hub, cache, limiter, report

    def fetch(self, file: RemoteFile) -> None:
        """See that the contents of `file` are in the cache, with the right hash.

        Raises:
            ChecksumError: what the servers have is something else.
            WeightsMissingError: no server has it, or none can be reached.
            WontFitError: the disk is full.
            Stopped: from outside; what was fetched is kept.
        """
        with explained(self._cache.root), self._locked(file):
            started = time.monotonic()
            if self._is_here(file):
                self._report(FileFetched(file.repo, file.path, file.size, file.digest, 0.0, True))
                return
            if not self._adopt(file):
                self._fetch(file)
            blob = self._cache.publish(file)
            if file.sha256 is not None:
                hashes.remember_hash(blob, file.sha256)
            seconds = time.monotonic() - started
            self._report(FileFetched(file.repo, file.path, file.size, file.digest, seconds, False))

    def _is_here(self, file: RemoteFile) -> bool:
        """Whether good contents are here; they are read unless it is known that they are good."""
        path = self._cache.find(file)
        if path is None:
            return False
        if self._is_good(path, file):
            return True
        self._report(Notice(f"{file.path} of {file.repo} is damaged here and is fetched again"))
        return False

    def _is_good(self, path: Path, file: RemoteFile) -> bool:
        if hashes.known_hash(path) == file.digest:
            return True
        if self.digest_of(path, file) != file.digest:
            return False
        if file.sha256 is not None:
            hashes.remember_hash(path, file.sha256)
        return True

    def _adopt(self, file: RemoteFile) -> bool:
        """Take the contents from another repository that has the same, if there is one."""
        source = self._cache.find_elsewhere(file)
        if source is None or not self._is_good(source, file):
            return False
        self._cache.adopt(file, source)
        return True

    def digest_of(self, path: Path, file: RemoteFile) -> str:
        """The hash of what is on the disk, as `RemoteFile.digest` has it."""
        hasher, done = file.hasher(), 0
        report = self._reporter(file, "check")
        with path.open("rb", buffering=0) as opened:
            while chunk := opened.read(1 << 20):
                if self._hub.stop.is_set():
                    raise Stopped
                hasher.update(chunk)
                done += len(chunk)
                report(done)
        return hasher.hexdigest()

    def _fetch(self, file: RemoteFile) -> None:
        """Make the part whole and right; a wrong one is fetched once more, from the next server."""
        servers, failures = self._hub.servers, 0
        while True:
            part = Part(self._cache.part(file), file, self._hub.stop)
            try:
                part.read_again(self._reporter(file, "check"))
                # What an earlier run left may be torn; the servers are not to blame for that.
                failures += part.bytes == 0
                self._complete(file, part, servers)
                found = part.digest
                if found == file.digest:
                    part.finish()
                    return
                part.discard()
            finally:
                part.close()
            if failures == 2:
                raise ChecksumError(
                    f"{file.path} of {file.repo} should have the hash {file.digest} "
                    f"and came with {found}, twice",
                    hint="try again later; --mirror URL asks another server",
                )
            self._report(Notice(f"{file.path} is damaged, it is fetched once more from the start"))
            servers = (*servers[1:], *servers[:1])

    def _complete(self, file: RemoteFile, part: Part, servers: tuple[Endpoint, ...]) -> None:
        if not part.missing_bytes:
            return
        if not servers:
            raise WeightsMissingError(
                f"{file.path} of {file.repo} is not in the cache, and nothing is fetched offline",
                hint="run it once without --offline (OSP_OFFLINE, HF_HUB_OFFLINE)",
            )
        troubles = []
        for server in servers:
            try:
                self._append_from(server, file, part)
                return
            except Trouble as trouble:
                troubles.append(trouble)
        raise final_error(f"{file.path} of {file.repo}", troubles, asked_revision=False)

    def _append_from(self, server: Endpoint, file: RemoteFile, part: Part) -> None:
        patience = Patience(self._hub.stop, self._hub.say)
        most = part.bytes
        while part.missing_bytes:
            try:
                with self._hub.body(server, file, part.bytes, part.etags) as body:
                    self._take(body, file, part)
            except Trouble as trouble:
                if not part.missing_bytes:
                    return
                # A server that begins at zero again and again makes no progress.
                if part.bytes > most:
                    most = part.bytes
                    patience.progressed()
                patience.after(trouble)

    def _take(self, body: Body, file: RemoteFile, part: Part) -> None:
        if body.start != part.bytes:
            part.begin_anew()
        part.note_etag(body.host, body.etag)
        report = self._reporter(file, "fetch")
        report(part.bytes)
        for chunk in body.chunks:
            part.append(chunk)
            report(part.bytes)
            if not part.missing_bytes:
                return
            if self._hub.stop.wait(self._limiter.pause(len(chunk))):
                raise Stopped
        raise Trouble(Kind.NETWORK, f"{body.host} sent only a part of {file.path}")

    def _reporter(self, file: RemoteFile, stage: str) -> Callable[[int], None]:
        """Reports how far a file is, the first time and then twice a second."""
        last = 0.0

        def report(done: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _SECONDS_BETWEEN_REPORTS:
                last = now
                self._report(FileProgress(file.repo, file.path, stage, done, file.size))

        return report

    @contextlib.contextmanager
    def _locked(self, file: RemoteFile) -> Iterator[None]:
        """Alone with the file, also among programs that use huggingface_hub."""
        from filelock import Timeout

        path = self._cache.lock(file.repo, file.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            waited = False
            while True:
                try:
                    take(stack, path, 0.5)
                    break
                except Timeout:
                    if self._hub.stop.is_set():
                        raise Stopped from None
                    if not waited:
                        self._report(
                            Notice(f"waiting for another program that fetches {file.path}")
                        )
                        waited = True
            yield
