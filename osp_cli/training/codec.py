"""Fits the embedded codec: principal components of blocks, then the refinement network."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from osp_cli.models.autoencoder_linear import AutoencoderLinear, to_blocks
from osp_cli.procedural.motions import render_clip
from osp_cli.procedural.prompts import random_motion, random_style
from osp_cli.procedural.scenes import sharp_canvases
from osp_cli.procedural.styles import STYLE_OPERATORS

# Share of a channel's own deviation that normalisation removes. Full whitening would make a model
# spend itself on the finest channels; none would leave them to drown in the first.
WHITENING = 0.5
STD_FLOOR = 0.02


def styled_clips(
    seed: int, canvases: int, size: tuple[int, int], frames: int, device: str
) -> tuple[Tensor, Tensor]:
    """Clips in [-1, 1], `(canvases, 3, frames, h, w)`, and still repeats of first frames."""
    generator = torch.Generator(device=device).manual_seed(seed)
    rng = random.Random(seed)
    canvas = sharp_canvases(generator, canvases, *size)
    clips = []
    for index in range(canvases):
        style = random_style(rng)
        painted = canvas[index : index + 1]
        operator = STYLE_OPERATORS[style] if style else None
        if operator:
            painted = operator.paint(painted)
        start = rng.randrange(0, 40)
        times = torch.arange(start, start + frames)
        clip = render_clip(painted[0], random_motion(rng), size, times, seed=seed)
        clips.append(operator.screen(clip) if operator else clip)
    video = torch.stack(clips).transpose(1, 2) * 2 - 1
    return video, video[:, :, :1].expand(-1, -1, 4, -1, -1)


def fit_transform(
    model: AutoencoderLinear, seed: int, canvases: int = 64, device: str = "cpu"
) -> AutoencoderLinear:
    """Closed-form part: both bases, their alignment, and the latents' mean and deviation.

    The later-frame basis is rotated onto the first-frame basis (orthogonal Procrustes on still
    clips), so that a picture and a still clip of it have nearly the same latents in every frame.
    """
    z_dim, block = model.config.z_dim, model.config.block
    first, moving, still = [], [], []
    for part in range(canvases // 8):
        video, repeat = styled_clips(seed + part, 8, (256, 448), 5, device)
        first.append(to_blocks(video[:, :, :1], block, 1).flatten(0, 3))
        moving.append(to_blocks(video[:, :, 1:], block, 4).flatten(0, 3))
        still.append(to_blocks(repeat, block, 4).flatten(0, 3))
    first_blocks, next_blocks, still_blocks = torch.cat(first), torch.cat(moving), torch.cat(still)
    model.first_mean.data = first_blocks.mean(0)
    model.next_mean.data = model.first_mean.data.reshape(3, 1, -1).repeat(1, 4, 1).flatten()
    model.first_basis.data = _components(first_blocks - model.first_mean, z_dim)
    # A quarter of still blocks keeps fine still detail from losing to rare fast motion.
    mix = torch.cat([next_blocks, still_blocks[::3]]) - model.next_mean
    basis = _components(mix, z_dim)
    target = (first_blocks - model.first_mean) @ model.first_basis.T
    source = (still_blocks - model.next_mean) @ basis.T * 0.5
    u, _, vh = torch.linalg.svd(target.T @ source)
    model.next_basis.data = (u @ vh) @ basis
    latents = torch.cat([target, (next_blocks - model.next_mean) @ model.next_basis.T * 0.5])
    std = latents.std(0)
    std = std.clamp_min(STD_FLOOR * std.max())
    divisor = std**WHITENING
    divisor = divisor * (std / divisor).square().mean().sqrt()
    model.register_to_config(
        latents_mean=[round(v, 6) for v in latents.mean(0).tolist()],
        latents_std=[round(v, 6) for v in divisor.tolist()],
    )
    return model


def _components(centred: Tensor, count: int) -> Tensor:
    """Leading eigenvectors of the covariance as rows, signs fixed for a repeatable refit."""
    covariance = centred.T.double() @ centred.double() / len(centred)
    _, vectors = torch.linalg.eigh(covariance)
    basis = vectors[:, -count:].flip(1).T
    sign = torch.sign(basis.gather(1, basis.abs().argmax(1, keepdim=True)))
    return (basis * sign).float()


@dataclass(frozen=True, slots=True)
class Made:
    """Two latent frames, a clip's first and a later one, and the five pictures they stand for.

    Attributes:
        encoded: raw latents that the transform gives, `(z, 2, rows, columns)`.
        made: raw latents that the transformer gives.
        video: `(3, 5, height, width)` in [-1, 1].
    """

    encoded: Tensor
    made: Tensor
    video: Tensor


def train_refinement(
    model: AutoencoderLinear,
    examples: list[Made],
    seed: int,
    steps: int,
    on_step: Callable[[int, float], None],
    learning_rate: float = 1e-3,
    batch_size: int = 4,
    crop: int = 8,
    texture: float = 0.0,
) -> None:
    """Trains the refinement, in turn on the transform's own latents and on the transformer's.

    From the first it learns what a picture looks like between the codec's waves, from the second to
    close the seams between tokens.

    Args:
        model: the codec; only its refinement changes.
        examples: to learn from.
        seed: of the refinement's draws.
        steps: of AdamW, its rate falling to zero.
        on_step: told step and loss.
        learning_rate: at the start.
        batch_size: crops a step.
        crop: their side in latent cells.
        texture: weight of `texture_loss` on what the transformer made, which is soft where
            something moved.
    """
    assert model.refinement is not None
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.refinement.requires_grad_(True)
    device = model.first_basis.device
    optimizer = torch.optim.AdamW(model.refinement.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 50) * max(0.0, 1 - step / steps)
        crops = [_crop(examples, generator, crop, step % 2 == 0) for _ in range(batch_size)]
        z, video = (torch.stack(part).to(device) for part in zip(*crops, strict=True))
        with torch.no_grad():
            linear = model.decode_linear(z)
        # The first frame and one group of four, as decode() meets them.
        pieces = (linear[:, :, :1], linear[:, :, 1:])
        refined = [model.refinement(piece, z[:, :, n]) for n, piece in enumerate(pieces)]
        loss = reconstruction_loss(torch.cat(refined, 2), video)
        if texture and step % 2:
            loss = loss + texture * texture_loss(torch.cat(refined, 2), video)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.refinement.parameters(), 1.0)
        optimizer.step()
        on_step(step + 1, loss.item())


def _crop(
    examples: list[Made], generator: torch.Generator, cells: int, encoded: bool
) -> tuple[Tensor, Tensor]:
    """Latents and pixels of a random square of a random example."""
    example = examples[int(torch.randint(0, len(examples), (1,), generator=generator))]
    latents = example.encoded if encoded else example.made
    side = example.video.shape[-1] // latents.shape[-1]
    top, left = (
        int(torch.randint(0, size - cells + 1, (1,), generator=generator))
        for size in latents.shape[-2:]
    )
    rows, columns = slice(top, top + cells), slice(left, left + cells)
    pixels = example.video[
        ..., side * top : side * (top + cells), side * left : side * (left + cells)
    ]
    return latents[..., rows, columns].float(), pixels.float()


def texture_loss(output: Tensor, target: Tensor, region: int = 8) -> Tensor:
    """By how much the fine contrast of every region of `region` pixels differs, wherever in it the
    contrast is: what is a pixel off may be sharp all the same."""

    def contrast(video: Tensor) -> Tensor:
        images = video.transpose(1, 2).flatten(0, 1)
        around = images[..., :-2, 1:-1] + images[..., 2:, 1:-1]
        around = around + images[..., 1:-1, :-2] + images[..., 1:-1, 2:]
        fine = images[..., 1:-1, 1:-1] - around / 4
        return (F.avg_pool2d(fine.square().mean(1), region) + 1e-5).sqrt()

    return (contrast(output) - contrast(target)).abs().mean()


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Squared error (weight 10), absolute error, and absolute error of horizontal and vertical
    steps."""
    error = output - target
    dx, dy = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return (
        10 * error.square().mean() + error.abs().mean() + 0.5 * (dx.abs().mean() + dy.abs().mean())
    )


def psnr(output: Tensor, target: Tensor, peak: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB; `peak` is the range, 2 for [-1, 1]."""
    mse = F.mse_loss(output.float(), target.float()).item()
    return float(10 * torch.log10(torch.tensor(peak**2 / max(mse, 1e-12))))


def save_codec(model: AutoencoderLinear, folder: Path) -> None:
    """Writes the codec in bf16, half the size; 8 bits of mantissa cost the picture nothing."""
    model.to(torch.bfloat16).save_pretrained(folder)
