"""Sampling of plain Wan models: text to video, without latent shifting and Fourier guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from osp_cli.pipelines.flash_i2v import Conditions, FlashI2VPipeline, SamplingInputs


class WanPipeline(FlashI2VPipeline):
    """The same order of operations over `WanTransformer3DModel`; the cutoff has no meaning here."""

    @torch.no_grad()
    def condition(self, inputs: SamplingInputs) -> Conditions:
        """Everything that depends on the prompts but not on the noise.

        Raises:
            ValueError: there is a picture, which this model has no way to see.
        """
        if inputs.image is not None:
            raise ValueError("a text-to-video model cannot be shown a picture")
        return super().condition(inputs)

    def predict(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        context: Tensor,
        conditions: Conditions,
        features: Tensor,
    ) -> Tensor:
        """v of one prompt; there are no Fourier features here."""
        dtype = self.transformer.dtype
        output: Tensor = self.transformer(
            hidden_states.to(dtype),
            timestep,
            context.to(dtype),
            return_dict=False,
            **self.transformer_arguments(conditions),
        )[0]
        return output

    def transformer_arguments(self, conditions: Conditions) -> dict[str, Tensor]:
        """What else the transformer is told, by argument name."""
        return {}
