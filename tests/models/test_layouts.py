"""What weights are is told by their keys, whatever their files are called."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file

from osp_cli.errors import CheckpointError, WeightsMissingError
from osp_cli.models.layouts import describe
from osp_cli.models.original_names import transformer_from_original

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
LAYOUT = Path(os.environ.get("OSP_GOLDEN_DIR") or GOLDEN) / "checkpoint_layout.json"


@pytest.fixture
def transformer():
    return load_file(GOLDEN / "transformer.weights.safetensors")


@pytest.fixture
def folder(tmp_path):
    """Has the settings of the golden transformer."""
    config = (GOLDEN / "transformer.config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    return tmp_path


def image_to_video(state):
    """An original image-to-video transformer made of a text-to-video one."""
    width = state["patch_embedding.weight"].shape[0]
    state = {n: t for n, t in state.items() if n.split(".")[0] not in BRANCHES}
    state["patch_embedding.weight"] = torch.randn(width, 36, 1, 2, 2)
    for name, shape in (
        ("proj.0.weight", (20,)), ("proj.0.bias", (20,)),
        ("proj.1.weight", (20, 20)), ("proj.1.bias", (20,)),
        ("proj.3.weight", (width, 20)), ("proj.3.bias", (width,)),
        ("proj.4.weight", (width,)), ("proj.4.bias", (width,)),
    ):  # fmt: skip
        state[f"img_emb.{name}"] = torch.randn(shape)
    for block in range(2):
        attention = f"blocks.{block}.cross_attn"
        for name in ("k_img", "v_img"):
            state[f"{attention}.{name}.weight"] = torch.randn(width, width)
            state[f"{attention}.{name}.bias"] = torch.randn(width)
        state[f"{attention}.norm_k_img.weight"] = torch.randn(width)
    return state


BRANCHES = ("fourier_embedding", "learnable_proj")


def only(path):
    (found,) = describe(path)
    return found


# --- what it is ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "part", "kind", "layout"),
    [
        ("vae", "vae", "wan-vae", "original"),
        ("t5", "text_encoder", "umt5", "original"),
        ("adapter", "adapter", "feature-adapter", "diffusers"),
    ],
)
def test_released_files_are_known_by_their_keys(tmp_path, file, part, kind, layout):
    path = tmp_path / "anything.pth"
    stored = load_file(GOLDEN / f"{file}.weights.safetensors")
    torch.save(stored, path)
    found = only(path)
    assert (found.part, found.kind, found.layout) == (part, kind, layout)
    assert found.complete
    assert found.dtype == "float32"
    assert found.num_tensors == len(stored)
    assert found.parameters == sum(tensor.numel() for tensor in stored.values())
    assert found.nbytes == 4 * found.parameters


def test_settings_are_read_off_the_shapes(tmp_path):
    for name, expected in (
        ("vae", {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
                 "temperal_downsample": [False, True, True]}),
        ("t5", {"vocab_size": 320, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2,
                "num_heads": 4}),
    ):  # fmt: skip
        found = only(GOLDEN / f"{name}.weights.safetensors")
        assert {key: found.settings[key] for key in expected} == expected


def test_flashi2v_is_told_from_plain_wan(folder, transformer):
    save_file(transformer, folder / "a.safetensors")
    assert only(folder / "a.safetensors").kind == "flash-i2v"
    plain = {n: t for n, t in transformer.items() if n.split(".")[0] not in BRANCHES}
    assert len(transformer) - len(plain) == 8
    save_file(plain, folder / "b.safetensors")
    found = only(folder / "b.safetensors")
    assert found.kind == "wan-t2v"
    assert found.complete
    assert found.title == "Wan's text-to-video transformer with 2 layers of width 96"


def test_original_image_to_video_names_become_those_of_diffusers(folder, transformer):
    state = image_to_video(transformer)
    ours = transformer_from_original(state)
    theirs = convert_wan_transformer_to_diffusers(dict(state))
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "in_dim": 36, "model_type": "i2v"}))
    save_file(state, folder / "x.safetensors")
    found = only(folder)
    assert found.kind == "wan-i2v"
    assert found.complete
    assert found.settings["image_dim"] == 20
    assert found.settings["added_kv_proj_dim"] == 96
    model = WanTransformer3DModel(**found.settings)
    model.load_state_dict(ours, strict=True)


def test_names_of_diffusers_are_left_alone(tmp_path, make_transformer):
    make_transformer().save_pretrained(tmp_path)
    found = only(tmp_path)
    assert (found.kind, found.layout, found.ready) == ("flash-i2v", "diffusers", True)
    assert found.complete


@pytest.mark.parametrize("half", ["whole", "text", "inner"])
def test_qwen_under_all_its_names(tmp_path, half):
    state = load_file(GOLDEN / "vlm.weights.safetensors")
    if half == "text":
        state = {n: t for n, t in state.items() if not n.startswith("visual.")}
    if half == "inner":
        state = {
            f"model.{n}" if n.startswith("visual.")
            else n.replace("model.", "model.language_model.", 1): t
            for n, t in state.items()
        }  # fmt: skip
    save_file(state, tmp_path / "model.safetensors")
    assert only(tmp_path).missing_files == ("config.json",)
    (tmp_path / "config.json").write_text((GOLDEN / "vlm.config.json").read_text())
    found = only(tmp_path)
    assert (found.part, found.kind, found.ready) == ("text_encoder", "qwen2.5-vl", True)
    assert found.incompleteness == ""
    del state[next(name for name in state if name.endswith("layers.1.mlp.up_proj.weight"))]
    save_file(state, tmp_path / "model.safetensors")
    assert "1 missing: layers.1.mlp.up_proj.weight" in only(tmp_path).incompleteness


def test_any_other_class_of_diffusers_is_known_by_its_config(tmp_path):
    from diffusers import AutoencoderKLLTXVideo

    AutoencoderKLLTXVideo(
        block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1), spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False), decoder_inject_noise=(False, False, False),
        upsample_residual=(False, False), upsample_factor=(1, 1), latent_channels=4,
    ).save_pretrained(tmp_path)  # fmt: skip
    found = only(tmp_path)
    assert found.part == "vae"
    assert found.kind == "diffusers:AutoencoderKLLTXVideo"
    assert found.complete


def test_settings_of_another_model_beside_it_do_not_count(folder):
    """As in the original repositories, where the transformer's lie next to the autoencoder."""
    torch.save(load_file(GOLDEN / "vae.weights.safetensors"), folder / "Wan2.1_VAE.pth")
    found = only(folder)
    assert found.settings["base_dim"] == 4
    assert found.complete


