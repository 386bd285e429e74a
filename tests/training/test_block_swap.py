"""Blocks that wait on the host give the same numbers to the bit, and few are there at once."""

from __future__ import annotations

import runpy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from osp_cli.training.block_swap import SLOTS, BlockSwap, HostBuffer, pieces, spread
from osp_cli.training.memory import prepare_base

BASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "lora_bases.py")))
new_base, take_steps = BASES.new_base, BASES.take_steps
CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 1 << 20, (1 << 20) + 1, 703_000_000, 351_000_001])
def test_pieces_are_powers_of_two_and_waste_less_than_a_megabyte(size):
    found = pieces(size)
    assert all(piece & (piece - 1) == 0 for piece in found)
    assert 0 <= sum(found) - size < 1 << 20
    assert sorted(set(found), reverse=True) == found


@pytest.mark.parametrize(("count", "blocks"), [(1, 1), (1, 6), (3, 6), (20, 40), (30, 40), (7, 7)])
def test_swapped_blocks_lie_evenly(count, blocks):
    found = spread(count, blocks)
    assert len(set(found)) == count
    gaps = [after - before for before, after in pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert 0 <= found[0] <= found[-1] < blocks


@pytest.mark.parametrize("pinned", [True, False])
def test_a_buffer_gives_back_what_it_read(pinned, monkeypatch):
    if not torch.cuda.is_available():
        genuine = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: genuine(*a, **k))
    size = 3 * (1 << 20) + 12345
    source = torch.randint(0, 256, (size,), dtype=torch.uint8)
    buffer = HostBuffer(size, pinned=pinned)
    buffer.read(source)
    found = torch.zeros_like(source)
    buffer.write(found)
    assert torch.equal(found, source)


