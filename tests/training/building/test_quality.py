"""Gates of results, each tried on what it is for; and the drawn engines, which must pass them."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from osp_cli.media.video import write_video
from osp_cli.procedural.styles import STYLE_OPERATORS
from osp_cli.training.building.engines import Shot
from osp_cli.training.building.procedural import (
    ProceduralAnimator,
    ProceduralStylizer,
    draw_scene,
    motion_of,
)
from osp_cli.training.building.quality import (
    clip_problems,
    clip_scores,
    picture_problems,
    picture_scores,
)
from osp_cli.training.building.quality_settings import QualitySettings

# What the limits were tried at, and what is quicker to move.
SIZE, SMALL = (448, 256), (224, 128)
LIMITS = QualitySettings()


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    return [draw_scene(seed, SMALL) for seed in (0, 2)]


@pytest.fixture(scope="module")
def large() -> list[Image.Image]:
    return [draw_scene(seed, SIZE) for seed in (0, 2)]


def codes(problems) -> list[str]:
    return [problem.code for problem in problems]


@pytest.mark.parametrize("style", STYLE_OPERATORS)
def test_every_operator_passes_on_its_own_picture_and_fails_on_another(large, style):
    for scene, other in (large, large[::-1]):
        styled = ProceduralStylizer().stylise(scene, style, "", 0)
        assert codes(picture_problems(picture_scores(scene, styled), style, LIMITS)) == []
        found = codes(picture_problems(picture_scores(other, styled), style, LIMITS))
        assert found == ["other-content"]


def test_a_picture_that_was_only_stored_or_softened_is_not_restyled(scenes):
    stored = io.BytesIO()
    scenes[0].save(stored, "JPEG", quality=30)
    for same in (Image.open(stored), scenes[0].filter(ImageFilter.GaussianBlur(2)), scenes[0]):
        assert codes(picture_problems(picture_scores(scenes[0], same), "ink", LIMITS)) == [
            "unchanged"
        ]


def test_a_judge_is_believed(scenes):
    class Judge:
        def rank(self, image):
            return ["oil", "ink"]

        def describe(self):
            return {"name": "judge"}

    styled = ProceduralStylizer().stylise(scenes[0], "ink", "", 0)
    scores = picture_scores(scenes[0], styled, Judge())
    assert codes(picture_problems(scores, "ink", LIMITS)) == ["other-style"]
    assert codes(picture_problems(scores, "oil", LIMITS)) == []


def drawn(scene, style, prompt="pan left", count=9) -> np.ndarray:
    styled = ProceduralStylizer().stylise(scene, style, "", 0)
    shot = Shot(picture=styled, source=scene, style=style, prompt=prompt, seed=1,
                num_frames=count, fps=16)  # fmt: skip
    return np.stack(list(ProceduralAnimator(paints=True).animate(shot)))


@pytest.mark.parametrize("style", ["oil", "lego", "gotham-noir"])
def test_drawn_clips_pass(scenes, style, tmp_path):
    clip = drawn(scenes[0], style)
    write_video(clip, tmp_path / "clip.mp4", fps=16)
    scores = clip_scores(tmp_path / "clip.mp4", Image.fromarray(clip[0]))
    assert codes(clip_problems(scores, style, LIMITS)) == []


def test_clips_that_are_wrong_are_told_apart(scenes, tmp_path):
    clip = drawn(scenes[0], "ghibli", "pan left fast")
    start, other = Image.fromarray(clip[0]), drawn(scenes[1], "ink", count=5)
    fading = np.linspace(0, 1, len(clip))[:, None, None, None]
    faded = (clip * (1 - fading) + 250 * fading).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (8, *clip.shape[1:]), dtype=np.uint8)
    wrong = {
        "other-start": (drawn(scenes[1], "ghibli"), start),
        "still": (np.repeat(clip[:1], 9, 0), start),
        "has-cut": (np.concatenate([clip, other]), start),
        "drift": (faded, start),
        "hectic": (np.concatenate([clip[:1], noise]), start),
    }
    for code, (frames, first) in wrong.items():
        write_video(frames, tmp_path / "clip.mp4", fps=16)
        scores = clip_scores(tmp_path / "clip.mp4", first)
        assert code in codes(clip_problems(scores, "ghibli", LIMITS)), (code, scores)


def test_a_judge_sees_frames_of_all_the_clip(scenes, tmp_path):
    clip = drawn(scenes[0], "ghibli")
    seen = []

    class Judge:
        def rank(self, image):
            seen.append(np.asarray(image).astype(float))
            return ["ghibli"]

        def describe(self):
            return {"name": "judge"}

    write_video(clip, tmp_path / "clip.mp4", fps=16, crf=1)
    clip_scores(tmp_path / "clip.mp4", Image.fromarray(clip[0]), Judge())
    nearest = [int(np.argmin([np.abs(s - f).mean() for f in clip.astype(float)])) for s in seen]
    assert nearest == [0, 3, 5, 8]


def test_a_limit_can_be_moved(scenes):
    scores = picture_scores(scenes[0], scenes[0])
    assert picture_problems(scores, "ink", replace(LIMITS, min_change=0.0)) == []


# --- The drawn engines ------------------------------------------------------------------------


def test_a_clip_begins_with_the_styled_picture(scenes):
    for style in STYLE_OPERATORS:
        styled = np.asarray(ProceduralStylizer().stylise(scenes[0], style, "", 0), int)
        assert np.abs(drawn(scenes[0], style, count=1)[0] - styled).max() <= 3, style


def test_bricks_stand_still_while_the_picture_moves(scenes):
    clip = drawn(scenes[0], "lego", "pan left fast", 17).astype(float)
    width = clip.shape[2]
    seams = clip[:, :, (np.arange(width) % 16 == 0) | (np.arange(width) % 16 == 15)].mean((1, 2, 3))
    middles = clip[:, :, (np.arange(width) % 16 == 7) | (np.arange(width) % 16 == 8)].mean(
        (1, 2, 3)
    )
    assert (seams < 0.9 * middles).all()
    whole = ProceduralAnimator(paints=False)
    styled = ProceduralStylizer().stylise(scenes[0], "lego", "", 0)
    shot = Shot(picture=styled, source=scenes[0], style="lego", prompt="zoom in", seed=1,
                num_frames=17, fps=16)  # fmt: skip
    moved = np.stack(list(whole.animate(shot))).astype(float)
    assert np.abs(moved[0] - np.asarray(styled, float)).max() <= 3


def test_parts_of_a_clip_do_not_show(scenes, monkeypatch):
    whole = drawn(scenes[0], "oil", "snow falls, roll left", 11)
    monkeypatch.setattr("osp_cli.training.building.procedural._TOGETHER", 3)
    assert (
        np.abs(drawn(scenes[0], "oil", "snow falls, roll left", 11).astype(int) - whole).max() <= 1
    )


def test_the_rate_does_not_change_the_pace(scenes):
    styled = ProceduralStylizer().stylise(scenes[0], "oil", "", 0)
    clips = [
        list(
            ProceduralAnimator(paints=True).animate(
                Shot(
                    picture=styled,
                    source=scenes[0],
                    style="oil",
                    prompt="zoom in",
                    seed=1,
                    num_frames=count,
                    fps=fps,
                )
            )
        )
        for count, fps in ((5, 8), (9, 16))
    ]
    for slow, fast in zip(clips[0], clips[1][::2], strict=True):
        assert np.abs(slow.astype(int) - fast).max() <= 1


@pytest.mark.parametrize(
    ("prompt", "camera", "scene", "speed"),
    [
        ("a lake, the camera pans left slowly", "pan-left", None, "slow"),
        ("Zoom in fast while SNOW falls", "zoom-in", "snow", "fast"),
        ("a red fox", None, None, "normal"),
        ("the train in a brainstorm", None, None, "normal"),
        ("the camera pans to the right, rain", "pan-right", "rain", "normal"),
    ],
)
def test_words_are_read_as_motions(prompt, camera, scene, speed):
    motion = motion_of(prompt)
    assert (motion.camera, motion.scene, motion.speed) == (camera, scene, speed)
