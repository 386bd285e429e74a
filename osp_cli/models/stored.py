"""Weights as they lie on the disk: names, shapes, types and where their bytes are.

Headers alone are read, so 28 GB take a second. Contents are read a few million numbers at a time
and never mapped: mapping a file that is larger than the memory is refused by many systems. Nothing
is ever unpickled into code.
"""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osp_cli.errors import CheckpointError

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", ".gguf", *PICKLED)

# What trainers and other programs put in front of every name of a model.
PREFIXES = (
    "module.",
    "model.diffusion_model.",
    "diffusion_model.",
    "ema_model.",
    "online_model.",
    "model.",
)
# What torch's own wrappers put anywhere into a name.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_EMA_PREFIX = "ema_model."
# Of `ema_pytorch`, beside the weights.
_COUNTERS = ("initted", "step")

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
# As the library of safetensors has it.
_MOST_HEADER_BYTES = 100_000_000
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        file: where it is.
        key: its name there, after the tables that it is in.
        shape: of the tensor, or of the part of it that is meant.
        dtype: torch's name of its type, or the name of a GGUF quantisation.
        start: where in the file its numbers begin, in bytes; None where only torch can find them.
        first: the first number that is meant.
    """

    file: Path
    key: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    start: int | None = None
    first: int = 0

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    def part(self, start: int, stop: int) -> StoredTensor:
        """Rows `start` to `stop` of it."""
        row = math.prod(self.shape[1:])
        return replace(self, shape=(stop - start, *self.shape[1:]), first=self.first + start * row)

    def reshaped(self, shape: tuple[int, ...]) -> StoredTensor:
        """The same numbers in another shape."""
        return replace(self, shape=tuple(shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Files of one folder that belong together: a single one, or shards.

    Attributes:
        files: those that are there, in order.
        missing: names of shards that are not.
        index: the file that lists the shards, if there is one.
    """

    files: tuple[Path, ...]
    missing: tuple[str, ...] = ()
    index: Path | None = None

    @property
    def path(self) -> Path:
        """The file, or the folder of the shards."""
        alone = len(self.files) == 1 and not self.missing and self.index is None
        return self.files[0] if alone else (self.index or self.files[0]).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One model's tensors out of a unit.

    Attributes:
        tensors: by their names without prefix and wrappers.
        prefix: what stood in front of every name.
        renamed: wrappers were taken out of names, too.
        branch: `ema`, `raw`, or empty where the files hold one set of weights.
    """

    tensors: Mapping[str, StoredTensor]
    prefix: str = ""
    renamed: bool = False
    branch: str = ""


# By branch, and by the name of the table that the file has them in.
_Found = dict[tuple[str, str], dict[str, StoredTensor]]


def units_in(folder: Path) -> list[Unit]:
    """The weights of one folder; its sub-folders are not looked into.

    Raises:
        CheckpointError: an index cannot be read.
    """
    files = {p.name: p for p in sorted(folder.iterdir()) if p.suffix in SUFFIXES and p.is_file()}
    units = []
    for index in sorted(folder.glob("*.index.json")):
        names = _indexed(index)
        there = tuple(files.pop(name) for name in names if name in files)
        missing = tuple(name for name in names if not (folder / name).is_file())
        if there or missing:
            units.append(Unit(files=there, missing=missing, index=index))
    shards: dict[tuple[str, int, str], dict[int, Path]] = {}
    for name, path in files.items():
        if match := _SHARD.fullmatch(name):
            kind = (match["stem"], int(match["count"]), match["suffix"])
            shards.setdefault(kind, {})[int(match["number"])] = path
        else:
            units.append(Unit(files=(path,)))
    for (stem, count, suffix), found in shards.items():
        absent = [number for number in range(1, count + 1) if number not in found]
        units.append(
            Unit(
                files=tuple(found[number] for number in sorted(found)),
                missing=tuple(f"{stem}-{n:05d}-of-{count:05d}{suffix}" for n in absent),
            )
        )
    return units


def read_tables(unit: Unit) -> list[Table]:
    """The sets of weights in a unit, EMA first where there is one.

    Raises:
        CheckpointError: a file is damaged, could only be read by running code from it, or holds
            no tensors.
    """
    found: _Found = {}
    for file in unit.files:
        for key, tensors in _read_file(file).items():
            found.setdefault(key, {}).update(tensors)
    tables = [_table(branch, tensors) for (branch, _), tensors in found.items()]
    return sorted(tables, key=lambda table: table.branch != "ema")


def strip_prefixes(names: Iterable[str]) -> str:
    """What stands in front of all names, as far as `PREFIXES` knows it; perhaps nothing."""
    known, prefix = list(names), ""
    while known:
        found = next((p for p in PREFIXES if all(n.startswith(prefix + p) for n in known)), None)
        if found is None:
            break
        prefix += found
    return prefix


def load_pickled(path: Path, *, mapped: bool = True) -> Any:
    """The contents of a `.pt` or `.pth` file, by torch's restricted reader, mapped if possible.

    Raises:
        CheckpointError: it is damaged, or could only be read by running code from it.
    """
    try:
        # The format of before 2020 cannot be mapped: it takes memory of its own size.
        lazily = mapped and _is_zip(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, and reading it could run code",
            hint="convert it to .safetensors where you trust it",
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from error


def _is_zip(path: Path) -> bool:
    """Whether torch wrote the file in its format of today."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from error


