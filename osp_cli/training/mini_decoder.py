"""What the transformer makes of new scenes, for the codec's refinement to learn from."""

from __future__ import annotations

import random

import torch
from PIL import Image
from torch import Tensor

from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.models.latents import encode_latents, latent_statistics
from osp_cli.procedural.prompts import random_motion, random_prompt, random_style
from osp_cli.procedural.scenes import make_canvases, sharp_canvases
from osp_cli.sampling.fourier import fourier_features
from osp_cli.training.codec import Made
from osp_cli.training.mini_data import frame_times, render_styled
from osp_cli.training.mini_dit import DitObjective

_SIZE = (256, 448)
_TOGETHER = 4
_CUTOFF = 0.1


@torch.no_grad()
def made_latents(
    objective: DitObjective, codec: AutoencoderLinear, seed: int, count: int
) -> list[Made]:
    """Clips of scenes that the pool does not hold, as rendered and as the model makes them from
    noise in one step.

    Args:
        objective: with model and conditioner.
        codec: whose refinement will be trained.
        seed: of scenes, motions and styles.
        count: of clips.
    """
    rng = random.Random(f"{seed}/decoder")
    generator = torch.Generator().manual_seed(seed)
    examples: list[Made] = []
    while len(examples) < count:
        draw = sharp_canvases if rng.random() < 0.7 else make_canvases
        canvases = draw(generator, _TOGETHER, *_SIZE)
        for _ in range(3):
            examples += _make(objective, codec, canvases, rng, generator)
    return examples[:count]


def _make(
    objective: DitObjective,
    codec: AutoencoderLinear,
    canvases: Tensor,
    rng: random.Random,
    generator: torch.Generator,
) -> list[Made]:
    """One clip of every canvas, all at the same two latent frames."""
    kept = (0, rng.randint(1, 12))
    prompts, videos = [], []
    for canvas in canvases:
        motion, style = random_motion(rng), random_style(rng)
        prompts.append(random_prompt(rng, motion, style))
        videos.append(render_styled(canvas, motion, style, _SIZE, frame_times(kept), 0))
    video = torch.stack(videos).transpose(1, 2) * 2 - 1
    encoded = encode_latents(codec, video)
    first = encode_latents(codec, canvases[:, :, None] * 2 - 1)
    small = torch.nn.functional.avg_pool2d(canvases, 2)
    pictures = [
        Image.fromarray((p.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
        for p in small
    ]
    device = objective.device
    encoded, first = encoded.to(device), first.to(device)
    states, mask = objective.conditioner.hidden_states(prompts, pictures)
    states, mask = states.to(device), mask.to(device)
    context = objective.conditioner.project(states, mask, objective.surround(first))
    noise = torch.randn(encoded.shape, generator=generator).to(device)
    features = fourier_features(first, _CUTOFF, len(kept))
    velocity = objective.model(
        noise,
        torch.full((len(noise),), 1000.0, device=device),
        context,
        features,
        frame_indices=torch.tensor(kept),
        return_dict=False,
    )[0]
    mean, std = latent_statistics(codec, noise)
    raw = [(x.float() * std + mean).to("cpu", torch.bfloat16) for x in (encoded, noise - velocity)]
    pixels = video.to(torch.bfloat16)
    return [Made(*parts) for parts in zip(*raw, pixels, strict=True)]
