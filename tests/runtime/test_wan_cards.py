"""The cards of plain Wan through the command itself: clips, interruptions, previews, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from osp_cli import registry
from osp_cli.cli.app import main
from osp_cli.config import Layer
from osp_cli.errors import CheckpointError, WeightsMissingError
from osp_cli.media.recipes import read_recipe
from osp_cli.media.video import probe_video, read_video
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.pipelines.flash_i2v import Sampling
from osp_cli.pipelines.wan import WanPipeline
from osp_cli.pipelines.wan_i2v import WanImageToVideoPipeline
from osp_cli.runtime.devices import this_machine
from osp_cli.runtime.loading import Components, load_components
from osp_cli.runtime.models import Models
from osp_cli.runtime.planner import make_plan
from osp_cli.settings import Source, settle_generate

I2V = ("generate", "cat.png", "pan left", "-m", "tiny-i2v")
T2V = ("generate", "--text", "pan left", "-m", "tiny-t2v")
DIALS = ("--seed", "5", "--device", "cpu", "-o", "clip.mp4")


@dataclass(frozen=True)
class Outcome:
    """What one command line left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def osp(tiny_wan_cards, picture, capsys):
    def run(*args):
        code = main(list(args))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def struck(monkeypatch):
    """Ctrl-C during the second step of the next clip."""
    steps = Sampling.steps

    def strike(sampling):
        for step in steps(sampling):
            if step.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    monkeypatch.setattr(Sampling, "steps", strike)
    return lambda: monkeypatch.setattr(Sampling, "steps", steps)


# --- clips ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [I2V, T2V], ids=["i2v", "t2v"])
def test_a_clip_is_made_and_made_again(osp, away, command):
    outcome = osp(*command, *DIALS)
    assert (outcome.code, outcome.out) == (0, "clip.mp4\n"), outcome.err
    info = probe_video("clip.mp4")
    assert (info.width, info.height, info.num_frames) == (64, 48, 9)
    assert read_video("clip.mp4").std() > 1
    recipe = read_recipe("clip.mp4")
    assert recipe["cutoff"] is None
    assert recipe["model"] == command[-1]
    weights = {name.split("/")[0] for name in recipe["weights_sha256"]}
    assert ("image_encoder" in weights) == (command is I2V)
    # Out of its own recipe, which names no cutoff, come the same bytes.
    assert osp("generate", "--from", "clip.mp4", "-o", "again.mp4", "--device", "cpu").code == 0
    assert Path("again.mp4").read_bytes() == Path("clip.mp4").read_bytes()


@pytest.mark.parametrize("command", [I2V, T2V], ids=["i2v", "t2v"])
@pytest.mark.parametrize("dials", [(), ("--cache", "magcache", "--cache-start", "1")], ids=str)
def test_an_interrupted_clip_goes_on_to_the_same_bytes(osp, away, struck, command, dials):
    # The signal is heard by the program alone.
    outcome = osp(*command, *DIALS, *dials)
    assert outcome.code == 130
    assert "interrupted after step 2 of 3" in outcome.err
    assert {path.name for path in away.iterdir()} == {"cat.png", "clip.latents.safetensors"}
    struck()
    outcome = osp(*command, *DIALS, *dials)
    assert (outcome.code, outcome.out) == (0, "clip.mp4\n"), outcome.err
    assert "going on from clip.latents.safetensors" in outcome.err
    assert not Path("clip.latents.safetensors").exists()
    whole = (*command, *DIALS[:-1], "whole.mp4", *dials)
    assert osp(*whole).code == 0
    assert Path("clip.mp4").read_bytes() == Path("whole.mp4").read_bytes()


def test_the_picture_leads_the_clip(osp, away):
    from PIL import Image

    assert osp(*I2V, *DIALS).code == 0
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save("cat.png")
    assert osp(*I2V, *DIALS[:-1], "other.mp4").code == 0
    assert (read_video("clip.mp4") != read_video("other.mp4")).mean() > 0.3


