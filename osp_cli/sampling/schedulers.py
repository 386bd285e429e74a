"""Time grids for flow matching."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

# VideoX-Fun builds its UniPC grid from a schedule of 1000 steps that ends just below pure noise.
_UNIPC_FIRST_SIGMA = 0.999


def euler_schedule(
    num_inference_steps: int, shift: float = 7.0, *, device: str | torch.device | None = None
) -> FlowMatchEulerDiscreteScheduler:
    """Euler on the released grid, `sigma = s l / (1 + (s - 1) l)`, `l = linspace(1, 0, N + 1)`.

    The returned scheduler is ready for `step`; its `timesteps` are `1000 sigma` as floats, which
    the model takes unrounded. Give `step` an fp32 prediction: it returns the dtype it is given.

    Raises:
        ValueError: No steps, or a shift that is not positive.
    """
    _check(num_inference_steps, shift)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    # Its own `set_timesteps(N)` ends at another last sigma (0.05 instead of 0.125 at shift 7 and
    # 50 steps). Unshifted sigmas without the final 0 give the released grid exactly.
    sigmas = np.linspace(1.0, 0.0, num_inference_steps + 1)[:-1].tolist()
    scheduler.set_timesteps(sigmas=sigmas, device=device)
    return scheduler


def unipc_schedule(
    num_inference_steps: int, shift: float = 3.0, *, device: str | torch.device | None = None
) -> UniPCMultistepScheduler:
    """Second-order UniPC on VideoX-Fun's grid: as `euler_schedule`, but `l` starts at 0.999.

    This is the "Flow_UniPC" of the stylized sampling (paper, section 6.4). The returned scheduler
    is ready for `step`, which wants every timestep once and in order; its `timesteps` are
    `1000 sigma` truncated to int64. One schedule serves one clip: it remembers earlier steps.

    Raises:
        ValueError: No steps, or a shift that is not positive.
    """
    _check(num_inference_steps, shift)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    # Its own `set_timesteps(N)` spaces from 1 to 0.001, up to 0.0028 away from VideoX-Fun's grid.
    sigmas = np.linspace(_UNIPC_FIRST_SIGMA, 0.0, num_inference_steps + 1)[:-1]
    scheduler.set_timesteps(sigmas=sigmas, device=device)
    # Truncated timesteps can repeat; looked up by value, the first step would then be left out.
    scheduler.set_begin_index(0)
    return scheduler


def _check(num_inference_steps: int, shift: float) -> None:
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    if not shift > 0:
        raise ValueError(f"shift must be positive, got {shift}")
