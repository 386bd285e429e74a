"""Time grids for flow matching."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

# VideoX-Fun builds its UniPC grid from a schedule of 1000 steps that ends just below pure noise.
_UNIPC_FIRST_SIGMA = 0.999


def euler_schedule(
    num_inference_steps: int,
    shift: float = 7.0,
    *,
    device: str | torch.device | None = None,
    start: float = 1.0,
) -> FlowMatchEulerDiscreteScheduler:
    """Euler on the released grid, `sigma = s l / (1 + (s - 1) l)`, `l = linspace(1, 0, N + 1)`.

    With another `start`, l begins there: the end of the way, for a video that is only partly noise.

    The returned scheduler is ready for `step`; its `timesteps` are `1000 sigma` as floats, which
    the model takes unrounded. Give `step` an fp32 prediction: it returns the dtype it is given.

    Raises:
        ValueError: No steps, a shift that is not positive, or a start outside of (0, 1].
    """
    _check(num_inference_steps, shift, start)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    # Its own `set_timesteps(N)` ends at another last sigma (0.05 instead of 0.125 at shift 7 and
    # 50 steps). Unshifted sigmas without the final 0 give the released grid exactly.
    sigmas = np.linspace(start, 0.0, num_inference_steps + 1)[:-1].tolist()
    scheduler.set_timesteps(sigmas=sigmas, device=device)
    return scheduler


def unipc_schedule(
    num_inference_steps: int,
    shift: float = 3.0,
    *,
    device: str | torch.device | None = None,
    start: float = 1.0,
) -> UniPCMultistepScheduler:
    """Second-order UniPC on VideoX-Fun's grid: as `euler_schedule`, but `l` starts at 0.999.

    An earlier `start` is taken as it is.

    This is the "Flow_UniPC" of the stylized sampling (paper, section 6.4). The returned scheduler
    is ready for `step`, which wants every timestep once and in order; its `timesteps` are
    `1000 sigma` truncated to int64. One schedule serves one clip: it remembers earlier steps.

    Raises:
        ValueError: No steps, a shift that is not positive, or a start outside of (0, 1].
    """
    _check(num_inference_steps, shift, start)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    # Its own `set_timesteps(N)` spaces from 1 to 0.001, up to 0.0028 away from VideoX-Fun's grid.
    sigmas = np.linspace(min(start, _UNIPC_FIRST_SIGMA), 0.0, num_inference_steps + 1)[:-1]
    scheduler.set_timesteps(sigmas=sigmas, device=device)
    # Truncated timesteps can repeat; looked up by value, the first step would then be left out.
    scheduler.set_begin_index(0)
    return scheduler


def segment_schedule(
    sampler: str,
    total: int,
    steps: range,
    shift: float,
    *,
    device: str | torch.device | None = None,
) -> FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler:
    """Some of a grid's steps, with a shift of their own; the last of them ends at 0.

    Args:
        sampler: `euler` or `unipc`.
        total: steps of the whole grid.
        steps: which of them, one after the other.
        shift: of these.
        device: of the latents.

    Raises:
        ValueError: they are no steps of that grid, or a shift that is not positive.
    """
    if not (steps and 0 <= steps[0] <= steps[-1] < total):
        raise ValueError(f"{steps} are no steps of {total}")
    _check(total, shift, 1.0)
    first = _UNIPC_FIRST_SIGMA if sampler == "unipc" else 1.0
    line = np.linspace(first, 0.0, total + 1)[steps.start : steps.stop]
    if sampler != "unipc":
        euler = FlowMatchEulerDiscreteScheduler(shift=shift)
        euler.set_timesteps(sigmas=line.tolist(), device=device)
        return euler
    unipc = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    unipc.set_timesteps(sigmas=line, device=device)
    unipc.set_begin_index(0)
    return unipc


def solver_state(
    scheduler: FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler,
) -> dict[str, Tensor]:
    """What a scheduler remembers of the steps it has made, besides their number.

    Together with the latents it lets another process go on to the very same bits. Euler remembers
    nothing; UniPC keeps its order, two predictions of the clip and the sample before its last step.

    Returns:
        Tensors that safetensors can hold, on the scheduler's device and not copied; empty before
        the first step.
    """
    if not isinstance(scheduler, UniPCMultistepScheduler) or scheduler.last_sample is None:
        return {}
    orders = [scheduler.lower_order_nums, scheduler.this_order]
    state = {"orders": torch.tensor(orders), "last_sample": scheduler.last_sample}
    remembered = zip(scheduler.model_outputs, scheduler.timestep_list, strict=True)
    # The oldest places are empty after the first steps.
    for place, (output, timestep) in enumerate(remembered):
        if output is not None:
            state[f"model_outputs.{place}"] = output
            state[f"timestep_list.{place}"] = torch.as_tensor(timestep)
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def restore_solver(
    scheduler: FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler,
    step: int,
    state: Mapping[str, Tensor],
) -> None:
    """Make a new scheduler go on after `step` steps that another one with its settings has made.

    Args:
        scheduler: From `euler_schedule` or `unipc_schedule`, on the device of the latents.
        step: Steps made, 0 to all.
        state: From `solver_state` after that step.

    Raises:
        ValueError: There is no such step, or the state belongs to another sampler.
    """
    total = len(scheduler.timesteps)
    if not 0 <= step <= total:
        raise ValueError(f"cannot go on after step {step} of {total}")
    remembers = isinstance(scheduler, UniPCMultistepScheduler) and step > 0
    # After the last step nobody asks any more what was remembered.
    if bool(state) != remembers and (state or step < total):
        raise ValueError(f"the sampler's state does not belong to {type(scheduler).__name__}")
    # Taken up by the next call of `step`, which no longer looks for its timestep in the grid.
    scheduler.set_begin_index(step)
    scheduler._step_index = None
    if state:
        _restore_unipc(scheduler, state)


def _restore_unipc(scheduler: UniPCMultistepScheduler, state: Mapping[str, Tensor]) -> None:
    device = scheduler.timesteps.device
    newest = scheduler.config.solver_order - 1
    needed = {"orders", "last_sample", f"model_outputs.{newest}", f"timestep_list.{newest}"}
    if missing := sorted(needed - state.keys()):
        raise ValueError(f"the sampler's state lacks {', '.join(missing)}")

    def remembered(name: str) -> list[Tensor | None]:
        places = [state.get(f"{name}.{place}") for place in range(newest + 1)]
        return [None if tensor is None else tensor.to(device) for tensor in places]

    scheduler.lower_order_nums, scheduler.this_order = state["orders"].tolist()
    scheduler.last_sample = state["last_sample"].to(device)
    scheduler.model_outputs = remembered("model_outputs")
    scheduler.timestep_list = remembered("timestep_list")


def _check(num_inference_steps: int, shift: float, start: float) -> None:
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    if not shift > 0:
        raise ValueError(f"shift must be positive, got {shift}")
    if not 0 < start <= 1:
        raise ValueError(f"start must lie in (0, 1], got {start}")
