"""umT5 as the conditioning of the transformer, as in Wan and FlashI2V."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from osp_cli.conditioning.chat import cut_notice
from osp_cli.conditioning.prompts import clean_prompt


class UMT5Conditioner:
    """Text alone: pictures do not reach this encoder.

    Args:
        tokenizer: The umT5 tokenizer; it appends the end token.
        text_encoder: `UMT5EncoderModel`, frozen.
        max_sequence_length: Rows of the conditioning; longer prompts lose their end.
        device: Where it computes; None means where its weights are.
    """

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        max_sequence_length: int = 512,
        *,
        device: torch.device | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.max_sequence_length = max_sequence_length
        self._device = device

    def encode(
        self,
        prompts: list[str],
        *,
        images: list[Image.Image] | None = None,
        image_latents: Tensor | None = None,
    ) -> Tensor:
        """Conditioning `(batch, max_sequence_length, text_dim)`, see `Conditioner`.

        `images` and `image_latents` have no influence.
        """
        tokens = self.tokenizer(
            [clean_prompt(prompt) for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=self.max_sequence_length,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        # Weights that come piece by piece are elsewhere between two calls.
        device = self._device or self.text_encoder.device
        return umt5_states(
            self.text_encoder, tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
        )

    def notice(self, prompt: str, image: Image.Image | None = None) -> str | None:
        """A sentence for the user where the end of `prompt` does not fit, else None."""
        # Not verbose: the library would log its own warning of the length.
        tokens = self.tokenizer(clean_prompt(prompt), verbose=False)["input_ids"]
        return cut_notice(max(0, len(tokens) - self.max_sequence_length))


@torch.no_grad()
def umt5_states(text_encoder: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states, `(batch, length, width)`, exactly zero behind the text.

    The transformer has no text mask, so zero rows are what it was trained to see there.
    """
    states: Tensor = text_encoder(
        input_ids=input_ids, attention_mask=attention_mask
    ).last_hidden_state
    return states.masked_fill(attention_mask[..., None] == 0, 0)
