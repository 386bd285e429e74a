"""A hub on loopback that can be told to misbehave; the true library talks to it as to the real one.

Files above `LFS_BYTES` are stored as the hub stores large ones: the list tells their SHA-256, and
the address of the file redirects to a second server, as the real one does.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_BYTES = 10_000
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def digest_of(data: bytes) -> str:
    """What the hub calls these contents."""
    if len(data) >= LFS_BYTES:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Faults:
    """How the server misbehaves; what is not set behaves.

    Attributes:
        status: answers instead of files, one after the other: `(status, headers)`.
        list_status: the same for lists of files.
        cut_after: closes the connection after so many bytes of each answer.
        corrupt: flips a byte of the file at this offset, as often as `corrupt_times` says.
        no_ranges: sends everything, whatever range is asked for.
        body: changes what is sent of a file: `(path, bytes) -> (declared length, bytes)`; a length
            of None declares none.
        bytes_per_second: of each answer.
        silent: sends headers and then nothing.
    """

    status: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    list_status: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    cut_after: int | None = None
    corrupt: int | None = None
    corrupt_times: int = 10**9
    no_ranges: bool = False
    body: Callable[[str, bytes], tuple[int | None, bytes]] | None = None
    bytes_per_second: int | None = None
    silent: bool = False


class FakeHub:
    """Two servers: the hub itself, and the one that it sends large files from.

    Args:
        repos: contents of each repository by path.
    """

    def __init__(self, repos: dict[str, dict[str, bytes]], *, redirects: bool = True) -> None:
        self.repos, self.redirects = repos, redirects
        self.faults = Faults()
        self.etag = ""
        self.commit = COMMIT
        self.is_closed = False
        self.log: list[tuple[str, str, str, dict[str, str]]] = []
        self._servers = [self._start("hub"), self._start("cdn")]
        self.url, self.cdn_url = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers
        )

    def close(self) -> None:
        """Answer nobody any more, on connections that are open neither."""
        self.is_closed = True
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def asked(self, text: str, server: str | None = None) -> list[dict[str, str]]:
        """Headers of the requests for addresses that hold `text`."""
        return [
            headers
            for name, method, path, headers in self.log
            if text in path and method == "GET" and server in (None, name)
        ]

    def _start(self, name: str) -> ThreadingHTTPServer:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # An answer in two packets would wait for the first one to be acknowledged.
            wbufsize = -1

            def do_GET(self) -> None:
                if hub.is_closed:
                    self.close_connection = True
                    return
                # Their names may be written in any case.
                headers = {name.lower(): value for name, value in self.headers.items()}
                hub.log.append((name, self.command, self.path, headers))
                try:
                    hub._answer(self, name)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Whoever asked has gone, perhaps killed: that is what is tested."""

        server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def _answer(self, ask: BaseHTTPRequestHandler, server: str) -> None:
        url = urlsplit(ask.path)
        parts = unquote(url.path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._list(
                ask, "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", parts[4:5]
            )
        elif server == "cdn":
            self._send(ask, parse_qs(url.query)["path"][0], self._find(parts[0]))
        elif len(parts) < 5 or parts[2] != "resolve":
            _refuse(ask, 404, {})
        else:
            self._resolve(ask, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _find(self, digest: str) -> bytes:
        contents = (data for files in self.repos.values() for data in files.values())
        return next(data for data in contents if digest_of(data) == digest)

    def _list(self, ask: BaseHTTPRequestHandler, repo: str, revision: str, kind: list[str]) -> None:
        if self.faults.list_status:
            return _refuse(ask, *self.faults.list_status.pop(0))
        if repo not in self.repos:
            return _refuse(ask, 401, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", self.commit):
            return _refuse(ask, 404, {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for path, data in self.repos[repo].items():
            entry = {"rfilename": path, "size": len(data)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if len(data) >= LFS_BYTES:
                entry["lfs"] = {"sha256": digest_of(data), "size": len(data), "pointerSize": 130}
            if kind == ["tree"]:
                lfs = {"oid": entry["lfs"]["sha256"], **entry["lfs"]} if "lfs" in entry else None
                entry = {"type": "file", "path": path, "size": len(data), "oid": entry["blobId"]}
                entry |= {"lfs": lfs} if lfs else {}
            siblings.append(entry)
        body = {"_id": "1", "id": repo, "modelId": repo, "sha": self.commit, "siblings": siblings}
        body = siblings if kind == ["tree"] else body
        _reply(ask, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return None

    def _resolve(self, ask: BaseHTTPRequestHandler, repo: str, revision: str, path: str) -> None:
        data = self.repos.get(repo, {}).get(path)
        if data is None:
            return _refuse(ask, 404, {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": self.commit}
        if len(data) >= LFS_BYTES and self.redirects:
            if self.faults.status:
                return _refuse(ask, *self.faults.status.pop(0))
            headers["X-Linked-Etag"] = f'"{digest_of(data)}"'
            headers["X-Linked-Size"] = str(len(data))
            headers["Location"] = f"{self.cdn_url}/{digest_of(data)}?path={path}"
            return _reply(ask, 302, b"", headers)
        return self._send(ask, path, data, headers)

    def _send(
        self,
        ask: BaseHTTPRequestHandler,
        path: str,
        data: bytes,
        headers: dict[str, str] | None = None,
    ) -> None:
        faults = self.faults
        if faults.status:
            return _refuse(ask, *faults.status.pop(0))
        etag = f'"{self.etag or digest_of(data)}"'
        headers = {**(headers or {}), "ETag": etag, "Accept-Ranges": "bytes"}
        status, total, start = 200, len(data), 0
        wanted = ask.headers.get("Range", "")
        if wanted and not faults.no_ranges and ask.headers.get("If-Range", etag) == etag:
            status, start = 206, int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        if faults.corrupt is not None and faults.corrupt < total and faults.corrupt_times > 0:
            faults.corrupt_times -= 1
            data = bytearray(data)
            data[faults.corrupt] ^= 0xFF
            data = bytes(data)
        body, declared = data[start:], total - start
        if faults.body is not None and ask.command == "GET":
            declared, body = faults.body(path, body)
        ask.send_response(status)
        for key, value in headers.items():
            ask.send_header(key, value)
        if declared is not None:
            ask.send_header("Content-Length", str(declared))
        else:
            ask.send_header("Connection", "close")
            ask.close_connection = True
        ask.end_headers()
        if ask.command == "GET":
            self._write(ask, body)
        return None

    def _write(self, ask: BaseHTTPRequestHandler, body: bytes) -> None:
        faults = self.faults
        if faults.silent:
            ask.wfile.flush()
            time.sleep(10)
        if faults.cut_after is not None and len(body) > faults.cut_after:
            body = body[: faults.cut_after]
            ask.close_connection = True
        piece = max(1, (faults.bytes_per_second or 10**12) // 50)
        for offset in range(0, len(body), piece):
            ask.wfile.write(body[offset : offset + piece])
            if faults.bytes_per_second:
                ask.wfile.flush()
                time.sleep(0.02)


def _refuse(ask: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    _reply(ask, status, b"", headers)


def _reply(ask: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    ask.send_response(status)
    for key, value in {**headers, "Content-Length": str(len(body))}.items():
        ask.send_header(key, value)
    ask.end_headers()
    if ask.command == "GET":
        ask.wfile.write(body)
