"""LoRAs that belong to styles: which a mixture brings, and how strongly."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from osp_cli.dials import LoraChoice, Loras
from osp_cli.errors import InvalidRequestError
from osp_cli.loras import SUFFIX, find_lora, installed_loras, loras_home, name_in_recipe
from osp_cli.own_styles import lora_metadata
from osp_cli.registry import StylePreset
from osp_cli.style_mix import StyleMix, mean_weight


def with_adapters(
    mix: StyleMix | None,
    loras: Sequence[LoraChoice],
    misfit: Callable[[str], str | None],
    recipe: Mapping[str, Any] | None = None,
) -> tuple[Loras, list[str]]:
    """The LoRAs of a run with those of its styles behind them.

    A style's counts as much as there is of the style; where that changes, as much as there is in
    the mean. One that the user named too is as strong as the user says.

    Args:
        mix: the styles.
        loras: as asked for; those that an earlier run's styles brought are looked for anew.
        misfit: says why a LoRA, by its path, cannot be used with the model; None where it can.
        recipe: that is made again, for styles that are here no more.

    Returns:
        The LoRAs, and sentences about those that are missing, left out or weakened.
    """
    own = [choice for choice in loras if not choice.style]
    notices: list[str] = []
    found: list[LoraChoice] = []
    for preset, weight in mix.parts if mix is not None else ():
        if preset.is_own and preset.source is None:
            # All that is left of the style is what the recipe says.
            given = [choice for choice in loras if choice.style == preset.name]
            found += given or _of_recipe(recipe or {}, preset.name)
            continue
        path = adapter_path(preset) if preset.adapter else None
        if preset.adapter and path is None:
            notices.append(_missing(preset))
        if path is None or any(_is_file(choice.name, path) for choice in own):
            continue
        if (problem := misfit(path)) is not None:
            notices.append(f"style {preset.name}: the prompt alone makes it, as {problem}")
            continue
        strength = round(preset.adapter_weight * mean_weight(weight), 12)
        if isinstance(weight, tuple):
            notices.append(
                f"style {preset.name}: its adapter counts as much in the whole clip as the style "
                f"does in the mean, {strength:g}"
            )
        found.append(LoraChoice(path, strength, preset.name))
    return Loras([*own, *found]), notices


def adapter_path(preset: StylePreset) -> str | None:
    """The file of a style's adapter: a path, seen from the style's own file, or an installed name.

    None where there is none.
    """
    typed = os.path.expanduser(preset.adapter)  # noqa: PTH111 - the method fails on ~nobody
    beside = os.path.join(preset.source.parent, typed) if preset.source else typed  # noqa: PTH118
    # Unlike the methods of paths, these take any text for a name.
    for path in dict.fromkeys((beside, f"{beside}{SUFFIX}")):
        if os.path.isfile(path) and path.lower().endswith(SUFFIX):  # noqa: PTH113
            return path
    installed = installed_loras()
    for name in (preset.adapter, preset.adapter.removesuffix(SUFFIX)):
        if name in installed:
            return str(installed[name])
    return None


def trained_from(path: str) -> dict[str, str]:
    """What an adapter of our own trainer says: its base, its steps and the file beside it."""
    told = lora_metadata(Path(path))
    keys = {"base": "osp.base_id", "steps": "osp.steps", "companion": "osp.companion"}
    return {what: told[key] for what, key in keys.items() if told.get(key)}


def _of_recipe(recipe: Mapping[str, Any], style: str) -> list[LoraChoice]:
    """What a recipe says of a style's adapter, where flags hide the rest of its LoRAs."""
    entries = recipe.get("loras")
    return [
        LoraChoice(name_in_recipe(file), float(weight), style)
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict)
        and entry.get("style") == style
        and isinstance(file := entry.get("file"), str)
        and isinstance(weight := entry.get("weight"), int | float)
    ]


def _missing(preset: StylePreset) -> str:
    name = os.path.basename(preset.adapter)  # noqa: PTH119
    place = loras_home() / f"{name.removesuffix(SUFFIX)}{SUFFIX}"
    return (
        f"style {preset.name}: its adapter {preset.adapter} is not installed, the prompt alone "
        f"makes it; put it at {place}"
    )


def _is_file(name: str, path: str) -> bool:
    try:
        return os.path.samefile(find_lora(name), path)  # noqa: PTH121
    except (InvalidRequestError, OSError):
        # Whoever uses it is told what is wrong with it.
        return False
