"""What `osp extend` goes on from where nothing is named."""

from __future__ import annotations

from osp_cli.last_output import last_output, remember


def test_the_last_one_is_known_as_long_as_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    assert last_output() is None
    monkeypatch.chdir(tmp_path)
    for name in ("one.mp4", "ü two.mp4"):
        (tmp_path / name).write_bytes(b"x")
        remember(tmp_path / name)
    assert last_output() == tmp_path / "ü two.mp4"
    (tmp_path / "ü two.mp4").unlink()
    assert last_output() is None


def test_a_relative_name_is_found_from_another_folder(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").write_bytes(b"x")
    remember(Path("clip.mp4"))
    monkeypatch.chdir("/")
    assert last_output() == tmp_path / "clip.mp4"


def test_where_nothing_can_be_noted_nothing_breaks(tmp_path, monkeypatch):
    (tmp_path / "home").write_bytes(b"a file, where a folder should be")
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    remember(tmp_path / "clip.mp4")
    assert last_output() is None
