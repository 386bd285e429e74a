"""A source video as latents, window by window: read, encoded and let go of as a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from itertools import islice
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from osp_cli.media.source_video import SourceVideo, read_frames
from osp_cli.models.streaming import PictureEncoder, StreamingEncoder
from osp_cli.pipelines.restyle import Window

Frame = NDArray[np.uint8]


class SourceLatents:
    """The latents of a video, of which only those of one window are in memory.

    The autoencoder looks back to the very first frame, so reading always begins there: an
    interrupted run then comes to the very same numbers.

    Args:
        source: the video.
        size: width and height that it is brought to.
        fps: that it is resampled at.
        num_frames: of the result.
        num_padded_frames: at least as many, `1 + 4k`; the last one is repeated to fill them up.
        group: frames of a latent frame.

    Attributes:
        first_picture: the video's first frame; None before the first window.
    """

    def __init__(
        self,
        source: SourceVideo,
        size: tuple[int, int],
        fps: int,
        *,
        num_frames: int,
        num_padded_frames: int,
        group: int,
    ) -> None:
        self._frames = read_frames(source, size, fps, num_frames=num_frames)
        self._groups = groups(self._frames, num_padded_frames, group)
        # First frame and latents of each latent frame that a window to come may still ask for.
        self._held: deque[tuple[Frame, Tensor]] = deque()
        self._first = 0
        self.first_picture: Image.Image | None = None

    def __enter__(self) -> SourceLatents:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Ends the program that reads the file.
        self._frames.close()

    def window(
        self, window: Window, encoder: StreamingEncoder | PictureEncoder
    ) -> tuple[Tensor, Image.Image]:
        """A window that does not begin before the last one did.

        Args:
            window: which.
            encoder: the same one for all windows.

        Returns:
            Its latents `(1, channels, latent frames, h, w)` fp32, and its first frame.

        Raises:
            UnreadableMediaError: the video breaks off.
        """
        while self._first + len(self._held) < window.stop:
            frames = next(self._groups)
            if self.first_picture is None:
                self.first_picture = Image.fromarray(frames[0])
            self._held.append((frames[0], encoder.push(_pixels(frames))))
            if self._first < window.start:
                self._drop()
        while self._first < window.start:
            self._drop()
        encoder.rest()
        held = list(islice(self._held, window.num_frames))
        return torch.cat([latents for _, latents in held], 2), Image.fromarray(held[0][0])

    def _drop(self) -> None:
        self._held.popleft()
        self._first += 1


def groups(
    frames: Iterator[Frame], num_padded_frames: int, group: int
) -> Generator[list[Frame], None, None]:
    """The first frame alone, then as many together as make a latent frame.

    Args:
        frames: of a video, at least one.
        num_padded_frames: how many to give, `1 + k group`; the last one is repeated.
        group: how many together.
    """
    last = next(frames)
    yield [last]
    for _ in range((num_padded_frames - 1) // group):
        together = list(islice(frames, group))
        last = together[-1] if together else last
        yield together + [last] * (group - len(together))


def _pixels(frames: list[Frame]) -> Tensor:
    """`(1, 3, frames, height, width)` in [-1, 1]."""
    pixels = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None]
    return pixels.float() / 127.5 - 1
