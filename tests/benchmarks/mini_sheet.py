"""A labelled sheet of what an installed model makes, from one load; looked at, not asserted.

`python tests/benchmarks/mini_sheet.py PHOTO... --out sheet.jpg` shows each clip's last frame in
every style and prints what was measured; `--motions` lays out frames of the motions instead.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from osp_cli.evaluation.sheet import motion_rows, style_rows
from osp_cli.media.sheet import contact_sheet, save_sheet
from osp_cli.pipelines.flash_i2v import FlashI2VPipeline
from osp_cli.registry import find_model, style_presets
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.devices import this_machine
from osp_cli.runtime.loading import Components, load_components
from osp_cli.runtime.planner import make_plan


def open_pipeline(name: str) -> FlashI2VPipeline:
    """The installed model called `name`, on the CPU."""
    spec = find_model(name)
    folder = spec.weights_dir()
    request = GenerateRequest(image=Path("any.png"), model=name, seed=0)
    plan = make_plan(
        request,
        spec,
        size=spec.default_size,
        machine=this_machine(torch.device("cpu")),
        weights=folder,
    )
    *_, components = load_components(spec, plan, folder)
    assert isinstance(components, Components)
    parts = (components.transformer, components.vae, components.conditioner)
    return FlashI2VPipeline(*parts, surround=spec.image_token_surround)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="osp-mini")
    parser.add_argument("--prompt", default="the camera pans left")
    parser.add_argument("--motions", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline, spec = open_pipeline(options.model), find_model(options.model)
    if options.motions:
        rows = motion_rows(pipeline, spec, options.photos[0])
        columns = [f"frame {k}" for k in range(0, 49, 12)]
    else:
        rows = style_rows(pipeline, spec, options.photos, options.prompt)
        columns = ["photo", "no style", *style_presets()]
    pictures = {}
    for label, row, figures in rows:
        sys.stderr.write(f"{label}: {figures}\n")
        pictures[label] = row
    save_sheet(contact_sheet(pictures, column_labels=columns), options.out)


if __name__ == "__main__":
    main()
