"""The embedded model's training pool: rendered clips, already encoded, with their captions.

A shard holds a few canvases seen many ways: several motions, several styles, mirrored or not. Of a
clip only a few latent frames are rendered and kept, since many scenes teach more than many moments
of one. Everything follows from (seed, shard number), so a pool can be rendered again, on any
machine, in any order.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.models.latents import encode_latents
from osp_cli.procedural.motions import Motion, render_clip
from osp_cli.procedural.prompts import random_motion, random_prompt, random_style
from osp_cli.procedural.scenes import make_canvases, sharp_canvases
from osp_cli.procedural.styles import STYLE_OPERATORS

# Latent frames that the clips of a shard keep, of 13. Together they are all, at many distances.
KEPT_FRAMES = ((0, 1, 2, 5), (0, 3, 7, 10), (0, 4, 6, 12), (0, 8, 9, 11))
SHARP_SHARE = 0.5  # of shards whose canvases are as sharp as a photograph reduced to its half
# (width, height) and how often: people bring landscape pictures mostly.
BUCKET_WEIGHTS: dict[tuple[int, int], float] = {
    (448, 256): 0.46,
    (416, 288): 0.1,
    (384, 320): 0.06,
    (352, 352): 0.14,
    (320, 384): 0.05,
    (288, 416): 0.07,
    (256, 448): 0.12,
}


@dataclass(frozen=True, slots=True)
class Shard:
    """Clips of one bucket.

    Attributes:
        latents: normalised latents of the (styled) clips, `(clips, z, kept frames, h, w)`.
        indices: which latent frames these are, `(kept frames,)`, rising from 0.
        first: normalised latents of the unstyled first frames, `(clips, z, 1, h, w)`.
        pictures: those frames at half size for the language model, uint8 `(clips, 3, H/2, W/2)`.
        captions: one dictionary per clip: prompt, style, camera, scene, speed.
    """

    latents: Tensor
    indices: Tensor
    first: Tensor
    pictures: Tensor
    captions: list[dict[str, str | None]]


def render_shard(
    codec: AutoencoderLinear,
    seed: int,
    number: int,
    canvases: int = 8,
    clips_per_canvas: int = 3,
    device: str = "cpu",
) -> Shard:
    """Renders and encodes one shard."""
    rng = random.Random(f"{seed}/{number}")
    generator = torch.Generator(device=device).manual_seed(rng.getrandbits(48))
    buckets = tuple(BUCKET_WEIGHTS)
    width, height = rng.choices(buckets, tuple(BUCKET_WEIGHTS.values()))[0]
    draw = sharp_canvases if rng.random() < SHARP_SHARE else make_canvases
    scenes = draw(generator, canvases, height, width)
    latents: list[Tensor] = []
    kept = rng.choice(KEPT_FRAMES)
    times = frame_times(kept)
    first: list[Tensor] = []
    pictures: list[Tensor] = []
    captions: list[dict[str, str | None]] = []
    for index in range(canvases * clips_per_canvas):
        canvas = scenes[index // clips_per_canvas]
        if rng.random() < 0.5:
            canvas = canvas.flip(2)
        motion, style = random_motion(rng), random_style(rng)
        snow_seed = rng.getrandbits(30)
        plain = render_clip(canvas, motion, (height, width), times[:1], snow_seed)
        clip = render_styled(canvas, motion, style, (height, width), times, snow_seed)
        for pixels, into in ((clip, latents), (plain, first)):
            encoded = encode_latents(codec, pixels.transpose(0, 1)[None] * 2 - 1)
            into.append(encoded[0].to("cpu", torch.bfloat16))
        small = torch.nn.functional.avg_pool2d(plain, 2)[0]
        pictures.append((small.clamp(0, 1) * 255).round().to("cpu", torch.uint8))
        captions.append(
            {
                "prompt": random_prompt(rng, motion, style),
                "style": style,
                "camera": motion.camera,
                "scene": motion.scene,
                "speed": motion.speed,
            }
        )
    return Shard(
        torch.stack(latents),
        torch.tensor(kept),
        torch.stack(first),
        torch.stack(pictures),
        captions,
    )


def frame_times(indices: tuple[int, ...]) -> Tensor:
    """Frame numbers that latent frames cover: one for the first, four for every other."""
    groups = [[0] if index == 0 else list(range(4 * index - 3, 4 * index + 1)) for index in indices]
    return torch.tensor([time for group in groups for time in group])


def render_styled(
    canvas: Tensor,
    motion: Motion,
    style: str | None,
    size: tuple[int, int],
    times: Tensor,
    seed: int,
) -> Tensor:
    """A clip in [0, 1], `(frames, 3, height, width)`: painted on the canvas, moved, then
    screened."""
    if style is None:
        return render_clip(canvas, motion, size, times, seed).clamp(0.0, 1.0)
    operator = STYLE_OPERATORS[style]
    clip = render_clip(operator.paint(canvas[None])[0], motion, size, times, seed)
    return operator.screen(clip).clamp(0.0, 1.0)


def save_shard(shard: Shard, path: Path) -> None:
    """Writes a shard whole or not at all."""
    part = path.with_suffix(".part")
    save_file(
        {
            "latents": shard.latents.contiguous(),
            "indices": shard.indices,
            "first": shard.first,
            "pictures": shard.pictures,
        },
        part,
        metadata={"captions": json.dumps(shard.captions)},
    )
    part.rename(path)


def load_shard(path: Path) -> Shard:
    """Reads what `save_shard` wrote."""
    with safe_open(path, "pt") as file:
        captions = json.loads(file.metadata()["captions"])
        return Shard(
            file.get_tensor("latents"),
            file.get_tensor("indices"),
            file.get_tensor("first"),
            file.get_tensor("pictures"),
            captions,
        )
