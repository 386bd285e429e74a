"""Asking hubs: which servers, in which order, with whose token, and how patiently."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import httpx2

from osp_cli.errors import InvalidRequestError
from osp_cli.hub.listings import Listing, RemoteFile
from osp_cli.hub.troubles import (
    Kind,
    Trouble,
    final_error,
    host_of,
    of_response,
    of_transport,
)

PUBLIC_HUB = "https://huggingface.co"
# Tries of one server without a byte of progress, and the pause after the first; it doubles.
TRIES = 5
LISTING_TRIES = 3
FIRST_PAUSE_SECONDS = 1.0
# A server that asks for more patience than this is left for the next.
LONGEST_WAIT_SECONDS = 300.0
_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 30.0
_MOST_REDIRECTS = 8


class Stopped(Exception):
    """The download was stopped from outside while this part of it waited or worked."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that speaks the hub's language.

    Attributes:
        url: without a slash at its end.
        token: sent with each request; None sends none.
    """

    url: str
    token: str | None = None

    @property
    def host(self) -> str:
        """What to call it."""
        return host_of(self.url)


def endpoints(mirrors: Sequence[str] = ()) -> tuple[Endpoint, ...]:
    """The servers to ask, in that order: the mirrors, then `HF_ENDPOINT` or the public hub.

    The token is the hub's: a mirror gets it only where it is the same server.

    Raises:
        InvalidRequestError: a mirror is no address.
    """
    from huggingface_hub import get_token

    hub = (os.environ.get("HF_ENDPOINT") or PUBLIC_HUB).rstrip("/")
    token = get_token()
    own = {host_of(hub), host_of(PUBLIC_HUB)}
    found = []
    for mirror in mirrors:
        if not re.match(r"https?://[^/\s]", mirror):
            raise InvalidRequestError(
                f"--mirror must be an address, got {mirror!r}", hint="--mirror https://HOST"
            )
        found.append(Endpoint(mirror.rstrip("/"), token if host_of(mirror) in own else None))
    return tuple({found_.url: found_ for found_ in (*found, Endpoint(hub, token))}.values())


def is_offline(asked: bool = False) -> bool:
    """Whether nothing may be asked of any server: by flag or by variable."""
    names = ("OSP_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return asked or any(
        os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON") for name in names
    )


class Patience:
    """How often one server is asked again, and the pauses in between.

    Args:
        stop: ends any pause at once.
        say: told, in a sentence, about pauses that a server asked for.
        tries: without progress.
    """

    def __init__(
        self, stop: threading.Event, say: Callable[[str], None], *, tries: int | None = None
    ) -> None:
        self._stop, self._say = stop, say
        self._tries = TRIES if tries is None else tries
        self._failures = 0

    def progressed(self) -> None:
        """Something came of the last try."""
        self._failures = 0

    def after(self, trouble: Trouble) -> None:
        """Wait until the next try.

        Raises:
            Trouble: the same one, when there shall be none.
            Stopped: while waiting.
        """
        self._failures += 1
        pause = FIRST_PAUSE_SECONDS * 2 ** (self._failures - 1)
        if trouble.wait is not None:
            pause = trouble.wait
        if not trouble.may_pass or self._failures >= self._tries or pause > LONGEST_WAIT_SECONDS:
            raise trouble
        if pause >= 5:
            self._say(f"{trouble.sentence}, next try in {pause:.0f} s")
        if self._stop.wait(pause):
            raise Stopped


@dataclass(frozen=True, slots=True)
class Body:
    """An answer that is about to be read.

    Attributes:
        start: the offset in the file of the first byte that comes.
        etag: what the server calls these contents; empty where it does not say.
        host: of the server that sends, after all redirects.
        chunks: the bytes, in pieces as they come.
    """

    start: int
    etag: str
    host: str
    chunks: Iterator[bytes]


class Hub:
    """The servers that weights come from.

    Args:
        servers: in the order in which they are asked.
        stop: ends all waiting.
        say: told about what the user may want to know, in sentences.
    """

    def __init__(
        self,
        servers: Sequence[Endpoint],
        *,
        stop: threading.Event | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.servers = tuple(servers)
        self.stop = stop or threading.Event()
        self.say = say
        # The variable of huggingface_hub, for connections that are slower than we think.
        silence = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or _SILENCE_SECONDS)
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(silence, connect=min(silence, _CONNECT_SECONDS)),
            headers={"User-Agent": "osp-cli", "Accept-Encoding": "identity"},
            follow_redirects=False,
        )
        self._silence = silence

    def close(self) -> None:
        """End all connections."""
        self._client.close()

    def listing(self, repo: str, revision: str, *, asked_revision: bool = False) -> Listing:
        """What `repo` holds at `revision`, from the first server that tells.

        Raises:
            WeightsMissingError: no server tells.
            InvalidRequestError: there is no such revision, and it is the user's own.
        """
        troubles = []
        for server in self.servers:
            patience = Patience(self.stop, self.say, tries=LISTING_TRIES)
            try:
                return self._listing(server, repo, revision, patience)
            except Trouble as trouble:
                troubles.append(trouble)
        what = repo if revision == "main" else f"{repo} at {revision}"
        raise final_error(what, troubles, asked_revision=asked_revision)

    def _listing(self, server: Endpoint, repo: str, revision: str, patience: Patience) -> Listing:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi(endpoint=server.url, token=server.token or False, library_name="osp-cli")
        while True:
            try:
                info = api.model_info(
                    repo,
                    revision=revision,
                    files_metadata=True,
                    # This is also how long a connection may take to come about.
                    timeout=min(self._silence, _CONNECT_SECONDS),
                )
                return _as_listing(info, server, repo, revision)
            except HfHubHTTPError as error:
                patience.after(of_response(error.response, repo=repo, revision=revision))
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                patience.after(of_transport(error, server.url))
            except (ValueError, TypeError, KeyError) as error:
                sentence = f"{server.host} does not answer like a hub"
                raise Trouble(Kind.REFUSED, sentence, hint="check the address") from error

    @contextlib.contextmanager
    def body(
        self,
        server: Endpoint,
        file: RemoteFile,
        start: int = 0,
        etags: dict[str, str] | None = None,
    ) -> Iterator[Body]:
        """The bytes of `file` from `start` on, or, where the server cannot do that, from 0.

        Args:
            etags: what servers called the bytes that are here already, by host; one that calls
                the file something else by now sends it from 0.

        Raises:
            Trouble: also while the bytes are read.
        """
        url = f"{server.url}/{file.repo}/resolve/{file.commit}/{quote(file.path)}"
        headers = {"Range": f"bytes={start}-"} if start else {}
        if server.token:
            headers["Authorization"] = f"Bearer {server.token}"
        try:
            request: httpx2.Request | None = self._client.build_request("GET", url, headers=headers)
            for _ in range(_MOST_REDIRECTS):
                assert request is not None
                url = str(request.url)
                if start and (etag := (etags or {}).get(host_of(url))):
                    request.headers["If-Range"] = etag
                response = self._client.send(request, stream=True)
                with contextlib.closing(response):
                    # The library leaves the token out of a request to another server.
                    request = response.next_request
                    if request is None:
                        yield _body_of(response, file, start)
                        return
            raise Trouble(Kind.REFUSED, f"{server.host} sends from one address to the next")
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise of_transport(error, url) from error


def _body_of(response: httpx2.Response, file: RemoteFile, start: int) -> Body:
    """The answer as a body, once it is known to be about this file."""
    host = host_of(response.request.url)
    if response.status_code == 416 or response.status_code == 206:
        declared = response.headers.get("Content-Range", "")
        unit, _, rest = declared.partition(" ")
        span, _, total = rest.partition("/")
        first = span.partition("-")[0]
        if response.status_code == 416 or unit != "bytes" or first != str(start):
            raise Trouble(Kind.WRONG, f"{host} has no bytes of {file.path} from {start} on")
    elif response.status_code == 200:
        start, total = 0, response.headers.get("Content-Length", "")
    elif response.status_code >= 400:
        response.read()
        raise of_response(response, repo=file.repo, revision=file.commit, path=file.path)
    else:
        raise Trouble(Kind.REFUSED, f"{host} answers {file.path} with {response.status_code}")
    if total.isdigit() and int(total) != file.size:
        raise Trouble(
            Kind.WRONG,
            f"{host} has {total} bytes for {file.path} instead of {file.size}",
            hint="try again later; --mirror URL asks another server",
        )
    etag = response.headers.get("ETag", "")
    # A weak one does not promise equal bytes.
    etag = "" if etag.startswith("W/") else etag
    return Body(start, etag, host, response.iter_raw())


def _as_listing(info: object, server: Endpoint, repo: str, revision: str) -> Listing:
    """What the hub's own library read, as far as it is needed here.

    Raises:
        Trouble: sizes or hashes are missing; nothing could be checked.
        ValueError: they are no sizes or hashes.
    """
    commit = str(getattr(info, "sha", ""))
    files = []
    for entry in getattr(info, "siblings", None) or ():
        digest = entry.lfs.sha256 if entry.lfs is not None else entry.blob_id
        size = entry.size if entry.lfs is None else entry.lfs.size
        if digest is None or size is None:
            raise Trouble(Kind.REFUSED, f"{server.host} tells no sizes and hashes of {repo}")
        files.append(
            RemoteFile(repo=repo, commit=commit, path=entry.rfilename, size=size, digest=digest)
        )
    if not files:
        raise Trouble(Kind.REPOSITORY, f"{repo} is empty on {server.host}")
    return Listing(repo=repo, revision=revision, commit=commit, files=tuple(files))
