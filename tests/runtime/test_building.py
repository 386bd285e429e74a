"""Cards as animators: the very clip that `osp generate` makes of the styled picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from osp_cli.cli.app import main
from osp_cli.events import DatasetBuilt, ItemBuilt
from osp_cli.runtime.building import ModelAnimator, run
from osp_cli.training.building.engines import Shot
from osp_cli.training.building.manifest import MANIFEST, Manifest
from osp_cli.training.building.request import BuildRequest, find_styles, settle_build
from osp_cli.training.building.sources import captions_for, find_sources

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def shot(seed: int = 5, prompt: str = "pan left") -> Shot:
    picture = Image.fromarray(PIXELS)
    return Shot(picture=picture, source=picture.rotate(180), style="ink", prompt=prompt, seed=seed,
                num_frames=5, fps=16)  # fmt: skip


@pytest.fixture
def animator(tiny_card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = ModelAnimator("tiny", "cpu")
    yield made
    made.drop()


def test_a_clip_is_that_of_generate(animator, tmp_path, capsys):
    Image.fromarray(PIXELS).save(tmp_path / "picture.png")
    command = ["generate", "picture.png", "pan left", "--model", "tiny", "--seed", "5", "-f", "5"]
    (tmp_path / "frames").mkdir()
    assert main([*command, "-o", "frames/%04d.png", "--device", "cpu", "-q"]) == 0
    expected = [
        np.asarray(Image.open(path)) for path in sorted((tmp_path / "frames").glob("*.png"))
    ]
    clip = list(animator.animate(shot()))
    assert len(clip) == len(expected) == 5
    for frame, other in zip(clip, expected, strict=True):
        np.testing.assert_array_equal(frame, other)


def test_seeds_and_words_reach_the_model(animator):
    first = np.stack(list(animator.animate(shot())))
    np.testing.assert_array_equal(first, np.stack(list(animator.animate(shot()))))
    assert (first != np.stack(list(animator.animate(shot(seed=6))))).any()
    about = animator.describe()
    assert about["name"] == "tiny" and about["num_inference_steps"] == 8
    assert len(about["weights_sha256"]) == 64
    assert json.loads(json.dumps(about)) == about


def test_nothing_is_left_beside_the_clip(animator, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    before = sorted(tmp_path.rglob("*"))
    list(animator.animate(shot()))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_card_animates_a_dataset(tiny_card, tmp_path):
    sources, _ = find_sources(["procedural"], count=1, seed=1)
    settings, _ = settle_build(
        stylizer="procedural", animator="tiny", num_frames=None, fps=None, size=None, seed=1,
        caption=None, prompt=None, gates=False, min_seconds=None, max_seconds=None, min_side=None,
        allow_cuts=False,
    )  # fmt: skip
    # The card's own limits: 17 frames are the most that it makes.
    assert (settings.num_frames, settings.sizes[0]) == (17, (96, 64))
    request = BuildRequest(
        folder=tmp_path / "out",
        sources=tuple(sources),
        captions=captions_for(sources, None),
        styles=find_styles(["ghibli"], "procedural"),
        settings=settings,
        device="cpu",
    )
    events = list(run(request))
    assert [event.stage for event in events if isinstance(event, ItemBuilt)][-1] == "done"
    [built] = [event for event in events if isinstance(event, DatasetBuilt)]
    assert (built.num_clips, built.num_rejected) == (1, 0)
    [row] = Manifest(tmp_path / "out" / MANIFEST)
    assert row["animator"]["name"] == "tiny" and row["num_frames"] == 17
    assert row["stylizer"]["name"] == "procedural"
