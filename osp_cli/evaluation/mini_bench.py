"""What `osp bench mini` measures: one line for each promise of the embedded model.

The photos are none that training saw. Every clip comes from whoever is handed in, made as
`osp generate` makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from osp_cli.evaluation.clip_measures import (
    FLOOR,
    STYLED_FLOOR,
    Liveliness,
    colour_drift_percent,
    detail,
    liveliness,
    mean_detail,
)
from osp_cli.evaluation.metrics import Frames, psnr
from osp_cli.evaluation.motion_flow import camera_path
from osp_cli.evaluation.photos import Photo
from osp_cli.evaluation.style_identity import (
    LOOKS,
    UNSTYLED,
    Stranger,
    expected_looks,
    nearest_look,
)
from osp_cli.media.image import cover_resize_crop, load_image
from osp_cli.media.sheet import contact_sheet, save_sheet
from osp_cli.procedural.styles import STYLE_OPERATORS

LANDSCAPE, PORTRAIT, SQUARE = (448, 256), (256, 448), (352, 352)
# What is typed, and what must be seen.
CAMERA_WORDS = {
    "pan-left": "the camera pans left",
    "pan-right": "the camera pans right",
    "tilt-up": "the camera tilts up",
    "tilt-down": "the camera tilts down",
    "zoom-in": "the camera zooms in",
    "zoom-out": "the camera zooms out",
    "roll-left": "the camera rolls left",
    "roll-right": "the camera rolls right",
}
CUTOFFS = (0.1, 0.3, 0.5, 0.7, 0.9)
WEIGHTS = (0.25, 0.5, 0.75, 1.0)
# Less than this share of the whole is no step that anyone could see.
_A_STEP = 1.0


class ClipMaker(Protocol):
    """Who makes the clips."""

    def clip(
        self,
        photo: Path,
        size: tuple[int, int],
        num_frames: int,
        *,
        prompt: str | None = None,
        style: str | None = None,
        cutoff: float | None = None,
    ) -> Frames:
        """Frames of one clip."""

    def round_trip(self, pictures: Frames) -> Frames:
        """Pictures through the codec and back."""


@dataclass(frozen=True, slots=True)
class Line:
    """One promise, and what was found.

    Attributes:
        key: its name in the report.
        what: its name on the screen.
        measured: the number; None where it could not be taken.
        unit: of the three numbers.
        goal: what it should be.
        least: what it must be at least; None where there is only something to be told.
        more_is_better: otherwise the goals are upper limits.
        note: how it was taken, or what else there is to know.
        details: the numbers behind the number, as JSON values.
    """

    key: str
    what: str
    measured: float | None
    unit: str
    goal: float | None
    least: float | None
    more_is_better: bool = True
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether it is as it must be at least; None where nothing was measured or promised."""
        return self._reaches(self.least)

    @property
    def goal_met(self) -> bool | None:
        """Whether it is as it should be."""
        return self._reaches(self.goal)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "key": self.key,
            "what": self.what,
            "measured": self.measured,
            "unit": self.unit,
            "goal": self.goal,
            "least": self.least,
            "more_is_better": self.more_is_better,
            "met": self.met,
            "goal_met": self.goal_met,
            "note": self.note,
            "details": dict(self.details),
        }

    def _reaches(self, limit: float | None) -> bool | None:
        if limit is None or self.measured is None:
            return None
        return self.measured >= limit if self.more_is_better else self.measured <= limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much is measured.

    Attributes:
        style_photos, camera_photos, cutoff_photos, weight_photos: how many; None for all.
        weight_styles: whose weights are measured.
        style_frames, camera_frames, cutoff_frames: frames of those clips, `4k + 1`.
        gentle_frames: of the clips without motion words.
        num_views: of each photo that the stranger learns from.
        all_sizes: the codec also on portrait and square crops.
        size: width, height of the clips.
    """

    style_photos: int | None = None
    camera_photos: int | None = None
    cutoff_photos: int | None = None
    weight_photos: int | None = 2
    weight_styles: tuple[str, ...] = tuple(STYLE_OPERATORS)
    style_frames: int = 49
    camera_frames: int = 49
    cutoff_frames: int = 17
    gentle_frames: int = 49
    num_views: int = 6
    all_sizes: bool = True
    size: tuple[int, int] = LANDSCAPE


FULL = Extent()
QUICK = Extent(
    style_photos=4,
    camera_photos=3,
    cutoff_photos=2,
    weight_photos=1,
    weight_styles=("ghibli", "ink", "vaporwave"),
    style_frames=9,
    camera_frames=17,
    cutoff_frames=5,
    num_views=2,
    all_sizes=False,
)


class MiniBench:
    """The measures of one model on some photos.

    Args:
        maker: of the clips.
        photos: at least two.
        extent: how much is measured.
        tell: is told what is being measured, and how far it is.
    """

    def __init__(
        self,
        maker: ClipMaker,
        photos: Sequence[Photo],
        extent: Extent,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._maker, self._extent, self._tell = maker, extent, tell
        self._photos = {photo.name: photo for photo in photos}
        self._pictures = {photo.name: load_image(photo.path).image for photo in photos}
        self._lively: list[Liveliness] = []
        self._style_rows: dict[str, list[Image.Image]] = {}
        self._motion_rows: dict[str, list[Image.Image]] = {}

    def lines(self) -> Iterator[Line]:
        """Each line as soon as it is known."""
        yield from self._codec()
        yield from self._gentle()
        yield from self.styles()
        yield self._camera()
        yield self._cutoff()
        yield self._weights()
        yield self._motion()

    def save_sheets(self, folder: Path) -> list[Path]:
        """Write `styles.png` and `motions.png`, and both again without any words."""
        paths = []
        for name, rows, columns in (
            ("styles", self._style_rows, ["photo", *LOOKS]),
            ("motions", self._motion_rows, [f"{share} %" for share in (0, 25, 50, 75, 100)]),
        ):
            labelled = contact_sheet(rows, column_labels=columns)
            bare = contact_sheet({" " * index: row for index, row in enumerate(rows.values(), 1)})
            paths.append(save_sheet(labelled, folder / f"{name}.png"))
            paths.append(save_sheet(bare, folder / f"{name}-unlabelled.png"))
        return paths

    def _codec(self) -> Iterator[Line]:
        other = (PORTRAIT, SQUARE) if self._extent.all_sizes else ()
        for size in (self._extent.size, *other):
            called = "x".join(map(str, size))
            self._tell(f"codec at {called}")
            found = {}
            for name in self._pictures:
                picture = np.asarray(self._fitted(name, size))
                found[name] = psnr(self._maker.round_trip(picture[None])[0], picture)
            yield Line(
                f"codec-{called}", f"codec alone, {called}", _mean(found), "dB", 29.0, 28.0,
                note=f"PSNR, mean of {len(found)} photos", details=_rounded(found),
            )  # fmt: skip

    def _gentle(self) -> Iterator[Line]:
        """Frame 0, and colours that wander: of clips for which nothing was asked."""
        first, drift = {}, {}
        for name in self._pictures:
            self._tell(f"no style, no motion words: {name}")
            photo = self._fitted(name, self._extent.size)
            frames = self._clip(name, f"{name}, nothing asked", self._extent.gentle_frames)
            first[name] = psnr(frames[0], np.asarray(photo))
            drift[name] = colour_drift_percent(frames, photo)
        yield Line(
            "frame-0", "frame 0, unstyled", _mean(first), "dB", 24.0, 22.0,
            note=f"PSNR, mean of {len(first)} photos", details=_rounded(first),
        )  # fmt: skip
        yield Line(
            "colour-drift", f"colour drift over {self._extent.gentle_frames} frames",
            max(drift.values()), "%", 3.0, 3.0, more_is_better=False,
            note="mean CIELAB colour of the last 4 frames against frame 0, the worst photo",
            details=_rounded(drift),
        )  # fmt: skip

    def styles(self) -> Iterator[Line]:
        """Whether thirteen styles are told apart, by two judges."""
        names = self._chosen(self._extent.style_photos)
        self._tell("styles: learning what they look like on other photos")
        photos = {name: self._fitted(name, self._extent.size) for name in self._pictures}
        stranger = Stranger(photos, self._maker.round_trip, self._extent.num_views)
        num_frames = self._extent.style_frames
        judged: dict[str, dict[str, tuple[str, str]]] = {}
        for name in names:
            self._tell(f"styles: {name}")
            expected = expected_looks(photos[name], num_frames // 2)
            judge = stranger.without(name)
            row, judged[name] = [photos[name]], {}
            for look in LOOKS:
                style = None if look == UNSTYLED else look
                frames = self._clip(name, f"{name}, {look}", num_frames, style=style)
                image = frames[num_frames // 2]
                row.append(Image.fromarray(image))
                if style is not None:
                    judged[name][look] = (nearest_look(image, expected), judge(image))
            self._style_rows[name] = row
        for index, key, what in (
            (0, "style-nearest", "styles, nearest operator"),
            (1, "style-stranger", "styles, by a classifier of other photos"),
        ):
            seen = {
                name: {look: both[index] for look, both in looks.items()}
                for name, looks in judged.items()
            }
            total, misses = _misses(seen)
            note = f"13 styles x {len(names)} photos, frame {num_frames // 2} of {num_frames}"
            details: dict[str, Any] = {"misses": misses}
            if key == "style-stranger":
                ceiling = 100 * stranger.ceiling()
                note += f"; the operators' own pictures of all photos: {ceiling:.1f} %"
                details["operators"] = round(ceiling, 2)
            yield Line(
                key, what, 100 * (1 - len(misses) / total), "%", 95.0, 80.0,
                note=note, details=details,
            )  # fmt: skip

    def _camera(self) -> Line:
        names = self._chosen(self._extent.camera_photos)
        num_frames = self._extent.camera_frames
        seen: dict[str, dict[str, str]] = {}
        paths: dict[str, dict[str, float]] = {}
        for name in names:
            seen[name] = {}
            for motion, words in CAMERA_WORDS.items():
                self._tell(f"camera words: {name}, {words}")
                frames = self._clip(name, f"{name}, {words}", num_frames, prompt=words)
                path = camera_path(frames)
                seen[name][motion] = path.named() or "none"
                paths[f"{name}, {motion}"] = _rounded(path.displacements())
                marks = [round(share * (num_frames - 1) / 4) for share in range(5)]
                row = [Image.fromarray(frames[mark]) for mark in marks]
                self._motion_rows[f"{name}, {motion}"] = row
        total, misses = _misses(seen)
        return Line(
            "camera-words", "camera words", 100 * (1 - len(misses) / total), "%", 95.0, 80.0,
            note=f"8 directions x {len(names)} photos, {num_frames} frames, by optical flow",
            details={"misses": misses, "pixels": paths},
        )  # fmt: skip

    def _cutoff(self) -> Line:
        """Detail of clips against the cutoff; what is measured is its smallest step down."""
        names = self._chosen(self._extent.cutoff_photos)
        shares = []
        for cutoff in CUTOFFS:
            self._tell(f"detail at cutoff {cutoff}")
            found = [
                mean_detail(self._clip(name, "", self._extent.cutoff_frames, cutoff=cutoff))
                / max(detail(np.asarray(self._fitted(name, self._extent.size))), 1e-9)
                for name in names
            ]
            shares.append(100 * float(np.mean(found)))
        curve = dict(zip(map(str, CUTOFFS), (round(share, 1) for share in shares), strict=True))
        told = ", ".join(f"{share:.0f}" for share in shares)
        return Line(
            "detail-against-cutoff", "detail falls with the cutoff, smallest step",
            _smallest_step(shares[::-1]), "% of the photo", 0.1, 0.1,
            note=f"{told} % of the photo's at {', '.join(map(str, CUTOFFS))}",
            details=curve,
        )  # fmt: skip

    def _weights(self) -> Line:
        """How far clips go from unstyled to styled with a style's weight."""
        names = self._chosen(self._extent.weight_photos)
        num_frames = self._extent.style_frames
        curves: dict[str, list[float]] = {}
        for name in names:
            plain = self._clip(name, "", num_frames)[num_frames // 2]
            for style in self._extent.weight_styles:
                self._tell(f"weights: {name}, {style}")
                images = [
                    self._clip(name, "", num_frames, style=f"{style}:{weight}")[num_frames // 2]
                    for weight in WEIGHTS
                ]
                curves[f"{name}, {style}"] = way_towards(images, plain, images[-1])
        steps = {name: 100 * _smallest_step([0.0, *curve]) for name, curve in curves.items()}
        return Line(
            "style-weights", "styles grow with their weight, smallest step",
            min(steps.values()), "% of the way", _A_STEP, _A_STEP,
            note=f"weights {', '.join(map(str, WEIGHTS))}, {len(curves)} curves",
            details={name: [round(100 * part, 1) for part in way] for name, way in curves.items()},
        )  # fmt: skip

    def _motion(self) -> Line:
        """Of every clip made here."""
        stillest = min(self._lively, key=lambda clip: clip.share)
        below = [clip.label for clip in self._lively if clip.share < 1]
        return Line(
            "motion", "motion of any clip, against the floor", stillest.share, "times", 1.0, 1.0,
            note=f"floor: {FLOOR[0]} grey levels a frame and {FLOOR[1]} in all, in a style "
            f"{STYLED_FLOOR[0]} and {STYLED_FLOOR[1]}; least of "
            f"{len(self._lively)} clips: {stillest.label}, {stillest.motion:.2f} and "
            f"{stillest.travel:.1f}",
            details={"below": below},
        )  # fmt: skip

    def _clip(self, name: str, label: str, num_frames: int, **asked: Any) -> Frames:
        """A clip of a photo, noted for its motion where it has a label."""
        frames = self._maker.clip(self._photos[name].path, self._extent.size, num_frames, **asked)
        if label:
            styled = asked.get("style") is not None
            self._lively.append(liveliness(label, frames, styled=styled))
        return frames

    def _chosen(self, count: int | None) -> list[str]:
        """Some of the photos, spread over the list; None for all."""
        names = list(self._pictures)
        if count is None or count >= len(names):
            return names
        return [names[index * len(names) // count] for index in range(count)]

    def _fitted(self, name: str, size: tuple[int, int]) -> Image.Image:
        """The photo as the model gets it."""
        return cover_resize_crop(self._pictures[name], *size)


def way_towards(images: Sequence[Frames], start: Frames, end: Frames) -> list[float]:
    """How far each picture is on the straight way from `start`, 0, to `end`, 1."""
    origin = start.astype(np.float64)
    whole = end - origin
    length = float((whole**2).sum()) or 1.0
    return [float(((image - origin) * whole).sum()) / length for image in images]


def _misses(seen: Mapping[str, Mapping[str, str]]) -> tuple[int, list[dict[str, str]]]:
    """How many were looked at, and those that were taken for something else."""
    total = sum(map(len, seen.values()))
    misses = [
        {"photo": photo, "asked": asked, "seen": found}
        for photo, judged in seen.items()
        for asked, found in judged.items()
        if found != asked
    ]
    return total, misses


def _smallest_step(values: Sequence[float]) -> float:
    """The smallest rise from one value to the next; below 0 where they fall."""
    return min(after - before for before, after in pairwise(values))


def _mean(found: Mapping[str, float]) -> float:
    return float(np.mean(list(found.values())))


def _rounded(found: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in found.items()}
