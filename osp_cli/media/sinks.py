"""Where results go: a video file that carries its recipe, and the sidecar beside it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osp_cli.errors import InvalidRequestError
from osp_cli.events import Saved
from osp_cli.media.files import atomic_output, check_writable
from osp_cli.media.video import read_comment, write_video

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VIDEO_SUFFIXES = (".mp4",)


def sidecar_path(path: str | Path) -> Path:
    """`clip.mp4` -> `clip.mp4.json`."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def canonical_json(value: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON with sorted keys, so that equal recipes are equal bytes.

    Raises:
        ValueError: a number is not finite; JSON has no word for it.
        TypeError: a value is no JSON value.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(
        value,
        sort_keys=True,
        ensure_ascii=False,
        allow_nan=False,
        indent=indent,
        separators=separators,
    )


def check_video_output(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuse an output that cannot be written, before any model is loaded for it.

    Raises:
        InvalidRequestError: unknown extension, an existing file or sidecar without `overwrite`, a
            folder that is missing or read-only.
    """
    path = Path(path)
    if path.suffix.lower() not in VIDEO_SUFFIXES and not path.is_dir():
        suffix = path.suffix or "a name without an extension"
        stem = path.stem or "clip"
        raise InvalidRequestError(
            f"cannot write {suffix}, only {', '.join(VIDEO_SUFFIXES)}",
            hint=f"-o {path.with_name(stem + VIDEO_SUFFIXES[0])}",
        )
    check_writable(path, overwrite=overwrite)
    check_writable(sidecar_path(path), overwrite=overwrite)


def read_recipe(path: str | Path) -> dict[str, Any] | None:
    """The recipe inside a video, or None where its comment is missing or something else.

    Raises:
        UnreadableMediaError: no such file, or no media in it.
    """
    comment = read_comment(path)
    try:
        recipe = json.loads(comment or "")
    except ValueError:
        return None
    return recipe if isinstance(recipe, dict) else None


class VideoSink:
    """One MP4 and its sidecar, both written whole or not at all.

    Args:
        path: `.mp4` file to write.
        fps: frames per second.
        recipe: what made the clip, as plain JSON values; kept in the comment tag and the sidecar.
        overwrite: replace an existing clip and sidecar.
        metadata: with False no recipe is kept, and a sidecar that would be stale is removed.

    Raises:
        InvalidRequestError: on construction, as `check_video_output`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: int | float | Fraction,
        recipe: Mapping[str, Any],
        overwrite: bool = False,
        metadata: bool = True,
    ) -> None:
        check_video_output(path, overwrite=overwrite)
        self.path = Path(path)
        self.sidecar = sidecar_path(path) if metadata else None
        self._fps = fps
        self._recipe = recipe
        self._overwrite = overwrite

    def write(self, frames: Iterable[NDArray[np.uint8]]) -> Saved:
        """Encode all frames, uint8 RGB `(height, width, 3)` each, and save both files.

        Raises:
            ValueError: no frames, or frames that cannot be encoded (see `write_video`).
            InvalidRequestError: the place has become unusable since construction.
            WontFitError: the disk is full.
            RuntimeFailureError: ffmpeg is missing or failed.
        """
        with contextlib.ExitStack() as stack:
            comment = None
            if self.sidecar is not None:
                comment = canonical_json(self._recipe)
                # Entered first, so renamed last: a sidecar never stands beside a missing clip.
                part = stack.enter_context(atomic_output(self.sidecar, overwrite=self._overwrite))
                text = canonical_json(self._recipe, indent=2) + "\n"
                part.write_bytes(text.encode())
            num_bytes = write_video(
                frames, self.path, fps=self._fps, comment=comment, overwrite=self._overwrite
            )
        if self.sidecar is None and self._overwrite:
            sidecar_path(self.path).unlink(missing_ok=True)
        return Saved(path=self.path, bytes=num_bytes, sidecar=self.sidecar)
