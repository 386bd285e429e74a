"""Rows of a sheet: genuine clips of the tiny model, in the order of their labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from osp_cli.evaluation.sheet import MOTION_PROMPTS, make_clip, motion_rows, style_rows
from osp_cli.pipelines.flash_i2v import FlashI2VPipeline
from osp_cli.registry import style_presets
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.devices import this_machine
from osp_cli.runtime.loading import load_components
from osp_cli.runtime.planner import make_plan


@pytest.fixture
def spec(tiny_card):
    defaults = {**tiny_card.defaults, "num_frames": 13, "num_inference_steps": 1}
    return replace(tiny_card, defaults=defaults)


@pytest.fixture
def pipeline(spec):
    folder = spec.weights_dir()
    request = GenerateRequest(
        image=None, text_only=True, prompt="-", model="tiny", num_frames=13, seed=0
    )
    plan = make_plan(
        request,
        spec,
        size=spec.default_size,
        machine=this_machine(torch.device("cpu")),
        weights=folder,
    )
    *_, parts = load_components(spec, plan, folder)
    return FlashI2VPipeline(parts.transformer, parts.vae, parts.conditioner)


@pytest.fixture
def photos(tmp_path):
    paths = [tmp_path / "wide.png", tmp_path / "tall.png"]
    for path, size in zip(paths, ((200, 120), (60, 90)), strict=True):
        Image.effect_noise(size, 90).convert("RGB").save(path)
    return paths


def test_a_clip_is_made_with_the_cards_settings(pipeline, spec, photos):
    frames, image = make_clip(pipeline, spec, photos[0], prompt="pan left")
    assert frames.shape == (13, 64, 96, 3)
    assert image.size == (96, 64)
    same, _ = make_clip(pipeline, spec, photos[0], prompt="pan left", cutoff=0.1)
    np.testing.assert_array_equal(frames, same)
    for change in ({"seed": 2}, {"cutoff": 0.9}, {"style": "ink"}):
        other, _ = make_clip(pipeline, spec, photos[0], prompt="pan left", **change)
        assert (other != frames).any(), change


def test_a_row_is_the_photo_then_no_style_then_every_style(pipeline, spec, photos):
    rows = list(style_rows(pipeline, spec, photos, "pan left"))
    assert [label for label, _, _ in rows] == ["wide", "tall"]
    for (_, row, figures), size in zip(rows, ((96, 64), (64, 96)), strict=True):
        assert len(row) == 2 + len(style_presets())
        assert {image.size for image in row} == {size}
        assert "dB" in figures
        assert "motion" in figures
    plain, _ = make_clip(pipeline, spec, photos[0], prompt="pan left")
    styled, _ = make_clip(
        pipeline, spec, photos[0], prompt="pan left", style=list(style_presets())[2]
    )
    np.testing.assert_array_equal(np.asarray(rows[0][1][1]), plain[-1])
    np.testing.assert_array_equal(np.asarray(rows[0][1][4]), styled[-1])


def test_a_motion_row_runs_through_time(pipeline, spec, photos):
    rows = list(motion_rows(pipeline, spec, photos[1]))
    assert [label for label, _, _ in rows] == list(MOTION_PROMPTS)
    frames, _ = make_clip(pipeline, spec, photos[1], prompt=MOTION_PROMPTS[0])
    first_row = rows[0][1]
    assert len(first_row) == 2  # frames 0 and 12 of 13
    np.testing.assert_array_equal(np.asarray(first_row[0]), frames[0])
    np.testing.assert_array_equal(np.asarray(first_row[1]), frames[12])
