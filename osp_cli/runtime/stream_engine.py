"""The two workers of a stream: one makes latents, one decodes them; both go on from a state."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from osp_cli.direction import Direction, Shot, Wording
from osp_cli.events import Loaded
from osp_cli.extend_request import ExtendRequest
from osp_cli.models.latents import uint8_frames
from osp_cli.models.picture_memory import OVERLAP
from osp_cli.models.streaming import StreamingDecoder
from osp_cli.pipelines.realtime import RealtimePipeline, StreamInputs, StreamState, Words
from osp_cli.requests import prompts_of
from osp_cli.runtime.caching import step_cache_config
from osp_cli.runtime.extend_settling import Stream
from osp_cli.runtime.models import CONDITIONING, SAMPLING, Models
from osp_cli.runtime.stream_source import Beginning
from osp_cli.runtime.stream_state import TAIL, SavedStream
from osp_cli.sampling.anchors import LatentAnchor, noisy_context
from osp_cli.settings import PAPER_DEFAULTS
from osp_cli.style_mix import NO_STYLE

# Readings of prompts that are kept: those of a crossfade, and of a screenplay that comes back.
_MAX_READINGS = 16


@dataclass(frozen=True, slots=True)
class Made:
    """A chunk's latents, with all that is needed to go on after it."""

    shot: Shot
    latents: Tensor
    state: StreamState
    anchor: LatentAnchor | None
    direction: Mapping[str, Any]
    seconds: float
    steps: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A chunk's pictures, uint8 `(n, height, width, 3)`, and what they were made of."""

    made: Made
    frames: NDArray[np.uint8]
    tail: Tensor
    seconds: float


class Parts:
    """The models of a stream, where need be one stage at a time.

    Where the plan frees parts, prompts are read while the transformer waits on the disk: once for
    all that a screenplay holds, and again for every line that nobody knew of.

    Args:
        models: what is in memory.
        stream: as settled.
    """

    def __init__(self, models: Models, stream: Stream) -> None:
        self._models, self._stream = models, stream
        request = stream.request
        self._figures = replace(
            request.figures, context=request.context, latent_frames=request.latent_frames
        )

    def load(self, names: tuple[str, ...]) -> Iterator[Loaded]:
        """The parts of a stage; all of them, where the plan keeps all."""
        plan, load = self._stream.clip.plan, self._models.load
        spec, weights = self._stream.request.spec, self._stream.clip.weights
        yield from (
            load(spec, plan, weights, names) if plan.frees_parts else load(spec, plan, weights)
        )

    @property
    def vae(self) -> Any:
        """The autoencoder, which every stage has."""
        return self._models.vae

    def reading(self) -> RealtimePipeline:
        """A pipeline that can read prompts."""
        deque(self.load(CONDITIONING), maxlen=0)
        return self._models.stream_pipeline(self._figures)

    def sampling(self) -> RealtimePipeline:
        """A pipeline that can make chunks."""
        deque(self.load(SAMPLING), maxlen=0)
        return self._models.stream_pipeline(self._figures)


