"""What else might be asked for where a training run does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from osp_cli.train_request import TrainRequest


def smaller_requests(
    request: TrainRequest, size: tuple[int, int], frames: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What else might be asked for: flags, and what they change of the request.

    What computes the same comes first, then smaller weights, fewer samples at once, and last fewer
    frames and smaller pictures. Where `swap_blocks` is changed, it is -1: the flag is left out, as
    its number follows from the plan.

    Args:
        request: that does not fit.
        size, frames: of the largest sample.
    """
    same: list[tuple[str, dict[str, Any]]] = [("", {})]
    if not request.grad_checkpoint:
        same = [("--grad-checkpoint", {"grad_checkpoint": True})]
    swap = {"swap_blocks": -1} if request.swap_blocks >= 0 and not request.full else {}
    free = [*same, *[(flags, {**changes, **swap}) for flags, changes in same if swap]]
    ways = list(free)
    if request.quant == "none" and not request.full and not request.spec.whole_weights:
        ways += [(f"--quant fp8 {flags}".strip(), {**c, "quant": "fp8"}) for flags, c in free]
    if not request.offload_activations and request.grad_checkpoint:
        ways += [
            (f"{flags} --offload-activations".strip(), {**c, "offload_activations": True})
            for flags, c in ways
        ]
    yield from ((flags, changes) for flags, changes in ways if changes)
    if request.batch_size > 1:
        batch = {"batch_size": 1, "accumulate": request.batch_size * request.accumulate}
        told = f"--batch-size 1 --accumulate {batch['accumulate']}"
        yield from ((f"{told} {flags}".strip(), {**c, **batch}) for flags, c in ways)
    others = [
        (f"--frames {fewer}", {"num_frames": fewer})
        for fewer in (49, 33, 17, 5)
        if fewer < min(frames, request.num_frames)
    ]
    unit = request.spec.multiple_of
    for share in (0.75, 0.5, 0.25):
        width, height = (max(unit, int(side * share) // unit * unit) for side in size)
        few = {"num_frames": min(17, request.num_frames)} if share < 0.5 else {}
        told = f"--size {width}x{height}" + (" --frames 17" if few else "")
        others.append((told, {"width": width, "height": height, **few}))
    for told, made in others:
        yield from ((f"{told} {flags}".strip(), {**c, **made}) for flags, c in ways)
