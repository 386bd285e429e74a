"""`osp doctor`: what it finds on a healthy machine, and what it says when something is broken."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import socket
import sys
from collections import namedtuple
from pathlib import Path

import jsonschema
import pytest
import torch

from osp_cli import config
from osp_cli import host as machine
from osp_cli.cli import checks, console
from osp_cli.cli.checks import CHECKS, Finding, examine
from osp_cli.cli.schema import schema_path
from osp_cli.registry import model_specs, style_presets
from osp_cli.runtime import devices

Usage = namedtuple("Usage", "total used free")
REAL_VERSION = importlib.metadata.version


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No settings but those of a test, and a home without any."""
    for name in os.environ:
        if name.startswith(("OSP_", "HF_")) or name in checks._OTHER_VARIABLES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def findings(osp, monkeypatch):
    """Runs `osp doctor --json`; gives exit code and findings, which fit the schema."""
    # Measured in earnest by the tests that read the report as a person does.
    monkeypatch.setattr(devices, "measured_speed", lambda device, dtype: 1e11)

    def call():
        outcome = osp("doctor", "--json")
        [line] = outcome.out.splitlines()
        report = json.loads(line)
        schema = json.loads(schema_path("doctor").read_text("utf-8"))
        jsonschema.Draft202012Validator(schema).validate(report)
        assert report["ok"] == (outcome.code == 0)
        assert report["ok"] == all(row["state"] != "problem" for row in report["findings"])
        return outcome.code, [Finding(**row) for row in report["findings"]]

    return call


def named(found, name):
    [finding] = [finding for finding in found if finding.name == name]
    return finding


# --- A healthy machine ------------------------------------------------------------------------


def test_a_healthy_machine(osp):
    outcome = osp("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    *lines, empty, verdict = outcome.out.splitlines()
    assert (empty, verdict) == ("", "a run would work")
    assert all(line.split(" ")[0] in ("ok", "note") or "hint: " in line for line in lines)
    [run] = [line for line in lines if " run: " in line]
    assert "osp-mini on " in run
    assert " 49 frames" in run
    assert "\x1b" not in outcome.out


def test_everything_is_looked_at(findings):
    code, found = findings()
    assert code == 0
    names = [finding.name for finding in found]
    libraries = {"torch", "diffusers", "transformers", "peft", "accelerate", "safetensors"}
    assert libraries | {"pillow", "imageio-ffmpeg"} <= set(names)
    assert {"working folder", "temporary folder", "weights folder", "ffmpeg", "run"} <= set(names)
    models = [finding.values["model"] for finding in found if finding.name == "model"]
    assert models == list(model_specs())
    assert named(found, "styles").values["count"] == len(style_presets())
    assert named(found, "torch").values["version"] == REAL_VERSION("torch")
    assert named(found, "ffmpeg").values["libx264"] is True
    assert named(found, "memory").values["total_bytes"] > 2**28
    assert named(found, "run").values["plan"]["model"] == "osp-mini"


def test_the_schema_explains_every_name(findings):
    _, found = findings()
    kinds = json.loads(schema_path("doctor").read_text("utf-8"))
    kinds = kinds["properties"]["findings"]["items"]["oneOf"]
    explained = {
        kind["properties"]["name"]["const"]: set(kind["properties"]["values"]["properties"])
        for kind in kinds
        if "const" in kind["properties"]["name"]
    }
    # Variables are told where any are set.
    assert {finding.name for finding in found} >= explained.keys() - {"variable"}
    for finding in found:
        if finding.name in explained and finding.state == "ok":
            assert set(finding.values) == explained[finding.name], finding.name


def test_nothing_is_fetched(findings, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert findings()[0] == 0


def test_nothing_is_written(osp, away):
    assert osp("doctor").code == 0
    assert list(away.iterdir()) == []


def test_twenty_columns_are_enough(osp, monkeypatch):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setattr(console, "columns", lambda: 20)
    monkeypatch.setenv("OSP_STEP", "3")
    outcome = osp("doctor")
    assert outcome.code == 0
    for line in outcome.out.splitlines():
        # A path stays whole, so that it can be copied.
        assert len(line) <= 20 or " " not in line.strip(), line
        assert line == "" or line[0] != " " or line[:2] == "  "


def test_wide_terminals_get_a_hanging_indent(osp, monkeypatch):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setattr(console, "columns", lambda: 70)
    *lines, _, _ = osp("doctor").out.splitlines()
    assert all(line[:8].strip() in ("ok", "note", "problem", "") for line in lines)


# --- Broken things ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_that_breaks_does_not_break_the_others(name):
    def fine():
        yield Finding("fine", "ok", "yes")

    def broken():
        yield Finding("half", "ok", "yes")
        raise OSError("the disk is gone\nand more")

    found = list(examine({"before": fine, name: broken, "after": fine}))
    assert [finding.name for finding in found] == ["fine", "half", name, "fine"]
    assert found[2].message == "cannot be examined, OSError: the disk is gone"
    assert found[2].hint
    assert found[2].state == ("problem" if name in checks._DECISIVE else "note")


def test_no_ffmpeg(findings, monkeypatch):
    import imageio_ffmpeg

    def missing():
        raise RuntimeError("no ffmpeg exe could be found")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    code, found = findings()
    assert code == 1
    finding = named(found, "ffmpeg")
    assert (finding.state, finding.message) == ("problem", "no ffmpeg program was found")
    assert "pip install" in finding.hint


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo ffmpeg version 7.0 Copyright", "it was built without libx264"),
        ("exit 3", "it ends with code 3"),
        (None, "cannot be started: No such file or directory"),
    ],
)
def test_an_ffmpeg_that_will_not_do(findings, monkeypatch, tmp_path, script, message):
    import imageio_ffmpeg

    path = tmp_path / "ffmpeg"
    if script is not None:
        program(path, script)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(path))
    code, found = findings()
    finding = named(found, "ffmpeg")
    assert (code, finding.state) == (1, "problem")
    assert message in finding.message
    assert finding.values["path"] == str(path)
    assert finding.hint


