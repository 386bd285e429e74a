"""A file that plays while it is written, and after every kind of end."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from osp_cli.errors import InvalidRequestError, OspError
from osp_cli.events import Saved
from osp_cli.media.files import (
    atomic_output,
    check_writable,
    explained,
    flush_file,
    flush_folder,
    publish,
)
from osp_cli.media.live.encoding import (
    LiveEncoder,
    codec_arguments,
    matroska_arguments,
    mp4_arguments,
    stream_command,
)
from osp_cli.media.live.picture import Picture
from osp_cli.media.live.pieces import FORMATS, count_frames, cut_to, join
from osp_cli.media.recipes import canonical_json, sidecar_path
from osp_cli.media.sound import AudioTrack, prepared_sound
from osp_cli.media.video import metadata_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Longer than the end of any file takes; a disk that hangs is given up on.
_END_SECONDS = 60.0
_ABORT_SECONDS = 3.0
# More than a pipe holds anywhere.
_IN_PIPES = 2**21


def recording_path(output: Path) -> Path:
    """Where a stream is while it is written: `clip.mp4` -> `clip.recording.mp4`."""
    return output.with_name(f"{output.stem}.recording{output.suffix}")


def check_recording(output: Path, *, overwrite: bool, resumed: bool = False) -> None:
    """Refuse an output that a stream cannot be recorded to.

    Args:
        output: a `.mp4` or `.mkv` file.
        overwrite: what has that name, and what a killed run left, may go.
        resumed: earlier pieces stand before it, one of which may have the name of the output.

    Raises:
        InvalidRequestError: another kind of file, something existing, a folder that is missing or
            read-only.
    """
    if output.suffix.lower() not in FORMATS and not output.is_dir():
        got = output.suffix or "a name without an extension"
        raise InvalidRequestError(
            f"a stream cannot be recorded as {got}, only as {' or '.join(FORMATS)}",
            hint=f"-o {output.with_name((output.stem or 'clip') + '.mp4')}",
        )
    check_writable(output, overwrite=overwrite or resumed)
    check_writable(sidecar_path(output), overwrite=overwrite or resumed)
    unfinished = recording_path(output)
    _check_free(unfinished)
    if unfinished.exists() and not overwrite:
        raise InvalidRequestError(
            f"{unfinished} exists already: it is of a run that was killed",
            hint="--resume goes on from it, -y begins anew, -o names another file",
        )
    check_writable(unfinished, overwrite=True)


class Recording:
    """One file of a stream. It has its final name only after a clean end.

    Until then it is `clip.recording.mp4` beside it: whatever ends this process or ffmpeg, that
    file plays, but for the last picture where ffmpeg itself was killed.

    Args:
        output: `.mp4` or `.mkv`.
        picture: form of the frames.
        recipe: kept in the file and, at the end, beside it; None for neither.
        overwrite: replace what has the name of the output.
        earlier: pieces of the same stream that come before, made by other runs; they are joined
            with this one at the end, and gone then.
        audio: sound of the first part; it comes in when the file is whole.

    Attributes:
        notices: sentences about sound that cannot be used.
    """

    def __init__(
        self,
        output: Path,
        picture: Picture,
        *,
        recipe: Mapping[str, Any] | None,
        overwrite: bool,
        earlier: Sequence[Path] = (),
        audio: AudioTrack | None = None,
    ) -> None:
        check_recording(output, overwrite=overwrite, resumed=bool(earlier))
        self.path = recording_path(output)
        self.num_frames = 0
        self._output = output
        self._picture = picture
        self._comment = None if recipe is None else canonical_json(recipe)
        self._recipe = recipe
        self._overwrite = overwrite or bool(earlier)
        self._earlier = tuple(earlier)
        self._audio = audio
        self.notices: list[str] = []
        self._stack = contextlib.ExitStack()
        self._tags = contextlib.ExitStack()
        self._encoder: LiveEncoder | None = None

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append frames, uint8 `(n, height, width, 3)`.

        Raises:
            ValueError: frames of another form.
            WontFitError: the disk is full; `kept` names what plays.
            RuntimeFailureError: ffmpeg is missing or was ended; `kept` names what plays.
        """
        self._picture.check(frames)
        # Not before the first frame: a run that fails to load its model leaves no file.
        if self._encoder is None:
            self._encoder = self._start()
        try:
            for frame in frames:
                self._encoder.write(frame)
                self.num_frames += 1
        except OspError as error:
            raise self._cut_short(error) from error
        if self.num_frames * frames[:1].nbytes > _IN_PIPES:
            # ffmpeg reads frames, so it has read the tags: a run that is killed leaves none.
            self._tags.close()

    def close(self, recipe: Mapping[str, Any] | None = None) -> Saved | None:
        """End the file and give it its name; None where no frame came and none came before.

        Args:
            recipe: the one to keep, where the stream added to it while it ran.

        Raises:
            InvalidRequestError: the name has been taken meanwhile; the recording is kept.
            WontFitError, RuntimeFailureError: as for `write`.
        """
        if self._encoder is not None:
            encoder, self._encoder = self._encoder, None
            with self._stack:
                if encoder.stop(seconds=_END_SECONDS):
                    raise self._cut_short(encoder.failure())
        elif not self._earlier:
            return None
        if recipe is not None and self._recipe is not None:
            self._recipe = recipe
        try:
            return self._publish()
        except OspError as error:
            raise type(error)(error.message, hint=error.hint, kept=self._kept()) from error

    def abort(self) -> Path | None:
        """End it at once and leave what there is under the name of a recording.

        Returns:
            That file; None where there is none.
        """
        if self._encoder is not None:
            with self._stack:
                self._encoder.stop(seconds=_ABORT_SECONDS)
            self._encoder = None
        return self.path if self.path.exists() else None

    def _start(self) -> LiveEncoder:
        """ffmpeg, writing to an empty file that is ours."""
        with explained(self.path), contextlib.ExitStack() as stack:
            if not self._earlier:
                # Of a stream that is begun anew.
                for stale in _pieces(self._output):
                    stale.unlink()
            mode = "wb" if self._overwrite else "xb"
            try:
                # Kept open for its lock alone: ffmpeg writes.
                _lock(stack.enter_context(self.path.open(mode)))
            except FileExistsError:
                check_recording(self._output, overwrite=False, resumed=bool(self._earlier))
                raise
            stack.callback(self._remove_if_empty)
            tags = self._tags.enter_context(metadata_file(self._comment))
            stack.callback(self._tags.close)
            matroska = FORMATS[self._output.suffix.lower()] == "matroska"
            arguments = [
                *codec_arguments(self._picture),
                *(matroska_arguments() if matroska else mp4_arguments()),
                f"file:{self.path}",
            ]
            command = stream_command(self._picture, arguments, metadata=tags)
            encoder = stack.enter_context(LiveEncoder(command, self.path))
            self._stack = stack.pop_all()
        return encoder

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):
            if not self.path.stat().st_size:
                self.path.unlink()

    def _publish(self) -> Saved:
        """Give the whole file its final name, the sidecar last."""
        sidecar = sidecar_path(self._output)
        final = None if self._recipe is None else canonical_json(self._recipe)
        with contextlib.ExitStack() as stack:
            if self._recipe is not None:
                part = stack.enter_context(atomic_output(sidecar, overwrite=self._overwrite))
                part.write_text(canonical_json(self._recipe, indent=2) + "\n", "utf-8")
            sound = None
            if self._audio is not None:
                sound = stack.enter_context(prepared_sound(self._audio, self.notices))
            if self._earlier:
                own = (self.path,) if self.num_frames else ()
                pieces = [*self._earlier, *own]
                join(pieces, self._output, overwrite=True, comment=final, sound=sound)
            elif final != self._comment or sound:
                join(
                    [self.path],
                    self._output,
                    overwrite=self._overwrite,
                    comment=final,
                    sound=sound,
                )
            else:
                with explained(self._output):
                    flush_file(self.path)
                    publish(self.path, self._output, overwrite=self._overwrite)
                    flush_folder(self._output.parent)
            with explained(self._output):
                for piece in (self.path, *self._earlier):
                    if piece != self._output:
                        piece.unlink(missing_ok=True)
        if self._recipe is None and self._overwrite:
            sidecar.unlink(missing_ok=True)
        size = self._output.stat().st_size
        return Saved(self._output, size, None if self._recipe is None else sidecar)

    def _kept(self) -> tuple[Path, ...]:
        return tuple(path for path in (*self._earlier, self.path) if path.exists())

    def _cut_short(self, error: OspError) -> OspError:
        """The same error, telling what plays nevertheless."""
        with self._stack:
            self._encoder = None
        playable = 0
        with contextlib.suppress(OspError):
            playable = count_frames(self.path)
        if not playable:
            with contextlib.suppress(OSError):
                self.path.unlink()
            return type(error)(error.message, hint=error.hint, kept=self._kept())
        seconds = float(playable / self._picture.rate)
        hint = "--resume goes on from it"
        return type(error)(
            f"{error.message}; {self.path} plays up to its frame {playable} ({seconds:.1f} s)",
            hint=f"{error.hint}; {hint}" if error.hint else hint,
            kept=self._kept(),
        )


