"""The photos that a model is measured on: seven that no training saw, or those of a folder."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from osp_cli.errors import InvalidRequestError, UnreadableMediaError

# Pictures that lie in the packages themselves, so that nothing has to be fetched.
_HELD_OUT = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")


@dataclass(frozen=True, slots=True)
class Photo:
    """One picture: what it is called, and where it lies."""

    name: str
    path: Path


def held_out_photos() -> list[Photo]:
    """The seven photos of scikit-image and scikit-learn.

    Raises:
        InvalidRequestError: one of the packages is not installed, or lacks a picture.
    """
    photos = []
    for package, place in _HELD_OUT:
        path = _package_folder(package) / place
        if not path.is_file():
            raise InvalidRequestError(
                f"{package} is installed without its picture {path.name}",
                hint="pip install --upgrade 'osp-cli[bench]', or measure on --photos FOLDER",
            )
        photos.append(Photo(path.stem.removesuffix("_left"), path))
    return photos


def photos_in(folder: Path, *, least: int = 2) -> list[Photo]:
    """The pictures of a folder, by name.

    Args:
        folder: with pictures; what else is in it does not matter.
        least: how many there must be. Styles are told apart by what was learnt of other photos.

    Raises:
        InvalidRequestError: there is no such folder, or fewer pictures in it.
    """
    if not folder.is_dir():
        raise UnreadableMediaError(f"--photos names a folder, {folder} is none")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if len(paths) < least:
        needed = "a picture" if least == 1 else "two pictures"
        raise InvalidRequestError(
            f"--photos needs a folder with at least {needed}, {folder} holds {len(paths)}"
        )
    return [Photo(path.stem, path) for path in paths]


def require_packages() -> None:
    """Refuse to begin without the packages that the measures are made with.

    Raises:
        InvalidRequestError: one of them is not installed.
    """
    for package in ("skimage", "sklearn"):
        _package_folder(package)


def _package_folder(package: str) -> Path:
    # Found and not imported: this is asked before anything heavy is loaded.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        names = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
        raise InvalidRequestError(
            f"osp bench needs {names[package]}, which is not installed",
            hint="pip install 'osp-cli[bench]'",
        )
    return Path(spec.origin).parent
