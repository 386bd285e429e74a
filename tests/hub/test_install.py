"""Whatever layout weights are in, one call makes the model of them, or says what is in the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from osp_cli import registry
from osp_cli.errors import (
    CheckpointError,
    InvalidRequestError,
    RuntimeFailureError,
    WeightsMissingError,
    WontFitError,
)
from osp_cli.hub import install as installing
from osp_cli.hub.install import RECORD, install, install_local, recover
from osp_cli.media import files
from osp_cli.media.video import probe_video
from osp_cli.models.state_dict import load_adapter, load_autoencoder, load_transformer
from osp_cli.registry import Architecture, Download, find_model, weights_home
from osp_cli.requests import GenerateRequest
from osp_cli.runtime import runner
from osp_cli.runtime.devices import this_machine
from osp_cli.runtime.loading import load_components
from osp_cli.runtime.planner import make_plan

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
CONTROL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
PARTS = ("transformer", "vae", "text_encoder", "adapter")


def golden(name):
    return load_file(GOLDEN / f"{name}.weights.safetensors")


def save_tokenizer(folder):
    """One token a letter, and the control tokens."""
    known = {chr(code): code - 32 for code in range(32, 127)} | {"\n": 95}
    known |= {name: 96 + index for index, name in enumerate(CONTROL)}
    letterwise = Tokenizer(models.WordLevel(known, unk_token=CONTROL[0]))
    letterwise.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letterwise.add_special_tokens([AddedToken(name, special=True) for name in CONTROL])
    fast = PreTrainedTokenizerFast(tokenizer_object=letterwise, pad_token=CONTROL[0])
    fast.save_pretrained(folder)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def spec(monkeypatch):
    """The card of the released model, for the tiny one of the golden files."""
    spec = replace(
        find_model("uniworld-osp2-14b"), name="tiny", weights="tiny", max_sequence_length=240,
        sizes=((32, 32),), default_size=(32, 32), downloads=(),
        architecture=Architecture(
            layers=2, width=96, heads=4, ffn=128,
            parameters={"vae": sum(t.numel() for t in golden("vae").values())},
        ),
    )  # fmt: skip
    specs = {**registry.model_specs(), "tiny": spec}
    monkeypatch.setattr(registry, "model_specs", lambda: specs)
    return spec


@pytest.fixture
def released(tmp_path):
    """The parts as they are released: original names, with and without averaging."""
    folder = tmp_path / "released"
    for part, state in (("dit", golden("transformer")), ("vlm_adapter", golden("adapter"))):
        (folder / part).mkdir(parents=True)
        torch.save(state, folder / part / "ema_model_state_dict.pt")
        last = {name: tensor + 1 for name, tensor in state.items()}
        torch.save(last, folder / part / "model_state_dict.pt")
    shutil.copy(GOLDEN / "transformer.config.json", folder / "dit" / "config.json")
    # Quicker to read than its `.pth`, of which the mixture has one.
    save_file(golden("vae"), folder / "wan_vae.safetensors")
    qwen = folder / "Qwen2.5-VL-7B-Instruct"
    qwen.mkdir()
    save_file(golden("vlm"), qwen / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(GOLDEN / "vlm.config.json", qwen / "config.json")
    save_tokenizer(qwen)
    return folder


def contents(folder):
    """Every file below a folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def model_folder():
    return weights_home() / "tiny"


# --- the released layout -----------------------------------------------------------------------


