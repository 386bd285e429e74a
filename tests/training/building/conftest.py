"""Engines that are quick, and whose results follow from their seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osp_cli.media.gates import GateSettings
from osp_cli.media.video import write_video
from osp_cli.stopping import StopSignal
from osp_cli.training.building.manifest import MANIFEST, Manifest
from osp_cli.training.building.settings import BuildSettings, Style, settle_folder
from osp_cli.training.building.sources import captions_for, find_sources
from osp_cli.training.building.stages import Build, check_files

# One of each kind, and one that is not taken.
FEW = ("fox.mp4", "short.mp4", "tree.png")
SIZE = (96, 64)
STYLES = (Style("ink", "Ink Painting", "paint it in ink"), Style("oil", "Oil Painting", "in oil"))
GATES = GateSettings(min_seconds=0.5, max_seconds=3.0, min_side=64)
SETTINGS = BuildSettings(num_frames=5, sizes=(SIZE,), gates=GATES, seed=7)


def picture(seed: int, size: tuple[int, int] = (160, 96)) -> np.ndarray:
    """Patches of many sizes, `(height, width, 3)`."""
    rng = np.random.default_rng(seed)
    width, height = size
    total = np.full((height, width, 3), 120.0)
    for cell, weight in ((32, 40.0), (8, 25.0), (4, 12.0)):
        small = rng.standard_normal((height // cell + 1, width // cell + 1, 3))
        total += weight * np.kron(small, np.ones((cell, cell, 1)))[:height, :width]
    return np.clip(total, 5, 250).astype(np.uint8)


def moving(start: np.ndarray, count: int, shift: int = 1) -> np.ndarray:
    """A picture that slides to the left and comes in again on the right."""
    return np.stack([np.roll(start, -shift * k, 1) for k in range(count)])


class Painter:
    """Turns colours round. With `spoilt` seeds, counted from a row's own, it changes nothing."""

    is_seeded = True

    def __init__(self, spoilt: int = 0) -> None:
        self.spoilt, self.calls, self.first = spoilt, [], {}

    def stylise(self, image, style, prompt, seed):
        self.calls.append((style, prompt, seed))
        first = self.first.setdefault((image.tobytes(), style), seed)
        if seed - first < self.spoilt:
            return image
        turned = np.asarray(image)[..., ::-1] if style == "ink" else 255 - np.asarray(image)
        return Image.fromarray(np.ascontiguousarray(turned))

    def describe(self):
        return {"name": "painter", "licence": "none"}


class Mover:
    """Slides the picture by a pixel a frame. With `spoilt` seeds it stands still."""

    is_seeded = True

    def __init__(self, spoilt: int = 0) -> None:
        self.spoilt, self.calls, self.first = spoilt, [], {}

    def animate(self, shot):
        self.calls.append((shot.style, shot.prompt, shot.seed))
        first = self.first.setdefault(shot.picture.tobytes(), shot.seed)
        shift = 0 if shot.seed - first < self.spoilt else 2
        yield from moving(np.asarray(shot.picture), shot.num_frames, shift)

    def describe(self):
        return {"name": "mover", "licence": "none"}


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Two good clips, one that stands still, one too short, and a picture; all with captions."""
    folder = tmp_path_factory.mktemp("clips")
    for seed, name in ((1, "fox"), (2, "sea")):
        write_video(moving(picture(seed), 16), folder / f"{name}.mp4", fps=16)
    write_video(np.repeat(picture(3)[None], 16, 0), folder / "held.mp4", fps=16)
    write_video(moving(picture(4), 4), folder / "short.mp4", fps=16)
    Image.fromarray(picture(5)).save(folder / "tree.png")
    for name in ("fox", "sea", "held", "short", "tree"):
        (folder / f"{name}.txt").write_text(f"a {name},\n the camera pans left\n")
    return folder


class Bench:
    """A build in a folder, taken up anew with every call."""

    def __init__(self, folder: Path, words: list[str], settings: BuildSettings = SETTINGS) -> None:
        self.folder, self.settings, self.stop = folder, settings, StopSignal()
        self.sources, _ = find_sources(words, count=None, seed=settings.seed)

    def run(self, stylizer=None, animator=None, styles=STYLES[:1]) -> list:
        """All stages; the events."""
        settle_folder(self.folder, self.settings, overwrite=False)
        manifest = Manifest(self.folder / MANIFEST)
        self.lost = check_files(self.folder, manifest)
        build = Build(self.folder, self.settings, manifest, self.stop)
        captions = captions_for(self.sources, self.settings.caption)
        return [
            *build.gate(self.sources, captions, styles),
            *build.take_keyframes(self.sources),
            *build.stylise(stylizer or Painter()),
            *build.animate(animator or Mover()),
        ]

    def rows(self) -> dict[tuple[str, str], dict]:
        """What the manifest's file says, by the stem of the source and style."""
        return {
            (Path(row["origin"]["name"]).stem, row["style"]): row
            for row in Manifest(self.folder / MANIFEST)
        }

    def files(self) -> dict[str, bytes]:
        """All that is in the folder, but what is hidden."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in paths
            if not path.name.startswith(".")
        }


@pytest.fixture
def bench(tmp_path, clips):
    """Makes a build of all clips, or of some."""

    def make(name: str = "out", *words: str, settings: BuildSettings = SETTINGS) -> Bench:
        words = FEW if words == ("few",) else words
        chosen = [str(clips / word) for word in words] or [str(clips)]
        return Bench(tmp_path / name, chosen, settings)

    make.painter, make.mover = Painter, Mover
    return make


@pytest.fixture(scope="session")
def styles():
    """Two of them."""
    return STYLES


@pytest.fixture(scope="module")
def whole(tmp_path_factory, clips):
    """What a build without any trouble leaves of a few sources, first tries failing."""
    words = [str(clips / name) for name in FEW]
    build = Bench(tmp_path_factory.mktemp("whole") / "out", words)
    build.run(Painter(1), Mover(1))
    return build.files()
