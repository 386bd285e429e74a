"""Measures of a clip that need no weights, and the gates that a source passes before it is used.

ffmpeg reads the clip once, reduced to 256 lines, and tells of every frame what its filters find;
a few of the frames are kept for what it has no filter for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.ffmpeg import Decoder
from osp_cli.media.source_probe import CLOCK_INPUT, SLACK_SECONDS, SourceVideo, probe_source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

# Length of the shorter side that is measured at. It is what the thresholds below belong to: a
# Laplacian sees other details at another size. Smaller clips stay as they are.
LINES = 256
# Frames that blur and exposure are measured on at most, spread over the clip.
_MAX_STILLS = 16
# Decoding begins this much before a part of a long file.
_LEAD_SECONDS = 10.0

# Where a threshold says "tried", it was tried on clips of 288 lines, coded by H.264 at CRF 23: six
# scenes (a landscape, five drawn ones) under five motions, and held, cut, shaken, blurred, exposed
# and faded versions; tests/media/test_gates.py keeps a few of each. They are no photographs of
# the world: whoever has a hundred labelled clips should look again.
#
# ffmpeg's own default of scdet, in percent of full scale. Tried: 8 cuts 14.7 to 34.1, pans and
# zooms up to 3.2, a hand-held shake of 8 pixels a frame 5.6, a fade of 0.3 s 6.7.
CUT_SCORE = 10.0
# ffmpeg's own defaults of blackdetect: this share of pixels at most this bright makes a frame
# black (0.10 of full scale, 25.5 of 255).
_BLACK_PERCENT = 98
_BLACK_LUMA = 26
# Half a second of 5 s. Tried: a fade from black of 1 s, in 5 s, has 0.03.
BLACK_FRACTION = 0.1
# Temporal information below which a frame is the one before again. Tried: held frames have up to
# 0.1 after coding, the slowest push into a dark and smooth scene at least 0.57. Mean differences,
# which freezedetect uses, do not tell these two apart.
_DUPLICATE_TI = 0.5
# Tried: a clip drawn "on twos" has 0.35 (0.52 were it not for the coding), 18 frames a second
# shown as 24 have 0.09 (0.25): the first stutters, the second may pass.
FROZEN_FRACTION = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipMeasures:
    """What was measured of a clip.

    Attributes:
        num_frames: that were looked at.
        cut_score: the highest of ffmpeg's scene change scores, 0-100.
        black_fraction: of frames that are black.
        duplicate_fraction: of frames that repeat the one before.
        motion: temporal information (ITU-T P.910): deviation of what changes from frame to frame,
            mean over the clip, in levels of full-range 8-bit luma.
        blur: variance of the Laplacian of full-range luma, median over the stills; small is
            blurred.
        mean_luma: of the clip, full range, 0-255.
        clipped_fraction: of pixels that are all but black or white (below 3 or above 252).
    """

    num_frames: int
    cut_score: float
    black_fraction: float
    duplicate_fraction: float
    motion: float
    blur: float
    mean_luma: float
    clipped_fraction: float

    @property
    def has_cut(self) -> bool:
        """Whether there is a cut."""
        return self.cut_score >= CUT_SCORE

    @property
    def is_black(self) -> bool:
        """Whether more of it is black than a fade."""
        return self.black_fraction > BLACK_FRACTION

    @property
    def is_frozen(self) -> bool:
        """Whether so many frames are repeated that it stands still, or stutters."""
        return self.duplicate_fraction > FROZEN_FRACTION


def measure_clip(
    video: str | Path | SourceVideo, start: float = 0.0, seconds: float | None = None
) -> ClipMeasures:
    """Measures a clip, or a part of it.

    Args:
        video: a file, or what `probe_source` found out about it.
        start: of the part, in seconds from the first picture.
        seconds: how long it is; None for all that follows.

    Raises:
        ValueError: a part that is not in the video.
        UnreadableMediaError: no such file, or no picture of the part can be decoded.
        RuntimeFailureError: ffmpeg is missing.
    """
    source = video if isinstance(video, SourceVideo) else probe_source(video)
    left = source.duration - start
    seconds = left if seconds is None else min(seconds, left)
    if start < 0 or seconds <= 0:
        raise ValueError(f"of {source.duration:.2f} s, {seconds} s from {start} on are no part")
    lines = min(LINES, source.width, source.height)
    scale = lines / min(source.width, source.height)
    width, height = (max(2, round(side * scale / 2) * 2) for side in (source.width, source.height))
    with tempfile.TemporaryDirectory(prefix="osp-gates-") as folder:
        stills = Path(folder) / "stills.gray"
        arguments = _arguments(source, start, seconds, (width, height), stills)
        with Decoder(arguments) as ffmpeg:
            rows = list(_rows(ffmpeg.lines()))
            code = ffmpeg.finish()
        raw = stills.read_bytes() if stills.is_file() else b""
        if not rows or len(raw) < width * height:
            said = f" ({ffmpeg.said[0]})" if ffmpeg.said else f" (exit code {code})"
            raise UnreadableMediaError(
                f"no picture of {source.path} from {start:.2f} s on can be decoded{said}",
                hint="copy or download it again, or convert it to MP4",
            )
    pictures = _as_pictures(raw, width, height)
    later = rows[1:]  # the first frame has none before it that it could repeat
    return ClipMeasures(
        num_frames=len(rows),
        cut_score=max(row["scd.score"] for row in rows),
        black_fraction=fmean("blackframe.pblack" in row for row in rows),
        duplicate_fraction=fmean(row["siti.ti"] < _DUPLICATE_TI for row in later) if later else 0.0,
        motion=fmean(row["siti.ti"] for row in later) if later else 0.0,
        blur=median(laplacian_variance(picture) for picture in pictures),
        mean_luma=fmean(row["signalstats.YAVG"] for row in rows),
        clipped_fraction=fmean(clipped_fraction(picture) for picture in pictures),
    )


def measure_picture(picture: Image.Image) -> ClipMeasures:
    """Measures a picture as a clip of one frame, which neither moves nor cuts."""
    import numpy as np
    from PIL.Image import Resampling

    scale = min(1.0, LINES / min(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    # Area means, as for clips; luma in full range.
    small = picture.convert("L").resize((width, height), Resampling.BOX)
    luma = np.asarray(small, np.uint8)
    return ClipMeasures(
        num_frames=1,
        cut_score=0.0,
        black_fraction=float((luma < _BLACK_LUMA).mean() * 100 >= _BLACK_PERCENT),
        duplicate_fraction=0.0,
        motion=0.0,
        blur=laplacian_variance(luma),
        mean_luma=float(luma.mean()),
        clipped_fraction=clipped_fraction(luma),
    )


def laplacian_variance(luma: NDArray[np.uint8]) -> float:
    """Variance of the 4-neighbour Laplacian of a picture `(height, width)`, borders left out."""
    import numpy as np

    values = luma.astype(np.float32)
    centre = values[1:-1, 1:-1]
    if not centre.size:
        return 0.0
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((around - 4 * centre).var())


def clipped_fraction(luma: NDArray[np.uint8]) -> float:
    """Share of pixels of `(height, width)` that are all but black or white."""
    return float(((luma < 3) | (luma > 252)).mean())


def _arguments(
    source: SourceVideo, start: float, seconds: float, size: tuple[int, int], stills: Path
) -> list[str]:
    """What ffmpeg is told: one reading, numbers of all frames to the pipe, a few to a file."""
    apart = seconds / _MAX_STILLS
    begin = source.start + start
    seek = []
    lead = begin - _LEAD_SECONDS
    if lead > 0 and source.container.startswith(("mov", "matroska")):
        # Only there is the picture before a time found for certain; see `read_frames`.
        seek = ["-ss", f"{lead:.6f}", "-noaccurate_seek"]
        begin -= round(lead, 6)
    graph = (
        # In full range, so that black is 0 whatever the file's range is.
        # Times were rounded: a hair earlier, so that no frame at either end is on the wrong side.
        f"[0:V:0]trim=start={begin - SLACK_SECONDS:.6f}:end={begin + seconds - SLACK_SECONDS:.6f},"
        f"scale={size[0]}:{size[1]}:flags=area:in_color_matrix={source.matrix}:out_range=pc,format=yuv420p,setsar=1,"
        "split[all][some];"
        f"[all]scdet=threshold=100,siti,blackframe=amount={_BLACK_PERCENT}"
        f":threshold={_BLACK_LUMA},signalstats,metadata=mode=print:file=pipe\\\\:1[measured];"
        f"[some]select=isnan(prev_selected_t)+gte(t-prev_selected_t\\,{apart:.6f}),"
        "extractplanes=y[stills]"
    )
    threads = ["-threads", "1"] if source.codec in ("theora", "vp3", "vp4") else []
    return [
        *(*seek, *threads, *CLOCK_INPUT, "-i", f"file:{source.path}", "-filter_complex", graph),
        *("-map", "[measured]", "-fps_mode", "passthrough", "-f", "null", "-"),
        *("-map", "[stills]", "-fps_mode", "passthrough", "-frames:v", str(_MAX_STILLS)),
        *("-f", "rawvideo", f"file:{stills}"),
    ]


def _rows(lines: Iterable[bytes]) -> Iterator[dict[str, float]]:
    """The numbers of one frame after the other, by the names of ffmpeg's metadata."""
    row: dict[str, float] | None = None
    for line in lines:
        text = line.decode(errors="replace").strip()
        if text.startswith("frame:"):
            if row is not None:
                yield row
            row = {}
            continue
        name, _, value = text.removeprefix("lavfi.").partition("=")
        if row is not None and name in _WANTED:
            row[name] = float(value)
    if row is not None:
        yield row


