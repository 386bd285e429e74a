"""Engines without weights: style operators for pictures, and the motions that move them.

They are what a laptop can build a dataset with in minutes, and what the tests run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from osp_cli import __version__
from osp_cli.errors import InvalidRequestError
from osp_cli.procedural.motions import Motion, render_clip
from osp_cli.procedural.prompts import CAMERA_PHRASES, SCENE_PHRASES, SPEED_PHRASES
from osp_cli.procedural.scenes import sharp_canvases
from osp_cli.procedural.styles import STYLE_OPERATORS, apply_style
from osp_cli.training.building.engines import Shot

# Frames that are rendered together: what bounds the memory.
_TOGETHER = 8
_MOTION_FPS = 16  # that motions count their frames at


class ProceduralStylizer:
    """The thirteen style operators."""

    is_seeded = False

    def stylise(self, picture: Image.Image, style: str, prompt: str, seed: int) -> Image.Image:
        """The picture as the style's operator paints it; neither words nor seed matter.

        Raises:
            InvalidRequestError: there is no such operator.
        """
        check_operators([style])
        return as_picture(apply_style(style, as_tensor(picture)[None])[0])

    def describe(self) -> dict[str, Any]:
        """Its name and version."""
        return {"name": "procedural", "revision": __version__, "licence": "Apache-2.0"}


class ProceduralAnimator:
    """Moves a picture by the motions that its prompt names, gently where it names none.

    Args:
        paints: pictures were styled by `ProceduralStylizer`. What its operators paint then moves
            with the picture, and what they screen it with (bricks, paper, scan lines) stands
            still. Otherwise the styled picture moves as a whole.
    """

    # Of rain and snow only, and those pass or fail all alike.
    is_seeded = False

    def __init__(self, *, paints: bool) -> None:
        self._paints = paints

    def animate(self, shot: Shot) -> Iterator[NDArray[np.uint8]]:
        """The frames of one clip."""
        motion = motion_of(shot.prompt)
        operator = STYLE_OPERATORS[shot.style] if self._paints else None
        canvas = as_tensor(shot.source if operator else shot.picture)
        if operator:
            canvas = operator.paint(canvas[None])[0]
        size = (shot.picture.height, shot.picture.width)
        times = torch.arange(shot.num_frames) * (_MOTION_FPS / shot.fps)
        for part in times.split(_TOGETHER):
            clip = render_clip(canvas, motion, size, part, shot.seed % 2**62)
            if operator:
                clip = operator.screen(clip)
            yield from _as_frames(clip)

    def describe(self) -> dict[str, Any]:
        """Its name and version."""
        return {
            "name": "procedural",
            "revision": __version__,
            "licence": "Apache-2.0",
            "paints": self._paints,
        }


def check_operators(styles: list[str]) -> None:
    """Refuse styles that no operator paints.

    Raises:
        InvalidRequestError: the message names the first.
    """
    for style in styles:
        if style not in STYLE_OPERATORS:
            raise InvalidRequestError(
                f"the procedural stylizer does not know the style {style}",
                hint=f"it knows {', '.join(STYLE_OPERATORS)}; others take a --stylizer",
            )


def motion_of(prompt: str) -> Motion:
    """The motions that a prompt names, by the longest phrase of each kind."""
    text = prompt.lower()
    camera, scene = _named(text, CAMERA_PHRASES), _named(text, SCENE_PHRASES)
    return Motion(camera, scene, _named(text, SPEED_PHRASES) or "normal")


def _named(text: str, phrases: Mapping[str, tuple[str, ...]]) -> str | None:
    by_length = sorted(
        ((phrase, name) for name, group in phrases.items() for phrase in group if phrase),
        key=lambda pair: -len(pair[0]),
    )
    for phrase, name in by_length:
        if re.search(rf"\b{re.escape(phrase)}\b", text):
            return name
    return None


def draw_scene(seed: int, size: tuple[int, int]) -> Image.Image:
    """A drawn scene.

    Args:
        seed: equal ones give equal scenes of a size.
        size: width, height in pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    return as_picture(sharp_canvases(generator, 1, size[1], size[0])[0])


def as_tensor(picture: Image.Image) -> Tensor:
    """`(3, height, width)` in [0, 1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255


def as_picture(image: Tensor) -> Image.Image:
    """8-bit RGB of `(3, height, width)` in [0, 1]."""
    return Image.fromarray(_as_frames(image[None])[0])


def _as_frames(images: Tensor) -> NDArray[np.uint8]:
    """`(count, height, width, 3)` uint8 of pictures in [0, 1]."""
    levels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    frames: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).contiguous().numpy()
    return frames
