"""What the embedded transformer's start knows because it was fitted, each part by itself.

Small problems with known answers, solved before any training of the whole: here, what the frozen
language model's last state asks for and where the Fourier features were cut; in `mini_motion`, how
far every motion takes every place; in `mini_lookups`, how the lookups around an address make the
cell that is there.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn

from osp_cli.conditioning.vlm import QwenVLConditioner
from osp_cli.models.mini_stream import (
    CODE_SCALE,
    CODES,
    CUTOFF_STEPS,
    GUIDE_SCALE,
    Layout,
    stream_layout,
)
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.procedural.motions import Motion
from osp_cli.procedural.prompts import random_motion, random_prompt, random_style
from osp_cli.procedural.styles import STYLE_OPERATORS
from osp_cli.sampling.fourier import fourier_features
from osp_cli.training.mini_start import CONSTANT, GUIDE_UNITS, SPECTRUM_GAIN

_SENTENCES = 64  # of a batch


class Units(nn.Module):
    """Hidden units of a feed-forward layer that are fitted by themselves, to be written into it.

    Args:
        inputs: of the layer that the units read.
        hidden: how many units.
        outputs: that they answer; all zero before the fit.
        generator: of the first weights.
        std: of the first weights.
        approximate: kind of the GELU between.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        generator: torch.Generator,
        std: float = 1.0,
        approximate: str = "tanh",
    ) -> None:
        super().__init__()
        self.entry, self.exit = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.approximate = approximate
        with torch.no_grad():
            nn.init.normal_(self.entry.weight, std=std, generator=generator)
            nn.init.normal_(self.entry.bias, generator=generator)
            nn.init.zeros_(self.exit.weight)
            nn.init.zeros_(self.exit.bias)

    def forward(self, read: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.entry(read), approximate=self.approximate)
        answer: Tensor = self.exit(hidden)
        return answer

    @torch.enable_grad()
    def fit(self, loss_of: Callable[[int], Tensor], steps: int, learning_rate: float) -> None:
        """Adam on the loss of each step, the rate rising and falling once."""
        optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        for step in range(steps):
            loss = loss_of(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


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


def _fit_last_row(
    adapter: nn.Module, last: Tensor, others: Tensor, output: int, seed: int, steps: int = 1200
) -> None:
    """Writes hidden units that answer one for a prompt's last row and zero for any other.

    No linear answer tells them apart: the row before the prompt ends in the same token.
    """
    first, hidden = 2 * len(CODES), min(_LAST_ROW_UNITS, adapter.fc1.out_features - 2 * len(CODES))
    generator = torch.Generator().manual_seed(seed)
    units = Units(last.shape[1], hidden, 1, generator, last.shape[1] ** -0.5, approximate="none")

    def loss_of(_step: int) -> Tensor:
        loss = torch.zeros(())
        for rows, wanted in ((last, 1.0), (others, 0.0)):
            chosen = torch.randint(0, len(rows), (512,), generator=generator)
            error = units(rows[chosen]) - wanted
            loss = loss + error.square().mean() + error.pow(4).mean()
        return loss

    units.fit(loss_of, steps, 5e-3)
    where = slice(first, first + hidden)
    with torch.no_grad():
        adapter.fc1.weight[where], adapter.fc1.bias[where] = units.entry.weight, units.entry.bias
        adapter.fc2.weight[output, where] = units.exit.weight[0]
        # Never below zero, where a lookup that turns away from this row would turn towards it.
        adapter.fc2.bias[output] = units.exit.bias[0] + 0.65


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
    mean, spread = spectra.mean(0), spectra.std(0)
    spread[spread == 0] = 1.0  # of channels that a smaller model lacks
    units = Units(spectra.shape[1], GUIDE_UNITS, len(CUTOFF_STEPS), generator)

    def loss_of(_step: int) -> Tensor:
        chosen = torch.randint(0, len(spectra), (2048,), generator=generator)
        return nn.functional.mse_loss(units((spectra[chosen] - mean) / spread), answers[chosen])

    units.fit(loss_of, steps, 1e-2)
    with torch.no_grad():
        got = units((spectra - mean) / spread)
        _write_guide(model, layout, units, mean, spread)
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
    fitted: Units,
    mean: Tensor,
    spread: Tensor,
) -> None:
    layer, divisor = model.blocks[0].ffn, (12 * CONSTANT**2 / layout.width) ** 0.5
    units = slice(_first_guide_unit(layer), _first_guide_unit(layer) + GUIDE_UNITS)
    weight = fitted.entry.weight / spread
    layer.net[0].proj.weight[units.start :] = 0.0
    layer.net[0].proj.weight[units, layout.spectrum] = weight * divisor
    # Constants tell the mean, which the layer norm took out.
    layer.net[0].proj.weight[units, layout.constants] = -weight.sum(1, True) * divisor / 12
    layer.net[0].proj.bias[units] = fitted.entry.bias - weight @ mean
    layer.net[2].weight[layout.guide, units] = GUIDE_SCALE * fitted.exit.weight
    layer.net[2].bias[layout.guide] = GUIDE_SCALE * fitted.exit.bias


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
