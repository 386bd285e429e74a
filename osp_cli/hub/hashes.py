"""SHA-256 of weight files, remembered for the large ones: a 14B takes a minute to read.

What a download has just checked is remembered too, so the first run does not read it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osp_cli.errors import OspError
from osp_cli.media.files import atomic_output
from osp_cli.registry import weights_home

_KINDS = ("*.safetensors", "*.gguf")
# Below this, reading the file is quicker than remembering would be worth.
_REMEMBERED_BYTES = 64 * 2**20
# Several files are fetched at once, and each is remembered when it is whole.
_LOCK = threading.Lock()


def weights_hash(folder: Path) -> dict[str, str]:
    """SHA-256 of each weight file by its path below the folder.

    A large file is read once, and again when its size or its time of change is another.
    """
    paths = sorted(path for kind in _KINDS for path in folder.rglob(kind))
    hashes = _hashes(paths)
    return {path.relative_to(folder).as_posix(): hashes[path] for path in paths}


def part_hash(hashes: Mapping[str, str], part: str) -> str:
    """One SHA-256 for a part of a model, of those of its files; empty where it has none.

    A single file's own; of several the hash of their names and hashes, in order.

    Args:
        hashes: of `weights_hash`.
        part: the name of its folder.
    """
    files = sorted((path, digest) for path, digest in hashes.items() if path.startswith(f"{part}/"))
    if len(files) == 1:
        return files[0][1]
    lines = "".join(f"{path} {digest}\n" for path, digest in files)
    return hashlib.sha256(lines.encode()).hexdigest() if files else ""


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


def known_hash(path: Path) -> str | None:
    """SHA-256 of a large file that was read before and has not changed since; None of others."""
    if not _is_large(path):
        return None
    return _recalled(path, _read_memory())


def remember_hash(path: Path, sha256: str) -> None:
    """Remember the SHA-256 of a file that was just read; small ones need no memory."""
    if not _is_large(path):
        return
    with _LOCK:
        known = _read_memory()
        known[str(path.resolve())] = {"stamp": _stamp(path), "sha256": sha256}
        _write_memory(known)


def forget_hash(path: Path) -> None:
    """Read the file again next time, whatever was remembered."""
    with _LOCK:
        known = _read_memory()
        if known.pop(str(path.resolve()), None) is not None:
            _write_memory(known)


def _hash(path: Path, known: dict[str, Any]) -> str:
    if not _is_large(path):
        return _read(path)
    if (digest := _recalled(path, known)) is not None:
        return digest
    digest = _read(path)
    known[str(path.resolve())] = {"stamp": _stamp(path), "sha256": digest}
    return digest


def _recalled(path: Path, known: dict[str, Any]) -> str | None:
    match known.get(str(path.resolve())):
        case {"stamp": found, "sha256": str(digest)} if found == _stamp(path):
            return digest
    return None


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


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