def test_a_released_folder_becomes_a_model_that_runs(spec, released, tmp_path):
    (released / "wan_vae.safetensors").unlink()
    torch.save(golden("vae"), released / "Wan2.1_VAE.pth")
    before = contents(released)
    events = list(install_local(spec, released))
    assert contents(released) == before
    assert spec.find_weights() == model_folder()
    assert events[-1].type == "installed"
    assert set(events[-1].converted) == {"transformer", "vae", "adapter"}
    found = {event.part: event.kind for event in events if event.type == "found"}
    assert found == {
        "transformer": "flash-i2v", "vae": "wan-vae", "text_encoder": "qwen2.5-vl",
        "adapter": "feature-adapter",
    }  # fmt: skip
    notices = [event.message for event in events if event.type == "notice"]
    assert any("transformer has weights averaged" in notice for notice in notices)

    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "cat.png")
    request = GenerateRequest(
        image=tmp_path / "cat.png", prompt="pan left", output=Path("clip.mp4"), model="tiny",
        num_frames=5, num_inference_steps=2, guidance_scale=2.0, shift=3.0, seed=1, device="cpu",
    )  # fmt: skip
    machine = this_machine(torch.device("cpu"))
    plan = make_plan(request, spec, size=(32, 32), machine=machine, weights=model_folder())
    *_, components = load_components(spec, plan, model_folder())
    direct = load_transformer(
        released / "dit" / "ema_model_state_dict.pt", dtype=getattr(torch, plan.dtype)
    )
    mine = components.transformer.state_dict()
    for name, tensor in direct.state_dict().items():
        assert torch.equal(mine[name], tensor), name
        assert mine[name].dtype == tensor.dtype, name
    assert list(runner.run(request))[-1].type == "done"
    assert probe_video(request.output).num_frames == 5


def test_every_part_is_the_stored_one(spec, released):
    list(install_local(spec, released))
    folder = model_folder()
    config = json.loads((GOLDEN / "vae.json").read_text())["config"]
    for mine, direct in (
        (load_autoencoder(folder / "vae"),
         load_autoencoder(released / "wan_vae.safetensors", config=config)),
        (load_adapter(folder / "adapter", dtype=torch.bfloat16),
         load_adapter(released / "vlm_adapter" / "ema_model_state_dict.pt", dtype=torch.bfloat16)),
    ):  # fmt: skip
        state = direct.state_dict()
        assert all(torch.equal(t, state[name]) for name, t in mine.state_dict().items())
    model = folder / "text_encoder" / "model.safetensors"
    assert model.is_symlink()
    assert model.samefile(released / "Qwen2.5-VL-7B-Instruct" / "model.safetensors")


def test_the_weights_of_the_last_step_can_be_had(spec, released):
    events = list(install_local(spec, released, ema=False))
    assert any("last step beside" in e.message for e in events if e.type == "notice")
    mine = load_transformer(model_folder() / "transformer", dtype=torch.bfloat16).state_dict()
    direct = load_transformer(released / "dit" / "model_state_dict.pt", dtype=torch.bfloat16)
    assert all(torch.equal(mine[name], t) for name, t in direct.state_dict().items())


def test_a_folder_of_safetensors_under_original_names(spec, released):
    """As a release in diffusers' style has it: names and settings are upstream's."""
    for file in (released / "dit").glob("*.pt"):
        file.unlink()
    save_file(golden("transformer"), released / "dit" / "diffusion_pytorch_model.safetensors")
    list(install_local(spec, released))
    mine = load_transformer(model_folder() / "transformer").state_dict()
    assert "condition_embedder.time_proj.weight" in mine
    config = json.loads((model_folder() / "transformer" / "config.json").read_text())
    assert config["_class_name"] == "FlashI2VTransformer3DModel"
    assert config["num_attention_heads"] == 4


def test_the_record_says_where_all_of_it_comes_from(spec, released):
    list(install_local(spec, released))
    record = json.loads((model_folder() / RECORD).read_text())
    assert record["model"] == "tiny"
    assert set(record["parts"]) == set(PARTS)
    transformer = record["parts"]["transformer"]
    assert transformer["branch"] == "ema"
    assert transformer["converted"]
    assert transformer["source"]["path"] == str(released / "dit" / "ema_model_state_dict.pt")
    for name, facts in transformer["files"].items():
        path = model_folder() / "transformer" / name
        assert path.stat().st_size == facts["bytes"]
        if path.suffix == ".safetensors":
            assert hashlib.sha256(path.read_bytes()).hexdigest() == facts["sha256"]
    assert not record["parts"]["text_encoder"]["converted"]


