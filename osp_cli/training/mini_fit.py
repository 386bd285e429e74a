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
from osp_cli.sampling.fourier import fourier_features
from osp_cli.training.mini_start import (
    CODE_SCALE,
    CODES,
    CONSTANT,
    CONTENT_SCALE,
    CUTOFF_STEPS,
    FRACTION_SCALE,
    GUIDE_SCALE,
    GUIDE_UNITS,
    PLACE_SCALE,
    SPECTRUM_GAIN,
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
        others.append(states[mask & ~last][::2])
    known, wanted, other = torch.cat(ends), torch.stack(codes), torch.cat(others)
    adapter = conditioner.adapter
    for layer in (adapter.fc1, adapter.fc2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    _write_steps(adapter, _ridge(known[:count], wanted[:count]), 0, channels + 5)
    _fit_last_row(adapter, known[:count], other, channels + 4, seed)
    got = adapter(known[count:])[:, channels + 5 : channels + 5 + len(CODES)]
    return (got.round() == wanted[count:]).all(1).float().mean().item()


_LAST_ROW_UNITS = 96


@torch.enable_grad()
def _fit_last_row(
    adapter: nn.Module, last: Tensor, others: Tensor, output: int, seed: int, steps: int = 1200
) -> None:
    """Writes hidden units that answer one for a prompt's last row and zero for any other.

    No linear answer tells them apart: the row before the prompt ends in the same token.
    """
    first, hidden = 2 * len(CODES), min(_LAST_ROW_UNITS, adapter.fc1.out_features - 2 * len(CODES))
    generator = torch.Generator().manual_seed(seed)
    entry, exit_ = nn.Linear(last.shape[1], hidden), nn.Linear(hidden, 1)
    with torch.no_grad():
        nn.init.normal_(entry.weight, std=last.shape[1] ** -0.5, generator=generator)
        nn.init.normal_(entry.bias, generator=generator)
        nn.init.zeros_(exit_.weight)
        nn.init.zeros_(exit_.bias)
    optimizer = torch.optim.Adam([*entry.parameters(), *exit_.parameters()], lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        loss = torch.zeros(())
        for rows, wanted in ((last, 1.0), (others, 0.0)):
            chosen = torch.randint(0, len(rows), (512,), generator=generator)
            answer = exit_(nn.functional.gelu(entry(rows[chosen])))
            loss = loss + (answer - wanted).square().mean() + (answer - wanted).pow(4).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    units = slice(first, first + hidden)
    with torch.no_grad():
        adapter.fc1.weight[units], adapter.fc1.bias[units] = entry.weight, entry.bias
        adapter.fc2.weight[output, units] = exit_.weight[0]
        # Never below zero, where a lookup that turns away from this row would turn towards it.
        adapter.fc2.bias[output] = exit_.bias[0] + 0.65


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
    """clamp((u - 0.38) / 0.1, 0, 1) of each linear answer u, from two steep GELUs.

    Half an answer must be all or nothing: what is asked for gates what is done.
    """
    steepness = 24.0
    for number, column in enumerate(answer.T):
        for side, (threshold, sign) in enumerate(((0.38, 1.0), (0.48, -1.0))):
            row = hidden * 2 + 2 * number + side
            adapter.fc1.weight[row] = steepness * column[:-1]
            adapter.fc1.bias[row] = steepness * (column[-1] - threshold)
            adapter.fc2.weight[output + number, row] = sign / steepness / 0.1


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
        layer.net[0].proj.weight[:hidden, known] = entry.weight * divisor
        layer.net[0].proj.bias[:hidden] = entry.bias
        _write_motion(layer.net[2], exit_, layout)
    return float(torch.stack(squares).mean().sqrt())


def fit_guide(
    model: FlashI2VTransformer3DModel, firsts: list[Tensor], seed: int, steps: int = 1500
) -> float:
    """Writes the units of the first feed-forward layer that read the Fourier features' spectrum.

    They answer, for every step of `CUTOFF_STEPS`, whether the features were cut above it, and where
    there are no features at all they take the codes of styles back.

    Args:
        model: as `write_start` left it.
        firsts: first-frame latents, `(batch, channels, 1, height, width)` each.
        seed: of the cutoffs and of the units' first weights.
        steps: of the fit.

    Returns:
        The share of right answers.
    """
    layout = stream_layout(model)
    generator = torch.Generator().manual_seed(seed)
    spectra, answers = _spectra(model, layout, firsts, generator)
    present = spectra[spectra.sum(1) > 0]
    entry = nn.Linear(spectra.shape[1], GUIDE_UNITS)
    exit_ = nn.Linear(GUIDE_UNITS, len(CUTOFF_STEPS))
    mean, spread = spectra.mean(0), spectra.std(0)
    spread[spread == 0] = 1.0  # of channels that a smaller model lacks
    with torch.no_grad():
        nn.init.normal_(entry.weight, generator=generator)
        nn.init.normal_(entry.bias, generator=generator)
        nn.init.zeros_(exit_.weight)
        nn.init.zeros_(exit_.bias)
    optimizer = torch.optim.Adam([*entry.parameters(), *exit_.parameters()], lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(0, len(spectra), (2048,), generator=generator)
        read = (spectra[chosen] - mean) / spread
        got = exit_(nn.functional.gelu(entry(read), approximate="tanh"))
        loss = nn.functional.mse_loss(got, answers[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        read = (spectra - mean) / spread
        got = exit_(nn.functional.gelu(entry(read), approximate="tanh"))
        _write_guide(model, layout, entry, exit_, mean, spread)
        # Less than this of a spectrum is no Fourier features at all.
        _write_repainting(model, layout, float(present.sum(1).sort().values[len(present) // 500]))
    return float(((got > 0.5) == (answers > 0.5)).float().mean())


@torch.no_grad()
def _spectra(
    model: FlashI2VTransformer3DModel,
    layout: Layout,
    firsts: list[Tensor],
    generator: torch.Generator,
    draws: int = 6,
) -> tuple[Tensor, Tensor]:
    """Spectrum channels of random tokens at random cutoffs, and on which side of each step."""
    steps = torch.tensor(CUTOFF_STEPS)
    spectra, answers = [], []
    for first in firsts:
        for _ in range(draws):
            cutoffs = 0.02 + 0.96 * torch.rand(len(first), generator=generator)
            features = fourier_features(first.float(), cutoffs, 1)
            own = model.fourier_embedding(features)[:, layout.spectrum].flatten(2).transpose(1, 2)
            read = own + SPECTRUM_GAIN * own.mean(1, keepdim=True)
            picked = torch.randint(0, read.shape[1], (32,), generator=generator)
            spectra.append(read[:, picked].flatten(0, 1))
            answers.append((cutoffs[:, None] > steps).float().repeat_interleave(32, 0))
    known, wanted = torch.cat(spectra), torch.cat(answers)
    none = len(known) // 6  # a continued clip has no features: nothing is left out
    return (
        torch.cat([known, known.new_zeros(none, known.shape[1])]),
        torch.cat([wanted, wanted.new_zeros(none, wanted.shape[1])]),
    )


def _write_guide(
    model: FlashI2VTransformer3DModel,
    layout: Layout,
    entry: nn.Linear,
    exit_: nn.Linear,
    mean: Tensor,
    spread: Tensor,
) -> None:
    layer, divisor = model.blocks[0].ffn, (12 * CONSTANT**2 / layout.width) ** 0.5
    units = slice(_first_guide_unit(layer), _first_guide_unit(layer) + GUIDE_UNITS)
    weight = entry.weight / spread
    layer.net[0].proj.weight[units.start :] = 0.0
    layer.net[0].proj.weight[units, layout.spectrum] = weight * divisor
    # Constants tell the mean, which the layer norm took out.
    layer.net[0].proj.weight[units, layout.constants] = -weight.sum(1, True) * divisor / 12
    layer.net[0].proj.bias[units] = entry.bias - weight @ mean
    layer.net[2].weight[layout.guide, units] = GUIDE_SCALE * exit_.weight
    layer.net[2].bias[layout.guide] = GUIDE_SCALE * exit_.bias


def _write_repainting(model: FlashI2VTransformer3DModel, layout: Layout, least: float) -> None:
    """clamp((u - 0.35) / 0.25, 0, 1) of u = code - spectrum / least is taken from each style's
    code: what is painted is not painted again."""
    layer, divisor = model.blocks[0].ffn, (12 * CONSTANT**2 / layout.width) ** 0.5
    first, steepness = _first_guide_unit(layer) + GUIDE_UNITS, 24.0
    entry, last = layer.net[0].proj, layer.net[2]
    styles = [layout.codes.start + n for n, (kind, _) in enumerate(CODES) if kind == "style"]
    for number, code in enumerate(styles):
        for side, (threshold, sign) in enumerate(((0.35, 1.0), (0.6, -1.0))):
            unit = first + 2 * number + side
            entry.weight[unit, code] = steepness * divisor / CODE_SCALE
            entry.weight[unit, layout.spectrum] = -steepness * divisor / least
            entry.weight[unit, layout.constants] = -entry.weight[unit].sum() / 12
            entry.bias[unit] = -steepness * threshold
            last.weight[code, unit] = -CODE_SCALE * sign / steepness / 0.25


def _first_guide_unit(layer: nn.Module) -> int:
    return int(layer.net[0].proj.out_features) - GUIDE_UNITS - 2 * len(STYLE_OPERATORS)


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
    """Displacement into the address and the fraction, speed into its own channels."""
    per_cell = PLACE_SCALE / CELLS_PER_UNIT
    for axis in (0, 1):
        targets = (
            (layout.place.start + 2 * axis, per_cell),
            (layout.place.start + 2 * axis + 1, -per_cell),
            (layout.fraction.start + axis, FRACTION_SCALE / CELLS_PER_UNIT),
        )
        units = exit_.in_features
        for row, scale in targets:
            last.weight[row, :units] = scale * exit_.weight[axis]
            last.bias[row] = scale * exit_.bias[axis]
        row = layout.velocity.start + axis
        last.weight[row, :units] = VELOCITY_SCALE * exit_.weight[2 + axis]
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
        velocity: the model with all its other arguments filled in.
    """

    latents: Tensor
    noisy: Tensor
    velocity: Callable[[Tensor], Tensor]


@torch.no_grad()
def fit_lookups(
    model: FlashI2VTransformer3DModel, samples: Callable[[], Iterator[Sample]]
) -> list[float]:
    """Writes, block by block, the best linear answer of its lookups to what is still missing.

    Args:
        model: with what comes before the lookups in place, and later feed-forward layers that add
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
        copied = layout.copy.stop - layout.copy.start
        out.weight[layout.copy] += answer[:copied, :-1]
        out.bias[layout.copy] += answer[:copied, -1]
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
        clip, noisy = (tokens_of(model, x) for x in (sample.latents, sample.noisy))
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


def tokens_of(model: FlashI2VTransformer3DModel, latents: Tensor) -> Tensor:
    """Latents as the patch embedding sees them, `(all tokens, channels * patch^2)`."""
    _, rows, columns = model.config.patch_size
    batch, channels, frames, height, width = latents.shape
    folded = latents.reshape(
        batch, channels, frames, height // rows, rows, width // columns, columns
    )
    return folded.permute(0, 2, 3, 5, 1, 4, 6).reshape(-1, channels * rows * columns)
