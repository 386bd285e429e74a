"""The embedded transformer's knowledge of motion: where every token's content comes from.

Written into the first feed-forward layer, which learns the formulas of `procedural.motions` by
itself, before any training of the whole.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from osp_cli.models.mini_stream import (
    CODE_SCALE,
    CODES,
    Layout,
    motion_rows,
    stream_layout,
    told,
)
from osp_cli.models.positions import grid_coordinates, sine_coordinates
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.procedural.motions import Motion, displacement
from osp_cli.procedural.prompts import random_motion, random_style
from osp_cli.procedural.styles import STYLE_OPERATORS
from osp_cli.training.mini_fit import Units, code_vector
from osp_cli.training.mini_start import CONSTANT, CONTENT_SCALE, GUIDE_UNITS

# Of displacement, speed, its growth over a cell (half a cell is the most it serves), and a flag.
_MOTION_WEIGHTS = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.05])


def fit_motion(
    model: FlashI2VTransformer3DModel, seed: int, steps: int = 5000, clips: int = 4000
) -> float:
    """Writes the first feed-forward layer: from place, time and codes to displacement and speed.

    Trained on nothing but the formulas of `procedural.motions`; takes a few minutes.

    Returns:
        The root mean square error of the displacement in cells.
    """
    layout = stream_layout(model)
    layer = model.blocks[0].ffn
    # The last units are `fit_guide`'s.
    hidden = layer.net[0].proj.out_features - GUIDE_UNITS - 2 * len(STYLE_OPERATORS)
    generator = torch.Generator().manual_seed(seed)
    coordinates, codes, targets = _motion_examples(model, seed, generator, clips)
    # What the norm divides by: with it undone, inputs and weights are of order one.
    divisor = (12 * CONSTANT**2 / layout.width) ** 0.5
    parts = (layout.place, layout.coordinates, layout.codes)
    known = torch.cat([torch.arange(part.start, part.stop) for part in parts])
    units = Units(len(known), hidden, targets.shape[1], generator, std=0.4)
    with torch.no_grad():
        _gate(units.entry, len(known) - len(CODES))
    squares = []

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(0, len(targets), (4096,), generator=generator)
        stream = _early_stream(model, layout, coordinates[chosen], codes[chosen], generator)
        normed = nn.functional.layer_norm(stream, (layout.width,))[:, known] * divisor
        error = (units(normed) - targets[chosen]).square().mean(0)
        if step >= steps - 50:
            squares.append(error[:2].detach().mean())
        return (error * _MOTION_WEIGHTS).sum()

    units.fit(loss_of, steps, 5e-3)
    with torch.no_grad():
        nn.init.zeros_(layer.net[0].proj.weight)
        layer.net[0].proj.weight[:hidden, known] = units.entry.weight * divisor
        layer.net[0].proj.bias[:hidden] = units.entry.bias
        _write_motion(layer.net[2], units.exit, layout)
    return float(torch.stack(squares).mean().sqrt())


Code = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Group:
    """Clips that hidden units of their own serve.

    Attributes:
        wanted: codes that must all be there.
        unwanted: codes none of which may be there.
    """

    wanted: tuple[Code, ...]
    unwanted: tuple[Code, ...] = ()

    def holds(self, codes: Tensor) -> Tensor:
        """Which of `(batch, len(CODES))` belong here."""
        columns = [CODES.index(code) for code in self.wanted]
        others = [CODES.index(code) for code in self.unwanted]
        return (codes[:, columns] > 0.5).all(1) & (codes[:, others] < 0.5).all(1)

    def gate(self, strength: float) -> tuple[Tensor, float]:
        """Weights of the codes in the stream, and the bias, that are zero here and at most
        `-strength` elsewhere."""
        weights = torch.zeros(len(CODES))
        for code in self.wanted:
            weights[CODES.index(code)] = strength / CODE_SCALE
        for code in self.unwanted:
            weights[CODES.index(code)] = -strength / CODE_SCALE
        return weights, -strength * len(self.wanted)


def motion_groups() -> list[Group]:
    """Every motion at every speed, and the gentle life of no motion."""
    named = tuple(code for code in CODES if code[0] in ("camera", "scene"))
    slow, fast = ("speed", "slow"), ("speed", "fast")
    groups = [Group((), named)]
    for code in named:
        if code[1] not in ("snow", "rain"):
            groups += [Group((code, slow)), Group((code, fast)), Group((code,), (slow, fast))]
    return groups


def _gate(entry: nn.Linear, first_code: int) -> None:
    """Gives every motion at every speed units of its own, silent for all the others.

    A displacement is a product of what is asked for and where and when it is; units that stay out
    of each other's way have only the second factor to learn.
    """
    groups = motion_groups()
    for unit in range(entry.out_features):
        weights, bias = groups[unit % len(groups)].gate(8.0)
        entry.weight[unit, first_code:] = weights
        entry.bias[unit] += bias


def _write_motion(last: nn.Linear, exit_: nn.Linear, layout: Layout) -> None:
    units = exit_.in_features
    for row, column, scale in motion_rows(layout):
        last.weight[row, :units] = scale * exit_.weight[column]
        last.bias[row] = scale * exit_.bias[column]


@torch.no_grad()
def _early_stream(
    model: FlashI2VTransformer3DModel,
    layout: Layout,
    coordinates: Tensor,
    codes: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The stream at the first feed-forward layer, the content being noise."""
    stream = model.position_embedding(coordinates) + model.patch_embedding.bias
    noise = torch.randn((len(stream), layout.content.stop), generator=generator)
    stream[:, layout.content] += CONTENT_SCALE * noise
    stream[:, layout.codes] += CODE_SCALE * codes
    return stream


