"""How styles are written: `ghibli`, `ghibli:0.3+ink:0.5`, `ghibli..ink`, `none..oil`.

`+` stands between the styles of a mixture, a weight behind a colon, and two dots between what the
clip begins with and what it comes to. A style without a weight takes an equal share of what the
others leave: one alone is all there is, and two are halves. The order inside of a mixture says
nothing, so the canonical text is in alphabetical order. A name may be the path of a style's file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from decimal import ROUND_DOWN, Context

from osp_cli.dials import number_text
from osp_cli.errors import InvalidRequestError
from osp_cli.own_styles import is_known, is_path, known_name

NO_STYLE = "none"
MORPH = ".."

# Decimal fractions add up to 1 only nearly; so little of a look could not be seen either.
NOTHING = 1e-9
# More than a clip of osp-mini has latent frames to show them in would be a slip of the hand.
MAX_STOPS = 16


def read_stops(text: str) -> list[list[tuple[str, float]]]:
    """The names and weights of each mixture that a text leads through, at least one.

    A name is what was typed, in the spelling of a preset where there is one. `none` is a mixture
    of nothing.

    Raises:
        InvalidRequestError: weights that make no sense, or words that are no styles.
    """
    stops = _between_dots(text)
    if len(stops) > MAX_STOPS:
        raise InvalidRequestError(
            f"--style leads through at most {MAX_STOPS} looks, got {len(stops)}",
            hint="--style ghibli..ink..oil leads through three",
        )
    if len(stops) > 1 and not all(stop.strip() for stop in stops):
        known = _few_known(text)
        better = MORPH.join(known) if len(known) > 1 else f"{NO_STYLE}..{(*known, 'ink')[0]}"
        raise InvalidRequestError(
            f"--style lacks a name before or after the dots, got {text!r}",
            hint=f"--style {better} leads from one to the other",
        )
    return [_read_mixture(stop, text) for stop in stops]


def written(stops: Sequence[Mapping[str, float]]) -> str:
    """The canonical text of weights by name, of which none is 0."""
    return MORPH.join(_written_mixture(stop) for stop in stops)


def refuse_twice(names: Sequence[str], text: str) -> None:
    """Refuse a mixture that names one style twice.

    Raises:
        InvalidRequestError: with what to write instead.
    """
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequestError(
                f"--style names {name} twice, got {text!r}",
                hint=f"--style {'+'.join(dict.fromkeys(names))}",
            )


def _between_dots(text: str) -> list[str]:
    """What stands between two dots; those of a path, as in `../mine.toml`, belong to it."""
    stops = [""]
    index = 0
    while index < len(text):
        begins = not stops[-1].strip() or stops[-1].rstrip()[-1] in "/\\+"
        is_path = begins and text[index + 2 : index + 3] in ("/", "\\")
        if text.startswith(MORPH, index) and not is_path:
            stops.append("")
            index += len(MORPH)
        else:
            stops[-1] += text[index]
            index += 1
    return stops


def _read_mixture(mixture: str, text: str) -> list[tuple[str, float]]:
    """The names of one mixture, as far as they are known ones, with their weights."""
    names, weights = _split(mixture, text)
    if mixture.strip().lower() == NO_STYLE:
        return []
    _refuse_words(names, text)
    names = [known_name(name) for name in names]
    refuse_twice(names, text)
    return list(_shares(dict(zip(names, weights, strict=True)), text).items())


def _written_mixture(weights: Mapping[str, float]) -> str:
    if not weights:
        return NO_STYLE
    share = 1 / len(weights)
    if all(weight == share for weight in weights.values()):
        return "+".join(weights)
    return _written(weights)


def _split(mixture: str, text: str) -> tuple[list[str], list[float | None]]:
    """Names as they were written, and the weights that stand behind them."""
    names: list[str] = []
    weights: list[float | None] = []
    for part in _between_signs(mixture):
        name, colon, weight = _without_weight(part)
        if not name.strip() and (colon or "+" in mixture):
            raise InvalidRequestError(
                f"--style lacks a name before or after a sign, got {text!r}",
                hint="--style ghibli:0.5 or --style ink+watercolor",
            )
        names.append(name.strip())
        weights.append(_weight(weight, text) if colon else None)
    return names, weights


def _between_signs(mixture: str) -> list[str]:
    """What stands between two signs; those in the name of a file that is there belong to it."""
    parts = mixture.split("+")
    found = []
    while parts:
        lengths = range(1, len(parts) + 1)
        count = next((n for n in lengths if _is_there("+".join(parts[:n]))), 1)
        found.append("+".join(parts[:count]))
        parts = parts[count:]
    return found


def _is_there(part: str) -> bool:
    name = _without_weight(part)[0].strip()
    # Unlike the methods of paths, these take any text for a name.
    if is_path(name):
        return os.path.isfile(os.path.expanduser(name))  # noqa: PTH111, PTH113
    return is_known(name)


def _without_weight(part: str) -> tuple[str, str, str]:
    """The name, a colon and the weight behind it; the colon in a path is none."""
    if not is_path(part):
        return part.partition(":")
    name, colon, weight = part.rpartition(":")
    return (part, "", "") if is_path(weight) else (name, colon, weight) if colon else (part, "", "")


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
    if "all" in words:
        raise InvalidRequestError(
            f"--style makes one video here, got {text!r}",
            hint="--style all, on its own, makes a page of all styles; osp styles lists them",
        )
    if NO_STYLE in words:
        raise InvalidRequestError(
            f"--style none stands alone, got {text!r}",
            hint="--style ghibli:0.5 leaves half of the video unstyled, none..ghibli styles it "
            "more and more",
        )


def _few_known(text: str) -> list[str]:
    """The styles that a text names between dots, signs and weights."""
    words = text.replace(MORPH, "+").split("+")
    known = [known_name(word.partition(":")[0].strip()) for word in words]
    return list(dict.fromkeys(name for name in known if is_known(name)))


def _shares(named: Mapping[str, float | None], text: str) -> dict[str, float]:
    """The weight of each style, those included that were given none."""
    given = {name: weight for name, weight in named.items() if weight is not None}
    total = math.fsum(given.values())
    left = max(0.0, 1 - total)
    waiting = [name for name in named if name not in given]
    if total > 1 + NOTHING:
        better = "+".join([_written(_scaled(given, total, room=bool(waiting))), *waiting])
        raise InvalidRequestError(
            f"--style takes weights that add up to 1 at most, got {text!r}",
            hint=f"--style {better} keeps their proportion",
        )
    if waiting and left <= NOTHING:
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
    return {name: float(cut(share * (1 + NOTHING))) for name, share in shares.items()}


def _written(weights: Mapping[str, float]) -> str:
    return "+".join(f"{name}:{number_text(weight)}" for name, weight in weights.items())
