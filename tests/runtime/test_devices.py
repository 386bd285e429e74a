"""What machine this is, without needing that machine."""

from __future__ import annotations

import pytest
import torch

from osp_cli.errors import InvalidRequestError
from osp_cli.runtime import devices
from osp_cli.runtime.devices import available_memory, resolve_device


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many CUDA devices, and with or without MPS."""

    def build(*, cuda=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return build


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(0, False, "cpu"), (0, True, "mps"), (1, False, "cuda"), (2, True, "cuda")],
)
def test_auto_takes_the_fastest_there_is(machine, cuda, mps, expected):
    machine(cuda=cuda, mps=mps)
    assert str(resolve_device("auto")) == expected
    assert str(resolve_device("cpu")) == "cpu"


@pytest.mark.parametrize(
    ("cuda", "name"), [(0, "cuda"), (0, "cuda:0"), (1, "cuda:1"), (2, "cuda:7")]
)
def test_a_cuda_device_that_is_not_there_is_refused(machine, cuda, name):
    machine(cuda=cuda)
    words = f"{name} is not one of the {cuda} CUDA" if cuda else "this machine has no CUDA device"
    with pytest.raises(InvalidRequestError, match=words) as no:
        resolve_device(name)
    assert no.value.exit_code == 2
    assert "--device cpu" in no.value.hint


def test_devices_that_are_there_are_taken(machine):
    machine(cuda=2, mps=True)
    assert str(resolve_device("cuda")) == "cuda"
    assert str(resolve_device("cuda:1")) == "cuda:1"
    assert str(resolve_device("mps")) == "mps"


def test_mps_that_is_not_there_is_refused(machine):
    machine()
    with pytest.raises(InvalidRequestError, match="no MPS device"):
        resolve_device("mps")


def test_a_container_may_take_no_more_than_it_is_allowed(monkeypatch):
    free = available_memory(torch.device("cpu"))
    assert 0 < free < 1 << 62
    monkeypatch.setattr(devices, "usable_memory", lambda: 123456789)
    assert available_memory(torch.device("cpu")) == 123456789


def test_where_nothing_can_be_read_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "usable_memory", lambda: None)
    assert available_memory(torch.device("cpu")) == 1 << 62


def test_memory_of_a_cuda_device_is_what_it_says(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5_000, 80_000))
    assert available_memory(torch.device("cuda:1")) == 5_000
