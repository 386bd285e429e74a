"""Whether a styled picture and a clip are worth training on, told without any weights.

What a style is, no number here knows: that takes a judge with a model. These gates find what is
certainly wrong: a picture left as it was, or of something else; a clip that does not begin with
its picture, stands still, stutters, cuts, or loses its colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from osp_cli.media.gates import CUT_SCORE, Problem, measure_clip
from osp_cli.media.source_video import probe_source, read_frames
from osp_cli.training.building.engines import StyleJudge
from osp_cli.training.building.quality_settings import QualitySettings

# Width of the coarse pictures that are compared: noise, grain, brush strokes and what a codec does
# average out in cells of that size, shapes stay.
_COARSE = 48
# Cells of small pictures hold this many pixels each way: colour is stored at half the resolution.
_CELL = 8
# Of the picture that is left out on each side when edges are compared: frames and ragged margins
# belong to some styles.
_MARGIN = 0.1
# Frames at the end of a clip that are looked at together, so that one of them does not decide.
_END = 4
# Frames of a clip that a judge is shown.
_JUDGED = 4

Scores = dict[str, Any]


def picture_scores(
    source: Image.Image, styled: Image.Image, judge: StyleJudge | None = None
) -> Scores:
    """Measures of a styled picture.

    Args:
        source: the picture before.
        styled: of the same size.
        judge: that tells which style it shows; None leaves that open.
    """
    scores: Scores = {
        "change": round(coarse_difference(source, styled), 3),
        "content": round(edge_correlation(source, styled), 4),
    }
    if judge is not None:
        scores["looks_like"] = [judge.rank(styled)[0]]
        scores["judge"] = judge.describe()
    return scores


def picture_problems(scores: Scores, style: str, settings: QualitySettings) -> list[Problem]:
    """What speaks against a styled picture; none if it may be used."""
    problems = []
    if scores["change"] < settings.min_change:
        message = f"hardly restyled: it differs from its source by {scores['change']:.1f} levels"
        problems.append(Problem("unchanged", f"{message}, at least {settings.min_change:g}"))
    if scores["content"] < settings.min_content:
        message = "not the same content: its edges agree with the source's by "
        problems.append(
            Problem(
                "other-content",
                f"{message}{scores['content']:.2f}, at least {settings.min_content:g}",
            )
        )
    return problems + _style_problems(scores, style)


def clip_scores(path: Path, styled: Image.Image, judge: StyleJudge | None = None) -> Scores:
    """Measures of a clip, as it is in its file.

    Args:
        path: of the clip.
        styled: the picture that it is to begin with.
        judge: as in `picture_scores`; it is shown frames spread over the clip.

    Raises:
        UnreadableMediaError: the file cannot be read.
    """
    video = probe_source(path)
    measures = measure_clip(video)
    count = video.num_frames_at(video.fps)
    size = (video.width, video.height)
    wanted = {0, *range(max(0, count - _END), count)}
    shown = [round(k * (count - 1) / max(1, _JUDGED - 1)) for k in range(_JUDGED)]
    wanted |= set(shown) if judge is not None else set()
    kept = {
        number: frame
        for number, frame in enumerate(read_frames(video, size, video.fps))
        if number in wanted
    }
    end = np.stack([_mean_colour(kept[k]) for k in range(max(0, count - _END), count)]).mean(0)
    scores: Scores = {
        "first_change": round(coarse_difference(Image.fromarray(kept[0]), styled), 3),
        "motion": round(measures.motion, 4),
        "duplicates": round(measures.duplicate_fraction, 4),
        "cut": round(measures.cut_score, 3),
        "drift": round(float(np.abs(end - _mean_colour(kept[0])).max()), 3),
    }
    if judge is not None:
        scores["looks_like"] = [judge.rank(Image.fromarray(kept[k]))[0] for k in shown]
        scores["judge"] = judge.describe()
    return scores


def clip_problems(scores: Scores, style: str, settings: QualitySettings) -> list[Problem]:
    """What speaks against a clip; none if it may be used."""
    checks = (
        (
            "other-start",
            scores["first_change"] > settings.max_first_change,
            f"it does not begin with its picture: {scores['first_change']:.1f} levels away, "
            f"at most {settings.max_first_change:g}",
        ),
        (
            "still",
            scores["motion"] < settings.min_motion,
            f"hardly anything moves: {scores['motion']:.2f}, at least {settings.min_motion:g}",
        ),
        (
            "hectic",
            scores["motion"] > settings.max_motion,
            f"too much moves: {scores['motion']:.1f}, at most {settings.max_motion:g}",
        ),
        (
            "frozen",
            scores["duplicates"] > settings.max_duplicates,
            f"{scores['duplicates']:.0%} of its frames repeat the one before, "
            f"{settings.max_duplicates:.0%} may",
        ),
        (
            "has-cut",
            scores["cut"] >= CUT_SCORE,
            f"a cut: its pictures change by {scores['cut']:.1f} of 100 at once, {CUT_SCORE:g} is "
            "the limit",
        ),
        (
            "drift",
            scores["drift"] > settings.max_drift,
            f"its colours wander by {scores['drift']:.0f} levels, at most {settings.max_drift:g}",
        ),
    )
    found = [Problem(code, message) for code, failed, message in checks if failed]
    return found + _style_problems(scores, style)


def coarse_difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures' coarse RGB, in 8-bit levels."""
    return float(np.abs(_coarse(one) - _coarse(other)).mean())


def edge_correlation(one: Image.Image, other: Image.Image) -> float:
    """Correlation of the strength of two pictures' coarse edges, -1 to 1, away from the margins."""
    first, second = (_edges(picture) for picture in (one, other))
    first, second = first - first.mean(), second - second.mean()
    # A picture without any edge agrees with nothing.
    return float((first * second).sum() / (np.sqrt((first**2).sum() * (second**2).sum()) + 1e-9))


def _coarse(picture: Image.Image) -> NDArray[np.float64]:
    width = min(_COARSE, max(2, picture.width // _CELL))
    size = (width, max(2, round(width * picture.height / picture.width)))
    return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX), np.float64)


def _edges(picture: Image.Image) -> NDArray[np.float64]:
    width, height = picture.size
    left, top = round(width * _MARGIN), round(height * _MARGIN)
    middle = picture.crop((left, top, width - left, height - top))
    luma = _coarse(middle) @ np.array([0.299, 0.587, 0.114])
    rows, columns = np.gradient(luma)
    return np.hypot(rows, columns)


def _mean_colour(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    return frame.reshape(-1, 3).mean(0)


def _style_problems(scores: Scores, style: str) -> list[Problem]:
    """What a judge said, if there was one."""
    looks: Sequence[str] = scores.get("looks_like", [style])
    others = [name for name in looks if name != style]
    if not others:
        return []
    return [Problem("other-style", f"it looks like {', '.join(dict.fromkeys(others))}")]