@pytest.mark.parametrize("quant", ["none", "fp8"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_losses_and_gradients_are_the_same_to_the_bit(count, quant):
    found = []
    for swapped in (0, count):
        model = new_base(blocks=5, dtype=torch.bfloat16)
        with prepare_base(
            model, dtype=torch.bfloat16, quant=quant, device=CPU, swap_blocks=swapped
        ):
            found.append((take_steps(model, 3), BASES.gradients(model)))
    (plain, plain_gradients), (losses, swapped_gradients) = found
    assert losses == plain
    assert plain_gradients
    for name, gradient in plain_gradients.items():
        assert torch.equal(swapped_gradients[name], gradient), name


def test_no_more_than_two_are_there_and_each_pass_begins_with_those_that_are():
    model = new_base(blocks=6)
    with prepare_base(model, dtype=torch.float32, device=CPU, swap_blocks=6) as prepared:
        swap = prepared.swap
        seen, fetched = [], []
        genuine = swap._fetch
        swap._fetch = lambda number: (fetched.append(number), genuine(number))

        def look(block, _args):
            there = [
                index
                for index, other in enumerate(model.blocks)
                if not other.attn1.to_q.base_layer.weight.isnan().any()
            ]
            assert len(there) <= SLOTS
            assert there == sorted(swap.resident())
            seen.append(list(model.blocks).index(block))

        for block in model.blocks:
            block.register_forward_pre_hook(look)
        take_steps(model, 2)
        assert seen == [*range(6), *reversed(range(6))] * 2
        real = [number for number in fetched if 0 <= number < 6]
        # Two at first; then each pass brings the four that the one before has not left.
        assert real == [0, 2, 1, 3, 4, 5, 3, 2, 1, 0, 2, 3, 4, 5, 3, 2, 1, 0]


def test_memory_of_those_that_wait_is_not_kept():
    model = new_base(blocks=6)
    weights = model.blocks[0].attn1.to_q.base_layer.weight
    with prepare_base(model, dtype=torch.float32, device=CPU, swap_blocks=6) as prepared:
        take_steps(model, 1)
        waiting = [
            parameter
            for index in set(range(6)) - set(prepared.swap.resident())
            for parameter in model.blocks[index].parameters()
            if not parameter.requires_grad
        ]
        assert waiting
        assert all(parameter.untyped_storage().nbytes() <= 4 for parameter in waiting)
        assert weights.shape == (24, 24)


def test_what_was_swapped_comes_back_as_it_was():
    model = new_base(blocks=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with prepare_base(model, dtype=torch.float32, device=CPU, swap_blocks=3):
        take_steps(model, 1, learning_rate=0.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_passes_without_gradients_are_the_same():
    model = new_base(blocks=5)
    with torch.no_grad():
        wanted = BASES.predict(model)
        with prepare_base(model, dtype=torch.float32, device=CPU, swap_blocks=4):
            for _ in range(3):
                assert torch.equal(BASES.predict(model), wanted)
            with torch.enable_grad():
                take_steps(model, 1, learning_rate=0.0)
            assert torch.equal(BASES.predict(model), wanted)


@pytest.mark.parametrize("place", ["forward", "recomputation"])
def test_an_error_inside_leaves_nothing_wrong_behind(place):
    model = new_base(blocks=4)
    wanted = take_steps(new_base(blocks=4), 2)
    with prepare_base(model, dtype=torch.float32, device=CPU, swap_blocks=3):
        calls = []

        def fail(_module, _args):
            calls.append(1)
            if len(calls) == (1 if place == "forward" else 2):
                raise MemoryError("no more")

        handle = model.blocks[1].ffn.register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            take_steps(model, 1)
        handle.remove()
        model.zero_grad()
        assert take_steps(model, 2) == wanted


def test_gradients_without_checkpointing_are_refused():
    model = new_base(blocks=3)
    with prepare_base(model, dtype=torch.float32, device=CPU, swap_blocks=2):
        model.disable_gradient_checkpointing()
        with pytest.raises(RuntimeError, match="under checkpointing"):
            take_steps(model, 1)


@pytest.mark.parametrize("count", [0, 4, -1])
def test_as_many_blocks_as_there_are(count):
    with pytest.raises(ValueError, match="1 to 3"):
        BlockSwap(new_base(blocks=3).blocks, count, CPU)


class LateCopies:
    """Stands for a stream that does nothing before somebody waits for it, or something after it."""

    def __init__(self):
        self.late = []
        self.begun = 0

    def begin(self, copy):
        self.begun += 1
        self.late.append(copy)
        return copy

    def wait_for(self, end):
        # A stream keeps its order.
        while end in self.late:
            self.late.pop(0)()

    def finish(self):
        self.wait_for(self.late[-1] if self.late else None)


@pytest.mark.parametrize("quant", ["none", "fp8"])
def test_nothing_is_read_before_it_came(quant):
    found = []
    for late in (False, True):
        model = new_base(blocks=5, dtype=torch.bfloat16)
        with prepare_base(
            model, dtype=torch.bfloat16, quant=quant, device=CPU, swap_blocks=4
        ) as prepared:
            if late:
                prepared.swap._side = side = LateCopies()
            found.append((take_steps(model, 3), BASES.gradients(model)))
    assert side.begun > 12
    (losses, wanted), (late_losses, late_gradients) = found
    assert late_losses == losses
    assert all(torch.equal(late_gradients[name], wanted[name]) for name in wanted)


def test_copies_begin_while_another_block_computes():
    """Of each pass only the block that begins it, if it is not there, is waited for in vain."""
    model = new_base(blocks=8)
    with prepare_base(model, dtype=torch.float32, device=CPU, swap_blocks=8) as prepared:
        prepared.swap._side = side = LateCopies()
        asked = []
        genuine = prepared.swap._fetch

        def fetch(number):
            before = side.begun
            genuine(number)
            if side.begun > before:
                asked.append((number, current[-1]))

        prepared.swap._fetch = fetch
        current = [None]
        for index, block in enumerate(model.blocks):
            block.register_forward_pre_hook(lambda *_, index=index: current.append(index))
        take_steps(model, 2)
    # The first two blocks of the first pass come when they are called; all others are asked for
    # while another one, or the one before it in its place, computes.
    late = [number for number, during in asked if during is None or abs(number - during) < 2]
    assert late == [0, 1]


@pytest.mark.parametrize("quant", ["none", "fp8"])
def test_those_that_are_there_lie_in_their_places_alone(quant):
    """Layerwise casting leaves a rounded copy of each weight, which would be memory twice."""
    model = new_base(blocks=4, dtype=torch.bfloat16)
    with prepare_base(
        model, dtype=torch.bfloat16, quant=quant, device=CPU, swap_blocks=4
    ) as prepared:
        take_steps(model, 1)
        places = {slot.untyped_storage().data_ptr() for slot in prepared.swap._slots}
        assert len(prepared.swap.resident()) == len(places) == SLOTS
        for index in prepared.swap.resident():
            frozen = [p for p in model.blocks[index].parameters() if not p.requires_grad]
            assert frozen
            assert {p.untyped_storage().data_ptr() for p in frozen} <= places