# --- other layouts -----------------------------------------------------------------------------


@pytest.fixture
def umt5_spec(spec, monkeypatch):
    spec = replace(
        find_model("flashi2v-1.3b"), name="tiny", weights="tiny", downloads=(), architecture=None
    )
    specs = {**registry.model_specs(), "tiny": spec}
    monkeypatch.setattr(registry, "model_specs", lambda: specs)
    return spec


@pytest.fixture
def mixture(tmp_path):
    """One folder of the files of several releases, beside the settings of one of them."""
    folder = tmp_path / "mixture"
    tokenizer = folder / "google" / "umt5-xxl"
    tokenizer.mkdir(parents=True)
    torch.save(golden("transformer"), folder / "transformer.pt")
    shutil.copy(GOLDEN / "transformer.config.json", folder / "config.json")
    torch.save(golden("vae"), folder / "Wan2.1_VAE.pth")
    torch.save(golden("t5"), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    save_tokenizer(tokenizer)
    other = folder / "xlm-roberta-large"
    shutil.copytree(tokenizer, other)
    settings = {"tokenizer_class": "XLMRobertaTokenizer"}
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "README.md").write_text("as downloaded")
    return folder


def test_a_mixture_of_original_files(umt5_spec, mixture):
    from transformers import AutoTokenizer, UMT5EncoderModel

    list(install_local(umt5_spec, mixture))
    folder = umt5_spec.find_weights()
    assert folder is not None
    load_transformer(folder / "transformer")
    load_autoencoder(folder / "vae")
    encoder, report = UMT5EncoderModel.from_pretrained(
        folder / "text_encoder", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert torch.equal(encoder.shared.weight, golden("t5")["token_embedding.weight"].bfloat16())
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert "XLM" not in type(tokenizer).__name__


def test_a_pipeline_of_diffusers_is_placed_by_links(umt5_spec, mixture, tmp_path):
    list(install_local(umt5_spec, mixture))
    pipeline = tmp_path / "pipeline"
    shutil.copytree(model_folder(), pipeline)
    (pipeline / RECORD).unlink()
    (pipeline / "model_index.json").write_text("{}")
    shutil.rmtree(model_folder())
    events = list(install_local(umt5_spec, pipeline))
    assert events[-1].converted == ()
    for part in umt5_spec.parts:
        folder = model_folder() / part
        assert not folder.is_symlink()
        weights = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
        assert all(path.samefile(pipeline / part / path.name) for path in weights)
        assert all(path.is_symlink() for path in weights)
    load_transformer(model_folder() / "transformer")


@pytest.mark.parametrize("refused", ["links", "both"])
def test_where_links_are_refused_files_are_shared_or_copied(spec, released, monkeypatch, refused):
    def no(*_args, **_options):
        raise OSError("not here")

    monkeypatch.setattr(Path, "symlink_to", no)
    if refused == "both":
        monkeypatch.setattr(os, "link", no)
    list(install_local(spec, released))
    path = model_folder() / "text_encoder" / "model.safetensors"
    original = released / "Qwen2.5-VL-7B-Instruct" / "model.safetensors"
    assert not path.is_symlink()
    assert path.samefile(original) == (refused == "links")
    assert path.read_bytes() == original.read_bytes()


def test_shards_without_an_index_get_one(spec, released):
    qwen = released / "Qwen2.5-VL-7B-Instruct"
    state = load_file(qwen / "model.safetensors")
    (qwen / "model.safetensors").unlink()
    names = sorted(state)
    for number, part in enumerate((names[:30], names[30:]), 1):
        file = qwen / f"model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, file, metadata={"format": "pt"})
    list(install_local(spec, released))
    from transformers import Qwen2_5_VLModel

    model, report = Qwen2_5_VLModel.from_pretrained(
        model_folder() / "text_encoder", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert torch.equal(model.get_input_embeddings().weight, state["model.embed_tokens.weight"])
    (qwen / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00001-of-00002"):
        list(install_local(spec, released))


def test_downloads_are_installed_part_by_part(spec, released):
    """Each part from where it was put, with where it was published in the record."""
    download = Download(part="vae", repo="org/wan", revision="v1", files=("*",))
    spec = replace(spec, downloads=(download,))
    sources = {
        "transformer": released / "dit", "adapter": released / "vlm_adapter",
        "vae": released / "wan_vae.safetensors",
        "text_encoder": released / "Qwen2.5-VL-7B-Instruct",
    }  # fmt: skip
    list(install(spec, sources))
    assert spec.find_weights() == model_folder()
    source = json.loads((model_folder() / RECORD).read_text())["parts"]["vae"]["source"]
    assert (source["repo"], source["revision"]) == ("org/wan", "v1")


def test_links_into_the_hub_s_cache_keep_its_hashes(spec, released, tmp_path):
    qwen = released / "Qwen2.5-VL-7B-Instruct"
    digest = hashlib.sha256((qwen / "model.safetensors").read_bytes()).hexdigest()
    blob = tmp_path / "blobs" / digest
    blob.parent.mkdir()
    (qwen / "model.safetensors").rename(blob)
    (qwen / "model.safetensors").symlink_to(blob)
    list(install_local(spec, released))
    assert (model_folder() / "text_encoder" / "model.safetensors").readlink() == blob
    record = json.loads((model_folder() / RECORD).read_text())
    assert record["parts"]["text_encoder"]["files"]["model.safetensors"]["sha256"] == digest


def test_a_gguf_file_is_kept_as_it_is(umt5_spec, mixture):
    gguf = pytest.importorskip("gguf")
    (mixture / "transformer.pt").unlink()
    writer = gguf.GGUFWriter(mixture / "flash-Q8_0.gguf", "wan")
    for name, tensor in golden("transformer").items():
        quantised = name.endswith("ffn.0.weight")
        kind = gguf.GGMLQuantizationType.Q8_0 if quantised else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    for write in (
        writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file,
    ):  # fmt: skip
        write()
    writer.close()
    list(install_local(umt5_spec, mixture))
    folder = model_folder() / "transformer"
    assert {path.name for path in folder.iterdir()} == {"config.json", "flash-Q8_0.gguf"}

    from diffusers import GGUFQuantizationConfig

    from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel

    model = FlashI2VTransformer3DModel.from_single_file(
        str(folder / "flash-Q8_0.gguf"), config=str(folder), dtype=torch.float32,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
    )  # fmt: skip
    kept = golden("transformer")["blocks.0.self_attn.q.weight"]
    assert torch.equal(model.blocks[0].attn1.to_q.weight.data, kept)


def tiny_clip():
    """CLIP's picture half under its original names."""
    width, state = 160, {}
    for name, shape in (
        ("patch_embedding.weight", (width, 3, 4, 4)), ("cls_embedding", (1, 1, width)),
        ("pos_embedding", (1, 17, width)), ("head", (width, 8)),
        *((f"{norm}.{kind}", (width,)) for norm in ("pre_norm", "post_norm",
          "transformer.0.norm1", "transformer.0.norm2") for kind in ("weight", "bias")),
        *((f"transformer.0.{layer}.{kind}", (rows, columns) if kind == "weight" else (rows,))
          for layer, rows, columns in (("attn.to_qkv", 480, width), ("attn.proj", width, width),
                                       ("mlp.0", 640, width), ("mlp.2", width, 640))
          for kind in ("weight", "bias")),
    ):  # fmt: skip
        state[f"visual.{name}"] = torch.randn(shape)
    return {**state, "log_scale": torch.ones([]), "textual.token_embedding.weight": torch.ones(2)}


def test_a_card_with_an_image_encoder(umt5_spec, mixture, monkeypatch):
    """From the original file, which has no settings of how its pictures are prepared."""
    from transformers import CLIPVisionModel

    spec = replace(
        umt5_spec,
        parts=(*umt5_spec.parts, "image_encoder", "image_processor", "scheduler"),
        dtypes={**umt5_spec.dtypes, "image_encoder": "float32"},
    )
    torch.save(tiny_clip(), mixture / "models_clip.pth")
    with pytest.raises(WeightsMissingError, match="but no scheduler"):
        list(install_local(spec, mixture))
    (mixture / "scheduler").mkdir()
    (mixture / "scheduler" / "scheduler_config.json").write_text("{}")
    list(install_local(spec, mixture))
    assert spec.find_weights() == model_folder()
    model = CLIPVisionModel.from_pretrained(model_folder() / "image_encoder")
    assert model.dtype == torch.float32
    settings = json.loads((model_folder() / "image_processor/preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 224, "width": 224}
    assert (model_folder() / "scheduler" / "scheduler_config.json").is_symlink()


# --- large files -------------------------------------------------------------------------------


def test_what_would_be_cast_at_every_start_is_converted_where_there_is_room(
    spec, released, monkeypatch
):
    monkeypatch.setattr(installing, "NARROWED_BYTES", 1)
    events = list(install_local(spec, released))
    assert "text_encoder" in events[-1].converted
    folder = model_folder() / "text_encoder"
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert (folder / "tokenizer_config.json").is_file()
    needed = sum(path.stat().st_size for path in model_folder().rglob("*.safetensors"))
    needed -= (folder / "model.safetensors").stat().st_size
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(0, 0, needed + 1000))
    events = list(install_local(spec, released))
    assert "text_encoder" not in events[-1].converted
    assert any("stays float32" in e.message for e in events if e.type == "notice")


def test_a_file_larger_than_the_memory_is_cut_into_shards(spec, released, monkeypatch):
    sizes = {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(installing.os, "sysconf", lambda name: sizes[name])
    events = list(install_local(spec, released))
    assert "text_encoder" in events[-1].converted


def test_a_small_disk_is_refused_before_anything_is_written(spec, released, home, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(10**9, 0, 1000))
    with pytest.raises(WontFitError, match="the converted transformer, vae, adapter would") as full:
        list(install_local(spec, released))
    # The folder that the user knows, not the hidden one that is not there yet.
    assert full.value.message.startswith(f"{home / 'models'} has ")
    assert [path.name for path in (home / "models").iterdir()] == [".tiny.lock"]


# --- what is not right -------------------------------------------------------------------------


def test_missing_parts_are_named_with_what_to_add(spec, released):
    (released / "wan_vae.safetensors").unlink()
    with pytest.raises(WeightsMissingError, match="but no vae") as refused:
        list(install_local(spec, released))
    assert refused.value.exit_code == 3
    assert "Wan2.1_VAE.pth" in refused.value.hint
    assert spec.find_weights() is None


def test_a_language_model_without_its_tokenizer(spec, released):
    for path in (released / "Qwen2.5-VL-7B-Instruct").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(WeightsMissingError, match="but no tokenizer"):
        list(install_local(spec, released))
    save_tokenizer(released / "elsewhere")
    list(install_local(spec, released))
    assert (model_folder() / "tokenizer" / "tokenizer.json").is_file()


def test_nothing_of_use(spec, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequestError, match=r"nothing in .* that tiny could use"):
        list(install_local(spec, tmp_path / "empty"))
    lora = tmp_path / "lora"
    lora.mkdir()
    shutil.copy(GOLDEN / "lora_comfy.safetensors", lora)
    with pytest.raises(InvalidRequestError, match="is a LoRA"):
        list(install_local(spec, lora))


def test_a_smaller_model_is_refused_and_both_are_named(spec, released):
    sizes = replace(spec.architecture, layers=40, width=5120)
    with pytest.raises(InvalidRequestError) as refused:
        list(install_local(replace(spec, architecture=sizes), released))
    assert "2 layers of width 96" in refused.value.message
    assert "40 layers of width 5120" in refused.value.message
    assert refused.value.exit_code == 2


def test_plain_wan_is_not_flashi2v(spec, released):
    state = {n: t for n, t in golden("transformer").items()
             if n.split(".")[0] not in ("fourier_embedding", "learnable_proj")}  # fmt: skip
    for file in (released / "dit").glob("*.pt"):
        torch.save(state, file)
    with pytest.raises(InvalidRequestError, match=r"Wan's text-to-video .* not FlashI2V's"):
        list(install_local(spec, released))


def test_an_encoder_of_another_size_is_refused(spec, released):
    sizes = replace(spec.architecture, parameters={"text_encoder": 8_292_166_656})
    with pytest.raises(InvalidRequestError, match=r"Qwen2\.5-VL with 0\.00 B .* not 8\.29 B"):
        list(install_local(replace(spec, architecture=sizes), released))


def test_an_adapter_for_another_transformer_is_refused(spec, released):
    narrow = {
        name: t[:32] if name.startswith("fc2") else t for name, t in golden("adapter").items()
    }
    for file in (released / "vlm_adapter").glob("*.pt"):
        torch.save(narrow, file)
    with pytest.raises(InvalidRequestError, match=r"width 32, .* takes 64"):
        list(install_local(spec, released))


def test_two_that_fit_are_one_too_many(spec, released):
    shutil.copytree(released / "dit", released / "older")
    with pytest.raises(InvalidRequestError, match="more than one thing") as refused:
        list(install_local(spec, released))
    assert "older" in refused.value.message


def test_incomplete_weights_are_named(spec, released):
    state = golden("transformer")
    del state["blocks.1.ffn.2.weight"]
    for file in (released / "dit").glob("*.pt"):
        torch.save(state, file)
    with pytest.raises(CheckpointError, match=r"1 missing: blocks\.1\.ffn\.net\.2\.weight"):
        list(install_local(spec, released))


def test_the_model_in_the_package_needs_none(released):
    with pytest.raises(InvalidRequestError, match="come with the package"):
        list(install_local(find_model("osp-mini"), released))


# --- half of it, twice, and at the same time ---------------------------------------------------


def test_an_interrupted_installation_goes_on_and_never_counts(spec, released, home):
    counted = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        list(install_local(spec, released, stop=lambda: next(counted, None) is None))
    assert spec.find_weights() is None
    assert all(path.name[0] == "." for path in (home / "models").iterdir())
    staged = home / "models" / ".tiny.installing" / "transformer"
    before = {path.name: path.stat().st_mtime_ns for path in staged.iterdir()}
    assert before
    list(install_local(spec, released))
    assert spec.find_weights() == model_folder()
    after = {p.name: p.stat().st_mtime_ns for p in (model_folder() / "transformer").iterdir()}
    assert after == before
    assert [path.name for path in (home / "models").iterdir() if path.is_dir()] == ["tiny"]


def test_a_second_installation_replaces_the_first(spec, released, home):
    list(install_local(spec, released))
    first = contents(model_folder())
    changed = {name: tensor + 2 for name, tensor in golden("transformer").items()}
    torch.save(changed, released / "dit" / "ema_model_state_dict.pt")
    (released / "wan_vae.safetensors").write_bytes(b"damaged")
    events = install_local(spec, released / "dit")
    while next(events).type != "convert":
        pass
    # The old one is there until the new one is whole.
    assert contents(model_folder()) == first
    rest = list(events)
    assert rest[-1].type == "installed"
    second = contents(model_folder())
    assert (
        second["vae/diffusion_pytorch_model.safetensors"]
        == (first["vae/diffusion_pytorch_model.safetensors"])
    )
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert second[name] != first[name]
    assert (model_folder() / "text_encoder" / "model.safetensors").is_file()
    record = json.loads((model_folder() / RECORD).read_text())["parts"]
    assert record["vae"]["source"]["path"].endswith("wan_vae.safetensors")
    assert [path.name for path in (home / "models").iterdir() if path.is_dir()] == ["tiny"]


def test_a_failed_second_installation_leaves_the_first(spec, released):
    list(install_local(spec, released))
    before = contents(model_folder())
    (released / "dit" / "ema_model_state_dict.pt").write_bytes(b"nothing")
    (released / "dit" / "model_state_dict.pt").unlink()
    with pytest.raises(InvalidRequestError):
        list(install_local(spec, released / "dit"))
    assert contents(model_folder()) == before


def test_what_somebody_put_there_by_hand_is_set_aside(spec, released):
    model_folder().mkdir(parents=True)
    (model_folder() / "notes.txt").write_text("mine")
    events = list(install_local(spec, released))
    aside = model_folder().with_name("tiny.old-1")
    assert (aside / "notes.txt").read_text() == "mine"
    assert any(str(aside) in e.message for e in events if e.type == "notice")
    assert spec.find_weights() == model_folder()


def test_the_installation_itself_is_no_source(spec, released):
    list(install_local(spec, released))
    with pytest.raises(InvalidRequestError, match="is where tiny is installed"):
        list(install_local(spec, model_folder() / "transformer"))


def test_two_at_once_are_kept_apart(spec, released):
    first = install_local(spec, released)
    next(first)
    with pytest.raises(RuntimeFailureError, match="another osp is installing tiny"):
        list(install_local(spec, released))
    list(first)
    assert spec.find_weights() == model_folder()


@pytest.mark.parametrize("moment", ["new one ready", "new one unfinished", "both there"])
def test_a_kill_between_the_old_and_the_new_is_mended(spec, released, moment):
    list(install_local(spec, released))
    here = model_folder()
    old, ready = here.with_name(".tiny.replaced"), here.with_name(".tiny.installing")
    shutil.copytree(here, ready if moment != "both there" else old, symlinks=True)
    if moment != "both there":
        (ready / "new.txt").touch()
        here.rename(old)
    if moment == "new one unfinished":
        (ready / RECORD).unlink()
    recover(spec)
    assert spec.find_weights() == here
    assert not old.exists()
    assert (here / "new.txt").exists() == (moment == "new one ready")


INSTALL = """
import sys, time
from dataclasses import replace
from pathlib import Path
from osp_cli.hub.install import install_local
from osp_cli.models import kinds
from osp_cli.registry import find_model
kinds.model_class("umt5"), kinds.model_class("flash-i2v")
spec = replace(find_model("uniworld-osp2-14b"), name="tiny", weights="tiny", architecture=None)
print("ready", flush=True)
for _ in install_local(spec, Path(sys.argv[1]), stop=lambda: time.sleep(0.004)):
    pass
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_recovers(spec, released, home):
    """Each time the model is either not there or whole, and the last attempt makes it."""
    chance = random.Random(0)
    command = [sys.executable, "-c", INSTALL, str(released)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = 0
    for _ in range(8):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            ended += process.wait(chance.uniform(0, 4)) == 0
        process.kill()
        process.wait()
        process.stdout.close()
        if spec.find_weights() is not None:
            record = json.loads((model_folder() / RECORD).read_text())
            for part, facts in record["parts"].items():
                for name, noted in facts["files"].items():
                    assert (model_folder() / part / name).stat().st_size == noted["bytes"]
    assert ended < 8
    list(install_local(spec, released))
    assert [path.name for path in (home / "models").iterdir() if path.is_dir()] == ["tiny"]
    mine = load_transformer(model_folder() / "transformer", dtype=torch.bfloat16).state_dict()
    direct = load_transformer(
        released / "dit" / "ema_model_state_dict.pt", dtype=torch.bfloat16
    ).state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in direct.items())
