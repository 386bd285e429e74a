"""Recipes in and beside files: what made a clip, as JSON, found again in every kind of output."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.animations import read_gif_comments, read_webp_description
from osp_cli.media.frame_folder import RECIPE_NAME, frames_folder
from osp_cli.media.video import read_comment

# A recipe has some hundred bytes, and a prompt.
MAX_RECIPE_BYTES = 2**20
_MAX_HEADER_BYTES = 16 * 2**20


def sidecar_path(path: str | Path) -> Path:
    """`clip.mp4` -> `clip.mp4.json`."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def canonical_json(
    value: Mapping[str, Any], *, indent: int | None = None, ascii_only: bool = False
) -> str:
    """JSON with sorted keys, so that equal recipes are equal bytes.

    Args:
        value: the recipe.
        indent: spaces a level, for readers; None for one line without blanks.
        ascii_only: write other letters as escapes, for files that know no others.

    Raises:
        ValueError: a number is not finite; JSON has no word for it.
        TypeError: a value is no JSON value.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(
        value,
        sort_keys=True,
        ensure_ascii=ascii_only,
        allow_nan=False,
        indent=indent,
        separators=separators,
    )


def read_recipe(path: str | Path) -> dict[str, Any] | None:
    """The recipe that a file carries, or None where it carries none.

    Read are MP4, GIF and WebP clips, a folder of frames or its pattern, the JSON file beside or
    among them, and latents. A clip that lost its own recipe, as after another program saved it
    anew, has the one of the JSON file beside it.

    Raises:
        UnreadableMediaError: no such file, a damaged one, or a `.json` that is no recipe.
        RuntimeFailureError: ffmpeg is missing.
    """
    path = Path(path)
    try:
        folder = frames_folder(path)
        if folder is not None and not path.exists():
            path = folder
        if path.is_dir():
            recipe = path / RECIPE_NAME
            return _read_json(recipe) if recipe.is_file() else None
        if not path.exists():
            raise UnreadableMediaError(
                f"{path} does not exist", hint="check the name and the folder"
            )
        if not path.is_file():
            raise UnreadableMediaError(f"{path} is no ordinary file")
        if path.suffix.lower() == ".json":
            return _read_json(path)
        if path.suffix.lower() == ".safetensors":
            return _read_header(path)
        return _read_clip(path)
    except OSError as error:
        raise UnreadableMediaError(f"{path} cannot be read ({error.strerror})") from error


def _read_clip(path: Path) -> dict[str, Any] | None:
    """By contents, not by name: clips are renamed."""
    with path.open("rb") as file:
        start = file.read(12)
    texts: list[str | None]
    if start.startswith(b"GIF8"):
        for text in read_gif_comments(path, max_bytes=MAX_RECIPE_BYTES):
            if (recipe := _parse(text)) is not None:
                return recipe
        texts = []
    elif start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        texts = [read_webp_description(path, max_bytes=MAX_RECIPE_BYTES)]
    else:
        texts = [read_comment(path)]
    for text in filter(None, texts):
        if (recipe := _parse(text)) is not None:
            return recipe
    beside = sidecar_path(path)
    return _read_json(beside) if beside.is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    """The recipe that is a file of its own."""
    with path.open("rb") as file:
        data = file.read(MAX_RECIPE_BYTES + 1)
    if len(data) > MAX_RECIPE_BYTES:
        raise UnreadableMediaError(f"{path} is too large for a recipe")
    recipe = _parse(data.decode("utf-8-sig", errors="replace"))
    if recipe is None:
        raise UnreadableMediaError(f"{path} is no recipe: it holds no JSON object")
    return recipe


def _read_header(path: Path) -> dict[str, Any] | None:
    """The recipe among the metadata of a safetensors file; no tensor is read."""
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        data = file.read(size) if 2 <= size <= _MAX_HEADER_BYTES else b""
    header = _load(data.decode("utf-8", errors="replace")) if len(data) == size else None
    if not isinstance(header, dict):
        raise UnreadableMediaError(f"{path} is damaged or no safetensors file")
    metadata = header.get("__metadata__")
    text = metadata.get("recipe") if isinstance(metadata, dict) else None
    return _parse(text) if isinstance(text, str) else None


def _parse(text: str) -> dict[str, Any] | None:
    if len(text.encode(errors="replace")) > MAX_RECIPE_BYTES:
        return None
    recipe = _load(text)
    return recipe if isinstance(recipe, dict) else None


def _load(text: str) -> object:
    """What JSON says, or None where it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    """NaN and infinities are no JSON, though Python reads them."""
    raise ValueError(constant)
