"""Windows: the parts of clips that are samples, and their frames."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.image import cover_resize_crop, load_image
from osp_cli.media.source_video import SourceVideo, probe_source, read_frames
from osp_cli.training.dataset.entries import Window
from osp_cli.training.dataset.folders import frame_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


def window_starts(
    available: int, num_frames: int, most: int, *, seed: int, identity: str
) -> list[int]:
    """First frames of the windows of a clip, none of which overlap.

    Where there is room, all placements of the windows are equally likely. They follow from the
    seed and the clip alone, not from its place in the dataset: what is cached stays valid.

    Args:
        available: frames of the clip.
        num_frames: of a window.
        most: windows at most.
        identity: of the clip: its content, not its name.
    """
    count = min(most, available // num_frames)
    room = available - count * num_frames
    offsets = sorted(_draw(room + 1, seed, identity, index) for index in range(count))
    return [offset + index * num_frames for index, offset in enumerate(offsets)]


def _draw(below: int, seed: int, identity: str, index: int) -> int:
    """A number from 0 to `below - 1` that follows from the others."""
    digest = hashlib.sha256(f"{seed}/{identity}/{index}".encode()).digest()
    # Of 2^64 values the remainder is uniform enough.
    return int.from_bytes(digest[:8], "big") % below


def available_frames(source: SourceVideo, fps: int, stride: int | None) -> int:
    """How many frames a clip gives at the rate that is trained at."""
    if stride is None:
        return source.num_frames_at(fps)
    return (source.num_frames_at(source.fps) - 1) // stride + 1


def part_of(source: SourceVideo, start: float, end: float | None = None) -> SourceVideo:
    """A part of a video as a video of its own, in seconds from its first picture.

    Raises:
        ValueError: nothing of the video is in it.
    """
    end = source.duration if end is None else min(end, source.duration)
    if not 0 <= start < end:
        raise ValueError(f"of {source.duration:.2f} s, {start} to {end} are no part")
    return replace(source, start=source.start + start, duration=end - start, num_frames=None)


def frame_seconds(source_fps: Fraction | None, fps: int, stride: int | None) -> float:
    """Seconds of the file from one frame of a window to the next."""
    if stride is None or source_fps is None:
        return (stride or 1) / fps
    return float(stride / source_fps)


def read_window(window: Window, fps: int, stride: int | None = None) -> NDArray[np.uint8]:
    """The frames of a window, uint8 RGB `(frames, height, width, 3)`.

    Frame k is the last one whose time stamp is at most `start + k / fps`. Frames are scaled to
    cover the window's size and cut at its centre. Pictures in a folder are taken to be at the
    rate that is trained at.

    Args:
        stride: every n-th frame of the file instead, whatever its rate.

    Raises:
        UnreadableMediaError: the file changed since it was checked, or cannot be read.
    """
    import numpy as np

    entry = window.entry
    if entry.kind == "video":
        source = part_of(probe_source(entry.path), window.start)
        rate: Fraction | int = fps if stride is None else source.fps
        step = stride or 1
        wanted = (window.num_frames - 1) * step + 1
        frames = read_frames(source, window.size, rate, num_frames=wanted)
        return np.stack([frame for k, frame in enumerate(frames) if k % step == 0])
    if entry.kind == "image":
        paths: Sequence[Path] = [entry.path]
    else:
        step = stride or 1
        first = round(window.start * fps)
        last = first + (window.num_frames - 1) * step + 1
        paths = frame_files(entry.path)[first:last:step]
    if len(paths) != window.num_frames:
        raise UnreadableMediaError(
            f"{entry.path} has changed: {len(paths)} of {window.num_frames} pictures are there",
            hint="check the dataset again",
        )
    return np.stack([np.asarray(_fitted(path, window.size)) for path in paths])


def read_source(window: Window) -> Image.Image:
    """The picture that a clip follows from, RGB of the window's size.

    Raises:
        ValueError: the entry has none.
        UnreadableMediaError: it cannot be read.
    """
    if window.entry.source is None:
        raise ValueError(f"{window.entry.place} has no picture of its own")
    return _fitted(window.entry.source, window.size)


def _fitted(path: Path, size: tuple[int, int]) -> Image.Image:
    return cover_resize_crop(load_image(path).image, *size)
