"""The lines of the bench tell a good model from bad ones, on clips made without any."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from osp_cli.evaluation.mini_bench import CAMERA_WORDS, Extent, Line, MiniBench, way_towards
from osp_cli.evaluation.photos import held_out_photos
from osp_cli.media.image import cover_resize_crop, load_image
from osp_cli.procedural.motions import Motion, render_clip
from osp_cli.procedural.styles import apply_style

SMALL = Extent(
    style_photos=1,
    camera_photos=1,
    cutoff_photos=1,
    weight_photos=1,
    weight_styles=("ink",),
    style_frames=9,
    camera_frames=9,
    cutoff_frames=5,
    gentle_frames=9,
    num_views=2,
    all_sizes=False,
    size=(224, 128),
)


class Truth:
    """Makes the clips that a perfect model would."""

    def round_trip(self, pictures):
        noise = np.random.default_rng(0).normal(0, 5, pictures.shape)
        return np.clip(pictures + noise, 0, 255).round().astype(np.uint8)

    def clip(self, photo, size, num_frames, *, prompt=None, style=None, cutoff=None):
        image = self.photo(photo, size, cutoff or 0.1)
        frames = render_clip(image, self.motion(prompt), size[::-1], torch.arange(num_frames))
        if style is not None:
            name, _, weight = style.partition(":")
            share = self.share(float(weight or 1))
            frames = torch.lerp(frames, apply_style(name, frames), share)
        levels = (frames.clamp(0, 1) * 255).round().to(torch.uint8)
        return levels.permute(0, 2, 3, 1).numpy()

    def photo(self, path, size, cutoff):
        image = cover_resize_crop(load_image(path).image, *size)
        soft = image.resize([round(side / (1 + 3 * cutoff)) for side in size])
        pixels = np.array(soft.resize(size, Image.Resampling.BICUBIC))
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255

    def motion(self, prompt):
        words = {words: motion for motion, words in CAMERA_WORDS.items()}
        return Motion(words.get(prompt))

    def share(self, weight):
        return weight


class Backwards(Truth):
    """Understands all directions the wrong way round, and weights from half on as a whole."""

    def motion(self, prompt):
        opposite = {"left": "right", "right": "left", "up": "down", "down": "up",
                    "in": "out", "out": "in"}  # fmt: skip
        motion = super().motion(prompt)
        if motion.camera is None:
            return motion
        kind, way = motion.camera.split("-")
        return Motion(f"{kind}-{opposite[way]}")

    def share(self, weight):
        return 1.0 if weight >= 0.5 else weight


class Deaf(Truth):
    """Shows the photo as it is, whatever is asked."""

    def clip(self, photo, size, num_frames, **asked):
        image = np.asarray(cover_resize_crop(load_image(photo).image, *size))
        return image[None].repeat(num_frames, 0)


def measured(maker, tmp_path=None):
    photos = [photo for photo in held_out_photos() if photo.name in ("coffee", "china")]
    bench = MiniBench(maker, photos, SMALL)
    lines = {line.key: line for line in bench.lines()}
    if tmp_path is not None:
        bench.save_sheets(tmp_path)
    return lines


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    return tmp_path_factory.mktemp("sheets")


@pytest.fixture(scope="module")
def truth(sheets):
    return measured(Truth(), sheets)


@pytest.fixture(scope="module")
def deaf():
    return measured(Deaf())


def test_a_perfect_model_keeps_every_promise(truth):
    # One other photo is too little for the stranger to learn from; it has tests of its own.
    missed = [key for key, line in truth.items() if line.met is False and key != "style-stranger"]
    assert missed == []


def test_known_noise_has_its_decibels(truth):
    assert truth["codec-224x128"].measured == pytest.approx(20 * np.log10(255 / 5), abs=0.4)


def test_a_still_is_refused_by_every_measure_that_is_about_change(deaf):
    for key in ("style-nearest", "camera-words", "detail-against-cutoff", "style-weights"):
        assert deaf[key].met is False, key
    assert deaf["style-nearest"].measured == deaf["camera-words"].measured == 0
    assert deaf["motion"].measured == 0
    assert not deaf["motion"].met
    # What it was not asked to change it does show.
    assert deaf["frame-0"].measured == float("inf")


def test_wrong_directions_and_weights_are_told():
    lines = measured(Backwards())
    assert lines["camera-words"].measured == 0
    assert {miss["asked"] for miss in lines["camera-words"].details["misses"]} == {*CAMERA_WORDS}
    assert not lines["style-weights"].met
    assert lines["style-nearest"].met


def test_the_sheets_come_with_and_without_words(truth, sheets):
    for name in ("styles", "motions"):
        labelled, bare = (Image.open(sheets / f"{name}{end}.png") for end in ("", "-unlabelled"))
        assert bare.width < labelled.width
        assert bare.height < labelled.height


@pytest.mark.parametrize(
    ("measured_", "more", "met", "goal_met"),
    [
        (96, True, True, True),
        (90, True, True, False),
        (79, True, False, False),
        (None, True, None, None),
        (79, False, True, True),
        (96, False, False, False),
    ],
)
def test_a_line_is_met_where_the_least_is(measured_, more, met, goal_met):
    goal, least = (95, 80) if more else (80, 95)
    line = Line("key", "what", measured_, "%", goal, least, more_is_better=more)
    assert (line.met, line.goal_met) == (met, goal_met)


def test_the_way_is_measured_along_the_line_from_one_picture_to_the_other():
    start, end = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 200, np.uint8)
    half = np.full((2, 2, 3), 100, np.uint8)
    assert way_towards([start, half, end], start, end) == pytest.approx([0, 0.5, 1])
