"""Which samples make which step: a function of the step's number alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from osp_cli.training.randomness import step_generator
from osp_cli.training.samples import SampleNumber


@dataclass(frozen=True, slots=True)
class Pass:
    """What a process computes at once.

    Attributes:
        samples: of one bucket, at least one.
        weight: that the mean loss over them has, so that the sum over a process's passes and the
            mean over processes give the mean over the step's samples. 0 for a process that has no
            share but must compute along with the others.
    """

    samples: tuple[SampleNumber, ...]
    weight: float


class SampleOrder:
    """The samples of all steps, shuffled anew in every epoch.

    A batch has samples of one bucket only; the last of a bucket may be smaller. Every window comes
    `repeats` times in an epoch.

    Args:
        keys: the bucket of each window.
        repeats: how often each comes in an epoch.
        batch: samples of a step, over all processes.
        seed: of the order.
    """

    def __init__(
        self, keys: Sequence[Hashable], repeats: Sequence[int], batch: int, seed: int
    ) -> None:
        if len(keys) != len(repeats):
            raise ValueError(f"{len(keys)} windows, but {len(repeats)} repeats")
        if batch < 1 or any(count < 1 for count in repeats):
            raise ValueError("a batch has at least one sample, and a window comes at least once")
        if not keys:
            raise ValueError("there is nothing to train on")
        buckets: dict[Hashable, list[int]] = {}
        for index, (key, count) in enumerate(zip(keys, repeats, strict=True)):
            buckets.setdefault(key, []).extend([index] * count)
        self._buckets = list(buckets.values())
        self._batch = batch
        self._seed = seed
        self._epoch: tuple[int, list[tuple[SampleNumber, ...]]] | None = None

    @property
    def samples_per_epoch(self) -> int:
        """Windows, each as often as it comes."""
        return sum(map(len, self._buckets))

    @property
    def steps_per_epoch(self) -> int:
        """Batches."""
        return sum(-(-len(bucket) // self._batch) for bucket in self._buckets)

    def batch(self, step: int) -> tuple[SampleNumber, ...]:
        """The samples of a 0-based step, whatever was asked before."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._batches(epoch)
        return self._epoch[1][place]

    def _batches(self, epoch: int) -> list[tuple[SampleNumber, ...]]:
        chunks: list[list[int]] = []
        for number, bucket in enumerate(self._buckets):
            generator = step_generator(self._seed, f"order/{number}", epoch)
            shuffled = [bucket[k] for k in torch.randperm(len(bucket), generator=generator)]
            chunks += [
                shuffled[begin : begin + self._batch]
                for begin in range(0, len(bucket), self._batch)
            ]
        generator = step_generator(self._seed, "order", epoch)
        number = epoch * self.samples_per_epoch
        batches = []
        for place in torch.randperm(len(chunks), generator=generator).tolist():
            chunk = chunks[place]
            batches.append(
                tuple(SampleNumber(number + k, index, epoch) for k, index in enumerate(chunk))
            )
            number += len(chunk)
        return batches


def share(
    batch: Sequence[SampleNumber], rank: int, world: int, batch_size: int
) -> tuple[Pass, ...]:
    """A process's passes over its share of a step's samples; all have equally many.

    Args:
        batch: the step's samples.
        rank: of the process among those with data of their own.
        world: how many of these there are.
        batch_size: samples that it computes at once, at most.
    """
    own = batch[rank::world]
    # The first process has the largest share.
    largest = -(-len(batch) // world)
    passes = []
    for begin in range(0, largest, batch_size):
        samples = tuple(own[begin : begin + batch_size])
        weight = len(samples) * world / len(batch)
        passes.append(Pass(samples or (batch[0],), weight))
    return tuple(passes)
