"""A recipe is found in every kind of output, and nothing else is taken for one."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.recipes import MAX_RECIPE_BYTES, canonical_json, read_recipe
from osp_cli.media.sinks import open_sink
from osp_cli.media.video import write_video

RECIPE = {"prompt": 'pan "left" — 左 🦊 \\ \n', "seed": 7, "style": None, "cutoff": [0.1, 0.25]}
OUTPUTS = ["clip.mp4", "clip.gif", "clip.webp", "frames/%04d.png"]
FILES = OUTPUTS[:3]


def latents(path, metadata, size=None, tail=b"\0" * 8):
    """A safetensors file with one tensor of eight bytes."""
    header = {"x": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}
    if metadata is not None:
        header["__metadata__"] = metadata
    data = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data) if size is None else size) + data + tail)
    return path


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    "recipe",
    [RECIPE, {}, {"prompt": "long " * 20_000}, {"nested": {"b": [1, {"a": "é"}]}}],
    ids=["usual", "empty", "long", "nested"],
)
def test_round_trip(tmp_path, frames, output, recipe):
    saved = open_sink(tmp_path / output, fps=16, recipe=recipe).write(frames[:2])
    assert read_recipe(tmp_path / output) == recipe
    assert read_recipe(saved.path) == recipe
    assert read_recipe(saved.sidecar) == recipe


@pytest.mark.parametrize("output", FILES)
def test_the_file_alone_is_enough_whatever_it_is_called(tmp_path, frames, output):
    saved = open_sink(tmp_path / output, fps=16, recipe=RECIPE).write(frames)
    alone = tmp_path / "renamed.bin"
    shutil.copy(saved.path, alone)
    assert read_recipe(alone) == RECIPE


@pytest.mark.parametrize("output", FILES)
def test_a_clip_that_lost_its_recipe_has_the_one_beside_it(tmp_path, frames, output):
    path = tmp_path / output
    open_sink(path, fps=16, recipe=RECIPE).write(frames)
    bare = open_sink(tmp_path / f"bare-{output}", fps=16, recipe=RECIPE, metadata=False)
    shutil.move(bare.write(frames).path, path)
    assert read_recipe(path) == RECIPE
    (tmp_path / f"{output}.json").unlink()
    assert read_recipe(path) is None


@pytest.mark.parametrize("output", FILES)
def test_its_own_recipe_goes_before_the_one_beside_it(tmp_path, frames, output):
    path = tmp_path / output
    open_sink(path, fps=16, recipe=RECIPE).write(frames)
    (tmp_path / f"{output}.json").write_text('{"seed": 8}')
    assert read_recipe(path) == RECIPE


@pytest.mark.parametrize("output", OUTPUTS)
def test_without_metadata_there_is_none(tmp_path, frames, output):
    open_sink(tmp_path / output, fps=16, recipe=RECIPE, metadata=False).write(frames)
    assert read_recipe(tmp_path / output) is None


def test_latents(tmp_path):
    path = latents(tmp_path / "clip.latents.safetensors", {"recipe": canonical_json(RECIPE)})
    assert read_recipe(path) == RECIPE


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"format": "pt"}, {"recipe": "no JSON"}, {"recipe": "[1]"}, {"recipe": 3}],
)
def test_latents_without_a_recipe(tmp_path, metadata):
    assert read_recipe(latents(tmp_path / "x.safetensors", metadata)) is None


def test_latents_that_the_library_wrote(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "clip.latents.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, path, {"recipe": canonical_json(RECIPE)})
    assert read_recipe(path) == RECIPE


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**40, 2**64 - 1])
def test_latents_with_a_lie_about_their_size(tmp_path, size):
    path = latents(tmp_path / "x.safetensors", {"recipe": "{}"}, size=size)
    with pytest.raises(UnreadableMediaError, match="damaged"):
        read_recipe(path)


@given(data=st.binary(max_size=64))
def test_garbage_is_refused_in_a_sentence(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    for name in ("garbage.safetensors", "garbage.json"):
        (folder / name).write_bytes(data)
        try:
            recipe = read_recipe(folder / name)
        except UnreadableMediaError as error:
            assert name in error.message
        else:
            assert recipe is None or isinstance(recipe, dict)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '"text"', "null", "7", "{", '{"a": NaN}', "[" * 100_000, '{"a": 1} {}', "\ufeff"],
    ids=lambda text: repr(text[:8]),
)
def test_json_that_is_no_recipe(tmp_path, frames, text):
    (tmp_path / "x.json").write_text(text, "utf-8")
    with pytest.raises(UnreadableMediaError, match=r"x\.json is no recipe"):
        read_recipe(tmp_path / "x.json")
    if text.isprintable():
        write_video(frames[:1], tmp_path / "clip.mp4", comment=text)
        assert read_recipe(tmp_path / "clip.mp4") is None


def test_too_large_for_a_recipe(tmp_path, frames):
    text = json.dumps({"prompt": "x" * MAX_RECIPE_BYTES})
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UnreadableMediaError, match="too large"):
        read_recipe(tmp_path / "x.json")
    assert read_recipe(latents(tmp_path / "x.safetensors", {"recipe": text})) is None
    write_video(frames[:1], tmp_path / "clip.mp4", comment=text)
    assert read_recipe(tmp_path / "clip.mp4") is None


def test_saved_by_an_editor_with_a_byte_order_mark(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(RECIPE), "utf-8-sig")
    assert read_recipe(tmp_path / "x.json") == RECIPE


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "x.json", "x.safetensors", "f/%04d.png"])
def test_missing(tmp_path, name):
    with pytest.raises(UnreadableMediaError, match="does not exist"):
        read_recipe(tmp_path / name)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"GIF89a" + b"\xff" * 40, b"not a video"])
def test_damaged_clips(tmp_path, data):
    (tmp_path / "clip.gif").write_bytes(data)
    with pytest.raises(UnreadableMediaError, match=r"clip\.gif"):
        read_recipe(tmp_path / "clip.gif")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_carries_none(tmp_path, suffix):
    Image.new("RGB", (8, 8)).save(tmp_path / f"cat.{suffix}")
    assert read_recipe(tmp_path / f"cat.{suffix}") is None


def test_some_folder_carries_none(tmp_path):
    assert read_recipe(tmp_path) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(UnreadableMediaError, match="no ordinary file"):
        read_recipe(tmp_path / "clip.mp4")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.touch()

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", deny)
    with pytest.raises(UnreadableMediaError, match="Permission denied"):
        read_recipe(path)


def test_reading_needs_neither_torch_nor_numpy(tmp_path, frames):
    for output in OUTPUTS:
        open_sink(tmp_path / output, fps=16, recipe=RECIPE).write(frames)
    latents(tmp_path / "x.safetensors", {"recipe": canonical_json(RECIPE)})
    names = [str(tmp_path / name) for name in (*OUTPUTS, "x.safetensors", "clip.mp4.json")]
    script = (
        "import sys; from osp_cli.media.recipes import read_recipe\n"
        "print(len([read_recipe(name)['seed'] for name in sys.argv[1:]]),"
        " [name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *names], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "6 []"
