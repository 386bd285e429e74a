"""The files that come out: every layout says the same to our reader and to diffusers' own."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from osp_cli.errors import InvalidRequestError
from osp_cli.hub.hashes import weights_hash
from osp_cli.hub.install import install_local
from osp_cli.models.layouts import describe
from osp_cli.models.lora import Strong, attach_loras, fuse_loras, parameter_shapes
from osp_cli.models.lora_file import read_lora
from osp_cli.models.lora_fit import fit_lora
from osp_cli.models.safetensors_header import read_header, with_metadata
from osp_cli.models.state_dict import load_adapter, load_transformer
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.train_request import SAVE_FORMATS
from osp_cli.training.adapters import adapter_state, add_adapter, trained_parameters
from osp_cli.training.export import ExportInfo, companion_path, write_adapter, write_full
from osp_cli.training.mini_vlm import new_conditioner

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 20,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
INFO = ExportInfo(
    name="glass",
    title="Stained glass",
    trigger="stained glass style",
    style="glass",
    mode="flash",
    rank=8,
    alpha=4.0,
    targets="qkv-ffn",
    base_id="tiny",
    base_sha256="a" * 64,
    vlm_sha256="b" * 64,
    dataset_sha256="c" * 64,
    sigma_shift=3.0,
    seed=7,
    steps=250,
    version="0.1",
)


@pytest.fixture(scope="module", params=[WanTransformer3DModel, FlashI2VTransformer3DModel])
def base(request):
    torch.manual_seed(3)
    model = request.param(**SIZES)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def velocity(model):
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 4, 2, 4, 6, generator=generator)
    text = torch.randn(1, 5, model.config.text_dim, generator=generator)
    with torch.inference_mode():
        return model(latents, torch.tensor([500.0]), text).sample


def trained(base, targets, rank=8, alpha=4.0):
    model = copy.deepcopy(base)
    add_adapter(model, targets, rank, alpha, seed=1)
    generator = torch.Generator().manual_seed(5)
    for parameter in trained_parameters(model).values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def by_our_reader(base, path, apply=attach_loras):
    model, lora = copy.deepcopy(base), read_lora(path)
    fit = fit_lora(lora, parameter_shapes(model), "tiny")
    assert not fit.left_out
    apply(model, [Strong(lora, fit, 1.0)])
    return model


def by_diffusers(base, path):
    state, metadata = WanLoraLoaderMixin.lora_state_dict(str(path), return_lora_metadata=True)
    model = copy.deepcopy(base)
    model.load_lora_adapter(state, prefix="transformer", metadata=metadata, adapter_name="file")
    return model


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


# --- Layouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["all", "qkv-ffn", "paint", "blocks.1.self_attn.q"])
@pytest.mark.parametrize("save_format", SAVE_FORMATS)
def test_each_layout_is_read_back_exactly(base, tmp_path, save_format, targets):
    model = trained(base, targets)
    [path] = write_adapter(tmp_path / "a.safetensors", adapter_state(model), INFO, save_format)
    expected = velocity(model)
    # Beside the weights the very sums of training are made; in them they are rounded once.
    assert torch.equal(velocity(by_our_reader(base, path)), expected)
    fused = velocity(by_our_reader(base, path, fuse_loras))
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=1e-5)
    if save_format == "kohya" and targets != "all":
        # Its converter of this layout asks for every layer of the original model.
        with pytest.raises(KeyError):
            by_diffusers(base, path)
        return
    assert torch.equal(velocity(by_diffusers(base, path)), expected)


@pytest.mark.parametrize("save_format", SAVE_FORMATS)
def test_half_the_rank_as_alpha_is_half_the_strength(base, tmp_path, save_format):
    state = adapter_state(trained(base, "all"))
    found = []
    for alpha in (4.0, 8.0):
        path = tmp_path / f"{alpha}.safetensors"
        write_adapter(path, state, replace(INFO, alpha=alpha), save_format)
        assert {change.scale for change in read_lora(path).low_rank} == {alpha / 8}
        found.append(velocity(by_diffusers(base, path)))
    assert not torch.allclose(*found, atol=1e-2)


@pytest.mark.parametrize("save_format", SAVE_FORMATS)
def test_a_strength_that_is_no_power_of_two(base, tmp_path, save_format):
    model = trained(base, "all", rank=6, alpha=2.5)
    info = replace(INFO, rank=6, alpha=2.5)
    [path] = write_adapter(tmp_path / "a.safetensors", adapter_state(model), info, save_format)
    # Readers put alpha into a factor, which rounds it.
    for read in (by_our_reader, by_diffusers):
        torch.testing.assert_close(velocity(read(base, path)), velocity(model))


def test_the_picture_layers_of_inpainting_transformers(tmp_path):
    torch.manual_seed(3)
    base = WanTransformer3DModel(**SIZES, image_dim=16, added_kv_proj_dim=24)
    state = adapter_state(trained(base, "all"))
    for save_format in SAVE_FORMATS:
        [path] = write_adapter(tmp_path / f"{save_format}.safetensors", state, INFO, save_format)
        model = by_our_reader(base, path)
        assert {key.replace("osp_lora.", "") for key in dict(model.named_parameters())
                if "add_k_proj.lora" in key} == {
            key for key in state if "add_k_proj" in key}  # fmt: skip


PATTERNS = {
    "native": r"diffusion_model\.blocks\.\d\.(self_attn|cross_attn|ffn)\.\w\."
    r"(lora_[AB]\.weight|alpha)",
    "kohya": r"lora_unet_blocks_\d_(self_attn|cross_attn|ffn)_\w\.(lora_(down|up)\.weight|alpha)",
    "peft": r"transformer\.blocks\.\d\.(attn[12]\.to_(q|k|v|out\.0)|ffn\.net\.(0\.proj|2))\."
    r"lora_[AB]\.weight",
}


@pytest.mark.parametrize("save_format", SAVE_FORMATS)
def test_the_keys_are_those_of_the_layout(base, tmp_path, save_format):
    state = adapter_state(trained(base, "all"))
    [path] = write_adapter(tmp_path / "a.safetensors", state, INFO, save_format)
    tensors = load_file(path)
    assert all(re.fullmatch(PATTERNS[save_format], key) for key in tensors)
    alphas = [key for key in tensors if key.endswith(".alpha")]
    assert len(alphas) == (0 if save_format == "peft" else len(state) // 2)
    assert len(tensors) - len(alphas) == len(state)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_bfloat16_is_half_as_large_and_alpha_stays_exact(base, tmp_path):
    state = adapter_state(trained(base, "all"))
    [path] = write_adapter(tmp_path / "a.safetensors", state, INFO, dtype="bfloat16")
    tensors = load_file(path)
    assert {t.dtype for k, t in tensors.items() if k.endswith("weight")} == {torch.bfloat16}
    assert read_lora(path).alphas == (4.0,)


# --- Contents ---------------------------------------------------------------------------------


def test_what_the_file_says_of_itself(base, tmp_path):
    state = adapter_state(trained(base, "qkv-ffn"))
    [path] = write_adapter(tmp_path / "glass.safetensors", state, INFO)
    told = metadata_of(path)
    assert (
        told.items()
        >= {
            "ss_network_dim": "8",
            "ss_network_alpha": "4.0",
            "ss_base_model_version": "tiny",
            "ss_seed": "7",
            "ss_steps": "250",
            "modelspec.title": "Stained glass",
            "modelspec.trigger_phrase": "stained glass style",
            "osp.trigger": "stained glass style",
            "osp.style": "glass",
            "osp.mode": "flash",
            "osp.base_id": "tiny",
            "osp.base_sha256": "a" * 64,
            "osp.vlm_sha256": "b" * 64,
            "osp.dataset_sha256": "c" * 64,
            "osp.sigma_shift": "3.0",
        }.items()
    )
    assert "osp.companion" not in told
    # No place of this machine, and nothing that changes from run to run.
    assert str(tmp_path) not in json.dumps(told)
    assert not any("date" in key or "time" in key for key in told)


def test_equal_numbers_make_equal_files_in_any_process(base, tmp_path):
    state = adapter_state(trained(base, "all"))
    files = {}
    for number, order in enumerate((list(state), list(reversed(state)))):
        path = tmp_path / f"{number}" / "a.safetensors"
        path.parent.mkdir()
        write_adapter(path, {key: state[key] for key in order}, INFO)
        files[number] = path.read_bytes()
    assert files[0] == files[1]
    # The library's own order of texts is another in each process.
    code = (
        "import sys, hashlib; from safetensors.numpy import save; import numpy as np;"
        "from osp_cli.models.safetensors_header import with_metadata;"
        "data = with_metadata(save({'a': np.ones(3)}), {f'k{i}': str(i) for i in range(20)});"
        "print(hashlib.sha256(data).hexdigest())"
    )
    digests = {subprocess.check_output([sys.executable, "-c", code]) for _ in range(2)}
    assert len(digests) == 1


@pytest.mark.parametrize("text", ["", "x", "a" * 13, 'Ünï "code" \\ \n'])
def test_texts_in_a_header_come_back(tmp_path, text):
    from safetensors.torch import save

    path = tmp_path / "a.safetensors"
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.bfloat16)}
    path.write_bytes(with_metadata(save(tensors), {"z": text, "a": "1"}))
    assert metadata_of(path) == dict(read_header(path).metadata) == {"z": text, "a": "1"}
    found = load_file(path)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert list(read_header(path).metadata) == ["a", "z"]


@pytest.mark.parametrize(
    "key", ["blocks.0.attn1.to_q.weight", "learnable_proj.proj.0.lora_A.weight", "adapter.fc1"]
)
def test_what_is_no_factor_of_a_block_is_not_written(tmp_path, key):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=r"no factor|no linear layer"):
        write_adapter(path, {key: torch.ones(8, 8)}, INFO)
    with pytest.raises(ValueError, match="no factor of rank 8"):
        write_adapter(path, {"blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 24)}, INFO)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays_unless_it_may_go(base, tmp_path):
    path = tmp_path / "a.safetensors"
    state = adapter_state(trained(base, "attn"))
    write_adapter(path, state, INFO, companion={"adapter.fc1.bias": torch.ones(2)})
    before = path.read_bytes()
    with pytest.raises(InvalidRequestError, match="exists already"):
        write_adapter(path, state, replace(INFO, seed=8))
    assert path.read_bytes() == before
    assert write_adapter(path, state, replace(INFO, seed=8), overwrite=True) == (path,)
    # The companion of the one that was replaced went with it.
    assert [*tmp_path.iterdir()] == [path]


def test_the_companion_is_linked_by_name_and_hash(base, tmp_path):
    path = tmp_path / "glass.safetensors"
    whole = {"adapter.fc1.bias": torch.ones(2, dtype=torch.bfloat16), "a": torch.zeros(3)}
    state = adapter_state(trained(base, "attn"))
    files = write_adapter(path, state, INFO, "kohya", whole)
    assert files == (path, tmp_path / "glass.adapter.safetensors") == (path, companion_path(path))
    told = metadata_of(path)
    assert told["osp.companion"] == "glass.adapter.safetensors"
    assert told["osp.companion_sha256"] == hashlib.sha256(files[1].read_bytes()).hexdigest()
    assert metadata_of(files[1])["osp.base_sha256"] == "a" * 64
    assert load_file(files[1])["adapter.fc1.bias"].dtype == torch.float32
    # Nothing in the LoRA's own file that its readers would fail at.
    assert not read_lora(path).strangers


# --- All weights ------------------------------------------------------------------------------


def test_a_full_model_is_a_folder_that_can_be_installed(tmp_path):
    torch.manual_seed(3)
    model = FlashI2VTransformer3DModel(**SIZES)
    conditioner = new_conditioner(1, SIZES["text_dim"])
    folder = tmp_path / "tuned"
    assert write_full(folder, model, INFO, {"adapter": conditioner.adapter}) == folder
    again = load_transformer(folder / "transformer")
    assert torch.equal(velocity(again), velocity(model.eval()))
    adapter = load_adapter(folder / "adapter")
    assert torch.equal(adapter.fc1.weight, conditioner.adapter.fc1.weight)
    # What an installation looks for is found.
    found = {one.part: one for one in describe(folder)}
    assert {"transformer", "adapter"} <= found.keys()
    assert not found["transformer"].problem
    assert json.loads((folder / "osp-training.json").read_text())["osp.steps"] == "250"
    assert [*tmp_path.iterdir()] == [folder]
    with pytest.raises(InvalidRequestError, match="exists already"):
        write_full(folder, model, INFO)
    write_full(folder, model, INFO, overwrite=True)
    assert not (folder / "adapter").exists()
    assert [*tmp_path.iterdir()] == [folder]


def test_half_a_folder_is_none(tmp_path, monkeypatch):
    model = FlashI2VTransformer3DModel(**SIZES)

    def fails(self, folder, **_):
        folder.mkdir(parents=True)
        raise RuntimeError("broken")

    monkeypatch.setattr(FlashI2VTransformer3DModel, "save_pretrained", fails)
    with pytest.raises(RuntimeError, match="broken"):
        write_full(tmp_path / "tuned", model, INFO)
    assert not list(tmp_path.iterdir())


def test_a_full_model_replaces_what_is_installed_and_keeps_the_rest(
    tiny_spec, tiny_home, tmp_path, monkeypatch
):
    shutil.copytree(tiny_home, tmp_path / "home")
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    installed = tmp_path / "home" / "models" / "tiny"
    tuned = load_transformer(installed / "transformer")
    for parameter in tuned.parameters():
        parameter.data += 0.1
    expected = {name: value.clone() for name, value in tuned.state_dict().items()}
    encoder = weights_hash(installed / "text_encoder")
    folder = write_full(tmp_path / "tuned", tuned, INFO)
    list(install_local(tiny_spec, folder))
    again = load_transformer(installed / "transformer").state_dict()
    assert all(torch.equal(again[name], value) for name, value in expected.items())
    assert weights_hash(installed / "text_encoder") == encoder
