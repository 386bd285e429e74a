"""Models of random weights, built where they run; for `realtime_14b.py` and `training*.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    HeliosDMDScheduler,
    HeliosTransformer3DModel,
    WanTransformer3DModel,
)
from torch import Tensor, nn

from osp_cli.models.state_dict import kept_in_fp32
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel

TEXT_TOKENS = 512
_SMALL = {"num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 32, "ffn_dim": 64,
          "freq_dim": 16, "num_layers": 2}  # fmt: skip
_SMALL_VAE = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
# Wan2.1 1.3B; everything else is as in the 14B, whose numbers are the classes' own.
_FEW = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}


def helios(device: torch.device, *, tiny: bool) -> HeliosTransformer3DModel:
    """Helios 14B in bfloat16."""
    settings = {**_SMALL, "rope_dim": (8, 4, 4)} if tiny else {}
    return _built(lambda: HeliosTransformer3DModel(**settings), device)


def wan(device: torch.device, *, tiny: bool, small: bool = False) -> WanTransformer3DModel:
    """Wan2.1 14B, or 1.3B where it is `small`, in bfloat16."""
    settings = _SMALL if tiny else _FEW if small else {}
    return _built(lambda: WanTransformer3DModel(**settings), device)


def flash(device: torch.device, *, tiny: bool, small: bool = False) -> FlashI2VTransformer3DModel:
    """FlashI2V 14B, or 1.3B where it is `small`, in bfloat16; its branches are not zero."""
    settings = {**_SMALL, "num_layers": 4} if tiny else _FEW if small else {}
    model = _built(lambda: FlashI2VTransformer3DModel(**settings), device)
    for branch in (model.fourier_embedding, model.learnable_proj):
        for parameter in branch.parameters():
            parameter.data.normal_(std=0.02)
    return model


def autoencoder(
    device: torch.device, dtype: torch.dtype = torch.bfloat16, *, tiny: bool
) -> AutoencoderKLWan:
    """Wan's autoencoder."""
    return _built(lambda: AutoencoderKLWan(**(_SMALL_VAE if tiny else {})), device, dtype)


def use_channels_last(vae: Any) -> None:
    """Kernels of the decoder's convolutions as tensor cores like them; pictures follow."""
    for module in (*vae.decoder.modules(), vae.post_quant_conv):
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)


def stage_schedule() -> HeliosDMDScheduler:
    """Helios' own, of three stages."""
    return HeliosDMDScheduler(
        stages=3, stage_range=[0, 1 / 3, 2 / 3, 1], gamma=1 / 3, use_dynamic_shifting=True,
        time_shift_type="linear",
    )  # fmt: skip


def _built(
    make: Callable[[], Any], device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Any:
    """Drawn on the device, in its precision at once: in single a 14B would hardly fit."""
    usual = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = make()
    finally:
        torch.set_default_dtype(usual)
    for name, parameter in model.named_parameters():
        # As diffusers loads them: these lose too much otherwise.
        if kept_in_fp32(model, name):
            parameter.data = parameter.data.float()
    assert all(buffer.dtype != torch.bfloat16 for buffer in model.buffers()), "rounded positions"
    return model.eval().requires_grad_(False)


class Fp8Linear(nn.Module):
    """A linear layer whose product is computed in float8, with one scale for each side.

    Weights are rounded once, inputs at every call; both are scaled to the type's range.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        most = torch.finfo(torch.float8_e4m3fn).max
        scale = (linear.weight.abs().amax().float() / most).clamp(min=1e-12)
        self.register_buffer("weight", (linear.weight.float() / scale).to(torch.float8_e4m3fn))
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.most = most

    def forward(self, values: Tensor) -> Tensor:
        """As of the layer whose place it takes."""
        flat = values.reshape(-1, values.shape[-1])
        scale = (flat.abs().amax().float() / self.most).clamp(min=1e-12)
        small = (flat.float() / scale).to(torch.float8_e4m3fn)
        product: Tensor = torch._scaled_mm(
            small,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale,
            out_dtype=torch.bfloat16,
            # The units' own precision of sums, as others who measure this take it.
            use_fast_accum=small.is_cuda,
        )
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*values.shape[:-1], -1)


def use_fp8(transformer: Any) -> int:
    """Puts `Fp8Linear` in the place of every large layer of the blocks; says how many."""
    changed = 0
    for block in transformer.blocks:
        for name, module in list(block.named_modules()):
            # What float8 products are made for: sides that are multiples of 16.
            if isinstance(module, nn.Linear) and not any(side % 16 for side in module.weight.shape):
                block.set_submodule(name, Fp8Linear(module))
                changed += 1
    return changed
