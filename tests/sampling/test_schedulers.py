"""The released Euler grid, and VideoX-Fun's for UniPC."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osp_cli.sampling.schedulers import euler_schedule, unipc_schedule


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


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.floats(0.5, 12))
def test_the_unipc_grid_starts_below_pure_noise(num_steps, shift):
    scheduler = unipc_schedule(num_steps, shift)
    linear = [0.999 * (1 - step / num_steps) for step in range(num_steps + 1)]
    expected = [shift * x / (1 + (shift - 1) * x) for x in linear]
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(expected), atol=1e-6, rtol=0)
    assert scheduler.sigmas[-1] == 0
    # Truncated, so at most one below; where 1000 sigma is nearly whole, rounding may lift it.
    below = 1000 * scheduler.sigmas[:-1] - scheduler.timesteps
    assert ((below > -1e-3) & (below < 1 + 1e-3)).all()
    assert scheduler.timesteps.dtype == torch.int64


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 20), st.floats(0.5, 12))
def test_unipc_follows_the_true_velocity_to_the_clip(num_steps, shift):
    clip, noise = torch.randn(2, 1, 3, 2, 4, 4).unbind()
    scheduler = unipc_schedule(num_steps, shift)
    start = scheduler.sigmas[0]
    latents = (1 - start) * clip + start * noise
    for timestep in scheduler.timesteps:
        latents = scheduler.step(noise - clip, timestep, latents, return_dict=False)[0]
    torch.testing.assert_close(latents, clip, atol=1e-4, rtol=1e-4)


def test_unipc_is_nearer_to_a_curved_path_than_euler():
    # dx/dsigma = x, so the exact end of the grid is exp(-sigma_0).
    def error(make_schedule):
        latents, scheduler = torch.ones(1, 1, 1, 1, 1), make_schedule(10, 3.0)
        exact = torch.exp(-scheduler.sigmas[0])
        for timestep in scheduler.timesteps:
            latents = scheduler.step(latents, timestep, latents, return_dict=False)[0]
        return (latents - exact).abs().item()

    assert error(unipc_schedule) < error(euler_schedule) / 2


def test_unipc_begins_at_its_first_step_where_timesteps_repeat():
    scheduler = unipc_schedule(200, 12.0)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    latents = torch.zeros(1, 1, 1, 1, 1)
    moved = scheduler.step(latents + 1, scheduler.timesteps[0], latents, return_dict=False)[0]
    first = scheduler.sigmas[1] - scheduler.sigmas[0]
    torch.testing.assert_close(moved, latents + first)


@pytest.mark.parametrize("make_schedule", [euler_schedule, unipc_schedule])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 7.0), "at least 1"),
        ((4, 0.0), "positive"),
        ((4, -1.0), "positive"),
        ((4, math.nan), "positive"),
    ],
)
def test_impossible_grids_are_refused(make_schedule, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(*arguments)
