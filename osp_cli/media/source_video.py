"""The frames of any video, one at a time, at the rate and size that are asked for."""

from __future__ import annotations

from collections.abc import Generator
from fractions import Fraction
from typing import TYPE_CHECKING

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.ffmpeg import Decoder
from osp_cli.media.fitting import cover_size
from osp_cli.media.frames import exact_rate
from osp_cli.media.source_probe import CLOCK_INPUT, CLOCK_OUTPUT, SLACK_SECONDS
from osp_cli.media.source_probe import SourceVideo as SourceVideo
from osp_cli.media.source_probe import probe_source as probe_source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A decoder may lose its last pictures; more than this much is damage.
_HELD_SECONDS = 0.5
# Containers that find the key frame before a time for certain. Decoding begins well before it, for
# pictures that lean on others further back.
_SEEKABLE = ("mov", "matroska")
_LEAD_SECONDS = 10.0

# ffmpeg decodes these in several threads that now and then change a picture given out before.
_ONE_THREAD = ("theora", "vp3", "vp4")

_SCALING = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"
# The drawn box stands behind the picture: there is no filter that lays on a colour.
_ON_WHITE = (
    "format=rgba,split[above][below];[below]drawbox=color=white:t=fill:replace=1[white];"
    "[white][above]overlay=format=rgb"
)


def read_frames(
    source: SourceVideo,
    size: tuple[int, int],
    fps: int | float | Fraction,
    *,
    start_frame: int = 0,
    num_frames: int | None = None,
) -> Generator[NDArray[np.uint8], None, None]:
    """Yield the frames that a player shows at the times `k / fps`, counted from the first picture.

    Frames are made as they are asked for, so memory does not grow with the length. ffmpeg ends
    with the iterator, also when that is closed early. At most half a second that the decoder loses
    at the end is filled with the last picture, and so is what is asked for after the end.

    Args:
        source: from `probe_source`.
        size: width and height of the frames; the picture is scaled to cover them, then cut.
        fps: frames per second, resampled by time stamps.
        start_frame: number of the first frame to give.
        num_frames: how many to give; None for all that `SourceVideo.num_frames_at` counts.

    Yields:
        uint8 RGB `(height, width, 3)`, a new array each.

    Raises:
        ValueError: a size without area, a rate that is not positive, or frames before the first
            or altogether after the last.
        UnreadableMediaError: the pictures break off, with the time where they do.
        RuntimeFailureError: ffmpeg is missing.
    """
    rate = exact_rate(fps)
    total = source.num_frames_at(rate)
    if num_frames is None:
        num_frames = total - start_frame
    if min(size) < 1:
        raise ValueError(f"frames have at least one pixel, got {size[0]}x{size[1]}")
    if not 0 <= start_frame < total or num_frames < 1:
        raise ValueError(f"of {total} frames, {num_frames} from {start_frame} on cannot be given")
    return _frames(source, size, rate, start_frame, num_frames)


def _frames(
    source: SourceVideo, size: tuple[int, int], rate: Fraction, start_frame: int, num_frames: int
) -> Generator[NDArray[np.uint8], None, None]:
    import numpy as np

    width, height = size
    last: NDArray[np.uint8] | None = None
    given = 0
    with Decoder(_arguments(source, size, rate, start_frame, num_frames)) as ffmpeg:
        while given < num_frames:
            frame = np.empty((height, width, 3), np.uint8)
            if not ffmpeg.fill(frame.data.cast("B")):
                break
            last = frame.copy()
            given += 1
            yield frame
        else:
            return
        ffmpeg.finish()
        said = ffmpeg.said
    held = source.num_frames_at(rate) - (start_frame + given)
    if last is None or held > (_HELD_SECONDS + source.last_seconds) * rate:
        raise _broken_off(source, float((start_frame + given) / rate), said)
    for _ in range(num_frames - given):
        yield last.copy()


def _arguments(
    source: SourceVideo, size: tuple[int, int], rate: Fraction, start_frame: int, num_frames: int
) -> list[str]:
    """What ffmpeg is told."""
    # Where frame 0 of the output lies in the file. A hair later, because times were rounded.
    origin = source.start + float(start_frame / rate) + min(SLACK_SECONDS, float(1 / rate) / 4)
    seek: list[str] = []
    lead = origin - _LEAD_SECONDS
    if lead > 0 and source.container.startswith(_SEEKABLE):
        # What is before the time is wanted too: it may still be shown then.
        seek = ["-ss", f"{lead:.6f}", "-noaccurate_seek"]
        origin -= round(lead, 6)
    filters = [
        *(["bwdif=mode=send_frame:deint=interlaced"] if source.is_interlaced else []),
        "settb=expr=1/1000000",
        f"setpts=PTS-({round(origin * 1e6)})",
        # Rounded up: frame k shows what began at k / fps at the latest.
        f"fps=fps={rate.numerator}/{rate.denominator}:start_time=0:round=up",
        *([_ON_WHITE] if source.has_alpha else []),
        *_fitting(source, size),
    ]
    threads = ["-threads", "1"] if source.codec in _ONE_THREAD else []
    return [
        # One chain of filters for all of the file: a new one would count time from zero again.
        *(
            *seek,
            *threads,
            "-reinit_filter",
            "0",
            *CLOCK_INPUT,
            "-i",
            f"file:{source.path}",
            "-map",
            "0:V:0",
        ),
        *("-vf", ",".join(filters), "-frames:v", str(num_frames), "-fps_mode", "passthrough"),
        *("-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1", *CLOCK_OUTPUT),
    ]


def _fitting(source: SourceVideo, size: tuple[int, int]) -> list[str]:
    """Filters from the source's picture, of whatever pixels, to frames of `size` in RGB."""
    width, height = size
    scaled = cover_size(source.width, source.height, width, height)
    left, top = (round((have - want) / 2) for have, want in zip(scaled, size, strict=True))
    return [
        f"scale={scaled[0]}:{scaled[1]}:in_color_matrix={source.matrix}:out_range=pc"
        f":flags={_SCALING}",
        # Before the cut: where colour is stored at half the resolution, it would be cut at even
        # numbers only.
        "format=rgb24",
        f"crop={width}:{height}:{left}:{top}",
        "setsar=1",
    ]


def _broken_off(source: SourceVideo, seconds: float, said: list[str]) -> UnreadableMediaError:
    reason = f" ({said[0]})" if said else ""
    return UnreadableMediaError(
        f"{source.path} breaks off after {seconds:.1f} of {source.duration:.1f} seconds{reason}",
        hint="copy or download it again, or cut it before that time",
    )
