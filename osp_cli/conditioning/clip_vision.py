"""CLIP's view of a picture, which Wan's image-to-video models attend to beside the prompt."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from osp_cli.conditioning.base import Conditioner


class FirstFrameConditioner:
    """Prompts as another conditioner reads them, and pictures as CLIP sees them.

    Args:
        texts: Of the prompts; what it makes is passed on as it is.
        processor: `CLIPImageProcessor` or its Pillow twin, with the settings of the release.
        image_encoder: `CLIPVisionModel`, frozen.
    """

    def __init__(self, texts: Conditioner, processor: Any, image_encoder: Any) -> None:
        self.texts = texts
        self.processor = processor
        self.image_encoder = image_encoder

    def encode(
        self,
        prompts: list[str],
        *,
        images: list[Image.Image] | None = None,
        image_latents: Tensor | None = None,
    ) -> Tensor:
        """Conditioning of the prompts, see `Conditioner`."""
        return self.texts.encode(prompts, images=images, image_latents=image_latents)

    def notice(self, prompt: str, image: Image.Image | None = None) -> str | None:
        """A sentence for the user where the end of `prompt` does not fit, else None."""
        return self.texts.notice(prompt, image)

    @torch.no_grad()
    def see(self, images: list[Image.Image]) -> Tensor:
        """Hidden states of pictures, `(batch, 1 + patches, width)`, in the encoder's precision.

        Those before the last layer, without its norm, as the transformer was trained on.
        """
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        encoder = self.image_encoder
        output = encoder(
            pixel_values=pixels.to(encoder.device, encoder.dtype), output_hidden_states=True
        )
        states: Tensor = output.hidden_states[-2]
        return states
