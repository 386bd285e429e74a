"""The FlashI2V video transformer (paper, sections 3.3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config

# Pipelines look for the base class in the module of each component when they load it again.
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn

from osp_cli.models.latent_projector import LatentProjector
from osp_cli.models.positions import GRID_CHANNELS, grid_coordinates, sine_coordinates

__all__ = ["FlashI2VTransformer3DModel", "ModelMixin"]


class FlashI2VTransformer3DModel(WanTransformer3DModel):
    """Wan DiT with Fourier guidance and a latent projection (paper, Eq. 16-21).

    All arguments of `WanTransformer3DModel` keep their meaning; added are

    Args:
        conv3x3x3_proj: phi uses 3x3x3 kernels instead of 1x3x3.
        projection_channels: Channels inside phi.
        position_channels: Number of absolute sine coordinates that each token is told, a multiple
            of 6, beside five straight ones; 0 (all released checkpoints) adds none.
    """

    _keep_in_fp32_modules: ClassVar[list[str]] = [
        *WanTransformer3DModel._keep_in_fp32_modules,
        "learnable_proj",
    ]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = [
        *WanTransformer3DModel._skip_layerwise_casting_patterns,
        "fourier_embedding",
        "learnable_proj",
        "position_embedding",
    ]
    _no_split_modules: ClassVar[list[str]] = ["WanTransformerBlock", "LatentProjector"]

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        conv3x3x3_proj: bool = False,
        projection_channels: int = 64,
        position_channels: int = 0,
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
            rope_max_seq_len=rope_max_seq_len,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        if position_channels % 6:
            raise ValueError(f"position_channels must be a multiple of 6, got {position_channels}")
        inner_dim = num_attention_heads * attention_head_dim
        self.rope = FrameIndexedRotaryPosEmbed(attention_head_dim, patch_size, rope_max_seq_len)
        self.fourier_embedding = nn.Sequential(
            nn.Conv3d(in_channels, inner_dim, patch_size, patch_size),
            nn.Conv3d(inner_dim, inner_dim, 1),
        )
        self.learnable_proj = LatentProjector(in_channels, projection_channels, conv3x3x3_proj)
        if position_channels:
            self.position_embedding = nn.Linear(position_channels + GRID_CHANNELS, inner_dim)
        self._reset_fourier_embedding()

        # What the hook adds during one call of `forward`; never kept between calls.
        self._fourier_features: Tensor | None = None
        self.patch_embedding.register_forward_hook(self._add_conditions)

    def reset_branches(
        self, names: Sequence[str] = ("fourier_embedding", "learnable_proj")
    ) -> None:
        """Give FlashI2V branches their start values, which change nothing (Eq. 16-21).

        Also materialises them when they are on the meta device, as after plain Wan weights loaded.
        """
        for name in names:
            branch = self.get_submodule(name)
            if any(parameter.is_meta for parameter in branch.parameters()):
                branch.to_empty(device=self.patch_embedding.weight.device)
        if "fourier_embedding" in names:
            self._reset_fourier_embedding()
        if "learnable_proj" in names:
            self.learnable_proj.reset_parameters()

    def _reset_fourier_embedding(self) -> None:
        patch, mix = self.fourier_embedding
        nn.init.xavier_uniform_(patch.weight.flatten(1))
        nn.init.zeros_(patch.bias)
        # Zero start: before training, the model computes exactly what its T2V parent does.
        nn.init.zeros_(mix.weight)
        nn.init.zeros_(mix.bias)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        fourier_features: Tensor | None = None,
        frame_indices: Tensor | None = None,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Predict the velocity `epsilon - x` (paper, Eq. 19).

        Args:
            hidden_states: Shifted latents `z_t - phi(s)`, `(batch, channels, frames, h, w)`.
            timestep: 1000 sigma as a float, `(batch,)`, or `(batch, tokens)` where tokens differ
                (clean context frames are at 0; paper, section 7.1).
            encoder_hidden_states: Conditioning `(batch, length, text_dim)`; every row is attended
                to, there is no mask.
            fourier_features: High-frequency magnitudes of the first frame, shaped like
                `hidden_states` (Eq. 20). None leaves the branch out, which is the plain Wan model.
                Text-to-video on a FlashI2V checkpoint is not None but zeros: the trained biases of
                the branch still count.
            frame_indices: Position in time of each latent frame, `(frames,)` integers; None means
                0, 1, 2, ... A subset of a clip, or context before it, keeps its true places.
        """
        if fourier_features is not None and fourier_features.shape != hidden_states.shape:
            raise ValueError(
                f"fourier_features {tuple(fourier_features.shape)} must be shaped like "
                f"hidden_states {tuple(hidden_states.shape)}"
            )
        num_token_frames = hidden_states.shape[2] // self.config.patch_size[0]
        if frame_indices is not None and frame_indices.shape != (num_token_frames,):
            raise ValueError(
                f"frame_indices must be ({num_token_frames},), got {tuple(frame_indices.shape)}"
            )
        self._fourier_features = fourier_features
        self.rope.frame_indices = frame_indices
        try:
            return super().forward(
                hidden_states=hidden_states,
                timestep=timestep,
                encoder_hidden_states=encoder_hidden_states,
                encoder_hidden_states_image=encoder_hidden_states_image,
                return_dict=return_dict,
                attention_kwargs=attention_kwargs,
            )
        finally:
            self._fourier_features = None
            self.rope.frame_indices = None

    def _add_conditions(self, _module: nn.Module, _args: Any, tokens: Tensor) -> Tensor:
        """Add the Fourier branch (Eq. 21) and the absolute coordinates to the patch embedding."""
        if self._fourier_features is not None:
            weight = self.fourier_embedding[0].weight
            tokens = tokens + self.fourier_embedding(self._fourier_features.to(weight.dtype))
        if self.config.position_channels:
            weight = self.position_embedding.weight
            size, where = tuple(tokens.shape[2:]), {"frame_indices": self.rope.frame_indices}
            coordinates = torch.cat(
                [
                    sine_coordinates(
                        size, self.config.position_channels, **where, device=tokens.device
                    ),
                    grid_coordinates(
                        size, self.config.patch_size[2], **where, device=tokens.device
                    ),
                ],
                dim=-1,
            )
            embedded = self.position_embedding(coordinates.to(weight.dtype))
            tokens = tokens + embedded.permute(3, 0, 1, 2)
        return tokens


