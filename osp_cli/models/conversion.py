"""Weights of any known layout, rewritten once into a folder of diffusers or transformers.

Tensor by tensor, so that memory holds a few megabytes of a model of any size; shard by shard, so
that what an interruption leaves behind is used the next time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from osp_cli.errors import CheckpointError, InvalidRequestError, WontFitError
from osp_cli.events import Event, Notice, ShardConverted
from osp_cli.media.files import atomic_output, check_free_space, flush_folder
from osp_cli.models import kinds
from osp_cli.models.layouts import FoundPart
from osp_cli.models.state_dict import kept_in_fp32
from osp_cli.models.stored import Reader, StoredTensor

SHARD_BYTES = 2 * 10**9
ROOM_HINT = "free some space, or let OSP_HOME name a folder on a larger disk"

# Cast and written at a time.
_CHUNK_NUMBERS = 2 * 2**20
_PROGRESS = "conversion.json"
# The type codes of safetensors, and bytes of one number.
_CODES = {
    "float64": ("F64", 8), "float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1), "int64": ("I64", 8),
    "int32": ("I32", 4), "int16": ("I16", 2), "int8": ("I8", 1), "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}  # fmt: skip
_MODELS_OF_TRANSFORMERS = ("umt5", "clip-vision", "qwen2.5-vl")


@dataclass(frozen=True, slots=True)
class Shard:
    """One file to be written.

    Attributes:
        name: of the file.
        entries: new name of each tensor, where it comes from, and its new type.
    """

    name: str
    entries: tuple[tuple[str, StoredTensor, str], ...]

    @property
    def header(self) -> bytes:
        """What stands before the tensors in a safetensors file."""
        table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name, tensor, dtype in self.entries:
            code, size = _CODES[dtype]
            stop = start + tensor.numel * size
            table[name] = {"dtype": code, "shape": tensor.shape, "data_offsets": [start, stop]}
            start = stop
        text = json.dumps(table, separators=(",", ":")).encode()
        # Tensors begin at a multiple of 8, as the library does it.
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(t.numel * _CODES[dtype][1] for _, t, dtype in self.entries)


def convert(
    found: FoundPart,
    target_folder: Path,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Write `found` into `target_folder`, which appears when everything in it is whole.

    Meanwhile the files gather in a hidden folder beside it, and stay there when this is
    interrupted: the same call later goes on from the shards that are done. It must not run twice
    at the same time for one target.

    Args:
        dtype: of the weights, torch's name; None keeps what is stored. What a transformer must
            keep in single precision stays there.
        shard_bytes: size of a file at most; a tensor that is larger has one of its own.
        stop: asked before each tensor whether to stop.

    Yields:
        A `ShardConverted` for each file.

    Raises:
        InvalidRequestError: `target_folder` is there already.
        CheckpointError: weights are missing, left over or damaged.
        WontFitError: the disk is too small; nothing was written, or the disk filled up meanwhile.
        KeyboardInterrupt: `stop` said so.
    """
    if target_folder.exists():
        raise InvalidRequestError(f"{target_folder} exists already")
    shards = plan_shards(found, dtype=dtype, shard_bytes=shard_bytes)
    partial = partial_folder(target_folder)
    progress = _Progress.of(partial, fingerprint(found, dtype, shard_bytes), shards)
    check_free_space(
        partial.parent,
        progress.remaining_bytes,
        what=f"the converted {found.part}",
        hint=ROOM_HINT,
    )
    if any(tensor.start is None for tensor in found.tensors.values()):
        yield Notice(
            f"{found.path} is in a format that cannot be read in pieces: converting it may take "
            f"{found.nbytes / 1e9:.1f} GB of memory"
        )
    progress.begin()
    reader = Reader()
    for number, shard in enumerate(shards, 1):
        started = time.perf_counter()
        reused = shard.name in progress.done
        if not reused:
            progress.add(shard.name, _write(partial / shard.name, shard, reader, stop))
        yield ShardConverted(
            found.part, target_folder / shard.name, number, len(shards), shard.nbytes,
            progress.done[shard.name], time.perf_counter() - started, reused,
        )  # fmt: skip
    write_settings(found, partial)
    if len(shards) > 1:
        write_index(
            partial / f"{stem(found.kind)}.safetensors.index.json",
            {name: shard.name for shard in shards for name, _, _ in shard.entries},
            sum(t.numel * _CODES[kind][1] for shard in shards for _, t, kind in shard.entries),
        )
    partial.rename(target_folder)
    flush_folder(target_folder.parent)
    # Last: were it gone before the folder has its name, all would be written again.
    (target_folder / _PROGRESS).unlink()


def plan_shards(
    found: FoundPart, *, dtype: str | None = None, shard_bytes: int = SHARD_BYTES
) -> list[Shard]:
    """The files that `convert` writes.

    Raises:
        CheckpointError: the part is incomplete, or of a kind that stays as it is.
    """
    if found.layout == "gguf" or not found.tensors:
        raise CheckpointError(f"{found.path} is used as it is, and not converted")
    if found.incompleteness:
        raise CheckpointError(f"{found.title} in {found.path} is not whole: {found.incompleteness}")
    groups: list[list[tuple[str, StoredTensor, str]]] = []
    size = 0
    needed = {n: t for n, t in found.tensors.items() if kinds.is_needed(found.kind, n)}
    for name, tensor in needed.items():
        new = _new_dtype(found.kind, name, tensor.dtype, dtype)
        nbytes = tensor.numel * _CODES[new][1]
        if not groups or size + nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append((name, tensor, new))
        size += nbytes
    return [
        # The wider types first keep each tensor at a multiple of its own size.
        Shard(name, tuple(sorted(group, key=lambda entry: -_CODES[entry[2]][1])))
        for name, group in zip(_names(found.kind, len(groups)), groups, strict=True)
    ]