def test_tokenizers_are_told_by_their_class(tmp_path):
    for name, tokenizer in (("t5", "T5Tokenizer"), ("clip", "XLMRobertaTokenizer"), ("any", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{}")
        settings = json.dumps({"tokenizer_class": tokenizer} if tokenizer else {})
        (tmp_path / name / "tokenizer_config.json").write_text(settings)
    found = {one.path.name: one.kind for one in describe(tmp_path)}
    assert found == {"t5": "umt5-tokenizer", "clip": "xlm-roberta-tokenizer", "any": "tokenizer"}


def test_a_lora_is_no_model(tmp_path):
    found = only(GOLDEN / "lora_musubi.safetensors")
    assert found.part == "unknown"
    assert "is a LoRA" in found.problem


# --- 28 GB, and quickly -------------------------------------------------------------------------


@pytest.mark.skipif(not LAYOUT.is_file(), reason="the golden folder has no layouts")
@pytest.mark.parametrize("size", ["flashi2v_14b", "flashi2v_1_3b"])
def test_a_full_size_checkpoint_is_read_by_its_header(tmp_path, size):
    facts = json.loads(LAYOUT.read_text())[size]
    header, start = {}, 0
    for pattern, entry in facts["keys"].items():
        shape, count = (entry["shape"], entry["count"]) if isinstance(entry, dict) else (entry, 1)
        for index in range(count):
            stop = start + 2 * int(torch.Size(shape).numel())
            header[pattern.replace("{i}", str(index))] = {
                "dtype": "BF16", "shape": shape, "data_offsets": [start, stop],
            }  # fmt: skip
            start = stop
    text = json.dumps(header).encode()
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        # A hole: it takes no room on the disk.
        file.truncate(8 + len(text) + start)
    (tmp_path / "config.json").write_text(json.dumps(facts["saved_config"]))
    started = time.perf_counter()
    found = only(tmp_path)
    assert time.perf_counter() - started < 20
    assert found.kind == "flash-i2v"
    assert found.complete
    assert found.parameters == facts["parameters"]
    assert found.num_tensors == facts["tensors"]
    assert found.nbytes == 2 * facts["parameters"]
    config = facts["saved_config"]
    assert f"{config['num_layers']} layers of width {config['dim']}" in found.title


# --- what trainers and torch put around the names -------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.diffusion_model.", "diffusion_model.", "model.", "module.model.",
     "_orig_mod.", "module._fsdp_wrapped_module."],
)  # fmt: skip
def test_prefixes_are_no_part_of_names(folder, transformer, prefix):
    save_file({prefix + n: t for n, t in transformer.items()}, folder / "x.safetensors")
    found = only(folder)
    assert found.kind == "flash-i2v"
    assert found.complete
    assert not found.ready


