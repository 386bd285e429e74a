"""A folder of numbered frames: whole or not at all, and nobody else's files are touched."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osp_cli.errors import InvalidRequestError
from osp_cli.media import frame_folder
from osp_cli.media.frame_folder import check_frames_output, frames_folder, write_frames

RECIPE = b'{"seed": 7}\n'


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("output", "folder"),
    [
        ("frames/%04d.png", "frames"),
        ("frames/%d.png", "frames"),
        ("a/b/shot_%06d_left.PNG", "a/b"),
        ("%04d.png", "."),
        ("frames/%4d.png", None),
        ("frames/%s.png", None),
        ("frames/%04d-%04d.png", None),
        ("frames/%%04d.png", None),
        ("frames/%012d.png", None),
        ("frames/%04d.jpg", None),
        ("%04d/frame.png", None),
        ("clip.png", None),
        ("clip.mp4", None),
        ("-", None),
    ],
)
def test_what_is_a_pattern(output, folder):
    assert frames_folder(Path(output)) == (None if folder is None else Path(folder))


def test_frames_are_numbered_from_one_and_exact(tmp_path, frames):
    size = write_frames(frames, tmp_path / "f" / "%04d.png", recipe=RECIPE)
    names = [f"{number:04d}.png" for number in range(1, 10)]
    assert left_in(tmp_path / "f") == [*names, "recipe.json"]
    assert left_in(tmp_path) == ["f"]
    for name, frame in zip(names, frames, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "f" / name)), frame)
    assert size == sum((tmp_path / "f" / name).stat().st_size for name in names)
    assert (tmp_path / "f" / "recipe.json").read_bytes() == RECIPE


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("%d.png", "1.png", "12.png"),
        ("%01d.png", "1.png", "12.png"),
        ("a%03db.png", "a001b.png", "a012b.png"),
    ],
)
def test_names(tmp_path, name, first, last):
    write_frames(np.zeros((12, 5, 7, 3), np.uint8), tmp_path / "f" / name)
    assert len(left_in(tmp_path / "f")) == 12
    assert {first, last} <= set(left_in(tmp_path / "f"))


def test_equal_frames_give_equal_bytes(tmp_path, frames):
    write_frames(frames, tmp_path / "a" / "%04d.png")
    write_frames((frame for frame in frames), tmp_path / "b" / "%04d.png")
    for name in left_in(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_empty_folder_is_filled(tmp_path, frames):
    (tmp_path / "f").mkdir()
    write_frames(frames, tmp_path / "f" / "%04d.png")
    assert len(left_in(tmp_path / "f")) == 9


def test_an_existing_folder_is_refused_and_kept(tmp_path, frames):
    pattern = tmp_path / "f" / "%04d.png"
    write_frames(frames, pattern)
    before = (tmp_path / "f" / "0001.png").read_bytes()
    with pytest.raises(InvalidRequestError, match="exists already") as caught:
        write_frames(frames[::-1], pattern)
    assert "-y" in (caught.value.hint or "")
    assert (tmp_path / "f" / "0001.png").read_bytes() == before


def test_overwriting_leaves_no_frame_of_the_longer_clip_before(tmp_path, frames):
    pattern = tmp_path / "f" / "%04d.png"
    write_frames(frames, pattern, recipe=RECIPE)
    write_frames(frames[:3], pattern, overwrite=True)
    assert left_in(tmp_path / "f") == ["0001.png", "0002.png", "0003.png"]
    assert left_in(tmp_path) == ["f"]


@pytest.mark.parametrize("name", ["notes.txt", "cat.png", "0001.jpg", "frame0001.png", ".hidden"])
def test_other_files_are_never_deleted(tmp_path, frames, name):
    pattern = tmp_path / "f" / "%04d.png"
    write_frames(frames, pattern)
    (tmp_path / "f" / name).write_bytes(b"precious")
    before = left_in(tmp_path / "f")
    with pytest.raises(InvalidRequestError, match="other things") as caught:
        write_frames(frames, pattern, overwrite=True)
    assert name in caught.value.message
    assert left_in(tmp_path / "f") == before
    assert left_in(tmp_path) == ["f"]


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_only_looks_like_a_frame_is_kept(tmp_path, frames, kind):
    (tmp_path / "f").mkdir()
    if kind == "folder":
        (tmp_path / "f" / "0001.png").mkdir()
    else:
        (tmp_path / "f" / "0001.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(InvalidRequestError, match="other things"):
        write_frames(frames, tmp_path / "f" / "%04d.png", overwrite=True)
    assert left_in(tmp_path / "f") == ["0001.png"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, frames):
    pattern = tmp_path / "f" / "%04d.png"
    write_frames(frames, pattern)

    def slow():
        (tmp_path / "f" / "notes.txt").write_text("precious")
        yield from frames[::-1]

    with pytest.raises(InvalidRequestError, match="other things"):
        write_frames(slow(), pattern, overwrite=True)
    assert (tmp_path / "f" / "notes.txt").read_text() == "precious"
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "f" / "0001.png")), frames[0])
    assert left_in(tmp_path) == ["f"]


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path, frames):
    def slow():
        yield from frames
        write_frames(frames[:1], tmp_path / "f" / "%04d.png")

    with pytest.raises(InvalidRequestError, match="exists already"):
        write_frames(slow(), tmp_path / "f" / "%04d.png")
    assert left_in(tmp_path / "f") == ["0001.png"]
    assert left_in(tmp_path) == ["f"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", [1, 2])
def test_replacing_that_fails_midway_gives_the_old_frames_back(
    tmp_path, frames, monkeypatch, error, failing
):
    pattern = tmp_path / "f" / "%04d.png"
    write_frames(frames, pattern, recipe=RECIPE)
    before = {name: (tmp_path / "f" / name).read_bytes() for name in left_in(tmp_path / "f")}
    genuine, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing:
            raise error
        return genuine(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(type(error)):
        write_frames(frames[:2], pattern, overwrite=True)
    assert {
        name: (tmp_path / "f" / name).read_bytes() for name in left_in(tmp_path / "f")
    } == before
    assert left_in(tmp_path) == ["f"]


def test_an_interrupt_right_after_the_new_name(tmp_path, frames, monkeypatch):
    pattern = tmp_path / "f" / "%04d.png"
    write_frames(frames, pattern)
    genuine, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        moved = genuine(self, target)
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        write_frames(frames[:2], pattern, overwrite=True)
    assert left_in(tmp_path / "f") == ["0001.png", "0002.png"]
    assert left_in(tmp_path) == ["f"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("clip.png", "does not number"),
        ("f/%04d-%d.png", "does not number"),
        ("%04d.png", "no folder of its own"),
        ("../%04d.png", "no folder of its own"),
        ("/%04d.png", "no folder of its own"),
        ("nowhere/f/%04d.png", "does not exist"),
        ("file/%04d.png", "exists already"),
        ("link/%04d.png", "leads to another place"),
        ("dangling/%04d.png", "leads to another place"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_places_that_are_refused(tmp_path, monkeypatch, pattern, words, overwrite):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("real").mkdir()
    Path("link").symlink_to("real")
    Path("dangling").symlink_to("gone")
    with pytest.raises(InvalidRequestError, match=words) as caught:
        check_frames_output(Path(pattern), overwrite=overwrite)
    assert caught.value.hint


def test_this_very_folder_by_its_full_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequestError, match="no folder of its own"):
        check_frames_output(tmp_path / "%04d.png")


def test_finder_and_explorer_are_no_obstacle(tmp_path, frames):
    pattern = tmp_path / "f" / "%04d.png"
    write_frames(frames, pattern)
    (tmp_path / "f" / ".DS_Store").touch()
    write_frames(frames[:1], pattern, overwrite=True)
    assert left_in(tmp_path / "f") == ["0001.png"]


def make_old(folder: Path) -> None:
    long_ago = time.time() - 3600
    os.utime(folder, (long_ago, long_ago))


def test_leftovers_of_a_killed_run_are_cleared(tmp_path, frames):
    pid = dead_pid()
    part = tmp_path / f".f.{pid}.part"
    part.mkdir()
    (part / "0001.png").touch()
    make_old(part)
    write_frames(frames, tmp_path / "f" / "%04d.png")
    assert left_in(tmp_path) == ["f"]


def test_frames_that_a_killed_run_had_moved_away_return(tmp_path, frames):
    """Killed between the two renames: the former frames lie under the hidden name."""
    pattern = tmp_path / "f" / "%04d.png"
    write_frames(frames, pattern, recipe=RECIPE)
    old = (tmp_path / "f").rename(tmp_path / f".f.{dead_pid()}.old")
    make_old(old)
    # The next run fails, and yet they are back.
    with pytest.raises(ValueError, match="no frames"):
        write_frames([], pattern, overwrite=True)
    assert json.loads((tmp_path / "f" / "recipe.json").read_text()) == {"seed": 7}
    assert len(left_in(tmp_path / "f")) == 10
    assert left_in(tmp_path) == ["f"]


def test_foreign_things_among_leftovers_stay(tmp_path, frames):
    part = tmp_path / f".f.{dead_pid()}.part"
    part.mkdir()
    (part / "thesis.txt").write_text("precious")
    make_old(part)
    write_frames(frames, tmp_path / "f" / "%04d.png")
    assert left_in(part) == ["thesis.txt"]


def test_checking_needs_no_pictures():
    assert "PIL" not in vars(frame_folder)
    assert "np" not in vars(frame_folder)
