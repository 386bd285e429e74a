"""Streams for tests: frames that tell their number, and programs that are killed while they run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from osp_cli.media.live import open_live
from osp_cli.media.video import read_video

WIDTH, HEIGHT = 64, 48
CHUNK = 6
RECIPE = {"prompt": "a pan", "seed": 7}


def chunk(first: int, count: int = CHUNK) -> np.ndarray:
    """Frames `(count, 48, 64, 3)`; the number of each is written in it as 8 black or white bars."""
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    for index, frame in enumerate(frames):
        bits = [(first + index) >> bit & 1 for bit in range(8)]
        frame[:] = np.repeat(np.array(bits, np.uint8) * 200 + 20, 8)[None, :, None]
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers of such frames, after whatever coding."""
    bars = frames.reshape(len(frames), HEIGHT, 8, 8, 3).mean(axis=(1, 3, 4)) > 120
    return [int((row << np.arange(8)).sum()) for row in bars]


def numbers_in(path: Path) -> list[int]:
    return numbers(read_video(path))


def open_stream(output: Path, *targets: str, **more):
    """A sink of such frames, 24 a second."""
    settings = {"fps": 24, "chunk_frames": CHUNK, "recipe": RECIPE, **more}
    return open_live(targets or ("file",), output=output, width=WIDTH, height=HEIGHT, **settings)


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_running(pid: int) -> bool:
    """Whether a process lives and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return False
    return state not in "ZX"
