"""A step cache must not make a video stand still without anybody being told.

What the steps before the first skipped one took the clip to be is kept while it is sampled. When
the clip hardly moves in the end, and that did, the cache is under suspicion; a clip that was as
still before anything was skipped is what the model makes of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from osp_cli.dials import StepCacheChoice
from osp_cli.evaluation.clip_measures import liveliness
from osp_cli.events import StepDone
from osp_cli.pipelines.flash_i2v import decode_glimpse

# Half a second at 16 fps: over less, nothing moves far.
_LEAST_FRAMES = 9
# Grey levels by which pictures spread over the clip differ, averaged over cells of so many pixels:
# what an early step is unsure of is fine noise, which averages out, and no motion.
_CELL = 16
_MOVED = 1.0
# What is left of that motion at most, when the cache is suspected.
_LOST = 0.5


@dataclass(slots=True)
class CacheWatch:
    """What is known of a clip's skipped steps.

    Attributes:
        skipped: numbers of the steps that the cache answered, from 1 on.
        before: what the last step before the first skipped one took the clip to be, shaped like its
            latents; None where nothing is known, as of a clip that went on after it.
    """

    skipped: set[int] = field(default_factory=set)
    before: Tensor | None = None

    def saw(self, step: StepDone, sampling: Any) -> None:
        """Take note of a step; of one that is done once more, the last time counts.

        Args:
            step: just done.
            sampling: a `Sampling`, or one that several devices share.
        """
        if step.cached:
            self.skipped.add(step.step)
            return
        self.skipped.discard(step.step)
        if not any(number < step.step for number in self.skipped):
            self.before = sampling.estimate()

    def notice(self, cache: StepCacheChoice, num_start_steps: int, num_steps: int) -> str | None:
        """A sentence where a threshold of the user's left nothing to compute; else None.

        Args:
            cache: as asked.
            num_start_steps: that are always computed.
            num_steps: of the clip, all of them done.
        """
        start = max(1, num_start_steps)
        everything = set(range(start + 1, num_steps + 1))
        # Of a clip that has hardly any steps after the first ones, that is no wonder.
        if cache.threshold is None or self.skipped != everything or 2 * len(everything) < num_steps:
            return None
        first = "the first" if start == 1 else f"the first {start}"
        return (
            f"{cache} skipped every step after {first}: a lower threshold leaves the model "
            "something to say"
        )


def stillness_notice(
    watch: CacheWatch,
    cache: StepCacheChoice,
    num_steps: int,
    frames: NDArray[np.uint8],
    latents: Tensor,
    vae: Any,
    *,
    styled: bool,
) -> str | None:
    """A sentence where a clip hardly moves and its step cache may be why; else None.

    Costs next to nothing for a clip that moves; for one that does not, some single pictures.

    Args:
        watch: of its sampling.
        cache: as asked.
        num_steps: of the clip.
        frames: of the clip, `(num_frames, height, width, 3)`.
        latents: that they were decoded from.
        vae: that decoded them.
        styled: whether the clip has a style; those flatten what moves.
    """
    if not watch.skipped or len(frames) < _LEAST_FRAMES:
        return None
    if liveliness("", frames, styled=styled).share >= 1:
        return None
    share = f"skipped {len(watch.skipped)} of {num_steps} steps"
    ask = "--cache none tells whether it is the cache"
    if watch.before is None:
        # Nobody knows how it was before; a few skipped steps are not worth a doubt.
        few = 2 * len(watch.skipped) < num_steps
        return None if few else f"the video hardly moves, and {cache} {share}: {ask}"
    moved = _travel(decode_glimpse(vae, watch.before.to(latents.device)))
    if moved < _MOVED or _travel(decode_glimpse(vae, latents)) > _LOST * moved:
        return None
    return f"the video hardly moves, which it did before {cache} {share}: {ask}"


def _travel(pictures: list[NDArray[np.uint8]]) -> float:
    """How far pictures are from the first, the mean over the others, in grey levels."""
    first, *others = (_averaged(picture) for picture in pictures)
    return float(np.mean([np.abs(other - first).mean() for other in others]))


def _averaged(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Means over square cells; what does not fill one at the borders is left out."""
    height, width = (side // _CELL for side in picture.shape[:2])
    whole = picture[: height * _CELL, : width * _CELL].astype(np.float32)
    return np.asarray(whole.reshape(height, _CELL, width, _CELL, 3).mean((1, 3)))
