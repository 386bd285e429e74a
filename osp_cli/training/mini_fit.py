"""What the embedded transformer's start knows because it was fitted, each part by itself.

Three small problems with known answers, solved before any training of the whole: what the frozen
language model's last state asks for, how far every motion takes every place, and how the lookups
around an address make the cell that is there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from osp_cli.conditioning.vlm import QwenVLConditioner
from osp_cli.models.positions import CELLS_PER_UNIT, grid_coordinates, sine_coordinates
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.procedural.motions import Motion, displacement
from osp_cli.procedural.prompts import random_motion, random_prompt, random_style
from osp_cli.procedural.styles import STYLE_OPERATORS
from osp_cli.training.mini_start import (
    CODE_SCALE,
    CODES,
    CONSTANT,
    CONTENT_SCALE,
    FRACTION_SCALE,
    PLACE_SCALE,
    VELOCITY_SCALE,
    Layout,
    stream_layout,
)

_SENTENCES = 64  # of a batch


@torch.no_grad()
def fit_language(
    conditioner: QwenVLConditioner,
    channels: int,
    seed: int,
    pictures: list[Tensor],
    count: int = 1536,
) -> float:
    """Writes f_map: the last state of a prompt to codes of what it asks for, by ridge regression.

    Args:
        conditioner: with its language model trained.
        channels: of the latents; the codes come behind them.
        seed: of the sentences.
        pictures: uint8 `(count, 3, height, width)` each, shown with every other batch.
        count: sentences to fit to.

    Returns:
        The share of sentences, among as many others, all codes of which are right.
    """
    rng = random.Random(f"{seed}/language")
    ends, codes, others = [], [], []
    for number in range(-(-2 * count // _SENTENCES)):
        motions = [(random_motion(rng), random_style(rng)) for _ in range(_SENTENCES)]
        prompts = [random_prompt(rng, motion, style) for motion, style in motions]
        shown = rng.choices(rng.choice(pictures), k=_SENTENCES) if number % 2 else None
        images = shown and [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in shown]
        states, mask = conditioner.hidden_states(prompts, images)
        last = torch.nn.functional.one_hot(mask.sum(1) - 1, mask.shape[1]).bool()
        ends.append(states[last])
        codes += [code_vector(motion, style) for motion, style in motions]
        others.append(states[mask & ~last][::16])
    known, wanted, other = torch.cat(ends), torch.stack(codes), torch.cat(others)
    adapter = conditioner.adapter
    for layer in (adapter.fc1, adapter.fc2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    _write_steps(adapter, _ridge(known[:count], wanted[:count]), 0, channels + 5)
    is_last = torch.cat([torch.ones(count, 1), torch.zeros(len(other), 1)])
    answer = _ridge(torch.cat([known[:count], other]), is_last)
    _write_steps(adapter, answer, len(CODES), channels + 4)
    got = adapter(known[count:])[:, channels + 5 : channels + 5 + len(CODES)]
    return (got.round() == wanted[count:]).all(1).float().mean().item()


def code_vector(motion: Motion, style: str | None) -> Tensor:
    """The codes of a caption, `(len(CODES),)` of zeros and ones."""
    asked = {"camera": motion.camera, "scene": motion.scene, "style": style, "speed": motion.speed}
    if motion.gentle:
        asked["speed"] = "normal"  # a speed without a motion is not written into a caption
    return torch.tensor([float(asked[kind] == name) for kind, name in CODES])


def _ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """`(features + 1, outputs)`, the last row being the offset."""
    design = torch.cat([inputs, torch.ones(len(inputs), 1)], 1).double()
    gram = design.T @ design + 1e-3 * len(design) * torch.eye(design.shape[1]).double() * 1e-2
    return torch.linalg.solve(gram, design.T @ targets.double()).float()


def _write_steps(adapter: nn.Module, answer: Tensor, hidden: int, output: int) -> None:
    """clamp((u - 0.35) / 0.25, 0, 1) of each linear answer u, from two steep GELUs."""
    steepness = 24.0
    for number, column in enumerate(answer.T):
        for side, (threshold, sign) in enumerate(((0.35, 1.0), (0.6, -1.0))):
            row = hidden * 2 + 2 * number + side
            adapter.fc1.weight[row] = steepness * column[:-1]
            adapter.fc1.bias[row] = steepness * (column[-1] - threshold)
            adapter.fc2.weight[output + number, row] = sign / steepness / 0.25


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
    hidden = layer.net[0].proj.out_features
    generator = torch.Generator().manual_seed(seed)
    coordinates, codes, targets = _motion_examples(model, seed, generator, clips)
    # What the norm divides by: with it undone, inputs and weights are of order one.
    divisor = (12 * CONSTANT**2 / layout.width) ** 0.5
    parts = (layout.place, layout.coordinates, layout.codes)
    known = torch.cat([torch.arange(part.start, part.stop) for part in parts])
    entry = nn.Linear(len(known), hidden)
    exit_ = nn.Linear(hidden, 4)
    with torch.no_grad():
        nn.init.normal_(entry.weight, std=0.4, generator=generator)
        nn.init.normal_(entry.bias, generator=generator)
        _gate(entry, len(known) - len(CODES))
        nn.init.zeros_(exit_.weight)
        nn.init.zeros_(exit_.bias)
    optimizer = torch.optim.Adam([*entry.parameters(), *exit_.parameters()], lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    squares = []
    for step in range(steps):
        chosen = torch.randint(0, len(targets), (4096,), generator=generator)
        stream = _early_stream(model, layout, coordinates[chosen], codes[chosen], generator)
        normed = nn.functional.layer_norm(stream, (layout.width,))[:, known] * divisor
        got = exit_(nn.functional.gelu(entry(normed), approximate="tanh"))
        error = (got - targets[chosen]).square().mean(0)
        loss = error.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= steps - 50:
            squares.append(error[:2].detach().mean())
    with torch.no_grad():
        nn.init.zeros_(layer.net[0].proj.weight)
        layer.net[0].proj.weight[:, known] = entry.weight * divisor
        layer.net[0].proj.bias.copy_(entry.bias)
        _write_motion(layer.net[2], exit_, layout)
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


def style_groups() -> list[Group]:
    """Every style."""
    return [Group((("style", name),)) for name in STYLE_OPERATORS]


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
    """Displacement into the address and the fraction, speed into its own channels."""
    per_cell = PLACE_SCALE / CELLS_PER_UNIT
    for axis in (0, 1):
        targets = (
            (layout.place.start + 2 * axis, per_cell),
            (layout.place.start + 2 * axis + 1, -per_cell),
            (layout.fraction.start + axis, FRACTION_SCALE / CELLS_PER_UNIT),
        )
        for row, scale in targets:
            last.weight[row] = scale * exit_.weight[axis]
            last.bias[row] = scale * exit_.bias[axis]
        row = layout.velocity.start + axis
        last.weight[row] = VELOCITY_SCALE * exit_.weight[2 + axis]
        last.bias[row] = VELOCITY_SCALE * exit_.bias[2 + axis]


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
    pixels = int(CELLS_PER_UNIT)
    coordinates, codes, targets = [], [], []
    for _ in range(clips):
        motion = random_motion(rng)
        rows, columns = rng.randint(6, 15), rng.randint(6, 15)
        size = (rows * patch * pixels, columns * patch * pixels)
        indices = torch.tensor(sorted(rng.choices(range(14), k=6)))
        moved, speed = latent_motion(motion, size, indices, (rows, columns))
        grid, where = (len(indices), rows, columns), {"frame_indices": indices}
        both = (
            sine_coordinates(grid, model.config.position_channels, **where),
            grid_coordinates(grid, patch, **where),
        )
        here = torch.cat(both, -1).flatten(0, 2)
        chosen = torch.randint(0, len(here), (tokens,), generator=generator)
        coordinates.append(here[chosen])
        codes.append(code_vector(motion, random_style(rng)).expand(tokens, -1))
        targets.append((torch.cat([moved, speed], -1).flatten(0, 2) / pixels)[chosen])
    return torch.cat(coordinates), torch.cat(codes), torch.cat(targets)


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


@dataclass(frozen=True, slots=True)
class Sample:
    """What a model is asked and what it should have said.

    Attributes:
        latents: x, `(batch, channels, frames, height, width)`.
        noisy: what it gets instead, unshifted (phi is zero at the start).
        sigmas: noise levels, `(batch,)`.
        codes: of the captions, `(batch, len(CODES))`.
        velocity: the model with all its other arguments filled in.
    """

    latents: Tensor
    noisy: Tensor
    sigmas: Tensor
    codes: Tensor
    velocity: Callable[[Tensor], Tensor]


@torch.no_grad()
def fit_lookups(
    model: FlashI2VTransformer3DModel, samples: Callable[[], Iterator[Sample]]
) -> list[float]:
    """Writes, block by block, the best linear answer of its lookups to what is still missing.

    Args:
        model: with what comes before the lookups in place, and feed-forward layers that add
            nothing.
        samples: unstyled clips, the same at every call.

    Returns:
        What is missing of the clips after each block, as a share of their energy.
    """
    layout = stream_layout(model)
    missing = []
    for number in range(1, len(model.blocks)):
        block = model.blocks[number]
        out = block.attn2.to_out[0]
        found, missed, energy = _lookup_statistics(model, layout, number, samples)
        size = out.in_features + 1
        gram = found[:, :size].clone()
        gram += 1e-3 * gram.diagonal().mean() * torch.eye(size, dtype=gram.dtype)
        answer = torch.linalg.solve(gram, found[:, size:]).float().T
        out.weight[layout.content] -= CONTENT_SCALE * answer[:, :-1]
        out.bias[layout.content] -= CONTENT_SCALE * answer[:, -1]
        out.weight[layout.copy] += answer[:, :-1]
        out.bias[layout.copy] += answer[:, -1]
        explained = (answer.double().T * (2 * found[:, size:] - gram @ answer.double().T)).sum()
        missing.append(float((missed - explained) / energy))
    return missing


def _lookup_statistics(
    model: FlashI2VTransformer3DModel,
    layout: Layout,
    number: int,
    samples: Callable[[], Iterator[Sample]],
) -> tuple[Tensor, float, float]:
    """Second moments of a block's lookups, with themselves and with what they should add."""
    out = model.blocks[number].attn2.to_out[0]
    seen: dict[str, Tensor] = {}
    handles = [
        out.register_forward_hook(lambda _m, args, result: seen.update(found=args[0])),
        model.blocks[number].norm3.register_forward_hook(
            lambda _m, args, _result: seen.update(stream=args[0])
        ),
    ]
    size = out.in_features + 1
    total = torch.zeros(size, size + layout.content.stop, dtype=torch.float64)
    missed = energy = 0.0
    for sample in samples():
        sample.velocity(sample.noisy)
        clip, noisy = (_tokens(model, x) for x in (sample.latents, sample.noisy))
        found = seen["found"].flatten(0, 1).float()
        guess = noisy - seen["stream"].flatten(0, 1)[:, layout.content].float() / CONTENT_SCALE
        found = torch.cat([found, torch.ones(len(found), 1)], 1).double()
        lacking = (clip - guess).double()
        total += found.T @ torch.cat([found, lacking], 1)
        missed += float(lacking.square().sum())
        energy += float(clip.double().square().sum())
    for handle in handles:
        handle.remove()
    return total, missed, energy


