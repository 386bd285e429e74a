"""The end of memory: how it is told, and by whom."""

from __future__ import annotations

import contextlib
import ctypes

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a class for it; the CPU and MPS say it in the words of a RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def return_memory() -> None:
    """Give unused memory of this process back to the system, where the C library can (glibc).

    Threads that hand large buffers to each other leave holes in each other's heaps; a stream of
    hours would grow by them, although nothing is kept.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
