"""What `osp extend` reads from its arguments."""

from __future__ import annotations

import os

import pytest

from osp_cli.cli.extend_values import StageList, input_and_prompt, read_text, stage_list
from osp_cli.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1", StageList(1)),
        (" 4 ", StageList(4)),
        ("448x256", StageList(1, (448, 256))),
        ("160x96,320x192,640x384", StageList(3, (640, 384))),
    ],
)
def test_stages(text, found):
    assert stage_list(text) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0", "must be 1 to 4, got 0"),
        ("5", "must be 1 to 4, got 5"),
        ("99", "must be 1 to 4, got 99"),
        ("160x96,640x384", "160x96 is followed by 640x384"),
        ("640x384,320x192", "640x384 is followed by 320x192"),
        ("10x6,20x12,40x24,80x48,160x96", "must be 1 to 4, got 5 sizes"),
        ("", "--stages takes a number or sizes"),
        ("three", "--stages takes a number or sizes"),
        ("-1", "--stages takes a number or sizes"),
        ("160x96,", "--stages takes a number or sizes"),
    ],
)
def test_stages_that_make_no_sense(text, why):
    with pytest.raises(InvalidRequestError, match=why):
        stage_list(text)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ((None, None), (None, None)),
        (("clip.mp4", "rain"), ("clip.mp4", "rain")),
        (("-", None), ("-", None)),
        (("there.mp4", None), ("there.mp4", None)),
        (("folder", None), ("folder", None)),
        # Looks like a file: missed by its name, not painted.
        (("gone.mp4", None), ("gone.mp4", None)),
        (("a/gone.jpeg", None), ("a/gone.jpeg", None)),
        (("it begins to rain", None), (None, "it begins to rain")),
        (("rain", None), (None, "rain")),
        (("rain falls. snow.", None), (None, "rain falls. snow.")),
        (("two words.mp4", None), (None, "two words.mp4")),
        ((None, "rain"), (None, "rain")),
    ],
)
def test_a_lone_text_is_a_prompt_and_a_lone_file_is_none(away, typed, meant):
    (away / "there.mp4").touch()
    (away / "folder").mkdir()
    assert input_and_prompt(*typed) == meant


def test_any_text_may_be_a_prompt():
    for prompt in ("x" * 5000, "a\0b", "rain\nand snow", "\udcff", "//"):
        assert input_and_prompt(prompt, None) in ((None, prompt), (prompt, None))


def test_a_text_is_read_whatever_its_editor(away):
    path = away / "play.txt"
    path.write_bytes(b"\xef\xbb\xbf0s: sn\xc3\xb6w\r\n")
    assert read_text(path, "the screenplay") == "0s: snöw\n"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gone.txt", "cannot be read: No such file"),
        ("folder", "cannot be read: Is a directory"),
        ("latin.txt", "is not UTF-8 text"),
        ("huge.txt", "is too large for the screenplay"),
        ("x" * 300, "cannot be read: File name too long"),
    ],
)
def test_texts_that_cannot_be_read(away, name, why):
    (away / "folder").mkdir()
    (away / "latin.txt").write_bytes("0s: schnö".encode("latin-1"))
    with (away / "huge.txt").open("wb") as file:
        os.truncate(file.fileno(), 2**20 + 1)
    with pytest.raises(InvalidRequestError, match=why):
        read_text(away / name, "the screenplay")