# A hidden unit of a gated map is straight where it is on: around this on its GELU, eight deviations
# from where it bends. Photos have stronger colours than rendered scenes.
_STRAIGHT = 6.0
_SPREAD = 0.75
# And off elsewhere, whatever the picture.
_GATE = 20.0


@torch.no_grad()
def fit_straight(
    model: FlashI2VTransformer3DModel,
    number: int,
    groups: list[Group],
    samples: Callable[[], Iterator[Sample]],
    channel_weights: Tensor,
    repaint_copy: bool,
) -> float:
    """Writes a block's feed-forward layer: for every group of clips the best affine map, of as many
    dimensions as there are hidden units for it, from the picture's copy to what is still missing.

    Args:
        model: fitted up to here; later feed-forward layers add nothing yet.
        number: of the block.
        groups: which clips share a map.
        samples: the same at every call.
        channel_weights: of the latents' channels, which rank the dimensions.
        repaint_copy: later blocks shall see the copy with what was missing.

    Returns:
        What is missing of the clips before it, as a share of their energy.
    """
    layout = stream_layout(model)
    entry = model.blocks[number].ffn.net[0].proj
    divisor = (12 * CONSTANT**2 / layout.width) ** 0.5
    known = _painted_from(layout)
    size, outputs = len(known), layout.content.stop
    statistics = torch.zeros(len(groups), size + 1, size + 1 + outputs, dtype=torch.float64)
    missed = energy = 0.0
    for seen, clip, lacking, codes in _observe(model, number, samples):
        design = torch.cat([seen[:, known] * divisor, torch.ones(len(seen), 1)], 1)
        for index, group in enumerate(groups):
            rows = group.holds(codes)
            if rows.any():
                both = torch.cat([design[rows], lacking[rows]], 1)
                statistics[index] += (design[rows].T @ both).double()
        missed += float(lacking.square().sum())
        energy += float(clip.square().sum())
    patch = model.config.patch_size[1] * model.config.patch_size[2]
    ranks = channel_weights.double().sqrt().repeat_interleave(patch)
    share = min(entry.out_features // len(groups), outputs)
    nn.init.zeros_(entry.weight)
    nn.init.constant_(entry.bias, -_GATE)
    for index, group in enumerate(groups):
        if statistics[index, -1, size] < 10 * size:  # too few to tell
            continue
        rows = slice(index * share, (index + 1) * share)
        directions, offset = _affine_directions(statistics[index], ranks, share)
        weights, bias = group.gate(_GATE)
        entry.weight[rows, known] = directions * divisor
        entry.weight[rows, layout.codes] = weights * divisor
        entry.bias[rows] = bias + offset
    _settle(entry)
    _fit_exit(model, number, samples, repaint_copy)
    return missed / energy


def _painted_from(layout: Layout) -> Tensor:
    """Channels that say how a cell is painted: the picture there, and the means of the whole."""
    parts = (layout.copy, layout.means)
    return torch.cat([torch.arange(part.start, part.stop) for part in parts])


def _affine_directions(statistics: Tensor, ranks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Weights `(count, inputs)` and biases of the inputs' directions that explain most."""
    size = statistics.shape[0] - 1
    gram, cross = statistics[:, : size + 1], statistics[:, size + 1 :]
    ridge = 1e-3 * gram[:-1, :-1].diagonal().mean()
    answer = torch.linalg.solve(gram + ridge * torch.eye(size + 1).double(), cross) * ranks
    total = gram[-1, -1]
    mean = gram[-1, :-1] / total
    spread = gram[:-1, :-1] / total - mean[:, None] * mean
    linear = answer[:-1]
    strongest = torch.linalg.eigh(linear.T @ spread @ linear).eigenvectors.flip(1)[:, :count]
    directions = linear @ strongest
    deviation = (directions * (spread @ directions)).sum(0).clamp_min(1e-9).sqrt()
    directions = directions / deviation * _SPREAD
    return directions.T.float(), (_STRAIGHT - mean @ directions).float()


@torch.no_grad()
def fit_curved(
    model: FlashI2VTransformer3DModel,
    number: int,
    groups: list[Group],
    samples: Callable[[], Iterator[Sample]],
    seed: int,
) -> float:
    """Writes a block's feed-forward layer: for every group of clips bends at random values of each
    cell's strongest channels and at random places of the frame, weighted to make what is still
    missing. The strongest channel, light, bends against the picture's mean too.

    Arguments and result as for `fit_straight`.
    """
    layout = stream_layout(model)
    entry = model.blocks[number].ffn.net[0].proj
    divisor = (12 * CONSTANT**2 / layout.width) ** 0.5
    spreads, mean, missing = _copy_spread(model, number, samples)
    directions = _cell_directions(model, layout, spreads)
    generator = torch.Generator().manual_seed(seed)
    share = entry.out_features // len(groups)
    where = share // 8
    nn.init.zeros_(entry.weight)
    nn.init.constant_(entry.bias, -_GATE)
    for index, group in enumerate(groups):
        start = index * share
        weights, bias = group.gate(_GATE)
        entry.weight[start : start + share, layout.codes] = weights * divisor
        turns = torch.randn(share, generator=generator)
        for unit in range(share):
            row = start + unit
            entry.bias[row] = bias + 2.0 * turns[unit]
            if unit < where:
                part = layout.coordinates
                random_row = torch.randn(part.stop - part.start, generator=generator)
                entry.weight[row, part] = random_row * divisor
            else:
                sign = 1.0 if turns[unit] < 0 else -1.0
                direction = sign * 2.0 * directions[(unit - where) % len(directions)]
                entry.weight[row] += direction * divisor
                entry.bias[row] -= float(mean @ direction)
    _settle(entry)
    _fit_exit(model, number, samples, False)
    return missing


def _copy_spread(
    model: FlashI2VTransformer3DModel, number: int, samples: Callable[[], Iterator[Sample]]
) -> tuple[Tensor, Tensor, float]:
    """Deviation and mean of what a layer reads, by channel, and what is missing of the clips."""
    divisor = (12 * CONSTANT**2 / stream_layout(model).width) ** 0.5
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    missed = energy = 0.0
    for seen, clip, lacking, _codes in _observe(model, number, samples):
        read = seen.double() * divisor
        count += len(read)
        total, squares = total + read.sum(0), squares + read.square().sum(0)
        missed += float(lacking.square().sum())
        energy += float(clip.square().sum())
    mean = total / count
    spread = (squares / count - mean.square()).clamp_min(1e-6).sqrt()
    return spread.float(), mean.float(), missed / energy


def _cell_directions(
    model: FlashI2VTransformer3DModel, layout: Layout, spread: Tensor
) -> list[Tensor]:
    """Over the stream, of unit deviation: channels of single cells, the strongest more often."""
    cells = model.config.patch_size[1] * model.config.patch_size[2]
    channels = model.config.in_channels
    result = []
    for channel, against_mean in _BENDING:
        for cell in range(cells if channel < channels else 0):
            direction = torch.zeros(layout.width)
            place = layout.copy.start + channel * cells + cell
            direction[place] = 1 / spread[place]
            if against_mean:
                direction[layout.means.start + channel] = -1 / spread[place]
            result.append(direction)
    return result


# Channel, and whether it counts from the picture's mean.
_BENDING = (
    *((0, False), (0, True), (1, False), (0, False), (2, False), (0, True), (3, False)),
    *((0, False), (1, False), (0, True), (2, False), (4, False), (0, False), (0, True)),
    *((5, False), (0, False)),
)


def _settle(entry: nn.Linear) -> None:
    """To the precision it will be stored in: what follows is fitted to what will be computed."""
    entry.weight.copy_(entry.weight.bfloat16().float())
    entry.bias.copy_(entry.bias.bfloat16().float())


def _fit_exit(
    model: FlashI2VTransformer3DModel,
    number: int,
    samples: Callable[[], Iterator[Sample]],
    repaint_copy: bool,
) -> None:
    """The second half of a feed-forward layer, by ridge regression on its hidden units."""
    layout = stream_layout(model)
    first, last = model.blocks[number].ffn.net[0], model.blocks[number].ffn.net[2]
    size = last.in_features + 1
    total = torch.zeros(size, size + layout.content.stop, dtype=torch.float64)
    for seen, _clip, lacking, _codes in _observe(model, number, samples):
        hidden = torch.cat([first(seen), torch.ones(len(seen), 1)], 1)
        total += (hidden.T @ torch.cat([hidden, lacking], 1)).double()
    gram = total[:, :size].clone()
    # The floor is for a layer none of whose groups had enough clips: all of it is silent then.
    ridge = 3e-4 * gram.diagonal()[:-1].mean().clamp_min(1e-3)
    gram += ridge * torch.eye(size, dtype=gram.dtype)
    answer = torch.linalg.solve(gram, total[:, size:]).float().T
    last.weight[layout.content] = -CONTENT_SCALE * answer[:, :-1]
    last.bias[layout.content] = -CONTENT_SCALE * answer[:, -1]
    if repaint_copy:
        last.weight[layout.copy] = answer[:, :-1]
        last.bias[layout.copy] = answer[:, -1]


def _observe(
    model: FlashI2VTransformer3DModel, number: int, samples: Callable[[], Iterator[Sample]]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """What a feed-forward layer reads, the clip, what is missing of it, and its codes, by token."""
    seen: dict[str, Tensor] = {}
    handle = model.blocks[number].ffn.register_forward_hook(
        lambda _module, args, _result: seen.update(read=args[0])
    )
    try:
        for sample in samples():
            velocity = sample.velocity(sample.noisy)
            guess = sample.noisy - sample.sigmas.reshape(-1, 1, 1, 1, 1) * velocity
            clip = _tokens(model, sample.latents)
            read = seen["read"]
            codes = sample.codes.repeat_interleave(read.shape[1], 0)
            yield read.flatten(0, 1), clip, clip - _tokens(model, guess), codes
    finally:
        handle.remove()


def _tokens(model: FlashI2VTransformer3DModel, latents: Tensor) -> Tensor:
    """Latents as the patch embedding sees them, `(all tokens, channels * patch^2)`."""
    _, rows, columns = model.config.patch_size
    batch, channels, frames, height, width = latents.shape
    folded = latents.reshape(
        batch, channels, frames, height // rows, rows, width // columns, columns
    )
    return folded.permute(0, 2, 3, 5, 1, 4, 6).reshape(-1, channels * rows * columns)
