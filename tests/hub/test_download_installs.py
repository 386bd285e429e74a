"""Fetched from the hub and installed for real: original layouts in, loadable folders out."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from osp_cli import registry
from osp_cli.cli.app import main
from osp_cli.errors import WeightsMissingError
from osp_cli.hub import hashes, whole
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


# --- Incomplete, damaged, and made whole again -------------------------------------------------


@pytest.fixture
def local(real, tmp_path):
    """The real card, installed from a folder of the user's own; gives the folder."""
    folder = tmp_path / "own weights"
    folder.mkdir()
    shutil.copy(GOLDEN / "transformer.weights.safetensors", folder / "a.safetensors")
    shutil.copy(GOLDEN / "vae.weights.safetensors", folder / "b.safetensors")
    shutil.copy(CONFIG, folder / "config.json")
    assert main(["download", "real", "--local", str(folder), "-q"]) == 0
    return folder


def own_file(spec):
    """A file that was written anew when the model was installed."""
    record = json.loads((spec.weights_dir() / "osp-install.json").read_text())
    part = next(part for part, values in record["parts"].items() if values["converted"])
    [path] = (spec.weights_dir() / part).glob("*.safetensors")
    return path


def test_what_is_gone_from_a_fetched_model_is_made_anew_by_the_next_download(real, fake_hub):
    assert main(["download", "real", "-q"]) == 0
    path = own_file(real)
    path.unlink()
    assert "is missing" in whole.gap(real)
    assert whole.mend(real).startswith("osp download real fetches")
    asked = len(fake_hub.asked("resolve"))
    assert main(["download", "real", "-q"]) == 0
    assert path.is_file()
    assert whole.gap(real) is None
    assert len(fake_hub.asked("resolve")) == asked


def test_the_way_to_repair_a_local_installation_is_told_and_works(real, local, fake_hub, capsys):
    path = own_file(real)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 0xFF]))
    capsys.readouterr()
    assert main(["download", "real", "--verify"]) == 5
    said = capsys.readouterr().err
    command = f"osp download real --local '{local}' -y"
    assert f"hint: {command} installs it anew" in said
    assert "fetches just these" not in said
    assert main(shlex.split(command)[1:]) == 0
    assert path.read_bytes() == data
    capsys.readouterr()
    assert main(["download", "real", "--verify"]) == 0
    said = capsys.readouterr().err
    assert "all as they were installed" in said
    assert "published" not in said
    assert not fake_hub.log


def test_an_incomplete_local_installation_is_not_left_alone_in_silence(real, local, capsys):
    path = own_file(real)
    path.write_bytes(path.read_bytes()[:-8])
    capsys.readouterr()
    assert main(["download", "real"]) == 3
    said = capsys.readouterr().err
    assert f"{path.parent.name}/{path.name} has " in said
    assert f"--local '{local}' -y installs it anew" in said
    # Without the files that it came from, there is still the hub.
    shutil.rmtree(local)
    assert whole.mend(real) == "osp download real -y fetches and replaces it"


def test_a_second_time_from_the_same_files_nothing_is_converted(real, local, capsys):
    path = own_file(real)
    before = path.stat().st_mtime_ns
    capsys.readouterr()
    again = ["download", "real", "--local", str(local)]
    assert main(again) == 0
    said = capsys.readouterr()
    assert said.out == f"{real.weights_dir()}\n"
    assert "real is installed from there already; -y installs it anew" in said.err
    assert path.stat().st_mtime_ns == before
    # A new file, an incomplete installation or the user's word: it is done again.
    assert main([*again, "-y"]) == 0
    assert (first := path.stat().st_mtime_ns) != before
    path.unlink()
    assert main(again) == 0
    assert (second := path.stat().st_mtime_ns) != first
    weights = local / "a.safetensors"
    os.utime(weights, ns=(1, 1))
    assert main(again) == 0
    assert "installed from there already" not in capsys.readouterr().err
    assert path.parent.name != "transformer" or path.stat().st_mtime_ns != second


def test_of_a_mixed_installation_only_what_was_fetched_is_compared_with_the_hub(
    real, tmp_path, capsys
):
    weights = tmp_path / "weights"
    weights.mkdir()
    shutil.copy(GOLDEN / "transformer.weights.safetensors", weights / "mine.safetensors")
    shutil.copy(CONFIG, weights / "config.json")
    assert main(["download", "real", "--local", str(weights), "-q"]) == 0
    capsys.readouterr()
    assert main(["download", "real", "--verify"]) == 0
    assert "1 as published" in capsys.readouterr().err


def test_a_shard_that_the_index_names_and_is_not_there(real, local, capsys):
    """Put there by hand, nothing but the index tells."""
    place = real.weights_dir()
    (place / "osp-install.json").unlink()
    assert whole.gap(real) is None
    shards = {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
    index = place / "vae" / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    (place / "vae" / "m-00001-of-00002.safetensors").touch()
    assert whole.gap(real) == "vae/m-00002-of-00002.safetensors is missing"
    with pytest.raises(WeightsMissingError, match="incomplete: vae/m-00002") as caught:
        whole.whole_weights_dir(real)
    assert caught.value.hint == "osp download real -y fetches and replaces it"
    (place / "vae" / "m-00002-of-00002.safetensors").touch()
    assert whole.whole_weights_dir(real) == place
