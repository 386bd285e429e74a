"""Sampling of Wan's image-to-video models, which are given the first frame beside the noise.

They see 36 channels: the noisy latents, a mask that says which frames are known, and latents of
the picture followed by grey. The arithmetic is that of diffusers' `WanImageToVideoPipeline`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from osp_cli.conditioning.clip_vision import FirstFrameConditioner
from osp_cli.media.image import to_tensor_values
from osp_cli.models.latents import encode_latents
from osp_cli.pipelines.flash_i2v import Conditions, SamplingInputs
from osp_cli.pipelines.wan import WanPipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstFrameConditions(Conditions):
    """What stays the same over all steps.

    Attributes:
        known: mask and latents of what is known of the clip,
            `(1, 4 + channels, latent_frames, h, w)` fp32.
        image_embeds: CLIP's view of the picture, `(1, tokens, width)`.
    """

    known: Tensor
    image_embeds: Tensor


class WanImageToVideoPipeline(WanPipeline):
    """Text and a first frame to video; its conditioner is a `FirstFrameConditioner`."""

    @torch.no_grad()
    def condition(self, inputs: SamplingInputs) -> FirstFrameConditions:
        """Everything that depends on prompts and picture but not on the noise.

        Raises:
            ValueError: there is no picture.
        """
        if inputs.image is None:
            raise ValueError("an image-to-video model needs a picture")
        assert isinstance(self.conditioner, FirstFrameConditioner)
        texts = super().condition(replace(inputs, image=None))
        pixels = torch.from_numpy(to_tensor_values(inputs.image))[None]
        return FirstFrameConditions(
            **{field.name: getattr(texts, field.name) for field in fields(texts)},
            known=known_latents(self.vae, pixels, inputs.num_frames),
            image_embeds=self.conditioner.see([inputs.image]),
        )

    def model_input(self, latents: Tensor, conditions: Conditions) -> Tensor:
        """The noisy latents with what is known of the clip behind them."""
        assert isinstance(conditions, FirstFrameConditions)
        return torch.cat([latents, conditions.known], dim=1)

    def transformer_arguments(self, conditions: Conditions) -> dict[str, Tensor]:
        """The picture as CLIP sees it, equal for all prompts and for guidance."""
        assert isinstance(conditions, FirstFrameConditions)
        embeds = conditions.image_embeds.to(self.transformer.dtype)
        return {"encoder_hidden_states_image": embeds}


@torch.no_grad()
def known_latents(vae: Any, picture: Tensor, num_frames: int) -> Tensor:
    """Mask and latents of a clip of which only the first frame is known.

    Args:
        vae: a Wan VAE.
        picture: `(batch, 3, height, width)` in [-1, 1].
        num_frames: of the clip, `4k + 1`.

    Returns:
        `(batch, 4 + channels, 1 + (num_frames - 1) / 4, height / 8, width / 8)` fp32. The mask has
        one channel for each frame of a latent frame: all four are 1 in the first, 0 elsewhere.
    """
    batch, channels, height, width = picture.shape
    # Unknown frames are grey, not repeated: the model was trained to fill them in.
    unknown = picture.new_zeros(batch, channels, num_frames - 1, height, width)
    latents = encode_latents(vae, torch.cat([picture[:, :, None], unknown], dim=2))
    frames_per_latent = vae.config.scale_factor_temporal
    mask = latents.new_zeros(batch, frames_per_latent, *latents.shape[2:])
    mask[:, :, 0] = 1
    return torch.cat([mask, latents], dim=1)
