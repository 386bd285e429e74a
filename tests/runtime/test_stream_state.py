"""The state of a stream: exact, whole, and there whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from osp_cli.errors import UnreadableMediaError, WontFitError
from osp_cli.extend_request import state_before as before
from osp_cli.media import files
from osp_cli.media.recipes import read_recipe
from osp_cli.runtime.stream_state import SavedStream, forget, load_stream, states_of
from osp_cli.runtime.stream_state import save_stream as save

NAME = "clip.state.safetensors"
TENSORS = {
    "stream.history": torch.linspace(-3, 3, 1 * 4 * 2 * 3 * 5).reshape(1, 4, 2, 3, 5),
    "stream.generator": torch.Generator().manual_seed(5).get_state(),
    "strange": torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-45]),
    "picture": torch.arange(24, dtype=torch.uint8).reshape(2, 4, 3),
}
SAVED = SavedStream(
    tensors=TENSORS,
    frames=37,
    made=25,
    notes={"direction": {"cues": [{"prompt": 'rain, "hard"; a=b\nümlaut 🌧'}]}, "drift": None,
           "chunk": 3, "third": 1 / 3},
    recipe={"command": "extend", "prompt": "ümlaut", "new_frames": None, "cutoff": [0.1, 0.1]},
)  # fmt: skip


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def assert_same(first: SavedStream, second: SavedStream) -> None:
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        other = second.tensors[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        assert bits(tensor) == bits(other), name
    rest = [replace(each, tensors={}) for each in (first, second)]
    assert rest[0] == rest[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def at(chunk: int) -> SavedStream:
    return replace(SAVED, frames=12 * chunk, notes={**SAVED.notes, "chunk": chunk})


@pytest.fixture
def path(away):
    return away / NAME


def test_what_is_read_is_what_was_written(path):
    save(path, SAVED)
    assert_same(load_stream(path), SAVED)
    assert names(path.parent) == [NAME]


def test_tensors_that_are_views_are_kept_as_they_look(path):
    turned = TENSORS["stream.history"].transpose(3, 4)[:, 1:]
    save(path, replace(SAVED, tensors={"turned": turned}))
    assert torch.equal(load_stream(path).tensors["turned"], turned)


def test_its_recipe_is_read_without_torch(path):
    save(path, SAVED)
    assert read_recipe(path) == SAVED.recipe


def test_the_one_before_is_kept_and_no_other(path):
    for chunk in (1, 2, 3):
        save(path, at(chunk))
    assert names(path.parent) == [before(path).name, NAME]
    assert [state.frames for state in states_of(path)] == [36, 24]


def damages():
    def cut(data, share):
        return data[: int(len(data) * share)]

    return {
        "empty": lambda data: b"",
        "half": lambda data: cut(data, 0.5),
        "all but a byte": lambda data: data[:-1],
        "a header only": lambda data: data[:8],
        "a huge header": lambda data: struct.pack("<Q", 2**62) + data[8:],
        "text": lambda data: b"no state at all\n" * 100,
        "another format": lambda data: data.replace(b'"format":"1"', b'"format":"9"'),
        "notes that are no JSON": lambda data: data.replace(b'\\"chunk\\"', b'\\"chunk(('),
        "no frames": lambda data: data.replace(b'"frames":', b'"framez":'),
        "frames in words": lambda data: data.replace(b'"frames":"37"', b'"frames":"xx"'),
    }


@pytest.mark.parametrize("damage", damages())
def test_a_damaged_one_is_refused_and_the_one_before_taken(path, damage):
    save(path, SAVED)
    data = damages()[damage](path.read_bytes())
    assert data != path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(UnreadableMediaError, match="cannot be read as the state") as caught:
        load_stream(path)
    assert str(path) in caught.value.message
    assert "osp extend" in caught.value.hint
    with pytest.raises(UnreadableMediaError):
        states_of(path)

    save(before(path), at(2))
    [found] = states_of(path)
    assert_same(found, at(2))


def test_a_missing_one_is_refused(path):
    with pytest.raises(UnreadableMediaError, match=NAME):
        states_of(path)


def test_a_damaged_one_before_does_not_matter(path):
    save(path, SAVED)
    before(path).write_bytes(b"junk")
    [found] = states_of(path)
    assert_same(found, SAVED)


def test_killed_between_the_two_writes(path, monkeypatch):
    """At whatever moment: the newest state that is whole has its own name, or the one before."""
    save(path, at(1))
    save(path, at(2))

    class Killed(BaseException):
        pass

    def killed(*_args, **_kwargs):
        raise Killed

    for owner, name in ((Path, "write_bytes"), (files, "flush_file"), (files, "publish")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            with pytest.raises(Killed):
                save(path, at(3))
        assert_same(load_stream(path), at(2))
        assert states_of(path)[0].frames == 24
    save(path, at(3))
    assert [state.frames for state in states_of(path)] == [36, 24]
    assert len(names(path.parent)) == 2


@pytest.mark.parametrize("step", ["flush_file", "publish"])
def test_a_full_disk_keeps_the_last_state(path, monkeypatch, step):
    save(path, at(1))

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, step, full)
        with pytest.raises(WontFitError, match="no space left"):
            save(path, at(2))
    assert_same(load_stream(path), at(1))
    save(path, at(3))
    assert states_of(path)[0].frames == 36


def test_where_files_cannot_be_linked_the_one_before_is_kept_too(path, monkeypatch):
    def no_links(*_args, **_kwargs):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    for chunk in (1, 2, 3):
        save(path, at(chunk))
    assert [state.frames for state in states_of(path)] == [36, 24]


def test_forgetting_leaves_nothing(path):
    for chunk in (1, 2):
        save(path, at(chunk))
    forget(path)
    forget(path)
    assert names(path.parent) == []
