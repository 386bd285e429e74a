"""Which style a frame shows, judged twice by things that know nothing of the model.

The nearest operator: of the thirteen operators' pictures of the photo and of the photo itself, the
one that the frame is nearest to. The stranger: a linear discriminant on hand-made numbers of what
became of the photo, which has seen the operators' pictures of all the other photos and none of
this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from osp_cli.evaluation.metrics import Frames
from osp_cli.evaluation.style_features import changes_of
from osp_cli.procedural.motions import Motion, render_clip
from osp_cli.procedural.styles import STYLE_OPERATORS, apply_style

UNSTYLED = "none"
LOOKS = (UNSTYLED, *STYLE_OPERATORS)
# Pictures through the codec and back, `(count, height, width, 3)` uint8.
RoundTrip = Callable[[Frames], Frames]
# Pixels that are averaged before colours are compared: what is finer may have moved.
_CELL = 8


def look_of(name: str, images: Tensor) -> Tensor:
    """Pictures as the operator of a style paints them, or as they are for `none`.

    Args:
        name: one of `LOOKS`.
        images: `(batch, 3, height, width)` in [0, 1].
    """
    return images if name == UNSTYLED else apply_style(name, images)


def expected_looks(photo: Image.Image, frame: int = 0) -> dict[str, Frames]:
    """The photo in every look, where a gentle clip of it would be after `frame` frames.

    Returns:
        For each of `LOOKS` a picture of the photo's size, uint8.
    """
    canvas = _as_tensor(photo)
    size = (photo.height, photo.width)
    moved = render_clip(canvas, Motion(), size, torch.tensor([float(frame)]))
    return {name: _as_frames(look_of(name, moved))[0] for name in LOOKS}


def nearest_look(image: Frames, candidates: Mapping[str, Frames]) -> str:
    """The candidate of least colour difference, after averaging over cells of 8 pixels.

    Args:
        image: `(height, width, 3)` uint8.
        candidates: by name, of the same shape.
    """
    seen = _averaged(image)
    distances = {
        name: float(np.mean((seen - _averaged(candidate)) ** 2))
        for name, candidate in candidates.items()
    }
    return min(distances, key=lambda name: distances[name])


class Stranger:
    """A classifier of looks that has never seen the photos it is asked about.

    Args:
        photos: by name.
        round_trip: the model's codec. The examples have gone through it as clips have, so that
            what it does to fine lines is not taken for a style.
        num_views: of each photo: itself, and crops of it in other light and other colours.
    """

    def __init__(
        self, photos: Mapping[str, Image.Image], round_trip: RoundTrip, num_views: int = 4
    ) -> None:
        self._photos = {
            name: _as_frames(_as_tensor(photo)[None])[0] for name, photo in photos.items()
        }
        self._examples = {
            name: _examples(photo, round_trip, num_views) for name, photo in photos.items()
        }

    def without(self, photo: str) -> Callable[[Frames], str]:
        """The judgement, of frames of one photo, of one who knows all photos but this.

        Raises:
            ValueError: there is no other photo.
        """
        judge = self._judge(photo)
        changes = changes_of(self._photos[photo])
        return lambda image: str(judge.predict(changes(image)[None])[0])

    def ceiling(self) -> float:
        """How often it is right about the operators' own pictures, as the codec shows them.

        A model that paints just as they do is identified so often, and no other need be expected to
        do better.
        """
        hits = [
            self._judge(name).predict(numbers[: len(LOOKS)]) == np.array(LOOKS)
            for name, (numbers, _) in self._examples.items()
        ]
        return float(np.mean([right[1:] for right in hits]))

    def _judge(self, photo: str) -> Any:
        """A classifier of numbers that knows all photos but this."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        others = [rows for name, rows in self._examples.items() if name != photo]
        if not others:
            raise ValueError("a stranger needs other photos to learn from")
        # Shrinkage: there are hardly more examples of a look than numbers.
        judge = make_pipeline(
            StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        )
        judge.fit(
            np.concatenate([numbers for numbers, _ in others]),
            np.concatenate([names for _, names in others]),
        )
        return judge


def _examples(
    photo: Image.Image, round_trip: RoundTrip, num_views: int
) -> tuple[NDArray[np.float64], list[str]]:
    """Numbers and names of one photo's looks as the codec shows them, first of the photo itself."""
    numbers, names = [], []
    for view in _views(_as_tensor(photo), num_views):
        changes = changes_of(_as_frames(view[None])[0])
        for name in LOOKS:
            painted = round_trip(_as_frames(look_of(name, view[None])))
            numbers.append(changes(painted[0]))
            names.append(name)
    return np.stack(numbers), names


def _views(photo: Tensor, count: int) -> Iterator[Tensor]:
    """The photo, then crops of it as if taken at other times of day by other cameras."""
    yield photo
    generator = np.random.default_rng(0)
    height, width = photo.shape[1:]
    for number in range(1, count):
        share = generator.uniform(0.6, 1.0)
        top = round(generator.uniform(0, height * (1 - share)))
        left = round(generator.uniform(0, width * (1 - share)))
        crop = photo[None, :, top : top + round(height * share), left : left + round(width * share)]
        view = F.interpolate(crop, size=(height, width), mode="bicubic", antialias=True)[0]
        gamma, colour = np.exp(generator.normal(0, (0.5, 0.3)))
        gains = torch.tensor(np.exp(generator.normal(0, 0.15, (3, 1, 1))), dtype=photo.dtype)
        view = view.clamp(1e-4, 1) ** float(gamma) * gains
        grey = view.mean(0, keepdim=True)
        view = (grey + (view - grey) * float(colour)).clamp(0, 1)
        yield view.flip(2) if number % 2 else view


def _as_tensor(photo: Image.Image) -> Tensor:
    """`(3, height, width)` in [0, 1]."""
    return torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1).float() / 255


def _as_frames(images: Tensor) -> Frames:
    """`(count, height, width, 3)` uint8 of pictures in [0, 1]."""
    levels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()


def _averaged(image: Frames) -> NDArray[np.float32]:
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    return np.asarray(F.avg_pool2d(values, _CELL, ceil_mode=True, count_include_pad=False)[0])
