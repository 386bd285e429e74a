"""Randomness that depends on nothing but names and numbers."""

from __future__ import annotations

import torch


def step_generator(seed: int, purpose: str, step: int) -> torch.Generator:
    """Randomness of one purpose at one step, or of one sample, whatever came before."""
    text = f"{seed}/{purpose}/{step}".encode()
    value = 1469598103934665603
    for byte in text:  # FNV-1a: stable across runs, unlike hash()
        value = ((value ^ byte) * 1099511628211) & ((1 << 63) - 1)
    return torch.Generator().manual_seed(value)
