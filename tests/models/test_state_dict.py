"""Reading weights: every layout gives the same model, and every misfit is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from osp_cli.errors import CheckpointError, WeightsMissingError
from osp_cli.models.original_names import transformer_from_original
from osp_cli.models.state_dict import (
    load_adapter,
    load_autoencoder,
    load_transformer,
    load_umt5,
    read_state_dict,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
BRANCHES = ("fourier_embedding.", "learnable_proj.")


@pytest.fixture
def original():
    """Tiny FlashI2V weights under their original names."""
    return load_file(GOLDEN / "transformer.weights.safetensors")


@pytest.fixture
def config():
    return json.loads((GOLDEN / "transformer.config.json").read_text())


@pytest.fixture
def saved(tmp_path, config):
    """Saves weights beside their `config.json`; returns the file."""

    def save(state, name="model.safetensors"):
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        else:
            torch.save(state, path)
        (tmp_path / "config.json").write_text(json.dumps(config))
        return path

    return save


def assert_same_weights(model, original):
    expected = transformer_from_original(original)
    assert model.state_dict().keys() == expected.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def plain_wan(original):
    return {n: tensor for n, tensor in original.items() if not n.startswith(BRANCHES)}


@pytest.mark.parametrize("name", ["model.safetensors", "model_state_dict.pt", "ema.pth"])
def test_single_files_with_original_names(saved, original, name):
    assert_same_weights(load_transformer(saved(original, name)), original)


@pytest.mark.parametrize("prefix", ["module.", "model.diffusion_model.", "diffusion_model."])
def test_prefixes_of_trainers_are_removed(saved, original, prefix):
    path = saved({prefix + name: tensor for name, tensor in original.items()})
    assert_same_weights(load_transformer(path), original)


def test_a_folder_with_original_names(saved, original):
    assert_same_weights(load_transformer(saved(original).parent), original)


@pytest.mark.parametrize("shard", ["10GB", "200KB"])
def test_a_diffusers_folder(saved, original, tmp_path, shard):
    folder = tmp_path / "transformer"
    model = load_transformer(saved(original))
    model.save_pretrained(folder, max_shard_size=shard)
    loaded = load_transformer(folder)
    assert_same_weights(loaded, original)
    assert loaded.config.num_attention_heads == model.config.num_attention_heads


def test_a_loaded_model_is_whole(saved, original):
    model = load_transformer(saved(original))
    assert not model.training
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_shapes_stand_in_for_a_sparse_config(saved, original, config):
    path = saved(original)
    model = load_transformer(path, config={"num_heads": config["num_heads"]})
    for ours, theirs in (
        ("in_channels", "in_dim"),
        ("out_channels", "out_dim"),
        ("text_dim", "text_dim"),
        ("freq_dim", "freq_dim"),
        ("ffn_dim", "ffn_dim"),
        ("num_layers", "num_layers"),
        ("conv3x3x3_proj", "conv3x3x3_proj"),
    ):
        assert model.config[ours] == config[theirs]
    assert_same_weights(model, original)


def test_unknown_head_count_is_asked_for(saved, original):
    with pytest.raises(CheckpointError, match="attention heads") as error:
        load_transformer(saved(original), config={})
    assert "config.json" in error.value.hint


def test_windowed_attention_is_refused(saved, original, config):
    with pytest.raises(CheckpointError, match="windowed"):
        load_transformer(saved(original), config={**config, "window_size": [4, 4]})


@pytest.mark.parametrize("key", ["blocks.1.ffn.0.bias", "head.modulation"])
def test_missing_keys_are_named(saved, original, key):
    del original[key]
    renamed = next(iter(transformer_from_original({key: torch.zeros(1), "head.x": torch.zeros(1)})))
    with pytest.raises(CheckpointError, match="1 missing") as error:
        load_transformer(saved(original))
    assert renamed in error.value.message


def test_unexpected_keys_are_named(saved, original):
    original["vace_blocks.0.before_proj.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"1 unexpected: vace_blocks\.0\.before_proj\.weight"):
        load_transformer(saved(original))


def test_other_shapes_are_named(saved, original):
    original["blocks.0.ffn.2.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.ffn\.net\.2\.bias \(7,\) instead of"):
        load_transformer(saved(original))


def test_plain_wan_is_refused_unless_asked_for(saved, original):
    with pytest.raises(CheckpointError, match=r"8 missing: fourier_embedding\.0\.weight"):
        load_transformer(saved(plain_wan(original)))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_wan_with_branches_at_zero_is_exactly_wan(saved, original, dtype):
    base = plain_wan(original)
    flash = load_transformer(saved(base), allow_missing_branches=True, dtype=dtype)
    settings = {n: v for n, v in flash.config.items() if n not in ("projection_channels",)}
    wan = WanTransformer3DModel.from_config(settings)
    wan.load_state_dict(transformer_from_original(base))
    wan = wan.eval()
    for name, parameter in wan.named_parameters():
        parameter.data = parameter.data.to(flash.get_parameter(name).dtype)
    latents = torch.randn(1, flash.config.in_channels, 2, 4, 4)
    inputs = latents.to(dtype), torch.tensor([500.5]), torch.randn(1, 3, flash.config.text_dim)
    inputs = (*inputs[:2], inputs[2].to(dtype))
    assert not flash.learnable_proj(latents).any()
    got = flash(*inputs, fourier_features=latents.abs()).sample
    assert torch.equal(got, wan(*inputs).sample)
    assert {p.dtype for p in flash.learnable_proj.parameters()} == {torch.float32}


def test_half_a_branch_is_an_error_even_then(saved, original):
    del original["fourier_embedding.1.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: fourier_embedding\.1\.bias"):
        load_transformer(saved(original), allow_missing_branches=True)


def test_one_absent_branch_leaves_the_other_as_stored(saved, original):
    stored = {n: t for n, t in original.items() if not n.startswith("learnable_proj.")}
    model = load_transformer(saved(stored), allow_missing_branches=True)
    for name in ("fourier_embedding.0.weight", "fourier_embedding.1.bias"):
        assert torch.equal(model.get_parameter(name), original[name])
    assert not model.learnable_proj.proj[2].weight.any()


def test_half_precision_spares_what_needs_fp32(saved, original):
    model = load_transformer(saved(original), dtype=torch.bfloat16)
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert model.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert model.learnable_proj.proj[0].weight.dtype == torch.float32
    assert model.scale_shift_table.dtype == torch.float32


def test_stored_dtype_is_kept(saved, original):
    model = load_transformer(saved({n: t.bfloat16() for n, t in original.items()}))
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert model.learnable_proj.proj[0].weight.dtype == torch.float32


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path, saved, original):
    trace = tmp_path / "ran"
    path = saved({**original, "evil": Payload(trace)}, "model.pt")
    with pytest.raises(CheckpointError, match="could run code") as error:
        load_transformer(path)
    assert ".safetensors" in error.value.hint
    assert not trace.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_damaged_files_are_reported(saved, original, name):
    path = saved(original, name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_transformer(path)


def test_a_pickle_of_something_else_is_refused(tmp_path):
    torch.save({"step": 3}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="not a plain table"):
        read_state_dict(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["nowhere", "nothing.safetensors"])
def test_absent_weights(tmp_path, name):
    with pytest.raises(WeightsMissingError, match="there are no weights"):
        load_transformer(tmp_path / name)


def test_an_empty_folder_has_no_weights(tmp_path):
    with pytest.raises(WeightsMissingError):
        read_state_dict(tmp_path)


def test_several_files_without_an_index_are_ambiguous(saved, original):
    saved(original, "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors, b\.safetensors"):
        load_transformer(saved(original, "b.safetensors").parent)


def test_a_missing_shard_is_named(saved, original, tmp_path):
    folder = tmp_path / "transformer"
    load_transformer(saved(original)).save_pretrained(folder, max_shard_size="200KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(WeightsMissingError, match=shard.name):
        load_transformer(folder)


def test_autoencoder_folder_and_original_file_are_the_same(tmp_path):
    facts = json.loads((GOLDEN / "vae.json").read_text())
    loaded = load_autoencoder(GOLDEN / "vae.weights.safetensors", config=facts["config"])
    loaded.save_pretrained(tmp_path)
    again, theirs = load_autoencoder(tmp_path), AutoencoderKLWan.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert torch.equal(tensor, theirs.state_dict()[name])


def test_autoencoder_names_what_does_not_fit(tmp_path):
    facts = json.loads((GOLDEN / "vae.json").read_text())
    state = load_file(GOLDEN / "vae.weights.safetensors")
    state["decoder.upsamples.99.surprise.weight"] = state.pop("decoder.head.0.gamma")
    save_file(state, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_autoencoder(tmp_path / "vae.safetensors", config=facts["config"])
    assert "1 missing: decoder.norm_out.gamma" in error.value.message
    assert "surprise.weight" in error.value.message


def test_umt5_saves_as_a_usual_folder(tmp_path):
    from transformers import UMT5EncoderModel

    facts = json.loads((GOLDEN / "t5.json").read_text())
    loaded = load_umt5(GOLDEN / "t5.weights.safetensors", config=facts["config"])
    loaded.save_pretrained(tmp_path)
    again = UMT5EncoderModel.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 9, 1]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).last_hidden_state, again(ids).last_hidden_state)


def test_adapter_with_a_stray_key(tmp_path):
    state = load_file(GOLDEN / "adapter.weights.safetensors")
    save_file({**state, "fc3.bias": torch.zeros(2)}, tmp_path / "adapter.safetensors")
    with pytest.raises(CheckpointError, match=r"1 unexpected: fc3\.bias"):
        load_adapter(tmp_path / "adapter.safetensors")
