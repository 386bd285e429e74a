"""What diffusers' context parallelism needs to work on the CPU too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def an_accelerator() -> Iterator[None]:
    """Inside, there is at least one: diffusers divides by their number, also on the CPU."""
    count = torch.accelerator.device_count
    torch.accelerator.device_count = lambda: max(1, count())
    try:
        yield
    finally:
        torch.accelerator.device_count = count
