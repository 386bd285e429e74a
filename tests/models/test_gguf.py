"""GGUF files, written as converters write them."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch

from osp_cli.errors import CheckpointError, RuntimeFailureError
from osp_cli.models import gguf as ours
from osp_cli.models.gguf import gguf_file, load_gguf
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "ffn_dim": 128,
    "num_layers": 2,
    "text_dim": 64,
    "freq_dim": 32,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = FlashI2VTransformer3DModel(**CONFIG)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def write(folder, model, left_out=()):
    """Matrices of blocks in Q8_0, all else as it is, as is usual; settings beside it."""
    folder.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(str(folder / "model-Q8_0.gguf"), "wan")
    for name, tensor in model.state_dict().items():
        if name in left_out:
            continue
        values = tensor.float().numpy()
        if name.startswith("blocks.") and name.endswith(".weight") and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "config.json").write_text(json.dumps(dict(model.config)))
    return folder


def inputs():
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 2, 8, 12, generator=generator)
    return latents, torch.tensor([700.0]), torch.randn(1, 9, 64, generator=generator), latents


def test_it_computes_nearly_the_same(model, tmp_path):
    file = gguf_file(write(tmp_path / "t", model))
    small = load_gguf(FlashI2VTransformer3DModel, file, dtype=torch.float32)
    assert small.blocks[0].attn1.to_q.weight.dtype == torch.uint8
    with torch.no_grad():
        one = small(*inputs(), return_dict=False)[0]
        other = model(*inputs(), return_dict=False)[0]
    assert 0 < (one - other).norm() / other.norm() < 0.02


def test_a_missing_weight_is_named(model, tmp_path):
    file = gguf_file(write(tmp_path / "t", model, left_out=("blocks.1.attn1.to_q.weight",)))
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn1\.to_q\.weight"):
        load_gguf(FlashI2VTransformer3DModel, file, dtype=torch.float32)


def test_damage_is_told(model, tmp_path):
    file = gguf_file(write(tmp_path / "t", model))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_gguf(FlashI2VTransformer3DModel, file, dtype=torch.float32)
    file.write_bytes(b"GGUFnothing")
    with pytest.raises(CheckpointError):
        load_gguf(FlashI2VTransformer3DModel, file, dtype=torch.float32)


def test_two_files_are_one_too_many(tmp_path):
    assert gguf_file(tmp_path) is None
    for name in "ab":
        (tmp_path / f"{name}.gguf").touch()
    with pytest.raises(CheckpointError, match=r"several weight files: a\.gguf, b\.gguf"):
        gguf_file(tmp_path)


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeFailureError, match="needs the package gguf") as refused:
        load_gguf(FlashI2VTransformer3DModel, tmp_path / "a.gguf", dtype=torch.float32)
    assert refused.value.hint == "pip install gguf"


def test_it_is_planned_loaded_and_offloaded_as_a_model(model, tmp_path):
    from dataclasses import replace
    from pathlib import Path

    from osp_cli.errors import InvalidRequestError
    from osp_cli.registry import find_model
    from osp_cli.requests import GenerateRequest
    from osp_cli.runtime.loading import load_parts
    from osp_cli.runtime.planner import make_plan
    from osp_cli.runtime.strategy import Machine

    folder = tmp_path / "model"
    folder.mkdir()
    write(folder / "transformer", model)
    spec = replace(find_model("flashi2v-1.3b"), parts=("transformer",))
    there = Machine(device="cpu", device_bytes=1 << 40, ram_bytes=1 << 40)

    def plan(**changes):
        request = GenerateRequest(
            image=Path("x.png"), seed=1, model="flashi2v-1.3b", dtype="float32", **changes
        )
        return make_plan(request, spec, size=spec.default_size, machine=there, weights=folder)

    with pytest.raises(InvalidRequestError, match="are GGUF, --quant fp8 needs others"):
        plan(quant="fp8")
    outputs = []
    for offload in ("none", "group", "sequential"):
        settled = plan(offload=offload)
        assert settled.quant == "gguf"
        [(_, transformer)] = load_parts(spec, settled, folder, ["transformer"])
        with torch.no_grad():
            outputs.append(transformer(*inputs(), return_dict=False)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_what_is_not_gguf_is_not_taken_for_it(tmp_path):
    from pathlib import Path

    from osp_cli.errors import InvalidRequestError
    from osp_cli.registry import find_model
    from osp_cli.requests import GenerateRequest
    from osp_cli.runtime.planner import make_plan
    from osp_cli.runtime.strategy import Machine

    spec = find_model("osp-mini")
    there = Machine(device="cpu", device_bytes=1 << 40, ram_bytes=1 << 40)
    request = GenerateRequest(image=Path("x.png"), seed=1, quant="gguf")
    with pytest.raises(InvalidRequestError, match="are not GGUF"):
        make_plan(request, spec, size=spec.default_size, machine=there, weights=spec.weights_dir())