def fingerprint(found: FoundPart, dtype: str | None, shard_bytes: int = SHARD_BYTES) -> str:
    """Something that is another when a conversion would be: by its files, and what is asked."""
    stats = [(str(file.resolve()), file.stat()) for file in (*found.files, *found.companions)]
    facts = [
        found.kind, found.branch, dtype, shard_bytes,
        sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats),
        sorted(".".join(tensor.key) for tensor in found.tensors.values()),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def partial_folder(target_folder: Path) -> Path:
    """Where a conversion gathers its files."""
    return target_folder.with_name(f".{target_folder.name}.converting")


def stem(kind: str) -> str:
    """How loaders expect the files of a kind to be called, without numbers and suffix."""
    return "model" if kind in _MODELS_OF_TRANSFORMERS else "diffusion_pytorch_model"


def write_settings(found: FoundPart, folder: Path) -> None:
    """Put `config.json` and what else belongs to the weights into their new folder."""
    for companion in found.companions:
        shutil.copyfile(companion, folder / companion.name)
    if (folder / "config.json").is_file():
        return
    model: Any = kinds.empty_model(found.kind, found.settings)
    if found.kind in _MODELS_OF_TRANSFORMERS:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
    else:
        model.save_config(folder)
    if found.kind == "clip-vision":
        _write_json(folder / kinds.PROCESSOR, kinds.CLIP_PROCESSOR)


def write_index(path: Path, weight_map: Mapping[str, str], nbytes: int) -> None:
    """The file that says which shard holds which tensor."""
    contents = {
        "metadata": {"total_size": nbytes},
        "weight_map": dict(sorted(weight_map.items())),
    }
    _write_json(path, contents)


class _Progress:
    """Which shards of a conversion are done, kept in its folder."""

    def __init__(self, folder: Path, mark: str, shards: list[Shard], done: dict[str, str]) -> None:
        self._folder = folder
        self._mark = mark
        self._shards = shards
        self.done = done

    @classmethod
    def of(cls, folder: Path, mark: str, shards: list[Shard]) -> _Progress:
        """What an earlier conversion of the same files left in `folder`."""
        try:
            stored = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
            recorded = dict(stored["shards"]) if stored["conversion"] == mark else {}
        except (OSError, ValueError, KeyError, TypeError):
            recorded = {}
        done = {
            shard.name: recorded[shard.name]
            for shard in shards
            if shard.name in recorded and _is_whole(folder / shard.name, shard)
        }
        return cls(folder, mark, shards, done)

    @property
    def remaining_bytes(self) -> int:
        return sum(shard.nbytes for shard in self._shards if shard.name not in self.done)

    def begin(self) -> None:
        """Clear away what cannot be used."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if path.name not in self.done:
                path.unlink()
        self._save()

    def add(self, name: str, digest: str) -> None:
        self.done[name] = digest
        self._save()

    def _save(self) -> None:
        _write_json(self._folder / _PROGRESS, {"conversion": self._mark, "shards": self.done})


def _is_whole(path: Path, shard: Shard) -> bool:
    """Its size and header are those that were planned; it was on the disk before it had a name."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(shard.header)) == shard.header
        return begins and path.stat().st_size == shard.nbytes
    except OSError:
        return False


def _write(path: Path, shard: Shard, reader: Reader, stop: Callable[[], bool]) -> str:
    """Write one file; its SHA-256."""
    digest = hashlib.sha256(shard.header)
    try:
        with atomic_output(path, overwrite=True) as part, part.open("wb") as file:
            file.write(shard.header)
            for _, stored, dtype in shard.entries:
                if stop():
                    raise KeyboardInterrupt
                for piece in reader.pieces(stored, _CHUNK_NUMBERS):
                    cast = piece.to(getattr(torch, dtype)).contiguous()
                    data = memoryview(cast.view(torch.uint8).numpy())
                    digest.update(data)
                    file.write(data)
    except WontFitError as error:
        raise WontFitError(error.message, hint=ROOM_HINT) from error
    return digest.hexdigest()


def _new_dtype(kind: str, name: str, stored: str, dtype: str | None) -> str:
    if stored not in _CODES:
        raise CheckpointError(f"{name} is stored as {stored}, which cannot be converted")
    if not stored.startswith(("float", "bfloat")):
        return stored
    # Classes of transformers say the same of float16 alone, and never read it here.
    if kind not in _MODELS_OF_TRANSFORMERS and kept_in_fp32(kinds.model_class(kind), name):
        return "float32"
    return dtype or stored


def _names(kind: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem(kind)}.safetensors"]
    return [f"{stem(kind)}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def _write_json(path: Path, contents: Mapping[str, Any]) -> None:
    try:
        with atomic_output(path, overwrite=True) as part:
            part.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    except WontFitError as error:
        raise WontFitError(error.message, hint=ROOM_HINT) from error
