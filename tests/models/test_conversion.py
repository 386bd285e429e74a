"""Converted weights are the original ones, bit for bit, and half of a conversion is none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionModel, UMT5EncoderModel

from osp_cli.errors import CheckpointError, InvalidRequestError, WontFitError
from osp_cli.media import files
from osp_cli.models.conversion import convert, partial_folder
from osp_cli.models.layouts import describe
from osp_cli.models.state_dict import (
    load_adapter,
    load_autoencoder,
    load_transformer,
    load_umt5,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "data"


@pytest.fixture
def source(tmp_path):
    """Makes a folder with golden weights in a file of some format, and their settings."""

    def make(name, suffix=".safetensors", change=lambda state: state):
        folder = tmp_path / f"{name}{suffix}"
        folder.mkdir()
        state = change(load_file(GOLDEN / f"{name}.weights.safetensors"))
        if suffix == ".safetensors":
            save_file(state, folder / f"x{suffix}")
        else:
            torch.save(state, folder / f"x{suffix}")
        settings = GOLDEN / f"{name}.config.json"
        if settings.is_file():
            shutil.copy(settings, folder / "config.json")
        return folder

    return make


def run(folder, target, **options):
    (found,) = describe(folder)
    return list(convert(found, target, **options))


def assert_same(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


# --- the same numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", None])
def test_a_transformer_is_that_of_the_file(source, tmp_path, suffix, dtype):
    folder = source("transformer", suffix)
    run(folder, tmp_path / "t", dtype=dtype, shard_bytes=100_000)
    torch_dtype = getattr(torch, dtype) if dtype else None
    direct = load_transformer(folder / f"x{suffix}", dtype=torch_dtype)
    assert_same(load_transformer(tmp_path / "t", dtype=torch_dtype), direct)
    assert_same(load_transformer(tmp_path / "t"), direct)
    stored = {}
    for path in (tmp_path / "t").glob("*.safetensors"):
        stored.update(load_file(path))
    if dtype == "bfloat16":
        assert stored["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
        assert stored["scale_shift_table"].dtype == torch.float32
        assert stored["learnable_proj.proj.0.weight"].dtype == torch.float32


@torch.no_grad()
def test_its_outputs_are_the_same(source, tmp_path):
    folder = source("transformer", ".pt")
    run(folder, tmp_path / "t", dtype="bfloat16")
    io = load_file(GOLDEN / "transformer.io.safetensors")
    x, text = io["x_shifted"].bfloat16(), io["ctx_a"].bfloat16()
    direct, converted = (
        load_transformer(path, dtype=torch.bfloat16) for path in (folder / "x.pt", tmp_path / "t")
    )
    features = io["fourier_features"].bfloat16()
    got = converted(x, io["t2"], text, fourier_features=features).sample
    assert torch.equal(got, direct(x, io["t2"], text, fourier_features=features).sample)
    assert got.abs().max() > 0.1


def test_an_autoencoder(source, tmp_path):
    folder = source("vae", ".pth")
    run(folder, tmp_path / "vae", dtype="float32")
    config = json.loads((GOLDEN / "vae.json").read_text())["config"]
    direct = load_autoencoder(folder / "x.pth", config=config)
    assert_same(load_autoencoder(tmp_path / "vae"), direct)
    theirs = AutoencoderKLWan.from_pretrained(tmp_path / "vae")
    assert_same(theirs, direct)
    settings = {name for name in direct.config if not name.startswith("_")}
    assert all(theirs.config[name] == direct.config[name] for name in settings)


def test_umt5(source, tmp_path):
    folder = source("t5", ".pth")
    run(folder, tmp_path / "t5", dtype="bfloat16", shard_bytes=60_000)
    names = {path.name for path in (tmp_path / "t5").iterdir()}
    assert "model.safetensors.index.json" in names
    model, report = UMT5EncoderModel.from_pretrained(
        tmp_path / "t5", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    config = json.loads((GOLDEN / "t5.json").read_text())["config"]
    direct = load_umt5(folder / "x.pth", config=config).bfloat16().float()
    assert_same(model, direct)
    assert model.config.num_heads == config["num_heads"]
    golden = load_file(GOLDEN / "t5.safetensors")
    shutil.rmtree(tmp_path / "t5")
    run(folder, tmp_path / "t5", dtype="float32")
    exact = UMT5EncoderModel.from_pretrained(tmp_path / "t5")
    ids, mask = golden["ids"], golden["mask"]
    with torch.no_grad():
        got = exact(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(got[:, :1], golden["context"][:, :1], atol=1e-4, rtol=1e-4)


def test_of_a_whole_umt5_the_encoder_is_enough(tmp_path):
    from transformers import UMT5Config, UMT5ForConditionalGeneration

    settings = UMT5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_heads=2, num_layers=2)
    whole = UMT5ForConditionalGeneration(settings)
    whole.save_pretrained(tmp_path / "in")
    (found,) = describe(tmp_path / "in")
    assert (found.kind, found.complete, found.ready) == ("umt5", True, True)
    list(convert(found, tmp_path / "out", dtype="float32"))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in stored if name.startswith(("decoder", "lm_head"))]
    mine = UMT5EncoderModel.from_pretrained(tmp_path / "out").state_dict()
    theirs = whole.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_an_adapter(source, tmp_path):
    folder = source("adapter", ".pt")
    run(folder, tmp_path / "adapter", dtype="float32")
    assert_same(load_adapter(tmp_path / "adapter"), load_adapter(folder / "x.pt"))


@torch.no_grad()
def test_an_image_to_video_transformer(tmp_path):
    """Made under names of diffusers, stored under the original ones, converted back."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=36, out_channels=16, text_dim=8,
        freq_dim=16, ffn_dim=32, num_layers=2, image_dim=20, added_kv_proj_dim=24,
        rope_max_seq_len=64,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    original = {original_name(name): tensor for name, tensor in model.state_dict().items()}
    assert "blocks.1.cross_attn.norm_k_img.weight" in original
    assert "img_emb.proj.4.bias" in original
    (tmp_path / "in").mkdir()
    torch.save(original, tmp_path / "in" / "x.pth")
    (tmp_path / "in" / "config.json").write_text(json.dumps({"num_heads": 2, "model_type": "i2v"}))
    run(tmp_path / "in", tmp_path / "transformer", shard_bytes=20_000)
    converted = WanTransformer3DModel.from_pretrained(tmp_path / "transformer").eval()
    assert_same(converted, model)
    inputs = {
        "hidden_states": torch.randn(1, 36, 2, 4, 4),
        "timestep": torch.tensor([500.5]),
        "encoder_hidden_states": torch.randn(1, 3, 8),
        "encoder_hidden_states_image": torch.randn(1, 5, 20),
    }
    got = converted(**inputs).sample
    assert torch.equal(got, model(**inputs).sample)
    inputs["encoder_hidden_states_image"] += 1
    assert not torch.equal(got, converted(**inputs).sample)


