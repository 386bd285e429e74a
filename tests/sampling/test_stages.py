"""Between two resolutions the noise stays white and of the right strength."""

from __future__ import annotations

import pytest
import torch
from diffusers import HeliosDMDScheduler
from torch.nn.functional import interpolate

from osp_cli.sampling.few_steps import OneSize, RisingSizes, TrainedStages, stage_scheduler
from osp_cli.sampling.schedulers import euler_schedule, segment_schedule, unipc_schedule
from osp_cli.sampling.stages import (
    GAMMA,
    block_noise,
    renoise,
    renoise_factors,
    shrunk_noise,
    shrunk_picture,
)

CPU = torch.device("cpu")


def drawing(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


def block_covariance(values):
    """Of the four numbers of each 2x2 block, `(4, 4)`."""
    blocks = values.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).movedim(-3, -2)
    return torch.cov(blocks.flatten(-2).reshape(-1, 4).T)


@pytest.mark.parametrize("gamma", [0.0, 0.2, GAMMA])
def test_numbers_of_a_block_repel_each_other(gamma):
    noise = block_noise((1, 4, 5, 128, 128), drawing(), gamma)
    wanted = (1 + gamma) * torch.eye(4) - gamma
    torch.testing.assert_close(block_covariance(noise), wanted, atol=0.02, rtol=0)
    # Different blocks know nothing of each other.
    beside = torch.corrcoef(torch.stack([noise[..., 1:-1:2].flatten(), noise[..., 2::2].flatten()]))
    assert abs(float(beside[0, 1])) < 0.01


def test_four_that_repel_each_other_most_add_up_to_nothing():
    blocks = block_noise((1, 2, 1, 8, 8), drawing()).unfold(-2, 2, 2).unfold(-2, 2, 2)
    torch.testing.assert_close(blocks.sum(dim=(-1, -2)), torch.zeros(1, 2, 1, 4, 4))


@pytest.mark.parametrize("signal", [0.0, 0.3337, 0.6663, 1.0])
def test_noise_is_white_after_a_change_of_size(signal):
    """Signal and noise still add up to 1, and the noise is white, as training has it."""
    noise = (1 - signal) * drawing(1)((1, 4, 5, 64, 64))
    alpha, _ = renoise_factors(signal)
    # The picture is flat, so that only its mean is moved.
    large = renoise(signal * 5.0 + noise, signal, drawing(2))
    assert float(large.mean()) == pytest.approx(alpha * signal * 5.0, abs=0.02)
    wanted = (1 - alpha * signal) ** 2 * torch.eye(4)
    torch.testing.assert_close(block_covariance(large), wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("stages", "stage", "alpha", "beta", "sigma"),
    [(3, 1, 0.6001, 0.6926, 0.7998), (3, 2, 0.7498, 0.4333, 0.5004), (2, 1, None, None, 0.6662)],
)
def test_published_numbers(stages, stage, alpha, beta, sigma):
    scheduler = stage_scheduler(stages)
    signal = 1 - scheduler.ori_start_sigmas[stage]
    ours = renoise_factors(signal)
    if alpha is not None:
        assert ours == pytest.approx((alpha, beta), abs=1e-4)
    assert 1 - ours[0] * signal == pytest.approx(sigma, abs=1e-4)
    assert scheduler.start_sigmas[stage] == pytest.approx(sigma, abs=1e-4)


