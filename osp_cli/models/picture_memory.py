"""What an endless video of the embedded model is a video of, kept for as long as it runs.

The model makes a chunk from one clean frame. If that were always the chunk's before, every chunk
would show the one before it through lookups between cells: after ten, nothing but the lookups' own
pattern is left. So the picture itself is kept, sharp and unpainted, with where the camera has got
to. Before each chunk the frame that the camera sees is taken from that picture, and the tokens are
told their way through it. Every chunk, the thousandth too, is one look at the picture away from it.

Chunks overlap: each makes a few latent frames more than it hands over, and the next one, which
shows the same places at the same times, takes their place gradually. So neither where the lookups
start anew, nor another style, is a jump.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from osp_cli.models.latents import encode_latents
from osp_cli.models.mini_stream import told
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.procedural.courses import Course, displaced, follow
from osp_cli.procedural.motions import Motion

GROUP = 4  # frames of a latent frame
OVERLAP = 3  # latent frames that a chunk makes for the next one to take their place
_CLIP_LATENTS = 12  # latent frames after the first in the clips of the training
_MOVED = 0.12  # cells after which content has wholly left its place
# The latent frame that later chunks' tokens take themselves for: what falls or glows has begun.
_SETTLED = 8
# Latent frames after which fire glows as before, about; and where that is told from.
_GLOW = {"slow": 8, "normal": 5, "fast": 3}
_GLOW_FROM = 4


@dataclass(frozen=True, slots=True)
class MemoryState:
    """All that a stream's next chunk needs besides the picture.

    Attributes:
        course: where the camera is, and what stirs.
        tail: latent frames that the last chunk made for the next, `(1, c, OVERLAP, h, w)`; None
            before the first.
    """

    course: Course = field(default_factory=Course)
    tail: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, for a state file."""
        course = self.course
        held = {
            "frame": torch.tensor(course.frame),
            "view": course.view,
            "zooming": torch.tensor(course.zooming),
            "strengths": course.strengths,
        }
        if course.pace is not None:
            held["pace"] = course.pace
        if self.tail is not None:
            held["tail"] = self.tail.cpu().contiguous()
        return held

    @classmethod
    def from_tensors(cls, held: Mapping[str, Tensor]) -> MemoryState:
        """What `tensors` gave.

        Raises:
            KeyError: something is missing.
        """
        course = Course(
            frame=int(held["frame"]),
            view=held["view"],
            pace=held.get("pace"),
            zooming=int(held["zooming"]),
            strengths=held["strengths"],
        )
        return cls(course, held.get("tail"))


@dataclass(frozen=True, slots=True)
class Sight:
    """What the camera sees when a chunk begins.

    Attributes:
        context: normalised first-frame latents, `(1, c, 1, h, w)`: the clean frame before a chunk.
        shown: the same with what lies around, for image tokens, `(1, c, 1, h + 2m, w + 2m)`.
    """

    context: Tensor
    shown: Tensor


