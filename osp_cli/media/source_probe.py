"""What a video is, learnt from its beginning and its end, whatever its length.

ffmpeg describes the file, decodes one picture and copies packets to nowhere, from whose time stamps
length and rhythm are computed; of a large file only those at its beginning and its end.
"""

from __future__ import annotations

import functools
import hashlib
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.ffmpeg import Decoder
from osp_cli.media.files import explained
from osp_cli.media.frames import exact_rate
from osp_cli.media.kinds import MediaKind, is_text, media_kind, read_head
from osp_cli.media.packet_times import PacketTimes
from osp_cli.media.pixel_formats import bit_depth, has_alpha, matrix_of
from osp_cli.media.sound import AudioTrack
from osp_cli.media.source_description import READS, Description, described, only_a_picture

# Some containers leave out times that follow from others.
CLOCK_INPUT = ("-fflags", "+genpts")
# In transport streams ffmpeg's clock begins with the first packet of those streams that it uses: so
# it is always made to use pictures and sound.
CLOCK_OUTPUT = ("-map", "0:a:0?", "-c", "copy", "-frames:a", "1", "-f", "null", "-")
# Containers keep times as whole milliseconds or coarser: what lies this close counts as the same.
SLACK_SECONDS = 1 / 800

# Reading all packets of a file of this size takes a fraction of a second.
_SMALL_BYTES = 64 * 2**20
_HEAD_PACKETS = 600
_TAIL_SECONDS = 10.0
_DEFAULT_FPS = Fraction(25)

_HDR_CURVES = ("smpte2084", "arib-std-b67")
_CUT_SHORT = ("partial file", "ended prematurely", "Packet corrupt", "Truncat")

_SHOWN = re.compile(
    r" n: *0 .*?pts_time:(?P<time>[-\d.e+]+) .*?fmt:(?P<format>\w+) "
    r".*?sar:(?P<sar>\d+/\d+) s:(?P<width>\d+)x(?P<height>\d+) i:(?P<fields>\w)"
)


