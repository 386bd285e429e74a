"""Recordings that were cut short: counted, cut at a frame, and joined without coding them anew."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from osp_cli.errors import OspError, RuntimeFailureError, UnreadableMediaError
from osp_cli.media.ffmpeg import Decoder, failure
from osp_cli.media.files import atomic_output
from osp_cli.media.packet_times import PacketTimes
from osp_cli.media.video import metadata_file

FORMATS = {".mp4": "mp4", ".mkv": "matroska"}


def count_frames(path: str | Path) -> int:
    """How many frames of a video can be decoded; a file that breaks off is no error.

    Nothing is decoded for it, so that hours take seconds: the frames are counted that are there to
    their last byte. In files cut at any byte that is the number that a decoder gets out of them.

    Raises:
        UnreadableMediaError: no such file.
        RuntimeFailureError: ffmpeg is missing.
    """
    if not Path(path).exists():
        raise UnreadableMediaError(f"{path} does not exist", hint="check the name and the folder")
    return _packets(Path(path)).count


def cut_to(path: str | Path, frames: int) -> None:
    """Keep the first frames of a recording, as they are; its tags stay.

    The file is replaced as a whole or not at all.

    Args:
        path: a `.mp4` or `.mkv` of this package's live sinks, in which frames are in order.
        frames: how many, at least one.

    Raises:
        ValueError: `frames` is less than one.
        UnreadableMediaError: the file has fewer, or cannot be read.
        WontFitError: the disk is full.
    """
    path = Path(path)
    if frames < 1:
        raise ValueError(f"nothing would be left of {path}: {frames} frames")
    there = count_frames(path)
    if there < frames:
        raise UnreadableMediaError(f"{path} has {there} frames, {frames} were to be kept")
    if there == frames:
        return
    with atomic_output(path, overwrite=True) as part:
        copying = ["-i", f"file:{path}", "-map", "0:v:0", "-map_metadata", "0", "-c", "copy"]
        _copy([*copying, "-frames:v", str(frames)], part, path)
        _verify(part, path, frames)


def join(
    pieces: Sequence[str | Path],
    out: str | Path,
    *,
    overwrite: bool = False,
    comment: str | None = None,
    sound: Path | None = None,
) -> int:
    """Put recordings of one stream one after the other, without coding them anew.

    The result appears whole or not at all, and has been read back: every frame of every piece is
    there, at even distances.

    Args:
        pieces: made with one size, rate and encoder, each beginning with a picture of its own.
        out: `.mp4` or `.mkv`; it may be one of the pieces if `overwrite` is on.
        overwrite: replace a file of that name.
        comment: text of the comment tag, instead of the first piece's.
        sound: a file of sound, of `prepared_sound`, to begin with the first frame.

    Returns:
        The number of frames.

    Raises:
        ValueError: no pieces.
        UnreadableMediaError: a piece is missing or cannot be read.
        InvalidRequestError: the place cannot be written to.
        WontFitError: the disk is full.
        RuntimeFailureError: the pieces do not fit together; they are as they were.
    """
    out = Path(out)
    paths = [Path(piece) for piece in pieces]
    if not paths:
        raise ValueError("no pieces to join")
    counts = [count_frames(path) for path in paths]
    for path, count in zip(paths, counts, strict=True):
        if not count:
            raise UnreadableMediaError(f"{path} holds no frame that can be read")
    with (
        tempfile.TemporaryDirectory(prefix="osp-") as folder,
        metadata_file(comment) as tags,
        atomic_output(out, overwrite=overwrite) as part,
    ):
        listing = Path(folder) / "pieces.txt"
        listing.write_text("ffconcat version 1.0\n" + "".join(map(_entry, paths)), "utf-8")
        inputs = ["-f", "concat", "-safe", "0", "-i", f"file:{listing}"]
        # The concatenation has no tags of its own.
        inputs += ["-f", "ffmetadata", "-i", tags] if tags else ["-i", f"file:{paths[0]}"]
        inputs += ["-copyts", "-i", f"file:{sound}"] if sound else []
        streams = ["-map", "0:v:0", *(("-map", "2:a:0") if sound else ())]
        _copy([*inputs, *streams, "-map_metadata", "1", "-c", "copy"], part, out)
        _verify(part, out, sum(counts))
    return sum(counts)


def _entry(path: Path) -> str:
    """A line of the concat demuxer's list; a quote ends the quotation, is escaped, begins anew."""
    name = str(path.resolve()).replace("'", "'\\''")
    return f"file 'file:{name}'\n"


def _copy(arguments: Sequence[str], part: Path, path: Path) -> None:
    """Run ffmpeg from existing files to a new one."""
    kind = FORMATS.get(path.suffix.lower(), "mp4")
    faster = ("-movflags", "+faststart") if kind == "mp4" else ()
    output = ("-fflags", "+bitexact", *faster, "-f", kind, f"file:{part}")
    with Decoder(["-y", *arguments, *output]) as process:
        code = process.finish()
        if code:
            raise failure(code, "; ".join(process.said[-3:]), path)


def _verify(part: Path, path: Path, frames: int) -> None:
    times = _packets(part)
    if times.count != frames:
        raise _unfit(path, f"{times.count} frames of {frames} can be read back")
    if times.is_variable:
        raise _unfit(path, "the time stamps of its frames are uneven")


def _packets(path: Path) -> PacketTimes:
    """The coded frames of a file, but for one that breaks off."""
    times = PacketTimes()
    arguments = [
        *("-fflags", "+discardcorrupt", "-i", f"file:{path}", "-map", "0:v:0"),
        *("-c", "copy", "-f", "framecrc", "pipe:1"),
    ]
    with Decoder(arguments) as decoder:
        for line in decoder.lines():
            times.add(line)
        decoder.finish()
    times.close()
    return times


def _unfit(path: Path, reason: str) -> OspError:
    return RuntimeFailureError(
        f"the pieces of {path} do not fit together: {reason}",
        hint="the pieces are kept; each of them plays by itself",
    )
