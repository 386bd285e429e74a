"""SHA-256 of weight files, remembered for the large ones: a 14B takes a minute to read."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from osp_cli.errors import OspError
from osp_cli.media.files import atomic_output
from osp_cli.registry import weights_home

# Below this, reading the file is quicker than remembering would be worth.
_REMEMBERED_BYTES = 64 * 2**20


def weights_hash(folder: Path) -> dict[str, str]:
    """SHA-256 of each weight file by its path below the folder.

    A large file is read once, and again when its size or its time of change is another.
    """
    paths = sorted(folder.rglob("*.safetensors"))
    hashes = _hashes(paths)
    return {path.relative_to(folder).as_posix(): hashes[path] for path in paths}


def file_hash(path: Path) -> str:
    """SHA-256 of one file, remembered likewise."""
    return _hashes([path])[path]


def _hashes(paths: Sequence[Path]) -> dict[Path, str]:
    known = _read_memory() if any(_is_large(path) for path in paths) else {}
    before = dict(known)
    hashes = {path: _hash(path, known) for path in paths}
    if known != before:
        _write_memory(known)
    return hashes


def _hash(path: Path, known: dict[str, Any]) -> str:
    if not _is_large(path):
        return _read(path)
    stat = path.stat()
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    match known.get(str(path.resolve())):
        case {"stamp": found, "sha256": str(digest)} if found == stamp:
            return digest
    digest = _read(path)
    known[str(path.resolve())] = {"stamp": stamp, "sha256": digest}
    return digest


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_large(path: Path) -> bool:
    return path.stat().st_size >= _REMEMBERED_BYTES


def _memory() -> Path:
    return weights_home().parent / "hashes.json"


def _read_memory() -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(_memory().read_text("utf-8"))
        if isinstance(known, dict):
            return known
    return {}


def _write_memory(known: dict[str, Any]) -> None:
    # Nothing is lost where this cannot be written: the files are read again next time.
    with contextlib.suppress(OSError, OspError):
        path = _memory()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(path, overwrite=True) as part:
            part.write_text(json.dumps(known, indent=1), "utf-8")
