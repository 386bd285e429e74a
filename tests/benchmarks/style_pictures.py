"""Makes the pictures of `osp styles` from real output: `python tests/benchmarks/style_pictures.py`.

One picture in every style, by osp-mini; small enough to be part of the package.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageOps

from osp_cli.registry import find_model, style_presets
from osp_cli.runtime.studio import Studio

PRESETS = Path(__file__).parents[2] / "presets"
SIZE = (160, 90)
MAX_BYTES = 6000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photo", type=Path, default=PRESETS / "examples" / "lake.jpg")
    parser.add_argument("--out", type=Path, default=PRESETS / "gallery" / "styles")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    size = find_model("osp-mini").default_size
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio("osp-mini", folder=Path(folder), device="cpu")
        for style in style_presets():
            frame = studio.clip(options.photo, size, 1, style=style)[0]
            data = encoded(Image.fromarray(frame))
            (options.out / f"{style}.jpg").write_bytes(data)
            print(f"{style}: {len(data)} bytes")  # noqa: T201


def encoded(image: Image.Image) -> bytes:
    """A JPEG as good as there is room for."""
    small = ImageOps.fit(image, SIZE, Image.Resampling.LANCZOS)
    for quality in range(90, 20, -5):
        file = io.BytesIO()
        small.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() < MAX_BYTES:
            return file.getvalue()
    raise ValueError(f"no JPEG of {SIZE[0]}x{SIZE[1]} has less than {MAX_BYTES} bytes")


if __name__ == "__main__":
    main()
