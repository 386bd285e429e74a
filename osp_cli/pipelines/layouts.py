"""Where the context of a chunk stands beside its noise.

    osp      clean latents before the noise in time, at timestep 0 token by token (paper, 7.1)
    helios   a history at three scales and the stream's first frame, before the noise tokens

A layout sees the transformer alone: no prompts, no sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from osp_cli.pipelines.stream import StreamState
from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame, shift_latents
from osp_cli.sampling.stages import shrunk_picture

# v of noise latents at a timestep, told `encoder_hidden_states`; in the model's precision.
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Paint:
    """A chunk in image mode: the context's latent shift and Fourier features come on top.

    Attributes:
        cutoff: percentile of the Fourier filter.
    """

    cutoff: float


class Layout(Protocol):
    """One way to show a transformer what came before.

    Attributes:
        lookback: latent frames that it looks back.
    """

    lookback: int

    def view(
        self, transformer: Any, state: StreamState, noise: tuple[int, ...], paint: Paint | None
    ) -> Predict:
        """The model as one stage of a chunk sees it.

        Args:
            transformer: of this layout.
            state: of the stream.
            noise: shape of the stage's latents.
            paint: image mode, or None.
        """
        ...


class OspLayout:
    """`cat([context, x_t])` along time, each token of the context at timestep 0.

    The context is shown at the resolution of the stage. While there are fewer latents than it may
    hold it is shorter; without any, a chunk is plain text to video.

    Args:
        context: latent frames at most.
    """

    def __init__(self, context: int) -> None:
        self.lookback = context

    def view(
        self, transformer: Any, state: StreamState, noise: tuple[int, ...], paint: Paint | None
    ) -> Predict:
        """As in `Layout`; `paint` is of models with latent shifting only.

        Raises:
            ValueError: there is nothing to paint.
        """
        known = state.history.shape[2]
        context = _at_size(state.history[:, :, max(0, known - self.lookback) :], noise)
        length = context.shape[2]
        if paint is not None and not length:
            raise ValueError("nothing can be painted before there is a picture")
        shown = (noise[0], noise[1], length + noise[2], *noise[3:])
        extra, shift = self._conditions(transformer, context, shown, paint)
        dtype = transformer.dtype

        def predict(latents: Tensor, timestep: Tensor, texts: Tensor) -> Tensor:
            hidden_states = torch.cat([context, latents], dim=2)
            if shift is not None:
                hidden_states = shift_latents(hidden_states, shift)
            output: Tensor = transformer(
                hidden_states.to(dtype),
                _per_token(transformer, timestep, length, shown),
                texts.to(dtype),
                **extra,
                return_dict=False,
            )[0]
            return output[:, :, length:]

        return predict

    def _conditions(
        self, transformer: Any, context: Tensor, shown: tuple[int, ...], paint: Paint | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Fourier features by argument name, and phi of the context's newest frame."""
        if not hasattr(transformer, "learnable_proj"):
            if paint is not None:
                raise ValueError("a model without latent shifting cannot paint")
            return {}, None
        dtype, newest = transformer.dtype, context[:, :, -1:]
        if paint is None:
            # Zeros and not nothing: the trained biases of the branch still count.
            return {"fourier_features": context.new_zeros(shown, dtype=dtype)}, None
        features = fourier_features(newest, paint.cutoff, shown[2])
        shift = project_first_frame(transformer, newest)
        return {"fourier_features": features.to(dtype)}, shift


class HeliosLayout:
    """Sixteen, two and one latents in tokens of rising fineness, and the stream's first frame.

    Missing ones are zeros, so shapes never change, and neither do the places in time: first frame
    0, history 1 to 19, noise from 20 on, for every chunk. The history is always at full size.
    """

    # Long, middle and short; the first frame goes with the short one.
    SIZES = (16, 2, 1)
    lookback = sum(SIZES)

    def view(
        self, transformer: Any, state: StreamState, noise: tuple[int, ...], paint: Paint | None
    ) -> Predict:
        """As in `Layout`.

        Raises:
            ValueError: image mode, which there is none of.
        """
        if paint is not None:
            raise ValueError("a model without latent shifting cannot paint")
        dtype = transformer.dtype
        long, middle, newest = self._history(state).to(dtype).split(self.SIZES, dim=2)
        sink = torch.zeros_like(newest) if state.sink is None else state.sink.to(newest)
        ends = (1, *self.SIZES, noise[2])
        first, *places = torch.arange(sum(ends), device=newest.device)[None].split(ends, dim=1)
        given = {
            "indices_hidden_states": places[3],
            "indices_latents_history_short": torch.cat([first, places[2]], dim=1),
            "indices_latents_history_mid": places[1],
            "indices_latents_history_long": places[0],
            "latents_history_short": torch.cat([sink, newest], dim=2),
            "latents_history_mid": middle,
            "latents_history_long": long,
        }

        def predict(latents: Tensor, timestep: Tensor, texts: Tensor) -> Tensor:
            output: Tensor = transformer(
                hidden_states=latents.to(dtype),
                timestep=timestep.to(latents.device).expand(len(latents)),
                encoder_hidden_states=texts.to(dtype),
                **given,
                return_dict=False,
            )[0]
            return output

        return predict

    def _history(self, state: StreamState) -> Tensor:
        known = state.history[:, :, -self.lookback :]
        missing = list(known.shape)
        missing[2] = self.lookback - known.shape[2]
        return torch.cat([known.new_zeros(missing), known], dim=2)


def layout_of(name: str, context: int) -> Layout:
    """The layout of a card's table `[realtime]`.

    Raises:
        ValueError: there is none of that name.
    """
    if name == "osp":
        return OspLayout(context)
    if name == "helios":
        return HeliosLayout()
    raise ValueError(f"there is no layout {name!r}")


def _at_size(context: Tensor, noise: tuple[int, ...]) -> Tensor:
    """The context at a stage's resolution."""
    if not context.shape[2]:
        return context.new_zeros(*context.shape[:3], *noise[3:])
    small = shrunk_picture(context, (context.shape[-1] // noise[-1]).bit_length() - 1)
    if small.shape[-2:] != noise[-2:]:
        raise ValueError(f"context {tuple(context.shape)} does not suit noise {noise}")
    return small


def _per_token(transformer: Any, timestep: Tensor, length: int, shown: tuple[int, ...]) -> Tensor:
    """`(1, tokens)`: 0 for the context, the timestep for the rest; `(1,)` without context."""
    device = transformer.device
    if not length:
        return timestep.to(device).expand(shown[0])
    frames, height, width = (
        size // side for size, side in zip(shown[2:], transformer.config.patch_size, strict=True)
    )
    tokens = torch.full((shown[0], frames, height * width), float(timestep), device=device)
    tokens[:, : length // transformer.config.patch_size[0]] = 0
    return tokens.flatten(1)
