"""The whole recipe at a tiny size: from a seed to a folder that the runtime loads."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osp_cli.models.mini_stream import stream_layout
from osp_cli.plan import Plan
from osp_cli.registry import find_model
from osp_cli.runtime.loading import Components, load_components
from osp_cli.training import codec, mini, mini_data, mini_decoder
from osp_cli.training.checkpoints import checkpoints_in
from osp_cli.training.mini import STAGES, load_recipe, make
from osp_cli.training.trainer import share_work

RECIPE = {
    "name": "tiny",
    "seed": 7,
    "codec": {
        "canvases": 8,
        "geometry": {
            "z_dim": 8,
            "block": 8,
            "scale_factor_spatial": 8,
            "refine_width": 8,
            "refine_blocks": 1,
        },
    },
    "conditioning": {"surround": 2},
    "pool": {"shards": 1},
    "text_encoder": {"steps": 2, "shards": 1},
    "start": {
        "shards": 1,
        "sentences": 128,
        "motion_steps": 3,
        "motion_clips": 20,
        "guide_steps": 3,
        "plain_clips": 2,
    },
    "paint": {
        "steps": 3,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "decay_from": 0.5,
        "plain_weight": 2.0,
    },
    "transformer": {
        "steps": 2,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "matrix_learning_rate": 0.01,
        "decay_from": 0.5,
        "continuation": 0.3,
        "geometry": {
            "num_attention_heads": 14,
            "attention_head_dim": 16,
            "in_channels": 8,
            "out_channels": 8,
            "text_dim": 224,
            "freq_dim": 16,
            "ffn_dim": 128,
            "num_layers": 3,
            "projection_channels": 16,
            "position_channels": 24,
            "rope_max_seq_len": 64,
        },
    },
    "decoder": {"pictures": 2, "steps": 2},
}


def coarse_clips(seed, canvases, size, frames, device, *, genuine=codec.styled_clips):
    """The genuine clips at a quarter of the size."""
    height, width = size
    return genuine(seed, canvases, (height // 4, width // 4), frames, device)


def render_few(rank, out, recipe, processes):
    """`mini._render_shards` with small pictures, also in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini_data, "BUCKET_WEIGHTS", {(64, 32): 1.0})
        few = partial(mini_data.render_shard, canvases=2, clips_per_canvas=2)
        patch.setattr(mini, "render_shard", few)
        mini._render_shards(rank, out, recipe, processes)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Small pictures, few clips and short batches; all else is the recipe's own code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "styled_clips", coarse_clips)
        patch.setattr(mini_data, "BUCKET_WEIGHTS", {(64, 32): 1.0})
        few = partial(mini.render_shard, canvases=2, clips_per_canvas=4)
        patch.setattr(mini, "render_shard", few)
        patch.setattr(mini, "pretrain", partial(mini.pretrain, batch_size=4))
        patch.setattr(mini_decoder, "_SIZE", (32, 64))
        patch.setattr(mini, "train_refinement", partial(mini.train_refinement, crop=4))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run."""
    torch.manual_seed(1234)  # a recipe that leaned on this would show
    out = tmp_path_factory.mktemp("runs") / "one"
    assert make(out, RECIPE) == out / "osp-mini"
    return out


def last_checkpoint(run):
    return checkpoints_in(run)[-1] / "state.safetensors"


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_folder_is_complete_and_nothing_is_half_made(made):
    names = {path.name for path in made.iterdir()}
    assert names == {
        *("transform", "pool", "text_encoder", "start", "tokens", "painting", "painted"),
        *("transformer", "vae", "osp-mini"),
    }
    spec = find_model("osp-mini")
    assert {path.name for path in (made / "osp-mini").iterdir()} == {*spec.parts, "training.json"}
    assert not list(made.rglob("*.part"))


def test_the_runtime_loads_what_was_made(made):
    spec = replace(find_model("osp-mini"), scale_factor_spatial=8, latent_channels=8)
    plan = Plan(
        model="tiny", device="cpu", dtype="float32", width=64, height=32, num_frames=5,
        num_latent_frames=2, num_tokens=16, seed=0, steps=1, guidance=1.0, weights_bytes=0,
        expected_peak_bytes=0, sampler="euler", cache="none", disk_bytes=0, operations=None,
    )  # fmt: skip
    *loaded, components = load_components(spec, plan, made / "osp-mini")
    assert [event.component for event in loaded] == ["transformer", "vae", "conditioner"]
    assert isinstance(components, Components)
    # What ships is the moving average, in bf16, of what the trainer holds.
    average = load_file(last_checkpoint(made / "transformer"))
    trainer, objective = mini._trainer(made, RECIPE)
    trainer.use_average()
    parts = {
        "transformer": components.transformer,
        "adapter": components.conditioner.adapter,
        "image_adapter": components.conditioner.image_adapter,
    }
    held = {
        "transformer": objective.model,
        "adapter": objective.conditioner.adapter,
        "image_adapter": objective.conditioner.image_adapter,
    }
    for name, module in parts.items():
        for key, value in module.state_dict().items():
            expected = held[name].state_dict()[key].bfloat16().float()
            assert torch.equal(value.float(), expected), (name, key)
            if f"{name}.{key}" in trainer.parameters:
                stored = average[f"average/{name}.{key}"].bfloat16().float()
                assert torch.equal(value.float(), stored), (name, key)
    with torch.no_grad():
        latents = torch.randn(1, 8, 1, 4, 8)
        context = components.conditioner.encode(["pan left"], image_latents=latents)
        velocity = components.transformer(
            torch.randn(1, 8, 2, 4, 8), torch.tensor([500.0]), context
        ).sample
        video = components.vae.decode(velocity).sample
    assert velocity.isfinite().all()
    assert video.shape == (1, 3, 5, 32, 64)


def test_the_card_says_what_the_weights_are_made_of(made):
    card = json.loads((made / "osp-mini" / "training.json").read_text())
    assert card["recipe"] == RECIPE
    assert (card["steps"], card["clips"]) == (2, 8)
    assert set(card["start"]) == {
        *("sentences", "displacement_cells", "missing", "cutoffs", "painting_loss"),
    }
    first, second = card["start"]["missing"]  # after each block of lookups
    assert 0 < second <= first < 1
    assert set(card["text_encoder_accuracy"]) == {"camera", "scene", "speed", "style"}
    lines = (made / "transformer" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert card["last_losses_mean"] == pytest.approx(sum(losses) / 2, abs=1e-3)
    assert len(card["parameters_sha256"]) == 64


def test_the_pool_is_encoded_by_the_codec_that_ships(made):
    transform, shipped = (
        mini.AutoencoderLinear.from_pretrained(made / name).float()
        for name in ("transform", "osp-mini/vae")
    )
    for name in ("first_basis", "first_mean", "next_basis", "next_mean"):
        assert torch.equal(getattr(transform, name), getattr(shipped, name)), name
    assert transform.config.latents_std == shipped.config.latents_std
    # The refinement has moved in between.
    assert shipped.refinement.exit.weight.abs().max() > 0
    assert transform.refinement.exit.weight.abs().max() == 0


def test_what_ships_does_not_know_where_it_was_made(made, tmp_path):
    for name, content in contents(made / "osp-mini").items():
        assert str(made.parent).encode() not in content, name
    # Not even when the codec came from elsewhere, and says so.
    run = tmp_path / "run"
    shutil.copytree(made, run)
    config = json.loads((run / "vae" / "config.json").read_text())
    (run / "vae" / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/me"}))
    make(run, RECIPE)
    assert contents(run / "osp-mini") == contents(made / "osp-mini")


def test_the_same_seed_makes_the_same_bytes(made, tmp_path):
    torch.manual_seed(4321)
    make(tmp_path / "two", RECIPE)
    one, two = contents(made / "osp-mini"), contents(tmp_path / "two" / "osp-mini")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_finished_stages_are_not_run_again(made, monkeypatch):
    def refused(*_args, **_kwargs):
        raise AssertionError("this stage was finished")

    before = contents(made)
    for name in (
        *("fit_transform", "train_refinement", "render_shard", "pretrain", "fit_motion"),
        *("collect_tokens", "painting_objective", "made_latents"),
    ):
        monkeypatch.setattr(mini, name, refused)
    monkeypatch.setattr(mini.Pool, "load", refused)
    make(made, RECIPE)
    assert contents(made) == before


def test_a_decoder_stopped_in_its_training_goes_on(made, tmp_path, monkeypatch):
    def stopped(*_args, **_options):
        raise KeyboardInterrupt

    run = tmp_path / "run"
    shutil.copytree(made, run, ignore=shutil.ignore_patterns("vae", "osp-mini"))
    with monkeypatch.context() as patch:
        patch.setattr(mini, "train_refinement", stopped)
        with pytest.raises(KeyboardInterrupt):
            make(run, RECIPE)
    assert not [name for name in ("vae", "vae.part", "osp-mini") if (run / name).exists()]
    torch.manual_seed(99)
    make(run, RECIPE, until="decoder")
    assert contents(run / "vae") == contents(made / "vae")


def test_painting_changes_the_painting_layers_and_nothing_else(made):
    folder = "transformer/diffusion_pytorch_model.safetensors"
    start, painted = (load_file(made / name / folder) for name in ("start", "painted"))
    average = load_file(last_checkpoint(made / "painting"))
    closed = stream_layout(mini._new_modules(made, RECIPE)[0]).writable == 0
    for key, value in painted.items():
        painting = re.fullmatch(r"blocks\.([12])\.ffn\.(.+)", key)
        if painting:
            own = f"average/painter.layers.{int(painting[1]) - 1}.{painting[2]}"
            assert torch.equal(value, average[own]), key
            if painting[2].startswith("net.2."):
                # Nothing that later lookups go by.
                assert torch.equal(value[closed], start[key][closed]), key
        else:
            assert torch.equal(value, start[key]), key
    moved = [key for key, value in painted.items() if not torch.equal(value, start[key])]
    assert moved
    for name in ("adapter", "image_adapter"):
        one, other = (contents(made / stage / name) for stage in ("start", "painted"))
        assert one == other


def test_a_painting_that_was_stopped_goes_on(made, tmp_path, monkeypatch):
    run = tmp_path / "run"
    for name in ("transform", "pool", "text_encoder", "start"):
        shutil.copytree(made / name, run / name)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mini, "collect_tokens", stopped)
        with pytest.raises(KeyboardInterrupt):
            make(run, RECIPE, until="paint")
    assert not (run / "painted").exists()
    make(run, RECIPE, until="paint")
    assert contents(run / "painted") == contents(made / "painted")


def test_two_processes_render_what_one_does(made, tmp_path):
    recipe = {**RECIPE, "pool": {"shards": 3}}
    for processes in (1, 2):
        run = tmp_path / str(processes)
        (run / "pool").mkdir(parents=True)
        shutil.copytree(made / "transform", run / "transform")
        share_work(processes, render_few, run, recipe, processes)
    one, two = (contents(tmp_path / name / "pool") for name in ("1", "2"))
    assert len(one) == 3
    assert one == two


def test_a_missing_shard_is_rendered_again(made, tmp_path):
    folder = tmp_path / "run"
    (folder / "transform").mkdir(parents=True)
    for path in (made / "transform").iterdir():
        os.link(path, folder / "transform" / path.name)
    make(folder, {**RECIPE, "pool": {"shards": 2}}, until="pool")
    one, other = (folder / "pool" / f"shard-0000{k}.safetensors" for k in (0, 1))
    assert one.read_bytes() == (made / "pool" / one.name).read_bytes()
    expected = other.read_bytes()
    assert expected != one.read_bytes()
    other.unlink()
    make(folder, {**RECIPE, "pool": {"shards": 2}}, until="pool")
    assert other.read_bytes() == expected


@pytest.mark.parametrize("until", STAGES[:1])
def test_a_run_may_end_early(tmp_path, until, monkeypatch):
    called = []
    for stage in (
        *("make_codec", "make_pool", "make_text_encoder"),
        *("make_start", "make_painting", "make_transformer", "make_decoder", "export"),
    ):
        monkeypatch.setattr(mini, stage, lambda out, recipe, *_, stage=stage: called.append(stage))
    make(tmp_path, RECIPE, until=until)
    assert called == ["make_codec"]
    make(tmp_path, RECIPE)
    assert len(called) == 1 + len(STAGES)


def test_an_unknown_stage_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="codek"):
        make(tmp_path / "run", RECIPE, until="codek")
    assert not (tmp_path / "run").exists()
    argv = ["mini", "--out", str(tmp_path / "run"), "--until", "codek"]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as stopped:
        mini.main()
    assert stopped.value.code == 2
    assert "codek" in capsys.readouterr().err


def test_the_shipped_recipe_has_the_keys_that_are_read():
    recipe = load_recipe()
    assert recipe["name"] == "osp-mini"
    for stage in RECIPE.keys() - {"name", "seed"}:
        assert recipe[stage].keys() >= RECIPE[stage].keys() - {"geometry"}
    assert load_recipe(Path("presets/training/osp-mini.toml").resolve()) == recipe
