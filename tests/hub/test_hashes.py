"""Weight files by their SHA-256, large ones read once."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from osp_cli.hub import hashes
from osp_cli.hub.hashes import weights_hash


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_weights_hash_sees_every_byte_and_nothing_but_weights(tmp_path):
    for name in ("b/x.safetensors", "a.safetensors", "config.json", "c.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    before = weights_hash(tmp_path)
    assert list(before) == ["a.safetensors", "b/x.safetensors", "c.gguf"]
    (tmp_path / "config.json").write_bytes(b"{}")
    assert weights_hash(tmp_path) == before
    (tmp_path / "b" / "x.safetensors").write_bytes(b"b/y.safetensors")
    assert weights_hash(tmp_path)["a.safetensors"] == before["a.safetensors"]
    assert weights_hash(tmp_path)["b/x.safetensors"] != before["b/x.safetensors"]


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that are read, with everything from ten bytes on counted as large."""
    names = []
    genuine = hashes._read

    def read(path):
        names.append(path.name)
        return genuine(path)

    monkeypatch.setattr(hashes, "_REMEMBERED_BYTES", 10)
    monkeypatch.setattr(hashes, "_read", read)
    return names


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "large.safetensors").write_bytes(b"0123456789")
    (folder / "small.safetensors").write_bytes(b"012")
    return folder


def test_a_large_file_is_read_once(folder, reads):
    first = weights_hash(folder)
    assert first["large.safetensors"] == hashlib.sha256(b"0123456789").hexdigest()
    assert weights_hash(folder) == first
    assert reads == ["large.safetensors", "small.safetensors", "small.safetensors"]


@pytest.mark.parametrize("change", ["size", "time", "file"])
def test_a_changed_file_is_read_again(folder, reads, change):
    path = folder / "large.safetensors"
    before = weights_hash(folder)["large.safetensors"]
    stat = path.stat()
    if change == "size":
        path.write_bytes(b"0123456789+")
    elif change == "time":
        path.write_bytes(b"9876543210")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    else:
        other = folder / "other"
        other.write_bytes(b"9876543210")
        os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        other.replace(path)
    assert weights_hash(folder)["large.safetensors"] != before
    assert reads.count("large.safetensors") == 2


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"x": 1}'])
def test_a_damaged_memory_is_begun_anew(folder, reads, home, text):
    before = weights_hash(folder)
    (home / "hashes.json").write_text(text)
    assert weights_hash(folder) == before
    assert len(json.loads((home / "hashes.json").read_text())) >= 1


def test_a_home_that_cannot_be_written_costs_only_time(folder, reads, home):
    home.write_text("a file where a folder should be")
    assert weights_hash(folder) == weights_hash(folder)
    assert reads.count("large.safetensors") == 2
