"""Videos made by ffmpeg for tests; every frame tells its number by its grey."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from osp_cli.media import ffmpeg

WIDTH, HEIGHT = 64, 48
LOSSLESS = ("-c:v", "libx264", "-qp", "0", "-preset", "ultrafast", "-bf", "2")


def run(*arguments: object) -> None:
    """Run the genuine ffmpeg; its complaints become the test's."""
    command = [ffmpeg.ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def numbered(count: int) -> np.ndarray:
    """Frames `(count, 48, 64, 3)`, frame k of the grey `20 + 8 k`; 28 at most can be told apart."""
    greys = (20 + 8 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(greys[:, None, None, None], (count, HEIGHT, WIDTH, 3))


def numbers(frames) -> list[int]:
    """The numbers of such frames."""
    return [round((float(frame.mean()) - 20) / 8) for frame in frames]


def make(
    path: Path,
    frames: np.ndarray,
    *arguments: object,
    fps: object = 16,
    inputs: Sequence[object] = (),
    codec: Sequence[object] = LOSSLESS,
) -> Path:
    """Encode frames with ffmpeg itself; `inputs` stand before them."""
    raw = path.with_name(path.name + ".rgb")
    raw.write_bytes(np.ascontiguousarray(frames).tobytes())
    height, width = frames.shape[1:3]
    run(
        *inputs,
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", fps, "-i", raw),
        *codec,
        *([] if "-pix_fmt" in arguments else ["-pix_fmt", "yuv420p"]),
        *arguments,
        path,
    )
    raw.unlink()
    return path
