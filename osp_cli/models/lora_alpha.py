"""Alpha of LoRAs that keep it outside of their tensors: PEFT's `adapter_config.json`, diffusers'
note in the header."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osp_cli.errors import InvalidRequestError
from osp_cli.models.safetensors_header import Header

_CONFIG = "adapter_config.json"
_HEADER_NOTE = "lora_adapter_metadata"


def adapter_alphas(
    header: Header, ranks: Mapping[str, int], written: Mapping[str, str]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Alpha of each layer, so that `alpha / rank` is the scale that was trained with.

    Args:
        header: of the LoRA's file.
        ranks: by the layer's name.
        written: how the file itself calls each layer, by that name.

    Returns:
        The alphas, empty where nothing tells them, and sentences about where they come from.

    Raises:
        InvalidRequestError: the note cannot be read, or asks for more than a LoRA.
    """
    found = _note_of(header) or _config_of(header.path)
    if found is None:
        return {}, ()
    settings, place = found
    if settings.get("use_dora"):
        raise InvalidRequestError(
            f"{header.path} is a DoRA file, and this program applies plain LoRA only",
            hint="extract or merge it to a plain LoRA with the tool that made it",
        )
    try:
        alphas = {name: _alpha(settings, written[name], rank) for name, rank in ranks.items()}
        told = {_setting(settings, "r", "rank_pattern", written[name]) for name in ranks}
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise InvalidRequestError(f"{place} is damaged: {error!r}") from error
    if not told & set(ranks.values()):
        return {}, (f"{place} speaks of another rank and is passed over",)
    return alphas, (f"alpha is from {place}",)


def _alpha(settings: Mapping[str, Any], name: str, rank: int) -> float:
    alpha = float(_setting(settings, "lora_alpha", "alpha_pattern", name))
    # Rank-stabilised LoRA divides by the root of the rank.
    return alpha * rank**0.5 if settings.get("use_rslora") else alpha


def _setting(settings: Mapping[str, Any], key: str, pattern: str, name: str) -> Any:
    """The value for one layer: of the first pattern that its name ends with, else for all."""
    for ending, value in (settings.get(pattern) or {}).items():
        if re.fullmatch(rf"(.*\.)?({ending})", name):
            return value
    return settings[key]


def _note_of(header: Header) -> tuple[Mapping[str, Any], str] | None:
    if _HEADER_NOTE not in header.metadata:
        return None
    place = f"the header of {header.path}"
    settings = _object(header.metadata[_HEADER_NOTE], place)
    return {key.removeprefix("transformer."): value for key, value in settings.items()}, place


def _config_of(path: Path) -> tuple[Mapping[str, Any], str] | None:
    """PEFT's file beside it, unless it may be another LoRA's of the same folder."""
    beside = path.with_name(_CONFIG)
    alone = len(list(path.parent.glob("*.safetensors"))) == 1
    if not beside.is_file() or not (alone or path.stem.startswith("adapter_model")):
        return None
    try:
        return _object(beside.read_text("utf-8"), str(beside)), str(beside)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{beside} cannot be read: {error}") from error


def _object(text: str, place: str) -> Mapping[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{place} is damaged: {error}") from error
    if not isinstance(settings, dict):
        raise InvalidRequestError(f"{place} is damaged: it is no object")
    return settings
