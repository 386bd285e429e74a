"""The ffmpeg program that imageio-ffmpeg brings: found, fed, read, and never left behind."""

from __future__ import annotations

import collections
import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from osp_cli.errors import OspError, RuntimeFailureError, UnreadableMediaError
from osp_cli.media.files import file_too_large, no_space
from osp_cli.media.frames import checked_frames, exact_rate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# ffmpeg exits with the negated errno of ENOSPC, of which POSIX keeps the low byte.
_FULL_CODES = (256 - 28, 2**32 - 28)
_FULL_WORDS = ("No space left on device", "Disk quota exceeded")


def ffmpeg_exe() -> str:
    """Path of the ffmpeg program.

    Raises:
        RuntimeFailureError: there is none.
    """
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise RuntimeFailureError(
            "no ffmpeg program was found",
            hint="pip install --force-reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE",
        ) from error


def encode_frames(
    frames: Iterable[NDArray[np.uint8]],
    arguments: Sequence[str],
    *,
    fps: int | float | Fraction,
    path: Path,
    even: bool = False,
) -> None:
    """Feed frames to an ffmpeg that has them as its input 0, one at a time, and wait for its end.

    Args:
        frames: uint8 RGB of shape `(height, width, 3)` each, all of one size.
        arguments: what follows the input: more inputs, filters, codec, output.
        fps: frames per second of the input.
        path: the file being made, for the words of an error only.
        even: refuse sides that are odd.

    Raises:
        ValueError: no frames, or frames that cannot be encoded.
        WontFitError: the disk is full, or the file larger than it may be.
        RuntimeFailureError: ffmpeg is missing or failed.
    """
    rate = exact_rate(fps)
    encoder: Encoder | None = None
    with contextlib.ExitStack() as stack:
        for frame in checked_frames(frames, even=even):
            if encoder is None:
                height, width = frame.shape[:2]
                command = [
                    *(ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"),
                    *("-f", "rawvideo", "-pixel_format", "rgb24"),
                    *("-video_size", f"{width}x{height}"),
                    *("-framerate", f"{rate.numerator}/{rate.denominator}", "-i", "pipe:0"),
                    *arguments,
                ]
                encoder = stack.enter_context(Encoder(command, path))
            encoder.write(frame)
        assert encoder is not None
        encoder.finish()


class _Process:
    """An ffmpeg whose words are read all the time, and that never outlives its block.

    Should this process be killed itself, the pipe closes and ffmpeg ends on its own.

    Args:
        command: the program and its arguments.
        stdin: where it reads from, a pipe of ours or nothing; it writes to a pipe when this is not.
        stdout: where it writes to instead: a file descriptor, or one of subprocess's numbers.
        num_first: how many of the first lines that it says are kept, besides the last ten.
    """

    def __init__(
        self, command: Sequence[str], *, stdin: int, stdout: int | None = None, num_first: int = 0
    ) -> None:
        self._process = _start(command, stdin=stdin, stdout=stdout)
        assert self._process.stderr is not None
        self._num_first = num_first
        self._first: list[str] = []
        self._tail: collections.deque[str] = collections.deque(maxlen=10)
        # Read all the time: a full pipe would stop ffmpeg, and then us, for ever.
        self._reader = threading.Thread(
            target=self._drain, args=(self._process.stderr,), daemon=True
        )
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Reached on success too, when the process has already ended and this changes nothing.
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _drain(self, stderr: IO[bytes]) -> None:
        with stderr:
            for line in stderr:
                if text := line.decode(errors="replace").strip():
                    kept = self._first if len(self._first) < self._num_first else self._tail
                    kept.append(text)


class Encoder(_Process):
    """An ffmpeg process that is fed frames; killed when its block ends in an exception.

    Args:
        command: the program and its arguments; `pipe:0` among its inputs.
        path: the file being made, for the words of an error only.
        stdout: where its output `pipe:1` goes; nowhere if not told.
    """

    def __init__(self, command: Sequence[str], path: Path, *, stdout: int | None = None) -> None:
        super().__init__(command, stdin=subprocess.PIPE, stdout=stdout)
        self._path = path
        assert self._process.stdin is not None
        self._stdin: IO[bytes] = self._process.stdin

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Hand over one frame; waits while ffmpeg is busy."""
        try:
            self._stdin.write(frame.tobytes())
            # Else the end of the frame would wait for the next one.
            self._stdin.flush()
        except OSError as error:  # a broken pipe, by whatever number the system gives it
            raise self._failure() from error

    def finish(self) -> None:
        """Close the input and wait until the file is whole."""
        # After a broken pipe the exit code tells more than the pipe does.
        with contextlib.suppress(OSError):
            self._stdin.close()
        if self._process.wait() != 0:
            raise self._failure()

    def _failure(self) -> OspError:
        with contextlib.suppress(OSError):
            self._stdin.close()
        code = self._process.wait()
        self._reader.join()
        return failure(code, "; ".join(self._tail), self._path)


class Decoder(_Process):
    """An ffmpeg process whose output is read; killed when its block ends, wherever it then is.

    Args:
        arguments: inputs and outputs, `pipe:1` among the latter.
        loglevel: how much it says.
    """

    def __init__(self, arguments: Sequence[str], *, loglevel: str = "error") -> None:
        # What a file may refer to is other files here, nothing on the network.
        safe = ("-nostdin", "-nostats", "-protocol_whitelist", "file,pipe")
        command = [ffmpeg_exe(), "-hide_banner", "-loglevel", loglevel, *safe, *arguments]
        super().__init__(command, stdin=subprocess.DEVNULL, num_first=500)
        assert self._process.stdout is not None
        self._stdout: IO[bytes] = self._process.stdout

    def fill(self, buffer: memoryview) -> bool:
        """Fill `buffer` with the next bytes; False where the output ends before it is full."""
        filled = 0
        while filled < len(buffer):
            count = self._stdout.readinto(buffer[filled:])  # type: ignore[attr-defined]
            if not count:
                return False
            filled += count
        return True

    def lines(self) -> Iterator[bytes]:
        """The output line by line."""
        return iter(self._stdout)

    def finish(self) -> int:
        """Wait for the end of a process whose output was read to its end; its exit code."""
        code = self._process.wait()
        self._reader.join()
        return code

    @property
    def said(self) -> list[str]:
        """What it said: all of it after `finish`, but for the middle of a long story."""
        return [*self._first, *self._tail]


def run_ffmpeg(
    arguments: Sequence[str], path: str | Path, *, loglevel: str = "error"
) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg on the input file `path` and collect what it prints.

    Raises:
        UnreadableMediaError: no such file, or ffmpeg cannot make sense of it.
        RuntimeFailureError: ffmpeg is missing.
    """
    if not Path(path).exists():
        raise UnreadableMediaError(f"{path} does not exist", hint="check the name and the folder")
    command = [ffmpeg_exe(), "-hide_banner", "-loglevel", loglevel, *arguments]
    process = _start(command, stdin=subprocess.DEVNULL)
    try:
        stdout, stderr = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode != 0:
        lines = stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {process.returncode}"
        raise UnreadableMediaError(f"{path} cannot be read as a video ({reason})")
    return subprocess.CompletedProcess(command, 0, stdout, stderr)


def _start(
    command: Sequence[str], *, stdin: int = subprocess.PIPE, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    if stdout is None:
        stdout = subprocess.PIPE if stdin == subprocess.DEVNULL else subprocess.DEVNULL
    try:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            # In a group of its own, by the word for it of POSIX and of Windows: Ctrl-C is ours to
            # handle, ffmpeg would stop before us.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    except OSError as error:
        raise RuntimeFailureError(
            f"ffmpeg cannot be started ({error.strerror}: {command[0]})",
            hint="pip install --force-reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE",
        ) from error


def failure(code: int, tail: str, path: Path) -> OspError:
    """What an ffmpeg that ended with `code` after saying `tail` means for the user."""
    if code in _FULL_CODES or any(words in tail for words in _FULL_WORDS):
        return no_space(path)
    how = f"exit code {code}"
    if code < 0:
        try:
            how = f"signal {signal.Signals(-code).name}"
        except ValueError:
            how = f"signal {-code}"
    if how == "signal SIGXFSZ":
        return file_too_large(path)
    return RuntimeFailureError(f"ffmpeg stopped with {how}" + (f": {tail}" if tail else ""))