class PictureMemory:
    """A picture, looked at from anywhere.

    Args:
        transformer: the embedded model's.
        vae: its autoencoder.
        picture: the picture that is not painted, uint8 `(height, width, 3)`. It may be larger than
            the frame, in whose proportions it is taken: zooms then find detail.
        size: height, width of the frame in pixels.
        surround: cells around the frame that image tokens show too.
        latent_frames: that a chunk hands over.
    """

    def __init__(
        self,
        transformer: FlashI2VTransformer3DModel,
        vae: Any,
        picture: Tensor,
        size: tuple[int, int],
        surround: int,
        latent_frames: int = 9,
    ) -> None:
        self._transformer = transformer
        self._vae = vae
        self._picture = picture.permute(2, 0, 1)[None].float() / 127.5 - 1
        self._size = size
        self.latent_frames = latent_frames
        # The card's margin is what a clip needs; a longer chunk looks further.
        self._surround = math.ceil(surround * max(1.0, self.made_frames / _CLIP_LATENTS))

    @property
    def made_frames(self) -> int:
        """Latent frames that a chunk must make: with those for the next chunk."""
        return self.latent_frames + OVERLAP

    @torch.no_grad()
    def look(self, state: MemoryState) -> Sight:
        """What the camera sees now; what stirs in the scene is the tokens' affair."""
        cell = self._vae.config.scale_factor_spatial
        margin, course = self._surround * cell, state.course
        wide = self._size[0] + 2 * margin, self._size[1] + 2 * margin
        pixels = seen_from(self._picture, course, self._size, wide)
        shown = encode_latents(self._vae, pixels[:, :, None])
        rows, columns = (side // cell for side in self._size)
        inner = shown.narrow(3, self._surround, rows).narrow(4, self._surround, columns)
        return Sight(inner.contiguous(), shown)

    @contextmanager
    def telling(self, state: MemoryState, motion: Motion) -> Iterator[None]:
        """The transformer's tokens are told where the camera goes while one chunk is made.

        It must be called with the context frame and `made_frames` others; their frame indices are
        seen to here.

        Args:
            state: before the chunk.
            motion: what its prompt asks for.
        """
        moments = follow(state.course, motion, self._size, GROUP * self.made_frames)
        cell, patch = self._vae.config.scale_factor_spatial, self._transformer.config.patch_size[1]
        moved = chunk_motion(moments, self._size, cell, patch, begins=state.course.frame == 0)
        times = self._times(state.course.frame // GROUP, motion)

        def at_times(_module: object, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "frame_indices": times}

        handle = self._transformer.register_forward_pre_hook(at_times, with_kwargs=True)
        try:
            with told(self._transformer, moved.flatten(0, 2)[None]):
                yield
        finally:
            handle.remove()

    def join(
        self, state: MemoryState, motion: Motion, latents: Tensor
    ) -> tuple[Tensor, MemoryState]:
        """A chunk as it is handed over, and the state after it.

        Args:
            state: before the chunk.
            motion: what its prompt asks for.
            latents: `(1, c, made_frames, h, w)`.

        Raises:
            ValueError: another number of latent frames.
        """
        if latents.shape[2] != self.made_frames:
            raise ValueError(
                f"a chunk makes {self.made_frames} latent frames here, got {latents.shape[2]}"
            )
        chunk = latents[:, :, : self.latent_frames].clone()
        if state.tail is not None:
            tail = state.tail[:, :, : self.latent_frames].to(chunk)
            count = tail.shape[2]
            share = (torch.arange(count, device=chunk.device) + 1.0) / (count + 1)
            share = share.reshape(1, 1, -1, 1, 1)
            chunk[:, :, :count] = share * chunk[:, :, :count] + (1 - share) * tail
        course = follow(state.course, motion, self._size, GROUP * self.latent_frames)[-1]
        return chunk, MemoryState(course, latents[:, :, self.latent_frames :].clone())

    def _times(self, before: int, motion: Motion) -> Tensor:
        """Frame indices of the context and a chunk's latent frames, `before` of which came."""
        count = 1 + torch.arange(self.made_frames)
        if before == 0:
            later = count.clamp(max=_CLIP_LATENTS)
        elif motion.scene == "fire":
            later = _GLOW_FROM + (before + count - _GLOW_FROM) % _GLOW[motion.speed]
        else:
            later = torch.full_like(count, _SETTLED)
        return torch.cat([torch.zeros(1, dtype=later.dtype), later])


def seen_from(
    picture: Tensor, course: Course, size: tuple[int, int], frame: tuple[int, int]
) -> Tensor:
    """A picture as the camera sees it, mirrored at its borders for ever.

    Args:
        picture: `(1, 3, picture_height, picture_width)`, all of it in the first frame.
        course: where the camera is.
        size: height, width in pixels of the frame that showed the whole picture.
        frame: height, width of what is wanted, about the same middle.

    Returns:
        `(1, 3, *frame)` in [-1, 1].
    """
    height, width = size
    # More samples than pixels where the picture shrinks, or it would flicker.
    finer = max(1, round(picture.shape[3] / width / course.zoom))
    rows, columns = (side * finer for side in frame)
    y = (torch.arange(rows) + 0.5) / finer - frame[0] / 2
    x = (torch.arange(columns) + 0.5) / finer - frame[1] / 2
    own = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], -1).double()
    place = own @ course.view[:2, :2].T + course.view[:2, 2]
    place = place * 2 / place.new_tensor([width, height])
    folded = 1 - ((place + 1) % 4 - 2).abs()  # grid_sample's own mirror is for near places
    seen = F.grid_sample(
        picture,
        folded[None].to(picture),
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )
    return F.avg_pool2d(seen, finer).clamp(-1.0, 1.0)


def chunk_motion(
    moments: list[Course], size: tuple[int, int], cell: int, patch: int, *, begins: bool
) -> Tensor:
    """What a chunk's tokens are told, in cells: `(1 + latent frames, rows, columns, 9)`.

    Args:
        moments: of every frame, the context's first.
        size: height, width of the frame in pixels.
        cell: pixels along a latent cell.
        patch: cells along a token.
        begins: whether it is the stream's first: content has not left its place before it does.
            Later it has, wherever anything moves: sharpness does not come and go.
    """
    grid = size[0] // cell, size[1] // cell
    moved = displaced(moments, size, grid) / cell
    last = GROUP * torch.arange(1, (len(moments) - 1) // GROUP + 1)
    middle = (moved[last - 2] + moved[last - 1]) / 2
    speed = (moved[last] - moved[last - GROUP + 1]) * GROUP / (GROUP - 1)
    middle = torch.cat([moved[:1], middle])
    speed = torch.cat([torch.zeros_like(speed[:1]), speed])
    tokens = middle.unflatten(2, (-1, patch)).unflatten(1, (-1, patch))
    half, apart = patch // 2, patch / 2
    along_x = (tokens[..., patch - half :, :] - tokens[..., :half, :]).mean((2, 4)) / apart
    along_y = (tokens[:, :, patch - half :] - tokens[:, :, :half]).mean((2, 4)) / apart
    speed = speed.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).mean((2, 4))
    farthest = tokens.norm(dim=-1).amax((2, 4))
    if begins:
        farthest = farthest.cummax(0).values
    else:
        farthest = farthest.amax(0, keepdim=True).expand_as(farthest)
    left = (farthest / _MOVED).clamp(max=1.0)[..., None]
    growth = torch.stack([along_x, along_y], -1).flatten(-2)
    return torch.cat([tokens.mean((2, 4)), speed, growth, left], -1)