def original_name(name):
    """As Wan's release calls what diffusers calls `name`; written apart from the code."""
    embedder = "condition_embedder."
    for new, old in (
        (f"{embedder}image_embedder.norm1", "img_emb.proj.0"),
        (f"{embedder}image_embedder.ff.net.0.proj", "img_emb.proj.1"),
        (f"{embedder}image_embedder.ff.net.2", "img_emb.proj.3"),
        (f"{embedder}image_embedder.norm2", "img_emb.proj.4"),
        (f"{embedder}time_embedder.linear_1", "time_embedding.0"),
        (f"{embedder}time_embedder.linear_2", "time_embedding.2"),
        (f"{embedder}text_embedder.linear_1", "text_embedding.0"),
        (f"{embedder}text_embedder.linear_2", "text_embedding.2"),
        (f"{embedder}time_proj", "time_projection.1"),
        ("proj_out", "head.head"),
        (".norm2.", ".norm3."),
        ("attn1", "self_attn"), ("attn2", "cross_attn"), (".to_out.0", ".o"), (".to_q", ".q"),
        (".to_k", ".k"), (".to_v", ".v"), (".add_k_proj", ".k_img"), (".add_v_proj", ".v_img"),
        (".norm_added_k", ".norm_k_img"), ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"),
    ):  # fmt: skip
        name = name.replace(new, old)
    if name == "scale_shift_table":
        return "head.modulation"
    return name.replace("scale_shift_table", "modulation")


# --- CLIP, whose layers are others ----------------------------------------------------------------