class Maker:
    """Makes one chunk after the other.

    Args:
        stream: as settled.
        parts: the models.
        direction: what the chunks shall show.
        beginning: where they start.
        saved: the state to go on from.
        num_shown: pictures of the stream that are there before its first chunk.
    """

    def __init__(
        self,
        stream: Stream,
        parts: Parts,
        direction: Direction,
        beginning: Beginning,
        saved: SavedStream | None,
        num_shown: int = 0,
    ) -> None:
        self._stream, self._parts, self._direction = stream, parts, direction
        self._picture = beginning.picture
        self._abandoned = threading.Event()
        self._inputs = stream_inputs(stream)
        self._readings: dict[Wording, Words] = {}
        self._anchor: LatentAnchor | None = None
        pipeline = parts.reading()
        if saved is not None and stream.is_resumed:
            self._state = StreamState.from_tensors(_below("stream.", saved.tensors))
            self._anchor = _saved_anchor(saved)
        elif saved is not None:
            # Another stream that begins with the latents of this one.
            old = StreamState.from_tensors(_below("stream.", saved.tensors))
            anew = pipeline.begin(self._inputs, old.history, old.sink)
            self._state = replace(anew, memory=old.memory)
        else:
            self._state = pipeline.begin(
                self._inputs,
                self._as_context(beginning.context),
                self._as_context(beginning.first),
                beginning.picture,
            )
        self._planned = num_shown
        if saved is not None:
            cut = int(saved.notes["cut"])
            self._planned = cut + (saved.made if stream.is_resumed else 0)
        self._first = self._state, direction.as_json()
        if stream.clip.plan.frees_parts:
            for scene in direction.scenes():
                self._read(scene.wording)

    @property
    def first(self) -> tuple[StreamState, Mapping[str, Any]]:
        """Engine and direction as they were before the first chunk that this made."""
        return self._first

    def abandon(self) -> None:
        """Make no further step: nobody waits for the chunk. From any thread."""
        self._abandoned.set()

    def __call__(self) -> Made | None:
        """The next chunk; None where the stream ends."""
        wanted = self._stream.request.new_frames
        if self._direction.ends or (wanted is not None and self._planned >= wanted):
            return None
        started = time.perf_counter()
        inputs = replace(self._inputs, latent_frames=self._num_latent_frames(wanted))
        count, fps = self._num_frames(inputs.latent_frames), self._stream.request.fps
        shot = self._direction.begin(self._planned / fps, count / fps)
        words = self._words(shot)
        chunk = self._parts.sampling().chunk(
            inputs,
            self._state,
            words,
            cutoff=shot.scene.cutoff[0],
            paint=self._paints(shot),
            anchor=None if shot.restyled else self._pulled,
        )
        steps = 0
        while not self._abandoned.is_set():
            try:
                next(chunk)
                steps += 1
            except StopIteration as end:
                latents, self._state = end.value
                break
        else:
            return None
        self._planned += count
        if self._stream.request.anchor_color and (self._anchor is None or shot.restyled):
            # A new look has colours of its own.
            self._anchor = LatentAnchor.of(latents)
        seconds = time.perf_counter() - started
        return Made(
            *(shot, latents, self._state, self._anchor, self._direction.as_json(), seconds, steps)
        )

    def _as_context(self, latents: Tensor | None) -> Tensor | None:
        """What the user brought, as this model wants to be shown it."""
        request = self._stream.request
        if latents is None or not request.figures.context_noise:
            return latents
        return noisy_context(latents, torch.Generator().manual_seed(request.seed))

    def _num_latent_frames(self, wanted: int | None) -> int:
        """Of the next chunk: fewer at the end, so that hardly more is made than is shown."""
        request = self._stream.request
        usual, figures = request.latent_frames, request.figures
        if wanted is None or figures.vae_chunks == "independent":
            return usual
        least = min(usual, OVERLAP if figures.memory == "picture" else 1)
        left = -(-(wanted - self._planned) // request.spec.scale_factor_temporal)
        if usual < left < usual + least:
            # So that enough is left for the last one.
            return left - least
        return max(least, min(usual, left))

    def _num_frames(self, latent_frames: int) -> int:
        """Pictures of a chunk of so many latent frames that comes next."""
        first = not (self._state.history.shape[2] or self._state.chunk)
        figures = replace(self._stream.request.figures, latent_frames=latent_frames)
        group = self._stream.request.spec.scale_factor_temporal
        return figures.num_frames(first=first, group=group)

    def _paints(self, shot: Shot) -> bool:
        """Whether a style or a cutoff must come into the picture now.

        A chunk without either holds what is there; but where the picture itself is remembered, that
        is never painted.
        """
        figures = self._stream.request.figures
        if not (figures.paints and (shot.restyled or figures.memory == "picture")):
            return False
        if not self._state.history.shape[2]:
            return False
        usual = float(self._stream.request.spec.defaults.get("cutoff", PAPER_DEFAULTS["cutoff"]))
        return shot.scene.style != NO_STYLE or shot.scene.cutoff != (usual, usual)

    def _pulled(self, latents: Tensor) -> Tensor:
        weight = self._stream.request.anchor_color
        if self._anchor is None or not weight:
            return latents
        return self._anchor.pull(latents, weight)

    def _words(self, shot: Shot) -> Words:
        """What the chunk is made of, the shares of several wordings blended."""
        words: Words | None = None
        total = 0.0
        for wording, share in shot.shares.flat:
            total += share
            read = self._read(wording)
            words = read if words is None else words.blend(read, share / total)
        assert words is not None
        return words

    def _read(self, wording: Wording) -> Words:
        if wording not in self._readings:
            if len(self._readings) >= _MAX_READINGS:
                self._readings.pop(next(iter(self._readings)))
            self._readings[wording] = self._of_all_styles(wording)
        return self._readings[wording]

    def _of_all_styles(self, wording: Wording) -> Words:
        """A prompt in the words of its styles, by their weights."""
        request = self._stream.request
        guided = request.guidance_scale > 1
        words: Words | None = None
        total = 0.0
        for text, weight in prompts_of(
            None if wording.style == NO_STYLE else wording.style, request.model, wording.prompt
        ):
            assert isinstance(weight, float | int)
            total += weight
            read = self._parts.reading().read(
                text, request.negative_prompt if guided else None, self._shown_picture()
            )
            words = read if words is None else words.blend(read, weight / total)
        assert words is not None
        return words

    def _shown_picture(self) -> Image.Image | None:
        return self._picture if self._stream.request.spec.image_to_video else None


class Shower:
    """Decodes one chunk after the other.

    Args:
        stream: as settled.
        vae: its autoencoder.
        tail: latents that come before, which only warm the decoder up; None for none.
    """

    def __init__(self, stream: Stream, vae: Any, tail: Tensor | None) -> None:
        self._stream, self._vae = stream, vae
        self._is_continuous = stream.request.figures.vae_chunks == "continuous"
        self._decoder = StreamingDecoder(vae)
        self._tail = tail
        if tail is not None and self._is_continuous:
            self._decoder.warm(tail)

    @property
    def tail(self) -> Tensor | None:
        """The newest latents, as many as warm a decoder up."""
        return self._tail

    def unseen(self, count: int) -> NDArray[np.uint8]:
        """So many last pictures of the latents before, which were made but are in no file yet."""
        assert self._tail is not None
        request = self._stream.request
        if self._is_continuous:
            decoder = StreamingDecoder(self._vae)
            decoder.warm(self._tail[:, :, :-1])
            latents = self._tail[:, :, -1:]
        else:
            decoder = StreamingDecoder(self._vae)
            latents = self._tail[:, :, -request.latent_frames :]
        return _pictures(decoder.push(latents))[-count:]

    def first_picture(self, latents: Tensor) -> NDArray[np.uint8]:
        """The picture that the stream begins with, as the autoencoder shows it."""
        self._remember(latents)
        return _pictures(self._decoder.push(latents))

    def __call__(self, made: Made) -> Shown:
        """The pictures of a chunk."""
        started = time.perf_counter()
        decoder = self._decoder if self._is_continuous else StreamingDecoder(self._vae)
        # One latent frame at a time: the same pictures, and a fifth sooner on a processor, whose
        # time goes into fetching memory for so many pixels in single precision.
        pieces = [_pictures(decoder.push(piece)) for piece in made.latents.split(1, dim=2)]
        frames = np.concatenate(pieces)
        self._remember(made.latents)
        assert self._tail is not None
        return Shown(made, frames, self._tail, time.perf_counter() - started)

    def _remember(self, latents: Tensor) -> None:
        parts = [latents] if self._tail is None else [self._tail, latents]
        self._tail = torch.cat([part.float().cpu() for part in parts], 2)[:, :, -TAIL:]


def stream_inputs(stream: Stream) -> StreamInputs:
    """What the pipeline is asked for."""
    request: ExtendRequest = stream.request
    width, height = stream.size
    return StreamInputs(
        width=width,
        height=height,
        latent_frames=request.latent_frames,
        num_inference_steps=request.stage_steps,
        guidance_scale=request.guidance_scale,
        shift=request.shift,
        sampler=request.sampler,
        seed=request.seed,
        step_cache=step_cache_config(
            request.spec,
            request.cache.kind,
            request.cache.threshold,
            request.cache_start,
            request.num_inference_steps,
        ),
    )


def tensors_of(
    state: StreamState,
    tail: Tensor | None,
    picture: Image.Image | None,
    anchor: LatentAnchor | None = None,
) -> dict[str, Tensor]:
    """What goes into the state file."""
    tensors = {f"stream.{name}": each for name, each in state.tensors().items()}
    if tail is not None:
        tensors["tail"] = tail
    if anchor is not None:
        tensors |= {f"anchor.{name}": each for name, each in anchor.tensors().items()}
    if picture is not None:
        tensors["picture"] = torch.from_numpy(np.array(picture.convert("RGB")))
    return tensors


def saved_beginning(saved: SavedStream) -> Beginning:
    """Where a stream that is taken up again stands."""
    picture = saved.tensors.get("picture")
    shown = None if picture is None else Image.fromarray(picture.numpy())
    return Beginning(None, None, saved.tensors.get("tail"), shown)


def _saved_anchor(saved: SavedStream) -> LatentAnchor | None:
    found = _below("anchor.", saved.tensors)
    return LatentAnchor.from_tensors(found) if found else None


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)
    }


def _pictures(video: Tensor) -> NDArray[np.uint8]:
    pictures: NDArray[np.uint8] = uint8_frames(video)[0].cpu().numpy()
    return pictures
