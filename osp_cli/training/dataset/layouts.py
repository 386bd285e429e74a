"""Finding out how a dataset is laid out, and listing what is in it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osp_cli.errors import InvalidRequestError
from osp_cli.training.dataset.folders import add_folder, has_media
from osp_cli.training.dataset.listing import Draft, Listing, read_text
from osp_cli.training.dataset.rows import (
    add_flash_list,
    add_line_pairs,
    add_manifest,
    add_rows,
    is_flash_list,
)

MANIFEST = "osp.jsonl"
_METADATA = ("metadata.jsonl", "metadata.json", "metadata.csv")
_PROMPTS = ("prompts.txt", "captions.txt")
_VIDEOS = "videos.txt"

_FOLDER_KEYS = ("video_directory", "image_directory")
_LIST_KEYS = ("video_jsonl_file", "image_jsonl_file")
_READ_KEYS = (*_FOLDER_KEYS, *_LIST_KEYS, "num_repeats", "resolution", "caption_extension")


def read_dataset(path: Path, *, allow_empty: bool = False) -> Listing:
    """List the clips of a dataset; the first layout that fits is taken, nothing is written.

    Layouts, in this order: `osp.jsonl` (our own manifest), `metadata.jsonl|json|csv`, FlashI2V's
    list of lists, `prompts.txt` or `captions.txt` with `videos.txt`, a folder of media with text
    files of their names, and musubi-tuner's TOML.

    Args:
        path: a folder, or the file that lists the clips.
        allow_empty: rows may lack a caption, and captions that cannot be read are warnings.

    Raises:
        InvalidRequestError: there is no such file or folder, or nothing of it can be read.
    """
    if path.is_dir():
        return _of_folder(Draft(path, allow_empty))
    if not path.is_file():
        raise InvalidRequestError(
            f"there is no dataset at {path}",
            hint="name a folder of clips, or a file that lists them",
        )
    draft = Draft(path.parent, allow_empty)
    match path.suffix.lower():
        case ".jsonl" if path.name == MANIFEST:
            return draft.finish(add_manifest(draft, path))
        case ".jsonl" | ".json" | ".csv":
            add_rows(draft, path)
            return draft.finish(f"list {path.name}")
        case ".toml":
            return _of_toml(draft, path)
        case ".txt" if is_flash_list(path):
            add_flash_list(draft, path)
            return draft.finish(f"FlashI2V list {path.name}")
        case ".txt" if path.name in (_VIDEOS, *_PROMPTS):
            if listing := _line_pairs(draft):
                return listing
    raise InvalidRequestError(
        f"{path} lists no clips",
        hint="name a folder of clips, or a .jsonl, .json, .csv, .toml or FlashI2V .txt list",
    )


def _of_folder(draft: Draft) -> Listing:
    folder = draft.root
    if (folder / MANIFEST).is_file():
        return draft.finish(add_manifest(draft, folder / MANIFEST))
    for name in _METADATA:
        if (folder / name).is_file():
            add_rows(draft, folder / name)
            return draft.finish(f"list {name}")
    for path in sorted(folder.glob("*.txt")):
        if is_flash_list(path):
            add_flash_list(draft, path)
            return draft.finish(f"FlashI2V list {path.name}")
    if listing := _line_pairs(draft):
        return listing
    tables = sorted(folder.glob("*.toml"))
    if len(tables) == 1 and not has_media(folder):
        return _of_toml(draft, tables[0])
    add_folder(draft, folder)
    return draft.finish("folder of clips with text files of their names")


def _line_pairs(draft: Draft) -> Listing | None:
    videos = draft.root / _VIDEOS
    for name in _PROMPTS:
        if videos.is_file() and (draft.root / name).is_file():
            add_line_pairs(draft, videos, draft.root / name)
            return draft.finish(f"{name} with {_VIDEOS}")
    return None


def _of_toml(draft: Draft, path: Path) -> Listing:
    """musubi-tuner's configuration; the folders in it are its user's own, wherever they are."""
    try:
        values = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequestError(f"{path} is not TOML: {error}") from error
    tables = values.get("datasets")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InvalidRequestError(
            f"{path} lists no clips", hint="it needs a table [[datasets]] with video_directory"
        )
    general = values.get("general", {})
    _warn(draft, general if isinstance(general, dict) else {}, f"{path.name} [general]")
    for number, table in enumerate(tables, 1):
        place = f"{path.name} [[datasets]] {number}"
        _warn(draft, table, place)
        _add_table(draft, {**general, **table}, place, path.parent)
    return draft.finish(f"musubi-tuner configuration {path.name}")


def _add_table(draft: Draft, table: Mapping[str, Any], place: str, home: Path) -> None:
    repeats = table.get("num_repeats", 1)
    extension = table.get("caption_extension", ".txt")
    if not isinstance(repeats, int) or not 1 <= repeats <= 10_000:
        draft.bad_row(place, f"num_repeats is a whole number from 1 on, got {repeats!r:.40}")
        return
    if not isinstance(extension, str) or not extension.startswith(".") or "/" in extension:
        draft.bad_row(place, f"caption_extension is one like .txt, got {extension!r:.40}")
        return
    given = [name for name in (*_FOLDER_KEYS, *_LIST_KEYS) if isinstance(table.get(name), str)]
    if not given:
        draft.bad_row(
            place, f"no clips: one of {', '.join((*_FOLDER_KEYS, *_LIST_KEYS))} is needed"
        )
    for name in given:
        # As the shell would, which has not seen it.
        target = home / os.path.expanduser(table[name])  # noqa: PTH111 - never fails
        if name in _LIST_KEYS and target.is_file():
            add_rows(draft, target, repeats=repeats)
        elif name in _FOLDER_KEYS and target.is_dir():
            add_folder(draft, target, repeats=repeats, caption_extension=extension)
        else:
            draft.bad_row(place, f"{name} does not exist: {target}", code="missing-file")


def _warn(draft: Draft, table: Mapping[str, Any], place: str) -> None:
    """Say what is not read, and what is told by flags here."""
    if size := table.get("resolution"):
        numbers = size if isinstance(size, list) else [size, size]
        flag = "x".join(str(number) for number in numbers)
        draft.warning("ignored-key", place, f"resolution is told by --size here: --size {flag}")
    if ignored := sorted(set(table) - set(_READ_KEYS)):
        draft.warning("ignored-key", place, f"not read: {', '.join(ignored)}")
