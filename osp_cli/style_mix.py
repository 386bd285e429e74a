"""Styles by weight, and along a clip: `ghibli`, `ghibli:0.5`, `ink+watercolor`, `ghibli..ink`.

A weight says how much of a style there is; what the weights leave to 1 is the unstyled look. Two
dots lead from one mixture to the next while the clip plays; `none` is the unstyled look there. How
all this is written is the business of `style_text`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from osp_cli.errors import InvalidRequestError
from osp_cli.own_styles import find_any_style, styles_of_recipe
from osp_cli.registry import ModelSpec, StylePreset
from osp_cli.style_text import NO_STYLE, NOTHING, read_stops, refuse_twice, written

__all__ = [
    "NO_STYLE",
    "StyleMix",
    "StylePart",
    "Weight",
    "WeightedPrompt",
    "mean_weight",
    "prompts_of_recipe",
    "prompts_to_recipe",
    "read_style",
    "sums_along",
    "weight_left",
    "weights_along",
]

# How much of something there is: all along the same, or its values at equally spaced points from
# the clip's first to its last moment, with straight lines between them.
Weight: TypeAlias = float | tuple[float, ...]


class WeightedPrompt(NamedTuple):
    """One of the prompts of a clip, and its share of the velocity.

    Attributes:
        text: what the model reads.
        weight: from 0 to 1, and somewhere above 0.
    """

    text: str
    weight: Weight


class StylePart(NamedTuple):
    """One style of a mixture, with its weight."""

    preset: StylePreset
    weight: Weight


@dataclass(frozen=True, slots=True)
class StyleMix:
    """One or more different styles.

    Attributes:
        parts: in alphabetical order; at every moment their weights add up to 1 or less. Those that
            change have as many values as there are stops.
    """

    parts: tuple[StylePart, ...]

    def __str__(self) -> str:
        """The canonical text, from which the same mixture is read again."""
        stops = [{p.reference or p.name: w for p, w in stop} for stop in self._stops()]
        return written(stops)

    @property
    def named(self) -> str:
        """The same with the names of styles alone: nothing of the folders they lie in."""
        return written([{preset.name: weight for preset, weight in s} for s in self._stops()])

    @property
    def presets(self) -> list[StylePreset]:
        """The styles."""
        return [preset for preset, _ in self.parts]

    @property
    def is_morph(self) -> bool:
        """Whether it changes while the clip plays."""
        return any(isinstance(weight, tuple) for _, weight in self.parts)

    @property
    def strongest(self) -> StylePreset:
        """The style with the most weight over the whole clip; of several the one it begins with.

        Its own settings hold for the whole mixture. A sampler has one shift and one number of
        steps, so they cannot be had by halves; and what the strongest steers away from may be what
        a weaker one is made of, so negative prompts are not put together either. They hold however
        small the weight is, as nothing but the look shall change when the weight does.
        """

        def strength(part: StylePart) -> tuple[float, float]:
            # Rounded, as equal means of other numbers may differ in their last bits.
            return round(mean_weight(part.weight), 12), _at(part.weight, 0)

        return max(self.parts, key=strength).preset

    @property
    def unstyled(self) -> Weight:
        """The share of the unstyled look."""
        # Rounded, as 1 - 0.3 - 0.5 is not quite 0.2 to a computer.
        rests = [round(weight_left(w for _, w in stop), 12) for stop in self._stops()]
        return _constant_or_all([rest if rest > NOTHING else 0.0 for rest in rests])

    @property
    def screen(self) -> float:
        """The share of styles with a pattern that stands still on the screen, 0 to 1."""
        return math.fsum(mean_weight(weight) for preset, weight in self.parts if preset.screen)

    def prompts_for(self, spec: ModelSpec, prompt: str) -> tuple[WeightedPrompt, ...]:
        """What the model `spec` reads: a prompt per style, and `prompt` itself for the rest."""
        prompts = [
            WeightedPrompt(preset.prompt_for(spec, prompt), weight) for preset, weight in self.parts
        ]
        if self.unstyled:
            prompts.append(WeightedPrompt(prompt, self.unstyled))
        return tuple(prompts)

    def _stops(self) -> list[list[tuple[StylePreset, float]]]:
        """The styles at each stop, with their weights; a mixture that stays is one stop."""
        count = max(len(weight) if isinstance(weight, tuple) else 1 for _, weight in self.parts)
        return [
            [(preset, _at(weight, stop)) for preset, weight in self.parts if _at(weight, stop)]
            for stop in range(count)
        ]


def read_style(text: str, recipe: Mapping[str, Any] | None = None) -> StyleMix | None:
    """Read what `--style` takes; None for `none`.

    Upper case, and blanks or underscores in the place of hyphens, are understood.

    Args:
        text: as it was typed.
        recipe: that is made again; it has the words of styles that are here no more.

    Raises:
        InvalidRequestError: an unknown style, or weights that make no sense.
    """
    kept = styles_of_recipe(recipe)
    stops = []
    presets: dict[str, StylePreset] = {}
    for stop in read_stops(text):
        found = [(find_any_style(name, kept), weight) for name, weight in stop]
        refuse_twice([preset.name for preset, _ in found], text)
        stops.append({preset.name: weight for preset, weight in found})
        presets |= {preset.name: preset for preset, _ in found}
    parts = tuple(
        StylePart(presets[name], _constant_or_all([stop.get(name, 0.0) for stop in stops]))
        for name in sorted(presets)
    )
    return StyleMix(parts) if parts else None


def weight_left(weights: Iterable[float]) -> float:
    """What these leave to 1, never below 0."""
    return max(0.0, 1 - math.fsum(weights))


def mean_weight(weight: Weight) -> float:
    """The mean over the whole clip."""
    if not isinstance(weight, tuple):
        return weight
    return (math.fsum(weight) - (weight[0] + weight[-1]) / 2) / (len(weight) - 1)


def weights_along(
    prompts: Sequence[WeightedPrompt], positions: Sequence[float]
) -> list[list[float]]:
    """How much of each prompt there is at some moments.

    Args:
        prompts: of one clip.
        positions: moments, 0 the clip's first and 1 its last.

    Returns:
        A row for each prompt with a weight for each position; at each position the weights add up
        to what they do in `prompts`, and at the points that a prompt gives they are exactly those.
    """
    return [[_weight_at(weight, position) for position in positions] for _, weight in prompts]


def sums_along(weights: Sequence[Weight]) -> list[float]:
    """The sum of weights at each moment where one of them bends; between these it runs straight."""
    knots = {0.0, 1.0}
    for weight in weights:
        if isinstance(weight, tuple):
            knots |= {index / (len(weight) - 1) for index in range(len(weight))}
    return [math.fsum(_weight_at(weight, knot) for weight in weights) for knot in sorted(knots)]


def _weight_at(weight: Weight, position: float) -> float:
    if not isinstance(weight, tuple):
        return weight
    place = min(max(position, 0.0), 1.0) * (len(weight) - 1)
    index = min(int(place), len(weight) - 2)
    before, after, share = weight[index], weight[index + 1], place - index
    # Exact at both ends; and what does not change stays exactly what it is.
    return before if before == after else before * (1 - share) + after * share


def _at(weight: Weight, stop: int) -> float:
    return weight[stop] if isinstance(weight, tuple) else weight


def _constant_or_all(values: Sequence[float]) -> Weight:
    return values[0] if all(value == values[0] for value in values) else tuple(values)


def prompts_to_recipe(prompts: Sequence[WeightedPrompt]) -> str | list[dict[str, Any]]:
    """Prompts as a recipe holds them: a lone one as its text, several with their weights.

    A weight that changes is the list of its values.
    """
    if len(prompts) == 1:
        return prompts[0].text
    return [
        {"prompt": text, "weight": list(weight) if isinstance(weight, tuple) else weight}
        for text, weight in prompts
    ]


def prompts_of_recipe(value: object) -> tuple[WeightedPrompt, ...]:
    """What `prompts_to_recipe` has written.

    Raises:
        InvalidRequestError: it was tampered with.
    """
    match value:
        case str():
            return (WeightedPrompt(value, 1.0),)
        case [_, *_]:
            prompts = tuple(_prompt_of_recipe(part) for part in value)
            sums = sums_along([weight for _, weight in prompts])
            if all(abs(total - 1) < 1e-6 for total in sums):
                return prompts
    raise InvalidRequestError("the recipe's full_prompt holds no prompts whose weights make 1")


def _prompt_of_recipe(part: object) -> WeightedPrompt:
    match part:
        case {"prompt": str(text), "weight": int() | float() as weight} if 0 < weight <= 1:
            return WeightedPrompt(text, float(weight))
        case {"prompt": str(text), "weight": [_, _, *_] as values} if _are_weights(values):
            return WeightedPrompt(text, tuple(map(float, values)))
    raise InvalidRequestError(f"the recipe's full_prompt holds no prompt with a weight: {part!r}")


def _are_weights(values: Sequence[object]) -> bool:
    return all(isinstance(value, int | float) and 0 <= value <= 1 for value in values) and any(
        values
    )
