"""Random fields and filters: unit variance, the slope that was asked for, means that stay."""

from __future__ import annotations

import math

import pytest
import torch

from osp_cli.procedural.noise import (
    box_blur,
    coordinates,
    gaussian_blur,
    luminance,
    power_noise,
    saturate,
    uniform,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def spectrum_slope(fields):
    """Slope of log amplitude against log radius, averaged over the batch: -exponent."""
    _, height, width = fields.shape
    amplitude = torch.fft.rfft2(fields).abs().square().mean(0).sqrt()
    radius = torch.sqrt(
        (torch.fft.fftfreq(height)[:, None] * height) ** 2
        + (torch.fft.rfftfreq(width)[None] * width) ** 2
    )
    inside = (radius >= 2) & (radius <= 0.4 * height)
    x, y = radius[inside].log(), amplitude[inside].log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 1.6, 2.2])
def test_power_noise_has_no_mean_unit_deviation_and_the_asked_slope(exponent):
    fields = power_noise(seeded(), (8, 64, 64), exponent)
    assert fields.shape == (8, 64, 64)
    torch.testing.assert_close(fields.mean((1, 2)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(fields.std((1, 2)), torch.ones(8), atol=1e-4, rtol=0)
    assert spectrum_slope(fields) == pytest.approx(-exponent, abs=0.1)


def test_every_sample_may_have_its_own_slope():
    exponents = torch.tensor([0.0, 1.0, 2.0])
    fields = power_noise(seeded(), (3, 64, 64), exponents)
    slopes = [spectrum_slope(field[None]) for field in fields]
    assert slopes == sorted(slopes, reverse=True)
    assert slopes[0] - slopes[2] == pytest.approx(2.0, abs=0.3)


@pytest.mark.parametrize(
    ("angle", "smooth", "rough"), [(0.0, 3, 2), (math.pi / 2, 2, 3)], ids=["x", "y"]
)
def test_an_angle_makes_the_field_change_faster_across_it(angle, smooth, rough):
    # The named direction has its frequencies raised fourfold, so along it the field is longer.
    fields = power_noise(seeded(), (8, 64, 64), 1.5, angle)[:, None]
    step = {
        2: (fields[:, :, 1:] - fields[:, :, :-1]).abs().mean(),
        3: (fields[..., 1:] - fields[..., :-1]).abs().mean(),
    }
    assert step[smooth] < 0.7 * step[rough]


def test_the_same_seed_gives_the_same_field():
    one, two, other = (power_noise(seeded(s), (2, 16, 24), 1.0) for s in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.allclose(one, other, atol=0.1)


def test_uniform_fills_its_range():
    numbers = uniform(seeded(), (4000,), -2.0, 3.0)
    assert -2.0 <= numbers.min() < -1.9
    assert 2.9 < numbers.max() < 3.0
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("radius", [1, 3])
def test_box_blur_is_the_mean_of_a_square(radius):
    images = torch.rand(1, 2, 12, 14, generator=seeded())
    blurred = box_blur(images, radius)
    assert blurred.shape == images.shape
    y, x = 5, 6
    window = images[:, :, y - radius : y + radius + 1, x - radius : x + radius + 1]
    torch.testing.assert_close(blurred[:, :, y, x], window.mean((2, 3)))


def test_blurs_keep_flat_pictures_flat_up_to_the_border():
    flat = torch.full((1, 3, 9, 11), 0.37)
    torch.testing.assert_close(box_blur(flat, 4), flat)
    torch.testing.assert_close(gaussian_blur(flat, 2.0), flat)
    assert box_blur(flat, 0) is flat


@pytest.mark.parametrize("sigma", [1.4, 2.4, 5.0])
def test_gaussian_blur_spreads_a_point_by_its_sigma(sigma):
    point = torch.zeros(1, 1, 65, 65)
    point[0, 0, 32, 32] = 1.0
    spread = gaussian_blur(point, sigma)[0, 0]
    assert spread.sum().item() == pytest.approx(1.0, abs=1e-4)
    places = torch.arange(65) - 32.0
    variance = float((spread.sum(0) * places**2).sum())
    # The radius is a whole number of pixels.
    assert math.sqrt(variance) == pytest.approx(sigma, abs=0.51)


def test_luminance_weighs_as_rec_601_and_saturate_keeps_it():
    images = torch.rand(2, 3, 5, 7, generator=seeded())
    grey = luminance(images)
    expected = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    torch.testing.assert_close(grey[:, 0], expected)
    torch.testing.assert_close(luminance(saturate(images, 1.7)), grey)
    torch.testing.assert_close(saturate(images, 1.0), images)
    torch.testing.assert_close(saturate(images, 0.0), grey.expand_as(images))


def test_coordinates_are_pixel_centres():
    y, x = coordinates(4, 2, torch.device("cpu"))
    assert y[:, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert x[0].tolist() == [-0.5, 0.5]
