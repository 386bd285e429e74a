"""What step caches save and cost: the same clips with and without them.

Every clip comes from whoever is handed in, made as `osp generate` makes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from osp_cli.dials import NO_CACHE, StepCacheChoice
from osp_cli.evaluation.clip_measures import liveliness
from osp_cli.evaluation.metrics import Frames, mean_motion, psnr
from osp_cli.evaluation.photos import Photo
from osp_cli.media.sheet import contact_sheet, save_sheet

# Each photo gets the next of these: motions of the camera and of the scene, with and without a
# style.
WISHES = (
    ("the camera pans left", None),
    ("the camera zooms in", "ink"),
    ("snow falls", None),
    ("the subject sways", "pixel-art"),
    ("the camera tilts up", "watercolor"),
    ("roll right", "cyberpunk"),
)
CACHES = (
    *(StepCacheChoice("teacache", threshold) for threshold in (0.05, 0.1, 0.2)),
    *(StepCacheChoice("fbcache", threshold) for threshold in (0.001, 0.05, 0.2)),
    *(StepCacheChoice("magcache", threshold) for threshold in (0.03, 0.06, 0.12)),
)
QUICK_CACHES = tuple(
    StepCacheChoice(kind, threshold)
    for kind, threshold in (("teacache", 0.1), ("fbcache", 0.05), ("magcache", 0.06))
)
# Of a clip's frames, on the sheet.
_SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Take:
    """One clip, and what its sampling took.

    Attributes:
        frames: `(num_frames, height, width, 3)` uint8.
        seconds: of all its steps, without conditions and decoding.
        skipped: steps that the cache answered.
        num_steps: all of them.
    """

    frames: Frames
    seconds: float
    skipped: int
    num_steps: int


class TakeMaker(Protocol):
    """Who makes the clips."""

    def take(
        self,
        photo: Path,
        *,
        num_frames: int,
        prompt: str,
        style: str | None,
        steps: int | None,
        cache: StepCacheChoice,
    ) -> Take:
        """One clip with the card's defaults but for what is said here; None for the card's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLine:
    """What one cache at one threshold did, over all photos.

    Attributes:
        cache: as `--cache` takes it.
        skipped: steps that it answered, the mean over the photos.
        num_steps: of each clip.
        seconds: of sampling one clip, the mean.
        time_ratio: of that to the time without a cache.
        psnr: of all frames to those without a cache, in dB, the mean; infinite where they are the
            same.
        largest: mean difference of the one frame that differs most, in grey levels.
        motion_kept: mean difference of neighbouring frames, as a share of that without a cache.
        went_still: photos whose clip moved without the cache and hardly does with it.
        is_default: whether the card has it so.
        on_front: whether nothing else measured is both quicker and nearer to the uncached clip.
    """

    cache: str
    skipped: float
    num_steps: int
    seconds: float
    time_ratio: float
    psnr: float
    largest: float
    motion_kept: float
    went_still: tuple[str, ...] = ()
    is_default: bool = False
    on_front: bool = False

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values; an infinite PSNR is null, as JSON knows no such number."""
        return {
            "cache": self.cache,
            "skipped": round(self.skipped, 2),
            "num_steps": self.num_steps,
            "seconds": round(self.seconds, 3),
            "time_ratio": round(self.time_ratio, 3),
            "psnr": round(self.psnr, 2) if math.isfinite(self.psnr) else None,
            "largest": round(self.largest, 2),
            "motion_kept": round(self.motion_kept, 3),
            "went_still": list(self.went_still),
            "is_default": self.is_default,
            "on_front": self.on_front,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheExtent:
    """How much is measured.

    Attributes:
        photos: how many.
        num_frames: of each clip at most.
        twice: the uncached clip again at the end, so that a machine that grows slower is seen to.
    """

    photos: int
    num_frames: int
    twice: bool


CACHE_FULL = CacheExtent(photos=3, num_frames=49, twice=True)
CACHE_QUICK = CacheExtent(photos=1, num_frames=17, twice=False)


class CacheBench:
    """The measures of some caches on one model.

    Args:
        maker: of the clips.
        photos: at least one.
        caches: with their thresholds.
        default: the card's own; `NO_CACHE` where it has none.
        extent: how much is measured.
        max_frames: that the model can make.
        steps: of the sampler; None for the card's.
        style: of all clips; None for another wish for each photo.
        tell: is told what is being measured.
    """

    def __init__(
        self,
        maker: TakeMaker,
        photos: Sequence[Photo],
        caches: Sequence[StepCacheChoice],
        *,
        default: StepCacheChoice,
        extent: CacheExtent,
        max_frames: int,
        steps: int | None = None,
        style: str | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._maker, self._caches, self._default = maker, tuple(caches), default
        self._photos = tuple(photos[: extent.photos])
        self._extent, self._tell = extent, tell
        self._num_frames = min(extent.num_frames, max_frames)
        self._steps, self._style = steps, style
        self._shown: dict[str, list[Frames]] = {}

    def lines(self) -> list[CacheLine]:
        """A line for no cache, then one for each cache; `on_front` where it holds."""
        found: dict[StepCacheChoice, list[CacheLine]] = {}
        # The first clip of a process is slow for reasons of its own.
        self._tell("warming up")
        self._take(self._photos[0], 0, NO_CACHE, steps=1)
        for index, photo in enumerate(self._photos):
            for cache, line in self._of_photo(photo, index):
                found.setdefault(cache, []).append(line)
        means = [_mean(lines) for lines in found.values()]
        return with_front(means)

    def save_sheet(self, path: Path) -> Path:
        """Write a row of pictures for each cache, of the first photo's clip."""
        columns = [f"{share:.0%}" for share in _SHOWN]
        return save_sheet(contact_sheet(self._shown, column_labels=columns), path)

    def _of_photo(self, photo: Photo, index: int) -> Iterator[tuple[StepCacheChoice, CacheLine]]:
        plain = self._take(photo, index, NO_CACHE)
        takes = {cache: self._take(photo, index, cache) for cache in self._caches}
        seconds = plain.seconds
        if self._extent.twice:
            seconds = (seconds + self._take(photo, index, NO_CACHE).seconds) / 2
        for cache, take in {NO_CACHE: replace(plain, seconds=seconds), **takes}.items():
            line = compare(str(cache), take, replace(plain, seconds=seconds), photo.name)
            if index == 0:
                last = len(take.frames) - 1
                self._shown[str(cache)] = [take.frames[round(share * last)] for share in _SHOWN]
            yield cache, replace(line, is_default=cache == self._default)

    def _take(
        self, photo: Photo, index: int, cache: StepCacheChoice, steps: int | None = None
    ) -> Take:
        if steps is None:
            self._tell(f"{photo.name}, {cache}")
        prompt, style = WISHES[index % len(WISHES)]
        return self._maker.take(
            photo.path,
            num_frames=self._num_frames,
            prompt=prompt,
            style=self._style or style,
            steps=steps or self._steps,
            cache=cache,
        )


