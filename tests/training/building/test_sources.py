"""Which files are sources, what they are called, and that no caption is made up."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from osp_cli.errors import InvalidRequestError
from osp_cli.training.building.sources import captions_for, find_sources


def find(*words, count=None, seed=1):
    return find_sources([str(word) for word in words], count=count, seed=seed)


def test_folders_are_looked_through_in_the_order_of_their_names(clips, tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(clips / "sea.mp4", folder / "a.mp4")
    shutil.copy(clips / "fox.mp4", folder / "sub" / "b.mp4")
    shutil.copy(clips / "tree.png", folder / ".hidden.png")
    (folder / "notes.md").write_text("no source")
    found, told = find(folder)
    assert [source.name for source in found] == ["a.mp4", "b.mp4"] and told == []
    assert [source.kind for source in found] == ["video", "video"]


def test_names_follow_from_contents_and_not_from_places(clips, tmp_path):
    shutil.copy(clips / "fox.mp4", tmp_path / "fox.mp4")
    [here], [there] = find(clips / "fox.mp4")[0], find(tmp_path / "fox.mp4")[0]
    assert here.id == there.id and here.caption and there.caption is None
    shutil.copy(clips / "sea.mp4", tmp_path / "fox.mp4")
    assert find(tmp_path / "fox.mp4")[0][0].id != here.id


def test_odd_names_make_plain_ids(tmp_path, clips):
    path = tmp_path / "Ünï côdé (final) -- 2.mp4"
    shutil.copy(clips / "fox.mp4", path)
    [source] = find(path)[0]
    assert source.id.isascii() and " " not in source.id and "/" not in source.id


def test_the_same_contents_count_once(clips, tmp_path):
    shutil.copy(clips / "fox.mp4", tmp_path / "again.mp4")
    found, told = find(clips / "fox.mp4", tmp_path / "again.mp4")
    assert [source.name for source in found] == ["fox.mp4"]
    assert "again.mp4: the same as fox.mp4" in told[0]


def test_a_count_takes_the_first(clips):
    assert [source.name for source in find(clips, count=2)[0]] == ["fox.mp4", "held.mp4"]


def test_what_is_no_source_is_refused(tmp_path):
    text = tmp_path / "a.mp3"
    text.write_bytes(b"ID3" + bytes(100))
    for word, said in ((text, "neither a video nor a picture"), (tmp_path / "b", "does not exist")):
        with pytest.raises(InvalidRequestError, match=said):
            find(word)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequestError, match="no videos or pictures"):
        find(tmp_path / "empty")


def test_scenes_follow_from_the_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _ = find("procedural")
    assert len(found) == 8 and len({source.id for source in found}) == 8
    assert find("procedural")[0] == found and find("procedural", count=3)[0] == found[:3]
    assert find("procedural", seed=2)[0][0].id != found[0].id
    assert all(source.caption.startswith("a drawn scene") for source in found)
    Image.new("RGB", (8, 8)).save(tmp_path / "procedural", "PNG")
    assert [source.kind for source in find("procedural")[0]] == ["picture"]


def test_texts_beside_sources_are_their_captions(clips):
    found, _ = find(clips / "fox.mp4", clips / "tree.png")
    assert list(captions_for(found, None).values()) == [
        "a fox, the camera pans left",
        "a tree, the camera pans left",
    ]
    assert next(iter(captions_for(found, "{style}: {caption}").values())) == (
        "{style}: a fox, the camera pans left"
    )


def test_a_caption_is_never_made_up(clips, tmp_path):
    for name in ("fox", "sea"):
        shutil.copy(clips / f"{name}.mp4", tmp_path)
    (tmp_path / "sea.txt").write_text(" \n")
    found, _ = find(tmp_path)
    for template in (None, "{caption}!"):
        with pytest.raises(InvalidRequestError, match="2 of 2 sources have no caption: fox"):
            captions_for(found, template)
    assert set(captions_for(found, "all alike").values()) == {"all alike"}


def test_a_text_that_is_no_text_is_named(clips, tmp_path):
    shutil.copy(clips / "fox.mp4", tmp_path)
    (tmp_path / "fox.txt").write_bytes(b"\xff\xfe\x00f")
    with pytest.raises(InvalidRequestError, match=r"fox\.txt is not UTF-8"):
        find(tmp_path)