class FrameIndexedRotaryPosEmbed(WanRotaryPosEmbed):
    """Rotary positions whose time axis can follow given frame indices instead of 0, 1, 2, ..."""

    frame_indices: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, `(1, tokens, 1, head_dim)` each."""
        if self.frame_indices is None:
            return super().forward(hidden_states)
        frames, height, width = (
            size // patch
            for size, patch in zip(hidden_states.shape[2:], self.patch_size, strict=True)
        )
        indices = self.frame_indices.to(self.freqs_cos.device)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.max_seq_len:
            raise ValueError(f"frame_indices must lie in [0, {self.max_seq_len})")
        return (
            self._gather(self.freqs_cos, indices, frames, height, width),
            self._gather(self.freqs_sin, indices, frames, height, width),
        )

    def _gather(
        self, table: Tensor, indices: Tensor, frames: int, height: int, width: int
    ) -> Tensor:
        in_time, in_height, in_width = table.split([self.t_dim, self.h_dim, self.w_dim], dim=1)
        shape = (frames, height, width, -1)
        parts = [
            in_time[indices].view(frames, 1, 1, -1).expand(shape),
            in_height[:height].view(1, height, 1, -1).expand(shape),
            in_width[:width].view(1, 1, width, -1).expand(shape),
        ]
        return torch.cat(parts, dim=-1).reshape(1, frames * height * width, 1, -1)
