"""A fourteenth style, from a folder of clips to photos that it never saw, measured.

    python tests/benchmarks/own_style.py --folder RUNS --json OUT [--paired] [--steps N]

Makes clips in a style that osp-mini does not know (panes of coloured glass in a lattice of lead),
trains on them through the command line, and shows seven photos in the trained style. Each is judged
as the embedded model's own styles are: which of fifteen pictures of the photo, in its thirteen
styles, in this one and as it is, is it nearest to? And a classifier that has seen the operators'
pictures of all photos but this one is asked too. Prints figures as JSON, writes a contact sheet.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from osp_cli.evaluation import style_identity
from osp_cli.evaluation.photos import held_out_photos
from osp_cli.evaluation.style_identity import Stranger, expected_looks, nearest_look
from osp_cli.media.image import cover_resize_crop
from osp_cli.media.sinks import open_sink
from osp_cli.procedural.motions import render_clip
from osp_cli.procedural.noise import saturate
from osp_cli.procedural.prompts import random_motion, random_prompt
from osp_cli.procedural.scenes import sharp_canvases
from osp_cli.procedural.styles import STYLE_OPERATORS, StyleOperator, contours, kuwahara

NAME = "stainedglass"
TRIGGER = "stained glass"
SIZE = (448, 256)
FRAMES = 49


def paint(images: Tensor) -> Tensor:
    """Flat, vivid panes with dark contours."""
    panes = saturate(kuwahara(kuwahara(images, 4), 4), 2.0)
    panes = (panes - 0.5) * 1.25 + 0.52
    panes = (panes * 5).round() / 5 * 0.5 + panes * 0.5
    return panes.clamp(0, 1) * (1 - 0.85 * contours(images, 1.5, 12.0, 0.05))


def screen(images: Tensor) -> Tensor:
    """A lattice of lead that stands still; light falls through the middle of each pane."""
    height, width = images.shape[2:]
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    across, down = ((x + y) / 32) % 1, ((x - y) / 32) % 1
    edge = torch.minimum(torch.minimum(across, 1 - across), torch.minimum(down, 1 - down))
    distance = edge * 32 / 2**0.5
    lead = 1 - ((distance - 1.2) / 1.2).clamp(0, 1)
    glow = 0.82 + 0.25 * (distance / 5.66).clamp(0, 1)
    colour = torch.tensor([0.07, 0.06, 0.08])[None, :, None, None]
    return (images * glow).clamp(0, 1) * (1 - lead) + lead * colour


GLASS = StyleOperator(paint, screen)


def make_clips(folder: Path, count: int, *, paired: bool, seed: int = 5) -> None:
    """Write clips with their captions; with `paired` also the picture each was made from."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    width, height = SIZE
    canvases = sharp_canvases(generator, count, height, width)
    for number in range(count):
        motion, snow = random_motion(rng), rng.getrandbits(30)
        times = torch.arange(FRAMES)
        styled = GLASS.paint(canvases[number : number + 1])[0]
        clip = GLASS.screen(render_clip(styled, motion, (height, width), times, snow))
        path = folder / f"clip{number:02d}.mp4"
        sink = open_sink(path, fps=16, recipe={}, overwrite=True, metadata=False)
        sink.write(_frames(clip))
        path.with_suffix(".txt").write_text(random_prompt(rng, motion, None))
        if paired:
            plain = render_clip(canvases[number], motion, (height, width), times[:1], snow)
            Image.fromarray(_frames(plain)[0]).save(folder / f"{path.stem}.source.png")


def _frames(images: Tensor) -> np.ndarray:
    return (images.clamp(0, 1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def osp(home: Path, *arguments: object) -> tuple[float, float]:
    """Run a command; seconds of the clock and of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    environment = {**os.environ, "OSP_HOME": str(home)}
    subprocess.run(
        [sys.executable, "-m", "osp_cli", *map(str, arguments)],
        env=environment,
        check=True,
        stdout=sys.stderr,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, used


def first_frame(path: Path, number: int = 0) -> np.ndarray:
    """A frame of a clip, `(height, width, 3)`."""
    from osp_cli.media.source_video import probe_source, read_frames

    source = probe_source(path)
    frames = read_frames(source, SIZE, 16, start_frame=number, num_frames=1)
    return next(iter(frames))


def judge(folder: Path, home: Path) -> tuple[dict[str, object], list[np.ndarray]]:
    """Show the photos in the style; what each is taken for, and rows of a contact sheet."""
    STYLE_OPERATORS[NAME] = GLASS
    style_identity.LOOKS = (*style_identity.LOOKS, NAME)
    photos = {}
    for photo in held_out_photos():
        with Image.open(photo.path) as opened:
            photos[photo.name] = cover_resize_crop(opened.convert("RGB"), *SIZE)
    stranger = Stranger(photos, lambda frames: frames)
    found: dict[str, object] = {}
    rows = []
    for name, photo in photos.items():
        path, clip = folder / f"{name}.png", folder / f"{name}.mp4"
        photo.save(path)
        osp(home, "generate", path, "", "--style", NAME, "--seed", 1, "-o", clip, "-y", "-q")
        shown, later = first_frame(clip), first_frame(clip, FRAMES - 1)
        looks = expected_looks(photo)
        found[name] = {
            "nearest": nearest_look(shown, looks),
            "stranger": stranger.without(name)(shown),
        }
        rows.append(np.concatenate([np.asarray(photo), looks[NAME], shown, later], axis=1))
    return found, rows


def main() -> None:
    """Make clips, train, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--paired", action="store_true")
    asked = parser.parse_args()
    folder: Path = asked.folder
    home = folder / "home"
    make_clips(folder / "clips", asked.clips, paired=asked.paired)
    steps = ("--max-steps", asked.steps) if asked.steps else ()
    wall, used = osp(
        home,
        *("train-lora", folder / "clips", "--out", folder / NAME, "--trigger", TRIGGER, *steps),
    )
    looks, rows = judge(folder, home)
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((sheet.width // 2, sheet.height // 2)).save(folder / "sheet.png")
    hits = {
        judge: sum(found[judge] == NAME for found in looks.values()) / len(looks)
        for judge in ("nearest", "stranger")
    }
    result = {
        "clips": asked.clips,
        "paired": asked.paired,
        "train_seconds": round(wall, 1),
        "train_cpu_seconds": round(used, 1),
        "identified": hits,
        "photos": looks,
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
