"""Encoded clips come back as they were, or not at all."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from osp_cli.errors import RuntimeFailureError, WontFitError
from osp_cli.media import files
from osp_cli.training.dataset.cache import ClipCache, cache_home, latent_bytes
from osp_cli.training.dataset.entries import Entry, Window
from osp_cli.training.samples import EncodedClip

ENTRY = Entry(path=Path("a.mp4"), kind="video", caption="a cat", place="a.mp4")
WINDOW = Window(entry=ENTRY, start=0.5, num_frames=17, size=(64, 64), content="c" * 64)
ABOUT = {"vae_sha": "v", "conditions_sha": "t", "fps": 16}


@pytest.fixture
def cache(tmp_path):
    return ClipCache(tmp_path / "deep" / "cache")


@pytest.fixture
def encoded():
    """A clip whose caption and picture share their memory, and whose first frame is its own."""
    torch.manual_seed(0)
    latents = torch.randn(4, 5, 8, 8)
    text, picture = torch.randn(7, 12).bfloat16(), torch.randn(3, 12)
    mask = torch.ones(7, dtype=torch.bool)
    return EncodedClip(
        latents=latents,
        first=latents[:, :1],
        conditions={"text.states": text, "picture": picture, "mask": mask},
        empty={"text.states": text[:2], "picture": picture, "mask": mask[:2]},
    )


def assert_same(found, clip):
    assert torch.equal(found.latents, clip.latents.bfloat16())
    assert torch.equal(found.first, clip.first.bfloat16())
    for ours, theirs in ((found.conditions, clip.conditions), (found.empty, clip.empty)):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name].dtype == value.dtype
            assert torch.equal(ours[name], value)


def test_a_clip_comes_back(cache, encoded):
    key = cache.key(WINDOW, **ABOUT)
    assert key not in cache
    assert cache.read(key) is None
    assert cache.write(key, encoded) == cache.path(key).stat().st_size == cache.size_bytes()
    assert key in cache
    assert_same(cache.read(key), encoded)
    other = replace(encoded, first=encoded.first + 1)
    cache.write(key, other)
    assert_same(cache.read(key), other)
    assert [path.name for path in cache.path(key).parent.iterdir()] == [f"{key}.safetensors"]


def test_the_own_first_frame_is_not_stored_twice(cache, encoded):
    own, other = cache.key(WINDOW, **ABOUT), cache.key(WINDOW, **ABOUT, condition="plain")
    cache.write(own, encoded)
    cache.write(other, replace(encoded, first=encoded.first + 1))
    # 4 x 8 x 8 numbers of two bytes.
    assert cache.path(other).stat().st_size - cache.path(own).stat().st_size >= 512


@pytest.mark.parametrize("where", [0, 3, 9, 200, -1, -300, -1500])
def test_a_byte_that_turned_over_is_noticed(cache, encoded, where, caplog):
    key = cache.key(WINDOW, **ABOUT)
    cache.write(key, encoded)
    data = bytearray(cache.path(key).read_bytes())
    data[where] ^= 1
    cache.path(key).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        found = cache.read(key)
    assert found is None
    assert "made again" in caplog.text
    cache.write(key, encoded)
    assert_same(cache.read(key), encoded)


@pytest.mark.parametrize("kept", [0, 7, 100, 1000])
def test_a_file_cut_short_is_noticed(cache, encoded, kept):
    key = cache.key(WINDOW, **ABOUT)
    cache.write(key, encoded)
    cache.path(key).write_bytes(cache.path(key).read_bytes()[:kept])
    assert cache.read(key) is None
    cache.write(key, encoded)
    assert_same(cache.read(key), encoded)


def test_the_file_of_another_clip_is_noticed(cache, encoded):
    one, two = cache.key(WINDOW, **ABOUT), cache.key(WINDOW, **ABOUT, caption="a dog")
    cache.write(one, encoded)
    cache.path(two).parent.mkdir(parents=True, exist_ok=True)
    cache.path(two).write_bytes(cache.path(one).read_bytes())
    assert cache.read(two) is None


def test_keys_follow_from_contents_and_not_from_names(cache):
    key = cache.key(WINDOW, **ABOUT)
    moved = replace(ENTRY, path=Path("elsewhere/b.mov"), place="b", repeats=3, style="ink")
    assert cache.key(replace(WINDOW, entry=moved), **ABOUT) == key
    assert cache.key(WINDOW, **ABOUT, caption="a cat") == key
    others = [
        cache.key(replace(WINDOW, entry=replace(ENTRY, caption="a dog")), **ABOUT),
        cache.key(replace(WINDOW, start=0.5001), **ABOUT),
        cache.key(replace(WINDOW, num_frames=33), **ABOUT),
        cache.key(replace(WINDOW, size=(64, 48)), **ABOUT),
        cache.key(replace(WINDOW, content="d" * 64), **ABOUT),
        cache.key(replace(WINDOW, source_content="s"), **ABOUT),
        cache.key(WINDOW, **{**ABOUT, "vae_sha": "w"}),
        cache.key(WINDOW, **{**ABOUT, "conditions_sha": "u"}),
        cache.key(WINDOW, **{**ABOUT, "fps": 24}),
        cache.key(WINDOW, **ABOUT, stride=1),
        cache.key(WINDOW, **ABOUT, condition="plain"),
        cache.key(WINDOW, **ABOUT, caption="ink, a cat"),
    ]
    assert len({key, *others}) == 1 + len(others)


@pytest.mark.parametrize("part", ["latents", "conditions"])
def test_numbers_that_are_none_are_not_kept(cache, encoded, part):
    encoded.latents[0, 1, 2, 3] = float("nan") if part == "latents" else 0.0
    if part == "conditions":
        encoded.conditions["picture"][1, 1] = float("inf")
    with pytest.raises(RuntimeFailureError, match="not finite"):
        cache.write(cache.key(WINDOW, **ABOUT), encoded)
    assert cache.size_bytes() == 0


def test_an_interrupted_write_leaves_nothing(cache, encoded, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "flush_file", full)
    key = cache.key(WINDOW, **ABOUT)
    with pytest.raises(WontFitError):
        cache.write(key, encoded)
    assert list(cache.path(key).parent.iterdir()) == []
    assert cache.read(key) is None


def test_what_will_not_fit_is_refused_before(cache):
    cache.check_room(1000)
    with pytest.raises(WontFitError, match="encoded clips"):
        cache.check_room(10**18)


def test_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OSP_HOME", str(tmp_path))
    assert ClipCache().folder == cache_home() == tmp_path / "cache" / "clips"
    monkeypatch.delenv("OSP_HOME")
    assert cache_home().parts[-2:] == ("osp", "clips")


def test_sizes_of_latents():
    assert latent_bytes((512, 512), 49, channels=16, spatial=8, temporal=4) == 1_703_936