def _motion_examples(
    model: FlashI2VTransformer3DModel,
    seed: int,
    generator: torch.Generator,
    clips: int,
    tokens: int = 160,
) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates and codes of tokens, and their displacements and speeds in cells."""
    rng = random.Random(f"{seed}/motion")
    patch = model.config.patch_size[1]
    coordinates, codes, targets = [], [], []
    for _ in range(clips):
        motion = random_motion(rng)
        rows, columns = rng.randint(6, 15), rng.randint(6, 15)
        indices = torch.tensor(sorted(rng.choices(range(14), k=6)))
        grid, where = (len(indices), rows, columns), {"frame_indices": indices}
        both = (
            sine_coordinates(grid, model.config.position_channels, **where),
            grid_coordinates(grid, patch, **where),
        )
        here = torch.cat(both, -1).flatten(0, 2)
        chosen = torch.randint(0, len(here), (tokens,), generator=generator)
        coordinates.append(here[chosen])
        codes.append(code_vector(motion, random_style(rng)).expand(tokens, -1))
        moved = token_motion(motion, indices, (rows, columns), patch)
        targets.append(moved.flatten(0, 2)[chosen])
    return torch.cat(coordinates), torch.cat(codes), torch.cat(targets)


CELL_PIXELS = 16
_MOVED = 0.12  # cells after which content has wholly left its place


def token_motion(motion: Motion, indices: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """What tokens should know of a motion, in cells, `(frames, rows, columns, 9)`: displacement and
    speed (x, y each), how displacement grows over a cell (of x along x and y, of y along both), and
    how far from 0 to 1 the content has ever left its place until then.

    Args:
        motion: what happens.
        indices: `(frames,)` of latent frames.
        grid: rows and columns of tokens.
        patch: cells along a token.
    """
    cells = patch * grid[0], patch * grid[1]
    size = CELL_PIXELS * cells[0], CELL_PIXELS * cells[1]
    every = torch.arange(int(indices.max()) + 1)
    moved, speed = (x / CELL_PIXELS for x in latent_motion(motion, size, every, cells))
    folded = moved.unflatten(2, (grid[1], patch)).unflatten(1, (grid[0], patch))
    # What lies `patch / 2` cells apart: the mean of one half against that of the other.
    half, apart = patch // 2, patch / 2
    along_x = (folded[..., patch - half :, :] - folded[..., :half, :]).mean((2, 4)) / apart
    along_y = (folded[:, :, patch - half :] - folded[:, :, :half]).mean((2, 4)) / apart
    speed = speed.unflatten(2, (grid[1], patch)).unflatten(1, (grid[0], patch)).mean((2, 4))
    jacobian = torch.stack([along_x, along_y], -1).flatten(-2)
    farthest = folded.norm(dim=-1).amax((2, 4)).cummax(0).values
    left = (farthest / _MOVED).clamp(max=1.0)[..., None]
    return torch.cat([folded.mean((2, 4)), speed, jacobian, left], -1)[indices]


def latent_motion(
    motion: Motion, size: tuple[int, int], indices: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Displacement and speed of latent frames in pixels, `(frames, rows, columns, 2)` each.

    The first latent is frame 0, every other one covers four frames: it is where their middle is,
    and its speed is counted over four frames.
    """
    last = 4.0 * indices
    first = (last - 3).clamp_min(0)
    times = torch.cat([(first + last) / 2, first, last])
    middle, start, end = displacement(motion, size, times, grid).chunk(3)
    return middle, (end - start) * 4 / 3


@contextmanager
def told_motion(
    model: FlashI2VTransformer3DModel, motions: list[Motion], latents: Tensor, indices: Tensor
) -> Iterator[None]:
    """Lets tokens go where the formulas say, rather than where the first feed-forward layer does.

    That layer errs by a pixel or two, smoothly, which nobody sees; but what is fitted to places
    that are a little wrong learns the mean over all of them, which is blurred.

    Args:
        model: with the layout of `mini_start`.
        motions: of the clips.
        latents: `(clips, channels, frames, height, width)` as the model is called with.
        indices: `(frames,)`, of the first latent frame 0.
    """
    patch = model.config.patch_size[1]
    grid = latents.shape[-2] // patch, latents.shape[-1] // patch
    known = [token_motion(motion, indices, grid, patch).flatten(0, 2) for motion in motions]
    with told(model, torch.stack(known).to(latents.device)):
        yield
