"""ffmpeg's description of a file, read as its users read it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from osp_cli.errors import UnreadableMediaError

READS = "MP4, MOV, MKV, WebM, AVI, MPEG and most other videos are read"
_LISTS = ("hls", "dash", "concat", "sdp", "tty", "image2", "webvtt", "srt", "ass")
_STREAM = re.compile(
    r"Stream #0:(?P<index>\d+)\S* ?: (?P<kind>Video|Audio): (?P<codec>\w+)(?P<rest>.*)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What ffmpeg says about a file before it reads it.

    Attributes:
        container: ffmpeg's names of the format, as in `matroska,webm`.
        duration: seconds from the first to the last of all streams, None where it is not known.
        codec: ffmpeg's name of that of the pictures.
        text: all of it.
        num_videos: number of streams of pictures, covers of records left out.
        audio_codec: ffmpeg's name of that of the first sound, None for none.
        rotation: degrees clockwise by which players turn the pictures.
        stated_fps: pictures per second on average, to two places.
    """

    container: str
    duration: float | None
    codec: str
    text: str
    num_videos: int
    audio_codec: str | None
    rotation: int
    stated_fps: Fraction | None


def only_a_picture(path: Path) -> UnreadableMediaError:
    """The error of a picture where a video is wanted."""
    return UnreadableMediaError(
        f"{path} is a picture, not a video", hint="osp generate animates pictures"
    )


def described(path: Path, said: Sequence[str]) -> Description:
    """Read ffmpeg's description of its input.

    Raises:
        UnreadableMediaError: it has none, or one without moving pictures.
    """
    head = next((line for line in said if line.startswith("Input #0, ")), None)
    if head is None:
        raise _not_a_video(path, said)
    container = head.removeprefix("Input #0, ").rpartition(", from ")[0]
    lines = list(_input_lines(said))
    streams = [match for line in lines if (match := _STREAM.search(line))]
    videos = [
        stream
        for stream in streams
        if stream["kind"] == "Video" and "(attached pic)" not in stream["rest"]
    ]
    audio = next((stream for stream in streams if stream["kind"] == "Audio"), None)
    if container.endswith("_pipe"):
        raise only_a_picture(path)
    if container in _LISTS:
        raise UnreadableMediaError(f"{path} is a list of other files, not a video", hint=READS)
    if not videos:
        what = "only sound" if audio else "none"
        raise UnreadableMediaError(f"{path} holds no video, {what}", hint=READS)
    text = "\n".join(lines)
    lasts = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", text)
    turned = re.search(r"rotation of (-?[\d.]+) degrees", text)
    rate = re.search(r", ([\d.]+)(k?) fps", videos[0]["rest"])
    return Description(
        container=container,
        duration=None
        if lasts is None
        else int(lasts[1]) * 3600 + int(lasts[2]) * 60 + float(lasts[3]),
        codec=videos[0]["codec"],
        text=text,
        num_videos=len(videos),
        audio_codec=None if audio is None else audio["codec"],
        # ffmpeg counts against the clock, and players turn back by as much.
        rotation=0 if turned is None else round(-float(turned[1])) % 360,
        stated_fps=None if rate is None else Fraction(rate[1]) * (1000 if rate[2] else 1),
    )


def _input_lines(said: Sequence[str]) -> Iterator[str]:
    """What is said about the input, and not about outputs."""
    inside = False
    for line in said:
        if line.startswith("Input #0"):
            inside = True
        elif line.startswith(("Stream mapping", "Output #")):
            return
        if inside:
            yield line


def _not_a_video(path: Path, said: Sequence[str]) -> UnreadableMediaError:
    text = "\n".join(said)
    # Said of any file that is taken for an MP4 by its name alone, too.
    if "moov atom not found" in text and "low score" not in text:
        return UnreadableMediaError(
            f"{path} is cut short: the index at its end is missing",
            hint="copy or download it again",
        )
    reason = said[-1].rpartition(": ")[2] if said else "no reason given"
    return UnreadableMediaError(f"{path} cannot be read as a video ({reason})", hint=READS)
