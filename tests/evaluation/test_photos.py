"""The photos lie in installed packages, or in a folder; nothing is fetched."""

from __future__ import annotations

import pytest
from PIL import Image

from osp_cli.errors import InvalidRequestError
from osp_cli.evaluation import photos
from osp_cli.media.image import load_image


def test_seven_different_photos_are_there():
    found = photos.held_out_photos()
    assert [photo.name for photo in found] == [
        "astronaut", "chelsea", "coffee", "rocket", "motorcycle", "china", "flower",
    ]  # fmt: skip
    assert len({load_image(photo.path).image.tobytes() for photo in found}) == 7


def test_a_package_that_is_missing_is_named_with_the_way_to_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidRequestError, match="scikit-image") as caught:
        photos.require_packages()
    assert caught.value.hint == "pip install 'osp-cli[bench]'"


def test_pictures_of_a_folder_come_by_name(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG")
    assert [photo.name for photo in photos.photos_in(tmp_path)] == ["a", "b"]


def test_one_picture_is_too_few(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(InvalidRequestError, match="at least two pictures"):
        photos.photos_in(tmp_path)
    with pytest.raises(InvalidRequestError, match="names a folder"):
        photos.photos_in(tmp_path / "a.png")
