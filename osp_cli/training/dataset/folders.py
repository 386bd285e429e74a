"""Datasets that are folders: media, each with a text file of its name that tells what it shows."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from osp_cli.errors import InvalidRequestError
from osp_cli.media.kinds import PICTURE_EXTENSIONS, VIDEO_EXTENSIONS
from osp_cli.training.dataset.entries import Entry
from osp_cli.training.dataset.listing import Draft, kind_of, natural, read_caption_file

MEDIA_EXTENSIONS = PICTURE_EXTENSIONS | VIDEO_EXTENSIONS
SOURCE_MARK = ".source"
_REPEATED = re.compile(r"(\d{1,4})_.+")


def add_folder(
    draft: Draft, folder: Path, *, repeats: int = 1, caption_extension: str = ".txt"
) -> None:
    """Take the clips of a folder and of those inside it.

    `3_name` inside it has three repeats of its clips, times those of the folder. A folder of
    pictures without captions of their own is one clip, whose caption is in a text file beside it.
    Hidden files and folders are left out.

    Raises:
        InvalidRequestError: the folder cannot be read.
    """
    _Walk(draft, caption_extension).take(folder, repeats, frozenset())


def has_media(folder: Path) -> bool:
    """Whether a folder, or one directly inside it, holds a file that is called like media."""
    files, folders = _contents(folder)
    return any(_is_media(path) for path in files) or any(
        any(_is_media(path) for path in _contents(inner)[0]) for inner in folders
    )


class _Walk:
    """One pass over folders inside of folders."""

    def __init__(self, draft: Draft, caption_extension: str) -> None:
        self._draft = draft
        self._extension = caption_extension

    def take(self, folder: Path, repeats: int, above: frozenset[Path]) -> None:
        """Take what is in one folder; `above` are those that it is in."""
        here = folder.resolve()
        if here in above:  # a link that leads up again
            return
        files, folders = _contents(folder)
        media = [path for path in files if _is_media(path)]
        sources = {
            path.name[: -len(path.suffix) - len(SOURCE_MARK)]: path
            for path in media
            if path.suffix.lower() in PICTURE_EXTENSIONS and path.stem.endswith(SOURCE_MARK)
        }
        clips = [path for path in media if path not in sources.values()]
        by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in clips:
            by_stem[path.stem].append(path)
        for path in clips:
            if len(by_stem[path.stem]) == 1:
                self._add(path, repeats, sources.get(path.stem))
            elif path is by_stem[path.stem][0]:
                self._ambiguous(by_stem[path.stem])
        for stem, path in sources.items():
            if stem not in by_stem and not (folder / stem).is_dir():
                self._draft.warning(
                    "no-clip", self._draft.place(path), "there is no clip of its name beside it"
                )
        for inner in folders:
            found = _REPEATED.fullmatch(inner.name)
            times = repeats * max(1, int(found[1])) if found else repeats
            if self._is_one_clip(inner):
                self._add(inner, times, sources.get(inner.name))
            else:
                self.take(inner, times, above | {here})

    def _add(self, path: Path, repeats: int, source: Path | None) -> None:
        place = self._draft.place(path)
        text = path.with_name(path.name if path.is_dir() else path.stem)
        text = text.with_name(text.name + self._extension)
        self._draft.add(
            Entry(
                path=path,
                kind=kind_of(path),
                caption=read_caption_file(text, self._draft, place),
                place=place,
                repeats=repeats,
                source=source,
            )
        )

    def _ambiguous(self, paths: Sequence[Path]) -> None:
        for path in paths:
            others = " and ".join(other.name for other in paths if other != path)
            self._draft.bad_row(
                self._draft.place(path),
                f"shares the caption {path.stem}{self._extension} with {others}",
                "give each a name of its own",
                code="ambiguous-pair",
            )

    def _is_one_clip(self, folder: Path) -> bool:
        files, folders = _contents(folder)
        pictures = [path for path in files if path.suffix.lower() in PICTURE_EXTENSIONS]
        captioned = {path.stem for path in files if path.suffix.lower() == self._extension}
        return (
            len(pictures) > 1
            and not folders
            and not any(path.suffix.lower() in VIDEO_EXTENSIONS for path in files)
            and not any(path.stem in captioned for path in pictures)
        )


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder that is a clip, in the order in which people count."""
    return [
        path
        for path in _contents(folder)[0]
        if path.suffix.lower() in PICTURE_EXTENSIONS and path.is_file()
    ]


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in MEDIA_EXTENSIONS


def _contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders in a folder, without hidden ones."""
    try:
        paths = natural(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InvalidRequestError(f"{folder} cannot be read: {error.strerror}") from error
    return [p for p in paths if not p.is_dir()], [p for p in paths if p.is_dir()]
