"""Looks are told apart: exactly by the operators, and by a stranger from other photos."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from osp_cli.evaluation.photos import held_out_photos
from osp_cli.evaluation.style_features import style_features
from osp_cli.evaluation.style_identity import (
    LOOKS,
    UNSTYLED,
    Stranger,
    expected_looks,
    nearest_look,
)
from osp_cli.media.image import cover_resize_crop, load_image
from osp_cli.registry import style_presets

SIZE = (224, 128)


@pytest.fixture(scope="module")
def photos():
    chosen = {photo.name: photo for photo in held_out_photos()}
    names = ("chelsea", "coffee", "flower")
    return {name: cover_resize_crop(load_image(chosen[name].path).image, *SIZE) for name in names}


@pytest.fixture(scope="module")
def looks(photos):
    return {name: expected_looks(photo) for name, photo in photos.items()}


@pytest.fixture(scope="module")
def later(photos):
    """The same, half a second on."""
    return {name: expected_looks(photo, frame=8) for name, photo in photos.items()}


def weakened(image):
    """Blurred, and a little too bright."""
    soft = Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.5))
    return np.clip(np.asarray(soft).astype(int) + 4, 0, 255).astype(np.uint8)


def test_every_style_of_the_command_line_is_judged():
    assert set(LOOKS) == {UNSTYLED, *style_presets()}


def test_an_operator_s_picture_is_nearest_to_itself(looks):
    for candidates in looks.values():
        for name, image in candidates.items():
            assert nearest_look(image, candidates) == name


@pytest.mark.parametrize("look", LOOKS)
def test_softness_and_a_moved_camera_change_no_verdict(looks, later, look):
    """As a small model would show it: half a second later, blurred, a little off in colour."""
    for name, candidates in looks.items():
        assert nearest_look(weakened(later[name][look]), candidates) == look


def test_a_style_that_is_ignored_is_seen_as_none(photos, looks):
    for name, photo in photos.items():
        assert nearest_look(np.asarray(photo), looks[name]) == UNSTYLED


@settings(deadline=None, max_examples=20)
@given(st.integers(24, 200), st.integers(24, 200), st.integers(0, 2**16))
def test_there_are_as_many_numbers_of_any_picture(height, width, seed):
    generator = np.random.default_rng(seed)
    flat = np.full((height, width, 3), generator.integers(0, 256), np.uint8)
    noise = generator.integers(0, 256, (height, width, 3), np.uint8)
    counts = set()
    for image in (flat, noise):
        numbers = style_features(image)
        assert np.isfinite(numbers).all()
        counts.add(numbers.size)
    assert len(counts) == 1


@pytest.fixture(scope="module")
def stranger(photos):
    return Stranger(photos, lambda pictures: pictures, num_views=2)


def test_a_stranger_names_the_operators_of_a_photo_never_seen(stranger, looks):
    """Two other photos, in two lights each, are little to learn from; a look in 13 is chance."""
    verdicts = [
        (look, stranger.without(name)(image))
        for name, candidates in looks.items()
        for look, image in candidates.items()
        if look != UNSTYLED
    ]
    hits = np.mean([asked == seen for asked, seen in verdicts])
    assert hits > 0.7
    assert stranger.ceiling() == pytest.approx(hits)


def test_a_stranger_takes_an_untouched_photo_for_none(stranger, photos):
    seen = [stranger.without(name)(np.asarray(photo)) for name, photo in photos.items()]
    assert seen == [UNSTYLED] * len(photos)


def test_a_stranger_does_not_know_the_photo(photos):
    """Its examples may all be wrong, and what is said about it is the same."""

    class Spy(Stranger):
        def spoil(self, name):
            numbers, names = self._examples[name]
            self._examples[name] = (numbers, names[::-1])

    spy = Spy(photos, lambda pictures: pictures, num_views=1)
    image = expected_looks(photos["flower"])["ink"]
    before = [spy.without(name)(image) for name in ("flower", "coffee")]
    spy.spoil("flower")
    after = [spy.without(name)(image) for name in ("flower", "coffee")]
    assert before[0] == after[0]
    # Others do learn from it.
    assert before[1] != after[1]


def test_one_photo_alone_cannot_be_judged(photos):
    alone = {"coffee": photos["coffee"]}
    with pytest.raises(ValueError, match="other photos"):
        Stranger(alone, lambda pictures: pictures, num_views=1).without("coffee")
