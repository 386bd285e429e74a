"""The header of a safetensors file, read with the standard library alone.

It names every tensor with its type and shape, so a file can be judged before torch is imported.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osp_cli.errors import InvalidRequestError

_MAX_BYTES = 100 * 2**20
# Bytes of one number, by the format's names; kinds that are not here count as unknown.
_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}
# The bits that are all ones in what is no finite number, by the bytes of one number.
_NOT_FINITE = {
    "F64": (8, 0x7FF0_0000_0000_0000),
    "F32": (4, 0x7F80_0000),
    "F16": (2, 0x7C00),
    "BF16": (2, 0x7F80),
    "F8_E5M2": (1, 0x7C),
    "F8_E4M3": (1, 0x7F),
}
_CHUNK_NUMBERS = 2**22
_UNPACKED = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: its type by the format's name, its shape, and where its bytes begin and end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """That it takes in the file."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself.

    Attributes:
        path: of the file.
        entries: by the name of the tensor.
        metadata: texts by name, as the writer left them.
    """

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    def number(self, name: str) -> float:
        """The value of a tensor of one number.

        Raises:
            InvalidRequestError: it holds more than one, or of a type that is no number.
        """
        entry = self.entries[name]
        with self.path.open("rb") as file:
            file.seek(entry.begin)
            data = file.read(min(entry.end - entry.begin, 8))
        if math.prod(entry.shape) == 1:
            if entry.dtype == "BF16":
                # The upper half of a number of single precision.
                return float(struct.unpack("<f", b"\0\0" + data)[0])
            if kind := _UNPACKED.get(entry.dtype):
                return float(struct.unpack(kind, data)[0])
        raise InvalidRequestError(f"{self.path} is damaged: {name} is not one number")

    def first_not_finite(self, names: Iterable[str]) -> str | None:
        """The first of these tensors that holds a NaN or an infinity; it reads them, by pieces."""
        import numpy as np  # the headers themselves need nothing

        with self.path.open("rb") as file:
            for name in names:
                entry = self.entries[name]
                if entry.dtype not in _NOT_FINITE:
                    continue
                width, mask = _NOT_FINITE[entry.dtype]
                file.seek(entry.begin)
                for start in range(0, entry.count, _CHUNK_NUMBERS):
                    count = min(_CHUNK_NUMBERS, entry.count - start)
                    bits = np.frombuffer(file.read(count * width), f"<u{width}")
                    if ((bits & mask) == mask).any():
                        return name
        return None


def with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file without metadata, with these texts in its header, in alphabetical order.

    The library writes them in another order each time, so that equal contents are other bytes.
    """
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    text = json.dumps(
        {"__metadata__": dict(sorted(metadata.items())), **table},
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()
    # Numbers begin where the format wants them, at a multiple of eight.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def not_finite(path: Path, name: str) -> str:
    """The sentence about a tensor that holds a NaN or an infinity."""
    return f"{path} is damaged: {name} holds numbers that are not finite (NaN or infinity)"


def read_header(path: Path) -> Header:
    """Read the header of a file, without its tensors.

    Raises:
        InvalidRequestError: it cannot be read, is no safetensors file, or is cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= length <= min(_MAX_BYTES, size - 8):
                raise InvalidRequestError(f"{path} is not a safetensors file")
            text = file.read(length)
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}") from error
    try:
        table = json.loads(text)
        notes = table.pop("__metadata__", None) or {}
        metadata = {str(key): str(value) for key, value in notes.items()}
        entries = {name: _entry(values, 8 + length) for name, values in table.items()}
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise InvalidRequestError(f"{path} is not a safetensors file") from error
    if any(entry.end > size for entry in entries.values()):
        raise InvalidRequestError(
            f"{path} is cut short: its header tells of more than its {size} bytes",
            hint="fetch the file again",
        )
    return Header(path, entries, metadata)


def _entry(values: Mapping[str, Any], start: int) -> Entry:
    begin, end = (int(offset) for offset in values["data_offsets"])
    shape = tuple(int(length) for length in values["shape"])
    dtype = str(values["dtype"])
    if min((begin, *shape), default=0) < 0 or end < begin:
        raise ValueError("a negative length")
    if dtype in _BYTES and end - begin != math.prod(shape) * _BYTES[dtype]:
        raise ValueError("bytes and shape contradict each other")
    return Entry(dtype, shape, start + begin, start + end)
