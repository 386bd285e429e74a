"""Tiny clips that move, made by ffmpeg, and a look at a folder that must stay as it is."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from osp_cli.training.dataset.check import CheckSettings, check_dataset

clips = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "media" / "clips.py")))


@pytest.fixture(scope="session")
def moving(tmp_path_factory) -> Callable[..., Path]:
    """A function that gives a path a clip of ffmpeg's moving test picture; each made once."""
    kept = tmp_path_factory.mktemp("moving")

    def make(
        path: Path, *arguments: object, size="96x96", fps=24, seconds=1.5, source="testsrc2"
    ) -> Path:
        name = f"{abs(hash((arguments, size, fps, seconds, source)))}{path.suffix}"
        if not (kept / name).exists():
            clips.run(
                *("-f", "lavfi", "-i", f"{source}=s={size}:r={fps}:d={seconds}"),
                *("-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "ultrafast"),
                *(*arguments, kept / name),
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((kept / name).read_bytes())
        return path

    return make


@pytest.fixture
def clip(moving) -> Callable[..., Path]:
    """A function that puts a clip somewhere, its caption beside it."""

    def make(path: Path, *arguments: object, caption="a test picture", **options) -> Path:
        moving(path, *arguments, **options)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return make


@pytest.fixture
def checked() -> Callable[..., object]:
    """A function that checks a folder for windows of 17 frames at 16 fps and 64x64 pixels.

    It fails where anything in the folder changes.
    """

    def check(folder: Path, progress=None, **options):
        before = listing(folder)
        settings = {"num_frames": 17, "width": 64, "height": 64, "max_tokens": 64, **options}
        report = check_dataset(folder, CheckSettings(**settings), progress)
        assert listing(folder) == before
        return report

    return check


def listing(folder: Path) -> list[tuple[str, int, int]]:
    """Everything in a folder with its size and time."""
    folder = folder if folder.is_dir() else folder.parent
    return sorted(
        (str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")
    )
