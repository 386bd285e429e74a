"""The log of a run."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from osp_cli.errors import InvalidRequestError
from osp_cli.training.metrics import MetricsLog


def test_lines_up_to_the_step_stay_as_they_are(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 3, "skipped": False})
    log.force_to_disk()
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes()
    assert [json.loads(line)["step"] for line in before.splitlines()] == [1, 2, 3]
    MetricsLog(tmp_path, 3)
    assert path.read_bytes() == before
    path.write_bytes(before + b'{"step": 4, "lo')
    MetricsLog(tmp_path, 9)
    assert path.read_bytes() == before
    MetricsLog(tmp_path, 1)
    assert path.read_bytes() == before.splitlines(keepends=True)[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_gets_the_numbers_and_forgets_later_ones(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, *scalar):
            calls.append(scalar)

        def flush(self):
            calls.append("flush")

        def close(self):
            calls.append("close")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    log = MetricsLog(tmp_path, 6, ("jsonl", "tensorboard"))
    log.write(7, {"loss": 0.5, "skipped": False})
    log.force_to_disk()
    log.close()
    assert calls == [(str(tmp_path / "tensorboard"), 7), ("loss", 0.5, 7), "flush", "close"]


def test_without_its_package_tensorboard_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InvalidRequestError, match="needs the package tensorboard"):
        MetricsLog(tmp_path, 0, ("tensorboard",))