def test_small_noise_is_noise_and_a_small_picture_is_the_picture():
    small = shrunk_noise(drawing()((1, 4, 5, 128, 128)), 2)
    assert small.shape == (1, 4, 5, 32, 32)
    assert float(small.std()) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(block_covariance(small), torch.eye(4), atol=0.05, rtol=0)
    flat = torch.full((1, 2, 3, 8, 8), 0.7)
    torch.testing.assert_close(shrunk_picture(flat, 2), torch.full((1, 2, 3, 2, 2), 0.7))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: block_noise((1, 1, 1, 3, 4), drawing()), "3 x 4"),
        (lambda: block_noise((1, 1, 1, 4, 4), drawing(), 0.5), "gamma"),
        (lambda: shrunk_noise(torch.zeros(1, 1, 1, 6, 4), 2), "3 x 2 latents cannot be halved"),
        (lambda: renoise_factors(1.2), "share"),
        (lambda: TrainedStages(stage_scheduler(3), (2, 2), drawing()), "2 stages"),
    ],
)
def test_what_cannot_be_staged_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_four_distilled_steps_take_fresh_noise():
    """Self-Forcing's: t 1000, 750, 500, 250 at shift 5, and the estimate between."""
    sampler = OneSize("dmd", 4, 5.0, drawing(3), CPU)
    sigmas = [1.0, 0.9375, 0.8333333, 0.625, 0.0]
    torch.testing.assert_close(sampler.timesteps, torch.tensor(sigmas[:-1]) * 1000)
    noise = drawing(3)
    x = latents = drawing(4)((1, 2, 3, 4, 4))
    assert sampler.enter(0, latents) is latents
    for index in range(4):
        velocity = 0.3 * x + index
        latents = sampler.step(index, velocity, latents)
        clip = x - sigmas[index] * velocity
        after = sigmas[index + 1]
        x = clip if after == 0 else (1 - after) * clip + after * noise((1, 2, 3, 4, 4))
        torch.testing.assert_close(latents, x)


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_ordinary_samplers_end_at_the_clip_of_a_straight_flow(name):
    """With the velocity of a straight line, any number of steps ends at its end."""
    sampler = OneSize(name, 6, 3.0, drawing(), CPU)
    clip, noise = drawing(5)((1, 2, 3, 4, 4)), drawing(6)((1, 2, 3, 4, 4))
    first = float(sampler.timesteps[0]) / 1000
    latents = first * noise + (1 - first) * clip
    for index in range(6):
        latents = sampler.step(index, noise - clip, latents)
    torch.testing.assert_close(latents, clip, atol=5e-3, rtol=0)


@pytest.mark.parametrize("twice", [False, True])
def test_stages_follow_the_straight_line_from_their_beginning(twice):
    """A model that knows the end of each stage gets there, whatever the steps between."""
    sampler = TrainedStages(stage_scheduler(2), (1, 3), drawing(7), twice=twice)
    assert sampler.num_steps == (8 if twice else 4)
    latents = drawing(8)((1, 2, 3, 8, 8))
    ends = [drawing(9)((1, 2, 3, 4, 4)), drawing(10)((1, 2, 3, 8, 8))]
    grid = HeliosDMDScheduler(
        stages=2, stage_range=[0, 0.5, 1], use_dynamic_shifting=True, time_shift_type="linear"
    )
    for stage, end in enumerate(ends):
        begin = latents = sampler.enter(stage, latents)
        # Of the smallest size at first, and then of the one that a stage comes from: the same here.
        tokens = 3 * 4 * 4 // 4
        mu = 0.5 + 0.65 * (tokens - 256) / 3840
        grid.set_timesteps((1, 3)[stage], stage, mu=mu, is_amplify_first_chunk=twice)
        assert torch.equal(sampler.timesteps, grid.timesteps.to(torch.int64))
        for index in range(len(sampler.timesteps)):
            # After the first step x = (1 - sigma) end + sigma begin; none of it is fresh noise.
            sigma = float(grid.sigmas[index])
            share = sigma if index else 1.0
            torch.testing.assert_close(latents, end + share * (begin - end))
            velocity = (latents - end) / sigma
            latents = sampler.step(index, velocity, latents)
        torch.testing.assert_close(latents, end)


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_ordinary_weights_are_shown_their_own_estimate_enlarged(name):
    sampler = RisingSizes(name, (2, 3), 3.0, drawing(11), CPU)
    clip, noise = drawing(12)((1, 2, 3, 4, 4)), drawing(13)((1, 2, 3, 8, 8))
    latents = sampler.enter(0, noise)
    torch.testing.assert_close(latents, shrunk_noise(noise, 1))
    make = euler_schedule if name == "euler" else unipc_schedule
    whole = make(5, 3.0)
    assert torch.equal(sampler.timesteps, whole.timesteps[:2])
    for index in range(2):
        latents = sampler.step(index, (latents - clip) / float(whole.sigmas[index]), latents)
    latents = sampler.enter(1, latents)
    # From the third step of the grid on, whose shift is one more.
    later = make(5, 4.0)
    assert torch.equal(sampler.timesteps, later.timesteps[2:])
    sigma = float(later.sigmas[2])
    large = interpolate(clip[0].transpose(0, 1), scale_factor=2, mode="bilinear")
    large = large.transpose(0, 1)[None]
    fresh = drawing(11)((1, 2, 3, 8, 8))
    torch.testing.assert_close(latents, (1 - sigma) * large + sigma * fresh, atol=1e-5, rtol=0)
    for index in range(3):
        velocity = (latents - large) / float(later.sigmas[2 + index])
        latents = sampler.step(index, velocity, latents)
    torch.testing.assert_close(latents, large, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [range(2, 2), range(3, 6), range(-1, 2)])
def test_steps_that_a_grid_does_not_have_are_refused(steps):
    with pytest.raises(ValueError, match="no steps of 5"):
        segment_schedule("euler", 5, steps, 3.0)
