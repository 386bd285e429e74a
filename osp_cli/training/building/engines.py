"""What a builder is given to work with: who restyles a picture, and who makes it move.

Builders load nothing; the runtime, or a test, hands these in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A styled picture that is to become a clip.

    Attributes:
        picture: styled, of the clip's size.
        source: the same before it was styled.
        style: its name.
        prompt: what happens in the clip.
        seed: of the clip.
        num_frames, fps: of the clip.
    """

    picture: Image.Image
    source: Image.Image
    style: str
    prompt: str
    seed: int
    num_frames: int
    fps: int


class Stylizer(Protocol):
    """Paints a picture anew in a style, `I_style = Edit(I_key, s)` (paper, section 6.2)."""

    @property
    def is_seeded(self) -> bool:
        """Whether another seed gives another picture, so that it is worth another try."""

    def stylise(self, picture: Image.Image, style: str, prompt: str, seed: int) -> Image.Image:
        """The picture in the style, of the same size.

        Args:
            picture: 8-bit RGB.
            style: name of the style.
            prompt: what to do, in words.
            seed: equal ones give equal pictures.
        """

    def describe(self) -> dict[str, Any]:
        """Name, revision or hash, licence and dials, as plain JSON values."""


class Animator(Protocol):
    """Makes a styled picture move, `V_style = Model_i2v(I_style, T)` (paper, section 6.3)."""

    @property
    def is_seeded(self) -> bool:
        """Whether another seed gives another clip, so that it is worth another try."""

    def animate(self, shot: Shot) -> Iterator[NDArray[np.uint8]]:
        """The frames one after the other, uint8 RGB `(height, width, 3)`, of the picture's size."""

    def describe(self) -> dict[str, Any]:
        """Name, revision or hash, licence and dials, as plain JSON values."""


class StyleJudge(Protocol):
    """Tells which style a picture shows, for example CLIP over the prompts of all styles."""

    def rank(self, picture: Image.Image) -> list[str]:
        """Names of styles, the likeliest first."""

    def describe(self) -> dict[str, Any]:
        """Name and hash of its weights, as plain JSON values."""
