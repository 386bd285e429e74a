"""A style of one's own with the model that ships: clips go in, a style that works comes out."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from train_runs import (
    QUICK,
    STEPS,
    Outcome,
    contents,
    make_clips,
    metadata,
    metrics,
    osp,
    tensors,
    train,
)

from osp_cli.cli.schema import schema_path
from osp_cli.media.video import probe_video, read_video

CLIP = ("--size", "64x64", "--frames", "5", "--steps", "2", "--seed", "3", "--device", "cpu", "-q")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with clips, a photo and a home of its own, before anything is trained."""
    folder = tmp_path_factory.mktemp("world")
    make_clips(folder / "clips")
    Image.radial_gradient("L").resize((96, 96)).convert("RGB").save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def trained(world):
    """One whole run with samples, and what clips of before look like."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        patch.setenv("OSP_HOME", str(world / "home"))
        assert osp("generate", "photo.png", "pan left", *CLIP, "-o", "before.mp4").code == 0
        data = contents(world / "clips")
        outcome = train("--trigger", "stained glass", "--sample-every", "3", "--title", "Glass!")
        assert outcome.code == 0, outcome.err
        assert contents(world / "clips") == data
        return outcome


@pytest.fixture(autouse=True)
def away(world, tmp_path, monkeypatch):
    """Every test has a home and a folder of its own; encoded clips are shared."""
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "cache").mkdir(parents=True)
    kept = world / "home" / "cache" / "clips"
    kept.mkdir(parents=True, exist_ok=True)
    (tmp_path / "home" / "cache" / "clips").symlink_to(kept)
    (tmp_path / "clips").symlink_to(world / "clips")
    (tmp_path / "photo.png").symlink_to(world / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def there(trained, world, monkeypatch):
    """In the folder of the trained run, with its home."""
    monkeypatch.setenv("OSP_HOME", str(world / "home"))
    monkeypatch.chdir(world)
    return world


@pytest.fixture
def run(trained, world, away):
    """A copy of the trained run, with its home, to be changed."""
    shutil.copytree(world / "glass", away / "glass")
    shutil.copytree(world / "home" / "loras", away / "home" / "loras")
    return away / "glass"


@pytest.fixture
def nothing_loaded(monkeypatch):
    """Fails where a model is loaded."""
    from osp_cli.runtime import train_parts

    def loaded(*_args, **_kwargs):
        pytest.fail("weights were loaded")

    monkeypatch.setattr(train_parts, "load_parts", loaded)


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refused(outcome: Outcome, code: int, *words: str) -> None:
    """One sentence, and perhaps a hint; the right code."""
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    said = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, outcome.err
    assert not said[0].endswith(".")
    for word in words:
        assert word in outcome.err


# What a run says and leaves


def test_stdout_is_the_adapter_and_stderr_the_story(trained):
    assert trained.out == "glass/glass.safetensors\n"
    story = trained.err
    for part in (
        "3 clips, 3 can be used",
        "osp-mini: LoRA of rank 32, alpha 32 on paint",
        f"{STEPS} steps of 2 from 3 samples",
        "encode 3/3",
        "sample before training: glass/samples/step-000000-1.mp4",
        f"step {STEPS}/{STEPS}, loss ",
        "use it with --style or --lora glass",
        "done in ",
    ):
        assert part in story
    places = [story.index(word) for word in ("can be used", "encode 3/3", "step 6/6", "done in")]
    assert places == sorted(places)


def test_the_files_of_a_run(there):
    run = there / "glass"
    # Three checkpoints are kept, samples of three prompts made before, half way and at the end.
    samples = {
        f"samples/step-{step:06d}-{number}.{kind}"
        for step in (0, 3, 6)
        for number in (1, 2, 3)
        for kind in ("mp4", "jpg")
    }
    checkpoints = {
        f"checkpoints/step-{step:06d}/state.{kind}"
        for step in (2, 4, 6)
        for kind in ("json", "safetensors")
    }
    others = {"glass.safetensors", "metrics.jsonl", "dataset_report.json", "index.html"}
    assert names(run) == samples | checkpoints | others
    assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in metrics(run))
    report = json.loads((run / "dataset_report.json").read_text())
    assert (report["num_windows"], report["buckets"]) == (3, {"64x64x5": 3})
    with Image.open(run / "samples" / "step-000006-1.jpg") as strip:
        # Five pictures of a square side by side.
        assert strip.width == 5 * strip.height
    assert probe_video(run / "samples" / "step-000006-1.mp4").num_frames == 5


def test_the_page_needs_nothing_else(there):
    page = (there / "glass" / "index.html").read_text()
    sources = re.findall(r'(?:src|href|poster)="([^"]{0,40})', page)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    without_pictures = re.sub(r'"data:[^"]*"', "", page)
    assert not re.search(r"https?://|file:|url\(|@import|<script|<link", without_pictures)
    for words in ("stained glass", "Before training", f"After step {STEPS}", "<svg", "<video"):
        assert words in page


def test_what_the_adapter_tells_of_itself(there):
    told = metadata(there / "glass" / "glass.safetensors")
    assert told["osp.trigger"] == "stained glass"
    assert told["osp.base_id"] == "osp-mini"
    assert told["ss_network_dim"] == "32"
    # Neither where the clips lie nor what they show.
    assert not any("clips" in text or "it moves" in text for text in told.values())


# The style


def test_the_style_is_known_and_does_something(there):
    listed = osp("styles")
    assert "glass" in listed.out
    for flags, name in (
        (("--style", "glass"), "styled.mp4"),
        (("--lora", "glass"), "weights.mp4"),
        (("--lora", "glass:0"), "none.mp4"),
    ):
        outcome = osp("generate", "photo.png", "pan left", *flags, *CLIP, "-o", name)
        assert (outcome.code, outcome.out) == (0, f"{name}\n"), outcome.err
    assert osp("generate", "photo.png", "pan left", *CLIP, "-o", "after.mp4").code == 0
    clips = {
        name: (there / f"{name}.mp4").read_bytes()
        for name in ("before", "after", "styled", "weights")
    }
    # Without it everything is as it was, bit for bit.
    assert clips["after"] == clips["before"]
    assert clips["styled"] != clips["before"]
    # Not by the words alone.
    assert clips["weights"] != clips["before"]


# Again, and further


def test_a_finished_run_stays_as_it_is(run, away):
    before = {name: data for name, (data, _) in contents(run).items()}
    installed = (away / "home" / "loras" / "glass.safetensors").read_bytes()
    outcome = train("--trigger", "stained glass", "--sample-every", "3", "--title", "Glass!")
    assert (outcome.code, outcome.out) == (0, "glass/glass.safetensors\n"), outcome.err
    assert f"the run is finished, after step {STEPS}" in outcome.err
    assert "--max-steps" in outcome.err
    assert {name: data for name, (data, _) in contents(run).items()} == before
    assert (away / "home" / "loras" / "glass.safetensors").read_bytes() == installed


def test_more_steps_go_on_as_if_never_stopped(run, away):
    outcome = train("--trigger", "stained glass", "--max-steps", "9")
    assert outcome.code == 0, outcome.err
    assert "going on after step 6 of 9" in outcome.err
    assert [line["step"] for line in metrics(run)] == list(range(1, 10))
    whole = train("--trigger", "stained glass", "--max-steps", "9", name="whole")
    assert whole.code == 0
    assert metrics(run) == metrics(away / "whole")
    former, straight = (tensors(away / name / f"{name}.safetensors") for name in ("glass", "whole"))
    assert former.keys() == straight.keys()
    assert all(np.array_equal(former[name], straight[name]) for name in straight)


def test_samples_do_not_disturb_the_run(run, away):
    without = train("--trigger", "stained glass", name="plain")
    assert without.code == 0
    assert not (away / "plain" / "samples").exists()
    assert metrics(away / "plain") == metrics(run)
    plain, sampled = (
        tensors(away / "plain" / "plain.safetensors"),
        tensors(run / "glass.safetensors"),
    )
    assert plain.keys() == sampled.keys()
    assert all(np.array_equal(plain[name], sampled[name]) for name in plain)


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (("--lr", "0.02"), "learning_rate"),
        (("--rank", "16"), "rank"),
        (("--seed", "7"), "seed"),
        (("--trigger", "cut paper"), "trigger"),
        (("--caption-drop", "0.5"), "caption_drop"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_only(run, flags, key):
    before = contents(run)
    outcome = train("--trigger", "stained glass", "--max-steps", "9", *flags)
    refused(outcome, 2, "step-000006", key)
    assert {k: v for k, v in contents(run).items() if "checkpoints" in k} == {
        k: v for k, v in before.items() if "checkpoints" in k
    }


def test_never_begins_anew_if_it_may(run):
    refused(
        train("--trigger", "stained glass", "--resume", "never"),
        2,
        "--resume never",
        "-y replaces it",
    )
    outcome = train("--trigger", "new", "--resume", "never", "--max-steps", "3", "-y")
    assert outcome.code == 0, outcome.err
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]
    assert metadata(run / "glass.safetensors")["osp.trigger"] == "new"
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert kept == {"step-000002", "step-000003"}


def test_a_named_checkpoint(run):
    before = (run / "glass.safetensors").read_bytes()
    outcome = train("--trigger", "stained glass", "--title", "Glass!", "--resume",
                    "glass/checkpoints/step-000004")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "going on after step 4 of 6" in outcome.err
    assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))
    assert (run / "glass.safetensors").read_bytes() == before
    refused(train("--resume", "glass/checkpoints/step-000005"), 1, "no checkpoint")


# Refusals


def test_a_name_that_is_taken(run, away, nothing_loaded):
    (run / "glass.safetensors").unlink()
    refused(train(name="else/glass"), 2, "'glass' is installed already", "-y")
    assert not (away / "else").exists()


@pytest.mark.parametrize("place", ["clips", "clips/glass", "clips/deep/er/glass"])
def test_nothing_is_written_among_the_clips(place, world):
    before = contents(world / "clips")
    refused(train(name=place), 2, "inside the data")
    assert contents(world / "clips") == before


def test_nothing_is_kept_among_the_clips_either(world):
    before = contents(world / "clips")
    refused(train("--cache-dir", "clips/cache"), 2, "--cache-dir clips/cache lies inside the data")
    assert contents(world / "clips") == before


def test_who_only_looks_may_stand_among_the_clips(world, monkeypatch):
    before = contents(world / "clips")
    monkeypatch.chdir(world / "clips")
    looked = osp("train-lora", ".", "--validate-only", "--size", "64x64", "--frames", "5")
    assert looked.code == 0, looked.err
    assert osp("train-lora", ".", *QUICK, "--cache-only").code == 0
    refused(train(data="."), 2, "--out glass lies inside the data")
    assert contents(world / "clips") == before


def test_a_folder_of_other_things(away):
    (away / "glass").mkdir()
    (away / "glass" / "thesis.txt").write_text("mine")
    refused(train(), 2, "no training run")
    assert names(away / "glass") == {"thesis.txt"}


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--mode", "t2v"), 2, ("osp-mini", "--mode flash")),
        (("--model", "osp-mimi"), 2, ("osp-mimi", "osp-mini")),
        (("--model", "flashi2v-1.3b", "--allow-upscale"), 3, ("osp download flashi2v-1.3b",)),
        (("--device", "cuda"), 2, ("cuda",)),
        (("--size", "60x64"), 2, ("--size", "60x64")),
        (("--size", "1000000x1000000"), 2, ("too-small",)),
        (("--size", "1000000x1000000", "--allow-upscale"), 4, ("memory",)),
        (("--frames", "4001"), 2, ("--frames",)),
        (("--rank", "0"), 2, ("--rank must be 1 to",)),
        (("--lr", "nan"), 2, ("--lr",)),
        (("--targets", "attention_of_nobody"), 2, ("attention_of_nobody",)),
        (("--sample-image", "none.png", "--sample-every", "2"), 2, ("none.png",)),
        (("--quant", "fp8"), 2, ("osp-mini",)),
        (("--gpus", "2", "--context-parallel", "3"), 2, ("--context-parallel",)),
        (("--resume", "nowhere"), 1, ("nowhere",)),
        (("--config", "none.toml"), 2, ("none.toml",)),
        (("--quiet", "--verbose"), 2, ("--quiet and --verbose",)),
    ],
)
def test_one_clear_sentence(away, flags, code, words):
    refused(train(*flags), code, *words)
    assert not (away / "glass" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), ("the data are missing",)),
        (("clips",), ("no name", "--out")),
        (("nowhere", "-o", "x"), ("nowhere",)),
        (("photo.png", "-o", "x"), ("photo.png",)),
        (("clips", "-o", ".."), ("no name",)),
        (("clips", "-o", "a b"), ("no name",)),
    ],
)
def test_a_command_that_is_not_whole(argv, words):
    refused(osp("train-lora", *argv), 2, *words)


def test_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused(train("--log", "tensorboard"), 2, "pip install tensorboard")


def test_faults_of_the_data_are_told_together(away, world):
    shutil.copytree(world / "clips", away / "faulty")
    (away / "faulty" / "left.mp4").write_bytes(b"no video")
    (away / "faulty" / "right.txt").unlink()
    outcome = osp("train-lora", "faulty", "-o", "glass", *QUICK)
    refused(outcome, 2, "left.mp4", "unreadable", "right.mp4", "no-caption")
    assert not (away / "glass").exists()
    skipped = osp("train-lora", "faulty", "-o", "glass", *QUICK, "--skip-invalid")
    assert skipped.code == 0, skipped.err
    assert {line["step"] for line in metrics(away / "glass")} == set(range(1, STEPS + 1))


# Steps that go wrong


@pytest.fixture
def not_a_number(monkeypatch):
    """A function that makes the losses of some steps, counted from 1, not finite."""
    from osp_cli.training.trainer import Trainer

    genuine = Trainer._backward

    def make(steps):
        def backward(self, passes):
            loss = genuine(self, passes)
            return float("nan") if self.step + 1 in steps else loss

        monkeypatch.setattr(Trainer, "_backward", backward)

    return make


def test_a_step_that_is_not_finite_is_left_out_and_told(away, not_a_number):
    not_a_number({3})
    outcome = train("--json")
    assert outcome.code == 0, outcome.err
    assert "step 3 skipped: its loss or gradient was not finite" in outcome.err
    assert "1 step skipped" in outcome.err
    lines = metrics(away / "glass")
    assert [line["skipped"] for line in lines] == [False, False, True, False, False, False]
    assert lines[2]["loss"] is None
    assert set(lines[2]["samples"]) <= {"left.mp4", "right.mp4", "down.mp4"}
    assert lines[2]["samples"]
    done = [event for event in outcome.events if event["type"] == "train"]
    assert [event["loss"] is None for event in done] == [line["skipped"] for line in lines]
    assert outcome.events[-1]["skipped_steps"] == 1


def test_three_in_a_row_end_the_run(away, not_a_number):
    not_a_number({3, 4, 5})
    outcome = train()
    refused(outcome, 1, "3 steps in a row, up to step 5", "metrics.jsonl")
    # The bad steps before it changed nothing.
    assert "the last good checkpoint is glass/checkpoints/step-000004" in outcome.err
    assert not (away / "glass" / "glass.safetensors").exists()
    state, before = (
        load_file(away / "glass" / "checkpoints" / f"step-00000{step}" / "state.safetensors")
        for step in (4, 2)
    )
    assert all(torch.equal(state[name], value) for name, value in before.items())


# Less than a run


def test_a_plan_alone(away, nothing_loaded):
    outcome = train("--dry-run")
    assert outcome.code == 0
    # The plan is the result of a dry run.
    assert "6 steps of 2 from 3 samples" in outcome.out
    assert "expected" in outcome.out
    assert not (away / "glass").exists()


def test_a_look_at_the_data_alone(away, nothing_loaded):
    outcome = osp("train-lora", "clips", "--validate-only", "--size", "64x64", "--frames", "5")
    assert (outcome.code, outcome.out) == (0, "")
    assert "3 clips, 3 can be used" in outcome.err
    assert {path.name for path in away.iterdir()} == {"clips", "home", "photo.png"}


def test_the_cache_alone(away):
    outcome = osp("train-lora", "clips", *QUICK, "--cache-only", "--cache-dir", "own")
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    assert len(names(away / "own")) == 3
    assert {path.name for path in away.iterdir()} == {"clips", "home", "photo.png", "own"}
    before = contents(away / "own")
    assert train("--cache-dir", "own", "--max-steps", "1").code == 0
    assert contents(away / "own") == before


def test_quiet(away):
    outcome = train("--max-steps", "1", "-q")
    assert (outcome.code, outcome.out, outcome.err) == (0, "glass/glass.safetensors\n", "")


def test_the_lines_of_json(away):
    outcome = train("--json", "--sample-every", "6", "--sample-prompt", "zoom in")
    assert outcome.code == 0
    schema = jsonschema.Draft202012Validator(json.loads(schema_path("events").read_text("utf-8")))
    for event in outcome.events:
        schema.validate(event)
    kinds = [event["type"] for event in outcome.events]
    assert (kinds[0], kinds[-1]) == ("dataset", "done")
    counts = {kind: kinds.count(kind) for kind in ("training", "train", "checkpoint", "sample")}
    assert counts == {"training": 1, "train": STEPS, "checkpoint": 3, "sample": 2}
    saved = [event for event in outcome.events if event["type"] == "saved"]
    assert [event["path"] for event in saved] == ["glass/glass.safetensors"]
    failed = train("--json", "--rank", "0")
    (error,) = failed.events
    schema.validate(error)
    assert (error["type"], error["exit_code"], failed.code) == ("error", 2, 2)


def test_the_settings_are_a_configuration(away):
    flags = ("--rank", "5", "--trigger", 'a "quoted" word', "--betas", "0.8,0.9", "--no-bucket",
             "--cutoff", "0.2:0.4", "--sample-prompt", "one, two", "--sample-prompt", "three",
             "--max-vram", "20")  # fmt: skip
    shown = train(*flags, "--print-config")
    assert (shown.code, shown.err) == (0, "")
    assert not (away / "glass").exists()
    (away / "mine.toml").write_text(shown.out)
    again = osp("train-lora", "clips", "-o", "glass", "--config", "mine.toml", "--print-config",
                "--json")  # fmt: skip
    first = train(*flags, "--print-config", "--json")
    values = [
        {name: setting["value"] for name, setting in json.loads(each.out).items()}
        for each in (first, again)
    ]
    assert values[0] == values[1]
    origins = json.loads(again.out)
    assert origins["rank"]["origin"] == "mine.toml"


def test_settings_need_no_data():
    outcome = osp("train-lora", "--print-config", "--full", "-m", "flashi2v-1.3b")
    assert outcome.code == 0
    assert "learning" not in outcome.err
    assert "[train-lora]" in outcome.out


# Other ways


@pytest.mark.parametrize(("layout", "key"), [("kohya", "lora_unet_"), ("peft", "transformer.")])
def test_other_layouts_do_the_same(run, away, layout, key):
    # Of the finished run, so that nothing is trained again.
    settings = ("--trigger", "stained glass", "--title", "Glass!")
    clips = []
    for flags in ((), ("--save-format", layout)):
        assert train(*settings, *flags).code == 0
        made = osp("generate", "photo.png", "pan", "--lora", "glass", *CLIP, "-o", "clip.mp4", "-y")
        assert made.code == 0, made.err
        clips.append(read_video("clip.mp4"))
    assert all(name.startswith(key) for name in tensors(run / "glass.safetensors"))
    assert np.array_equal(*clips)


def test_the_adapter_of_the_conditioner(away):
    outcome = train("--train-adapter", "--sample-every", "6", "--sample-prompt", "pan")
    assert outcome.code == 0, outcome.err
    companion = away / "glass" / "glass.adapter.safetensors"
    assert companion.is_file()
    assert (away / "home" / "loras" / "glass.adapter.safetensors").is_file()
    plain = train(name="plain")
    assert plain.code == 0
    assert metrics(away / "glass") != metrics(away / "plain")
    for name in ("glass", "plain"):
        done = osp("generate", "photo.png", "pan", "--lora", name, *CLIP, "-o", f"{name}.mp4")
        assert done.code == 0, done.err
    assert (away / "glass.mp4").read_bytes() != (away / "plain.mp4").read_bytes()


def test_all_weights(away):
    steps = ("--max-steps", "2", "--batch-size", "2", "--save-every", "1", "--ema", "0.5")
    outcome = train("--full", "--lr", "0.001", *steps, name="full")
    assert outcome.code == 0, outcome.err
    assert outcome.out == "full/weights\n"
    assert "osp download osp-mini --local" in outcome.err
    first, state = (
        load_file(away / "full" / "checkpoints" / f"step-00000{step}" / "state.safetensors")
        for step in (1, 2)
    )
    names = [key.removeprefix("parameter/") for key in state if key.startswith("parameter/")]
    # What projects the picture, and what reads its fine detail, learn too; every one of them.
    own = [name for name in names if "learnable_proj" in name or "fourier_embedding" in name]
    assert {name.split(".")[1] for name in own} == {"learnable_proj", "fourier_embedding"}
    for name in names:
        if name in own:
            assert not torch.equal(state[f"parameter/{name}"], first[f"parameter/{name}"]), name
    (weights,) = (away / "full" / "weights" / "transformer").glob("*.safetensors")
    exported = load_file(weights)
    assert {f"transformer.{name}" for name in exported} == {
        n for n in names if n.startswith("transformer.")
    }
    for name, value in exported.items():
        # The average, not what was trained last.
        assert torch.equal(value, state[f"average/transformer.{name}"].bfloat16())
    assert any(
        not torch.equal(value, state[f"parameter/transformer.{name}"].bfloat16())
        for name, value in exported.items()
    )
