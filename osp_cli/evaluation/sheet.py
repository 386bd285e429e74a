"""Sheets of what a model makes: photos down and styles across, or motions down and time across."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from osp_cli.evaluation.metrics import mean_motion, psnr
from osp_cli.events import FramesReady
from osp_cli.media.image import choose_bucket, cover_resize_crop, load_image
from osp_cli.pipelines.flash_i2v import FlashI2VPipeline, SamplingInputs
from osp_cli.registry import ModelSpec, find_style, style_presets

MOTION_PROMPTS = (
    "the camera pans left",
    "the camera pans right",
    "the camera tilts up",
    "the camera zooms in",
    "the camera zooms out",
    "roll right",
    "the subject sways",
    "snow falls",
)


def make_clip(
    pipeline: FlashI2VPipeline,
    spec: ModelSpec,
    photo: Path,
    *,
    prompt: str,
    style: str | None = None,
    seed: int = 1,
    cutoff: float | None = None,
) -> tuple[NDArray[np.uint8], Image.Image]:
    """Frames of one clip with the card's defaults, and the picture as the model saw it."""
    picture = load_image(photo).image
    width, height = choose_bucket(picture.width, picture.height, spec.sizes)
    image = cover_resize_crop(picture, width, height)
    percentile = float(spec.defaults.get("cutoff", 0.1)) if cutoff is None else cutoff
    inputs = SamplingInputs(
        image=image,
        prompt=find_style(style).prompt_for(spec, prompt) if style else prompt,
        negative_prompt=str(spec.defaults.get("negative_prompt", "")),
        width=width,
        height=height,
        num_frames=int(spec.defaults.get("num_frames", 49)),
        num_inference_steps=int(spec.defaults.get("num_inference_steps", 50)),
        guidance_scale=float(spec.defaults.get("guidance_scale", 5.0)),
        shift=float(spec.defaults.get("shift", 7.0)),
        cutoff=(percentile, percentile),
        seed=seed,
    )
    for event in pipeline(inputs):
        if isinstance(event, FramesReady):
            return event.frames, image
    raise AssertionError("a pipeline ends with its frames")


def style_rows(
    pipeline: FlashI2VPipeline, spec: ModelSpec, photos: list[Path], prompt: str
) -> Iterator[tuple[str, list[Image.Image], str]]:
    """For each photo: its name, the last frame unstyled and in every style, and the measures."""
    for photo in photos:
        row, figures = [], ""
        for style in (None, *style_presets()):
            frames, image = make_clip(pipeline, spec, photo, prompt=prompt, style=style)
            if style is None:
                row.append(image)
                first = psnr(frames[0], np.asarray(image))
                figures = f"first frame {first:.1f} dB, motion {mean_motion(frames):.2f}"
            row.append(Image.fromarray(frames[-1]))
        yield photo.stem, row, figures


def motion_rows(
    pipeline: FlashI2VPipeline, spec: ModelSpec, photo: Path
) -> Iterator[tuple[str, list[Image.Image], str]]:
    """For each motion prompt: frames 0, 12, 24, 36, 48 of one photo's clip."""
    for prompt in MOTION_PROMPTS:
        frames, _ = make_clip(pipeline, spec, photo, prompt=prompt)
        shown = [Image.fromarray(frames[k]) for k in range(0, len(frames), 12)]
        yield prompt, shown, f"motion {mean_motion(frames):.2f}"
