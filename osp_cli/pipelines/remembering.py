"""Endless video of a model that cannot invent, only look: it keeps the picture it looks at.

The same engine, told before each chunk what the camera sees in the picture by then, and making a
few latent frames more than it hands over (`models.picture_memory` tells why). Every chunk is
painted anew from the picture that is not painted, so a style neither builds up nor fades, and
another one begins with the picture, not with what the last style left of it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from osp_cli.events import StepDone
from osp_cli.models.latents import latent_statistics, uint8_frames
from osp_cli.models.mini_stream import heard_motion
from osp_cli.models.picture_memory import MemoryState, PictureMemory
from osp_cli.pipelines.realtime import Anchor, RealtimePipeline
from osp_cli.pipelines.stream import StreamInputs, StreamState, Words


class RememberingPipeline(RealtimePipeline):
    """`RealtimePipeline`, whose state also holds the picture and where the camera is."""

    @torch.no_grad()
    def begin(
        self,
        inputs: StreamInputs,
        context_latents: Tensor | None = None,
        image_latents: Tensor | None = None,
        picture: Image.Image | None = None,
    ) -> StreamState:
        """A stream before its first chunk; as in `RealtimePipeline`, and

        Args:
            inputs: of the stream.
            context_latents: of the video to be continued.
            image_latents: of the first picture.
            picture: the frame that the first chunk goes on from, in the stream's proportions. One
                that is larger than the stream gives detail to what comes nearer. None takes what
                the autoencoder makes of the latents.

        Raises:
            ValueError: there is nothing to look at.
        """
        state = super().begin(inputs, context_latents, image_latents)
        if picture is not None:
            pixels = torch.from_numpy(np.array(picture.convert("RGB")))
        elif state.history.shape[2]:
            pixels = self._decoded(state.history[:, :, -1:], single=context_latents is None)
        else:
            raise ValueError("this model looks at a picture, and there is none")
        return replace(state, memory={"picture": pixels, **MemoryState().tensors()})

    @torch.no_grad()
    def chunk(
        self,
        inputs: StreamInputs,
        state: StreamState,
        words: Words,
        *,
        cutoff: float = 0.1,
        paint: bool = False,
        anchor: Anchor | None = None,
        shown: Tensor | None = None,
    ) -> Generator[StepDone, None, tuple[Tensor, StreamState]]:
        """Make the next chunk, as in `RealtimePipeline`.

        Args:
            inputs: of the stream.
            state: before the chunk.
            words: of `read`.
            cutoff: percentile of the Fourier filter in image mode.
            paint: image mode; for every chunk that has a style, or a cutoff of its own.
            anchor: is given the chunk's latents and returns what takes their place.
            shown: not for this pipeline, which sees to it.

        Raises:
            ValueError: the state holds no picture, or image tokens of another one are given.
        """
        if shown is not None or "picture" not in state.memory:
            raise ValueError("a stream with a memory shows the picture of its own state")
        picture, remembered = state.memory["picture"], MemoryState.from_tensors(state.memory)
        memory = PictureMemory(
            self.transformer,
            self.vae,
            picture,
            (inputs.height, inputs.width),
            self.surround,
            inputs.latent_frames,
        )
        motion = heard_motion(self.transformer, words.cond)
        sight = memory.look(remembered)
        with memory.telling(remembered, motion):
            made, after = yield from super().chunk(
                replace(inputs, latent_frames=memory.made_frames),
                replace(state, history=sight.context),
                words,
                cutoff=cutoff,
                paint=paint,
                shown=sight.shown,
            )
        latents, remembered = memory.join(remembered, motion, made)
        if anchor is not None:
            latents = anchor(latents)
        after = replace(
            after,
            history=self._kept(latents.float()),
            memory={"picture": picture, **remembered.tensors()},
        )
        return latents, after

    def _decoded(self, newest: Tensor, *, single: bool) -> Tensor:
        """The last frame of a latent frame, uint8 `(height, width, 3)`."""
        mean, std = latent_statistics(self.vae, newest)
        raw = (newest * std + mean).to(self.vae.dtype)
        video = self.vae.decode(raw, first=single).sample[:, :, -1:]
        return uint8_frames(video.float().clamp(-1.0, 1.0))[0, 0].cpu()
