"""The figures of step caches that a model's card needs, measured on an installed model.

`python tests/benchmarks/step_caches.py --fit` prints them as TOML, `--samplers` compares UniPC with
Euler at equal steps. What the caches then save and cost is told by `osp bench cache`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from mini_sheet import open_pipeline
from torch import Tensor

from osp_cli.evaluation.cache_bench import WISHES
from osp_cli.evaluation.metrics import mean_motion, psnr
from osp_cli.media.image import choose_bucket, cover_resize_crop, load_image
from osp_cli.pipelines.flash_i2v import (
    Conditions,
    FlashI2VPipeline,
    SamplingInputs,
    decode_frames,
)
from osp_cli.registry import ModelSpec, find_model, find_style
from osp_cli.sampling.mag_calibration import calibrate_mag_ratios

EXAMPLE = Path(__file__).parents[2] / "presets" / "examples" / "lake.jpg"
DEGREE = 4
SOURCE = "measured by tests/benchmarks/step_caches.py --fit"


@dataclass(frozen=True)
class Clip:
    """A clip to be sampled again and again.

    Attributes:
        name: of its picture.
        inputs, conditions: as the pipeline takes them; the conditioning is made once.
    """

    name: str
    inputs: SamplingInputs
    conditions: Conditions


def make_clips(
    pipeline: FlashI2VPipeline, spec: ModelSpec, photos: list[Path], num_frames: int
) -> list[Clip]:
    """One clip of each photo, each with another wish."""
    clips = []
    for index, photo in enumerate(photos):
        prompt, style = WISHES[index % len(WISHES)]
        picture = load_image(photo).image
        width, height = choose_bucket(picture.width, picture.height, spec.sizes)
        inputs = SamplingInputs(
            image=cover_resize_crop(picture, width, height),
            prompt=find_style(style).prompt_for(spec, prompt) if style else prompt,
            negative_prompt=str(spec.defaults.get("negative_prompt", "")),
            width=width,
            height=height,
            num_frames=num_frames,
            num_inference_steps=1,
            guidance_scale=float(spec.defaults.get("guidance_scale", 5.0)),
            shift=float(spec.defaults.get("shift", 7.0)),
            cutoff=(0.1, 0.1),
            seed=1 + index,
        )
        clips.append(Clip(photo.stem, inputs, pipeline.condition(inputs)))
    return clips


def sample(pipeline: FlashI2VPipeline, clip: Clip, steps: int, sampler: str = "euler") -> Tensor:
    """The latents of `clip` with these settings."""
    inputs = replace(clip.inputs, num_inference_steps=steps, sampler=sampler)
    with pipeline.sampling(inputs, clip.conditions) as sampling:
        for _ in sampling.steps():
            pass
        return sampling.latents


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


# --- the figures of a card --------------------------------------------------------------------


@dataclass
class Distances:
    """Relative L1 distances of neighbouring steps: of the signal e0 and of the model's output."""

    signal: list[float]
    output: list[float]


@contextmanager
def recorded_distances(pipeline: FlashI2VPipeline) -> Iterator[Distances]:
    """Distances of the one clip that is sampled inside, without guidance."""
    signals: list[Tensor] = []
    outputs: list[Tensor] = []
    transformer = pipeline.transformer
    handles = (
        transformer.condition_embedder.register_forward_hook(
            lambda module, args, output: signals.append(output[1].float())
        ),
        transformer.register_forward_hook(
            lambda module, args, output: outputs.append(output[0].float())
        ),
    )
    distances = Distances([], [])
    try:
        yield distances
    finally:
        for handle in handles:
            handle.remove()
    for seen, found in ((signals, distances.signal), (outputs, distances.output)):
        for before, now in pairwise(seen):
            found.append(((now - before).abs().mean() / before.abs().mean()).item())


