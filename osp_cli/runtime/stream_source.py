"""What a stream goes on from, as latents: a video's end, a picture, a state, or nothing."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from osp_cli.media.image import to_tensor_values
from osp_cli.media.source_video import read_frames
from osp_cli.models.latents import encode_latents
from osp_cli.models.streaming import StreamingEncoder
from osp_cli.pipelines.layouts import HeliosLayout
from osp_cli.runtime.extend_settling import Stream

Frames = NDArray[np.uint8]
_T = TypeVar("_T")

# Latent frames of a video's end that are encoded, so that the last of them know what came before.
_RUN_UP = 9


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a stream starts.

    Attributes:
        context: latents of what came before, newest last; None for none.
        first: the latent frame of its first picture; None likewise.
        tail: latents that the decoder has seen by then; None where the stream is its first.
        picture: that the conditioner is shown.
    """

    context: Tensor | None
    first: Tensor | None
    tail: Tensor | None
    picture: Image.Image | None


@torch.no_grad()
def beginning_of(stream: Stream, vae: Any) -> Beginning:
    """Encode what the stream goes on from, in the autoencoder's full precision.

    Raises:
        UnreadableMediaError: the video breaks off.
    """
    if stream.source is not None:
        return _of_video(stream, vae)
    if stream.picture is not None:
        pixels = torch.from_numpy(to_tensor_values(stream.picture))[None, :, None]
        first = encode_latents(vae, pixels)
        context = _still(stream, vae, pixels) if _is_independent(stream) else None
        return Beginning(context, first, None, stream.picture)
    return Beginning(None, None, None, None)


def source_frames(stream: Stream, at_once: int) -> Iterator[Frames]:
    """The pictures of the video that goes on, some at a time, at the stream's size and rate."""
    if stream.source is None:
        return
    with closing(_read(stream, 0)) as frames:
        while together := list(islice(frames, at_once)):
            yield np.stack(together)


def _is_independent(stream: Stream) -> bool:
    """Whether every chunk is a clip of its own to the autoencoder."""
    return stream.request.figures.vae_chunks == "independent"


def _still(stream: Stream, vae: Any, pixels: Tensor) -> Tensor:
    """What a chunk in which nothing moves ends with: the history of a picture (Helios)."""
    frames = stream.chunk_frames
    return encode_latents(vae, pixels.expand(-1, -1, frames, -1, -1))[:, :, -1:]


def _of_video_in_clips(stream: Stream, vae: Any) -> Beginning:
    """The end of a video in clips as long as chunks, and its very first picture (Helios)."""
    length = stream.chunk_frames
    most = -(-HeliosLayout.lookback // stream.request.latent_frames)
    with closing(_read(stream, 0)) as frames:
        opening = next(frames)
    with closing(_read(stream, max(0, stream.source_frames - most * length))) as frames:
        pictures = list(frames)
    clips = whole_clips(pictures, length, vae.config.scale_factor_temporal)
    latents = torch.cat([encode_latents(vae, _pixels(clip)) for clip in clips], 2)
    first = encode_latents(vae, _pixels([opening]))
    return Beginning(latents, first, latents, Image.fromarray(pictures[-1]))


def whole_clips(pictures: list[_T], length: int, group: int) -> list[list[_T]]:
    """Clips of `length` pictures, the last of which ends with the last picture.

    Fewer than one clip make one that is as long as they allow, `1 + group k`.
    """
    count = len(pictures) // length
    if not count:
        count, length = 1, 1 + group * ((len(pictures) - 1) // group)
    used = pictures[len(pictures) - count * length :]
    return [used[start : start + length] for start in range(0, len(used), length)]


def _pixels(pictures: list[NDArray[np.uint8]]) -> Tensor:
    """`(1, 3, frames, height, width)` in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def _of_video(stream: Stream, vae: Any) -> Beginning:
    if _is_independent(stream):
        return _of_video_in_clips(stream, vae)
    group = vae.config.scale_factor_temporal
    wanted = max(_RUN_UP, stream.request.context + 1)
    groups = min(wanted - 1, (stream.source_frames - 1) // group)
    count = 1 + group * groups
    with closing(_read(stream, stream.source_frames - count)) as frames:
        pictures = list(frames)
    # A file may hold a picture less than it says; the encoder takes whole groups.
    pictures = pictures[len(pictures) - (1 + group * ((len(pictures) - 1) // group)) :]
    latents = StreamingEncoder(vae).push(_pixels(pictures))
    return Beginning(latents, latents[:, :, :1], latents, Image.fromarray(pictures[-1]))


def _read(stream: Stream, start: int) -> Generator[Frames, None, None]:
    assert stream.source is not None
    return read_frames(
        stream.source,
        stream.size,
        stream.request.fps,
        start_frame=start,
        num_frames=stream.source_frames - start,
    )
