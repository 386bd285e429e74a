"""Samplers of one chunk of a stream: few distilled steps, or ordinary ones, at rising sizes.

    one resolution     `dmd`, `euler` or `unipc` on the grid of `schedulers`      `OneSize`
    weights for stages `HeliosDMDScheduler`'s grid for each of them               `TrainedStages`
    ordinary weights   an estimate of the clip, enlarged and noised again         `RisingSizes`

Each takes chunks of `(1, channels, frames, h, w)` in fp32, and all randomness from the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from osp_cli.sampling.schedulers import euler_schedule, segment_schedule, unipc_schedule
from osp_cli.sampling.stages import Draw, enlarged, renoise, shrunk_noise

if TYPE_CHECKING:
    from diffusers import HeliosDMDScheduler

# Of diffusers' shift by length: 0.5 at 256 tokens, 1.15 at 4096.
_SHIFT_AT = ((256, 0.5), (4096, 1.15))


class ChunkSampler(Protocol):
    """How one chunk gets from noise to latents.

    Attributes:
        num_steps: of all stages.
        timesteps: of the present stage, 1000 sigma or what the model was taught, on the CPU.
    """

    num_steps: int
    timesteps: Tensor

    @property
    def num_stages(self) -> int:
        """Resolutions."""
        ...

    def enter(self, stage: int, latents: Tensor) -> Tensor:
        """What a stage begins with.

        Args:
            stage: 0 first, then one after the other.
            latents: white noise at full size before the first stage, afterwards what the last left.
        """
        ...

    def step(self, index: int, velocity: Tensor, latents: Tensor) -> Tensor:
        """The latents after step `index` of this stage, in fp32."""
        ...


class OneSize:
    """One resolution.

    Args:
        sampler: `euler`, `unipc`, or `dmd`: after each step, the clip it estimates is noised again
            with fresh noise, `x <- (1 - sigma') x0 + sigma' e`, and the last one is the clip.
        num_steps: how many.
        shift: of the grid; four steps with 5 are at sigma 1, .9375, .8333 and .625.
        draw: of fresh noise.
        device: of the latents.
    """

    num_stages = 1

    def __init__(
        self, sampler: str, num_steps: int, shift: float, draw: Draw, device: torch.device
    ) -> None:
        self.num_steps = num_steps
        self._draw = draw
        self._is_distilled = sampler == "dmd"
        make = unipc_schedule if sampler == "unipc" else euler_schedule
        self._scheduler = make(num_steps, shift, device=device)
        # On the host, so that no step waits for the device.
        self.timesteps = self._scheduler.timesteps.cpu()
        self._sigmas = [float(sigma) for sigma in self._scheduler.sigmas]

    def enter(self, stage: int, latents: Tensor) -> Tensor:
        """Noise is what it begins with."""
        return latents

    def step(self, index: int, velocity: Tensor, latents: Tensor) -> Tensor:
        """As in `ChunkSampler`."""
        if not self._is_distilled:
            timestep = self._scheduler.timesteps[index]
            stepped: Tensor = self._scheduler.step(velocity, timestep, latents, return_dict=False)[
                0
            ]
            return stepped
        estimate = latents - self._sigmas[index] * velocity
        sigma = self._sigmas[index + 1]
        if sigma == 0:
            return estimate
        return (1 - sigma) * estimate + sigma * self._draw(tuple(latents.shape)).to(latents)


class TrainedStages:
    """Stages of rising resolution, of weights that were made for them.

    Within a stage x goes from the stage's own beginning to its end; no fresh noise comes in:
    `x_end = x - sigma v`, `x <- (1 - sigma') x_end + sigma' x_begin`, and the last is x_end.

    Args:
        scheduler: of at least two stages; `stage_scheduler` makes one.
        steps: of each stage.
        draw: of the block noise between two stages.
        patch: latent frames, rows and columns of a token.
        twice: each stage has twice its steps, as in the first chunk of a stream.

    Raises:
        ValueError: another number of stages than the scheduler has.
    """

    def __init__(
        self,
        scheduler: HeliosDMDScheduler,
        steps: Sequence[int],
        draw: Draw,
        patch: Sequence[int] = (1, 2, 2),
        *,
        twice: bool = False,
    ) -> None:
        if scheduler.config.stages != len(steps) or len(steps) < 2:
            raise ValueError(
                f"steps for {len(steps)} stages do not suit a schedule of {scheduler.config.stages}"
            )
        self.num_stages = len(steps)
        self.num_steps = sum(steps) * (2 if twice else 1)
        self.timesteps = torch.empty(0)
        self._scheduler = scheduler
        self._steps = tuple(steps)
        self._draw = draw
        self._patch = int(np.prod(patch))
        self._twice = twice
        self._begin = torch.empty(0)

    def enter(self, stage: int, latents: Tensor) -> Tensor:
        """As in `ChunkSampler`."""
        scheduler: Any = self._scheduler
        if stage == 0:
            begin = shrunk_noise(latents, self.num_stages - 1)
        else:
            signal = 1 - scheduler.ori_start_sigmas[stage]
            begin = renoise(latents, signal, self._draw, scheduler.config.gamma)
        # As published: from the second stage on, the shift is that of the size it comes from.
        entered = latents if stage else begin
        tokens = entered.shape[2] * entered.shape[3] * entered.shape[4] // self._patch
        scheduler.set_timesteps(
            self._steps[stage], stage, mu=length_shift(tokens), is_amplify_first_chunk=self._twice
        )
        # Whole numbers are what these weights were taught.
        self.timesteps = scheduler.timesteps.to(torch.int64)
        self._begin = begin
        return begin

    def step(self, index: int, velocity: Tensor, latents: Tensor) -> Tensor:
        """As in `ChunkSampler`."""
        scheduler: Any = self._scheduler
        stepped: Tensor = scheduler.step(
            velocity,
            scheduler.timesteps[index],
            latents,
            return_dict=False,
            cur_sampling_step=index,
            dmd_noisy_tensor=self._begin,
            dmd_sigmas=scheduler.sigmas,
            dmd_timesteps=scheduler.timesteps,
            all_timesteps=scheduler.timesteps,
        )[0]
        return stepped


class RisingSizes:
    """Rising sizes for weights that know nothing of stages.

    The steps are those of one grid. Between two sizes the clip is estimated, `x0 = x - sigma v`,
    enlarged, and noised again to the next step's level, where the grid is shifted by 1 more: a
    larger picture wants more noise for the same loss of detail.

    Args:
        sampler: `euler` or `unipc`, which begins anew at each size.
        steps: at each size.
        shift: of the first size's grid.
        draw: of fresh noise.
        device: of the latents.
    """

    def __init__(
        self, sampler: str, steps: Sequence[int], shift: float, draw: Draw, device: torch.device
    ) -> None:
        self.num_stages = len(steps)
        self.num_steps = sum(steps)
        self.timesteps = torch.empty(0)
        self._sampler = sampler
        self._steps = tuple(steps)
        self._shift = shift
        self._draw = draw
        self._device = device
        self._scheduler: Any = None
        self._estimate = torch.empty(0)

    def enter(self, stage: int, latents: Tensor) -> Tensor:
        """As in `ChunkSampler`."""
        before = sum(self._steps[:stage])
        self._scheduler = segment_schedule(
            self._sampler,
            self.num_steps,
            range(before, before + self._steps[stage]),
            self._shift + stage,
            device=self._device,
        )
        self.timesteps = self._scheduler.timesteps.cpu()
        if stage == 0:
            return shrunk_noise(latents, self.num_stages - 1)
        # What the last step of the smaller size led to is not gone on from: it ended at 0.
        clip, sigma = enlarged(self._estimate), float(self._scheduler.sigmas[0])
        return (1 - sigma) * clip + sigma * self._draw(tuple(clip.shape)).to(clip)

    def step(self, index: int, velocity: Tensor, latents: Tensor) -> Tensor:
        """As in `ChunkSampler`."""
        self._estimate = latents - float(self._scheduler.sigmas[index]) * velocity
        timestep = self._scheduler.timesteps[index]
        stepped: Tensor = self._scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        return stepped


def stage_scheduler(stages: int) -> HeliosDMDScheduler:
    """The schedule of equal shares of the flow, shifted by the length of each stage."""
    # Only here: one resolution needs no such schedule.
    from diffusers import HeliosDMDScheduler

    return HeliosDMDScheduler(
        stages=stages,
        stage_range=[stage / stages for stage in range(stages + 1)],
        use_dynamic_shifting=True,
        time_shift_type="linear",
    )


def length_shift(tokens: int) -> float:
    """mu of a stage of so many noise tokens: a line through 0.5 at 256 and 1.15 at 4096."""
    (low, least), (high, most) = _SHIFT_AT
    slope = (most - least) / (high - low)
    return tokens * slope + (least - slope * low)
