"""ffmpeg for streams: what this build can do, how it is called, and how it is brought to an end."""

from __future__ import annotations

import functools
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from osp_cli.errors import OspError, RuntimeFailureError
from osp_cli.media import ffmpeg
from osp_cli.media.live.picture import Picture
from osp_cli.media.video import TO_YUV

# Its last words are there when it has ended, unless a child of its own holds them back.
_WORDS_SECONDS = 2.0
# In the order of how well they do; builds without GPL parts have no x264, some no OpenH264.
_ENCODERS = ("libx264", "libopenh264", "mpeg4")


def video_encoder() -> str:
    """The best encoder for a stream that this ffmpeg has.

    Raises:
        RuntimeFailureError: it has none of those that every player understands.
    """
    names = {line.split()[1] for line in _says("-encoders").splitlines() if len(line.split()) > 1}
    for name in _ENCODERS:
        if name in names:
            return name
    raise RuntimeFailureError(
        f"this ffmpeg has none of the encoders {', '.join(_ENCODERS)}",
        hint="pip install --force-reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE",
    )


def can_send(protocol: str) -> bool:
    """Whether this ffmpeg writes to addresses of a protocol, as in `srt`."""
    _, _, outputs = _says("-protocols").partition("Output:")
    return protocol in outputs.split()


def codec_arguments(picture: Picture) -> list[str]:
    """Picture coding without delay, with a picture to cut at wherever a chunk begins."""
    name = video_encoder()
    # OpenH264 knows no quality, only a rate: what x264 needs for lively pictures of this size.
    bits = int(0.25 * picture.width * picture.height * picture.rate)
    quality = {
        "libx264": ("-preset", "veryfast", "-tune", "zerolatency", "-crf", "18"),
        "libopenh264": ("-b:v", str(bits), "-allow_skip_frames", "0"),
        "mpeg4": ("-q:v", "3"),
    }[name]
    # Without a scene's own cuts, so that the next one is always a whole chunk away.
    scenes = ("-keyint_min", str(picture.chunk_frames), "-sc_threshold", "0")
    return [
        *("-filter_threads", "1", "-vf", TO_YUV, "-c:v", name, *quality),
        *("-g", str(picture.chunk_frames), *(scenes if name == "libx264" else ())),
        *("-force_key_frames", f"expr:eq(n,0)+eq(mod(n-{picture.start},{picture.chunk_frames}),0)"),
        *("-pix_fmt", "yuv420p", "-colorspace", "bt709", "-color_primaries", "bt709"),
        *("-color_trc", "bt709", "-color_range", "tv"),
        *("-fflags", "+bitexact", "-flags:v", "+bitexact"),
    ]


def mp4_arguments() -> list[str]:
    """An MP4 that plays while it grows; a clean end makes an ordinary one of it where possible."""
    # A fragment a picture costs 100 bytes, and only one picture when ffmpeg itself is killed.
    if "hybrid_fragmented" in _says("-h", "muxer=mp4"):
        flags = "+hybrid_fragmented+frag_every_frame"
    else:
        flags = "+frag_every_frame+frag_keyframe+empty_moov+default_base_moof"
    return ["-movflags", flags, "-flush_packets", "1", "-f", "mp4"]


def matroska_arguments() -> list[str]:
    """A Matroska file that plays while it grows."""
    # In milliseconds: a cluster for each picture, since only whole ones are written.
    return ["-flush_packets", "1", "-cluster_time_limit", "1", "-f", "matroska"]


def stream_command(
    picture: Picture, arguments: Sequence[str], *, metadata: str | None = None
) -> list[str]:
    """The command of an ffmpeg that is fed with the frames of a stream.

    Args:
        picture: their form.
        arguments: codec and output.
        metadata: a file of tags in ffmpeg's format.
    """
    return [
        *(ffmpeg.ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-nostats", "-y"),
        # The tags first: they are read before ffmpeg waits for pictures.
        *(("-f", "ffmetadata", "-i", metadata) if metadata else ()),
        # The rate is what we say: at high ones ffmpeg would wait for many frames to measure it.
        *("-fpsprobesize", "0", "-f", "rawvideo", "-pixel_format", "rgb24"),
        *("-video_size", f"{picture.width}x{picture.height}"),
        *("-framerate", f"{picture.rate.numerator}/{picture.rate.denominator}", "-i", "pipe:0"),
        *("-map", "1:v" if metadata else "0:v", "-map_metadata", "0" if metadata else "-1"),
        *arguments,
    ]


class LiveEncoder(ffmpeg.Encoder):
    """An ffmpeg that is fed frames over hours, and can be ended from another thread.

    Args:
        command: from `stream_command`.
        path: what is made, for the words of an error only.
        stdout: where its output `pipe:1` goes.
    """

    def __init__(self, command: Sequence[str], path: Path, *, stdout: int | None = None) -> None:
        super().__init__(command, path, stdout=stdout)
        self._command = command

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def said(self) -> str:
        """Its last words; all of them after its end."""
        return "; ".join(self._tail)

    def failure(self) -> OspError:
        """What its end means for the user; waits for that."""
        return self._failure()

    def stop(self, *, seconds: float | None) -> int:
        """End the input, wait for so long (None: for ever), then kill; the exit code.

        Safe while another thread is held up in `write`: that one then fails.
        """
        # Closing waits for a write that hangs, so the killing may not wait for the closing.
        killer = threading.Timer(seconds or 0.0, self._process.kill)
        killer.daemon = True
        if seconds is not None:
            killer.start()
        try:
            self._close_input()
            code = self._process.wait()
        finally:
            killer.cancel()
        self._reader.join(timeout=_WORDS_SECONDS)
        return code

    def _close_input(self) -> None:
        try:
            self._stdin.close()
        except (OSError, ValueError):
            return  # it has ended before, and what it left unread goes with it


@functools.cache
def _asked(exe: str, question: tuple[str, ...]) -> str:
    done = subprocess.run(
        [exe, "-hide_banner", *question],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.stdout.decode(errors="replace")


def _says(*question: str) -> str:
    """What this ffmpeg tells about itself; asked once."""
    try:
        return _asked(ffmpeg.ffmpeg_exe(), question)
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeFailureError(
            f"ffmpeg cannot be asked what it can do ({error})",
            hint="pip install --force-reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE",
        ) from error
