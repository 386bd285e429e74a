"""The drift meter tells what has become of a picture, in its own words."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from osp_cli.media.drift import BANDS, Drift, DriftMeter, look_of

EXAMPLES = Path(__file__).resolve().parents[2] / "presets" / "examples"
PHOTO = Image.open(EXAMPLES / "lake.jpg").convert("RGB").resize((320, 192), Image.Resampling.BOX)


def chunk(picture: Image.Image, count: int = 5) -> np.ndarray:
    """Frames that pan over a picture by a pixel each."""
    pixels = np.asarray(picture.convert("RGB"))
    return np.stack([np.roll(pixels, shift, axis=1) for shift in range(count)])


def woven(picture: Image.Image) -> Image.Image:
    """With the faint grid of a model that has continued its own pictures for too long."""
    pixels = np.asarray(picture).astype(int)
    pixels[::4] -= 6
    pixels[:, ::4] -= 6
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def changed(change) -> Drift:
    meter = DriftMeter()
    meter.measure(chunk(PHOTO))
    return meter.measure(chunk(change(PHOTO)))


CHANGES = {
    "brighter": ("brightness", lambda picture: ImageEnhance.Brightness(picture).enhance(1.4)),
    "darker": ("brightness", lambda picture: ImageEnhance.Brightness(picture).enhance(0.6)),
    "flatter": ("contrast", lambda picture: ImageEnhance.Contrast(picture).enhance(0.5)),
    "paler": ("saturation", lambda picture: ImageEnhance.Color(picture).enhance(0.3)),
    "more colourful": ("saturation", lambda picture: ImageEnhance.Color(picture).enhance(2.2)),
    "softer": ("sharpness", lambda picture: picture.filter(ImageFilter.GaussianBlur(3))),
    "sharper": ("sharpness", lambda picture: ImageEnhance.Sharpness(picture).enhance(4)),
    "grainier": ("grain", lambda picture: woven(picture)),
    "other colours": (
        "colour",
        lambda picture: Image.merge("RGB", [band.point(lambda v, k=k: v * k) for band, k in
                                            zip(picture.split(), (1.12, 1.0, 0.8), strict=True)]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("word", CHANGES)
def test_each_change_is_named_with_its_sign(word):
    part, change = CHANGES[word]
    drift = changed(change)
    assert (drift.part, drift.word) == (part, word)
    assert drift.value == getattr(drift, part)
    assert not drift.is_small
    less = word in ("darker", "flatter", "paler", "softer")
    assert (drift.value < 0) is less


def test_harsher_contrast():
    grey = PHOTO.convert("L").point(lambda value: 64 + value // 2)
    meter = DriftMeter()
    meter.measure(chunk(grey))
    drift = meter.measure(chunk(ImageEnhance.Contrast(grey).enhance(1.7)))
    assert (drift.part, drift.word) == ("contrast", "harsher")
    # The logarithm of the ratio, and steps in proportion to the contrast stay as they were.
    assert drift.contrast == pytest.approx(np.log(1.7), abs=0.04)
    assert drift.sharpness == pytest.approx(0, abs=0.04)


def test_the_beginning_has_no_drift_and_motion_has_little():
    meter = DriftMeter()
    start = meter.measure(chunk(PHOTO))
    assert start == Drift()
    assert (start.value, start.word) == (0, "")
    moved = meter.measure(np.roll(chunk(PHOTO), 40, axis=2))
    assert moved.is_small
    assert moved.word == ""
    assert all(abs(value) < BANDS[name] / 5 for name, value in asdict(moved).items())


def test_more_of_a_change_is_more_drift():
    values = [
        changed(lambda picture, r=r: picture.filter(ImageFilter.GaussianBlur(r))).sharpness
        for r in (0, 1, 2, 4)
    ]
    assert values[0] == 0
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4


def test_less_grain():
    meter = DriftMeter()
    meter.measure(chunk(woven(PHOTO)))
    drift = meter.measure(chunk(PHOTO))
    assert (drift.part, drift.word) == ("grain", "smoother")
    assert drift.value < 0


def test_a_pattern_does_not_hide_that_edges_are_softer():
    drift = changed(lambda picture: woven(picture.filter(ImageFilter.GaussianBlur(1.5))))
    assert drift.sharpness < -BANDS["sharpness"]
    assert drift.grain > BANDS["grain"] / 2


def test_a_directed_change_is_a_new_beginning():
    meter = DriftMeter()
    meter.measure(chunk(PHOTO))
    pale = chunk(PHOTO.convert("L").convert("RGB"))
    assert meter.measure(pale).word == "paler"
    assert meter.measure(pale, anew=True) == Drift()
    assert meter.measure(pale) == Drift()
    assert meter.measure(chunk(PHOTO)).word == "more colourful"


def test_a_state_goes_on_in_another_process():
    meter = DriftMeter()
    assert DriftMeter.from_state(meter.state()).measure(chunk(PHOTO)) == Drift()
    meter.measure(chunk(PHOTO))
    state = json.loads(json.dumps(meter.state()))
    soft = chunk(PHOTO.filter(ImageFilter.GaussianBlur(2)))
    assert DriftMeter.from_state(state).measure(soft) == meter.measure(soft) != Drift()


@pytest.mark.parametrize("state", [[1.0], ["x"] * 7, [float("nan")] * 7, [None] * 7])
def test_a_damaged_state_is_refused(state):
    with pytest.raises(ValueError):
        DriftMeter.from_state(state)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)],
)
def test_what_are_no_frames_is_refused(frames):
    with pytest.raises(ValueError, match="no frames"):
        DriftMeter().measure(frames)


def test_a_picture_of_one_colour_and_one_of_one_pixel_have_measures():
    meter = DriftMeter()
    black = np.zeros((3, 16, 16, 3), np.uint8)
    assert meter.measure(black) == Drift()
    assert meter.measure(black + 255).word == "brighter"
    assert look_of(np.zeros((1, 1, 1, 3), np.uint8)).sharpness == 0


def test_a_large_picture_is_measured_as_a_small_one_is():
    # The same pixels twice as often: every measure but the steps between pixels is of the whole.
    small, large = look_of(chunk(PHOTO)), look_of(chunk(PHOTO).repeat(4, 1).repeat(4, 2))
    for name in ("brightness", "blue", "red", "contrast", "saturation"):
        assert getattr(large, name) == pytest.approx(getattr(small, name), rel=0.1, abs=0.005)


def test_it_costs_next_to_nothing():
    frames = np.random.default_rng(0).integers(0, 255, (36, 720, 1280, 3), np.uint8)
    meter = DriftMeter()
    seconds = []
    for _ in range(5):
        begun = time.process_time()
        meter.measure(frames)
        seconds.append(time.process_time() - begun)
    # 10 ms where nothing else runs; of a chunk that lasts for more than a second.
    assert min(seconds) < 0.05


def test_all_parts_have_bands():
    assert set(BANDS) == set(asdict(Drift()))
    assert all(band > 0 for band in BANDS.values())
