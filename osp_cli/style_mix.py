"""Styles by weight: `ghibli`, `ghibli:0.5`, `ink+watercolor`, `ghibli:0.3+ink:0.5`.

A weight says how much of a style there is; what the weights leave to 1 is the unstyled look. A
style without a weight takes an equal share of what the others leave: one alone is all there is, and
two are halves. The order says nothing, so the canonical text is in alphabetical order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context
from typing import Any, NamedTuple

from osp_cli.dials import number_text
from osp_cli.errors import InvalidRequestError
from osp_cli.registry import ModelSpec, StylePreset, find_style, style_presets

NO_STYLE = "none"

# Decimal fractions add up to 1 only nearly; so little of a look could not be seen either.
_NOTHING = 1e-9


class WeightedPrompt(NamedTuple):
    """One of the prompts of a clip, and its share of the velocity, above 0 and at most 1."""

    text: str
    weight: float


class StylePart(NamedTuple):
    """One style of a mixture, with its weight."""

    preset: StylePreset
    weight: float


@dataclass(frozen=True, slots=True)
class StyleMix:
    """One or more different styles.

    Attributes:
        parts: in alphabetical order; their weights add up to 1 or less.
    """

    parts: tuple[StylePart, ...]

    def __str__(self) -> str:
        """The canonical text, from which the same mixture is read again."""
        share = 1 / len(self.parts)
        if all(weight == share for _, weight in self.parts):
            return "+".join(preset.name for preset, _ in self.parts)
        return _written({preset.name: weight for preset, weight in self.parts})

    @property
    def strongest(self) -> StylePreset:
        """The style with the most weight, the first of several.

        Its own settings hold for the whole mixture. A sampler has one shift and one number of
        steps, so they cannot be had by halves; and what the strongest steers away from may be what
        a weaker one is made of, so negative prompts are not put together either. They hold however
        small the weight is, as nothing but the look shall change when the weight does.
        """
        return max(self.parts, key=lambda part: part.weight).preset

    @property
    def unstyled(self) -> float:
        """The share of the unstyled look."""
        # Rounded, as 1 - 0.3 - 0.5 is not quite 0.2 to a computer.
        rest = round(weight_left(weight for _, weight in self.parts), 12)
        return rest if rest > _NOTHING else 0.0

    def prompts_for(self, spec: ModelSpec, prompt: str) -> tuple[WeightedPrompt, ...]:
        """What the model `spec` reads: a prompt per style, and `prompt` itself for the rest."""
        prompts = [
            WeightedPrompt(preset.prompt_for(spec, prompt), weight) for preset, weight in self.parts
        ]
        if self.unstyled:
            prompts.append(WeightedPrompt(prompt, self.unstyled))
        return tuple(prompts)


def read_style(text: str) -> StyleMix | None:
    """Read what `--style` takes; None for `none`.

    Upper case, and blanks or underscores in the place of hyphens, are understood.

    Raises:
        InvalidRequestError: an unknown style, or weights that make no sense.
    """
    if ".." in text:
        raise InvalidRequestError(
            f"--style cannot morph from one style to another yet, got {text!r}",
            hint=f"--style {'+'.join(_few_known(text)) or 'ghibli+ink'} blends them",
        )
    names, weights = _split(text)
    if text.strip().lower() == NO_STYLE:
        return None
    _refuse_words(names, text)
    presets = [find_style(_known(name)) for name in names]
    named = {preset.name: weight for preset, weight in zip(presets, weights, strict=True)}
    if len(named) < len(presets):
        twice = next(p.name for p in presets if [q.name for q in presets].count(p.name) > 1)
        raise InvalidRequestError(
            f"--style names {twice} twice, got {text!r}", hint=f"--style {'+'.join(named)}"
        )
    shares = _shares(named, text)
    return StyleMix(tuple(StylePart(find_style(name), shares[name]) for name in sorted(shares)))


def weight_left(weights: Iterable[float]) -> float:
    """What these leave to 1, never below 0."""
    return max(0.0, 1 - math.fsum(weights))


def prompts_to_recipe(prompts: Sequence[WeightedPrompt]) -> str | list[dict[str, Any]]:
    """Prompts as a recipe holds them: a lone one as its text, several with their weights."""
    if len(prompts) == 1:
        return prompts[0].text
    return [{"prompt": text, "weight": weight} for text, weight in prompts]


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
            if abs(math.fsum(weight for _, weight in prompts) - 1) < 1e-6:
                return prompts
    raise InvalidRequestError("the recipe's full_prompt holds no prompts whose weights make 1")


def _prompt_of_recipe(part: object) -> WeightedPrompt:
    match part:
        case {"prompt": str(text), "weight": int() | float() as weight} if 0 < weight <= 1:
            return WeightedPrompt(text, float(weight))
    raise InvalidRequestError(f"the recipe's full_prompt holds no prompt with a weight: {part!r}")


def _split(text: str) -> tuple[list[str], list[float | None]]:
    """Names as they were written, and the weights that stand behind them."""
    names: list[str] = []
    weights: list[float | None] = []
    for part in text.split("+"):
        name, colon, weight = part.partition(":")
        if not name.strip() and (colon or "+" in text):
            raise InvalidRequestError(
                f"--style lacks a name before or after a sign, got {text!r}",
                hint="--style ghibli:0.5 or --style ink+watercolor",
            )
        names.append(name.strip())
        weights.append(_weight(weight, text) if colon else None)
    return names, weights


def _weight(written: str, text: str) -> float:
    try:
        weight = float(written)
    except ValueError:
        weight = math.nan
    # In this form nan is refused too.
    if not 0 < weight <= 1:
        raise InvalidRequestError(
            f"--style takes a weight above 0 and at most 1 behind the colon, got {text!r}",
            hint="--style ghibli:0.5 is half of a style",
        )
    return weight


def _refuse_words(names: Sequence[str], text: str) -> None:
    """Refuse the words that are no styles."""
    words = [name.lower() for name in names]
    if "all" in words and "all" not in style_presets():
        raise InvalidRequestError(
            f"--style makes one video, got {text!r}",
            hint="for one in every style, name a style per line of a file for --from-file",
        )
    if NO_STYLE in words:
        raise InvalidRequestError(
            f"--style none stands alone, got {text!r}",
            hint="--style ghibli:0.5 leaves half of the video unstyled",
        )


def _known(name: str) -> str:
    """The spelling of a preset, where there is one; else what was typed, for the message."""
    spelled = "-".join(name.lower().replace("_", " ").replace("-", " ").split())
    return spelled if spelled in style_presets() else name


def _few_known(text: str) -> list[str]:
    """The styles that a text names between dots, signs and weights."""
    words = text.replace("..", "+").split("+")
    known = [_known(word.partition(":")[0].strip()) for word in words]
    return list(dict.fromkeys(name for name in known if name in style_presets()))


def _shares(named: Mapping[str, float | None], text: str) -> dict[str, float]:
    """The weight of each style, those included that were given none."""
    given = {name: weight for name, weight in named.items() if weight is not None}
    total = math.fsum(given.values())
    left = weight_left(given.values())
    waiting = [name for name in named if name not in given]
    if total > 1 + _NOTHING:
        better = "+".join([_written(_scaled(given, total, room=bool(waiting))), *waiting])
        raise InvalidRequestError(
            f"--style takes weights that add up to 1 at most, got {text!r}",
            hint=f"--style {better} keeps their proportion",
        )
    if waiting and left <= _NOTHING:
        raise InvalidRequestError(
            f"--style leaves nothing for {' and '.join(waiting)}, got {text!r}",
            hint=f"--style {'+'.join(named)} gives each the same",
        )
    return given | {name: left / len(waiting) for name in waiting}


def _scaled(given: Mapping[str, float], total: float, *, room: bool) -> dict[str, float]:
    """The same proportion with the sum 1, or, where there is to be room for more, a half."""
    shares = {name: weight / total / (2 if room else 1) for name, weight in given.items()}
    # Two digits are enough for a hint; cut, not rounded, or they might add up to more again.
    cut = Context(prec=2, rounding=ROUND_DOWN).create_decimal_from_float
    return {name: float(cut(share * (1 + _NOTHING))) for name, share in shares.items()}


def _written(weights: Mapping[str, float]) -> str:
    return "+".join(f"{name}:{number_text(weight)}" for name, weight in weights.items())
