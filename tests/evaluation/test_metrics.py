"""Measures by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from osp_cli.evaluation.metrics import (
    colour_drift,
    displaced_by,
    mean_motion,
    psnr,
    travelled,
)


@pytest.fixture
def still():
    """Five equal frames of noise."""
    frame = np.random.default_rng(0).integers(0, 200, (6, 8, 3), dtype=np.uint8)
    return np.stack([frame] * 5)


def test_psnr_is_its_formula(still):
    assert psnr(still[0], still[0]) == math.inf
    # Off by 16 everywhere: 20 log10(255 / 16). Levels do not wrap around either.
    assert psnr(still[0] + 16, still[0]) == pytest.approx(20 * math.log10(255 / 16))
    assert psnr(still[0], still[0] + 16) == pytest.approx(20 * math.log10(255 / 16))
    half = still[0].copy()
    half[:3] += 16
    assert psnr(half, still[0]) == pytest.approx(20 * math.log10(255 / 16) + 10 * math.log10(2))


def test_a_still_does_not_move(still):
    assert mean_motion(still) == travelled(still) == colour_drift(still) == 0.0
    assert mean_motion(still[:1]) == 0.0


def test_motion_is_between_neighbours_and_travel_between_ends(still):
    back_and_forth = still.copy()
    back_and_forth[1::2] += 10
    assert mean_motion(back_and_forth) == pytest.approx(10)
    assert travelled(back_and_forth) == 0.0
    away = still + np.arange(5, dtype=np.uint8)[:, None, None, None] * 3
    assert mean_motion(away) == pytest.approx(3)
    assert travelled(away) == pytest.approx(12)


def test_colour_drift_is_the_largest_change_of_a_mean(still):
    drifting = still.copy()
    drifting[3, ..., 2] += 51
    drifting[4, ..., 0] += 10
    assert colour_drift(drifting) == pytest.approx(0.2)
    # Mere motion changes no mean.
    assert colour_drift(np.stack([still[0], np.roll(still[0], 3, 1)])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (12, -8), (-20, 4), (24, 24)])
def test_a_shift_is_found(right, down):
    canvas = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    canvas = canvas.repeat(4, 0).repeat(4, 1)
    before = canvas[32:128, 32:192]
    after = canvas[32 - down : 128 - down, 32 - right : 192 - right]
    assert displaced_by(after, before) == (right, down)
    # Brightness that flickers a little does not hide it.
    flickering = (after * 0.9).astype(np.uint8)
    assert displaced_by(flickering, before) == (right, down)
