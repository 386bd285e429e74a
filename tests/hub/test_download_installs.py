"""Fetched from the hub and installed for real: original layouts in, loadable folders out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from osp_cli import registry
from osp_cli.cli.app import main
from osp_cli.hub import hashes
from osp_cli.models.state_dict import load_autoencoder, load_transformer

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
CONFIG = GOLDEN / "transformer.config.json"


@pytest.fixture
def real(fake_hub, hub_home, monkeypatch):
    """A card whose parts lie side by side in one repository, under their original names."""
    fake_hub.repos["own/real"] = {
        "FlashI2V.safetensors": (GOLDEN / "transformer.weights.safetensors").read_bytes(),
        "Wan2.1_VAE.safetensors": (GOLDEN / "vae.weights.safetensors").read_bytes(),
        "config.json": (GOLDEN / "transformer.config.json").read_bytes(),
    }
    base = registry.Download(part="transformer", repo="own/real", files=("Fl*", "config.json"))
    spec = replace(
        registry.find_model("flashi2v-1.3b"),
        name="real",
        source="own/real",
        weights="real",
        parts=("transformer", "vae"),
        architecture=None,
        downloads=(base, replace(base, part="vae", files=("Wan2.1_VAE.*",))),
    )
    monkeypatch.setattr(registry, "model_specs", lambda: {"real": spec})
    monkeypatch.setenv("HF_ENDPOINT", fake_hub.url)
    return spec


def test_original_weights_are_fetched_converted_and_loadable(real, fake_hub, capsys):
    assert main(["download", "real"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{real.weights_dir()}\n"
    assert "converted" in said.err
    transformer = load_transformer(real.weights_dir() / "transformer")
    golden = load_transformer(GOLDEN / "transformer.weights.safetensors", config=CONFIG)
    for name, tensor in golden.state_dict().items():
        mine = transformer.state_dict()[name]
        torch.testing.assert_close(mine.float(), tensor.to(mine.dtype).float(), rtol=0, atol=0)
    load_autoencoder(real.weights_dir() / "vae")
    # Neither fetched nor converted a second time.
    times = {path: path.stat().st_mtime_ns for path in real.weights_dir().rglob("*")}
    asked = len(fake_hub.asked("resolve"))
    assert main(["download", "real", "-q"]) == 0
    assert len(fake_hub.asked("resolve")) == asked
    assert {path: path.stat().st_mtime_ns for path in real.weights_dir().rglob("*")} == times


def test_the_converted_copy_is_verified_and_made_anew(real, capsys):
    assert main(["download", "real", "-q"]) == 0
    assert main(["download", "real", "--verify"]) == 0
    record = json.loads((real.weights_dir() / "osp-install.json").read_text())
    converted = [part for part, values in record["parts"].items() if values["converted"]]
    [path] = (real.weights_dir() / converted[0]).glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)
    capsys.readouterr()
    assert main(["download", "real", "--verify"]) == 5
    assert f"{converted[0]}/{path.name} has the hash" in capsys.readouterr().err
    assert main(["download", "real", "-q"]) == 0
    assert main(["download", "real", "--verify", "-q"]) == 0


def test_local_files_are_installed_without_a_hub(real, fake_hub, tmp_path, capsys):
    for name, file in (("transformer", "a.safetensors"), ("vae", "b.safetensors")):
        shutil.copy(GOLDEN / f"{name}.weights.safetensors", tmp_path / file)
    shutil.copy(GOLDEN / "transformer.config.json", tmp_path / "config.json")
    (tmp_path / "weights").mkdir()
    for file in ("a.safetensors", "b.safetensors", "config.json"):
        (tmp_path / file).rename(tmp_path / "weights" / file)
    assert main(["download", "real", "--local", str(tmp_path / "weights")]) == 0
    assert capsys.readouterr().out == f"{real.weights_dir()}\n"
    assert not fake_hub.log
    load_transformer(real.weights_dir() / "transformer")
    # The next download leaves it alone, and it can be verified.
    assert main(["download", "real"]) == 0
    assert "is installed from elsewhere" in capsys.readouterr().err
    assert main(["download", "real", "--verify", "-q"]) == 0


def test_what_is_not_there_and_was_published_is_fetched(real, fake_hub, tmp_path, capsys):
    """As for a model of which only the transformer came by another way."""
    weights = tmp_path / "weights"
    weights.mkdir()
    shutil.copy(GOLDEN / "transformer.weights.safetensors", weights / "mine.safetensors")
    shutil.copy(CONFIG, weights / "config.json")
    assert main(["download", "real", "--local", str(weights)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{real.weights_dir()}\n"
    assert f"not at {weights}, but published, and so fetched: vae" in said.err
    # Large files are behind a redirection of their own.
    assert fake_hub.asked("Wan2.1_VAE")
    assert not fake_hub.asked("FlashI2V.safetensors")
    load_transformer(real.weights_dir() / "transformer")
    load_autoencoder(real.weights_dir() / "vae")
    record = json.loads((real.weights_dir() / "osp-install.json").read_text())
    assert record["parts"]["transformer"]["source"]["path"].endswith("weights/mine.safetensors")
    assert main(["download", "real"]) == 0
    assert "is installed from elsewhere" in capsys.readouterr().err


def test_the_first_run_reads_no_weights_for_their_hashes(real, monkeypatch):
    monkeypatch.setattr(hashes, "_REMEMBERED_BYTES", 1)
    assert main(["download", "real", "-q"]) == 0
    expected = {
        path.relative_to(real.weights_dir()).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in real.weights_dir().rglob("*.safetensors")
    }
    monkeypatch.setattr(hashes, "_read", None)
    assert hashes.weights_hash(real.weights_dir()) == expected


def test_offline_what_is_not_there_is_told(real, fake_hub, tmp_path, capsys):
    weights = tmp_path / "weights"
    weights.mkdir()
    shutil.copy(GOLDEN / "transformer.weights.safetensors", weights / "mine.safetensors")
    shutil.copy(CONFIG, weights / "config.json")
    assert main(["download", "real", "--local", str(weights), "--offline"]) == 3
    assert "not in the cache" in capsys.readouterr().err
    assert not fake_hub.log
    assert real.find_weights() is None