def test_seeds_make_a_sheet_and_one_of_it_is_picked(osp, away):
    outcome = osp(*I2V, "--preview", "contact", "--seed", "1-3", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1].endswith(".contact.png")
    outcome = osp(*I2V, "--pick", "2", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert probe_video(outcome.out.strip()).num_frames == 9


def test_previews_and_json_lines(osp):
    outcome = osp(*I2V, *DIALS, "--preview", "latent", "--json", "--cache", "teacache:9")
    assert outcome.code == 0, outcome.err
    events = [json.loads(line) for line in outcome.out.splitlines()]
    kinds = [event["type"] for event in events]
    assert kinds.count("step") == 3
    assert "preview" in kinds
    assert [event["component"] for event in events if event["type"] == "load"] == [
        *("transformer", "vae", "conditioner")
    ]
    [plan] = [event for event in events if event["type"] == "plan"]
    assert (plan["model"], plan["sampler"]) == ("tiny-i2v", "unipc")


def test_styles_mix(osp):
    outcome = osp(*T2V, "--style", "ghibli:0.3+oil:0.5", *DIALS)
    assert outcome.code == 0, outcome.err
    prompts = read_recipe("clip.mp4")["full_prompt"]
    assert [part["weight"] for part in prompts] == pytest.approx([0.3, 0.5, 0.2])


# --- refusals ---------------------------------------------------------------------------------

HEAVY = "osp_cli.runtime.runner"


@pytest.mark.parametrize(
    ("args", "words", "hint"),
    [
        ((*I2V, "--cutoff", "0.1"), "tiny-i2v has none", "flashi2v-1.3b"),
        ((*T2V, "--cutoff", "0.1:0.5"), "models with latent shifting", "leave it out"),
        (("generate", "cat.png", "x", "-m", "tiny-t2v"), "cannot be shown a picture", "--text"),
        (("generate", "cat.png", "x", "-m", "tiny-t2v"), "a text alone", "wan2.1-i2v-14b-480p"),
        (("generate", "-m", "tiny-t2v"), "there is none", "--text"),
        (("generate", "--text", "x", "-m", "tiny-i2v"), "give it a picture", "wan2.1-t2v-14b"),
        (("generate", "cat.png", "-m", "qwen2.5-vl-7b"), "makes no videos", "osp models"),
        (("generate", "cat.png", "-m", "helios-14b-distilled"), "osp extend", "osp models"),
    ],
)
def test_what_makes_no_sense_is_refused(osp, away, args, words, hint):
    outcome = osp(*args)
    assert (outcome.code, outcome.out) == (2, "")
    error, *rest = outcome.err.splitlines()
    assert words in error
    assert hint in "\n".join(rest)
    assert {path.name for path in away.iterdir()} == {"cat.png"}


def test_a_stored_cutoff_is_for_other_models(osp, monkeypatch):
    Path("osp.toml").write_text("cutoff = 0.4\n")
    assert osp(*I2V, *DIALS, "--dry-run").code == 0
    shown = osp(*I2V, *DIALS, "--print-config").out
    assert "cutoff" not in shown
    other = osp("generate", "cat.png", "--print-config").out
    assert "cutoff = 0.4" in other


def test_a_clip_of_a_shifting_model_is_made_again_by_one_without(osp):
    """The recipe's cutoff was not typed: it is left behind with the model that it was for."""
    recipe = {
        "command": "generate", "version": "1", "model": "osp-mini", "image": "cat.png",
        "prompt": "pan left", "style": None, "negative_prompt": "", "width": 64, "height": 48,
        "num_frames": 9, "fps": 16, "num_inference_steps": 2, "guidance_scale": 1.0,
        "shift": 3.0, "sampler": "euler", "cache": "none", "cache_start": 5,
        "cutoff": [0.2, 0.2], "seed": 1, "dtype": "float32",
    }  # fmt: skip
    Path("old.mp4.json").write_text(json.dumps(recipe))
    outcome = osp("generate", "--from", "old.mp4.json", "-m", "tiny-i2v", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    outcome = osp("generate", "--from", "old.mp4.json", "-m", "tiny-i2v", "--cutoff", "0.2")
    assert outcome.code == 2


def test_the_doctor_plans_for_a_model_of_texts(tiny_wan_cards):
    from osp_cli.runtime.diagnosis import default_plan

    for name in tiny_wan_cards:
        plan, _ = default_plan([Layer("environment", {"model": name, "device": "cpu"})])
        assert plan.model == name


@pytest.mark.parametrize(
    "name", ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p", "flashi2v-1.3b", "uniworld-osp2-14b"]
)
def test_what_is_not_installed_can_be_fetched(osp, tmp_path, monkeypatch, name):
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "empty"))
    args = ("--text", "x") if "t2v" in name else ("cat.png", "x")
    outcome = osp("generate", *args, "-m", name)
    assert outcome.code == 3
    assert f"osp download {name}" in outcome.err
    for words in ("--local PATH", "not published yet: transformer, adapter"):
        assert (words in outcome.err) == (name == "uniworld-osp2-14b")