@pytest.mark.parametrize("key", ["model", "state_dict", "module", "model_state_dict"])
def test_a_trainer_s_checkpoint_holds_both(folder, transformer, key):
    ema = {f"module.{name}": tensor + 1 for name, tensor in transformer.items()}
    contents = {
        "step": 3, "ema_state_dict": ema, key: transformer,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.0}]},
    }  # fmt: skip
    torch.save(contents, folder / "x.pt")
    assert [one.branch for one in describe(folder)] == ["ema", "raw"]
    assert all(one.complete and one.kind == "flash-i2v" for one in describe(folder))


def test_both_in_one_table_under_prefixes(folder, transformer):
    ema = {f"ema_model.{name}": tensor for name, tensor in transformer.items()}
    raw = {f"online_model.{name}": tensor for name, tensor in transformer.items()}
    torch.save({**raw, **ema, "step": torch.tensor(3), "initted": torch.tensor(1)}, folder / "x.pt")
    assert [(one.branch, one.complete) for one in describe(folder)] == [
        ("ema", True),
        ("raw", True),
    ]


def test_side_by_side_the_names_of_the_files_say_it(folder, transformer):
    for name in ("model_state_dict.pt", "ema_model_state_dict.pt"):
        torch.save(transformer, folder / name)
    assert {one.path.stem: one.branch for one in describe(folder)} == {
        "ema_model_state_dict": "ema",
        "model_state_dict": "raw",
    }


def test_the_format_of_before_2020_is_read_too(folder, transformer):
    torch.save(transformer, folder / "x.pth", _use_new_zipfile_serialization=False)
    assert only(folder).complete


# --- shards -------------------------------------------------------------------------------------


def test_shards_without_their_index(tmp_path, make_transformer):
    make_transformer().save_pretrained(tmp_path, max_shard_size="20KB")
    whole = only(tmp_path)
    assert whole.index is not None
    assert len(whole.files) > 2
    whole.index.unlink()
    found = only(tmp_path)
    assert found.files == whole.files
    assert found.complete
    assert found.path == tmp_path


@pytest.mark.parametrize("indexed", [True, False])
def test_a_missing_shard_is_named(tmp_path, make_transformer, indexed):
    make_transformer().save_pretrained(tmp_path, max_shard_size="20KB")
    whole = only(tmp_path)
    lost = whole.files[-1]
    lost.unlink()
    if not indexed:
        whole.index.unlink()
    found = only(tmp_path)
    assert found.missing_files == (lost.name,)
    assert lost.name in found.incompleteness