_WANTED = ("scd.score", "siti.ti", "blackframe.pblack", "signalstats.YAVG")


def _as_pictures(raw: bytes, width: int, height: int) -> list[NDArray[np.uint8]]:
    import numpy as np

    count = len(raw) // (width * height)
    pictures = np.frombuffer(raw, np.uint8, count * width * height).reshape(count, height, width)
    return list(pictures)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """What a source must be to be used; a limit of None is none.

    Lengths and sizes are the paper's (section 6.1): 5 to 20 seconds, 720 lines or more, shapes of
    common screens (here 21:9 to 1:2, the union of two published filters for videos).

    Attributes:
        min_seconds: shortest clip.
        max_seconds: longest one.
        min_side: of the shorter side, in pixels.
        min_aspect: least height / width.
        max_aspect: greatest height / width.
        min_blur: least variance of the Laplacian.
        max_clipped: greatest share of clipped pixels.
        min_luma: least mean luma.
        max_luma: greatest mean luma.
        min_motion: least temporal information.
        max_motion: greatest one.
        allow_cuts: take clips with cuts too.
    """

    min_seconds: float | None = 5.0
    max_seconds: float | None = 20.0
    min_side: int | None = 720
    min_aspect: float = 0.4
    max_aspect: float = 2.0
    # Tried: sharp clips have 26 to 259, one blurred by a Gaussian of 1 of 288 lines 45, of 2 11.7.
    min_blur: float = 20.0
    # Tried: a clip exposed four times too long has 0.85, twice too long 0.30.
    max_clipped: float = 0.6
    # Tried: an eighth of the light leaves 15 of 126, a quarter 31; four times the light makes 251.
    min_luma: float = 20.0
    max_luma: float = 235.0
    # Tried: a held frame has 0.01, the slowest push in 0.93 in a dark scene and 1.4 to 3.4 in
    # others, pans 2.5 to 13, a shake of 8 pixels a frame 20, white noise 41.
    min_motion: float = 1.0
    max_motion: float = 40.0
    allow_cuts: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a clip is not used.

    Attributes:
        code: as in `too-short`.
        message: a sentence without its dot, with the number and its limit.
    """

    code: str
    message: str


def gate_problems(
    video: SourceVideo, measures: ClipMeasures | None, settings: GateSettings
) -> list[Problem]:
    """All that speaks against a source, none if it may be used.

    Args:
        video: the source.
        measures: of it, or None to look at its length and shape only, which takes no decoding.
        settings: the limits.
    """
    problems = _length_problems(video, settings)
    problems += _shape_problems(video.width, video.height, settings)
    if measures is None:
        return problems
    return problems + _motion_problems(measures, settings) + _look_problems(measures, settings)


def picture_gate_problems(
    size: tuple[int, int], measures: ClipMeasures, settings: GateSettings
) -> list[Problem]:
    """All that speaks against a picture as a source, none if it may be used.

    Args:
        size: width, height in pixels.
        measures: of `measure_picture`.
        settings: the limits; those of time do not apply.
    """
    return _shape_problems(*size, settings) + _look_problems(measures, settings)


def _motion_problems(measures: ClipMeasures, settings: GateSettings) -> list[Problem]:
    """What the clip's change over time says."""
    checks = (
        (
            "has-cut",
            measures.has_cut and not settings.allow_cuts,
            f"a cut: its pictures change by {measures.cut_score:.1f} of 100 at once, {CUT_SCORE:g} "
            "is the limit",
        ),
        (
            "frozen",
            measures.is_frozen,
            f"{measures.duplicate_fraction:.0%} of its frames repeat the one before, "
            f"{FROZEN_FRACTION:.0%} may",
        ),
        (
            "still",
            measures.motion < settings.min_motion,
            f"hardly anything moves: {measures.motion:.2f}, at least {settings.min_motion:g}",
        ),
        (
            "hectic",
            measures.motion > settings.max_motion,
            f"too much moves: {measures.motion:.1f}, at most {settings.max_motion:g}",
        ),
    )
    return [Problem(code, message) for code, failed, message in checks if failed]