# --- what the cards say of the true models --------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in registry.model_specs() if name.startswith(("wan", "helios"))]
)
def test_the_cards_count_the_numbers_of_the_true_models(name):
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLWan, HeliosTransformer3DModel, WanTransformer3DModel
    from transformers import CLIPVisionConfig, CLIPVisionModel

    told = registry.find_model(name).architecture
    sizes = {
        "num_layers": told.layers,
        "num_attention_heads": told.heads,
        "attention_head_dim": told.width // told.heads,
        "ffn_dim": told.ffn,
    }
    with init_empty_weights():
        if name.startswith("helios"):
            parts = {"transformer": HeliosTransformer3DModel(**sizes)}
        elif "i2v" in name:
            images = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": told.width}
            # ViT-H/14.
            clip = CLIPVisionConfig(
                hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
                num_attention_heads=16, image_size=224, patch_size=14,
            )  # fmt: skip
            parts = {
                "transformer": WanTransformer3DModel(**sizes, **images),
                "image_encoder": CLIPVisionModel(clip),
            }
        else:
            parts = {"transformer": WanTransformer3DModel(**sizes)}
        parts["vae"] = AutoencoderKLWan()
    for part, model in parts.items():
        assert sum(p.numel() for p in model.parameters()) == told.parameters[part], part


# --- loading ----------------------------------------------------------------------------------


@pytest.fixture
def own_home(tiny_wan_home, tmp_path, monkeypatch, tiny_wan_cards):
    """A copy of the weights that a test may damage."""
    shutil.copytree(tiny_wan_home, tmp_path / "own")
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "own"))
    return tmp_path / "own" / "models"


def settled(spec, picture=None):
    source = Source(text="x") if spec.text_to_video else Source(image=picture or Path("cat.png"))
    return settle_generate(source, model=spec.name).request


def load(spec):
    return list(load_components(spec, plan_of(spec), spec.weights_dir()))


def plan_of(spec):
    return make_plan(
        settled(spec),
        spec,
        size=spec.default_size,
        machine=this_machine(torch.device("cpu")),
        weights=spec.weights_dir(),
    )


@pytest.mark.parametrize(
    ("name", "pipeline"), [("tiny-t2v", WanPipeline), ("tiny-i2v", WanImageToVideoPipeline)]
)
def test_each_card_gets_its_pipeline_in_its_precision(tiny_wan_cards, name, pipeline):
    spec = tiny_wan_cards[name]
    *_, components = load(spec)
    assert isinstance(components, Components)
    assert components.transformer.dtype == torch.bfloat16
    # As in diffusers, these lose too much otherwise.
    assert components.transformer.scale_shift_table.dtype == torch.float32
    assert components.vae.dtype == torch.float32
    assert not components.transformer.training
    if name == "tiny-i2v":
        assert components.conditioner.image_encoder.dtype == torch.float32
        assert components.conditioner.texts.text_encoder.dtype == torch.bfloat16
    models = Models()
    folder, plan = spec.weights_dir(), plan_of(spec)
    assert len(list(models.load(spec, plan, folder))) == 3
    assert type(models.pipeline) is pipeline
    assert list(models.load(spec, plan, folder)) == []


