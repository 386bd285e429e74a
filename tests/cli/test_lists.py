"""`osp styles`, `osp models`, `osp --help`, `osp --version`."""

from __future__ import annotations

import json
import re

import pytest

from osp_cli import __version__
from osp_cli.cli import console
from osp_cli.registry import model_specs, style_presets
from osp_cli.style_mix import read_style


def test_styles_one_line_each(osp):
    outcome = osp("styles")
    assert (outcome.code, outcome.err) == (0, "")
    rows = [line.split("\t") for line in outcome.out.splitlines()]
    assert rows == [[preset.name, preset.description] for preset in style_presets().values()]


def test_a_terminal_is_told_how_styles_are_mixed(osp, monkeypatch):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    examples = re.findall(r"--style (\S+)$", osp("styles").out, re.MULTILINE)
    assert examples == ["ghibli:0.5", "ink+watercolor", "ghibli..ink"]
    assert all(read_style(example) is not None for example in examples)


def test_styles_as_json(osp):
    rows = [json.loads(line) for line in osp("styles", "--json").out.splitlines()]
    assert [row["name"] for row in rows] == list(style_presets())
    assert all("{prompt}" in row["prompt_template"] for row in rows)


def test_models_tell_what_is_installed(osp, tmp_path):
    rows = [line.split("\t") for line in osp("models").out.splitlines()]
    assert [row[0] for row in rows] == list(model_specs())
    place = tmp_path / "home" / "models" / "flashi2v-1.3b"
    assert next(row for row in rows if row[0] == place.name)[1:3] == ["not installed", str(place)]


def test_models_as_json_after_installing(osp, installed):
    rows = [json.loads(line) for line in osp("models", "--json").out.splitlines()]
    assert {row["name"]: row["installed"] for row in rows} == dict.fromkeys(model_specs(), True)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(osp, flag):
    assert osp(flag).out == f"osp {__version__}\n"


@pytest.mark.parametrize("args", [["--help"], ["-h"], []])
def test_help_shows_commands_and_examples(osp, args):
    outcome = osp(*args)
    assert (outcome.code, outcome.err) == (0, "")
    for word in ("generate", "styles", "models", "Examples:", "--style ghibli"):
        assert word in outcome.out


def test_only_finished_commands_are_offered(osp):
    for command in ("stylize", "extend", "train-lora"):
        assert osp(command).code == 2
