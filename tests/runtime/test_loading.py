"""From a folder to components: all of it, or an error that names the part."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from osp_cli import registry
from osp_cli.conditioning.umt5 import UMT5Conditioner
from osp_cli.conditioning.vlm import QwenVLConditioner
from osp_cli.errors import CheckpointError, OspError, RuntimeFailureError
from osp_cli.media.video import probe_video
from osp_cli.models.adapter import FeatureAdapter
from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.registry import find_model, model_specs
from osp_cli.runtime import runner
from osp_cli.runtime.devices import this_machine
from osp_cli.runtime.loading import Components, load_components
from osp_cli.runtime.planner import make_plan

PARTS = ("transformer", "vae", "text_encoder", "adapter", "image_adapter")


def load(request, spec=None, folder=None):
    spec = spec or request.spec
    folder = folder or spec.weights_dir()
    plan = make_plan(
        request, spec, size=(96, 64), machine=this_machine(torch.device("cpu")), weights=folder
    )
    return list(load_components(spec, plan, folder))


def weights_of(folder):
    [path] = folder.glob("*.safetensors")
    return path


def test_parts_come_one_by_one_and_then_together(request_for):
    *loaded, components = load(request_for())
    assert [event.component for event in loaded] == ["transformer", "vae", "conditioner"]
    assert all(event.seconds > 0 for event in loaded)
    assert isinstance(components, Components)
    assert isinstance(components.transformer, FlashI2VTransformer3DModel)
    assert isinstance(components.vae, AutoencoderLinear)
    assert isinstance(components.conditioner, QwenVLConditioner)
    assert not components.transformer.training
    assert not components.vae.training
    assert not components.conditioner.model.training


def test_what_is_loaded_is_what_was_stored(request_for, tiny_home):
    *_, components = load(request_for())
    folder = tiny_home / "models" / "tiny"
    pairs = {
        "transformer": components.transformer,
        "vae": components.vae,
        "text_encoder": components.conditioner.model,
        "adapter": components.conditioner.adapter,
        "image_adapter": components.conditioner.image_adapter,
    }
    for name, module in pairs.items():
        stored = load_file(weights_of(folder / name))
        state = module.state_dict()
        assert stored.keys() == state.keys(), name
        for key, value in stored.items():
            assert torch.equal(state[key].float(), value.float()), (name, key)
            assert not state[key].is_meta


def test_the_plan_sets_the_dtype_and_phi_stays_exact(request_for):
    *_, components = load(request_for(dtype="bfloat16"))
    weights = dict(components.transformer.named_parameters())
    assert weights["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    assert weights["learnable_proj.proj.0.weight"].dtype == torch.float32
    assert components.vae.dtype == torch.float32


def test_the_card_sets_the_conditioning(request_for):
    spec = request_for().spec
    *_, components = load(request_for())
    conditioner = components.conditioner
    assert conditioner.max_sequence_length == spec.max_sequence_length
    assert conditioner.image_token_patch == spec.image_token_patch
    assert conditioner.image_token_positions == spec.image_token_positions


def test_without_an_image_adapter_there_are_no_image_tokens(request_for, own_weights):
    for path in (own_weights / "image_adapter").iterdir():
        path.unlink()
    (own_weights / "image_adapter").rmdir()
    *_, components = load(request_for(), folder=own_weights)
    encoded = components.conditioner.encode(["x"], image_latents=torch.zeros(1, 48, 1, 4, 6))
    assert encoded.shape == (1, 96, 24)


def test_another_number_of_channels_than_the_cards_is_refused(request_for):
    spec = replace(request_for().spec, latent_channels=16)
    with pytest.raises(CheckpointError, match="takes 48 latent channels, the card of tiny says 16"):
        load(request_for(), spec)


@pytest.mark.parametrize("part", ["adapter", "image_adapter"])
def test_an_adapter_of_other_features_is_refused(request_for, own_weights, part):
    FeatureAdapter(60, 8, 24).save_pretrained(own_weights / part)
    with pytest.raises(CheckpointError, match=f"{part} reads 60 features, it would get"):
        load(request_for())


def test_conditioning_that_is_not_built_yet_is_refused(request_for):
    spec = replace(request_for().spec, conditioner="nothing-of-the-kind")
    with pytest.raises(RuntimeFailureError, match="nothing-of-the-kind") as refused:
        load(request_for(), spec)
    assert "--model osp-mini" in refused.value.hint


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_weight_is_named(request_for, own_weights, part):
    path = weights_of(own_weights / part)
    tensors = load_file(path)
    # A late one: neither shapes nor layers are read off it.
    key = sorted(k for k in tensors if k.endswith("bias") or "norm" in k or "mean" in k)[-1]
    del tensors[key]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        load(request_for())


@pytest.mark.parametrize("part", ["transformer", "vae", "adapter", "image_adapter"])
def test_a_weight_too_many_is_named(request_for, own_weights, part):
    path = weights_of(own_weights / part)
    save_file({**load_file(path), "stranger": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="unexpected: stranger"):
        load(request_for())


@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_file_is_named(request_for, own_weights, part):
    path = weights_of(own_weights / part)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError) as refused:
        load(request_for())
    assert str(own_weights) in refused.value.message


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_file_is_an_error_with_a_sentence(request_for, own_weights, part):
    weights_of(own_weights / part).unlink()
    with pytest.raises(OspError, match=str(own_weights)):
        load(request_for())


def test_a_damaged_config_is_an_error_with_a_sentence(request_for, own_weights):
    for part in ("vae", "text_encoder", "transformer"):
        path = own_weights / part / "config.json"
        before = path.read_text()
        path.write_text(before[:20])
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            load(request_for())
        path.write_text(before)
    load(request_for())


# --- the other kind of card: Wan's own autoencoder and umT5 -----------------------------------


@pytest.fixture
def wan_card(tmp_path, monkeypatch):
    """A card like flashi2v-1.3b's with weights of a few kilobytes."""
    folder = tmp_path / "home" / "models" / "wan-tiny"
    torch.manual_seed(0)
    transformer = FlashI2VTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=8, freq_dim=16, ffn_dim=32,
        num_layers=1, rope_max_seq_len=64, projection_channels=6,
    )  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    transformer.to(torch.bfloat16).save_pretrained(folder / "transformer")
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1)
    vae.save_pretrained(folder / "vae")
    alphabet = {chr(code): code - 32 for code in range(32, 127)}
    bytewise = Tokenizer(models.BPE({**alphabet, "</s>": 95, "<pad>": 96}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    bytewise.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 95)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=bytewise, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder / "tokenizer")
    config = UMT5Config(vocab_size=97, d_model=8, d_kv=4, d_ff=12, num_heads=2, num_layers=1)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")

    spec = replace(
        find_model("flashi2v-1.3b"), name="wan-tiny", weights="wan-tiny", max_sequence_length=24,
        sizes=((32, 32),), default_size=(32, 32),
    )  # fmt: skip
    specs = {**model_specs(), "wan-tiny": spec}
    monkeypatch.setattr(registry, "model_specs", lambda: specs)
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    return spec


def test_a_wan_card_loads_and_runs(request_for, wan_card):
    request = request_for(model="wan-tiny", style="ink", num_inference_steps=1)
    *loaded, components = load(request)
    assert isinstance(components.vae, AutoencoderKLWan)
    assert isinstance(components.conditioner, UMT5Conditioner)
    assert components.transformer.dtype == torch.bfloat16
    assert len(loaded) == 3
    events = list(runner.run(request))
    assert events[-1].type == "done"
    info = probe_video(request.output)
    assert (info.width, info.height, info.num_frames) == (32, 32, 5)


def test_a_missing_weight_of_umt5_is_named(request_for, wan_card):
    request = request_for(model="wan-tiny")
    path = weights_of(wan_card.weights_dir() / "text_encoder")
    tensors = load_file(path)
    del tensors["encoder.final_layer_norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"encoder\.final_layer_norm\.weight"):
        load(request)


def test_stored_configs_are_read(request_for, own_weights):
    path = own_weights / "vae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "latents_mean": [0.25] * 48}))
    *_, components = load(request_for())
    assert components.vae.config.latents_mean == [0.25] * 48