def test_without_the_shard_that_tells_what_it_is(tmp_path, make_transformer):
    make_transformer().save_pretrained(tmp_path, max_shard_size="20KB")
    for file in only(tmp_path).files[:-1]:
        file.unlink()
    found = only(tmp_path)
    assert found.part == "unknown"
    assert "shards are missing" in found.problem
    assert "diffusion_pytorch_model-00001-of-" in found.problem


def test_an_index_cannot_lead_elsewhere(tmp_path):
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
    found = only(tmp_path)
    assert "outside of its folder" in found.problem


# --- what is wrong with it ------------------------------------------------------------------------


def test_missing_and_unexpected_keys_are_named(folder, transformer):
    del transformer["blocks.1.ffn.0.bias"]
    transformer["vace_blocks.0.before_proj.weight"] = torch.zeros(3)
    save_file(transformer, folder / "x.safetensors")
    found = only(folder)
    assert found.misfits.missing == ["blocks.1.ffn.net.0.proj.bias"]
    assert found.misfits.unexpected == ["vace_blocks.0.before_proj.weight"]
    assert not found.complete


def test_a_config_of_absurdly_many_layers_is_refused(folder, transformer):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_layers": 10**9}))
    save_file(transformer, folder / "x.safetensors")
    with pytest.raises(CheckpointError, match="tells of 1000000000 layers"):
        describe(folder / "x.safetensors")


@pytest.mark.parametrize("damage", ["truncated", "shape", "text", "empty"])
def test_damaged_headers_are_reported(folder, transformer, damage):
    path = folder / "x.safetensors"
    save_file(transformer, path)
    data = path.read_bytes()
    path.write_bytes(
        {
            "truncated": data[:-4],
            "shape": data.replace(b'"shape":[96,96]', b'"shape":[96,95]', 1),
            "text": data[:20] + b"\xff" * 20 + data[40:],
            "empty": b"",
        }[damage]
    )
    assert path.read_bytes() != data
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        describe(path)
    assert "cannot be read as weights" in only(folder).problem


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path):
    torch.save({"evil": Payload(tmp_path / "ran")}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="could run code"):
        describe(tmp_path / "x.pt")
    # In a folder it does not hide what is beside it.
    torch.save(load_file(GOLDEN / "vae.weights.safetensors"), tmp_path / "y.pt")
    parts = {one.path.name: one for one in describe(tmp_path)}
    assert "could run code" in parts["x.pt"].problem
    assert parts["y.pt"].part == "vae"
    assert not (tmp_path / "ran").exists()


def test_nothing_there(tmp_path):
    with pytest.raises(WeightsMissingError):
        describe(tmp_path / "nowhere")
    assert describe(tmp_path) == []


def test_links_that_lead_back_up_do_not_hold_it(tmp_path, make_transformer):
    make_transformer().save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert only(tmp_path).kind == "flash-i2v"


def test_a_repository_in_the_hub_s_cache(tmp_path, make_transformer):
    root = tmp_path / "models--org--name"
    make_transformer().save_pretrained(root / "snapshots" / "abc")
    (root / "snapshots" / "old").mkdir()
    save_file({"x": torch.zeros(1)}, root / "snapshots" / "old" / "x.safetensors")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("abc")
    assert only(root).kind == "flash-i2v"


# --- GGUF ---------------------------------------------------------------------------------------


def write_gguf(path, state):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "wan")
    for name, tensor in state.items():
        quantised = name.endswith("ffn.0.weight")
        kind = gguf.GGMLQuantizationType.Q8_0 if quantised else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(tensor.numpy(), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_checked_by_keys_and_shapes(folder, transformer):
    write_gguf(folder / "x.gguf", transformer)
    found = only(folder)
    assert (found.kind, found.layout, found.ready) == ("flash-i2v", "gguf", True)
    assert found.incompleteness == ""
    del transformer["head.head.bias"]
    write_gguf(folder / "x.gguf", transformer)
    assert "1 missing: proj_out.bias" in only(folder).incompleteness


def test_gguf_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(CheckpointError, match="is not installed") as refused:
        describe(tmp_path / "x.gguf")
    assert refused.value.hint == "pip install gguf"