@pytest.mark.parametrize(("name", "code"), [("diffusers", 1), ("safetensors", 1), ("peft", 0)])
def test_a_missing_library(findings, monkeypatch, name, code):
    def version(asked):
        if asked == name:
            raise importlib.metadata.PackageNotFoundError(asked)
        return REAL_VERSION(asked)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found_code, found = findings()
    finding = named(found, name)
    assert found_code == code
    assert (finding.state, finding.message) == ("problem" if code else "note", "not installed")
    assert f'pip install "{name}' in finding.hint


def test_a_library_of_another_version(findings, monkeypatch):
    def version(asked):
        return "0.1.0" if asked == "diffusers" else REAL_VERSION(asked)

    monkeypatch.setattr(importlib.metadata, "version", version)
    code, found = findings()
    finding = named(found, "diffusers")
    assert (code, finding.state) == (0, "note")
    assert finding.message.startswith("0.1.0, tested with ")
    assert finding.values["in_range"] is False


def test_a_library_that_cannot_be_imported(findings, monkeypatch):
    monkeypatch.setitem(sys.modules, "osp_cli.runtime.runner", None)
    code, found = findings()
    assert code == 1
    assert "cannot be examined" in named(found, "start").message
    # The rest is told all the same.
    assert named(found, "run").state == "ok"


def test_no_torch_at_all(findings, monkeypatch):
    for name in ("torch", "osp_cli.runtime.diagnosis", "osp_cli.runtime.runner"):
        monkeypatch.setitem(sys.modules, name, None)
    code, found = findings()
    assert code == 1
    decisive = [finding for finding in found if "cannot be examined" in finding.message]
    assert [finding.name for finding in decisive] == ["torch", "start", "run"]
    assert {finding.state for finding in decisive} == {"problem"}
    assert {"ffmpeg", "memory", "styles"} <= {finding.name for finding in found}


