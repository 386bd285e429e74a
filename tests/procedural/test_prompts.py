"""Words for motions and styles: all known, none ambiguous, all in the sentences."""

from __future__ import annotations

import random
from itertools import chain

import pytest

from osp_cli.procedural.motions import CAMERA_MOTIONS, SCENE_MOTIONS, SPEEDS, Motion
from osp_cli.procedural.prompts import (
    CAMERA_PHRASES,
    SCENE_PHRASES,
    SPEED_PHRASES,
    STYLE_PHRASES,
    motion_words,
    random_motion,
    random_prompt,
    random_style,
)
from osp_cli.procedural.styles import STYLE_OPERATORS
from osp_cli.registry import style_presets

EVERY_MOTION = [
    Motion(camera, scene, speed)
    for camera in (None, *CAMERA_MOTIONS)
    for scene in (None, *SCENE_MOTIONS)
    for speed in SPEEDS
]


def test_there_are_words_for_exactly_what_can_be_rendered():
    assert set(CAMERA_PHRASES) == set(CAMERA_MOTIONS)
    assert set(SCENE_PHRASES) == set(SCENE_MOTIONS)
    assert set(SPEED_PHRASES) == set(SPEEDS)
    assert set(STYLE_PHRASES) == set(STYLE_OPERATORS)
    tables = (CAMERA_PHRASES, SCENE_PHRASES, STYLE_PHRASES)
    assert all(phrases for table in tables for phrases in table.values())


def test_no_phrase_means_two_things():
    phrases = list(
        chain.from_iterable(
            chain(
                CAMERA_PHRASES.values(),
                SCENE_PHRASES.values(),
                SPEED_PHRASES.values(),
                STYLE_PHRASES.values(),
            )
        )
    )
    assert len(phrases) == len(set(phrases))


def test_the_short_phrase_of_every_preset_is_one_that_is_taught():
    for name, preset in style_presets().items():
        assert preset.short == STYLE_PHRASES[name][0]


@pytest.mark.parametrize("motion", EVERY_MOTION, ids=str)
def test_words_name_the_motion_and_only_it(motion):
    words = motion_words(random.Random(4), motion)
    cameras = {m for m, phrases in CAMERA_PHRASES.items() if any(p in words for p in phrases)}
    scenes = {m for m, phrases in SCENE_PHRASES.items() if any(p in words for p in phrases)}
    assert bool(words) == (not motion.gentle)
    if motion.camera:
        assert motion.camera in cameras
    if motion.scene:
        assert motion.scene in scenes
    if motion.camera is None and motion.scene is None:
        assert not cameras | scenes


@pytest.mark.parametrize("speed", ["slow", "fast"])
def test_a_speed_is_said(speed):
    rng = random.Random(2)
    for camera in CAMERA_MOTIONS:
        words = motion_words(rng, Motion(camera, speed=speed))
        assert any(word in words for word in SPEED_PHRASES[speed])


@pytest.mark.parametrize("style", sorted(STYLE_PHRASES))
def test_a_prompt_contains_the_words_of_its_style(style):
    rng = random.Random(style)
    for _ in range(20):
        text = random_prompt(rng, random_motion(rng), style).lower()
        assert any(phrase.lower() in text for phrase in STYLE_PHRASES[style])


def test_prompts_follow_from_their_generator_and_vary():
    def texts(seed):
        rng = random.Random(seed)
        return [random_prompt(rng, random_motion(rng), random_style(rng)) for _ in range(200)]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)
    assert len(set(texts(1))) > 180


def test_random_motions_cover_all_there_is_and_nothing_else():
    rng = random.Random(0)
    drawn = [random_motion(rng) for _ in range(3000)]
    assert {motion.camera for motion in drawn} == {None, *CAMERA_MOTIONS}
    assert {motion.scene for motion in drawn} == {None, *SCENE_MOTIONS}
    assert {motion.speed for motion in drawn} == set(SPEEDS)
    # What names nothing has no speed to name either.
    assert {motion.speed for motion in drawn if motion.gentle} == {"normal"}
    both = sum(motion.camera is not None and motion.scene is not None for motion in drawn)
    gentle = sum(motion.gentle for motion in drawn)
    assert 0.08 < both / 3000 < 0.17
    assert 0.1 < gentle / 3000 < 0.18


def test_random_styles_are_the_thirteen_and_none_a_third_of_the_time():
    rng = random.Random(0)
    drawn = [random_style(rng) for _ in range(2000)]
    assert set(drawn) == {None, *STYLE_OPERATORS}
    assert 0.3 < drawn.count(None) / 2000 < 0.38
