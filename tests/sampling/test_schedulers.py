"""The released Euler grid, and VideoX-Fun's for UniPC."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from osp_cli.sampling.schedulers import (
    euler_schedule,
    restore_solver,
    solver_state,
    unipc_schedule,
)


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
@given(st.integers(1, 60), st.floats(0.5, 12), st.floats(0.01, 1))
def test_a_grid_may_begin_on_the_way(num_steps, shift, start):
    for make, first in ((euler_schedule, 1.0), (unipc_schedule, 0.999)):
        scheduler = make(num_steps, shift, start=start)
        begins = min(start, first)
        linear = [begins * (1 - step / num_steps) for step in range(num_steps + 1)]
        expected = [shift * x / (1 + (shift - 1) * x) for x in linear]
        torch.testing.assert_close(scheduler.sigmas, torch.tensor(expected), atol=1e-6, rtol=0)
        assert len(scheduler.timesteps) == num_steps


@pytest.mark.parametrize("start", [0.0, -0.1, 1.1, float("nan")])
def test_a_grid_cannot_begin_outside_of_it(start):
    for make in (euler_schedule, unipc_schedule):
        with pytest.raises(ValueError, match="start must lie"):
            make(4, 3.0, start=start)


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


def curved(latents, timestep):
    """A velocity that depends on place and time, so that every remembered prediction counts."""
    return torch.tanh(latents * 1.7) * (0.2 + timestep.float() / 1000) + latents.roll(1, -1)


def trajectory(scheduler, latents, first=0, last=None):
    """The latents after each of the steps from `first` up to `last`."""
    seen = []
    for timestep in scheduler.timesteps[first:last]:
        velocity = curved(latents, timestep)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        seen.append(latents)
    return seen


both_samplers = pytest.mark.parametrize("make_schedule", [euler_schedule, unipc_schedule])


@both_samplers
@pytest.mark.parametrize("shift", [3.0, 12.0])
def test_a_run_resumes_to_the_same_bits_after_any_step(make_schedule, shift):
    noise = torch.randn(1, 4, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    for num_steps in range(1, 13):
        whole = trajectory(make_schedule(num_steps, shift), noise)
        for stop in range(num_steps + 1):
            first = make_schedule(num_steps, shift)
            begun = trajectory(first, noise, last=stop)
            # Through a file, as in another process.
            latents = begun[-1] if begun else noise
            kept = load(save({"latents": latents, **solver_state(first)}))
            resumed = make_schedule(num_steps, shift)
            latents = kept.pop("latents")
            restore_solver(resumed, stop, kept)
            rest = trajectory(resumed, latents, first=stop)
            assert len(begun) + len(rest) == num_steps
            for got, expected in zip(rest, whole[stop:], strict=True):
                assert torch.equal(got, expected), (num_steps, stop)


def test_what_is_saved_of_unipc_is_needed():
    noise = torch.randn(1, 4, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    whole = trajectory(unipc_schedule(8), noise)
    first = unipc_schedule(8)
    latents = trajectory(first, noise, last=4)[-1]
    state = solver_state(first)
    for name in ("last_sample", "model_outputs.0", "model_outputs.1"):
        resumed = unipc_schedule(8)
        restore_solver(resumed, 4, {**state, name: state[name] + 0.01})
        assert not torch.equal(trajectory(resumed, latents, first=4)[-1], whole[-1]), name


def test_a_repeated_timestep_is_no_reason_to_lose_count():
    # Truncated timesteps repeat here, so looking one up would go on at the wrong step.
    noise = torch.randn(1, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    first, whole = unipc_schedule(200, 12.0), trajectory(unipc_schedule(200, 12.0), noise)
    latents = trajectory(first, noise, last=1)[-1]
    resumed = unipc_schedule(200, 12.0)
    restore_solver(resumed, 1, solver_state(first))
    assert torch.equal(trajectory(resumed, latents, first=1)[-1], whole[-1])


@both_samplers
@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_that_does_not_exist_is_refused(make_schedule, step):
    with pytest.raises(ValueError, match=f"after step {step} of 4"):
        restore_solver(make_schedule(4), step, {})


@both_samplers
def test_a_finished_run_needs_no_state(make_schedule):
    scheduler = make_schedule(4)
    restore_solver(scheduler, 4, {})
    assert trajectory(scheduler, torch.zeros(1), first=4) == []


def test_the_state_of_another_sampler_is_refused():
    first = unipc_schedule(4)
    trajectory(first, torch.ones(1, 1, 1, 2, 2), last=2)
    state = solver_state(first)
    with pytest.raises(ValueError, match="does not belong to FlowMatchEuler"):
        restore_solver(euler_schedule(4), 2, state)
    with pytest.raises(ValueError, match="does not belong to UniPC"):
        restore_solver(unipc_schedule(4), 2, {})
    del state["last_sample"]
    with pytest.raises(ValueError, match="lacks last_sample"):
        restore_solver(unipc_schedule(4), 2, state)
