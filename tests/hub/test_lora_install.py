"""LoRAs that are put where they are known by name."""

from __future__ import annotations

import os

import pytest

from osp_cli.errors import InvalidRequestError
from osp_cli.hub.lora_install import check_name, install
from osp_cli.loras import find_lora, installed_loras


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "loras"


@pytest.fixture
def run(tmp_path):
    """Writes the files of a run; gives their paths."""

    def write(name="glass", companion=True, contents=b"one"):
        folder = tmp_path / f"run-{name}-{contents.decode()}"
        folder.mkdir()
        endings = [".safetensors", *([".adapter.safetensors"] if companion else [])]
        for ending in endings:
            (folder / f"{name}{ending}").write_bytes(contents + ending.encode())
        return [folder / f"{name}{ending}" for ending in endings]

    return write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_both_files_get_the_name(home, run):
    files = run("run")
    assert install(files, "glass") == home / "glass.safetensors" == find_lora("glass")
    assert names(home) == ["glass.adapter.safetensors", "glass.safetensors"]
    assert (home / "glass.safetensors").read_bytes() == files[0].read_bytes()
    assert (home / "glass.adapter.safetensors").read_bytes() == files[1].read_bytes()
    assert installed_loras() == {"glass": home / "glass.safetensors"}


def test_where_links_do_not_work_files_are_copied(home, run, monkeypatch):
    files = run()
    monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError("no links")))
    target = install(files, "glass")
    assert target.read_bytes() == files[0].read_bytes()
    assert target.stat().st_ino != files[0].stat().st_ino


def test_a_name_that_is_taken_is_refused_or_replaced_whole(home, run):
    install(run(contents=b"one"), "glass")
    later = run(companion=False, contents=b"two")
    with pytest.raises(InvalidRequestError, match="'glass' is installed already") as caught:
        install(later, "glass")
    assert "-y to replace it" in caught.value.hint
    assert (home / "glass.safetensors").read_bytes().startswith(b"one")
    install(later, "glass", overwrite=True)
    assert (home / "glass.safetensors").read_bytes().startswith(b"two")
    # The first one's companion is no part of the second.
    assert names(home) == ["glass.safetensors"]


def test_installed_files_may_be_installed_again(home, run):
    install(run(), "glass")
    files = [home / "glass.safetensors", home / "glass.adapter.safetensors"]
    before = [path.read_bytes() for path in files]
    install(files, "glass", overwrite=True)
    assert [path.read_bytes() for path in files] == before


def test_a_folder_of_the_name_is_left_alone(home, run):
    (home / "glass").mkdir(parents=True)
    (home / "glass" / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(InvalidRequestError, match="is a folder"):
        install(run(), "glass", overwrite=True)
    assert names(home) == ["glass"]


def test_a_name_is_judged_before_there_is_anything_to_install(home, run):
    check_name("glass", overwrite=False)
    install(run(), "glass")
    check_name("glass", overwrite=True)
    check_name("other", overwrite=False)
    with pytest.raises(InvalidRequestError, match="'glass' is installed already"):
        check_name("glass", overwrite=False)


def test_a_failure_leaves_what_was_there(home, run, monkeypatch):
    install(run(contents=b"one"), "glass")
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError("no links")))

    def fails(*_):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("shutil.copyfile", fails)
    with pytest.raises(Exception, match="no space left"):
        install(run(contents=b"two"), "glass", overwrite=True)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before


def test_it_takes_one_lora_and_one_companion(home, run):
    one, two = run("a"), run("b")
    for files in ([], [one[1]], [one[0], two[0]], [*one, two[1]]):
        with pytest.raises(ValueError, match="at most one companion"):
            install(files, "glass")
    assert not home.exists()


def test_a_file_that_belongs_to_no_lora_is_nobodys_to_remove(home, run):
    home.mkdir(parents=True)
    stray = home / "glass.adapter.safetensors"
    stray.write_bytes(b"mine")
    with pytest.raises(InvalidRequestError, match="is there already"):
        check_name("glass", overwrite=False)
    install(run(companion=False), "glass", overwrite=True)
    assert stray.read_bytes() == b"mine"
    # Now there is a LoRA that it may belong to.
    install(run(companion=False, contents=b"two"), "glass", overwrite=True)
    assert not stray.exists()
