"""Files that appear whole or not at all, with their recipe inside and beside them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from osp_cli.errors import InvalidRequestError, RuntimeFailureError, WontFitError
from osp_cli.media.files import atomic_output, check_writable
from osp_cli.media.sinks import (
    canonical_json,
    check_output,
    open_sink,
    read_recipe,
    sidecar_path,
)
from osp_cli.media.video import read_comment, read_video

RECIPE = {"prompt": 'pan "left" — 左', "seed": 7, "model": "osp-mini", "cutoff": [0.1, 0.1]}


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_clip_and_sidecar_carry_the_recipe(tmp_path, frames):
    saved = open_sink(tmp_path / "clip.mp4", fps=16, recipe=RECIPE).write(frames)
    assert saved.path == tmp_path / "clip.mp4"
    assert saved.bytes == saved.path.stat().st_size
    assert saved.sidecar == tmp_path / "clip.mp4.json"
    assert left_in(tmp_path) == ["clip.mp4", "clip.mp4.json"]
    assert read_recipe(saved.path) == RECIPE
    assert json.loads(saved.sidecar.read_bytes()) == RECIPE
    assert read_video(saved.path).shape == frames.shape


def test_equal_runs_give_equal_bytes(tmp_path, frames):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        recipe = dict(sorted(RECIPE.items(), reverse=name == "b"))
        open_sink(tmp_path / name / f"{name}.mp4", fps=16, recipe=recipe).write(frames)
    for suffix in ("mp4", "mp4.json"):
        one, two = tmp_path / "a" / f"a.{suffix}", tmp_path / "b" / f"b.{suffix}"
        assert one.read_bytes() == two.read_bytes()


def test_without_metadata(tmp_path, frames):
    saved = open_sink(tmp_path / "clip.mp4", fps=16, recipe=RECIPE, metadata=False).write(frames)
    assert saved.sidecar is None
    assert left_in(tmp_path) == ["clip.mp4"]
    assert read_comment(saved.path) is None
    assert read_recipe(saved.path) is None


def test_stale_sidecar_goes_with_the_clip_it_described(tmp_path, frames):
    path = tmp_path / "clip.mp4"
    open_sink(path, fps=16, recipe=RECIPE).write(frames)
    open_sink(path, fps=16, recipe=RECIPE, overwrite=True, metadata=False).write(frames)
    assert left_in(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize("existing", ["clip.mp4", "clip.mp4.json"])
def test_existing_file_is_refused_and_kept(tmp_path, existing):
    (tmp_path / existing).write_bytes(b"precious")
    with pytest.raises(InvalidRequestError, match="exists already") as caught:
        open_sink(tmp_path / "clip.mp4", fps=16, recipe=RECIPE)
    assert "-y" in (caught.value.hint or "")
    assert (tmp_path / existing).read_bytes() == b"precious"


def test_overwrite(tmp_path, frames):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    sidecar_path(path).write_bytes(b"old")
    open_sink(path, fps=16, recipe=RECIPE, overwrite=True).write(frames)
    assert read_recipe(path) == RECIPE
    assert json.loads(sidecar_path(path).read_text()) == RECIPE
    assert left_in(tmp_path) == ["clip.mp4", "clip.mp4.json"]


@pytest.mark.parametrize("name", ["clip.avi", "clip", "clip.mp4.txt", "%04d.jpg"])
def test_unknown_extension(tmp_path, name):
    with pytest.raises(InvalidRequestError, match=r"\.mp4") as caught:
        check_output(tmp_path / name)
    assert ".mp4" in (caught.value.hint or "")


def test_extension_in_capitals(tmp_path):
    check_output(tmp_path / "CLIP.MP4")


def test_folder_missing_folder_and_file_as_folder(tmp_path):
    with pytest.raises(InvalidRequestError, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(InvalidRequestError, match="does not exist"):
        check_output(tmp_path / "nowhere" / "clip.mp4")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequestError, match="does not exist"):
        check_output(tmp_path / "file" / "clip.mp4")


def test_read_only_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InvalidRequestError, match="may not be written"):
        check_output(tmp_path / "clip.mp4")


@pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 0)() == 0, reason="the superuser may write everywhere"
)
def test_read_only_folder_for_real(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(InvalidRequestError, match="may not be written"):
        check_output(tmp_path / "clip.mp4")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_folder_that_turns_out_to_be_read_only(tmp_path, monkeypatch, code):
    def deny(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", deny)
    with (
        pytest.raises(InvalidRequestError, match="may not be written"),
        atomic_output(tmp_path / "clip.mp4"),
    ):
        pytest.fail("the block must not run")


def test_failing_encoder_leaves_neither_clip_nor_sidecar(tmp_path, frames, fake_ffmpeg):
    fake_ffmpeg("cat > /dev/null; exit 1")
    with pytest.raises(RuntimeFailureError):
        open_sink(tmp_path / "clip.mp4", fps=16, recipe=RECIPE).write(frames)
    assert left_in(tmp_path) == []


def test_interrupt_leaves_neither_clip_nor_sidecar(tmp_path, frames):
    def breaking():
        yield frames[0]
        assert len(left_in(tmp_path)) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_sink(tmp_path / "clip.mp4", fps=16, recipe=RECIPE).write(breaking())
    assert left_in(tmp_path) == []


def test_interrupt_keeps_what_was_there(tmp_path, frames):
    path = tmp_path / "clip.mp4"
    open_sink(path, fps=16, recipe=RECIPE).write(frames)
    before = path.read_bytes(), sidecar_path(path).read_bytes()

    def breaking():
        yield frames[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_sink(path, fps=16, recipe={"seed": 8}, overwrite=True).write(breaking())
    assert (path.read_bytes(), sidecar_path(path).read_bytes()) == before
    assert left_in(tmp_path) == ["clip.mp4", "clip.mp4.json"]


def test_full_disk_at_the_last_flush(tmp_path, frames, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WontFitError, match="no space left"):
        open_sink(tmp_path / "clip.mp4", fps=16, recipe=RECIPE).write(frames)
    assert left_in(tmp_path) == []


def test_file_that_appears_meanwhile_is_not_replaced(tmp_path, frames):
    path = tmp_path / "clip.mp4"

    def slow():
        path.write_bytes(b"somebody else's")
        yield from frames

    with pytest.raises(InvalidRequestError, match="exists already"):
        open_sink(path, fps=16, recipe=RECIPE).write(slow())
    assert path.read_bytes() == b"somebody else's"
    assert left_in(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize("appears", [False, True])
def test_file_system_without_hard_links(tmp_path, monkeypatch, appears):
    def unsupported(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    path = tmp_path / "a.txt"
    if appears:
        with pytest.raises(InvalidRequestError), atomic_output(path) as part:
            path.write_text("other")
            part.write_text("mine")
        assert path.read_text() == "other"
    else:
        with atomic_output(path) as part:
            part.write_text("mine")
        assert path.read_text() == "mine"
    assert left_in(tmp_path) == ["a.txt"]


def test_contents_are_flushed_before_the_name_appears(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    events: list[tuple[str, bool]] = []
    genuine = os.fsync

    def watched(descriptor: int) -> None:
        events.append(("fsync", path.exists()))
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with atomic_output(path) as part:
        assert part.parent == path.parent
        part.write_text("whole")
    # The file before, the folder after.
    assert events == [("fsync", False), ("fsync", True)]


def test_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_output(tmp_path / "a.txt") as part:
            part.write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_dangling_link_is_something(tmp_path):
    (tmp_path / "clip.mp4").symlink_to(tmp_path / "nowhere.mp4")
    with pytest.raises(InvalidRequestError, match="exists already"):
        check_writable(tmp_path / "clip.mp4")


def test_name_too_long(tmp_path):
    with pytest.raises(InvalidRequestError, match="too long"):
        check_writable(tmp_path / ("x" * 300))
    assert left_in(tmp_path) == []


def test_leftover_of_an_earlier_process_with_our_number(tmp_path):
    leftover = tmp_path / f".a.txt.{os.getpid()}.part.txt"
    leftover.write_text("old")
    with atomic_output(tmp_path / "a.txt") as part:
        assert part == leftover
        assert part.read_text() == ""
        part.write_text("new")
    assert left_in(tmp_path) == ["a.txt"]


def test_canonical_json():
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'
    assert canonical_json({"b": 1, "a": {"d": 2, "c": 3}}) == canonical_json(
        {"a": {"c": 3, "d": 2}, "b": 1}
    )
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"cfg": float("nan")})


def test_unserialisable_recipe_leaves_nothing(tmp_path, frames):
    with pytest.raises(TypeError):
        open_sink(tmp_path / "clip.mp4", fps=16, recipe={"path": object()}).write(frames)
    assert left_in(tmp_path) == []


def test_checking_an_output_needs_neither_torch_nor_numpy(tmp_path):
    script = (
        "import sys; from osp_cli.media.sinks import open_sink; "
        f"open_sink({str(tmp_path / 'clip.mp4')!r}, fps=16, recipe={{}}); "
        "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
