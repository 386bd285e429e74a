"""What the embedded weights must still show: `python tests/benchmarks/mini_promises.py PHOTO`.

Prints a line per promise and exits 1 while one is not kept. The first weights keep the picture and
nothing else; this becomes a test with the weights that keep it all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from mini_sheet import open_pipeline

from osp_cli.evaluation.metrics import mean_motion, psnr, travelled
from osp_cli.evaluation.sheet import make_clip
from osp_cli.registry import find_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline, spec = open_pipeline("osp-mini"), find_model("osp-mini")

    def clip(prompt: str, style: str | None = None) -> np.ndarray:
        return make_clip(pipeline, spec, options.photo, prompt=prompt, style=style)[0]

    left, image = make_clip(pipeline, spec, options.photo, prompt="pan left fast")
    right, noir = clip("pan right fast"), clip("pan left fast", "gotham-noir")
    promises = {
        "first frame >= 19 dB": (psnr(left[0], np.asarray(image)), 19.0),
        "mean motion > 0.3": (mean_motion(left), 0.3),
        "travelled > 4": (travelled(left), 4.0),
        "left differs from right by > 2": (float(np.abs(left - 1.0 * right).mean()), 2.0),
        "noir differs from no style by > 20": (float(np.abs(left - 1.0 * noir).mean()), 20.0),
    }
    for promise, (value, floor) in promises.items():
        kept = "kept" if value > floor else "NOT KEPT"
        sys.stdout.write(f"{promise}: {value:.2f} {kept}\n")
    return 0 if all(value > floor for value, floor in promises.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
