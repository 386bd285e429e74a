"""Attention kernels and compiled blocks: what is refused, and that hooks and graphs get along."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from osp_cli.dials import step_cache
from osp_cli.errors import InvalidRequestError
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.runtime import kernels
from osp_cli.runtime.kernels import check_attention, check_compile
from osp_cli.runtime.runner import run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_kernels_of_another_device_are_refused():
    with pytest.raises(InvalidRequestError, match="--attention flash needs CUDA, this run is on c"):
        check_attention("flash", CPU)
    check_attention("flash", CUDA)
    check_attention("sdpa", CPU)


def test_without_a_compiler_nothing_is_begun(monkeypatch):
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    with pytest.raises(InvalidRequestError, match=r"needs a C\+\+ compiler") as refused:
        check_compile(CPU)
    assert "g++" in refused.value.hint
    monkeypatch.setattr(kernels.shutil, "which", lambda name: "/bin/c" if name == "c" else None)
    monkeypatch.setenv("CXX", "c")
    check_compile(CPU)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequestError, match="package triton"):
        check_compile(CUDA)


@pytest.fixture
def graphs(monkeypatch):
    """Traces blocks as for compiling, and runs the graphs as they are; tells whether whole."""
    asked = []
    genuine = FlashI2VTransformer3DModel.compile_repeated_blocks

    def traced(self, fullgraph):
        asked.append(fullgraph)
        genuine(self, fullgraph=fullgraph, backend="eager")

    monkeypatch.setattr(FlashI2VTransformer3DModel, "compile_repeated_blocks", traced)
    yield asked
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("cache", "offload", "whole"),
    [
        ("none", "none", True),
        ("magcache:0.5", "none", False),
        ("fbcache:0.5", "model", False),
        ("none", "group", False),
    ],
)
def test_hooks_and_graphs_bear_each_other(request_for, graphs, cache, offload, whole):
    settings = {"cache": step_cache(cache), "offload": offload, "num_inference_steps": 3}
    list(run(request_for(output=Path("plain.mp4"), **settings)))
    list(run(request_for(output=Path("compiled.mp4"), compile=True, **settings)))
    assert graphs == [whole]
    assert Path("compiled.mp4").exists()
