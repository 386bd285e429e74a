"""Detail, drift and stillness, each on clips of which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from osp_cli.evaluation.clip_measures import (
    colour_drift_percent,
    detail,
    gentle_truth,
    liveliness,
    mean_detail,
)


@pytest.fixture(scope="module")
def photo():
    """Coarse and fine texture, redder to the right, 112x64."""
    noise = Image.effect_noise((28, 16), 60).resize((112, 64), Image.Resampling.BICUBIC)
    fine = Image.effect_noise((112, 64), 30)
    slope = Image.linear_gradient("L").rotate(90).resize((112, 64))
    return Image.merge("RGB", (slope, noise, Image.blend(noise, fine, 0.5)))


def test_a_still_has_no_motion(photo):
    still = np.asarray(photo)[None].repeat(9, 0)
    assert liveliness("still", still).share == 0


def test_a_gentle_clip_is_alive(photo):
    assert liveliness("gentle", gentle_truth(photo, list(range(17)))).share > 1


def test_flicker_about_a_still_does_not_count_as_travel(photo):
    noise = np.random.default_rng(0).integers(-3, 4, (17, 64, 112, 3))
    frames = np.clip(np.asarray(photo).astype(int) + noise, 0, 255).astype(np.uint8)
    found = liveliness("flicker", frames)
    assert found.motion > 1
    assert found.share < 1.5 < found.motion / 0.4


@given(st.integers(1, 7), st.integers(1, 7))
def test_only_fine_waves_are_detail(across, down):
    y, x = np.mgrid[:64, :64] / 64
    wave = 128 + 100 * np.sin(2 * np.pi * (4 * across * x + 4 * down * y))
    image = np.repeat(wave.round().astype(np.uint8)[..., None], 3, 2)
    frequency = np.hypot(4 * across, 4 * down) / 64
    share = detail(image) / wave.var()
    if frequency > 0.17:
        assert share == pytest.approx(1, abs=0.15)
    if frequency < 0.09:
        assert share < 0.05


def test_blur_takes_detail_away_step_by_step(photo):
    blurred = [
        np.asarray(photo.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 0.5, 1, 2, 4)
    ]
    energies = [detail(image) for image in blurred]
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] < 0.02 * energies[0]
    assert mean_detail(np.stack(blurred)) == pytest.approx(np.mean(energies))


def test_what_the_motion_itself_shows_is_no_drift(photo):
    assert colour_drift_percent(gentle_truth(photo, list(range(49))), photo) < 0.01


@pytest.mark.parametrize("per_frame", [0.2, 0.5])
def test_colours_that_wander_are_told(photo, per_frame):
    """Brightness that grows: 255 levels of grey are 100 % in CIELAB, nearly evenly."""
    frames = gentle_truth(photo, list(range(49))).astype(float)
    growth = per_frame * np.arange(49)[:, None, None, None]
    wandering = np.clip(frames + growth, 0, 255).astype(np.uint8)
    expected = per_frame * 46.5 / 255 * 100
    assert colour_drift_percent(wandering, photo) == pytest.approx(expected, rel=0.35)