class PlainCLIP(nn.Module):
    """The picture's half as the release has it, by its names: one matrix for three projections."""

    def __init__(self, width=160, heads=2, layers=3, patch=4, size=16):
        super().__init__()
        self.heads = heads
        self.visual = nn.Module()
        self.visual.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.visual.cls_embedding = nn.Parameter(torch.randn(1, 1, width))
        self.visual.pos_embedding = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width))
        self.visual.pre_norm = nn.LayerNorm(width)
        self.visual.transformer = nn.Sequential(*(self.block(width) for _ in range(layers)))
        self.visual.post_norm = nn.LayerNorm(width)
        self.visual.head = nn.Parameter(torch.randn(width, 8))
        self.textual = nn.Module()
        self.textual.token_embedding = nn.Embedding(5, 4)
        self.log_scale = nn.Parameter(torch.ones([]))

    @staticmethod
    def block(width):
        block = nn.Module()
        block.norm1, block.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        block.attn = nn.Module()
        block.attn.to_qkv, block.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        block.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        return block

    def forward(self, pixels, skipped=0):
        v = self.visual
        x = v.patch_embedding(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([v.cls_embedding.expand(len(x), -1, -1), x], dim=1) + v.pos_embedding
        x = v.pre_norm(x)
        for block in list(v.transformer)[: len(v.transformer) - skipped]:
            q, k, w = (
                part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in block.attn.to_qkv(block.norm1(x)).chunk(3, dim=-1)
            )
            attended = nn.functional.scaled_dot_product_attention(q, k, w)
            x = x + block.attn.proj(attended.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        return x


@torch.no_grad()
def test_clip_sees_the_same(tmp_path):
    torch.manual_seed(0)
    plain = PlainCLIP()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    (tmp_path / "in").mkdir()
    torch.save(plain.state_dict(), tmp_path / "in" / "x.pth")
    (found,) = describe(tmp_path / "in")
    assert (found.part, found.kind, found.complete) == ("image_encoder", "clip-vision", True)
    list(convert(found, tmp_path / "image_encoder", dtype="float32"))
    model = CLIPVisionModel.from_pretrained(tmp_path / "image_encoder").eval()
    pixels = torch.randn(2, 3, 16, 16)
    hidden = model(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(hidden[-1], plain(pixels), atol=2e-4, rtol=1e-4)
    # What image-to-video transformers are told.
    torch.testing.assert_close(hidden[-2], plain(pixels, skipped=1), atol=2e-4, rtol=1e-4)
    assert (hidden[-1] - hidden[-2]).abs().max() > 0.1
    processor = CLIPImageProcessor.from_pretrained(tmp_path / "image_encoder")
    assert not processor.do_center_crop


# --- the files ------------------------------------------------------------------------------------


def test_shards_and_their_index_are_those_of_the_libraries(source, tmp_path):
    folder = source("transformer")
    events = run(folder, tmp_path / "t", dtype="float32", shard_bytes=150_000)
    index = json.loads(
        (tmp_path / "t" / "diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    assert len(events) == len(set(index["weight_map"].values())) > 2
    total = 0
    for event in events:
        assert event.path.stat().st_size == event.bytes
        with safe_open(event.path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            names = set(file.keys())
        assert names == {n for n, shard in index["weight_map"].items() if shard == event.path.name}
        size = sum(t.numel() * t.element_size() for t in load_file(event.path).values())
        assert size <= 150_000 or len(names) == 1
        total += size
    assert index["metadata"]["total_size"] == total
    _, report = type(load_transformer(tmp_path / "t")).from_pretrained(
        tmp_path / "t", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_one_small_file_needs_no_index(source, tmp_path):
    run(source("adapter"), tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_what_lies_strangely_in_a_pickle_is_read_as_it_is(source, tmp_path):
    """Transposed, shared, or in torch's format of before 2020."""

    def transposed(state):
        return {n: t.t().contiguous().t() if t.dim() == 2 else t for n, t in state.items()}

    folder = source("adapter", ".pt", transposed)
    assert not torch.load(folder / "x.pt")["fc1.weight"].is_contiguous()
    run(folder, tmp_path / "a")
    expected = load_file(GOLDEN / "adapter.weights.safetensors")
    got = load_file(tmp_path / "a" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(got[name], expected[name]) for name in expected)

    everything = torch.cat([tensor.reshape(-1) for tensor in expected.values()])
    ends = torch.tensor([t.numel() for t in expected.values()]).cumsum(0).tolist()
    views = {
        name: everything[end - tensor.numel() : end].view(tensor.shape)
        for (name, tensor), end in zip(expected.items(), ends, strict=True)
    }
    torch.save(views, folder / "x.pt")
    run(folder, tmp_path / "b")
    torch.save(expected, folder / "x.pt", _use_new_zipfile_serialization=False)
    events = run(folder, tmp_path / "c")
    assert "cannot be read in pieces" in events[0].message
    for name in "bc":
        got = load_file(tmp_path / name / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(got[name], expected[name]) for name in expected)


# --- interruptions --------------------------------------------------------------------------------


def after(calls):
    """Asks to stop at the given call."""
    counted = iter(range(calls))
    return lambda: next(counted, None) is None


def test_an_interrupted_conversion_goes_on(source, tmp_path):
    folder, target = source("transformer"), tmp_path / "t"
    options = {"dtype": "bfloat16", "shard_bytes": 60_000}
    with pytest.raises(KeyboardInterrupt):
        run(folder, target, **options, stop=after(40))
    assert not target.exists()
    partial = partial_folder(target)
    before = {path: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
    assert len(before) >= 2
    assert partial.name.startswith(".")
    # What a killed process leaves in the middle of a file.
    (partial / ".x.safetensors.1.part").write_bytes(b"half")
    events = run(folder, target, **options)
    assert [event.reused for event in events] == [True] * len(before) + [False] * (
        len(events) - len(before)
    )
    for path, stamp in before.items():
        assert (target / path.name).stat().st_mtime_ns == stamp
    assert not partial.exists()
    assert {path.suffix for path in target.iterdir()} == {".json", ".safetensors"}
    run(folder, tmp_path / "once", **options)
    for path in (tmp_path / "once").iterdir():
        assert path.read_bytes() == (target / path.name).read_bytes()


@pytest.mark.parametrize("change", ["source", "dtype", "damage", "truncation"])
def test_what_does_not_belong_is_written_again(source, tmp_path, change):
    folder, target = source("transformer"), tmp_path / "t"
    options = {"dtype": "bfloat16", "shard_bytes": 60_000}
    with pytest.raises(KeyboardInterrupt):
        run(folder, target, **options, stop=after(40))
    first = (
        partial_folder(target) / next(iter(sorted(partial_folder(target).glob("*-00001-*")))).name
    )
    if change == "source":
        state = load_file(folder / "x.safetensors")
        save_file({name: tensor + 1 for name, tensor in state.items()}, folder / "x.safetensors")
    if change == "dtype":
        options["dtype"] = "float16"
    if change == "damage":
        first.write_bytes(b"X" * first.stat().st_size)
    if change == "truncation":
        first.write_bytes(first.read_bytes()[:-1])
    events = run(folder, target, **options)
    assert not events[0].reused
    expected = load_transformer(folder / "x.safetensors", dtype=getattr(torch, options["dtype"]))
    assert_same(load_transformer(target), expected)


def test_a_folder_that_is_there_is_not_touched(source, tmp_path):
    (tmp_path / "t").mkdir()
    with pytest.raises(InvalidRequestError, match="exists already"):
        run(source("adapter"), tmp_path / "t")


# --- refusals -------------------------------------------------------------------------------------


def test_a_small_disk_is_refused_before_the_first_byte(source, tmp_path, monkeypatch):
    folder = source("transformer")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(10**9, 0, 100_000))
    with pytest.raises(WontFitError, match=r"0\.1 MB free, .* would take 1\.\d MB") as refused:
        run(folder, tmp_path / "t")
    assert "OSP_HOME" in refused.value.hint
    assert refused.value.exit_code == 4
    assert sorted(tmp_path.iterdir()) == [folder]


def test_done_shards_need_no_room_again(source, tmp_path, monkeypatch):
    folder, options = source("transformer"), {"dtype": "float32", "shard_bytes": 100_000}
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "t", **options, stop=after(70))
    done = sum(path.stat().st_size for path in partial_folder(tmp_path / "t").iterdir())
    whole = (folder / "x.safetensors").stat().st_size
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda _: usage(10**9, 0, whole - done + 20_000)
    )
    run(folder, tmp_path / "t", **options)


def test_incomplete_weights_are_not_converted(source, tmp_path):
    def without_one(state):
        return {name: t for name, t in state.items() if name != "blocks.0.ffn.0.weight"}

    folder = source("transformer", change=without_one)
    with pytest.raises(CheckpointError, match=r"1 missing: blocks\.0\.ffn\.net\.0\.proj\.weight"):
        run(folder, tmp_path / "t")
    assert sorted(tmp_path.iterdir()) == [folder]


# --- memory ---------------------------------------------------------------------------------------

PROBE = """
import sys, torch
from pathlib import Path
from osp_cli.models.layouts import describe
from osp_cli.models.conversion import convert

def anonymous():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024

before, peak = 0, 0
def look():
    global before, peak
    # The first time, everything is imported and nothing read.
    before = before or anonymous()
    peak = max(peak, anonymous() - before)
    return False
for number, path in enumerate(sys.argv[2:]):
    (found,) = describe(Path(path))
    list(convert(found, Path(sys.argv[1], str(number)), dtype="bfloat16", stop=look))
print(peak)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_memory_holds_a_few_megabytes_of_any_size(tmp_path):
    width = 5000
    state = {
        "fc1.weight": torch.zeros(width, width), "fc1.bias": torch.zeros(width),
        "fc2.weight": torch.zeros(100, width), "fc2.bias": torch.zeros(100),
    }  # fmt: skip
    paths = [tmp_path / "x.pt", tmp_path / "x.safetensors"]
    torch.save(state, paths[0])
    save_file(state, paths[1])
    assert min(path.stat().st_size for path in paths) > 100e6
    command = [sys.executable, "-c", PROBE, str(tmp_path), *map(str, paths)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert 0 < int(done.stdout) < 60e6
    for number in "01":
        assert (tmp_path / number / "diffusion_pytorch_model.safetensors").stat().st_size > 50e6
