"""Each parameter goes where it should, with the numbers that were asked for."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from training_crew import SETTINGS, is_matrix, loss_of, new_net

from osp_cli.errors import InvalidRequestError
from osp_cli.training.optimizers import new_optimizers
from osp_cli.training.trainer import LoopSettings, Trainer

NUMBERS = LoopSettings(
    steps=1, learning_rate=1e-4, matrix_learning_rate=0.3, weight_decay=0.03, betas=(0.8, 0.99),
    eps=1e-10,
)  # fmt: skip


def parameters():
    return dict(new_net().named_parameters())


def test_adamw_is_that_of_the_equations():
    """Loshchilov & Hutter 2019, algorithm 2, in double precision."""
    parameter = torch.nn.Parameter(torch.tensor([0.5, -2.0]))
    [(optimizer, rate)] = new_optimizers({"p": parameter}, NUMBERS, None)
    assert rate == NUMBERS.learning_rate
    value = parameter.detach().double()
    first = second = torch.zeros(2, dtype=torch.float64)
    for step, slope in enumerate(([1e-5, 3.0], [-2e-5, 1.0]), start=1):
        parameter.grad = torch.tensor(slope)
        optimizer.step()
        gradient = torch.tensor(slope, dtype=torch.float64)
        first = 0.8 * first + 0.2 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        length = (second / (1 - 0.99**step)).sqrt() + 1e-10
        value = value * (1 - 1e-4 * 0.03) - 1e-4 * first / (1 - 0.8**step) / length
        torch.testing.assert_close(parameter.detach().double(), value, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "matrices", "muon"),
    [
        ("adamw", None, set()),
        ("adamw", is_matrix, {"into.weight", "out.weight", "frozen.weight"}),
        ("muon", None, {"into.weight", "out.weight", "frozen.weight"}),
        ("muon", lambda name, p: name == "out.weight", {"out.weight"}),
    ],
)
def test_matrices_go_to_muon_if_they_should(name, matrices, muon):
    held = parameters()
    names = {id(p): key for key, p in held.items()}
    found = {}
    for optimizer, rate in new_optimizers(held, replace(NUMBERS, optimizer=name), matrices):
        [group] = optimizer.param_groups
        found[type(optimizer)] = {names[id(p)] for p in group["params"]}
        assert group["weight_decay"] == 0.03
        is_muon = isinstance(optimizer, torch.optim.Muon)
        assert rate == group["lr"] == (0.3 if is_muon else 1e-4)
    assert found.get(torch.optim.Muon, set()) == muon
    assert found[torch.optim.AdamW] == held.keys() - muon


def test_unknown_ones_and_missing_packages_are_refused(monkeypatch):
    with pytest.raises(InvalidRequestError, match="unknown --optimizer 'sgd'"):
        new_optimizers(parameters(), replace(NUMBERS, optimizer="sgd"), None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(InvalidRequestError, match="needs the package bitsandbytes") as caught:
        new_optimizers(parameters(), replace(NUMBERS, optimizer="adamw8bit"), None)
    assert "--optimizer adamw" in caught.value.hint


class CountingAdamW(torch.optim.AdamW):
    """Like that of bitsandbytes in what it remembers: plain numbers, and bytes."""

    def step(self):
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                assert isinstance(state.get("count", 0), int)
                state["count"] = state.get("count", 0) + 1
                state["bytes"] = torch.full((3,), state["count"], dtype=torch.uint8)


def test_eight_bits_are_asked_of_the_package_and_its_numbers_survive(tmp_path, monkeypatch):
    package = ModuleType("bitsandbytes.optim")
    package.AdamW8bit = CountingAdamW
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", package)
    settings = replace(SETTINGS, optimizer="adamw8bit")

    def run(folder, until=None):
        net = new_net()
        trainer = Trainer({"net": net}, settings, folder)
        for report in trainer.run(loss_of(net)):
            if report.step == until:
                break
        return net, trainer.optimizers[0][0]

    whole, one = run(tmp_path / "whole")
    run(tmp_path / "parts", until=5)
    parts, two = run(tmp_path / "parts")
    assert isinstance(two, CountingAdamW)
    counts = [[state["count"] for state in optimizer.state.values()] for optimizer in (one, two)]
    assert counts[0] == counts[1] == [12] * 4
    for key, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[key])
