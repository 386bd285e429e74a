"""Qwen2.5-VL the way the released UniWorld-OSP2.0 code runs it, which its weights expect.

That code hands the inputs of a picture to the text model alone. The vision tower never runs: each
image token is the same learnt embedding, positions are plain counts, and the conditioning does not
depend on the picture. It is not Eq. 1 of the paper; that is `vlm`.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from osp_cli.conditioning.chat import ChatWindow, cut_notice
from osp_cli.conditioning.prompts import QWEN_TEMPLATE
from osp_cli.models.adapter import FeatureAdapter

# Every picture is made 416x240 first, whatever its shape; the processor then rounds to multiples
# of 28 pixels, 420x252, which are 15 x 9 tokens.
RELEASED_IMAGE_TOKENS = 135


class ReleasedQwenConditioner:
    """`f_map` of the text model's last hidden states, padding included.

    The release does not shorten prompts and lets longer ones make more rows, which its transformer
    never saw in training; here the end of the prompt is left out, and `notice` says so.

    Args:
        model: `Qwen2_5_VLTextModel`, or a whole Qwen2.5-VL that holds one; frozen.
        tokenizer: A fast tokenizer that knows the template's control tokens and a padding token.
        adapter: f_map of Eq. 2.
        max_sequence_length: Rows of the conditioning, always all of them.
        template: Chat turn with `{image}` and `{prompt}`.
        num_image_tokens: Copies of the image token, for text-to-video too: without any, the model
            would meet what it never saw.
        padding_side: Where the padding stands. The release pads on the right.
        device: Where it computes; None means where its weights are.

    Raises:
        ValueError: The tokenizer has no padding token, whose rows are looked at, does not know the
            template's control tokens, or knows more tokens than the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        adapter: FeatureAdapter,
        *,
        max_sequence_length: int = 1024,
        template: str = QWEN_TEMPLATE,
        num_image_tokens: int = RELEASED_IMAGE_TOKENS,
        padding_side: Literal["left", "right"] = "right",
        device: torch.device | None = None,
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be left or right, got {padding_side!r}")
        model = getattr(model, "model", model)
        self.model = getattr(model, "language_model", model)
        _check_tokenizer(tokenizer, template, self.model.get_input_embeddings().num_embeddings)
        self.tokenizer = tokenizer
        self.adapter = adapter
        self.max_sequence_length = max_sequence_length
        self.num_image_tokens = num_image_tokens
        self.padding_side = padding_side
        self._device = device
        self._window = ChatWindow(tokenizer, template, max_sequence_length)

    def encode(
        self,
        prompts: list[str],
        *,
        images: list[Image.Image] | None = None,
        image_latents: Tensor | None = None,
    ) -> Tensor:
        """Conditioning `(batch, max_sequence_length, text_dim)`, see `Conditioner`.

        `images` and `image_latents` have no influence.

        Raises:
            ValueError: The image tokens leave no room for a prompt.
        """
        states, _ = self.hidden_states(prompts)
        return self.adapter(states)

    def notice(self, prompt: str, image: Image.Image | None = None) -> str | None:
        """A sentence for the user where the end of `prompt` does not fit, else None."""
        return cut_notice(self._window.num_cut(prompt, self.num_image_tokens))

    @torch.no_grad()
    def hidden_states(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """What the adapter gets, frozen.

        Returns:
            States `(batch, max_sequence_length, width)`, at padding too, and the mask of real rows
            `(batch, max_sequence_length)` bool.
        """
        input_ids, mask = self.inputs(prompts)
        device = self._device or self.model.device
        input_ids, mask = input_ids.to(device), mask.to(device)
        return released_states(self.model, input_ids, mask), mask

    def inputs(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and the mask of real ones, `(batch, max_sequence_length)` each.

        Prompts are taken as they are, as in the release's training; only control tokens are
        removed from them.
        """
        rows = [self._window.token_ids(prompt, self.num_image_tokens) for prompt in prompts]
        shape = (len(rows), self.max_sequence_length)
        input_ids = torch.full(shape, self.tokenizer.pad_token_id)
        mask = torch.zeros(shape, dtype=torch.bool)
        for index, row in enumerate(rows):
            real = slice(len(row))
            if self.padding_side == "left":
                real = slice(self.max_sequence_length - len(row), None)
            input_ids[index, real] = torch.tensor(row)
            mask[index, real] = True
        return input_ids, mask


def _check_tokenizer(tokenizer: Any, template: str, num_embeddings: int) -> None:
    vocabulary = tokenizer.get_vocab()
    image = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
    # Not known, each would fall apart into the letters that it is written with.
    for token in (*re.findall(r"<\|\w+\|>", template), *image):
        if token not in vocabulary:
            raise ValueError(f"the tokenizer does not know the control token {token}")
    if max(vocabulary.values()) >= num_embeddings:
        raise ValueError(
            f"the tokenizer counts up to {max(vocabulary.values())}, "
            f"the model knows {num_embeddings} tokens"
        )


def released_states(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states after the final norm, of a `Qwen2_5_VLTextModel`.

    Args:
        input_ids: `(batch, length)`; an image token is a token like any other.
        attention_mask: `(batch, length)`, zero at padding. No row attends to padding but padding
            itself.

    Returns:
        `(batch, length, width)`, rows at padding included.
    """
    # Counted from the first row, padding or not, and the same on all three axes.
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    states: Tensor = model(
        input_ids=input_ids,
        attention_mask=attention_mask.long(),
        position_ids=positions.expand(3, len(input_ids), -1),
        use_cache=False,
    ).last_hidden_state
    return states
