"""Writing H.264 video, and reading whatever video ffmpeg reads."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.ffmpeg import encode_frames, run_ffmpeg
from osp_cli.media.files import atomic_output
from osp_cli.media.sound import AudioTrack, prepared_sound

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Fixed, not taken from the machine: x264 gives other bytes for another number of threads.
_ENCODER_THREADS = 4

# Full-precision conversion to BT.709 with rounding that is the same on every processor; then the
# frames are tagged, because players guess BT.601 for small untagged pictures and shift the hues.
TO_YUV = (
    "scale=in_range=pc:out_range=tv:out_color_matrix=bt709"
    ":flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact,"
    "format=yuv420p,"
    "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
)
_TO_RGB = "scale=out_range=pc:flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"

_STREAM = re.compile(
    r"Stream #0:\d+.*?: Video: (?P<codec>\w+)(?: \((?P<profile>[^)/]+)\))?"
    r".*?, (?P<pixel_format>[a-z]\w*)(?:\((?P<colour>[^)]*)\))?"
    r".*?, (?P<width>\d+)x(?P<height>\d+)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What a video file says about its first video stream.

    Attributes:
        codec: ffmpeg's name, as in `h264`.
        profile: as in `High`; empty where the codec has none.
        pixel_format: as in `yuv420p`.
        colour: ffmpeg's description, as in `tv, bt709, progressive`.
        num_frames: counted, not computed from the duration.
    """

    codec: str
    profile: str
    pixel_format: str
    colour: str
    width: int
    height: int
    fps: float
    num_frames: int


def write_video(
    frames: Iterable[NDArray[np.uint8]],
    path: str | Path,
    *,
    fps: int | float | Fraction = 16,
    comment: str | None = None,
    crf: int = 16,
    overwrite: bool = True,
    audio: AudioTrack | None = None,
    notices: list[str] | None = None,
) -> int:
    """Encode frames as an MP4 that plays everywhere: H.264 High, yuv420p, BT.709, index first.

    Equal frames, fps, comment and sound give equal bytes with the same ffmpeg build. The file
    appears whole or not at all. Frames are pulled one at a time, so they may be a generator.

    Args:
        frames: uint8 RGB of shape `(height, width, 3)` each, all of one size, both sides even;
            an array `(frames, height, width, 3)` is such an iterable.
        path: where to write; its suffix has no influence on the format.
        fps: frames per second.
        comment: text kept in the file's comment tag.
        crf: constant rate factor of x264, 0 (lossless) to 51; 16 looks the same as the source.
        overwrite: replace an existing file.
        audio: sound to go with the frames. Sound that cannot be used leaves a silent video.
        notices: takes a sentence when the video is silent in spite of `audio`.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: no frames, or frames of a wrong shape, type or odd size.
        InvalidRequestError: the path cannot be written to.
        WontFitError: the disk is full.
        RuntimeFailureError: ffmpeg is missing or failed.
    """
    path = Path(path)
    if comment is not None and "\0" in comment:
        raise ValueError("a comment cannot hold a null character")
    with (
        atomic_output(path, overwrite=overwrite) as part,
        metadata_file(comment) as metadata,
        _sound_file(audio, notices) as sound,
    ):
        arguments = [
            *(("-f", "ffmetadata", "-i", metadata) if metadata else ()),
            *(("-copyts", "-i", sound) if sound else ()),
            *("-map", "0:v", "-map_metadata", "1" if metadata else "-1"),
            *(("-map", f"{2 if metadata else 1}:a", "-c:a", "copy") if sound else ()),
            *("-filter_threads", "1", "-vf", TO_YUV),
            *("-c:v", "libx264", "-preset", "medium", "-profile:v", "high", "-crf", str(crf)),
            *("-threads", str(_ENCODER_THREADS), "-pix_fmt", "yuv420p"),
            *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"),
            *("-color_range", "tv", "-movflags", "+faststart"),
            # Leaves out the encoder's version and the time of day.
            *("-fflags", "+bitexact", "-flags:v", "+bitexact"),
            # "file:" keeps a colon in a name from being read as a protocol.
            *("-f", "mp4", f"file:{part}"),
        ]
        encode_frames(frames, arguments, fps=fps, path=path, even=True)
        return part.stat().st_size