def _look_problems(measures: ClipMeasures, settings: GateSettings) -> list[Problem]:
    """What single pictures say."""
    checks = (
        (
            "black",
            measures.is_black,
            f"{measures.black_fraction:.0%} of its frames are black, {BLACK_FRACTION:.0%} may be",
        ),
        ("blurred", measures.blur < settings.min_blur, _blurred(measures, settings)),
        (
            "clipped",
            measures.clipped_fraction > settings.max_clipped,
            f"{measures.clipped_fraction:.0%} of its pixels are black or white, at most "
            f"{settings.max_clipped:.0%}",
        ),
        (
            "dark",
            measures.mean_luma < settings.min_luma,
            f"too dark: mean luma {measures.mean_luma:.0f}, at least {settings.min_luma:g}",
        ),
        (
            "bright",
            measures.mean_luma > settings.max_luma,
            f"too bright: mean luma {measures.mean_luma:.0f}, at most {settings.max_luma:g}",
        ),
    )
    return [Problem(code, message) for code, failed, message in checks if failed]


def _blurred(measures: ClipMeasures, settings: GateSettings) -> str:
    return f"blurred: sharpness {measures.blur:.1f}, at least {settings.min_blur:g}"


def _length_problems(video: SourceVideo, settings: GateSettings) -> list[Problem]:
    """What the duration says."""
    problems: list[Problem] = []
    # A frame's worth of slack: 5 seconds at 24 fps may last 119 of 120 frames as files count.
    slack = float(1 / video.fps)
    if settings.min_seconds is not None and video.duration + slack < settings.min_seconds:
        message = f"too short: {video.duration:.2f} s, at least {settings.min_seconds:g} s"
        problems.append(Problem("too-short", message))
    if settings.max_seconds is not None and video.duration - slack > settings.max_seconds:
        message = f"too long: {video.duration:.2f} s, at most {settings.max_seconds:g} s"
        problems.append(Problem("too-long", message))
    return problems


def _shape_problems(width: int, height: int, settings: GateSettings) -> list[Problem]:
    """What the size says."""
    problems: list[Problem] = []
    side = min(width, height)
    if settings.min_side is not None and side < settings.min_side:
        message = f"too small: {width}x{height}, the shorter side at least "
        problems.append(Problem("too-small", f"{message}{settings.min_side}"))
    aspect = height / width
    if not settings.min_aspect <= aspect <= settings.max_aspect:
        message = f"too {'wide' if aspect < 1 else 'tall'}: height / width is {aspect:.2f}, "
        limits = f"{settings.min_aspect:g} to {settings.max_aspect:g}"
        problems.append(Problem("extreme-aspect", f"{message}{limits} may be"))
    return problems
