"""Adapters of styles, from the style's file to the video and back from its recipe."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from osp_cli.cli.app import main
from osp_cli.media.recipes import read_recipe
from osp_cli.models.state_dict import load_transformer
from osp_cli.registry import find_model
from osp_cli.runtime.adapters import adapter_problem

FILES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "lora_files.py")))
TEMPLATE = "Felt puppets. {prompt}"
STYLE = f'adapter = "felt.safetensors"\nadapter_weight = 0.5\n[prompt]\ntemplate = "{TEMPLATE}"\n'


@pytest.fixture(scope="module")
def transformer(tiny_home):
    return load_transformer(tiny_home / "models" / "tiny" / "transformer", dtype=torch.float32)


@pytest.fixture
def felt(transformer, away, picture, tiny_card):
    """A style with its adapter beside it."""
    (away / "styles").mkdir()
    FILES.write(away / "styles" / "felt.safetensors", "musubi", FILES.factors(transformer))
    path = away / "styles" / "felt.toml"
    path.write_text(STYLE)
    return path


def generate(*args: str) -> int:
    common = ["--model", "tiny", "--frames", "5", "--steps", "2", "--seed", "1", "--device", "cpu"]
    return main(["generate", "cat.png", *common, *args])


def content(path: str) -> bytes:
    """The video without its recipe."""
    assert not Path(path + ".json").exists()
    return Path(path).read_bytes()


def test_a_style_is_its_words_with_its_adapter(felt, capsys):
    plain = ["--no-metadata", "-o"]
    assert generate("rain", "--style", "styles/felt.toml", *plain, "styled.mp4") == 0
    lora = str(felt.with_suffix(".safetensors"))
    words = TEMPLATE.replace("{prompt}", "rain")
    assert generate(words, "--lora", f"{lora}:0.5", *plain, "by-hand.mp4") == 0
    assert generate(words, *plain, "words.mp4") == 0
    assert content("styled.mp4") == content("by-hand.mp4") != content("words.mp4")
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize("style", ["styles/felt.toml", "ink..styles/felt.toml:0.5"])
def test_a_recipe_makes_equal_bytes_when_the_file_is_gone(felt, capsys, style):
    assert generate("rain", "--style", style, "-o", "one.mp4") == 0
    recipe = read_recipe("one.mp4")
    [entry] = recipe["loras"]
    assert (entry["file"], entry["style"]) == ("felt.safetensors", "felt")
    assert len(recipe["loras_sha256"]) == 1
    first = Path("one.mp4").read_bytes()
    felt.unlink()
    # The adapter lies where the recipe looks for files.
    felt.with_suffix(".safetensors").rename("felt.safetensors")
    capsys.readouterr()
    assert main(["generate", "--from", "one.mp4", "-o", "two.mp4"]) == 0
    assert Path("two.mp4").read_bytes() == first
    assert "style felt is not installed here, its words are those of one.mp4" in (
        capsys.readouterr().err
    )
    Path("felt.safetensors").unlink()
    assert main(["generate", "--from", "one.mp4", "-o", "three.mp4"]) == 2
    assert "there is no LoRA 'felt.safetensors'" in capsys.readouterr().err
    assert not Path("three.mp4").exists()


def test_an_adapter_of_another_architecture(felt, capsys):
    """Of a style it is left out and told; asked for, it is refused."""
    lora = str(felt.with_suffix(".safetensors"))
    problem = adapter_problem(lora, find_model("osp-mini"))
    assert problem.startswith("its adapter is for a transformer of ")
    assert adapter_problem(lora, find_model("tiny")) is None
    args = ["generate", "cat.png", "--model", "osp-mini", "--dry-run"]
    assert main([*args, "--style", "styles/felt.toml"]) == 0
    assert f"note: style felt: the prompt alone makes it, as {problem}" in capsys.readouterr().err
    assert main([*args, "--lora", lora]) == 2
    assert "is for a transformer of" in capsys.readouterr().err


def test_a_damaged_adapter_is_refused(felt, capsys):
    felt.with_suffix(".safetensors").write_bytes(b"nothing of the kind")
    assert generate("rain", "--style", "styles/felt.toml", "-o", "a.mp4") == 2
    assert "felt.safetensors" in capsys.readouterr().err
    assert not Path("a.mp4").exists()


def test_a_morph_says_how_strong_its_adapter_is(felt, capsys):
    assert generate("rain", "--style", "none..styles/felt.toml", "--dry-run", "--json") == 0
    captured = capsys.readouterr()
    assert "in the mean, 0.25" in captured.err
    assert json.loads(captured.out)["type"] == "plan"