def read_video(path: str | Path, *, max_frames: int | None = None) -> NDArray[np.uint8]:
    """Decode a video to uint8 RGB `(frames, height, width, 3)`, every frame once.

    Raises:
        UnreadableMediaError: no such file, no video in it, or damaged.
        RuntimeFailureError: ffmpeg is missing.
    """
    import numpy as np

    info = probe_video(path)
    limit = [] if max_frames is None else ["-frames:v", str(max_frames)]
    command = [
        *("-i", f"file:{path}", "-map", "0:v:0", "-fps_mode", "passthrough", *limit),
        *("-vf", _TO_RGB, "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"),
    ]
    # Not turned by a rotation tag, so that the size is the one that was probed.
    result = run_ffmpeg(["-noautorotate", *command], path)
    pixels = np.frombuffer(result.stdout, dtype=np.uint8)
    return pixels.reshape(-1, info.height, info.width, 3).copy()


def probe_video(path: str | Path) -> VideoInfo:
    """Codec, size, rate and number of frames of a video file.

    Raises:
        UnreadableMediaError: no such file, or no video in it.
        RuntimeFailureError: ffmpeg is missing.
    """
    # Nothing is decoded: packets are copied to nowhere and counted.
    command = ["-i", f"file:{path}", "-map", "0:v:0", "-c", "copy", "-f", "null"]
    result = run_ffmpeg([*command, "-nostats", "-progress", "pipe:1", "-"], path, loglevel="info")
    described = result.stderr.decode(errors="replace")
    stream = _STREAM.search(described)
    counts = re.findall(rb"^frame=\s*(\d+)", result.stdout, re.MULTILINE)
    if stream is None or not counts:
        raise UnreadableMediaError(f"{path} holds no video that can be described")
    rate = re.search(r", ([\d.]+) fps", described)
    return VideoInfo(
        codec=stream["codec"],
        profile=(stream["profile"] or "").strip(),
        pixel_format=stream["pixel_format"],
        colour=stream["colour"] or "",
        width=int(stream["width"]),
        height=int(stream["height"]),
        fps=float(rate[1]) if rate else 0.0,
        num_frames=int(counts[-1]),
    )


def read_comment(path: str | Path) -> str | None:
    """The comment tag of a video file, or None where it has none.

    Raises:
        UnreadableMediaError: no such file, or no media in it.
        RuntimeFailureError: ffmpeg is missing.
    """
    result = run_ffmpeg(["-i", f"file:{path}", "-f", "ffmetadata", "pipe:1"], path)
    # A line ends at a newline that no backslash precedes; sections of streams come after the tags.
    lines = re.findall(r"(?:[^\\\n]|\\.)+", result.stdout.decode(), re.DOTALL)
    for line in lines:
        if line.startswith("["):
            break
        if line.startswith("comment="):
            return re.sub(r"\\(.)", r"\1", line.removeprefix("comment="), flags=re.DOTALL)
    return None


@contextlib.contextmanager
def _sound_file(audio: AudioTrack | None, notices: list[str] | None) -> Iterator[str | None]:
    """The sound as an input of its own, None for a silent video."""
    if audio is None:
        yield None
        return
    with prepared_sound(audio, [] if notices is None else notices) as path:
        yield None if path is None else f"file:{path}"


@contextlib.contextmanager
def metadata_file(comment: str | None) -> Iterator[str | None]:
    """A file in ffmpeg's own metadata format: a command line is too short for a long comment.

    Yields:
        Its path, an input of `-f ffmetadata`; None where there is no comment.
    """
    if comment is None:
        yield None
        return
    escaped = re.sub(r"([=;#\\\r\n])", r"\\\1", comment)
    with tempfile.TemporaryDirectory(prefix="osp-") as folder:
        path = Path(folder) / "comment.txt"
        # As bytes: text mode would turn line ends into those of the system. No line end after the
        # comment: ffmpeg takes one after a backslash for a part of it, even an escaped backslash.
        path.write_bytes(f";FFMETADATA1\ncomment={escaped}".encode())
        yield str(path)
