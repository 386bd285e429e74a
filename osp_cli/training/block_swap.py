"""Frozen blocks that wait in the host's memory until they are needed.

A block's weights come to the device before its forward pass, and again before it is recomputed in
the backward pass; they never go back, as they never change: the host keeps them, the device has
room for two blocks that are written over in turn. While one computes, the next comes on a stream of
its own, upwards in the forward pass and downwards in the backward one; the last two of a pass stay,
since the next pass begins with them.

What is trained is left where it is. A block's room may be written over only when nothing looks at
it any more: without gradients that is after its forward pass; in the backward pass it is when the
recomputation of another block begins, as gradients pass through one block after the other. So
gradients need checkpointing, through `BlockSwap.recomputing` and `BlockSwap.checkpointed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

SLOTS = 2
# Of views into one buffer; whatever type is in it, and as the device likes to read.
_ALIGNMENT = 256
# Torch rounds page-locked memory up to powers of two: pieces of such sizes waste nothing.
_SMALLEST_PIECE = 1 << 20


def pieces(size: int) -> list[int]:
    """Powers of two, largest first, that hold so many bytes with less than 1 MiB to spare."""
    left = -(-size // _SMALLEST_PIECE) * _SMALLEST_PIECE
    return [1 << bit for bit in range(left.bit_length() - 1, -1, -1) if left >> bit & 1]


def spread(count: int, blocks: int) -> list[int]:
    """Which of so many blocks are swapped: evenly, so that there is time for each to come."""
    return [(2 * number + 1) * blocks // (2 * count) for number in range(count)]


class HostBuffer:
    """Bytes in the host's memory, page-locked where they go to a device of its own."""

    def __init__(self, size: int, *, pinned: bool) -> None:
        self.size = size
        sizes = pieces(size) if pinned else [size]
        self._parts = [torch.empty(n, dtype=torch.uint8, pin_memory=pinned) for n in sizes]

    def read(self, source: Tensor) -> None:
        """Copies from a flat tensor of bytes, in the order of the current stream."""
        for part, place in self._pairs(source):
            part[: len(place)].copy_(place, non_blocking=True)

    def write(self, target: Tensor) -> None:
        """Copies to a flat tensor of bytes, in the order of the current stream."""
        for part, place in self._pairs(target):
            place.copy_(part[: len(place)], non_blocking=True)

    def _pairs(self, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        start = 0
        for part in self._parts:
            yield part, flat[start : min(self.size, start + len(part))]
            start += len(part)


class _SideStream:
    """A stream of copies beside those that compute."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def begin(self, copy: Callable[[], None]) -> Any:
        """Copies when all that was asked of the device up to now is done; gives its end."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copy()
            return self._stream.record_event()

    def wait_for(self, end: Any) -> None:
        """What is asked of the device from now on comes after that end."""
        torch.cuda.current_stream(self._device).wait_event(end)

    def finish(self) -> None:
        """Until all copies are done."""
        torch.cuda.synchronize(self._device)


class _Waiting:
    """One block: its frozen parameters, their bytes on the host, and where each begins in them."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self.parameters = [p for p in block.parameters() if not p.requires_grad]
        self.places: list[tuple[int, torch.Size, torch.dtype]] = []
        size = 0
        for parameter in self.parameters:
            self.places.append((size, parameter.shape, parameter.dtype))
            size += -(-parameter.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.size = size
        # What is left of each parameter: its shape; who reads it unasked gets no number.
        self._nothing = [
            torch.full((), float("nan"), device=device).to(dtype).expand(shape)
            for _, shape, dtype in self.places
        ]
        self.host = HostBuffer(size, pinned=device.type == "cuda")
        flat = torch.empty(size, dtype=torch.uint8, device=device)
        for parameter, view in zip(self.parameters, self.views(flat), strict=True):
            view.copy_(parameter.detach())
        self.host.read(flat)
        if device.type == "cuda":
            # The copy is to be whole before its source goes.
            torch.cuda.current_stream(device).synchronize()

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parameters as they lie in a flat tensor of bytes."""
        return [
            flat[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            for start, shape, dtype in self.places
        ]

    def use(self, flat: Tensor) -> None:
        """Names the bytes that the parameters lie in when they are there."""
        self._place, self._there = flat, self.views(flat)

    def begin(self, copies: _SideStream | None) -> Any:
        """Lets the bytes come, at once or beside what computes; gives the end of that."""
        copy = partial(self.host.write, self._place)
        return copy() if copies is None else copies.begin(copy)

    def enter(self) -> None:
        """Makes the parameters views of those bytes."""
        for parameter, view in zip(self.parameters, self._there, strict=True):
            parameter.data = view

    def leave(self) -> None:
        """Makes the parameters take no memory."""
        for parameter, nothing in zip(self.parameters, self._nothing, strict=True):
            parameter.data = nothing


class BlockSwap:
    """Swaps some blocks of a list; the others are on the device and stay there.

    Args:
        blocks: all of them, in the order in which they run, each with the precision that its
            weights are stored in.
        count: how many of them are swapped.
        device: where they compute.

    Raises:
        ValueError: there are fewer blocks.
    """

    def __init__(self, blocks: Sequence[nn.Module], count: int, device: torch.device) -> None:
        if not 0 < count <= len(blocks):
            raise ValueError(f"1 to {len(blocks)} blocks can be swapped, not {count}")
        self.device = device
        self.indices = spread(count, len(blocks))
        self._blocks = blocks
        self._waiting: list[_Waiting] = []
        self._handles: list[Any] = []
        self._held: list[int | None] = [None] * SLOTS
        self._slots: list[Tensor] = []
        # Of the block whose gradients may still be on their way.
        self._pending: int | None = None
        self._is_checkpointed = self._is_recomputing = False
        self._side = _SideStream(device) if device.type == "cuda" else None
        self._ends: list[Any] = [None] * SLOTS

    @property
    def host_bytes(self) -> int:
        """Of the host's memory that the waiting weights take."""
        return sum(waiting.size for waiting in self._waiting)

    def resident(self) -> list[int]:
        """Indices of swapped blocks whose weights are on the device."""
        return [self.indices[number] for number in self._held if number is not None]

    def take(self, index: int) -> bool:
        """Takes the weights of a block to the host if it is one that is swapped; in their order."""
        if index not in self.indices:
            return False
        waiting = _Waiting(self._blocks[index], self.device)
        waiting.leave()
        self._waiting.append(waiting)
        return True

    def start(self) -> None:
        """From here on, blocks come as they are called; all have been taken."""
        size = max(waiting.size for waiting in self._waiting)
        count = min(SLOTS, len(self._waiting))
        self._slots = [
            torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(count)
        ]
        numbers = {index: number for number, index in enumerate(self.indices)}
        for number, waiting in enumerate(self._waiting):
            waiting.use(self._slots[number % SLOTS])
        for index, block in enumerate(self._blocks):
            self._handles.append(block.register_forward_pre_hook(self._before(numbers.get(index))))
            if index in numbers:
                hook = self._after(numbers[index])
                # Recomputation ends early, by an exception; and others are exceptions, too.
                self._handles.append(block.register_forward_hook(hook, always_call=True))

    def close(self) -> None:
        """Gives all weights back to their blocks, on the host; nothing is swapped any more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._side is not None:
            self._side.finish()
        for waiting in self._waiting:
            flat = torch.empty(waiting.size, dtype=torch.uint8)
            waiting.use(flat)
            waiting.begin(None)
            waiting.enter()
        self._waiting.clear()
        self._slots.clear()
        self._held = [None] * SLOTS
        self._pending = None

    @contextmanager
    def checkpointed(self) -> Iterator[None]:
        """Inside, a block runs whose results are not kept for the backward pass."""
        self._is_checkpointed = True
        try:
            yield
        finally:
            self._is_checkpointed = False

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Inside, a block runs for the second time, for its gradients."""
        self._is_recomputing = True
        try:
            yield
        finally:
            self._is_recomputing = False

    def _before(self, number: int | None) -> Any:
        def hook(_block: nn.Module, _args: Any) -> None:
            self._settle()
            if number is None:
                return
            if torch.is_grad_enabled() and not (self._is_checkpointed or self._is_recomputing):
                raise RuntimeError("swapped blocks have gradients only under checkpointing")
            slot = number % SLOTS
            if self._held[slot] != number:
                self._fetch(number)
            if self._side is not None:
                self._side.wait_for(self._ends[slot])

        return hook

    def _after(self, number: int) -> Any:
        def hook(_block: nn.Module, _args: Any, _output: Any) -> None:
            if self._held[number % SLOTS] != number:
                return  # it could not even come
            # Layerwise casting leaves copies.
            self._waiting[number].enter()
            if self._is_recomputing:
                self._pending = number
            else:
                self._fetch(number + SLOTS)

        return hook

    def _settle(self) -> None:
        """Another block begins: the last one's gradients are done, its room is free."""
        if self._pending is not None:
            number, self._pending = self._pending, None
            self._fetch(number - SLOTS)

    def _fetch(self, number: int) -> None:
        """Lets a block come into its slot, if there is such a block and it is not there."""
        if not 0 <= number < len(self._waiting) or self._held[number % SLOTS] == number:
            return
        slot = number % SLOTS
        before, self._held[slot] = self._held[slot], None
        if before is not None:
            self._waiting[before].leave()
        self._ends[slot] = self._waiting[number].begin(self._side)
        self._waiting[number].enter()
        self._held[slot] = number
