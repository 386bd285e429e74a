"""Teaches the embedded transformer's last feed-forward layers to paint, by themselves.

What they read (the picture around an address, the codes of what is asked) and what they should add
is fixed by the parts before and beside them, which stay as they are. So both are computed once for
every token of the pool, and the two layers are trained on shuffled tokens: several times as many as
whole steps of the model would see, and no two neighbours in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from osp_cli.models.mini_stream import CODE_SCALE, CODES, Layout, stream_layout
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.training.mini_dit import DitObjective, continues, shard_sample
from osp_cli.training.mini_lookups import Sample, tokens_of
from osp_cli.training.mini_start import CONTENT_SCALE
from osp_cli.training.trainer import step_generator

_CLIPS = 6  # at a time
USUAL_CUTOFF = 0.1  # the paper's and the card's; seven of ten clips have it


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the layers work on, one row a token, bf16.

    Attributes:
        stream: what can be read of the stream before the first painting layer.
        found: what the lookups between the two add to it.
        scale: mean and deviation that the layer norm takes out, `(tokens, 2)`.
        lacking: what is missing of the clip, `(tokens, channels * patch^2)`.
    """

    stream: Tensor
    found: Tensor
    scale: Tensor
    lacking: Tensor

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, rows: Tensor) -> Tokens:
        return Tokens(*(getattr(self, field.name)[rows] for field in fields(self)))


class Painter(nn.Module):
    """The feed-forward layers of the blocks after the lookups, as a map from tokens to content.

    It holds the model's own layers: what it learns is in the model.
    """

    def __init__(self, model: FlashI2VTransformer3DModel) -> None:
        super().__init__()
        self.layout = stream_layout(model)
        self.readable = readable_channels(self.layout)
        styles = [number for number, (kind, _) in enumerate(CODES) if kind == "style"]
        self.style_codes = torch.isin(
            self.readable, self.layout.codes.start + torch.tensor(styles)
        ).nonzero()[:, 0]
        self.layers = nn.ModuleList(block.ffn for block in list(model.blocks)[1:])

    def forward(self, tokens: Tokens) -> Tensor:
        """What is added to the clip's latents, `(tokens, channels * patch^2)`."""
        stream = tokens.stream.float()
        mean, deviation = tokens.scale.float().split(1, 1)
        painted = stream.new_zeros(len(stream), self.layout.content.stop)
        for number, layer in enumerate(self.layers):
            if number:
                stream = stream + tokens.found.float()
            entry, last = layer.net[0].proj, layer.net[2]
            read = (stream - mean) / deviation
            hidden = nn.functional.linear(read, entry.weight[:, self.readable], entry.bias)
            hidden = nn.functional.gelu(hidden, approximate="tanh")
            written = last(hidden)
            painted = painted - written[:, self.layout.content] / CONTENT_SCALE
            stream = stream + written[:, self.readable]
        return painted

    def loss(self, tokens: Tokens, weights: Tensor, plain_weight: float = 1.0) -> Tensor:
        """Mean squared error of the latents.

        Args:
            tokens: a batch.
            weights: of the channels, as they count in pixels.
            plain_weight: of tokens without a style. Little is missing of them, so they would hardly
                count among styled ones, and the layers' noise would be all that they got.
        """
        error = (self(tokens) - tokens.lacking.float()).square() * weights
        plain = tokens.stream[:, self.style_codes].float().amax(1) < CODE_SCALE / 2
        return (error.mean(1) * torch.where(plain, plain_weight, 1.0)).mean()


def readable_channels(layout: Layout) -> Tensor:
    """Numbers of the stream's channels that painting layers may read."""
    return layout.readable.nonzero().flatten()


@torch.no_grad()
def collect_tokens(objective: DitObjective, number: int) -> Tokens:
    """All tokens of a shard, at the usual cutoff mostly, and of a few steady clips continued."""
    generator = step_generator(objective.seed, "paint", number)
    captions = objective.pool.shards[number].captions
    rows = torch.randperm(len(captions), generator=generator).tolist()
    steady = [row for row in rows if continues(captions[row])]
    parts = []
    for start in range(0, len(rows), _CLIPS):
        here = rows[start : start + _CLIPS]
        any_cutoff = 0.05 + 0.9 * torch.rand(len(here), generator=generator)
        usual = torch.rand(len(here), generator=generator) < 0.7
        cutoffs = torch.where(usual, torch.full_like(any_cutoff, USUAL_CUTOFF), any_cutoff)
        parts.append(_observe(objective, shard_sample(objective, number, here, cutoffs, generator)))
    if steady:
        sample = shard_sample(objective, number, steady[:_CLIPS], None, generator)
        parts.append(_observe(objective, sample, context=1))
    names = [field.name for field in fields(Tokens)]
    return Tokens(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _observe(objective: DitObjective, sample: Sample, context: int = 0) -> Tokens:
    """Runs the model whose painting layers add nothing; leaves out tokens of context frames."""
    model = objective.model
    layout = stream_layout(model)
    first, *later = list(model.blocks)[1:]
    seen: dict[str, Tensor] = {"found": torch.zeros(())}

    def add(_module: nn.Module, _args: object, result: Tensor) -> None:
        seen["found"] = seen["found"] + result

    handles = [block.attn2.register_forward_hook(add) for block in later]
    handles.append(
        first.norm3.register_forward_hook(lambda _m, args, _r: seen.update(stream=args[0]))
    )
    try:
        sample.velocity(sample.noisy)
    finally:
        for handle in handles:
            handle.remove()
    stream = seen["stream"].float()
    found = seen["found"].float().expand_as(stream)
    frames = sample.latents.shape[2]
    kept = slice(context * stream.shape[1] // frames, None)
    stream, found = stream[:, kept].flatten(0, 1), found[:, kept].flatten(0, 1)
    clip, noisy = (tokens_of(model, x[:, :, context:]) for x in (sample.latents, sample.noisy))
    written = stream[:, layout.content] + found[:, layout.content]
    readable = readable_channels(layout)
    deviation = (stream.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    parts = (
        stream[:, readable],
        found[:, readable],
        torch.cat([stream.mean(1, keepdim=True), deviation], 1),
        clip - noisy + written / CONTENT_SCALE,
    )
    return Tokens(*(part.to("cpu", torch.bfloat16) for part in parts))


def save_tokens(tokens: Tokens, path: Path) -> None:
    """Writes a shard's tokens whole or not at all."""
    part = path.with_suffix(".part")
    held = {field.name: getattr(tokens, field.name).contiguous() for field in fields(Tokens)}
    save_file(held, part)
    part.rename(path)


def load_tokens(paths: list[Path], device: str = "cpu") -> Tokens:
    """What `save_tokens` wrote, joined."""
    files = [load_file(path, device=device) for path in paths]
    return Tokens(*(torch.cat([file[f.name] for file in files]) for f in fields(Tokens)))


def painting_objective(
    painter: Painter,
    tokens: Tokens,
    weights: Tensor,
    seed: int,
    batch_size: int,
    rank: int,
    plain_weight: float = 1.0,
) -> Callable[[int], Tensor]:
    """The loss of a step, as `Trainer.run` wants it; tokens and weights lie where the layers do."""

    def loss_of(step: int) -> Tensor:
        generator = step_generator(seed, f"painting/{rank}", step)
        rows = torch.randint(0, len(tokens), (batch_size,), generator=generator)
        return painter.loss(tokens[rows.to(tokens.stream.device)], weights, plain_weight)

    return loss_of
