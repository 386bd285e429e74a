"""Classifier-free guidance."""

from __future__ import annotations

from torch import Tensor


def uses_guidance(guidance_scale: float) -> bool:
    """Whether the unconditional pass is needed at all: only above 1, as in the release."""
    return guidance_scale > 1.0


def classifier_free_guidance(cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
    """`v_uncond + scale (v_cond - v_uncond)`; phi(s) and Fourier features are equal in both."""
    return uncond + guidance_scale * (cond - uncond)
