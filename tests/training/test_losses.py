"""The objective against Eq. 22 written out, and against the recorded training step."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osp_cli.models.state_dict import load_transformer
from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.training.losses import (
    add_noise,
    continuation_loss,
    flash_loss,
    logit_normal_sigmas,
)

GOLDEN = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parents[1] / "golden" / "data")


@pytest.fixture
def sample():
    """x, eps, sigmas and phi(s) of two clips."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 5, 4, 6)
    return (
        torch.randn(shape, generator=generator),
        torch.randn(shape, generator=generator),
        torch.tensor([0.25, 0.9]),
        torch.randn(2, 3, 1, 4, 6, generator=generator),
    )


def curved(noisy):
    """A velocity that is neither linear nor equal in all frames."""
    return torch.tanh(noisy) + 0.1 * torch.arange(noisy.shape[2]).reshape(1, 1, -1, 1, 1)


def test_noise_runs_from_the_clip_to_pure_noise(sample):
    x, eps, _, _ = sample
    torch.testing.assert_close(add_noise(x, eps, torch.tensor(0.0)), x)
    torch.testing.assert_close(add_noise(x, eps, torch.tensor(1.0)), eps)
    halfway = add_noise(x.bfloat16(), eps.bfloat16(), torch.tensor(0.5))
    assert halfway.dtype == torch.float32


def test_loss_is_equation_22(sample):
    x, eps, sigmas, phi = sample
    total = 0.0
    for i in range(2):
        t = float(sigmas[i])
        z = (1 - t) * x[i] + t * eps[i]
        error = curved(z[None] - phi[i][None])[0] - (eps[i] - x[i])
        total += float((error**2).mean()) / 2
    assert flash_loss(curved, x, eps, sigmas, phi).item() == pytest.approx(total, rel=1e-5)


def test_the_shift_moves_the_input_and_not_the_target(sample):
    x, eps, sigmas, phi = sample
    seen = []

    def oracle(noisy):
        seen.append(noisy)
        return eps - x

    assert flash_loss(oracle, x, eps, sigmas, phi).item() == 0.0
    assert flash_loss(oracle, x, eps, sigmas, None).item() == 0.0
    torch.testing.assert_close(seen[1] - seen[0], phi.expand_as(x))
    # Off by a constant everywhere: its square, whatever the noise level.
    off = flash_loss(lambda _: eps - x + 0.3, x, eps, sigmas, phi)
    assert off.item() == pytest.approx(0.09, rel=1e-4)


def test_a_power_of_two_scores_the_clip_that_the_velocity_points_at(sample):
    x, eps, sigmas, phi = sample
    t = sigmas.reshape(-1, 1, 1, 1, 1)
    z = add_noise(x, eps, t)
    predicted = z - t * curved(z - phi)
    loss = flash_loss(curved, x, eps, sigmas, phi, 2.0)
    torch.testing.assert_close(loss, (predicted - x).square().mean())
    # The same of a continuation, over what it scores.
    noisy = z.clone()
    noisy[:, :, :2] = x[:, :, :2]
    later = (z - t * curved(noisy) - x)[:, :, 2:]
    loss = continuation_loss(curved, x, eps, sigmas, 2, 2.0)
    torch.testing.assert_close(loss, later.square().mean())


def test_gradients_reach_phi(sample):
    x, eps, sigmas, phi = sample
    phi.requires_grad_(True)
    flash_loss(curved, x, eps, sigmas, phi).backward()
    assert phi.grad.abs().min() > 0


@pytest.mark.parametrize("context_frames", [1, 3])
def test_continuation_sees_a_clean_context_and_scores_what_follows(sample, context_frames):
    x, eps, sigmas, _ = sample
    seen = []

    def velocity(noisy):
        seen.append(noisy.clone())
        return curved(noisy)

    loss = continuation_loss(velocity, x, eps, sigmas, context_frames)
    [noisy] = seen
    assert torch.equal(noisy[:, :, :context_frames], x[:, :, :context_frames])
    z = add_noise(x, eps, sigmas.reshape(-1, 1, 1, 1, 1))
    assert torch.equal(noisy[:, :, context_frames:], z[:, :, context_frames:])
    error = (curved(noisy) - (eps - x))[:, :, context_frames:]
    assert loss.item() == pytest.approx(float((error**2).mean()), rel=1e-6)


def test_what_is_said_about_the_context_costs_nothing(sample):
    x, eps, sigmas, _ = sample

    def wrong_in_context(noisy):
        velocity = curved(noisy)
        velocity[:, :, :2] += 100.0
        return velocity

    right = continuation_loss(curved, x, eps, sigmas, 2)
    assert torch.equal(continuation_loss(wrong_in_context, x, eps, sigmas, 2), right)
    assert continuation_loss(wrong_in_context, x, eps, sigmas, 1) > right + 100
    # Nor does the noise that the context would have had.
    eps[:, :, :2] += 5.0
    assert torch.equal(continuation_loss(curved, x, eps, sigmas, 2), right)


@pytest.mark.parametrize("count", [2, 7, 64])
def test_noise_levels_are_one_from_each_part_of_the_distribution(count):
    sigmas = logit_normal_sigmas(torch.Generator().manual_seed(count), count, 0.4, 1.2)
    assert sigmas.shape == (count,)
    assert 0.0 < sigmas.min() <= sigmas.max() < 1.0
    # Back through the cumulative distribution: one number in each of `count` equal parts.
    parts = torch.special.ndtr((torch.logit(sigmas) - 0.4) / 1.2) * count
    assert (parts + 1e-3).floor().int().tolist() == list(range(count))


def test_noise_levels_follow_the_seed_and_the_distribution():
    def draw(seed, *moments):
        return logit_normal_sigmas(torch.Generator().manual_seed(seed), 512, *moments)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    for mean, std in ((0.0, 1.0), (0.4, 1.2)):
        logits = torch.logit(draw(3, mean, std))
        assert logits.mean().item() == pytest.approx(mean, abs=0.02)
        assert logits.std().item() == pytest.approx(std, abs=0.03)


@pytest.mark.skipif(not (GOLDEN / "training.json").exists(), reason="this set has no fixture 5")
@pytest.mark.parametrize("case", ["plain", "shift3", "dynamic"])
def test_the_recorded_training_step(case):
    facts = json.loads((GOLDEN / "training.json").read_text())["tolerance"]
    tensors = load_file(GOLDEN / "training.safetensors")
    model = load_transformer(
        GOLDEN / "transformer.weights.safetensors", config=GOLDEN / "transformer.config.json"
    )
    sigmas = tensors[f"{case}.sigmas"].flatten()
    seen = []

    def velocity(noisy):
        seen.append(noisy)
        features = fourier_features(tensors["start_frame_latents"], 0.1, noisy.shape[2])
        return model(noisy, 1000 * sigmas, tensors["ctx"], fourier_features=features).sample

    with torch.no_grad():
        projected = project_first_frame(model, tensors["start_frame_latents"])
        loss = flash_loss(velocity, tensors["latents"], tensors["noise"], sigmas, projected)
    difference = (seen[0] - tensors[f"{case}.x_t"]).abs().max().item()
    assert difference <= facts["x_t_fp32_max_abs"]
    assert loss.item() == pytest.approx(tensors[f"{case}.loss"].item(), rel=facts["loss_rel"])
