"""Requests for the tiny model, run away from the user's home."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from osp_cli.requests import GenerateRequest


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch):
    """A folder of its own for every test."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def picture(away):
    path = away / "cat.png"
    Image.effect_noise((97, 64), 90).convert("RGB").save(path)
    return path


@pytest.fixture
def request_for(tiny_card, picture):
    """Builds requests for a clip of five frames in two steps; keywords change them."""

    def build(**changes):
        settings = {
            "image": picture,
            "prompt": "pan left",
            "output": Path("clip.mp4"),
            "model": "tiny",
            "num_frames": 5,
            "num_inference_steps": 2,
            "guidance_scale": 2.0,
            "shift": 3.0,
            "seed": 1,
            "device": "cpu",
        }
        return GenerateRequest(**{**settings, **changes})

    return build


@pytest.fixture
def own_weights(tiny_home, tmp_path, monkeypatch, tiny_card):
    """A copy of the weights that a test may damage; `$OSP_HOME` points at it."""
    shutil.copytree(tiny_home, tmp_path / "home")
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models" / "tiny"