class Reader:
    """Reads stored tensors one after the other."""

    def __init__(self) -> None:
        # Of the files whose tensors only torch can find.
        self._contents: dict[Path, Any] = {}

    def pieces(self, tensor: StoredTensor, numbers: int) -> Iterator[Tensor]:
        """The tensor's numbers in order, so many at a time, `(numbers,)` each.

        Raises:
            CheckpointError: its file has changed or is damaged.
        """
        try:
            if tensor.start is None:
                flat = self._find(tensor).reshape(-1)
                yield from flat[tensor.first : tensor.first + tensor.numel].split(numbers)
                return
            dtype = getattr(torch, tensor.dtype)
            with tensor.file.open("rb") as file:
                file.seek(tensor.start + tensor.first * dtype.itemsize)
                for done in range(0, tensor.numel, numbers):
                    room = bytearray(min(numbers, tensor.numel - done) * dtype.itemsize)
                    if file.readinto(room) != len(room):
                        raise CheckpointError(f"{tensor.file} ends too early")
                    yield torch.frombuffer(room, dtype=dtype)
        except (RuntimeError, KeyError, OSError) as error:
            raise CheckpointError(
                f"{'.'.join(tensor.key)} cannot be read from {tensor.file}: {error}"
            ) from error

    def _find(self, tensor: StoredTensor) -> Tensor:
        found = self._contents.get(tensor.file)
        if found is None:
            found = self._contents[tensor.file] = load_pickled(tensor.file)
        for key in tensor.key:
            found = found[key]
        return found


def _indexed(index: Path) -> list[str]:
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({str(name) for name in shards})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is no index of weights: {error!r}") from error
    # A name that leads out of the folder has no business there.
    if strange := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} names a file outside of its folder: {strange[0]}")
    return names


