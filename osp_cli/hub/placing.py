"""Files that are right as they are, put into the folder of a part without copying them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from osp_cli.media.files import check_free_space
from osp_cli.models.conversion import ROOM_HINT, stem, write_index, write_settings
from osp_cli.models.kinds import PROCESSOR
from osp_cli.models.layouts import FoundPart


def place(found: FoundPart, folder: Path) -> None:
    """Make `folder` a part whose files are links to those of `found`.

    Loaders go by the names of files, so these are named as they expect; settings are written anew
    under today's names, and an index where shards came without one.

    Raises:
        WontFitError: nothing but copies is possible here, and the disk is too small for them.
    """
    folder.mkdir(parents=True)
    names = {file: _name(found, file) for file in found.files}
    for file, name in names.items():
        link(file, folder / name)
    if not found.tensors:
        if found.kind == "image-processor" and not found.files:
            text = json.dumps(dict(found.settings), indent=2)
            (folder / PROCESSOR).write_text(text + "\n", encoding="utf-8")
        return
    if found.index is not None:
        link(found.index, folder / f"{stem(found.kind)}.safetensors.index.json")
    elif len(found.files) > 1:
        weight_map = {tensor.key[-1]: names[tensor.file] for tensor in found.tensors.values()}
        write_index(folder / f"{stem(found.kind)}.safetensors.index.json", weight_map, found.nbytes)
    write_settings(found, folder)


def link(source: Path, target: Path) -> None:
    """Make `target` a symbolic link to a file, else a hard link, else a copy.

    Raises:
        WontFitError: the disk is too small for a copy.
    """
    real = source.resolve()
    try:
        target.symlink_to(real)
    except (OSError, NotImplementedError):
        _link_or_copy(real, target)


def clone(folder: Path, target: Path) -> None:
    """Make `target` a second folder of the same files, which outlives the first."""
    for path in sorted(folder.rglob("*")):
        twin = target / path.relative_to(folder)
        if path.is_symlink():
            twin.parent.mkdir(parents=True, exist_ok=True)
            twin.symlink_to(path.readlink())
        elif path.is_file():
            twin.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(path, twin)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        size = source.stat().st_size
        check_free_space(target.parent, size, what=f"a copy of {source.name}", hint=ROOM_HINT)
        shutil.copyfile(source, target)


def _name(found: FoundPart, file: Path) -> str:
    # Of shards the index says the names; a GGUF file has no name that a loader would expect.
    single = len(found.files) == 1 and found.index is None
    if single and found.tensors and found.layout != "gguf":
        return f"{stem(found.kind)}.safetensors"
    return file.name
