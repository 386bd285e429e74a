"""Which style a frame shows, judged twice by things that know nothing of the model.

The nearest operator: of the thirteen operators' pictures of the photo and of the photo itself, the
one that the frame is nearest to. The stranger: a linear discriminant on hand-made numbers, which
has seen the operators' pictures of all the other photos and none of this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from osp_cli.evaluation.metrics import Frames
from osp_cli.evaluation.style_features import style_features
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
        round_trip: the model's codec. Half of the examples have gone through it, so that what a
            codec does to fine lines is not taken for a style.
        num_views: of each photo: itself, mirrored, and crops.
    """

    def __init__(
        self, photos: Mapping[str, Image.Image], round_trip: RoundTrip, num_views: int = 4
    ) -> None:
        self._examples = {
            name: _examples(photo, round_trip, num_views) for name, photo in photos.items()
        }

    def without(self, photo: str) -> Callable[[Frames], str]:
        """The judgement of one who knows all photos but this.

        Raises:
            ValueError: there is no other photo.
        """
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        others = [rows for name, rows in self._examples.items() if name != photo]
        if not others:
            raise ValueError("a stranger needs other photos to learn from")
        numbers = np.concatenate([rows for rows, _ in others])
        looks = np.concatenate([names for _, names in others])
        # Shrinkage: there are about as many numbers as examples of a look.
        judge: Any = make_pipeline(
            StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        )
        judge.fit(numbers, looks)
        return lambda image: str(judge.predict(style_features(image)[None])[0])


def _examples(
    photo: Image.Image, round_trip: RoundTrip, num_views: int
) -> tuple[NDArray[np.float64], list[str]]:
    """Numbers and names of one photo's looks, raw and as the codec shows them."""
    views = torch.stack([_as_tensor(view) for view in _views(photo)[:num_views]])
    numbers, names = [], []
    for name in LOOKS:
        painted = _as_frames(look_of(name, views))
        for image in (*painted, *round_trip(painted)):
            numbers.append(style_features(image))
            names.append(name)
    return np.stack(numbers), names


def _views(photo: Image.Image) -> Sequence[Image.Image]:
    width, height = photo.size
    mirrored = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    crops = [
        picture.resize(photo.size, Image.Resampling.BICUBIC, box=box)
        for picture, box in (
            (photo, (0, 0, width * 0.7, height * 0.7)),
            (mirrored, (width * 0.25, height * 0.25, width, height)),
        )
    ]
    return [photo, mirrored, *crops]


def _as_tensor(photo: Image.Image) -> Tensor:
    """`(3, height, width)` in [0, 1]."""
    return torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1).float() / 255


def _as_frames(images: Tensor) -> Frames:
    """`(count, height, width, 3)` uint8 of pictures in [0, 1]."""
    levels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()


def _averaged(image: Frames) -> NDArray[np.float32]:
    values = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    return np.asarray(F.avg_pool2d(values, _CELL, ceil_mode=True, count_include_pad=False)[0])