def take_up(output: Path, frames: int) -> tuple[Path, ...]:
    """Prepare what earlier runs recorded for a run that goes on from frame `frames`.

    Each of those runs left a piece: the recording of a killed one is renamed, the last piece cut.
    Calling it again changes nothing.

    Args:
        output: the final name of the stream.
        frames: how many frames the pieces shall have together, whole chunks.

    Returns:
        The pieces in their order, for `earlier` of `open_live`.

    Raises:
        InvalidRequestError: fewer frames are there, or another run is writing them right now.
        WontFitError: the disk is full.
    """
    pieces = _pieces(output)
    unfinished = recording_path(output)
    _check_free(unfinished)
    with explained(output):
        if unfinished.exists():
            if count_frames(unfinished):
                taken = _piece(output, len(pieces) + 1)
                unfinished.rename(taken)
                pieces.append(taken)
            else:
                unfinished.unlink()
    if output.exists() and output not in pieces:
        pieces.insert(0, output)
    counts = [count_frames(piece) for piece in pieces]
    kept: list[Path] = []
    left = frames
    for piece, there in zip(pieces, counts, strict=True):
        if left and there:
            kept.append(piece)
            left -= min(there, left)
    if left:
        raise InvalidRequestError(
            f"{output} and its pieces have {frames - left} frames, the state is of frame {frames}",
            hint="begin anew with -y, or resume from an earlier state",
        )
    # Only now that all is known to be there: what comes after that frame is made anew.
    with explained(output):
        for piece in pieces:
            if piece not in kept:
                piece.unlink()
    if kept:
        before = sum(counts[: len(kept) - 1])
        cut_to(kept[-1], frames - before)
    return tuple(kept)


def recorded_frames(output: Path) -> int:
    """How many frames of a stream can be decoded: its file, its pieces and its recording."""
    there = [path for path in (output, *_pieces(output), recording_path(output)) if path.exists()]
    return sum(count_frames(path) for path in there)


def _check_free(unfinished: Path) -> None:
    """Refuse a recording that another run is writing right now.

    The system forgets a lock with its process, however that ends.
    """
    with contextlib.suppress(ImportError, FileNotFoundError):
        import fcntl  # not on Windows, where a file that is written cannot be replaced anyway

        with explained(unfinished), unfinished.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidRequestError(
                    f"{unfinished} is being written by another run",
                    hint="stop that one first, or choose another name with -o",
                ) from None
            except OSError:
                return  # no locks on this file system


def _lock(file: IO[bytes]) -> None:
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _piece(output: Path, number: int) -> Path:
    return output.with_name(f"{output.stem}.piece{number:03d}{output.suffix}")


def _pieces(output: Path) -> list[Path]:
    """Pieces without a gap from the first on."""
    found: list[Path] = []
    while (piece := _piece(output, len(found) + 1)).exists():
        found.append(piece)
    return found
