"""Time grids for flow matching."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler


def euler_schedule(
    num_inference_steps: int, shift: float = 7.0, *, device: str | torch.device | None = None
) -> FlowMatchEulerDiscreteScheduler:
    """Euler on the released grid, `sigma = s l / (1 + (s - 1) l)`, `l = linspace(1, 0, N + 1)`.

    The returned scheduler is ready for `step`; its `timesteps` are `1000 sigma` as floats, which
    the model takes unrounded. Give `step` an fp32 prediction: it returns the dtype it is given.

    Raises:
        ValueError: No steps, or a shift that is not positive.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    if not shift > 0:
        raise ValueError(f"shift must be positive, got {shift}")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    # Its own `set_timesteps(N)` ends at another last sigma (0.05 instead of 0.125 at shift 7 and
    # 50 steps). Unshifted sigmas without the final 0 give the released grid exactly.
    sigmas = np.linspace(1.0, 0.0, num_inference_steps + 1)[:-1].tolist()
    scheduler.set_timesteps(sigmas=sigmas, device=device)
    return scheduler
