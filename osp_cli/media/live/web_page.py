"""A page on this machine that shows the stream, tells how it does, and takes prompts.

Motion JPEG, since every browser shows it, whatever codecs it was built with: viewers come and go
at any picture, and a slow one skips pictures without breaking anything.

The server answers this machine only. Its address holds a random token, so that other users and
other pages that the browser has open cannot find it; the `Host` is compared, so that a name that
was bent to this machine's address (DNS rebinding) does not reach it either.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from osp_cli.errors import InvalidRequestError, OspError, RuntimeFailureError
from osp_cli.media.live.broadcast import Broadcast
from osp_cli.media.live.picture import Picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_LINE_BYTES = 4096
MAX_VIEWERS = 16
_MAX_CONNECTIONS = 64
_ADDRESS = "127.0.0.1"
# A viewer that takes nothing for so long is gone, as is one that says nothing.
_SOCKET_SECONDS = 15.0
# What the system itself holds back for a slow viewer: a few pictures, not seconds of them.
_SEND_BYTES = 256 * 1024
_SILENCE_SECONDS = 2.0
_END_SECONDS = 2.0
_BOUNDARY = b"osp-frame"
_PARTS = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_log = logging.getLogger(__name__)


class WebPage:
    """The stream as a page; a target like the others, see `Watched`.

    Args:
        picture: form of the frames.
        port: where; 0 takes a free one.
        status: what the page shows, plain JSON values.
        steer: takes a line; None where it is taken, else why not.
        tell: told when a viewer is too slow.

    Attributes:
        address: to open in a browser on this machine. Whoever has it can watch and steer.

    Raises:
        InvalidRequestError: the port is taken or not allowed.
    """

    name = "http"

    def __init__(
        self,
        picture: Picture,
        *,
        port: int = 0,
        status: Callable[[], Mapping[str, Any]],
        steer: Callable[[str], str | None],
        tell: Callable[[str], None],
    ) -> None:
        self.broadcast = Broadcast(size=round(picture.rate))
        self._picture = picture
        self._tell = tell
        self._told = False
        try:
            self._server = _Server(port, self.broadcast, status, steer)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise RuntimeFailureError(f"no server can be started ({error.strerror})") from error
            raise InvalidRequestError(
                f"port {port} is taken or not allowed", hint="--sink http takes a free one"
            ) from error
        self.address = f"http://{_ADDRESS}:{self._server.server_port}/{self._server.token}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="osp-http", daemon=True
        )
        self._thread.start()

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Show a frame to all who look; waits for nobody."""
        if self.broadcast.publish(frame) and not self._told:
            self._told = True
            self._tell("a viewer of the page is too slow for the stream and skips pictures")

    def close(self) -> None:
        """End the stream, and give viewers a moment to see its end."""
        self.broadcast.end()
        self.broadcast.wait_for_viewers(_END_SECONDS)
        self._shut()

    def abort(self) -> None:
        """End it at once."""
        self.broadcast.end()
        self._shut()

    def _shut(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """One thread a connection, of which there is a bounded number."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = _MAX_CONNECTIONS
    # On Windows it would let another program take over the port.
    allow_reuse_address = os.name != "nt"

    def __init__(
        self,
        port: int,
        broadcast: Broadcast,
        status: Callable[[], Mapping[str, Any]],
        steer: Callable[[str], str | None],
    ) -> None:
        self.token = secrets.token_urlsafe(16)
        self.broadcast = broadcast
        self.status = status
        self.steer = steer
        page = files("osp_cli.media.live") / "page"
        self.parts = {
            path: (kind, (page / name).read_bytes()) for path, (name, kind) in _PARTS.items()
        }
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__((_ADDRESS, port), _Handler)
        self.hosts = {f"{name}:{self.server_port}" for name in (_ADDRESS, "localhost")}

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or hang up where there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What that thread does."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A viewer that leaves in the middle is nothing to talk about."""
        _log.debug("a connection of the page ended", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "osp"
    sys_version = ""
    timeout = _SOCKET_SECONDS
    server: _Server

    def do_GET(self) -> None:
        """The page and its parts, the stream, the status."""
        path = self._path()
        if path is None:
            return
        if path in self.server.parts:
            kind, data = self.server.parts[path]
            self._send(HTTPStatus.OK, kind, data)
        elif path == "status":
            self._send_json(HTTPStatus.OK, self._status())
        elif path == "stream":
            self._stream()
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        """A line for the stream."""
        path = self._path()
        if path is None:
            return
        if path != "steer":
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        elif not self._is_own_page():
            self._refuse(HTTPStatus.FORBIDDEN, "only the stream's own page may steer it")
        elif (line := self._line()) is not None:
            self._steer(line)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing to the terminal, where the status line is."""
        _log.debug("page: %s", format % args)

    def _path(self) -> str | None:
        """What is asked for, below the token; None where the answer was a refusal."""
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, "this server answers to its own address only")
            return None
        token, slash, path = self.path.partition("?")[0].removeprefix("/").partition("/")
        # Compared in a time that does not tell how much of it was right.
        if not secrets.compare_digest(token.encode(), self.server.token.encode()) or not slash:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
            return None
        return path

    def _is_own_page(self) -> bool:
        """Whether a browser sends this for the page itself; other programs say nothing."""
        origin = self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        own = {f"http://{host}" for host in self.server.hosts}
        return (origin is None or origin.lower() in own) and site == "same-origin"

    def _line(self) -> str | None:
        """The line that was sent; None where the answer was a refusal."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "how long is it?")
            return None
        if len(length) > 9 or int(length) > MAX_LINE_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a line has at most {MAX_LINE_BYTES} bytes"
            )
            return None
        try:
            line = self.rfile.read(int(length)).decode().strip()
        except UnicodeDecodeError:
            line = ""
        if not line.isprintable() or not line:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, "one line of text is needed")
            return None
        return line

    def _steer(self, line: str) -> None:
        try:
            problem = self.server.steer(line)
        except OspError as error:
            problem = error.message
        if problem is None:
            self._send_json(HTTPStatus.OK, {"taken": line})
        else:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, problem)

    def _status(self) -> dict[str, Any]:
        broadcast = self.server.broadcast
        return {
            **self.server.status(),
            "viewers": broadcast.num_viewers,
            "skipped": broadcast.skipped,
            "frames_shown": broadcast.num_frames,
            "ended": broadcast.has_ended,
        }

    def _stream(self) -> None:
        """Pictures, each in the place of the one before, until the stream or the viewer ends."""
        broadcast = self.server.broadcast
        viewer = broadcast.join(MAX_VIEWERS)
        if viewer is None:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_VIEWERS} viewers look already")
            return
        try:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.close_connection = True
            self.send_response(HTTPStatus.OK)
            kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY.decode()}"
            self._headers(kind)
            self.wfile.write(b"--" + _BOUNDARY)
            latest: bytes | None = None
            while not viewer.is_over:
                # In a silence the last one again: only so a viewer that has left is noticed.
                latest = viewer.take(_SILENCE_SECONDS) or latest
                if latest is not None:
                    self._send_picture(latest)
            self.wfile.write(b"--\r\n")
        except OSError:
            _log.debug("a viewer left")
        finally:
            broadcast.leave(viewer)

    def _send_picture(self, picture: bytes) -> None:
        head = f"\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
        # Browsers show a picture when they see the boundary after it, so that comes along.
        self.wfile.write(head.encode() + picture + b"\r\n--" + _BOUNDARY)

    def _refuse(self, code: HTTPStatus, reason: str) -> None:
        # Whatever else was sent is not read, so nothing can follow on this connection.
        self.close_connection = True
        self._send_json(code, {"error": reason})

    def _send_json(self, code: HTTPStatus, value: Mapping[str, Any]) -> None:
        data = json.dumps(value, default=str).encode()
        self._send(code, "application/json", data)

    def _send(self, code: HTTPStatus, kind: str, data: bytes) -> None:
        self.send_response(code)
        self._headers(kind, len(data))
        self.wfile.write(data)

    def _headers(self, kind: str, length: int | None = None) -> None:
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