def fit(pipeline: FlashI2VPipeline, clips: list[Clip], grids: list[int]) -> None:
    """Print the tables `[teacache]` and `[magcache]`, the latter for each number of steps; a card
    takes the one for its own."""
    x: list[float] = []
    y: list[float] = []
    ratios: dict[int, list[tuple[float, ...]]] = {steps: [] for steps in grids}
    for clip in clips:
        unguided = replace(clip, inputs=replace(clip.inputs, guidance_scale=1.0))
        for steps in grids:
            with (
                recorded_distances(pipeline) as distances,
                calibrate_mag_ratios(pipeline.transformer) as calibration,
            ):
                sample(pipeline, unguided, steps)
            x += distances.signal
            y += distances.output
            ratios[steps].append(calibration.mag_ratios)
            sys.stderr.write(f"{clip.name}, {steps} steps: measured\n")
    sys.stderr.write(f"the output moves by {min(y):.4f} to {max(y):.4f}, mean {np.mean(y):.4f}\n")
    fit_polynomial(x, y, f'source = "{SOURCE}, {len(clips)} clips, {listed(grids)} Euler steps"')
    for steps in grids:
        spread = np.std(ratios[steps], axis=0).max()
        sys.stderr.write(f"ratios at {steps} steps: {spread:.4f} at most between clips (std)\n")
        figures = ", ".join(f"{value:.5g}" for value in np.mean(ratios[steps], axis=0))
        sys.stdout.write(f"\n[magcache]\nratios = [{figures}]\n")
        sys.stdout.write(f'source = "{SOURCE}, {len(clips)} clips, {steps} Euler steps"\n')


def listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def fit_polynomial(x: list[float], y: list[float], source: str) -> None:
    """Print the table `[teacache]` that turns distances of the signal into those of the output."""
    if not np.isfinite(x).all() or max(x) == 0:
        sys.stderr.write("e0 does not move: TeaCache has nothing to decide by on this model\n")
        return
    coefficients = np.polyfit(x, y, DEGREE)
    fitted = np.polyval(coefficients, x)
    off = np.sqrt(np.mean((fitted - y) ** 2))
    sys.stderr.write(
        f"e0 moves by {min(x):.4f} to {max(x):.4f}; "
        f"the fit is off by {off:.4f} (rms), its least value {fitted.min():.4f}\n"
    )
    figures = ", ".join(f"{value:.6g}" for value in coefficients)
    sys.stdout.write(f"\n[teacache]\ncoefficients = [{figures}]\n{source}\n")


# --- samplers ----------------------------------------------------------------------------------


def compare_samplers(pipeline: FlashI2VPipeline, clips: list[Clip], counts: list[int]) -> None:
    """Print how far each sampler's end is from that of 100 Euler steps, means over the clips."""
    reference = [sample(pipeline, clip, 100) for clip in clips]
    pictures = [decode_frames(pipeline.vae, latents) for latents in reference]
    motion = np.mean([mean_motion(frames) for frames in pictures])
    sys.stdout.write(f"\nagainst 100 Euler steps, motion {motion:.2f}\n")
    sys.stdout.write("steps  sampler   error    PSNR  motion\n")
    for steps in counts:
        for sampler in ("euler", "unipc"):
            measured = []
            for clip, latents, frames in zip(clips, reference, pictures, strict=True):
                end = sample(pipeline, clip, steps, sampler)
                other = decode_frames(pipeline.vae, end)
                error = relative_error(end, latents)
                measured.append([error, psnr(other, frames), mean_motion(other)])
            row = "{:7.4f} {:7.1f} {:7.2f}".format(*np.mean(measured, axis=0))
            sys.stdout.write(f"{steps:5d}  {sampler:7s} {row}\n")
            sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="*", default=[EXAMPLE])
    parser.add_argument("--model", default="osp-mini")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--fit", action="store_true")
    what.add_argument("--samplers", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer settings and frames")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--steps", type=int, nargs="+")
    options = parser.parse_args()
    pipeline, spec = open_pipeline(options.model), find_model(options.model)
    usual = 13 if options.quick else int(spec.defaults.get("num_frames", 49))
    clips = make_clips(pipeline, spec, options.photos, options.frames or usual)
    if options.fit:
        fit(pipeline, clips, options.steps or ([8] if options.quick else [8, 20, 50]))
    else:
        compare_samplers(pipeline, clips, options.steps or [4, 6, 8, 12])


if __name__ == "__main__":
    main()