def test_a_copy_that_pip_does_not_know_asks_its_project(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    names = [finding.name for finding in examine({"libraries": CHECKS["libraries"]})]
    assert {"torch", "diffusers", "peft"} <= set(names)


# --- Folders ----------------------------------------------------------------------------------


def lock(monkeypatch, locked: Path) -> None:
    """Refuse a folder to this process, as its mode would if nobody were root."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked and real(path, mode))


def test_a_weights_folder_that_may_not_be_read(findings, monkeypatch, tmp_path):
    folder = tmp_path / "home" / "models"
    folder.mkdir(parents=True)
    lock(monkeypatch, folder)
    code, found = findings()
    finding = named(found, "weights folder")
    # The model that is built in does not need it.
    assert (code, finding.state) == (0, "note")
    assert finding.message == f"{folder} may not be read"
    assert finding.hint


def test_a_working_folder_that_may_not_be_written_to(findings, monkeypatch, away):
    lock(monkeypatch, away)
    code, found = findings()
    finding = named(found, "working folder")
    assert (code, finding.state) == (1, "problem")
    assert finding.message == f"{away} may not be written to"


def test_a_full_disk(findings, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 2 * 10**6))
    code, found = findings()
    assert code == 1
    assert named(found, "working folder").state == "problem"
    assert named(found, "temporary folder").state == "problem"
    assert named(found, "weights folder").state == "note"
    assert "2.0 MB free" in named(found, "working folder").message
    assert named(found, "working folder").hint
    assert named(found, "working folder").values["free_bytes"] == 2 * 10**6


def test_a_disk_that_is_nearly_full(findings, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 10**9))
    code, found = findings()
    assert code == 0
    assert named(found, "working folder").state == "note"


# --- Settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps = = 3\n", "./osp.toml is not valid TOML"),
        ("[generate]\nstepps = 3\n", "./osp.toml, line 2: unknown key 'stepps'"),
        ('steps = "many"\n', "./osp.toml, line 1: --steps takes a whole number"),
    ],
)
def test_a_damaged_settings_file(findings, away, text, sentence):
    (away / "osp.toml").write_text(text)
    code, found = findings()
    assert code == 1
    finding = named(found, "settings")
    assert finding.state == "problem"
    assert finding.message.startswith(sentence)
    assert named(found, "run").message.startswith(sentence)


def test_settings_files_are_named(findings, away, tmp_path, monkeypatch):
    (away / "osp.toml").write_text("steps = 3\nfps = 8\n")
    mine = tmp_path / "config" / "mine.toml"
    mine.parent.mkdir()
    mine.write_text("frames = 9\n")
    monkeypatch.setattr(config, "user_config", lambda: mine)
    code, found = findings()
    assert code == 0
    settings = [finding for finding in found if finding.name == "settings"]
    assert [Path(finding.values["path"]).name for finding in settings] == [
        "osp.toml",
        "mine.toml",
    ]
    plan = named(found, "run").values["plan"]
    assert (plan["steps"], plan["num_frames"]) == (3, 9)


@pytest.mark.parametrize(
    ("name", "value", "state", "message", "hint"),
    [
        ("OSP_STEPS", "12", "ok", "OSP_STEPS=12", None),
        ("OSP_STEPS", "many", "problem", "OSP_STEPS: --steps takes a whole number", None),
        ("OSP_STEP", "12", "note", "OSP_STEP is none that osp knows", "OSP_STEPS"),
        ("HF_TOKEN", "hf_secret", "ok", "HF_TOKEN=(set)", None),
        ("HF_ENDPOINT", "https://me:pw@hub", "ok", "HF_ENDPOINT=https://(hidden)@hub", None),
        ("CUDA_VISIBLE_DEVICES", "", "note", "CUDA_VISIBLE_DEVICES= hides", "unset it"),
        ("CUDA_VISIBLE_DEVICES", "0", "ok", "CUDA_VISIBLE_DEVICES=0", None),
        ("NO_COLOR", "1", "ok", "NO_COLOR=1", None),
    ],
)  # fmt: skip
def test_a_variable(findings, osp, monkeypatch, name, value, state, message, hint):
    monkeypatch.setenv(name, value)
    code, found = findings()
    [finding] = [row for row in found if row.values.get("variable") == name] or [
        row for row in found if row.name == "variable" and name in row.message
    ]
    assert (finding.state, code) == (state, int(state == "problem"))
    assert finding.message.startswith(message)
    assert hint is None or hint in finding.hint
    for secret in ("hf_secret", "me:pw"):
        assert secret not in osp("doctor").out


def test_a_chosen_model_that_is_not_installed(findings, monkeypatch):
    monkeypatch.setenv("OSP_MODEL", "flashi2v-1.3b")
    code, found = findings()
    assert code == 1
    finding = named(found, "run")
    assert finding.state == "problem"
    assert finding.message == "the weights of flashi2v-1.3b are not installed"
    assert finding.hint


def test_an_installed_model_is_measured(findings, tiny_card):
    _, found = findings()
    [tiny] = [finding for finding in found if finding.values.get("model") == "tiny"]
    files = [path for path in tiny_card.weights_dir().rglob("*") if path.is_file()]
    assert tiny.values["installed"]
    assert tiny.values["bytes"] == sum(path.stat().st_size for path in files)


def cut_config(folder: Path) -> str:
    (folder / "transformer" / "config.json").write_text('{"num_layers": ')
    return "config.json"


def cut_end(folder: Path) -> str:
    [path] = (folder / "vae").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    return "bytes long instead of"


def cut_header(folder: Path) -> str:
    [path] = (folder / "vae").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    return "its header is cut off"


def cut_all(folder: Path) -> str:
    [path] = (folder / "vae").glob("*.safetensors")
    path.write_bytes(b"")
    return "its header is cut off"


@pytest.mark.parametrize("damage", [cut_config, cut_end, cut_header, cut_all])
def test_weights_that_are_damaged(findings, tiny_card, monkeypatch, tmp_path, damage):
    folder = tmp_path / "home" / "models" / "tiny"
    shutil.copytree(tiny_card.weights_dir(), folder)
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OSP_MODEL", "tiny")
    monkeypatch.setenv("OSP_FRAMES", "5")
    assert findings()[0] == 0
    words = damage(folder)
    code, found = findings()
    assert (code, named(found, "run").state) == (1, "problem")
    assert words in named(found, "run").message
    # Where another model is chosen, it is only worth knowing.
    monkeypatch.setenv("OSP_MODEL", "osp-mini")
    code, found = findings()
    [tiny] = [finding for finding in found if finding.values.get("model") == "tiny"]
    assert (code, tiny.state) == (0, "note")
    assert words in tiny.message


# --- Devices and memory -----------------------------------------------------------------------


def test_a_machine_without_a_graphics_card(findings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    code, found = findings()
    assert code == 0
    assert named(found, "device").values["name"] == "cpu"
    assert named(found, "run").values["plan"]["device"] == "cpu"


def test_graphics_cards_are_listed_with_their_memory(findings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    code, found = findings()
    assert code == 0
    devices = [finding for finding in found if finding.name == "device"]
    assert [finding.values["name"] for finding in devices] == ["cuda:0", "cuda:1", "cpu"]
    assert devices[1].message == "cuda:1, Card 1, 60.0 GB free of 80.0 GB"
    assert named(found, "run").values["plan"]["device"] == "cuda"


def test_a_card_that_torch_cannot_speak_to(findings, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    program(tmp_path / "nvidia-smi", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    code, found = findings()
    assert code == 0
    assert named(found, "torch build").state == "note"
    assert "build of torch for CUDA" in named(found, "torch build").hint


def test_too_little_memory(findings, monkeypatch):
    monkeypatch.setattr(devices, "available_memory", lambda device: 10**8)
    code, found = findings()
    assert code == 1
    assert named(found, "run").message.startswith("osp-mini needs about ")
    assert named(found, "run").hint


def test_memory_that_is_only_just_enough(findings, monkeypatch):
    _, found = findings()
    needed = named(found, "run").values["plan"]["expected_peak_bytes"]
    monkeypatch.setattr(devices, "available_memory", lambda device: int(needed * 1.05))
    code, found = findings()
    assert (code, named(found, "run").state) == (0, "note")
    assert named(found, "run").hint


# --- Limits of containers ---------------------------------------------------------------------


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Lays control groups: files by their path, and the group of this process."""

    def lay(own: str, files: dict[str, str]) -> None:
        root = tmp_path / "cgroup"
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text + "\n")
        listing = tmp_path / "own"
        listing.write_text(own)
        monkeypatch.setattr(machine, "_CGROUPS", root)
        monkeypatch.setattr(machine, "_OWN_CGROUPS", listing)

    return lay


