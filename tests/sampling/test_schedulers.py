"""The released Euler grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osp_cli.sampling.schedulers import euler_schedule


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.floats(0.5, 12))
def test_the_grid_is_the_formula(num_steps, shift):
    scheduler = euler_schedule(num_steps, shift)
    linear = [1 - step / num_steps for step in range(num_steps + 1)]
    expected = [shift * x / (1 + (shift - 1) * x) for x in linear]
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(expected), atol=1e-6, rtol=0)
    assert scheduler.sigmas[-1] == 0
    assert len(scheduler.timesteps) == num_steps
    torch.testing.assert_close(scheduler.timesteps, 1000 * scheduler.sigmas[:-1])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 20), st.floats(0.5, 12))
def test_the_true_velocity_leads_from_noise_to_the_clip(num_steps, shift):
    clip, noise = torch.randn(2, 1, 3, 2, 4, 4).unbind()
    latents, scheduler = noise, euler_schedule(num_steps, shift)
    for timestep in scheduler.timesteps:
        latents = scheduler.step(noise - clip, timestep, latents, return_dict=False)[0]
    torch.testing.assert_close(latents, clip, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 7.0), "at least 1"),
        ((4, 0.0), "positive"),
        ((4, -1.0), "positive"),
        ((4, math.nan), "positive"),
    ],
)
def test_impossible_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        euler_schedule(*arguments)