@dataclass(frozen=True, kw_only=True)
class SourceVideo:
    """A video to be read, and how: `probe_source` makes it, `read_frames` takes it.

    Times run from the first picture, wherever the file's own clock begins.

    Attributes:
        path: the file.
        width: in pixels as players show it: upright, with square pixels.
        height: likewise.
        fps: pictures per second; their average where the rate varies.
        duration: seconds from the first picture to the end of the last.
        num_frames: pictures in the file, None where they were not counted because it is large.
        rotation: degrees clockwise by which it is turned to stand upright.
        codec: ffmpeg's name, as in `h264`.
        pixel_format: ffmpeg's name, as in `yuv420p`.
        bit_depth: bits of a colour sample.
        is_variable: whether some pictures last longer than others.
        audio_codec: ffmpeg's name of the first sound's, as in `aac`.
        notices: sentences about what a user may not expect.
        container: ffmpeg's names of the format, as in `matroska,webm`.
        start: seconds from the beginning of the file to its first picture.
        last_seconds: how long the last picture is shown.
        is_interlaced: whether a picture is woven from two moments.
        has_alpha: whether pictures may be transparent.
        matrix: how colours were coded as ffmpeg's scaler calls it, `auto` where the file tells.
    """

    path: Path
    width: int
    height: int
    fps: Fraction
    duration: float
    num_frames: int | None
    rotation: int
    codec: str
    pixel_format: str
    bit_depth: int
    is_variable: bool
    audio_codec: str | None
    notices: tuple[str, ...]
    container: str
    start: float
    last_seconds: float
    is_interlaced: bool
    has_alpha: bool
    matrix: str

    @property
    def has_audio(self) -> bool:
        """Whether there is sound beside the pictures."""
        return self.audio_codec is not None

    def sound(self, seconds: float, start: float = 0.0) -> AudioTrack | None:
        """What is heard with the pictures, None without sound.

        Args:
            seconds: how long a part of it.
            start: where the part begins, in seconds from the first picture.
        """
        if self.audio_codec is None:
            return None
        return AudioTrack(self.path, seconds, self.start + start)

    @functools.cached_property
    def sha256(self) -> str:
        """Hex digest of the file: read through once, when first asked for, in pieces."""
        with explained(self.path), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def num_frames_at(self, fps: int | float | Fraction, seconds: float | None = None) -> int:
        """How many frames `read_frames` gives at a rate, at least one.

        Args:
            fps: frames per second.
            seconds: count those that begin before this time; None for all.
        """
        lasts = self.duration if seconds is None else min(self.duration, seconds)
        # Frame k is shown at k / fps: all those that begin before the end.
        return max(1, -int(-(lasts - SLACK_SECONDS) * exact_rate(fps) // 1))


def probe_source(path: str | Path) -> SourceVideo:
    """Look at a video without decoding more than a picture of it.

    Raises:
        UnreadableMediaError: no such file, none that is a video, or none whose pictures can be
            decoded; the sentence says which.
        RuntimeFailureError: ffmpeg is missing.
    """
    path = Path(path)
    size = _checked_size(path)
    is_large = size > _SMALL_BYTES
    look = _look(path, ["-frames:v", str(_HEAD_PACKETS)] if is_large else [])
    description = described(path, look.said)
    stamps, is_whole = look.stamps, not is_large
    if is_large:
        end = _end_near(path, description.duration)
        if end is None or description.duration is None:
            stamps, is_whole = _look(path, [], picture=False).stamps, True
        else:
            stamps.end, stamps.last = end.end, end.last
    return _settled(path, look, description, stamps, is_whole=is_whole)


@dataclass(frozen=True, slots=True)
class _Look:
    """What ffmpeg said about a file, and the stamps of its packets."""

    said: tuple[str, ...]
    stamps: PacketTimes


def _checked_size(path: Path) -> int:
    """Size of a file that may be a video; refuses what ffmpeg has no good sentence for."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableMediaError(
                f"{path} is a folder, not a video", hint="name one video in it"
            )
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableMediaError(
                f"{path} is no regular file", hint="save the video in a file first"
            )
        head = read_head(path)
    except FileNotFoundError as error:
        raise UnreadableMediaError(
            f"{path} does not exist", hint="check the name and the folder"
        ) from error
    except PermissionError as error:
        raise UnreadableMediaError(
            f"{path} may not be read (permission denied)", hint="check who owns the file"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableMediaError(f"{path} cannot be read ({reason})") from error
    if not head:
        raise UnreadableMediaError(f"{path} is empty (0 bytes)", hint="choose another video")
    if is_text(head):
        raise UnreadableMediaError(f"{path} is not a video: it holds text", hint=READS)
    if media_kind(path) is MediaKind.PICTURE:
        raise only_a_picture(path)
    return status.st_size


def _look(
    path: Path, limit: Sequence[str], *, before: Sequence[str] = (), picture: bool = True
) -> _Look:
    """Copy packets to nowhere for their stamps, and decode the first picture."""
    shown = ("-map", "0:V:0", "-frames:v", "1", "-vf", "showinfo=checksum=0", "-f", "null", "-")
    arguments = [
        *(*before, *CLOCK_INPUT, "-i", f"file:{path}", *(shown if picture else ())),
        *("-map", "0:V:0", "-c", "copy", "-copyinkf", "-copypriorss", "1", *limit),
        *("-f", "framecrc", "pipe:1", *CLOCK_OUTPUT),
    ]
    stamps = PacketTimes(is_whole=not limit)
    with Decoder(arguments, loglevel="info") as ffmpeg:
        for line in ffmpeg.lines():
            stamps.add(line)
        ffmpeg.finish()
        stamps.close()
        return _Look(tuple(ffmpeg.said), stamps)


def _end_near(path: Path, duration: float | None) -> PacketTimes | None:
    """The stamps of the last seconds, counted from the beginning; None where there are none."""
    if duration is None:
        return None
    at = max(0.0, duration - _TAIL_SECONDS)
    stamps = _look(path, [], before=["-ss", f"{at:.6f}"], picture=False).stamps
    if not stamps.count or stamps.end <= 0:
        return None
    stamps.end += at
    return stamps


def _settled(
    path: Path, look: _Look, description: Description, stamps: PacketTimes, *, is_whole: bool
) -> SourceVideo:
    """Put together what was found."""
    text = "\n".join(look.said)
    shown = _SHOWN.search(text)
    if shown is None or not stamps.count:
        why = re.search(r"Decoder \(codec (\w+)\) not found", text)
        coded = f": their coding, {why[1]}, is not known" if why else ""
        raise UnreadableMediaError(
            f"none of the pictures of {path} can be decoded{coded}",
            hint="copy or download it again, or convert it to MP4",
        )
    start = float(shown["time"])
    fps, is_variable = _rhythm(look, description, stamps, is_whole=is_whole)
    last = stamps.last or float(1 / fps)
    # Without times of showing, those of decoding run ahead by an unknown number of frames.
    begins = start if stamps.has_times else stamps.start
    end = stamps.end + (last - stamps.last)
    duration = max(end - begins, last, float(1 / fps) / 2)
    aspect = Fraction(*(int(part) for part in shown["sar"].split("/"))) if _has_sar(shown) else 1
    pixel_format = shown["format"]
    tagged = re.search(r"color_space:(\S+)", text)
    curve = re.search(r"color_trc:(\S+)", text)
    found = {
        "cut": _missing(path, text, description.duration, start + duration),
        "hdr": "the video's colours are HDR and may look flat in the result"
        if curve and curve[1] in _HDR_CURVES
        else "",
        "fields": "the video is interlaced: every picture is made whole from two half ones"
        if shown["fields"] in "TB"
        else "",
        "alpha": _transparency(pixel_format, description),
        "more": f"the file holds {description.num_videos} videos: the first one is used"
        if description.num_videos > 1
        else "",
    }
    return SourceVideo(
        path=path,
        width=max(1, round(int(shown["width"]) * aspect)),
        height=int(shown["height"]),
        fps=fps,
        duration=duration,
        num_frames=stamps.count if is_whole else None,
        rotation=description.rotation,
        codec=description.codec,
        pixel_format=pixel_format,
        bit_depth=bit_depth(pixel_format),
        is_variable=is_variable,
        audio_codec=description.audio_codec,
        notices=tuple(notice for notice in found.values() if notice),
        container=description.container,
        start=start,
        last_seconds=last,
        is_interlaced=shown["fields"] in "TB",
        has_alpha=has_alpha(pixel_format),
        matrix=matrix_of(
            pixel_format,
            tagged[1] if tagged else "",
            int(shown["width"]),
            int(shown["height"]),
        ),
    )


def _rhythm(
    look: _Look, description: Description, stamps: PacketTimes, *, is_whole: bool
) -> tuple[Fraction, bool]:
    """Pictures per second, and whether their distances differ."""
    guessed = re.search(r"frame_rate: (\d+)/(\d+)", "\n".join(look.said))
    guess = Fraction(int(guessed[1]), int(guessed[2])) if guessed and int(guessed[2]) else None
    measured = stamps.average_rate if is_whole else description.stated_fps or stamps.average_rate
    if measured is None:
        return guess or _DEFAULT_FPS, False
    is_variable = stamps.is_variable
    if not is_variable and guess is not None and abs(guess / measured - 1) < 0.02:
        return guess, False
    # Rates of cameras and films are whole numbers, or those divided by 1.001.
    for whole in (Fraction(round(measured)), Fraction(round(measured * 1001 / 1000) * 1000, 1001)):
        if not is_variable and whole and abs(measured / whole - 1) < 0.0005:
            return whole, False
    # Of a large file only the beginning was looked at.
    is_variable |= not is_whole and guess is not None and abs(guess / measured - 1) > 0.02
    return measured.limit_denominator(1001), is_variable


def _missing(path: Path, text: str, promised: float | None, found: float) -> str:
    """A sentence about a video that is shorter than its file claims."""
    if any(words in text for words in _CUT_SHORT):
        of = "" if promised is None else f" of {promised:.1f}"
        return f"{path.name} is cut short: {found:.1f}{of} seconds of pictures can be read"
    # Sound may go on after the pictures, so this is no damage for certain.
    if promised is not None and promised - found > max(1.0, 0.05 * promised):
        return f"{path.name} lasts {promised:.1f} seconds, its pictures end after {found:.1f}"
    return ""


def _has_sar(shown: re.Match[str]) -> bool:
    """Whether the shape of a pixel is told: a zero in it means that it is not."""
    return not re.search(r"\b0\b", shown["sar"])


def _transparency(pixel_format: str, description: Description) -> str:
    if has_alpha(pixel_format):
        return "what is transparent in the video is laid on white"
    if re.search(r"alpha_mode\s*: 1", description.text):
        return "the video's transparency is not read: it is shown opaque"
    return ""
