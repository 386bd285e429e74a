"""What the package carries and where its presets are found."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import osp_cli
from osp_cli import registry
from osp_cli.cli.app import main
from osp_cli.errors import InvalidRequestError

CHECKOUT = Path(__file__).resolve().parents[1]
README = (CHECKOUT / "README.md").read_text("utf-8")
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))


def test_a_checkout_reads_its_own_presets():
    assert registry.presets_dir() == Path(osp_cli.__file__).resolve().parents[1] / "presets"


def test_a_wheel_reads_the_copy_inside(tmp_path, monkeypatch):
    for folder in ("osp_cli/presets", "presets"):
        for kind in ("models", "styles"):
            (tmp_path / folder / kind).mkdir(parents=True)
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path / "osp_cli")
    assert registry.presets_dir() == tmp_path / "osp_cli" / "presets"


def test_missing_presets_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path / "osp_cli")
    with pytest.raises(InvalidRequestError, match="presets folder is missing"):
        registry.presets_dir()


def test_the_wheel_is_told_to_carry_every_folder_of_presets():
    carried = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    folders = {path.name for path in (CHECKOUT / "presets").iterdir() if path.is_dir()}
    # Pictures for the README, megabytes of them, stay outside.
    for name in folders - {"examples", "gallery"}:
        assert carried[f"presets/{name}"] == f"osp_cli/presets/{name}"


def test_python_m_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "osp_cli", "--version"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"osp {osp_cli.__version__}\n"


def test_no_torchvision_anywhere():
    # Its builds pull in, or break on, another torch than the one that is installed.
    wanted = PROJECT["project"]["dependencies"]
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in [*wanted, *(item for extra in extras.values() for item in extra)]:
        assert not requirement.startswith("torchvision")
    for path in (CHECKOUT / "osp_cli").rglob("*.py"):
        assert "import torchvision" not in path.read_text("utf-8")


def test_the_readme_names_only_files_that_are_there():
    named = set(re.findall(r"presets/[\w./-]+", README))
    assert len(named) >= 2
    assert [name for name in sorted(named) if not (CHECKOUT / name).exists()] == []


def test_the_readme_names_only_flags_that_exist(capsys):
    commands = ["generate", "stylize", "styles", "extend", "bench", "download", "train-lora"]
    pairs = (["models", "inspect"], ["dataset", "check"], ["dataset", "build"])
    for command in (*([name] for name in commands), *pairs):
        assert main([*command, "--help"]) == 0
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    section = README.split("## In a style")[1].split("## Tests")[0]
    assert set(re.findall(r"--[a-z][a-z-]*", section)) <= known


def test_the_readme_installs_the_tested_torch_and_runs_the_tests():
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2
    assert all('pip install "torch==2.13.0"' in command for command in commands)
    assert "osp generate presets/examples/" in commands[0]
    assert commands[1].endswith("python -m pytest")
