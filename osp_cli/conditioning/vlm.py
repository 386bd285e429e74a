"""Qwen2.5-VL as the conditioning of the transformer (paper, section 3.2, Eq. 1-5)."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from osp_cli.conditioning.chat import ChatWindow, cut_notice
from osp_cli.conditioning.image_tokens import image_tokens
from osp_cli.conditioning.prompts import USER_TEMPLATE, clean_prompt
from osp_cli.models.adapter import FeatureAdapter


class QwenVLConditioner:
    """The paper's multimodal conditioning, `c = [f_map(E_VL(T, I)); f_img(E_img(I_0))]` (Eq. 5).

    The vision-language forward is the genuine one: the pixels pass the vision tower. (The released
    inference code runs the text model alone and never sees the picture; its weights need that.)

    Args:
        model: `Qwen2_5_VLForConditionalGeneration` or `Qwen2_5_VLModel`, frozen.
        tokenizer: A fast tokenizer that knows the template's control tokens.
        image_processor: `Qwen2VLImageProcessorPil`. Joined with the tokenizer by hand, because the
            library's processor class needs torchvision for its video half.
        adapter: f_map of Eq. 2.
        image_adapter: f_img of Eq. 4; None leaves the visual branch out, as the release does.
        max_sequence_length: Rows L' of the semantic branch, template and picture included.
        template: Chat turn with `{image}` and `{prompt}`.
        image_token_patch: Edge of the square of latents in an image token, see `image_tokens`.
        image_token_positions: Whether image tokens carry their coordinates.
        device: Where it computes; None means where its weights are.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        adapter: FeatureAdapter,
        image_adapter: FeatureAdapter | None = None,
        *,
        max_sequence_length: int = 1024,
        template: str = USER_TEMPLATE,
        image_token_patch: int = 1,
        image_token_positions: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.model = getattr(model, "model", model)
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.adapter = adapter
        self.image_adapter = image_adapter
        self.max_sequence_length = max_sequence_length
        self.image_token_patch = image_token_patch
        self.image_token_positions = image_token_positions
        self._device = device
        self._window = ChatWindow(tokenizer, template, max_sequence_length)

    def encode(
        self,
        prompts: list[str],
        *,
        images: list[Image.Image] | None = None,
        image_latents: Tensor | None = None,
    ) -> Tensor:
        """Conditioning `(batch, max_sequence_length + image tokens, text_dim)`, see `Conditioner`.

        Without `image_latents`, or without an image adapter, there are no image tokens. With
        `image_latents` but without `images` (text-to-video) they are dropped: zero rows of the same
        length, as training drops them.

        Raises:
            ValueError: Another number of images than of prompts, or a picture whose tokens leave
                no room for a prompt.
        """
        states, mask = self.hidden_states(prompts, images)
        keep = None
        if images is None and image_latents is not None:
            keep = torch.zeros(len(prompts), dtype=torch.bool, device=states.device)
        return self.project(states, mask, image_latents, keep)

    def notice(self, prompt: str, image: Image.Image | None = None) -> str | None:
        """A sentence for the user where the end of `prompt` does not fit, else None."""
        count = 0
        if image is not None:
            pixels = self.image_processor(images=[image], return_tensors="pt")
            count = self._num_image_tokens(pixels["image_grid_thw"][0])
        return cut_notice(self._window.num_cut(clean_prompt(prompt), count))

    @torch.no_grad()
    def hidden_states(
        self, prompts: list[str], images: list[Image.Image] | None = None
    ) -> tuple[Tensor, Tensor]:
        """`F_VL` (Eq. 1), before any adapter; frozen, so training computes it once per sample.

        Returns:
            States `(batch, max_sequence_length, width)`, zero behind the text, and the mask of
            real rows `(batch, max_sequence_length)` bool.
        """
        inputs, mask = self.inputs(prompts, images)
        width = inputs[0].shape[1]
        device = self._device or self.model.device
        valid = multimodal_states(self.model, *(x if x is None else x.to(device) for x in inputs))
        states = valid.new_zeros(len(mask), self.max_sequence_length, valid.shape[-1])
        mask = mask.to(device)
        states[:, :width] = valid.masked_fill(~mask[:, :width, None], 0)
        return states, mask

    def inputs(
        self, prompts: list[str], images: list[Image.Image] | None = None
    ) -> tuple[tuple[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]:
        """What `multimodal_states` takes, cut to the longest row, and the full-length mask."""
        if images is not None and len(images) != len(prompts):
            raise ValueError(f"{len(images)} images for {len(prompts)} prompts")
        pixels: dict[str, Tensor] = {}
        counts = [0] * len(prompts)
        if images is not None:
            pixels = dict(self.image_processor(images=images, return_tensors="pt"))
            counts = [self._num_image_tokens(grid) for grid in pixels["image_grid_thw"]]
        rows = [self._token_ids(p, n) for p, n in zip(prompts, counts, strict=True)]
        # Run on the longest row only: what lies behind the text is not looked at.
        width = max(map(len, rows))
        input_ids = torch.full((len(rows), width), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros(len(rows), self.max_sequence_length, dtype=torch.bool)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = True
        picture = (pixels.get("pixel_values"), pixels.get("image_grid_thw"))
        return (input_ids, mask[:, :width], *picture), mask

    def project(
        self,
        states: Tensor,
        mask: Tensor,
        image_latents: Tensor | None = None,
        keep_image_tokens: Tensor | None = None,
    ) -> Tensor:
        """Map and join the branches (Eq. 2-5); gradients reach the adapters.

        Args:
            states: F_VL, `(batch, length, width)`.
            mask: Real rows of `states`; the others become zero, whatever the adapter's biases.
            image_latents: `(batch, channels, 1, height, width)`.
            keep_image_tokens: `(batch,)` bool; where False the image tokens are dropped, which
                means zero rows and an unchanged length. None keeps all.
        """
        mapped = self.adapter(states)
        mapped = mapped.masked_fill(~mask[..., None], 0)
        if image_latents is None or self.image_adapter is None:
            return mapped
        image_mapped = self.image_rows(image_latents)
        if keep_image_tokens is not None:
            image_mapped = image_mapped * keep_image_tokens[:, None, None].to(image_mapped.dtype)
        return torch.cat([mapped, image_mapped.to(mapped.dtype)], dim=1)

    def image_rows(self, image_latents: Tensor) -> Tensor:
        """The visual branch alone (Eq. 3-4), `(batch, image tokens, text_dim)`.

        Args:
            image_latents: as in `project`.

        Raises:
            ValueError: there is no image adapter.
        """
        if self.image_adapter is None:
            raise ValueError("without an image adapter there are no image tokens")
        tokens = image_tokens(
            image_latents, patch=self.image_token_patch, positions=self.image_token_positions
        )
        rows: Tensor = self.image_adapter(tokens)
        return rows

    def _num_image_tokens(self, grid_thw: Tensor) -> int:
        return int(grid_thw.prod()) // self.image_processor.merge_size**2

    def _token_ids(self, prompt: str, num_image_tokens: int) -> list[int]:
        return self._window.token_ids(clean_prompt(prompt), num_image_tokens)


def multimodal_states(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_values: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
) -> Tensor:
    """`F_VL = E_VL(T, I)` (paper, Eq. 1): last hidden states after the final norm.

    Args:
        model: A `Qwen2_5_VLModel`.
        input_ids: `(batch, length)`, every image token spelled out.
        attention_mask: `(batch, length)`, zero at padding.
        pixel_values, image_grid_thw: As the image processor gives them; None for text alone.

    Returns:
        `(batch, length, width)`; rows at padding mean nothing.
    """
    inputs: dict[str, Tensor] = {}
    if pixel_values is not None:
        inputs = {
            "pixel_values": pixel_values.to(model.dtype),
            "image_grid_thw": image_grid_thw,
            # Marks pictures for the two-dimensional positions; without it all would be 1-D.
            "mm_token_type_ids": (input_ids == model.config.image_token_id).int(),
        }
    states: Tensor = model(
        input_ids=input_ids, attention_mask=attention_mask.long(), use_cache=False, **inputs
    ).last_hidden_state
    return states
