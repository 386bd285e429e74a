"""What a dataset is made of: videos, pictures, or drawn scenes, and what is said about them."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from osp_cli.errors import InvalidRequestError
from osp_cli.media.files import explained
from osp_cli.media.kinds import PICTURE_EXTENSIONS, VIDEO_EXTENSIONS, MediaKind, media_kind

PROCEDURAL = "procedural"
VIDEO, PICTURE, SCENE = "video", "picture", "scene"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One video, picture or scene.

    Attributes:
        id: its name in the dataset, made of its file's name and contents.
        kind: `video`, `picture` or `scene`.
        name: of the file, without its folder.
        path: of the file; None for a scene.
        sha256: of the contents; of the seed for a scene.
        caption: what is said about it; None where nothing is.
        seed: that a scene is drawn from.
    """

    id: str
    kind: str
    name: str
    path: Path | None
    sha256: str
    caption: str | None
    seed: int = 0


def find_sources(
    words: Sequence[str], *, count: int | None, seed: int
) -> tuple[list[Source], list[str]]:
    """The sources that are meant, and sentences about what was left out.

    Args:
        words: files, folders of them, or `procedural` for scenes that are drawn.
        count: how many to take at most; None for all, and for 8 scenes.
        seed: of the scenes.

    Raises:
        InvalidRequestError: a file is missing or is neither video nor picture, a text beside one
            cannot be read, or there is nothing.
    """
    found: dict[str, Source] = {}
    notices: list[str] = []
    for word in words:
        if word == PROCEDURAL and not Path(word).exists():
            scenes = (_scene(number, seed) for number in range(8 if count is None else count))
            found.update((scene.sha256, scene) for scene in scenes)
            continue
        for path in _files(Path(word)):
            if count is not None and len(found) >= count:
                break
            source = _source(path)
            if source.sha256 in found:
                notices.append(f"left out {path}: the same as {found[source.sha256].name}")
            else:
                found[source.sha256] = source
    sources = list(found.values())[:count]
    if not sources:
        raise InvalidRequestError(
            f"there are no videos or pictures in {', '.join(words)}",
            hint="name files or folders, or: osp dataset build procedural --style oil -o data",
        )
    return sources, notices


def captions_for(sources: Sequence[Source], template: str | None) -> dict[str, str]:
    """Captions by id, with `{style}` left in them.

    Args:
        sources: whose captions are asked for.
        template: `{caption}` in it stands for the text beside a source; None is that text alone.

    Raises:
        InvalidRequestError: there is no text where one is needed. None is made up.
    """
    needs = template is None or "{caption}" in template
    bare = [source.name for source in sources if needs and not source.caption]
    if bare:
        few = ", ".join(bare[:3]) + (" ..." if len(bare) > 3 else "")
        raise InvalidRequestError(
            f"{len(bare)} of {len(sources)} sources have no caption: {few}",
            hint="write one in a text file of the same name, or --caption 'a fox, {style} style'",
        )
    # Braces of a text file are no fields.
    return {
        source.id: (template or "{caption}").replace("{caption}", source.caption or "")
        for source in sources
    }


def _files(path: Path) -> list[Path]:
    with explained(path):
        if path.is_dir():
            inside = (item for item in path.rglob("*") if not _is_hidden(item, path))
            known = PICTURE_EXTENSIONS | VIDEO_EXTENSIONS
            return sorted(
                item for item in inside if item.suffix.lower() in known and item.is_file()
            )
        if not path.is_file():
            raise InvalidRequestError(
                f"{path} does not exist", hint="name videos, pictures, folders, or procedural"
            )
    return [path]


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _source(path: Path) -> Source:
    kind = {MediaKind.PICTURE: PICTURE, MediaKind.VIDEO: VIDEO, MediaKind.ANIMATION: VIDEO}.get(
        media_kind(path)
    )
    if kind is None:
        raise InvalidRequestError(f"{path} is neither a video nor a picture")
    with explained(path), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    slug = re.sub(r"[^\w-]+", "-", path.stem, flags=re.ASCII).strip("-")[:40] or "clip"
    return Source(
        id=f"{slug}-{digest[:8]}",
        kind=kind,
        name=path.name,
        path=path,
        sha256=digest,
        caption=_caption(path.with_suffix(".txt")),
    )


def _caption(path: Path) -> str | None:
    with explained(path):
        if not path.is_file():
            return None
        try:
            text = path.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidRequestError(
                f"{path} is not UTF-8", hint="save the text as UTF-8"
            ) from error
    return " ".join(text.split()) or None


def _scene(number: int, seed: int) -> Source:
    """A scene that will be drawn, and what it will be asked to do; that much is true of it."""
    from osp_cli.procedural.prompts import motion_words, random_motion

    digest = hashlib.sha256(f"osp scene {seed} {number}".encode()).hexdigest()
    rng = random.Random(digest)
    words = motion_words(rng, random_motion(rng))
    return Source(
        id=f"scene-{number:04d}-{digest[:8]}",
        kind=SCENE,
        name=f"scene {number}",
        path=None,
        sha256=digest,
        caption=f"a drawn scene, {words}" if words else "a drawn scene",
        seed=int(digest[:12], 16),
    )
