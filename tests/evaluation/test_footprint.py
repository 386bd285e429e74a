"""A process is measured as if it had been started by hand."""

from __future__ import annotations

import os
import sys

import pytest

from osp_cli.errors import RuntimeFailureError
from osp_cli.evaluation.footprint import NUM_CORES, measure


def measured(code, tmp_path):
    return measure([sys.executable, "-c", code], folder=tmp_path, env=os.environ)


def test_memory_is_the_command_s_and_not_the_measurer_s(tmp_path):
    """This very process, with torch in it, is far larger than an empty Python."""
    import torch

    ballast = torch.ones(50_000_000)
    small = measured("pass", tmp_path)
    large = measured("b = bytearray(200_000_000)", tmp_path)
    assert ballast.sum() > 0
    assert small["peak_bytes"] < 60e6
    assert 200e6 < large["peak_bytes"] < 260e6


def test_time_and_output_are_told(tmp_path):
    done = measured("import time; time.sleep(0.5); print('here', end='')", tmp_path)
    assert done["stdout"] == "here"
    assert 0.5 <= done["seconds"] < 20
    assert done["cpu_seconds"] < done["seconds"]


def test_it_gets_two_cores_at_most(tmp_path):
    done = measured("import os; print(os.environ['OMP_NUM_THREADS'])", tmp_path)
    assert int(done["stdout"]) == done["cores"] <= NUM_CORES


def test_a_failure_says_the_last_line(tmp_path):
    with pytest.raises(RuntimeFailureError, match="no such thing"):
        measured("raise SystemExit('no such thing')", tmp_path)
