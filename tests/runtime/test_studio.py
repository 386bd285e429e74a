"""A studio's clips are those of `osp generate`, and nothing of them stays behind."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osp_cli.dials import Seeds, Size, StepCacheChoice
from osp_cli.runtime.runner import run
from osp_cli.runtime.studio import Studio
from osp_cli.settings import Source, settle_generate

SIZE = (32, 32)


@pytest.fixture
def studio(tiny_card, tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return Studio("tiny", folder=folder, device="cpu", seed=5)


@pytest.mark.parametrize(
    "asked", [{"prompt": "pan left"}, {"style": "ink"}, {"cutoff": 0.7}, {"style": "ink:0.5"}]
)
def test_a_clip_is_what_a_run_saves(studio, picture, asked):
    frames = studio.clip(picture, SIZE, 5, **asked)
    settled = settle_generate(
        Source(image=picture),
        model="tiny", size=Size(*SIZE), num_frames=5, seed=Seeds([5]), device="cpu",
        output="frames/%04d.png", **asked,
    )  # fmt: skip
    Path("frames").mkdir()
    deque(run(settled.request), maxlen=0)
    saved = [np.asarray(Image.open(path)) for path in sorted(Path("frames").glob("*.png"))]
    np.testing.assert_array_equal(frames, np.stack(saved))


def test_nothing_is_left_on_disk(studio, picture, tmp_path):
    studio.clip(picture, SIZE, 5)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert studio.num_clips == 1


def test_other_weights_make_other_clips(studio, own_weights, tmp_path, picture):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    other.mkdir()
    for part in own_weights.iterdir():
        (other / part.name).symlink_to(part)
    (other / "vae").unlink()
    (other / "vae").mkdir()
    for path in (own_weights / "vae").iterdir():
        if path.suffix == ".safetensors":
            halved = {name: value * 0.5 for name, value in load_file(path).items()}
            save_file(halved, other / "vae" / path.name)
        else:
            (other / "vae" / path.name).write_bytes(path.read_bytes())
    changed = Studio("tiny", folder=tmp_path, weights=other, device="cpu", seed=5)
    one, two = (maker.clip(picture, SIZE, 5) for maker in (studio, changed))
    assert (one != two).any()
    assert changed.weights == other


def test_pictures_go_through_the_codec_one_by_one(studio):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    together = studio.round_trip(pictures)
    alone = [studio.round_trip(picture[None])[0] for picture in pictures]
    np.testing.assert_array_equal(together, np.stack(alone))
    assert (together != pictures).any()


def test_a_video_goes_through_the_codec_as_one(studio):
    video = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    seen = studio.video_round_trip(video)
    assert seen.shape == video.shape
    # Its first frame is coded as if it were alone, the others are not.
    np.testing.assert_array_equal(seen[:1], studio.round_trip(video[:1]))
    assert (seen[1:] != studio.round_trip(video[1:])).any()


def test_a_take_tells_what_its_sampling_took(studio, picture):
    plain = studio.take(picture, num_frames=5, steps=4, cache=StepCacheChoice("none"))
    assert (plain.num_steps, plain.skipped) == (4, 0)
    assert 0 < plain.seconds < studio.seconds
    cached = studio.take(picture, num_frames=5, steps=4, cache=StepCacheChoice("fbcache", 9))
    assert (cached.num_steps, cached.skipped) == (4, 3)
    assert cached.frames.shape == plain.frames.shape == (5, 64, 96, 3)
    assert (cached.frames != plain.frames).any()
