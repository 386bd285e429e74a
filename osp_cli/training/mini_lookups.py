"""How the embedded transformer's lookups around an address make the cell that is there, fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from osp_cli.models.mini_stream import Layout, stream_layout
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.training.mini_start import CONTENT_SCALE, lookups


@dataclass(frozen=True, slots=True)
class Sample:
    """What a model is asked and what it should have said.

    Attributes:
        latents: x, `(batch, channels, frames, height, width)`.
        noisy: what it gets instead, unshifted (phi is zero at the start).
        velocity: the model with all its other arguments filled in.
    """

    latents: Tensor
    noisy: Tensor
    velocity: Callable[[Tensor], Tensor]


@torch.no_grad()
def fit_lookups(
    model: FlashI2VTransformer3DModel, samples: Callable[[], Iterator[Sample]]
) -> list[float]:
    """Writes, block by block, the best linear answer of its near lookups to what is still missing.

    Only of those, which turn away from what has not moved: that is exact already.

    Args:
        model: with what comes before the lookups in place, and later feed-forward layers that add
            nothing.
        samples: unstyled clips, the same at every call.

    Returns:
        What is missing of the clips before the near lookups, and after each block that has any, as
        a share of their energy.
    """
    layout = stream_layout(model)
    wanted = lookups(model.config.in_channels, model.config.patch_size[1])
    heads, size = model.config.num_attention_heads, model.config.attention_head_dim
    missing: list[float] = []
    for number in range(1, len(model.blocks)):
        here = wanted[(number - 1) * heads : number * heads]
        near = [head for head, lookup in enumerate(here) if lookup.moved]
        if not near:
            continue
        columns = torch.cat([torch.arange(head * size, (head + 1) * size) for head in near])
        out = model.blocks[number].attn2.to_out[0]
        found, missed, energy = _lookup_statistics(model, layout, number, columns, samples)
        gram = found[:, : len(columns)].clone()
        # Heads carry fewer channels than they are wide.
        gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        targets = found[:, len(columns) :]
        answer = torch.linalg.solve(gram, targets)
        explained = (answer * (2 * targets - gram @ answer)).sum()
        written = answer.float().T
        copied = layout.copy.stop - layout.copy.start
        for part, rows, scale in (
            (layout.content, slice(None), -CONTENT_SCALE),
            (layout.copy, slice(copied), 1.0),
        ):
            weight = out.weight[part]
            weight[:, columns] += scale * written[rows]
        missing = missing or [missed / energy]
        missing.append(float((missed - explained) / energy))
    return missing


def _lookup_statistics(
    model: FlashI2VTransformer3DModel,
    layout: Layout,
    number: int,
    columns: Tensor,
    samples: Callable[[], Iterator[Sample]],
) -> tuple[Tensor, float, float]:
    """Second moments of a block's lookups, with themselves and with what they should add."""
    out = model.blocks[number].attn2.to_out[0]
    seen: dict[str, Tensor] = {}
    handles = [
        out.register_forward_hook(lambda _m, args, _result: seen.update(found=args[0])),
        model.blocks[number].norm3.register_forward_hook(
            lambda _m, args, _result: seen.update(stream=args[0])
        ),
    ]
    total = torch.zeros(len(columns), len(columns) + layout.content.stop, dtype=torch.float64)
    missed = energy = 0.0
    for sample in samples():
        sample.velocity(sample.noisy)
        clip, noisy = (tokens_of(model, x) for x in (sample.latents, sample.noisy))
        found = seen["found"].flatten(0, 1)[:, columns].double()
        stream = seen["stream"].flatten(0, 1)[:, layout.content].float()
        lacking = (clip - noisy + stream / CONTENT_SCALE).double()
        total += found.T @ torch.cat([found, lacking], 1)
        missed += float(lacking.square().sum())
        energy += float(clip.double().square().sum())
    for handle in handles:
        handle.remove()
    return total, missed, energy


def tokens_of(model: FlashI2VTransformer3DModel, latents: Tensor) -> Tensor:
    """Latents as the patch embedding sees them, `(all tokens, channels * patch^2)`."""
    _, rows, columns = model.config.patch_size
    batch, channels, frames, height, width = latents.shape
    folded = latents.reshape(
        batch, channels, frames, height // rows, rows, width // columns, columns
    )
    return folded.permute(0, 2, 3, 5, 1, 4, 6).reshape(-1, channels * rows * columns)
