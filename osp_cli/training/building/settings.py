"""How a dataset is built: all that decides what its files hold."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from osp_cli.errors import InvalidRequestError
from osp_cli.media.files import atomic_output, explained
from osp_cli.media.gates import GateSettings
from osp_cli.training.building.quality_settings import QualitySettings

SETTINGS = "build.json"
VERSION = 1
# A result that fails its gates is made again with the next seed so often, and then given up.
MAX_RETRIES = 3


@dataclass(frozen=True, slots=True)
class Style:
    """A style as a build needs it.

    Attributes:
        name: of the style.
        title: what captions call it.
        instruction: what a stylizer that reads is told.
        words: what a judge looks for; the title where there are none.
    """

    name: str
    title: str
    instruction: str
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """What every row is made with.

    Attributes:
        stylizer, animator: names or folders of the engines.
        judge: folder of a CLIP that must find the style in every result; None asks nobody.
        num_frames, fps: of every clip.
        size: `(width, height)` of every clip; None for the nearest of `sizes` to the source.
        sizes: that the animator makes.
        seed: that all others follow from.
        caption: template of the captions; None for the text beside a source as it is.
        prompt: what happens in every clip; None for what the source's caption says.
        gates: of sources; None takes all.
        quality: of results; None takes all.
    """

    stylizer: str = "procedural"
    animator: str = "procedural"
    judge: str | None = None
    num_frames: int = 49
    fps: int = 16
    size: tuple[int, int] | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    seed: int = 42
    caption: str | None = None
    prompt: str | None = None
    gates: GateSettings | None = field(default_factory=GateSettings)
    quality: QualitySettings | None = field(default_factory=QualitySettings)

    def as_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"version": VERSION, **values}


def settle_folder(folder: Path, settings: BuildSettings, *, overwrite: bool) -> bool:
    """Makes a folder ready for a build, or finds that one with these settings can go on.

    Args:
        folder: of the dataset.
        settings: of the build.
        overwrite: what other settings have made may be thrown away.

    Returns:
        Whether rows that are there already are of other settings, and to be made anew.

    Raises:
        InvalidRequestError: it holds something else, or a build with other settings.
    """
    with explained(folder / SETTINGS):
        folder.mkdir(parents=True, exist_ok=True)
        wanted = settings.as_json()
        path = folder / SETTINGS
        if not path.exists():
            if any(not item.name.startswith(".") for item in folder.iterdir()):
                raise InvalidRequestError(
                    f"{folder} is not empty and holds no dataset of osp",
                    hint="choose another folder with -o",
                )
            _write(path, wanted)
            return False
        differing = _differing(path, wanted)
        if differing and not overwrite:
            raise InvalidRequestError(
                f"{folder} was begun with other settings: {', '.join(differing)}",
                hint="choose another folder with -o, or -y makes all of it anew",
            )
        return bool(differing)


def keep_settings(folder: Path, settings: BuildSettings) -> None:
    """Notes the settings of the rows that are there from now on."""
    _write(folder / SETTINGS, settings.as_json())


def _write(path: Path, values: dict[str, Any]) -> None:
    with atomic_output(path, overwrite=True) as part:
        part.write_text(json.dumps(values, indent=1) + "\n", "utf-8")


def _differing(path: Path, wanted: dict[str, Any]) -> list[str]:
    """What differs, as `num_frames 49, not 81`."""
    try:
        there = json.loads(path.read_text("utf-8"))
        if not isinstance(there, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise InvalidRequestError(
            f"{path} is damaged ({error})", hint="choose another folder with -o"
        ) from error
    names = [name for name in wanted if there.get(name) != wanted[name]]
    return [f"{name} {_short(there.get(name))}, not {_short(wanted[name])}" for name in names]


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else "others"
