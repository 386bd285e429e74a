"""Makes the README's picture from real output: `python tests/benchmarks/gallery.py`.

One clip through time; with `--styles`, the last frame of the same picture in every style below it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from mini_sheet import open_pipeline
from PIL import Image

from osp_cli.evaluation.sheet import make_clip
from osp_cli.media.sheet import labelled_grid, save_sheet
from osp_cli.registry import find_model, style_presets

PRESETS = Path(__file__).parents[2] / "presets"
COLUMNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photo", type=Path, default=PRESETS / "examples" / "lake.jpg")
    parser.add_argument("--out", type=Path, default=PRESETS / "gallery" / "hero.png")
    parser.add_argument("--prompt", default="the camera zooms in")
    parser.add_argument("--styles", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline, spec = open_pipeline("osp-mini"), find_model("osp-mini")
    frames, image = make_clip(pipeline, spec, options.photo, prompt=options.prompt)
    cells: dict[str, Image.Image] = {"the picture": image}
    for index in (0, 16, 32, 48):
        cells[f"{options.prompt}, frame {index}"] = Image.fromarray(frames[index])
    for style in style_presets() if options.styles else ():
        frames, _ = make_clip(pipeline, spec, options.photo, prompt=options.prompt, style=style)
        cells[f"--style {style}"] = Image.fromarray(frames[-1])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_sheet(labelled_grid(cells, num_columns=COLUMNS, cell_width=300), options.out)


if __name__ == "__main__":
    main()
