"""What the frozen conditioner says of captions and pictures: computed once, joined in each step.

A conditioner ends in adapters that may be trained, so what is kept is what goes into them. Each
clip has two variants, its caption and an empty one, with the same picture: dropping the text must
not drop what a vision-language model sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from osp_cli.conditioning.clip_vision import FirstFrameConditioner
from osp_cli.conditioning.umt5 import UMT5Conditioner
from osp_cli.conditioning.vlm import QwenVLConditioner
from osp_cli.conditioning.vlm_released import ReleasedQwenConditioner
from osp_cli.models.latents import with_surroundings

_STATES = "states"
_IMAGE = "image_embeds"


class ConditionSource(Protocol):
    """Conditions in two halves: what is frozen and kept, and what may be trained."""

    @property
    def adapters(self) -> dict[str, nn.Module]:
        """What of the conditioner may be trained, by the names of the model's folders."""
        ...

    def prepare(self, prompt: str, image: Image.Image | None) -> dict[str, Tensor]:
        """The frozen half for one clip, without a batch dimension, on the processor."""
        ...

    def join(
        self, rows: Sequence[Mapping[str, Tensor]], first: Tensor | None, device: torch.device
    ) -> dict[str, Tensor]:
        """The transformer's arguments for a batch; gradients reach the adapters.

        Args:
            rows: from `prepare`, one per sample.
            first: s, `(batch, channels, 1, h, w)`; None trains without a picture.
            device: where to compute.

        Returns:
            `encoder_hidden_states` `(batch, length, text_dim)`, and what else the model takes.
        """
        ...

    def unload(self) -> None:
        """Let go of the frozen encoders, which are large; `prepare` fails from now on."""
        ...


def condition_source(conditioner: Any, vae: Any = None, surround: int = 0) -> ConditionSource:
    """The two halves of a conditioner.

    Args:
        conditioner: one of ours.
        vae: of the model; needed where image tokens show the picture's surroundings.
        surround: how many cells of them.

    Raises:
        TypeError: a conditioner that is not known here.
    """
    if isinstance(conditioner, FirstFrameConditioner):
        return _WithPicture(conditioner, condition_source(conditioner.texts))
    if isinstance(conditioner, UMT5Conditioner):
        return _Texts(conditioner)
    if isinstance(conditioner, ReleasedQwenConditioner):
        return _Released(conditioner)
    if isinstance(conditioner, QwenVLConditioner):
        return _Multimodal(conditioner, vae, surround)
    raise TypeError(f"no training with {type(conditioner).__name__}")


class _Texts:
    """umT5: there is nothing behind it; only the zero rows that fill it up are not kept."""

    def __init__(self, conditioner: UMT5Conditioner) -> None:
        self.conditioner: UMT5Conditioner | None = conditioner
        self.length = conditioner.max_sequence_length

    @property
    def adapters(self) -> dict[str, nn.Module]:
        return {}

    def prepare(self, prompt: str, image: Image.Image | None) -> dict[str, Tensor]:
        assert self.conditioner is not None
        states = self.conditioner.encode([prompt])[0].cpu()
        real = states.abs().amax(1).nonzero()
        return {_STATES: states[: int(real.max()) + 1 if len(real) else 0].contiguous()}

    def join(
        self, rows: Sequence[Mapping[str, Tensor]], first: Tensor | None, device: torch.device
    ) -> dict[str, Tensor]:
        states, _ = _padded([row[_STATES] for row in rows], self.length)
        return {"encoder_hidden_states": states.to(device)}

    def unload(self) -> None:
        """Let go of the encoder; what was prepared needs it no more."""
        self.conditioner = None


class _Released:
    """The released vision-language conditioning; rows at padding are looked at, so all are kept."""

    def __init__(self, conditioner: ReleasedQwenConditioner) -> None:
        self.conditioner = conditioner

    @property
    def adapters(self) -> dict[str, nn.Module]:
        return {"adapter": self.conditioner.adapter}

    def prepare(self, prompt: str, image: Image.Image | None) -> dict[str, Tensor]:
        states, _ = self.conditioner.hidden_states([prompt])
        return {_STATES: states[0].cpu()}

    def join(
        self, rows: Sequence[Mapping[str, Tensor]], first: Tensor | None, device: torch.device
    ) -> dict[str, Tensor]:
        states = torch.stack([row[_STATES] for row in rows]).to(device)
        return {"encoder_hidden_states": _through(self.conditioner.adapter, states)}

    def unload(self) -> None:
        """Let go of the language model; the adapter stays."""
        self.conditioner.model = None


class _Multimodal:
    """Qwen2.5-VL as in the paper: prompt and picture together, and image tokens beside them."""

    def __init__(self, conditioner: QwenVLConditioner, vae: Any, surround: int) -> None:
        self.conditioner = conditioner
        self.vae = vae
        self.surround = surround

    @property
    def adapters(self) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {"adapter": self.conditioner.adapter}
        if self.conditioner.image_adapter is not None:
            found["image_adapter"] = self.conditioner.image_adapter
        return found

    def prepare(self, prompt: str, image: Image.Image | None) -> dict[str, Tensor]:
        states, mask = self.conditioner.hidden_states([prompt], None if image is None else [image])
        return {_STATES: states[0, : int(mask[0].sum())].cpu().contiguous()}

    def join(
        self, rows: Sequence[Mapping[str, Tensor]], first: Tensor | None, device: torch.device
    ) -> dict[str, Tensor]:
        length = self.conditioner.max_sequence_length
        states, mask = _padded([row[_STATES] for row in rows], length)
        dtype = next(self.conditioner.adapter.parameters()).dtype
        shown = None
        if first is not None:
            shown = first.to(device)
            if self.surround:
                shown = with_surroundings(self.vae, shown, self.surround)
        context = self.conditioner.project(states.to(device, dtype), mask.to(device), shown)
        return {"encoder_hidden_states": context}

    def unload(self) -> None:
        """Let go of the language model; the adapters stay."""
        self.conditioner.model = None


class _WithPicture:
    """Another conditioner's texts, and CLIP's view of the picture."""

    def __init__(self, conditioner: FirstFrameConditioner, texts: ConditionSource) -> None:
        self.conditioner = conditioner
        self.texts = texts

    @property
    def adapters(self) -> dict[str, nn.Module]:
        return self.texts.adapters

    def prepare(self, prompt: str, image: Image.Image | None) -> dict[str, Tensor]:
        found = self.texts.prepare(prompt, image)
        if image is not None:
            found[_IMAGE] = self.conditioner.see([image])[0].cpu()
        return found

    def join(
        self, rows: Sequence[Mapping[str, Tensor]], first: Tensor | None, device: torch.device
    ) -> dict[str, Tensor]:
        joined = self.texts.join(rows, first, device)
        embeds = torch.stack([row[_IMAGE] for row in rows]).to(device)
        return {**joined, "encoder_hidden_states_image": embeds}

    def unload(self) -> None:
        """Let go of both encoders."""
        self.conditioner.image_encoder = None
        self.texts.unload()


def _padded(rows: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Rows of several lengths as one batch, zero behind each, and the mask of what is real."""
    states = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        states[index, : len(row)] = row
        mask[index, : len(row)] = True
    return states, mask


def _through(adapter: nn.Module, states: Tensor) -> Tensor:
    mapped: Tensor = adapter(states.to(next(adapter.parameters()).dtype))
    return mapped
