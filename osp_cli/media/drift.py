"""How far a stream has moved away from its own beginning, in a number and its parts.

A model that continues its own pictures passes small mistakes on: over minutes they grow softer or
harder, paler or more colourful. Each chunk is compared with the first one, whatever they show: the
measures are those of whole pictures, and the content of a scene changes them far less than such
drift does. A change that was directed is none: it asks for a new beginning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Frames: TypeAlias = NDArray[np.uint8]

# Frames of a chunk that are looked at, and pixels of each: enough for means, and a few
# milliseconds whatever the size of the video.
NUM_FRAMES = 4
_PIXELS = 20_000

# Within these a stream looks as it did at first. Two streams of the embedded model that nothing
# held left them after 3 and 4 chunks; looked at, they were softer, and a pattern was woven into
# them, from there on. A pan over a photo stays within a fifth of each.
BANDS: Mapping[str, float] = MappingProxyType(
    {
        "brightness": 0.05,
        "colour": 0.03,
        "contrast": 0.2,
        "saturation": 0.25,
        "sharpness": 0.25,
        "grain": 0.35,
    }
)

# What less and more of each is called.
_WORDS = {
    "brightness": ("darker", "brighter"),
    "colour": ("other colours", "other colours"),
    "contrast": ("flatter", "harsher"),
    "saturation": ("paler", "more colourful"),
    "sharpness": ("softer", "sharper"),
    "grain": ("smoother", "grainier"),
}

# Brightness and the two differences of colour of BT.601, of values from 0 to 1.
_YCC = ((0.299, -0.168736, 0.5), (0.587, -0.331264, -0.418688), (0.114, 0.5, -0.081312))

# Added to what is divided by, as a picture of one colour has no contrast to lose: two levels of
# 255, and for the much smaller steps between pixels a quarter of one.
_FLOOR, _STEP_FLOOR = 2 / 255, 0.25 / 255


@dataclass(frozen=True, slots=True)
class Look:
    """The measures of one chunk, of values from 0 to 1.

    Attributes:
        brightness: the mean.
        blue, red: means of the differences of colour.
        contrast: the standard deviation of brightness.
        saturation: the mean distance from grey.
        sharpness: the step of brightness from pixel to pixel that one in 50 surpasses: at edges.
        grain: the step that every other one surpasses: where there are none.
    """

    brightness: float
    blue: float
    red: float
    contrast: float
    saturation: float
    sharpness: float
    grain: float


@dataclass(frozen=True, slots=True)
class Drift:
    """How a chunk differs from the beginning; all 0 where it does not.

    Attributes:
        brightness: of the mean, where 1 leads from black to white.
        colour: the distance of the mean colours in the plane of Cb and Cr; never below 0.
        contrast, saturation: natural logarithms of the ratio to the beginning, so that +0.1 is
            about a tenth more and -0.1 a tenth less.
        sharpness: likewise, of the steps at edges in proportion to the contrast.
        grain: likewise, of the steps in even places; the two are apart since a model that blurs
            edges while it weaves a pattern into the sky keeps the mean of all steps.
    """

    brightness: float = 0.0
    colour: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    sharpness: float = 0.0
    grain: float = 0.0

    @property
    def part(self) -> str:
        """The part that is farthest off by the measure of its band."""
        parts = asdict(self)
        return max(parts, key=lambda name: abs(parts[name]) / BANDS[name])

    @property
    def value(self) -> float:
        """The one number: the change of `part`, positive for more of it. 0 is as at the start."""
        found: float = getattr(self, self.part)
        return found

    @property
    def word(self) -> str:
        """What that change looks like: `softer`, `paler`, ...; empty within the bands."""
        return "" if self.is_small else _WORDS[self.part][self.value > 0]

    @property
    def is_small(self) -> bool:
        """Whether all parts are within their bands."""
        return all(abs(value) <= BANDS[name] for name, value in asdict(self).items())


class DriftMeter:
    """Compares the chunks of a stream with its first one."""

    def __init__(self) -> None:
        self._start: Look | None = None

    def measure(self, frames: Frames, *, anew: bool = False) -> Drift:
        """How a chunk differs from the first one that was given.

        Args:
            frames: `(n, height, width, 3)`, RGB, at least one.
            anew: this chunk is a new beginning, as its style or its scene was changed on purpose.

        Raises:
            ValueError: these are no frames.
        """
        look = look_of(frames)
        if self._start is None or anew:
            self._start = look
        return compare(self._start, look)

    def state(self) -> list[float] | None:
        """What a resumed stream needs, in plain JSON values."""
        return None if self._start is None else list(astuple(self._start))

    @classmethod
    def from_state(cls, state: Sequence[Any] | None) -> DriftMeter:
        """The meter whose `state` this is.

        Raises:
            ValueError: it is none.
        """
        meter = cls()
        if state is not None:
            try:
                start = Look(*map(float, state))
            except TypeError as error:
                raise ValueError(f"no state of a drift meter: {state!r}") from error
            if not all(map(math.isfinite, astuple(start))):
                raise ValueError(f"no state of a drift meter: {state!r}")
            meter._start = start
        return meter


def look_of(frames: Frames) -> Look:
    """Measure a few frames of a chunk, `(n, height, width, 3)`, RGB.

    Raises:
        ValueError: these are no frames.
    """
    import numpy as np

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"no frames: {frames.shape} of {frames.dtype}")
    picked = np.linspace(0, len(frames) - 1, min(NUM_FRAMES, len(frames))).round().astype(int)
    measures = np.array([_measures(frames[index]) for index in picked])
    return Look(*map(float, measures.mean(0)))


def compare(start: Look, now: Look) -> Drift:
    """How `now` differs from `start`."""
    # Steps in proportion to it, or a loss of contrast would count thrice.
    contrast = _ratio(now.contrast, start.contrast)
    return Drift(
        brightness=now.brightness - start.brightness,
        colour=math.hypot(now.blue - start.blue, now.red - start.red),
        contrast=contrast,
        saturation=_ratio(now.saturation, start.saturation),
        sharpness=_ratio(now.sharpness, start.sharpness, _STEP_FLOOR) - contrast,
        grain=_ratio(now.grain, start.grain, _STEP_FLOOR) - contrast,
    )


def _measures(frame: Frames) -> list[float]:
    """The fields of `Look` of one frame."""
    import numpy as np

    height, width, _ = frame.shape
    matrix = np.array(_YCC, np.float32) / 255
    # Whole rows, and whole columns, far apart: neighbours stay neighbours.
    step = max(1, math.ceil(height * width / _PIXELS))
    rows = frame[step // 2 % height :: step].astype(np.float32) @ matrix
    columns = frame[:, step // 2 % width :: step].astype(np.float32) @ matrix[:, :1]
    light, blue, red = rows[..., 0], rows[..., 1], rows[..., 2]
    steps = np.abs(
        np.concatenate([np.diff(light, axis=1).ravel(), np.diff(columns[..., 0], axis=0).ravel()])
    )
    # A picture of one pixel has none.
    at = (int(0.98 * (steps.size - 1)), (steps.size - 1) // 2)
    edge, even = np.partition(steps, at)[list(at)] if steps.size else (0.0, 0.0)
    return [
        float(light.mean()),
        float(blue.mean()),
        float(red.mean()),
        float(light.std()),
        float(np.hypot(blue, red).mean()),
        float(edge),
        float(even),
    ]


def _ratio(now: float, start: float, floor: float = _FLOOR) -> float:
    return math.log((now + floor) / (start + floor))
