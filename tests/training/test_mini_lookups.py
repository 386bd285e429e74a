"""How the lookups are fitted."""

from __future__ import annotations

import pytest
import torch

from osp_cli.models.mini_stream import GUIDE_SCALE, stream_layout
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.training.losses import add_noise
from osp_cli.training.mini_lookups import Sample, fit_lookups

CHANNELS = 4


@pytest.fixture
def started(start_model):
    return start_model()


def samples_of(model, conditioner, clips):
    """Noisy samples of (first frame, clip), the same at every call."""
    state, mask = conditioner.hidden_states(["a cat"])

    def samples():
        generator = torch.Generator().manual_seed(2)
        for first, clip in clips:
            context = conditioner.project(state, mask, first)
            context[0, mask.sum() - 1, CHANNELS + 4] = 1.0  # as if language had been fitted
            noise = torch.randn(clip.shape, generator=generator)
            sigmas = torch.tensor([0.8])

            def velocity(z, context=context):
                with torch.no_grad():
                    return model(z, torch.tensor([800.0]), context, torch.zeros_like(z)).sample

            yield Sample(clip, add_noise(clip, noise, sigmas), velocity)

    return samples


def error_of(samples):
    missed = energy = 0.0
    for sample in samples():
        guess = sample.noisy - 0.8 * sample.velocity(sample.noisy)
        missed += float((guess - sample.latents).square().sum())
        energy += float(sample.latents.square().sum())
    return missed / energy


def pictures(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, CHANNELS, 1, 12, 16, generator=generator)


@torch.no_grad()
def test_lookups_are_fitted_to_what_is_missing(started):
    model, conditioner = started
    # Clips that are half their picture and half its left neighbours: no lookup alone has that.
    clips = [
        (first, (first + first.roll(1, -1)).expand(-1, -1, 3, -1, -1) / 2) for first in pictures(4)
    ]
    assert project_first_frame(model, clips[0][0]).abs().max() == 0
    moved = model.blocks[0].ffn.net[2].bias[stream_layout(model).moved]
    moved.fill_(GUIDE_SCALE)
    samples = samples_of(model, conditioner, clips)
    before = error_of(samples)
    missing = fit_lookups(model, samples)
    assert missing == sorted(missing, reverse=True)
    assert missing[0] == pytest.approx(before, abs=0.05)
    # Only at the border, where the roll brings the other side, nothing tells.
    assert missing[-1] < 0.25 < 0.5 < before
    assert error_of(samples) == pytest.approx(missing[-1], abs=0.03)
    # What has not moved is left as it is: the picture.
    moved.fill_(0.0)
    still = [(first, first.expand(-1, -1, 3, -1, -1)) for first in pictures(2)]
    assert error_of(samples_of(model, conditioner, still)) < 0.01
    # In between, all lookups turn away at once: half of the answers would make no picture.
    samples = samples_of(model, conditioner, [(first, still[0][1]) for first, _ in still[:1]])
    moved.fill_(GUIDE_SCALE)
    most = error_of(samples)
    for share in torch.linspace(0.59, 0.61, 21).tolist():
        moved.fill_(share * GUIDE_SCALE)
        assert error_of(samples) < 1.1 * most
