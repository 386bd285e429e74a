"""The sound of a source video, made ready to go into an MP4 beside new pictures."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from osp_cli.media.ffmpeg import Decoder

# What players expect to find in an MP4; everything else becomes AAC.
_COPIED = ("aac", "mp3", "ac3", "eac3", "opus", "alac", "flac")
_AAC = ("-c:a", "aac", "-b:a", "192k")


@dataclass(frozen=True, slots=True)
class AudioTrack:
    """The first sound of a file, or a part of it.

    Attributes:
        path: a video or a file of sound.
        seconds: how long the part is; copied sound ends with the packet in which that falls.
        start: where it begins, in seconds from the beginning of the file. For the sound that
            belongs to the frames of a `SourceVideo`, see its `sound`.
    """

    path: Path
    seconds: float
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.start < 0:
            raise ValueError(f"no sound lasts {self.seconds} seconds from {self.start} on")


@contextlib.contextmanager
def prepared_sound(track: AudioTrack, notices: list[str]) -> Iterator[Path | None]:
    """Give the sound as a file of its own, before any picture is encoded for it.

    Done first because sound that cannot be read must not cost the pictures. It is copied as it is
    where MP4 can hold it, and made AAC otherwise. Times are kept: what begins a second into the
    part begins a second into the file.

    Args:
        track: what is wanted.
        notices: takes a sentence when there is no sound, or only other than the source's.

    Yields:
        A temporary MP4 without pictures to be muxed with `-copyts`; None when there is no sound.

    Raises:
        RuntimeFailureError: ffmpeg is missing.
    """
    codec = _codec(track.path)
    if codec is None:
        notices.append(f"{track.path.name} has no sound: the video is silent")
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="osp-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "sound.mp4"
        reason = ""
        ways = ([("-c:a", "copy")] if codec in _COPIED else []) + [_made_aac()]
        for way in ways:
            reason = _extract(track, way, path)
            if not reason:
                if codec in _COPIED and way != ways[0]:
                    notices.append(f"the sound of {track.path.name} cannot be copied: now AAC")
                yield path
                return
        notices.append(f"the sound of {track.path.name} cannot be used ({reason}): silent video")
        yield None


def _made_aac() -> tuple[str, ...]:
    # Silence where the sound begins late or has gaps, so that it stays with the pictures.
    return (*_AAC, "-af", "aresample=async=1:first_pts=0")


def _codec(path: Path) -> str | None:
    """ffmpeg's name of the first sound, None where there is none."""
    with Decoder(["-i", f"file:{path}"], loglevel="info") as ffmpeg:
        ffmpeg.finish()
        text = "\n".join(ffmpeg.said)
    found = re.search(r"Stream #0:\d+\S* ?: Audio: (\w+)", text)
    return found[1] if found else None


def _extract(track: AudioTrack, way: Sequence[str], path: Path) -> str:
    """Write the sound to `path`; why that failed, or nothing."""
    begin = ("-ss", f"{track.start:.6f}") if track.start else ()
    arguments = [
        *("-y", *begin, "-i", f"file:{track.path}", "-map", "0:a:0", *way),
        *("-t", f"{track.seconds:.6f}", "-map_metadata", "-1", "-map_chapters", "-1"),
        *("-fflags", "+bitexact", "-flags:a", "+bitexact", "-f", "mp4", f"file:{path}"),
        # The clock of a transport stream begins with the first packet of all streams in use.
        *("-map", "0:V:0?", "-c", "copy", "-frames:v", "1", "-f", "null", "-"),
    ]
    with Decoder(arguments) as ffmpeg:
        code = ffmpeg.finish()
        said = ffmpeg.said
    if code != 0:
        return said[-1] if said else f"exit code {code}"
    # An empty file is no failure to ffmpeg, as when the sound ends before the part begins.
    with Decoder(
        ["-i", f"file:{path}", "-map", "0:a:0", "-c", "copy", "-f", "framecrc", "pipe:1"]
    ) as ffmpeg:
        is_there = any(not line.startswith(b"#") for line in ffmpeg.lines())
    return "" if is_there else "there is none at that time"