def compare(cache: str, take: Take, plain: Take, photo: str) -> CacheLine:
    """What a cache made of a clip.

    Args:
        cache: its name.
        take: with it.
        plain: the same without.
        photo: its name.
    """
    difference = np.abs(take.frames.astype(np.float32) - plain.frames).mean((1, 2, 3))
    before, after = mean_motion(plain.frames), mean_motion(take.frames)
    moved, moves = (
        liveliness(photo, frames.frames, styled=True).share >= 1 for frames in (plain, take)
    )
    return CacheLine(
        cache=cache,
        skipped=take.skipped,
        num_steps=take.num_steps,
        seconds=take.seconds,
        time_ratio=take.seconds / plain.seconds,
        psnr=psnr(take.frames, plain.frames),
        largest=float(difference.max()),
        motion_kept=after / before if before else 1.0,
        went_still=(photo,) if moved and not moves else (),
    )


def with_front(lines: Sequence[CacheLine]) -> list[CacheLine]:
    """The same lines, those marked that nothing beats both in time and in nearness.

    What skips nothing saves nothing: but for no cache at all it does not count. Caches that skipped
    alike do not beat each other, as only the machine's mood parts their times.
    """

    def counts(line: CacheLine) -> bool:
        return line.skipped > 0 or line.cache == str(NO_CACHE)

    def alike(line: CacheLine, other: CacheLine) -> bool:
        return (line.skipped, line.psnr, line.largest) == (other.skipped, other.psnr, other.largest)

    def beaten(line: CacheLine) -> bool:
        return any(
            other.time_ratio <= line.time_ratio
            and other.psnr >= line.psnr
            and not alike(line, other)
            for other in lines
            if counts(other)
        )

    return [replace(line, on_front=counts(line) and not beaten(line)) for line in lines]


def _mean(lines: Sequence[CacheLine]) -> CacheLine:
    """One line of those of several photos; of the largest difference, the largest."""
    fields: dict[str, Any] = {
        name: float(np.mean([getattr(line, name) for line in lines]))
        for name in ("skipped", "seconds", "time_ratio", "psnr", "motion_kept")
    }
    return replace(
        lines[0],
        **fields,
        largest=max(line.largest for line in lines),
        went_still=tuple(name for line in lines for name in line.went_still),
    )
