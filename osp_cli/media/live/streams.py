"""Streams that ffmpeg carries away: to stdout, a player, an address or a playlist."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from osp_cli.errors import InvalidRequestError, OspError, RuntimeFailureError
from osp_cli.media.files import explained
from osp_cli.media.live.encoding import (
    LiveEncoder,
    can_send,
    codec_arguments,
    stream_command,
)
from osp_cli.media.live.picture import Picture
from osp_cli.media.live.targets import Target, player
from osp_cli.media.video import TO_YUV

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_END_SECONDS = 10.0
_ABORT_SECONDS = 1.0
_SEGMENT = "-part"
_PIPED = ("stdout", "mpv")
# Numbers by which ffmpeg tells that nobody reads: EPIPE, negated, low byte or whole; SIGPIPE.
_PIPE_CODES = (256 - 32, 2**32 - 32, -13)


class Stream:
    """One target that is fed by an ffmpeg of its own.

    Args:
        target: where to.
        picture: form of the frames.
        first_frame: the number of the first frame, where the stream goes on from an earlier run.
    """

    def __init__(self, target: Target, picture: Picture, *, first_frame: int = 0) -> None:
        self.name = target.name
        self._target = target
        self._picture = picture
        self._first_frame = first_frame
        self._stack = contextlib.ExitStack()
        self._encoder: LiveEncoder | None = None
        self._player: subprocess.Popen[bytes] | None = None
        scheme = target.address.partition(":")[0].lower()
        if target.kind == "url" and not can_send(scheme):
            raise InvalidRequestError(
                f"this ffmpeg cannot send to {scheme}://",
                hint="set IMAGEIO_FFMPEG_EXE to one that can",
            )

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Send one frame, `(height, width, 3)`; waits while it is not taken.

        Raises:
            BrokenPipeError: stdout's reader or the player is gone.
            RuntimeFailureError: the other side refused or left, or ffmpeg failed.
            WontFitError: the disk is full.
        """
        if self._encoder is None:
            self._encoder = self._start()
        try:
            self._encoder.write(frame)
        except OspError as error:
            raise self._ended(self._encoder, error) from error

    def close(self) -> None:
        """End the stream; what was sent is complete.

        Raises:
            As for `write`.
        """
        encoder = self._encoder
        if encoder is None:
            return
        # A reader may be slow or stopped for a while: cut off, what it has would be damaged.
        patient = self._target.kind in _PIPED
        with self._stack:
            if encoder.stop(seconds=None if patient else _END_SECONDS):
                raise self._ended(encoder, encoder.failure())
            if self._player is not None:
                # It shows what it has; after that it ends by itself.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._player.wait(_END_SECONDS)
        self._encoder = None

    def abort(self) -> None:
        """End it at once; safe while another thread is held up in `write`."""
        encoder = self._encoder
        if encoder is not None:
            with self._stack:
                encoder.stop(seconds=_ABORT_SECONDS)
            self._encoder = None

    def _start(self) -> LiveEncoder:
        path = Path(self._target.address or self.name)
        if self._target.kind == "hls" and not self._first_frame:
            self._clear_segments()
        with contextlib.ExitStack() as stack:
            stdout: int | None = None
            if self._target.kind == "stdout":
                sys.stdout.flush()
                stdout = sys.stdout.fileno()
            elif self._target.kind == "mpv":
                stdout = self._start_player(stack)
            command = stream_command(self._picture, self._arguments())
            encoder = stack.enter_context(LiveEncoder(command, path, stdout=stdout))
            if self._target.kind == "mpv" and stdout is not None:
                # Only ffmpeg's copy may be left, else the player would never see an end.
                os.close(stdout)
            self._stack = stack.pop_all()
        return encoder

    def _start_player(self, stack: contextlib.ExitStack) -> int:
        """mpv reading a pipe; the pipe's other end."""
        reader, writer = os.pipe()
        try:
            self._player = subprocess.Popen(
                [player(), "--no-terminal", "--profile=low-latency", "--title=osp", "-"],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            os.close(writer)
            raise RuntimeFailureError(f"mpv cannot be started ({error.strerror})") from error
        finally:
            os.close(reader)
        stack.callback(_end, self._player)
        return writer

    def _arguments(self) -> list[str]:
        target = self._target
        if target.container == "y4m":
            return ["-filter_threads", "1", "-vf", TO_YUV, "-f", "yuv4mpegpipe", "pipe:1"]
        codec = [*codec_arguments(self._picture), "-flush_packets", "1"]
        if target.kind in _PIPED:
            return [*codec, "-f", "matroska", "-live", "1", "-cluster_time_limit", "1", "pipe:1"]
        if target.kind == "hls":
            return [*codec, *self._playlist(), f"file:{target.address}"]
        return [*codec, "-f", target.container, target.address]

    def _playlist(self) -> list[str]:
        """Segments of one chunk each. As MPEG-TS: of the MP4 kind one frame is lost on going on."""
        flags = "independent_segments+temp_file" + ("+append_list" if self._first_frame else "")
        segments = Path(self._target.address).with_suffix("")
        pattern = f"{segments}{_SEGMENT}%05d.ts"
        return [
            *("-f", "hls", "-hls_time", f"{self._picture.chunk_seconds:.6f}"),
            *("-hls_playlist_type", "event", "-hls_segment_type", "mpegts", "-hls_flags", flags),
            *("-hls_segment_filename", f"file:{pattern}"),
            *("-output_ts_offset", f"{float(self._first_frame / self._picture.rate):.6f}"),
        ]

    def _clear_segments(self) -> None:
        """What an earlier stream of that name left, which nothing would ever refer to again."""
        playlist = Path(self._target.address)
        ours = re.compile(re.escape(playlist.stem + _SEGMENT) + r"\d{5,}\.ts")
        with explained(playlist):
            for entry in list(playlist.parent.iterdir()):
                if ours.fullmatch(entry.name):
                    entry.unlink()

    def _ended(self, encoder: LiveEncoder, error: OspError) -> BaseException:
        """What the end of this ffmpeg means."""
        code = encoder.stop(seconds=_ABORT_SECONDS)
        with self._stack:
            self._encoder = None
        if self._target.kind in _PIPED and (code in _PIPE_CODES or "Broken pipe" in encoder.said):
            return BrokenPipeError(f"nobody reads {self.name} any more")
        if self._target.kind != "url":
            return error
        # What ffmpeg says quotes the whole address.
        reason = error.message.replace(self._target.address, self.name)
        return RuntimeFailureError(
            f"the stream to {self.name} ended: {reason}", hint="is somebody listening there?"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """The player never outlives us."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