def _table(branch: str, tensors: dict[str, StoredTensor]) -> Table:
    plain = {_unwrapped(name): tensor for name, tensor in tensors.items()}
    prefix = strip_prefixes(plain)
    return Table(
        tensors={name.removeprefix(prefix): tensor for name, tensor in plain.items()},
        prefix=prefix,
        renamed=plain.keys() != tensors.keys(),
        branch=branch,
    )


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _read_file(path: Path) -> _Found:
    if path.suffix == ".gguf":
        return {("", ""): _read_gguf(path)}
    if path.suffix in PICKLED:
        return _read_pickled(path)
    return _split(_read_safetensors(path))


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MOST_HEADER_BYTES:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found, end = {}, 8 + length
        for name, entry in header.items():
            start, stop = (8 + length + int(offset) for offset in entry["data_offsets"])
            shape = tuple(int(size) for size in entry["shape"])
            found[name] = StoredTensor(path, (name,), shape, _dtype(entry["dtype"]), start)
            size = getattr(getattr(torch, found[name].dtype, None), "itemsize", None)
            if size is not None and (stop - start != found[name].numel * size or start < 8):
                raise ValueError(f"the bytes of {name} are not as many as its shape says")
            end = max(end, stop)
        if path.stat().st_size < end:
            raise ValueError(f"it ends at byte {path.stat().st_size} of {end}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from error
    return found


def _dtype(code: str) -> str:
    return _DTYPES.get(code, code.lower())


def _read_pickled(path: Path) -> _Found:
    # Only here: its import takes long, and no installed model is pickled.
    from torch._subclasses.fake_tensor import FakeTensorMode

    # Tensors without contents, which know where in the file theirs are.
    with FakeTensorMode() if _is_plain_zip(path) else contextlib.nullcontext() as fake:
        contents = load_pickled(path, mapped=fake is None)
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path} is not a plain table of named tensors")
    if tensors := _stored(path, (), contents):
        return _split(tensors)
    # A trainer's checkpoint: tables of weights beside counters and the optimizer's state.
    tables = {
        key: _stored(path, (key,), value)
        for key, value in contents.items()
        if isinstance(key, str) and isinstance(value, dict)
    }
    tables = {key: tensors for key, tensors in tables.items() if tensors}
    if not tables:
        raise CheckpointError(f"{path} is not a plain table of named tensors")
    ema = {key for key in tables if "ema" in key.lower().split("_")}
    other = "raw" if ema else ""
    return {("ema" if key in ema else other, key): tensors for key, tensors in tables.items()}


def _stored(path: Path, keys: tuple[str, ...], table: Mapping[Any, Any]) -> dict[str, StoredTensor]:
    """The tensors of a table in which there is nothing but tensors and plain values."""
    tensors = {}
    for name, value in table.items():
        if isinstance(value, Tensor) and isinstance(name, str):
            dtype = str(value.dtype).removeprefix("torch.")
            start = _start(value)
            tensors[name] = StoredTensor(path, (*keys, name), tuple(value.shape), dtype, start)
        elif not isinstance(value, int | float | str | None):
            return {}
    return tensors


def _start(tensor: Tensor) -> int | None:
    """Where in its file the numbers of a tensor without contents begin."""
    offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if offset is None or not tensor.is_contiguous():
        return None
    return int(offset) + tensor.storage_offset() * tensor.itemsize


def _is_plain_zip(path: Path) -> bool:
    """Whether tensors stand in a torch file as they do in memory, byte for byte."""
    if not _is_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            orders = [e for e in entries if e.filename.endswith("/byteorder")]
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries) and all(
                archive.read(entry) == b"little" for entry in orders
            )
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from error


def _split(tensors: dict[str, StoredTensor]) -> _Found:
    """A table that holds both branches, under prefixes."""
    ema = {name: t for name, t in tensors.items() if name.startswith(_EMA_PREFIX)}
    raw = {name: t for name, t in tensors.items() if name not in ema and name not in _COUNTERS}
    if not ema:
        return {("", ""): tensors}
    return {("ema", ""): ema, ("raw", ""): raw} if raw else {("ema", ""): ema}


def _read_gguf(path: Path) -> dict[str, StoredTensor]:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise CheckpointError(
            f"{path} is a GGUF file, and the package that reads it is not installed",
            hint="pip install gguf",
        ) from None
    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from error
    found = {}
    for tensor in reader.tensors:
        # Counted from the innermost; some writers keep the shape of what has five axes apart.
        shape = tuple(int(size) for size in reversed(tensor.shape))
        if field := reader.fields.get(f"comfy.gguf.orig_shape.{tensor.name}"):
            shape = tuple(int(field.parts[part][0]) for part in field.data)
        dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(
            tensor.tensor_type.name, tensor.tensor_type.name.lower()
        )
        found[tensor.name] = StoredTensor(path, (tensor.name,), shape, dtype)
    return found
