"""Laws of the high-frequency magnitudes (paper, Eq. 20)."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osp_cli.sampling.fourier import (
    cutoff_at,
    cutoff_radius,
    fourier_features,
    high_frequency_magnitude,
)

pytestmark = pytest.mark.filterwarnings("error")

shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9))
seeds = st.integers(0, 2**31)
percentiles = st.floats(0, 1, width=32)


def latents_of(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_against_a_slow_plain_version():
    latents, cutoff = latents_of((1, 2, 4, 5), 0), 0.4
    height, width = 4, 5
    bins = [(k, n) for k in range(height) for n in range(width)]
    # Signed frequencies: distance from zero is distance from the centre of the shifted spectrum.
    signed = {
        (k, n): (k - height if k >= height / 2 else k, n - width if n >= width / 2 else n)
        for k, n in bins
    }
    radius = {index: math.hypot(*frequency) for index, frequency in signed.items()}

    def transform(values, sign):
        return {
            (k, n): sum(
                values[y, x] * cmath.exp(sign * 2j * math.pi * (k * y / height + n * x / width))
                for y, x in bins
            )
            for k, n in bins
        }

    spectra = [
        transform({(y, x): complex(channel[y, x].item()) for y, x in bins}, -1)
        for channel in latents[0]
    ]
    mean = {i: sum(math.sqrt(abs(s[i]) ** 2 + 1e-12) for s in spectra) / 2 for i in bins}
    total, running, limit = sum(mean.values()), 0.0, None
    for index in sorted(bins, key=radius.get):
        running += mean[index]
        if running >= cutoff * total:
            limit = radius[index]
            break

    got = high_frequency_magnitude(latents, cutoff)
    assert cutoff_radius(latents, cutoff).item() == pytest.approx(limit)
    for channel, spectrum in enumerate(spectra):
        kept = {i: value if radius[i] >= limit else 0j for i, value in spectrum.items()}
        back = transform(kept, +1)
        for y, x in bins:
            expected = math.sqrt(abs(back[y, x] / (height * width)) ** 2 + 1e-12)
            assert got[0, channel, y, x].item() == pytest.approx(expected, abs=1e-5)


@settings(deadline=None, max_examples=50)
@given(shapes, seeds)
def test_zero_keeps_everything(shape, seed):
    latents = latents_of(shape, seed)
    assert cutoff_radius(latents, 0.0).tolist() == [0.0] * shape[0]
    torch.testing.assert_close(
        high_frequency_magnitude(latents, 0.0), latents.abs(), atol=1e-5, rtol=1e-5
    )


@settings(deadline=None, max_examples=50)
@given(shapes, seeds, percentiles, percentiles)
def test_a_higher_cutoff_keeps_less(shape, seed, one, other):
    latents = latents_of(shape, seed)
    low, high = sorted((one, other))
    assert (cutoff_radius(latents, low) <= cutoff_radius(latents, high)).all()
    # Parseval: what a larger ring removes is energy that the picture loses.
    kept = [high_frequency_magnitude(latents, c).square().sum().item() for c in (low, high)]
    assert kept[1] <= kept[0] * (1 + 1e-4) + 1e-6


@settings(deadline=None, max_examples=50)
@given(shapes, seeds)
def test_one_keeps_the_corner(shape, seed):
    _, _, height, width = shape
    corner = math.hypot(height // 2, width // 2)
    assert cutoff_radius(latents_of(shape, seed), 1.0).tolist() == pytest.approx(
        [corner] * shape[0]
    )


@settings(deadline=None, max_examples=50)
@given(shapes, seeds, st.data())
def test_samples_are_independent(shape, seed, data):
    latents = latents_of(shape, seed)
    cutoffs = torch.tensor(data.draw(st.lists(percentiles, min_size=shape[0], max_size=shape[0])))
    together = high_frequency_magnitude(latents, cutoffs)
    for index, cutoff in enumerate(cutoffs.tolist()):
        alone = high_frequency_magnitude(latents[index : index + 1], cutoff)
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(shapes, seeds, percentiles)
def test_magnitudes_are_real_and_finite(shape, seed, cutoff):
    got = high_frequency_magnitude(latents_of(shape, seed), cutoff)
    assert got.shape == shape
    assert torch.isfinite(got).all()
    assert (got > 0).all()


def test_flat_pictures_give_finite_gradients():
    latents = torch.zeros(1, 2, 4, 4, requires_grad=True)
    high_frequency_magnitude(latents, 0.1).sum().backward()
    assert torch.isfinite(latents.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype):
    latents = latents_of((1, 2, 6, 6), 0).to(dtype)
    expected = high_frequency_magnitude(latents.float(), 0.3).to(dtype)
    assert torch.equal(high_frequency_magnitude(latents, 0.3), expected)


@pytest.mark.parametrize("cutoff", [-0.01, 1.5, math.nan, math.inf, torch.tensor([0.1, 2.0])])
def test_cutoffs_outside_the_range_are_refused(cutoff):
    with pytest.raises(ValueError, match="between 0 and 1"):
        high_frequency_magnitude(torch.zeros(2, 1, 4, 4), cutoff)


@pytest.mark.parametrize("cutoff", [torch.zeros(3), torch.zeros(2, 1)])
def test_a_cutoff_for_another_batch_is_refused(cutoff):
    with pytest.raises(ValueError, match="one number or"):
        high_frequency_magnitude(torch.zeros(2, 1, 4, 4), cutoff)


def test_features_repeat_the_first_frame():
    first = latents_of((2, 3, 1, 4, 5), 0)
    features = fourier_features(first, torch.tensor([0.1, 0.6]), 4)
    assert features.shape == (2, 3, 4, 4, 5)
    expected = high_frequency_magnitude(first[:, :, 0], torch.tensor([0.1, 0.6]))
    assert all(torch.equal(frame, expected) for frame in features.unbind(2))


@pytest.mark.parametrize("shape", [(1, 2, 3, 4, 4), (1, 2, 4, 4)])
def test_features_need_one_latent_frame(shape):
    with pytest.raises(ValueError, match="one latent frame"):
        fourier_features(torch.zeros(shape), 0.1, 4)


@given(st.integers(1, 60), percentiles, percentiles)
def test_a_ramp_runs_from_start_to_end(num_steps, start, end):
    ramp = [cutoff_at(step, num_steps, start, end) for step in range(num_steps)]
    assert ramp[0] == start
    assert num_steps == 1 or ramp[-1] == pytest.approx(end)
    # The model call refuses anything outside; rounding may not push a ramp there.
    assert all(0 <= cutoff <= 1 for cutoff in ramp)
    assert ramp == sorted(ramp, reverse=end < start)


@given(st.integers(1, 60), percentiles)
def test_a_constant_cutoff_stays_constant(num_steps, cutoff):
    assert {cutoff_at(step, num_steps, cutoff, cutoff) for step in range(num_steps)} == {cutoff}


@pytest.mark.parametrize("step", [-1, 5])
def test_steps_outside_the_run_are_refused(step):
    with pytest.raises(ValueError, match="not one of 5"):
        cutoff_at(step, 5, 0.1, 0.5)