def edit(folder, change):
    [path] = (folder).glob("*.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_weights_that_nobody_uses_may_lie_beside(own_home, tiny_wan_cards):
    def add(tensors):
        tensors["blocks.0.attn2.norm_added_q.weight"] = torch.ones(24)

    edit(own_home / "tiny-i2v" / "transformer", add)
    *_, components = load(tiny_wan_cards["tiny-i2v"])
    assert components.transformer.config.in_channels == 36


@pytest.mark.parametrize("key", ["blocks.1.attn2.add_k_proj.weight", "proj_out.bias"])
def test_a_missing_weight_is_named(own_home, tiny_wan_cards, key):
    edit(own_home / "tiny-i2v" / "transformer", lambda tensors: tensors.pop(key))
    with pytest.raises(CheckpointError, match=f"1 missing: {key}"):
        load(tiny_wan_cards["tiny-i2v"])


def test_a_config_without_the_image_s_sizes_is_read_off_the_weights(own_home, tiny_wan_cards):
    path = own_home / "tiny-i2v" / "transformer" / "config.json"
    config = json.loads(path.read_text())
    for name in ("image_dim", "added_kv_proj_dim", "in_channels"):
        del config[name]
    path.write_text(json.dumps(config))
    *_, components = load(tiny_wan_cards["tiny-i2v"])
    assert (components.transformer.config.image_dim, components.transformer.config.in_channels) == (
        *(16, 36),
    )


def test_flashi2v_weights_are_no_plain_wan(own_home, tiny_wan_cards):
    flash = FlashI2VTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=16, ffn_dim=32,
        num_layers=2, rope_max_seq_len=64,
    )  # fmt: skip
    folder = own_home / "tiny-t2v" / "transformer"
    shutil.rmtree(folder)
    flash.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"8 unexpected: .*fourier_embedding"):
        load(tiny_wan_cards["tiny-t2v"])


def test_weights_of_the_other_kind_are_refused(own_home, tiny_wan_cards):
    for one, other in (("tiny-t2v", "tiny-i2v"), ("tiny-i2v", "tiny-t2v")):
        wrong = replace(tiny_wan_cards[one], weights=other, parts=("transformer",))
        with pytest.raises(CheckpointError, match=r"takes \d+ channels, the card of tiny"):
            list(load(wrong))


def test_embeds_of_another_width_are_refused(own_home, tiny_wan_cards):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder = own_home / "tiny-i2v" / "image_encoder"
    shutil.rmtree(folder)
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    CLIPVisionModel(config).save_pretrained(folder)
    with pytest.raises(CheckpointError, match="width 24, the transformer there takes 16"):
        load(tiny_wan_cards["tiny-i2v"])


def test_a_missing_weight_of_the_image_encoder_is_named(own_home, tiny_wan_cards):
    def drop(tensors):
        [name] = [name for name in tensors if name.endswith("layers.0.mlp.fc1.weight")]
        del tensors[name]

    edit(own_home / "tiny-i2v" / "image_encoder", drop)
    with pytest.raises(CheckpointError, match=r"CLIPVisionModel: 1 missing: .*layers\.0\.mlp\.fc1"):
        load(tiny_wan_cards["tiny-i2v"])


def test_the_image_processor_must_be_there(own_home, tiny_wan_cards):
    folder = own_home / "tiny-i2v"
    before = load(tiny_wan_cards["tiny-i2v"])[-1].conditioner.processor
    assert before.do_center_crop is False
    settings = folder / "image_processor" / "preprocessor_config.json"
    shutil.copy(settings, folder / "image_encoder")
    settings.unlink()
    assert load(tiny_wan_cards["tiny-i2v"])[-1].conditioner.processor.size == before.size
    (folder / "image_encoder" / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsMissingError, match="no image processor"):
        load(tiny_wan_cards["tiny-i2v"])
    shutil.rmtree(folder / "image_processor")
    assert registry.find_model("tiny-i2v").find_weights() is None


def test_a_transformer_in_gguf_is_loaded(own_home, tiny_wan_cards):
    gguf = pytest.importorskip("gguf")
    before = load(tiny_wan_cards["tiny-t2v"])[-1].transformer
    folder = own_home / "tiny-t2v" / "transformer"
    [path] = folder.glob("*.safetensors")
    writer = gguf.GGUFWriter(folder / "model.gguf", "wan")
    for name, tensor in load_file(path).items():
        writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.unlink()
    transformer = load(tiny_wan_cards["tiny-t2v"])[-1].transformer
    stored = dict(before.named_parameters())
    for name, parameter in transformer.named_parameters():
        torch.testing.assert_close(parameter.float(), stored[name].float(), atol=1e-2, rtol=1e-2)
