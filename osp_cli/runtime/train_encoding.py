"""Encoding clips to train on: once, before the transformer is loaded, and kept."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from osp_cli.errors import RuntimeFailureError, UnreadableMediaError
from osp_cli.events import ClipEncoded
from osp_cli.models.latents import encode_latents
from osp_cli.procedural.plain import plain_picture
from osp_cli.runtime.train_stages import MASKS
from osp_cli.train_request import TrainRequest
from osp_cli.training.conditions import ConditionSource
from osp_cli.training.dataset.cache import ClipCache
from osp_cli.training.dataset.entries import Window, condition_of
from osp_cli.training.dataset.windows import read_source, read_window
from osp_cli.training.masks import first_frame_known, masked_latents, random_mask
from osp_cli.training.objective import KNOWN, merged
from osp_cli.training.randomness import step_generator
from osp_cli.training.samples import EncodedClip

# Raised when plain pictures or masks are drawn in another way.
_DRAWN = 1


@dataclass(frozen=True, slots=True)
class Encoders:
    """What turns clips into numbers; gone before training begins."""

    vae: Any
    conditions: ConditionSource


class ClipStore:
    """The encoded clips of a run.

    Args:
        cache: where they are kept.
        windows: samples, in the order of the dataset.
        request: of the run.
        vae_sha, conditions_sha: hashes of what encodes them.
    """

    def __init__(
        self,
        cache: ClipCache,
        windows: tuple[Window, ...],
        request: TrainRequest,
        vae_sha: str,
        conditions_sha: str,
    ) -> None:
        self.cache = cache
        self.windows = windows
        self.request = request
        self._vae_sha, self._conditions_sha = vae_sha, conditions_sha

    def prompt(self, window: Window) -> str:
        """The caption with the trigger before it, as a style's prompt is written."""
        return prompt_with_trigger(window.entry.caption or "", self.request.trigger)

    def key(self, index: int) -> str:
        """What the cache calls a window: its contents and all that the numbers depend on."""
        window, request = self.windows[index], self.request
        condition = condition_of(window, request)
        if condition == "plain" or request.mode == "inpaint":
            # What is drawn for it follows from the seed.
            condition = f"{condition}/{request.mode}/{request.seed}/{_DRAWN}"
        return self.cache.key(
            window,
            vae_sha=self._vae_sha,
            conditions_sha=self._conditions_sha,
            fps=request.fps,
            stride=request.stride,
            condition=condition,
            caption=self.prompt(window),
        )

    def missing(self) -> list[int]:
        """Windows that are not encoded yet."""
        return [k for k in range(len(self.windows)) if self.key(k) not in self.cache]

    def __call__(self, index: int) -> EncodedClip:
        """An encoded clip by the number of its window.

        Raises:
            RuntimeFailureError: it is no longer there, or its file is damaged.
        """
        key = self.key(index)
        clip = self.cache.read(key)
        if clip is None:
            self.cache.path(key).unlink(missing_ok=True)
            raise RuntimeFailureError(
                f"an encoded clip in {self.cache.folder} is gone or damaged",
                hint="give the same command again: it is encoded anew, and the run goes on",
            )
        return clip

    def encode(self, load: Callable[[], Encoders]) -> Iterator[ClipEncoded]:
        """Encode what is missing.

        Args:
            load: the encoders, called only where there is something to encode.
        """
        missing = set(self.missing())
        encoders = load() if missing else None
        total = len(self.windows)
        for number in range(total):
            started = time.perf_counter()
            cached = number not in missing
            if not cached:
                assert encoders is not None
                clip = encode_window(self.windows[number], self, encoders)
                self.cache.write(self.key(number), clip)
            yield ClipEncoded(number + 1, total, cached, time.perf_counter() - started)


def prompt_with_trigger(caption: str, trigger: str) -> str:
    """`trigger, caption`, as `own_styles` writes it; a caption that says it already stays."""
    trigger = trigger.strip(" ,;:")
    # As words of their own: `ink` is not in "a pink house".
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


@torch.no_grad()
def encode_window(window: Window, store: ClipStore, encoders: Encoders) -> EncodedClip:
    """The numbers of one window.

    Raises:
        UnreadableMediaError: a file is damaged, or is another than was looked at.
    """
    request = store.request
    _refuse_changed(window)
    frames = read_window(window, request.fps, request.stride)
    vae = encoders.vae
    video = _as_video(frames)
    latents = encode_latents(vae, video)[0]
    kind = condition_of(window, request)
    shown = _shown_picture(kind, frames, window, request)
    # The autoencoder is causal: the first latent frame is that of the first picture alone.
    first = latents[:, :1] if kind in ("first", "none") else _encode_picture(vae, shown)
    picture = None if kind == "none" else shown
    prompt = store.prompt(window)
    clip = EncodedClip(
        latents.to("cpu", torch.bfloat16).contiguous(),
        first.to("cpu", torch.bfloat16).contiguous(),
        encoders.conditions.prepare(prompt, picture),
        encoders.conditions.prepare("", picture),
    )
    if request.mode == "inpaint":
        known = _known_variants(vae, video, _as_video(_pixels(shown)), window, request)
        clip = merged(clip, {KNOWN: known})
    return clip


def _refuse_changed(window: Window) -> None:
    """Files that were replaced meanwhile would be kept as what they were."""
    seen = [(window.entry.source, window.source_content)]
    if window.entry.kind != "frames":
        seen.append((window.entry.path, window.content))
    for path, content in seen:
        if path is None or not content:
            continue
        with path.open("rb") as file:
            now = hashlib.file_digest(file, "sha256").hexdigest()
        if now != content:
            raise UnreadableMediaError(
                f"{path} has changed since it was looked at", hint="give the same command again"
            )


def _shown_picture(
    kind: str, frames: NDArray[np.uint8], window: Window, request: TrainRequest
) -> Image.Image:
    if kind == "source":
        return read_source(window)
    if kind != "plain":
        return Image.fromarray(frames[0])
    generator = _generator(request, window, "plain")
    values = torch.from_numpy(frames[0].copy()).permute(2, 0, 1)[None].float() / 255
    plain = plain_picture(values, generator)[0].permute(1, 2, 0)
    return Image.fromarray((plain * 255).round().to(torch.uint8).numpy())


def _known_variants(
    vae: Any, video: Tensor, shown: Tensor, window: Window, request: TrainRequest
) -> Tensor:
    """What may be known of a clip: the picture that it follows from, and some masks.

    The picture as CLIP sees it too, `(1, 3, 1, height, width)`: when clips are made with the
    adapter, both come from one picture.
    """
    generator = _generator(request, window, "mask")
    size = video.shape[2:]
    known = [masked_latents(vae, torch.cat([shown, video[:, :, 1:]], 2), first_frame_known(*size))]
    for _ in range(MASKS - 1):
        known.append(masked_latents(vae, video, random_mask(generator, *size)))
    return torch.stack(known).to("cpu", torch.bfloat16)


def _generator(request: TrainRequest, window: Window, purpose: str) -> torch.Generator:
    return step_generator(
        request.seed, f"{purpose}/{window.content}/{window.start:.6f}", window.num_frames
    )


def _as_video(frames: NDArray[np.uint8]) -> Tensor:
    """`(1, 3, frames, height, width)` in [-1, 1]."""
    return torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0


def _encode_picture(vae: Any, picture: Image.Image) -> Tensor:
    return encode_latents(vae, _as_video(_pixels(picture)))[0]


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """`(1, height, width, 3)`."""
    return np.asarray(picture.convert("RGB"))[None]
