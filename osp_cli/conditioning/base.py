"""The one interface of all conditioning."""

from __future__ import annotations

from typing import Protocol

from PIL import Image
from torch import Tensor


class Conditioner(Protocol):
    """Turns prompts and pictures into `encoder_hidden_states`."""

    def encode(
        self,
        prompts: list[str],
        *,
        images: list[Image.Image] | None = None,
        image_latents: Tensor | None = None,
    ) -> Tensor:
        """Return the conditioning of a batch, `(batch, length, text_dim)`.

        The transformer attends to every row, without a mask.

        Args:
            prompts: One per sample; an empty string is a prompt like any other.
            images: One first frame per sample; None for text-to-video.
            image_latents: Normalised VAE latents of those frames, `(batch, channels, 1, h, w)`.
        """
        ...

    def notice(self, prompt: str, image: Image.Image | None = None) -> str | None:
        """A sentence for the user where the end of `prompt` does not fit, else None."""
        ...
