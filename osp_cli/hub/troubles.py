"""What can go wrong between here and a hub, told apart by what the user can do about it."""

from __future__ import annotations

import contextlib
import email.utils
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from enum import Enum

import httpx2

from osp_cli.errors import ChecksumError, InvalidRequestError, OspError, WeightsMissingError

LOGIN_HINT = "log in with `hf auth login` or set HF_TOKEN"


class Kind(Enum):
    """Kinds of trouble; the first two may pass by themselves."""

    NETWORK = "network"
    BUSY = "busy"
    GATED = "gated"
    REPOSITORY = "repository"
    REVISION = "revision"
    FILE = "file"
    WRONG = "wrong"
    REFUSED = "refused"


class Trouble(Exception):
    """One server did not do what it was asked.

    Args:
        sentence: what happened, naming the server.
        hint: what to do about it.
        wait: seconds that the server asks to wait before the next try.
    """

    def __init__(
        self, kind: Kind, sentence: str, *, hint: str | None = None, wait: float | None = None
    ) -> None:
        super().__init__(sentence)
        self.kind, self.sentence, self.hint, self.wait = kind, sentence, hint, wait

    @property
    def may_pass(self) -> bool:
        """Whether the same question may be answered later."""
        return self.kind in (Kind.NETWORK, Kind.BUSY)


def of_response(
    response: httpx2.Response, *, repo: str, revision: str, path: str | None = None
) -> Trouble:
    """The trouble that an answer of 400 or more tells of.

    Args:
        path: of the file that was asked for; None where it was the list of files.
    """
    # After a redirect it is another server than the one that was asked.
    host, status = host_of(response.request.url), response.status_code
    code = response.headers.get("X-Error-Code", "")
    if status == 429:
        sentence = f"{host} asks for fewer requests (429)"
        return Trouble(Kind.BUSY, sentence, hint="try again later", wait=_retry_after(response))
    if status >= 500 or status == 408:
        sentence = f"{host} has a problem of its own ({status})"
        return Trouble(Kind.BUSY, sentence, hint="try again later", wait=_retry_after(response))
    if code == "GatedRepo":
        state = "this account has no access yet" if status == 403 else "it wants to know who asks"
        page = f"https://huggingface.co/{repo}"
        hint = f"ask for access at {page}, then {LOGIN_HINT}"
        return Trouble(Kind.GATED, f"{repo} is gated on {host}, {state} ({status})", hint=hint)
    if code == "RevisionNotFound":
        return Trouble(Kind.REVISION, f"{repo} has no revision {revision!r} on {host}")
    if code == "EntryNotFound" or (status == 404 and path is not None and code != "RepoNotFound"):
        return Trouble(Kind.FILE, f"{repo} has no file {path} at {revision} on {host}")
    if status == 401 and response.headers.get("X-Error-Message", "").startswith("Invalid cred"):
        return Trouble(Kind.REFUSED, f"{host} does not know the token (401)", hint=LOGIN_HINT)
    # The hub hides private repositories behind the answer for missing ones.
    if code == "RepoNotFound" or status in (401, 404):
        hint = f"if it is private, {LOGIN_HINT}"
        return Trouble(Kind.REPOSITORY, f"{host} has no repository {repo}", hint=hint)
    return Trouble(Kind.REFUSED, f"{host} refuses {path or repo} ({status})", hint=LOGIN_HINT)


def of_transport(error: Exception, url: str | httpx2.URL) -> Trouble:
    """The trouble of a connection that failed or broke."""
    host = host_of(url)
    chain = list(_chain(error))
    network = "check the network; --mirror URL asks another server"
    if any(isinstance(link, socket.gaierror) for link in chain):
        return Trouble(Kind.NETWORK, f"{host} cannot be found", hint=network)
    if any(isinstance(link, ssl.SSLCertVerificationError) for link in chain):
        return Trouble(Kind.REFUSED, f"the certificate of {host} is not trusted", hint=network)
    if isinstance(error, httpx2.ProxyError):
        return Trouble(Kind.NETWORK, f"the proxy does not lead to {host}: {error}", hint=network)
    if isinstance(error, httpx2.ConnectTimeout | httpx2.ConnectError):
        return Trouble(Kind.NETWORK, f"{host} does not answer", hint=network)
    if isinstance(error, httpx2.TimeoutException):
        return Trouble(Kind.NETWORK, f"{host} has gone silent", hint=network)
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return Trouble(Kind.REFUSED, f"{url} is no address of a server", hint="https://HOST")
    return Trouble(Kind.NETWORK, f"{host} cut the connection", hint=network)


def final_error(what: str, troubles: Sequence[Trouble], *, asked_revision: bool) -> OspError:
    """What the user is told when no server is left to ask.

    Args:
        what: what could not be had.
        troubles: one of each server, in the order in which they were asked.
        asked_revision: the revision is the user's own and not the card's.
    """
    sentences = "; ".join(dict.fromkeys(trouble.sentence for trouble in troubles))
    # What cannot pass tells more than a bad connection, and the hub more than its mirrors.
    telling = max(reversed(troubles), key=lambda trouble: not trouble.may_pass)
    message = f"{what} could not be fetched: {sentences}"
    kind: type[OspError] = WeightsMissingError
    if telling.kind is Kind.WRONG:
        kind = ChecksumError
    elif telling.kind is Kind.REVISION and asked_revision:
        kind = InvalidRequestError
    return kind(message, hint=telling.hint)


def host_of(url: str | httpx2.URL) -> str:
    """What to call a server: `huggingface.co`, `localhost:8080`."""
    with contextlib.suppress(httpx2.InvalidURL):
        url = httpx2.URL(url)
        return url.netloc.decode("ascii", "replace").rpartition("@")[2] or str(url)
    return str(url)


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the server asks to wait, said as a number or as a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
