"""What weight files say of themselves: names, shapes and types of their tensors, without torch.

A safetensors file begins with a table of contents, so that the size of a model is known to the
byte in milliseconds, however large it is.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAX_HEADER_BYTES = 100 * 2**20

# By their names in a header. Of a type that is not among them, only its bytes are known.
FLOATING = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One line of a table of contents.

    Attributes:
        name: of the tensor.
        dtype: as torch calls it where it is a floating-point one, else as the file does.
        shape: of the tensor.
        bytes: that it takes in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether it is cast when a model is loaded in another precision."""
        return self.dtype in FLOATING.values()


def stored_tensors(path: Path) -> Iterator[StoredTensor]:
    """The tensors of one safetensors file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or its header is damaged.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError(f"{path} is too short to be a safetensors file")
        (length,) = struct.unpack("<Q", start)
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"{path} is no safetensors file: its header would be {length} bytes")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path} has no table of tensors")
    header.pop("__metadata__", None)
    try:
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            dtype = FLOATING.get(entry["dtype"], entry["dtype"])
            yield StoredTensor(name, dtype, tuple(map(int, entry["shape"])), int(end - begin))
    except (TypeError, KeyError) as error:
        raise ValueError(f"the header of {path} is damaged: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one part of a model, in the order of their names."""
    return sorted(folder.glob("*.safetensors"))
