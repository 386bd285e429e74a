"""The order of samples: everything once, of one bucket at a time, whoever asks and when."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osp_cli.training.order import SampleOrder, share

windows = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), min_size=1, max_size=12)
ORDER = ["a"] * 7 + ["b"] * 4, [1] * 10 + [3]


def order_of(data, batch, seed=1):
    keys, repeats = zip(*data, strict=True)
    return SampleOrder(keys, repeats, batch, seed)


@settings(max_examples=60)
@given(windows, st.integers(1, 5), st.integers(0, 3))
def test_every_window_comes_as_often_as_it_should_in_batches_of_one_bucket(data, batch, epoch):
    order = order_of(data, batch)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    batches = [order.batch(step) for step in steps]
    samples = [sample for each in batches for sample in each]
    assert Counter(sample.index for sample in samples) == {
        index: count for index, (_, count) in enumerate(data)
    }
    assert {sample.epoch for sample in samples} == {epoch}
    first = epoch * order.samples_per_epoch
    assert [sample.number for sample in samples] == list(range(first, first + len(samples)))
    for each in batches:
        assert 1 <= len(each) <= batch
        assert len({data[sample.index][0] for sample in each}) == 1
    # Only the last of a bucket may be smaller.
    small = [data[each[0].index][0] for each in batches if len(each) < batch]
    assert len(small) == len(set(small))


@settings(max_examples=30)
@given(windows, st.integers(1, 5), st.permutations(range(6)))
def test_a_step_does_not_depend_on_those_asked_before(data, batch, asked):
    order = order_of(data, batch)
    fresh = {step: order_of(data, batch).batch(step) for step in asked}
    assert {step: order.batch(step) for step in asked} == fresh


def test_epochs_and_seeds_are_shuffled_differently():
    def indices(seed, epoch):
        order = SampleOrder(*ORDER, 2, seed)
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        return tuple(sample.index for step in steps for sample in order.batch(step))

    orders = {indices(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    # Buckets do not come one after the other.
    assert any("ab" in (word := "".join(ORDER[0][k] for k in each)) and "ba" in word
               for each in orders)  # fmt: skip
    # Neither are neighbours always together.
    assert len({frozenset(each[:2]) for each in orders}) > 3


@settings(max_examples=100)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4))
def test_shares_make_the_batch_and_the_mean(size, world, batch_size):
    batch = SampleOrder(["a"] * size, [1] * size, size, 0).batch(0)
    shares = [share(batch, rank, world, batch_size) for rank in range(world)]
    # As many passes for everybody.
    assert len({len(passes) for passes in shares}) == 1
    working = [part for passes in shares for part in passes if part.weight]
    assert sorted(
        (sample for part in working for sample in part.samples), key=lambda s: s.number
    ) == list(batch)
    assert all(1 <= len(part.samples) <= batch_size for passes in shares for part in passes)
    # Of a loss that is the sample's number, say.
    total = sum(
        part.weight * sum(sample.number for sample in part.samples) / len(part.samples)
        for passes in shares
        for part in passes
    )
    mean = sum(sample.number for sample in batch) / len(batch)
    assert total / world == pytest.approx(mean)


@pytest.mark.parametrize(
    ("keys", "repeats", "batch"), [("ab", [1], 1), ("a", [0], 1), ("a", [1], 0), ("", [], 1)]
)
def test_what_makes_no_order_is_refused(keys, repeats, batch):
    with pytest.raises(ValueError, match=r"."):
        SampleOrder(keys, repeats, batch, 0)
