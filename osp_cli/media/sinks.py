"""Where results go: a video file that carries its recipe, a folder of frames, or stdout."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from osp_cli.errors import InvalidRequestError, WontFitError
from osp_cli.events import Saved
from osp_cli.media.animations import GIF_MAX_FPS, write_gif, write_webp
from osp_cli.media.files import atomic_output, check_writable, explained
from osp_cli.media.frame_folder import (
    RECIPE_NAME,
    check_frames_output,
    write_frames,
)
from osp_cli.media.frame_folder import frames_folder as frames_folder
from osp_cli.media.recipes import canonical_json as canonical_json
from osp_cli.media.recipes import read_recipe as read_recipe
from osp_cli.media.recipes import sidecar_path as sidecar_path
from osp_cli.media.sound import AudioTrack
from osp_cli.media.video import write_video
from osp_cli.outputs import STDOUT, takes_sound

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VIDEO_SUFFIXES = (".mp4", ".gif", ".webp")
_FRAMES_SUFFIX = ".png"


class Sink(Protocol):
    """Takes the frames of one clip, and leaves a whole result or nothing.

    Attributes:
        notices: sentences about the result, complete once `write` has returned.
    """

    notices: list[str]

    def write(self, frames: Iterable[NDArray[np.uint8]]) -> Saved:
        """Save all frames, uint8 RGB `(height, width, 3)` each.

        Raises:
            ValueError: no frames, or frames that cannot be encoded.
            InvalidRequestError: the place has become unusable since construction.
            WontFitError: the disk is full.
            RuntimeFailureError: ffmpeg is missing or failed, or the folder has gone.
            BrokenPipeError: nobody reads stdout any more.
        """


def check_output(
    output: str | Path, *, overwrite: bool = False, fps: int | float | Fraction | None = None
) -> None:
    """Refuse an output that cannot be written, before any model is loaded for it.

    Args:
        output: a `.mp4`, `.gif` or `.webp` file, frames as `FOLDER/%04d.png`, or `-` for stdout.
        overwrite: an existing output, and the sidecar of a file, may be replaced.
        fps: frames per second, where they are known.

    Raises:
        InvalidRequestError: unknown extension, something existing without `overwrite`, a folder
            that is missing or read-only, a rate that the format cannot show, or a terminal.
    """
    output = Path(output)
    if output == STDOUT:
        _check_stdout()
        return
    suffix = output.suffix.lower()
    if suffix == _FRAMES_SUFFIX:
        check_frames_output(output, overwrite=overwrite)
        return
    if suffix not in VIDEO_SUFFIXES and not output.is_dir():
        got = output.suffix or "a name without an extension"
        raise InvalidRequestError(
            f"cannot write {got}, only {', '.join(VIDEO_SUFFIXES)} and FOLDER/%04d.png",
            hint=f"-o {output.with_name((output.stem or 'clip') + VIDEO_SUFFIXES[0])}",
        )
    if suffix == ".gif" and fps is not None and fps > GIF_MAX_FPS:
        raise InvalidRequestError(
            f"a GIF shows at most {GIF_MAX_FPS} frames a second, got --fps {fps}",
            hint=f"--fps {GIF_MAX_FPS}, or -o {output.with_suffix('.webp')}",
        )
    check_writable(output, overwrite=overwrite)
    check_writable(sidecar_path(output), overwrite=overwrite)


def open_sink(
    output: str | Path,
    *,
    fps: int | float | Fraction,
    recipe: Mapping[str, Any],
    overwrite: bool = False,
    metadata: bool = True,
    audio: AudioTrack | None = None,
) -> Sink:
    """The sink for an output, chosen by its name.

    Args:
        output: as `check_output` takes it.
        fps: frames per second.
        recipe: what made the clip, as plain JSON values; kept in the file and beside it.
        overwrite: replace what is there.
        metadata: with False no recipe is kept, and one that would be stale is removed.
        audio: sound to go with the frames; only videos take it (`takes_sound`), other outputs and
            sound that cannot be used give a notice.

    Raises:
        InvalidRequestError: as `check_output`.
    """
    output = Path(output)
    check_output(output, overwrite=overwrite, fps=fps)
    kept = recipe if metadata else None
    if output == STDOUT:
        return StreamSink(fps=fps, recipe=kept, audio=audio)
    silent = [] if audio is None or takes_sound(output) else [_no_sound(output)]
    if output.suffix.lower() == _FRAMES_SUFFIX:
        frames_sink = FramesSink(output, recipe=kept, overwrite=overwrite)
        frames_sink.notices += silent
        return frames_sink
    sink = FileSink(
        output, fps=fps, recipe=kept, overwrite=overwrite, audio=None if silent else audio
    )
    sink.notices += silent
    return sink


class FileSink:
    """One clip and its sidecar, each written whole or not at all.

    Args:
        path: `.mp4`, `.gif` or `.webp` file to write.
        fps: frames per second.
        recipe: kept in the file and in the sidecar; None removes the sidecar that was there.
        overwrite: replace an existing clip and sidecar.
        audio: sound of an `.mp4`.
    """

    def __init__(
        self,
        path: Path,
        *,
        fps: int | float | Fraction,
        recipe: Mapping[str, Any] | None,
        overwrite: bool,
        audio: AudioTrack | None = None,
    ) -> None:
        self.notices: list[str] = []
        self._path = path
        self._fps = fps
        self._recipe = recipe
        self._overwrite = overwrite
        self._audio = audio

    def write(self, frames: Iterable[NDArray[np.uint8]]) -> Saved:
        """Encode all frames and save both files (see `Sink`)."""
        path, sidecar = self._path, sidecar_path(self._path)
        is_video = path.suffix.lower() == ".mp4"
        comment = None
        with contextlib.ExitStack() as stack:
            if self._recipe is not None:
                comment = canonical_json(self._recipe, ascii_only=not is_video)
                # Entered first, so renamed last: a sidecar never stands beside a missing clip.
                part = stack.enter_context(atomic_output(sidecar, overwrite=self._overwrite))
                part.write_bytes(_recipe_file(self._recipe))
            sound = {} if self._audio is None else _sound(self._audio, self.notices)
            num_bytes = _writer(path)(
                frames, path, fps=self._fps, comment=comment, overwrite=self._overwrite, **sound
            )
        if self._recipe is None and self._overwrite:
            sidecar.unlink(missing_ok=True)
        return Saved(path, num_bytes, None if self._recipe is None else sidecar)


class FramesSink:
    """A folder of PNG frames with the recipe among them; as a whole or not at all.

    Args:
        pattern: `FOLDER/%04d.png`.
        recipe: kept as `recipe.json` in the folder; None for none.
        overwrite: replace a folder that holds such frames.
    """

    def __init__(self, pattern: Path, *, recipe: Mapping[str, Any] | None, overwrite: bool) -> None:
        self.notices: list[str] = []
        self._pattern = pattern
        self._recipe = recipe
        self._overwrite = overwrite

    def write(self, frames: Iterable[NDArray[np.uint8]]) -> Saved:
        """Save all frames (see `Sink`); `Saved` tells the folder and the size of its frames."""
        text = None if self._recipe is None else _recipe_file(self._recipe)
        num_bytes = write_frames(frames, self._pattern, recipe=text, overwrite=self._overwrite)
        folder = self._pattern.parent
        return Saved(folder, num_bytes, None if text is None else folder / RECIPE_NAME)


class StreamSink:
    """The bytes of an MP4 on stdout; nothing stays on the disk.

    Args:
        fps: frames per second.
        recipe: kept in the comment tag; None for none.
        audio: sound to go with the frames.
    """

    def __init__(
        self,
        *,
        fps: int | float | Fraction,
        recipe: Mapping[str, Any] | None,
        audio: AudioTrack | None = None,
    ) -> None:
        self.notices: list[str] = []
        self._audio = audio
        self._fps = fps
        self._recipe = recipe

    def write(self, frames: Iterable[NDArray[np.uint8]]) -> Saved:
        """Encode all frames, then copy the file out (see `Sink`).

        Not encoded into the pipe: the index at the front of the file is written last.
        """
        comment = None if self._recipe is None else canonical_json(self._recipe)
        with tempfile.TemporaryDirectory(prefix="osp-", ignore_cleanup_errors=True) as folder:
            clip = Path(folder) / "clip.mp4"
            try:
                sound = {} if self._audio is None else _sound(self._audio, self.notices)
                num_bytes = write_video(frames, clip, fps=self._fps, comment=comment, **sound)
            except WontFitError as error:
                raise WontFitError(
                    f"no space left in {tempfile.gettempdir()} to prepare the video",
                    hint="set TMPDIR to a folder with more space",
                ) from error
            with clip.open("rb") as file, explained(Path("stdout")):
                shutil.copyfileobj(file, sys.stdout.buffer, 2**20)
                sys.stdout.buffer.flush()
        return Saved(STDOUT, num_bytes)


def _check_stdout() -> None:
    if sys.stdout is None:
        raise InvalidRequestError("-o - writes to stdout, which is closed", hint="-o clip.mp4")
    if sys.stdout.isatty():
        raise InvalidRequestError(
            "-o - writes a video, which a terminal cannot show",
            hint="pipe it into a program, as in `osp generate ... -o - | mpv -`",
        )


def _writer(path: Path) -> Callable[..., int]:
    """Looked up at each call, so that a test can put a failing one in its place."""
    return {".gif": write_gif, ".webp": write_webp}.get(path.suffix.lower(), write_video)


def _sound(audio: AudioTrack, notices: list[str]) -> dict[str, Any]:
    """What `write_video` is told about sound."""
    return {"audio": audio, "notices": notices}


def _no_sound(output: Path) -> str:
    kind = "frames" if output.suffix.lower() == _FRAMES_SUFFIX else f"a {output.suffix[1:].upper()}"
    return f"{kind} cannot hold the sound: -o {output.with_suffix('.mp4').name} would keep it"


def _recipe_file(recipe: Mapping[str, Any]) -> bytes:
    """A recipe for readers."""
    return (canonical_json(recipe, indent=2) + "\n").encode()
