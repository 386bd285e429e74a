"""What restyling must keep and change: the motion of its source, its calm, and how far it goes.

Videos are `(num_frames, height, width, 3)` uint8 throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from osp_cli.evaluation.metrics import Frames
from osp_cli.evaluation.motion_flow import flow_between, luma_plane, texture_of
from osp_cli.procedural.motions import Motion, displacement
from osp_cli.procedural.styles import apply_style

# Where each pixel's content was a frame before: `(height, width, 2)`, x before y, in pixels.
BackwardMap = NDArray[np.float32]
# Frames between the two of a pair: a usual pan moves by some pixels then.
_STRIDE = 4
# Pixels that are averaged before looks are compared: what is finer may have moved a little.
_CELL = 8
# Of the fixed-point search below; each round takes away what a zoom changes in one frame.
_ROUNDS = 8


# --- motion ----------------------------------------------------------------------------------


def flow_correlation(result: Frames, source: Frames, stride: int = _STRIDE) -> float:
    """How alike the motion of two videos is: 1 where every place moves the same way, 0 for a still.

    Dense optical flow is taken of both between frames a little apart. The vectors' cosine is that
    of the two fields as wholes, `sum w (a . b) / sqrt(sum w |a|^2  sum w |b|^2)`, so that a pan,
    which is the same everywhere, counts as much as a zoom. Weights say where flow can be seen in
    the source.

    Args:
        result: the restyled video.
        source: what it was made of, of the same shape.
        stride: frames between the two of a pair.

    Raises:
        ValueError: the shapes differ, or there are too few frames.
    """
    if result.shape != source.shape:
        raise ValueError(f"videos differ in shape: {result.shape} and {source.shape}")
    if len(source) <= stride:
        raise ValueError(f"{len(source)} frames are too few for pairs {stride} apart")
    both, ours, theirs = 0.0, 0.0, 0.0
    marks = range(0, len(source) - stride, stride)
    for first in marks:
        before, after = (luma_plane(source[k]) for k in (first, first + stride))
        flow = flow_between(before, after)
        other = flow_between(*(luma_plane(result[k]) for k in (first, first + stride)))
        trust = texture_of(before)
        both += float((trust * (flow * other).sum(0)).sum())
        ours += float((trust * (other * other).sum(0)).sum())
        theirs += float((trust * (flow * flow).sum(0)).sum())
    scale = np.sqrt(ours * theirs)
    return both / float(scale) if scale > 0 else 0.0


def true_maps(motion: Motion, size: tuple[int, int], num_frames: int) -> list[BackwardMap]:
    """The maps of a clip of `render_clip`, one less than its frames, from its formulas.

    Args:
        motion: of the clip; what falls through the frame is not in them.
        size: height, width.
        num_frames: of the clip.
    """
    height, width = size
    times = torch.arange(num_frames, dtype=torch.float32)
    # How far from its own place each pixel's content lies in the first frame.
    shifts = displacement(motion, size, times, size)
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32),
        indexing="ij",
    )  # fmt: skip
    here = torch.stack([x, y], -1)
    maps = []
    for before, now in pairwise(shifts):
        first = here + now
        # The place q of the frame before whose content is the same: q + before(q) = first.
        place = here
        for _ in range(_ROUNDS):
            place = first - _looked_up(before, place)
        maps.append(place.numpy())
    return maps


def estimated_maps(video: Frames) -> list[BackwardMap]:
    """The maps of any video, from its optical flow at full size; less sure than true ones."""
    planes = [_luma(frame) for frame in video]
    height, width = planes[0].shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    maps = []
    for before, now in pairwise(planes):
        right, down = flow_between(now, before)
        maps.append(np.stack([x + right, y + down], -1).astype(np.float32))
    return maps


# --- calm ------------------------------------------------------------------------------------


def flicker(video: Frames, maps: Sequence[BackwardMap]) -> float:
    """Mean absolute difference of each frame to the one before, moved as its content did.

    Args:
        video: to be judged.
        maps: one less than the frames; places outside of the frame do not count.

    Returns:
        In grey levels; 0 where nothing but the given motion changes.

    Raises:
        ValueError: another number of maps.
    """
    if len(maps) != len(video) - 1:
        raise ValueError(f"{len(video)} frames have {len(video) - 1} maps, got {len(maps)}")
    total, count = 0.0, 0
    for index, places in enumerate(maps):
        before, now = _as_tensor(video[index]), _as_tensor(video[index + 1])
        field = torch.from_numpy(places)
        moved = _looked_up(before, field)
        height, width = now.shape[:2]
        limits = field.new_tensor([width - 1, height - 1])
        inside = ((field >= 0) & (field <= limits)).all(-1)
        total += float((moved - now).abs().mean(-1)[inside].sum())
        count += int(inside.sum())
    return total / count if count else 0.0


def operator_video(style: str, video: Frames) -> Frames:
    """Every frame by itself as the operator of a style paints it: the calm that must be beaten."""
    painted = []
    for frame in video:
        image = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 255
        painted.append((apply_style(style, image)[0] * 255).round().to(torch.uint8))
    video_of_style: Frames = torch.stack(painted).permute(0, 2, 3, 1).contiguous().numpy()
    return video_of_style


# --- how far ---------------------------------------------------------------------------------


def look_distance(one: Frames, other: Frames) -> float:
    """Mean absolute difference of colours, averaged over cells of 8 pixels, in grey levels."""
    return float(np.mean(np.abs(_averaged(one) - _averaged(other))))


def way_between(video: Frames, start: Frames, end: Frames) -> float:
    """How far a video is on the straight way from one look to another: 0 is `start`, 1 is `end`.

    The projection of `video - start` on `end - start`, of colours averaged over cells; what leads
    elsewhere does not count.

    Raises:
        ValueError: both ends look the same.
    """
    origin = _averaged(start)
    way = _averaged(end) - origin
    length = float((way * way).sum())
    if not length:
        raise ValueError("there is no way between two equal looks")
    return float(((_averaged(video) - origin) * way).sum()) / length


def is_monotone(values: Sequence[float], slack: float = 0.0) -> bool:
    """Whether values never fall by more than `slack` from one to the next."""
    return all(after >= before - slack for before, after in pairwise(values))


def jump(video: Frames) -> float:
    """The largest change between neighbouring frames, as a multiple of the median one.

    1 for a still; infinite for what mostly stands still and then changes.
    """
    changes = [
        float(np.abs(after.astype(np.float32) - before).mean()) for before, after in pairwise(video)
    ]
    middle = float(np.median(changes))
    if not middle:
        return float("inf") if max(changes) else 1.0
    return max(changes) / middle


# --- helpers ---------------------------------------------------------------------------------


def _looked_up(image: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`(height, width, channels)` of an image at `(height, width, 2)` places in pixels, bilinear;
    beyond the border its edge goes on."""
    height, width = image.shape[:2]
    scale = places.new_tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
    found = F.grid_sample(
        image.permute(2, 0, 1)[None], (places * scale - 1)[None],
        padding_mode="border", align_corners=True,
    )  # fmt: skip
    return found[0].permute(1, 2, 0)


def _as_tensor(frame: Frames) -> torch.Tensor:
    return torch.from_numpy(np.array(frame)).float()


def _luma(frame: Frames) -> NDArray[np.float32]:
    """In [0, 1], at full size."""
    luma = frame.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    return np.asarray(luma, np.float32)


def _averaged(video: Frames) -> NDArray[np.float32]:
    """`(num_frames, 3, rows, columns)`; frame by frame, as a long video would fill the memory."""

    def cells(frame: Frames) -> torch.Tensor:
        values = _as_tensor(frame).permute(2, 0, 1)[None]
        return F.avg_pool2d(values, _CELL, ceil_mode=True, count_include_pad=False)[0]

    return torch.stack([cells(frame) for frame in video]).numpy()
