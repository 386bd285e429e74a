"""Where a stream may go, and what of that cannot work, told before any model is loaded."""

from __future__ import annotations

import re
import shutil
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from osp_cli.errors import InvalidRequestError
from osp_cli.media.files import check_writable
from osp_cli.media.live.recording import check_recording
from osp_cli.outputs import STDOUT

Kind = Literal["file", "stdout", "mpv", "http", "url", "hls"]

# Scheme -> container that is usual there.
_SCHEMES = {"udp": "mpegts", "srt": "mpegts", "rtmp": "flv", "rtmps": "flv"}
_STDOUT_FORMATS = ("matroska", "y4m")
_EXAMPLES = "file, stdout, stdout:y4m, mpv, http, http:PORT, udp://, srt://, rtmp://, NAME.m3u8"


@dataclass(frozen=True, slots=True)
class Target:
    """One place that a stream goes to.

    Attributes:
        kind: of place.
        name: how it is called to the user; of an address, without the part that is secret.
        address: file, playlist or URL; empty for the others.
        container: ffmpeg's name of the format; empty for those that choose their own.
        port: of the HTTP server; 0 takes a free one.
    """

    kind: Kind
    name: str
    address: str = ""
    container: str = ""
    port: int = 0

    @property
    def is_live(self) -> bool:
        """Whether somebody watches while it is made, so that the clock counts."""
        if self.kind == "stdout":
            return not _is_file(sys.stdout.fileno()) if sys.stdout is not None else False
        return self.kind != "file"


def parse_targets(targets: Sequence[str], output: Path) -> tuple[Target, ...]:
    """Read targets as typed; an output `-` stands for stdout.

    Raises:
        InvalidRequestError: an unknown one, one named twice, or none at all.
    """
    found: list[Target] = []
    for text in targets:
        target = parse_target(text)
        if target.kind == "file":
            target = Target("stdout", "stdout", "", "matroska") if output == STDOUT else target
        if any(other.name == target.name and other == target for other in found):
            raise InvalidRequestError(f"--sink {target.name} is named twice")
        found.append(target)
    if not found:
        raise InvalidRequestError("the stream has no target", hint=f"--sink is one of {_EXAMPLES}")
    if sum(target.kind == "stdout" for target in found) > 1:
        raise InvalidRequestError("stdout takes one stream only")
    return tuple(found)


def parse_target(text: str) -> Target:
    """Read one target.

    Raises:
        InvalidRequestError: it is none.
    """
    name, _, detail = text.partition(":")
    if text in ("file", "mpv", "http"):
        return Target(text, text)  # type: ignore[arg-type]
    if name == "stdout":
        container = {"mkv": "matroska", "": "matroska"}.get(detail, detail)
        if container not in _STDOUT_FORMATS:
            raise InvalidRequestError(
                f"stdout cannot be {detail}", hint="stdout is Matroska, stdout:y4m is raw video"
            )
        return Target("stdout", "stdout", "", container)
    if name == "http" and re.fullmatch(r"\d{1,5}", detail):
        if int(detail) > 65535:
            raise InvalidRequestError(f"a port is at most 65535, got {detail}")
        return Target("http", "http", port=int(detail))
    if name.lower() in _SCHEMES and detail.startswith("//"):
        return _url(text)
    if text.lower().endswith(".m3u8") and "://" not in text:
        if "%" in str(Path(text).absolute()):
            raise InvalidRequestError(
                f"a playlist cannot be called {text}: its segments are numbered, and % stands for "
                "the number"
            )
        return Target("hls", text, text, "hls")
    raise InvalidRequestError(f"{text!r} is no target of a stream", hint=f"one of {_EXAMPLES}")


def check_targets(targets: Sequence[Target], output: Path, *, overwrite: bool) -> None:
    """Refuse what cannot work here, without starting anything.

    Raises:
        InvalidRequestError: a file that exists or cannot be made, a terminal as stdout, a player
            that is not installed.
    """
    for target in targets:
        if target.kind == "file":
            check_recording(output, overwrite=overwrite)
        elif target.kind == "hls":
            check_writable(target.address, overwrite=overwrite)
        elif target.kind == "stdout":
            _check_stdout()
        elif target.kind == "mpv":
            player()


def player() -> str:
    """The mpv program.

    Raises:
        InvalidRequestError: it is not installed.
    """
    found = shutil.which("mpv")
    if found is None:
        raise InvalidRequestError(
            "mpv is not installed",
            hint="install it from mpv.io or your system's packages, or watch with --sink http",
        )
    return found


def _url(text: str) -> Target:
    """An address for ffmpeg, of which nothing is left to guessing."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequestError(f"{text!r} is no address ({error})") from error
    scheme = parts.scheme.lower()
    if not host or re.search(r"[\s\x00-\x1f\x7f]", text):
        raise InvalidRequestError(
            f"{text!r} is no address", hint=f"as in {scheme}://127.0.0.1:9000"
        )
    if scheme in ("udp", "srt") and port is None:
        raise InvalidRequestError(f"{scheme}:// needs a port", hint=f"as in {scheme}://{host}:9000")
    if scheme == "udp" and not parts.query:
        # Seven packets of MPEG-TS: what fits into a datagram that no network takes apart.
        text += "?pkt_size=1316"
    # The path of RTMP holds the key to a channel, a query of SRT the passphrase.
    shown = f"{scheme}://{host}" + (f":{port}" if port else "")
    return Target("url", shown, text, _SCHEMES[scheme])


def _check_stdout() -> None:
    if sys.stdout is None:
        raise InvalidRequestError("a stream to stdout, which is closed", hint="-o clip.mp4")
    if sys.stdout.isatty():
        raise InvalidRequestError(
            "stdout takes a video, which a terminal cannot show",
            hint="pipe it into a program, as in `osp extend ... -o - | mpv -`",
        )


def _is_file(descriptor: int) -> bool:
    import os

    return stat.S_ISREG(os.fstat(descriptor).st_mode)