def test_limits_of_a_container(groups):
    groups("0::/\n", {"memory.max": "1000000", "cpu.max": "150000 100000"})
    assert (machine.memory_limit(), machine.cpu_quota()) == (1000000, 1.5)


def test_the_tightest_of_nested_groups_counts(groups):
    groups(
        "0::/user.slice/me/shell\n",
        {
            "memory.max": "max",
            "user.slice/memory.max": "5000",
            "user.slice/me/memory.max": "7000",
            "user.slice/me/shell/memory.max": "max",
            "user.slice/cpu.max": "max 100000",
            "user.slice/me/cpu.max": "50000 100000",
            "elsewhere/memory.max": "1",
        },
    )
    assert (machine.memory_limit(), machine.cpu_quota()) == (5000, 0.5)


def test_limits_of_the_first_version(groups):
    groups(
        "5:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n",
        {
            "memory/memory.limit_in_bytes": str(2**63 - 4096),
            "memory/docker/ab/memory.limit_in_bytes": "4000",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/docker/ab/cpu.cfs_quota_us": "200000",
        },
    )
    assert (machine.memory_limit(), machine.cpu_quota()) == (4000, 2.0)


def test_no_limits(groups):
    groups("0::/\n", {"memory.max": "max", "cpu.max": "max 100000"})
    assert (machine.memory_limit(), machine.cpu_quota()) == (None, None)


def test_a_quota_is_told_with_what_to_do(findings, monkeypatch):
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    monkeypatch.setattr(machine, "memory_limit", lambda: 10**9)
    code, found = findings()
    assert code == 0
    assert named(found, "cpu").state == "note"
    assert "OMP_NUM_THREADS=1" in named(found, "cpu").hint
    assert named(found, "memory").message.endswith("the container allows 1.0 GB")


def test_a_system_that_tells_nothing(findings, monkeypatch):
    for name in ("total_memory", "free_memory", "memory_limit", "cpu_quota"):
        monkeypatch.setattr(machine, name, lambda: None)
    code, found = findings()
    assert (code, named(found, "memory").state) == (0, "note")
