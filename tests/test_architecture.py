"""Imports point one way, and neither help nor a refusal waits for a heavy library."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import osp_cli

PACKAGE = Path(osp_cli.__file__).parent
HEAVY = {"torch", "diffusers", "transformers", "numpy"}

# From the top of the house to its foundation: a room may use its own floor and those below.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"runtime"},
    {"pipelines", "training", "evaluation", "hub"},
    {"models", "conditioning", "sampling"},
    {"procedural", "media"},
    {
        "requests",
        "plan",
        "events",
        "settings",
        "sheets",
        "registry",
        "realtime_card",
        "stage_sizes",
        "screenplay",
        "direction",
        "crossfade",
        "extend_request",
        "extend_settings",
        "train_request",
        "train_plan",
        "train_settings",
        "last_output",
        "errors",
        "host",
        "dials",
        "config",
        "batch",
        "outputs",
        "stopping",
        "style_mix",
        "style_text",
        "style_adapters",
        "own_styles",
        "toml_files",
        "loras",
    },
    {"__init__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST) -> set[str]:
    """Absolute names of everything imported anywhere below `tree`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_at_start_up(tree: ast.Module) -> set[str]:
    """Absolute names of what is imported outside of functions and `if TYPE_CHECKING`."""
    body: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.If):
            condition = ast.unparse(node.test)
            body += [] if condition == "TYPE_CHECKING" else node.body + node.orelse
        elif isinstance(node, ast.Import | ast.ImportFrom | ast.Try | ast.With):
            body.append(node)
    return imported_modules(ast.Module(body, []))


def rooms_used(tree: ast.AST) -> set[str]:
    parts = [name.split(".") for name in imported_modules(tree)]
    rooms = {name[1] for name in parts if name[0] == "osp_cli" and len(name) > 1}
    return rooms & FLOOR_OF.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    assert room in FLOOR_OF, f"{room} has no floor: add it to FLOORS, or move it"
    above = {used for used in rooms_used(ast.parse(path.read_text("utf-8")))
             if FLOOR_OF[used] < FLOOR_OF[room]}  # fmt: skip
    assert not above, f"{room} may not import {above}"


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if room_of(path) in {"cli", *FLOORS[-2], "__main__", "__init__"}],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_the_light_rooms_import_no_heavy_library_at_start_up(path):
    names = imports_at_start_up(ast.parse(path.read_text("utf-8")))
    assert not {name.split(".")[0] for name in names} & HEAVY


def test_the_rules_catch_what_they_forbid():
    tree = ast.parse("from osp_cli.cli import app\nimport osp_cli.runtime.runner\n")
    assert rooms_used(tree) == {"cli", "runtime"}
    tree = ast.parse("try:\n    import torch\nexcept ImportError:\n    pass\n")
    assert imports_at_start_up(tree) == {"torch"}
    tree = ast.parse("if TYPE_CHECKING:\n    import torch\ndef f():\n    import numpy\n")
    assert imports_at_start_up(tree) == set()


PROBE = """
import json, sys
from osp_cli.cli.app import main
code = main(sys.argv[1:])
heavy = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([code, sorted(heavy)]), file=sys.stderr)
"""


def modules_after(folder: Path, *args: str) -> tuple[int, set[str]]:
    """Exit code and loaded top-level modules of one command line in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *args],
        cwd=folder,
        env={"PYTHONPATH": str(PACKAGE.parent), "OSP_HOME": str(folder / "home"), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    code, names = json.loads(done.stderr.splitlines()[-1])
    return code, set(names)


def test_help_loads_nothing_heavy(tmp_path):
    code, names = modules_after(tmp_path, "--help")
    assert code == 0
    assert not names & {*HEAVY, "PIL", "rich", "pydantic", "huggingface_hub", "imageio_ffmpeg"}


@pytest.mark.parametrize(
    ("code", "args"),
    [
        (2, ["generate", "cat.png", "--cutoff", "1.5"]),
        (2, ["generate", "cat.png", "--style", "nothing"]),
        (2, ["generate", "missing.png"]),
        (2, ["generate", "cat.png", "--lora", "missing.safetensors"]),
        (2, ["generate", "cat.png", "--lora", "cat.png"]),
        (2, ["generate", "cat.png", "-o", "taken.mp4"]),
        (2, ["generate", "cat.png", "--stile", "ink"]),
        (3, ["generate", "cat.png", "--model", "uniworld-osp2-14b"]),
        (2, ["download", "nonesuch"]),
        (3, ["download", "uniworld-osp2-14b", "--offline"]),
        (0, ["download", "--list"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else str(value),
)
def test_refusals_load_nothing_heavy(tmp_path, code, args):
    Image.new("RGB", (64, 48)).save(tmp_path / "cat.png")
    (tmp_path / "taken.mp4").touch()
    found, names = modules_after(tmp_path, *args)
    assert found == code
    assert not names & HEAVY
