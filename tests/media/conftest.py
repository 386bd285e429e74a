"""Small clips, and ffmpeg programs that fail on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from osp_cli.media import ffmpeg


@pytest.fixture
def frames() -> np.ndarray:
    """Nine frames of 64x48: a soft gradient with a square that moves to the right."""
    rows, columns = np.mgrid[0:48, 0:64]
    clip = np.empty((9, 48, 64, 3), np.uint8)
    clip[..., 0] = columns * 4
    clip[..., 1] = rows * 5
    clip[..., 2] = 90
    for index, frame in enumerate(clip):
        frame[16:32, 4 + 4 * index : 20 + 4 * index] = (230, 60, 40)
    return clip


@pytest.fixture
def fake_ffmpeg(tmp_path_factory, monkeypatch) -> Callable[[str], Path]:
    """Put a shell script in ffmpeg's place; `$REAL` in it is the genuine program."""
    real = ffmpeg.ffmpeg_exe()

    def install(body: str) -> Path:
        script = tmp_path_factory.mktemp("bin") / "ffmpeg"
        script.write_text(f"#!/bin/sh\nREAL='{real}'\n{body}\n")
        script.chmod(0o755)
        monkeypatch.setattr(ffmpeg, "ffmpeg_exe", lambda: str(script))
        return script

    return install
