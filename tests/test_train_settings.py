"""From what was typed after `osp train-lora` to its request: who wins, and what the paper says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from osp_cli import train_settings
from osp_cli.config import TRAINING, Layer, read_config, stored_layers
from osp_cli.dials import Size
from osp_cli.errors import InvalidRequestError
from osp_cli.registry import model_specs, presets_dir
from osp_cli.train_settings import TRAIN_DIALS, read_training_table, settle_training

# Its recipe leaves the paper's values as they are.
LARGE = "uniworld-osp2-14b"


def settled(layers=(), manner=None, **flags):
    return settle_training(Path("clips"), Path("runs/glass"), layers=layers, manner=manner, **flags)


def request(layers=(), **flags):
    return settled(layers, **flags).request


def origin(name, layers=(), **flags):
    return settled(layers, **flags).settings[name].origin


def refused(layers=(), **flags):
    with pytest.raises(InvalidRequestError) as caught:
        settled(layers, **flags)
    return caught.value


# Who wins

VARIABLE = Layer("environment", {"device": "cpu"}, {"device": "OSP_DEVICE"})
FILE = Layer("./osp.toml", {"device": "mps", "rank": 5})
USERS = Layer("config.toml", {"rank": 6, "alpha": 6.0})


def test_flag_variable_file_recipe_paper():
    layers = [VARIABLE, FILE, USERS]
    made = settled(layers, device="cuda")
    assert (made.request.device, made.settings["device"].origin) == ("cuda", "flag")
    made = settled(layers)
    assert (made.request.device, made.settings["device"].origin) == ("cpu", "OSP_DEVICE")
    assert (made.request.rank, made.settings["rank"].origin) == (5, "./osp.toml")
    assert (made.request.alpha, made.settings["alpha"].origin) == (6.0, "config.toml")
    assert origin("targets", layers) == "recipe lora-osp-mini"
    assert origin("seed", layers) == "paper"
    assert origin("windows", layers) == "default"


def test_the_output_s_name_is_the_adapter_s():
    made = request()
    assert (made.name, made.output, made.dataset) == ("glass", Path("runs/glass"), Path("clips"))


def test_the_model_decides_on_the_recipe_wherever_it_is_named():
    for made in (settled(model=LARGE), settled([Layer("./osp.toml", {"model": LARGE})])):
        assert made.request.model == LARGE
        assert made.settings["rank"].origin == "paper"
    assert origin("rank") == "recipe lora-osp-mini"


def test_the_mode_is_the_base_s():
    for name, mode in (
        ("osp-mini", "flash"),
        (LARGE, "flash"),
        ("flashi2v-1.3b", "flash"),
        ("wan2.1-t2v-1.3b", "t2v"),
        ("wan2.1-i2v-14b-480p", "inpaint"),
    ):
        assert request(model=name).mode == mode


# What the paper says


def test_the_paper_s_adapter():
    """Section 6.4."""
    made = request(model=LARGE)
    told = {
        "rank": 8, "alpha": 4.0, "width": 512, "height": 512, "num_frames": 49, "batch_size": 1,
        "learning_rate": 1e-4, "weight_decay": 0.03, "eps": 1e-10, "max_grad_norm": 0.05,
        "epochs": 1, "seed": 42, "optimizer": "adamw", "timesteps": "uniform",
    }  # fmt: skip
    assert {name: getattr(made, name) for name in told} == told
    assert not made.full
    assert made.max_steps is None
    assert made.targets == "qkv-ffn"


def test_the_paper_s_full_training():
    """Section 5.1."""
    made = request(model=LARGE, full=True)
    told = {
        "width": 832, "height": 480, "num_frames": 49, "fps": 16, "batch_size": 64,
        "max_steps": 40_000, "learning_rate": 2e-5, "weight_decay": 0.01, "betas": (0.9, 0.999),
        "eps": 1e-15, "ema": 0.9999, "caption_drop": 0.1, "cutoff": (0.05, 0.95),
    }  # fmt: skip
    assert {name: getattr(made, name) for name in told} == told
    assert request([Layer("./osp.toml", {"full": True})], model=LARGE) == made


# Recipes


@pytest.mark.parametrize("path", sorted((presets_dir() / "training").glob("lora-*.toml")))
def test_recipes_are_for_models_and_make_requests(path):
    tables = tomllib.loads(path.read_text("utf-8"))
    name = tables.pop("base")
    assert path.stem == f"lora-{name}"
    assert name in model_specs()
    assert tables.keys() <= {"lora", "full"}
    for full in (False, True):
        made = settled(model=name, full=full)
        given = tables.get("full" if full else "lora", {})
        for key in given:
            assert made.settings[key].origin == f"recipe {path.stem}"


@pytest.mark.parametrize("name", sorted(model_specs()))
def test_every_model_has_settings_or_says_why_not(name):
    try:
        assert request(model=name).model == name
    except InvalidRequestError as error:
        assert name in error.message


# Sums and shapes


@pytest.mark.parametrize(("asked", "frames"), [(5, 5), (6, 9), (8, 9), (1, 1), (48, 49)])
def test_frames_are_rounded_up_and_that_is_told(asked, frames):
    made = settled(num_frames=asked)
    assert made.request.num_frames == frames
    assert made.notices == (
        () if asked == frames else (f"{asked} frames became {frames}: they come as 4k+1",)
    )


def test_size_becomes_width_and_height():
    made = request(size=Size(96, 64))
    assert (made.width, made.height) == (96, 64)


def test_manner_is_not_a_setting():
    made = settled(manner={"resume": "never", "overwrite": True})
    assert (made.request.resume, made.request.overwrite) == ("never", True)
    assert not {"resume", "overwrite"} & made.settings.keys()


def test_every_dial_is_a_field_and_has_a_flag():
    from dataclasses import fields

    from osp_cli.cli.train_options import HELP
    from osp_cli.train_request import TrainRequest

    known = {field.name for field in fields(TrainRequest)} | {"size"}
    assert {dial.field for dial in TRAIN_DIALS.values()} <= known
    assert HELP.keys() == TRAIN_DIALS.keys()


# Where an error comes from


def test_an_error_tells_where_a_value_comes_from():
    assert refused(rank=0).message == "--rank must be 1 to 1024, got 0"
    error = refused([Layer("./osp.toml", {"rank": 0})])
    assert error.message == "--rank must be 1 to 1024, got 0 (./osp.toml)"
    error = refused([Layer("environment", {"device": "gpu"}, {"device": "OSP_DEVICE"})])
    assert "OSP_DEVICE" in error.message
    # Of two values that do not go together, both may be asked for.
    assert "(./osp.toml)" in refused([Layer("./osp.toml", {"gpus": 3})], context_parallel=2).message


def test_a_damaged_recipe_names_itself(tmp_path, monkeypatch):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "lora-osp-mini.toml").write_text("[lora]\nrnak = 4\n")
    monkeypatch.setattr(train_settings, "presets_dir", lambda: tmp_path)
    error = refused()
    assert "lora-osp-mini.toml [lora]: unknown key 'rnak'" in error.message
    assert error.hint == "did you mean rank?"


# Configuration files


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder, and a user, without any configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("OSP_DEVICE", "OSP_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


CONFIG = """
model = "uniworld-osp2-14b"
steps = 12
frames = 33
seed = 9
[generate]
cutoff = 0.3
[train-lora]
rank = 16
cutoff = "0.2:0.4"
betas = [0.8, 0.9]
sample_prompt = ["one | two", "three"]
swap-blocks = "auto"
train-adapter = true
max-vram = 20
"""


def test_a_table_of_its_own(here):
    (here / "osp.toml").write_text(CONFIG)
    made = settled(stored_layers(TRAINING))
    told = made.request
    assert (told.rank, told.cutoff, told.betas) == (16, (0.2, 0.4), (0.8, 0.9))
    assert told.sample_prompts == ("one | two", "three")
    assert (told.swap_blocks, told.train_adapter, told.max_vram) == (-1, True, 20 * 10**9)
    assert made.settings["rank"].origin == "./osp.toml"
    # Which model and machine holds for all commands; how long clips are, and their seed, does not.
    assert told.model == LARGE
    assert (told.num_frames, told.seed) == (49, 42)


def test_clips_do_not_see_the_table_of_training(here):
    (here / "osp.toml").write_text(CONFIG)
    with_table = read_config(here / "osp.toml", "generate")
    (here / "osp.toml").write_text(CONFIG.partition("[train-lora]")[0])
    assert read_config(here / "osp.toml", "generate") == with_table
    assert with_table["cutoff"] is not None
    assert "rank" not in with_table


def test_variables_of_clips_that_mean_the_same(here, monkeypatch):
    monkeypatch.setenv("OSP_MODEL", LARGE)
    # Those of clips are of other kinds: several seeds, a cutoff that changes on the way.
    monkeypatch.setenv("OSP_SEED", "3")
    monkeypatch.setenv("OSP_CUTOFF", "0.1:0.9")
    made = settled(stored_layers(TRAINING))
    assert (made.request.model, made.settings["model"].origin) == (LARGE, "OSP_MODEL")
    assert (made.request.seed, made.request.cutoff) == (42, (0.05, 0.95))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rnak = 4", ("unknown key 'rnak'",)),
        ("rank = 'many'", ("--rank", "'many'")),
        ("betas = '0.9'", ("--betas",)),
        ("full = 'perhaps'", ("--full",)),
        ("max-vram = 'lots'", ("--max-vram",)),
    ],
)
def test_a_mistake_names_its_file(here, line, words):
    (here / "osp.toml").write_text(f"[train-lora]\n{line}\n")
    with pytest.raises(InvalidRequestError) as caught:
        stored_layers(TRAINING)
    for word in ("osp.toml [train-lora]", *words):
        assert word in caught.value.message


def test_a_table_and_a_flag_say_the_same():
    table = {"lr": 1e-3, "frames": 17, "bucket": False, "log": ["jsonl"], "size": "64x64"}
    values = read_training_table(table, "here")
    assert request([Layer("file", values)]) == request(
        learning_rate=1e-3, num_frames=17, bucket=False, logs=("jsonl",), size=Size(64, 64)
    )
