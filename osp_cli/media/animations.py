"""Moving pictures for web pages and chats: GIF through ffmpeg, WebP through Pillow."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.ffmpeg import encode_frames
from osp_cli.media.files import atomic_output
from osp_cli.media.frames import checked_frames, durations

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A GIF counts hundredths of a second, and browsers show a delay of one of them as ten.
GIF_MAX_FPS = 50

# One palette for the whole clip: one per frame would make flat areas flicker. The ordered dither
# of this strength hides most bands of a sky, at half the size that error diffusion makes; and
# what stands still stays still, where diffused errors crawl as soon as anything moves. The palette
# is chosen from at most 131072 evenly spaced pixels a frame: from all of a grainy 832x480 it is no
# better and takes three times as long; from fewer, lines of two pixels may lose their colour.
_THIN_OUT = "'ceil({side}/ceil(sqrt(iw*ih/131072)))'"
_GIF_GRAPH = (
    "[0:v]split[seen][shown];"
    f"[seen]scale=w={_THIN_OUT.format(side='iw')}:h={_THIN_OUT.format(side='ih')}:flags=neighbor,"
    "palettegen=stats_mode=full[palette];"
    "[shown][palette]paletteuse=dither=bayer:bayer_scale=3[out]"
)
_GIF_COMMENT, _GIF_APPLICATION = b"\x21\xfe", b"\x21\xff"

# Every frame whole: differences to the frame before would be half as large, but let slow changes
# pile up until the next whole frame, and lose 7 dB on a drifting gradient.
_WEBP_OPTIONS = {"quality": 90, "method": 4, "kmin": 0, "kmax": 1}
_IMAGE_DESCRIPTION = 0x010E


def write_gif(
    frames: Iterable[NDArray[np.uint8]],
    path: str | Path,
    *,
    fps: int | float | Fraction = 16,
    comment: str | None = None,
    overwrite: bool = True,
) -> int:
    """Encode frames as a GIF of 255 colours that loops for ever and keeps the clip's time.

    Equal frames, fps and comment give equal bytes with the same ffmpeg build. The file appears
    whole or not at all. ffmpeg holds all frames, four bytes a pixel, until it knows the palette.

    Args:
        frames: uint8 RGB of shape `(height, width, 3)` each, all of one size.
        path: where to write; its suffix has no influence on the format.
        fps: frames per second, at most 50.
        comment: ASCII text kept in a comment block.
        overwrite: replace an existing file.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: no frames, frames of a wrong shape or type, too high a rate, or a comment
            that is not ASCII.
        InvalidRequestError: the path cannot be written to.
        WontFitError: the disk is full.
        RuntimeFailureError: ffmpeg is missing or failed.
    """
    path = Path(path)
    if fps > GIF_MAX_FPS:
        raise ValueError(f"a GIF shows at most {GIF_MAX_FPS} frames a second, got {fps}")
    # No empty block: ffmpeg, for one, finds no picture after it.
    block = _gif_comment(comment.encode("ascii")) if comment else b""
    with atomic_output(path, overwrite=overwrite) as part:
        arguments = [
            *("-filter_complex_threads", "1", "-filter_complex", _GIF_GRAPH, "-map", "[out]"),
            *("-map_metadata", "-1", "-threads", "1", "-fps_mode", "passthrough"),
            *("-fflags", "+bitexact", "-flags:v", "+bitexact", "-loop", "0"),
            *("-f", "gif", f"file:{part}"),
        ]
        encode_frames(frames, arguments, fps=fps, path=path)
        if block:
            data = part.read_bytes()
            place = _before_first_picture(data)
            part.write_bytes(data[:place] + block + data[place:])
        return part.stat().st_size


def write_webp(
    frames: Iterable[NDArray[np.uint8]],
    path: str | Path,
    *,
    fps: int | float | Fraction = 16,
    comment: str | None = None,
    overwrite: bool = True,
) -> int:
    """Encode frames as an animated WebP that loops for ever and keeps the clip's time.

    Equal frames, fps and comment give equal bytes with the same libwebp. The file appears whole or
    not at all. All frames are held in memory. Equal neighbours become one that is shown for longer.

    Args:
        frames: uint8 RGB of shape `(height, width, 3)` each, all of one size, at most 16383 pixels
            a side.
        path: where to write; its suffix has no influence on the format.
        fps: frames per second.
        comment: ASCII text kept as the picture's description (EXIF).
        overwrite: replace an existing file.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: no frames, frames of a wrong shape, type or size, or a comment not ASCII.
        InvalidRequestError: the path cannot be written to.
        WontFitError: the disk is full.
    """
    from PIL import Image

    with atomic_output(path, overwrite=overwrite) as part:
        pictures = [Image.fromarray(frame) for frame in checked_frames(frames)]
        shown = durations(len(pictures), fps, per_second=1000)
        # In memory first: Pillow may hide the system's reason for not writing.
        buffer = io.BytesIO()
        pictures[0].save(
            buffer,
            format="WEBP",
            save_all=True,
            append_images=pictures[1:],
            duration=shown,
            loop=0,
            exif=b"" if comment is None else _exif(comment.encode("ascii").decode()),
            **_WEBP_OPTIONS,
        )
        return part.write_bytes(buffer.getbuffer())


def read_gif_comments(path: Path, *, max_bytes: int) -> Iterator[str]:
    """The comments of a GIF in their order; a longer one than `max_bytes` is passed over.

    Raises:
        UnreadableMediaError: no GIF, or cut off; after the comments before the damage.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        header = file.read(13)
        if len(header) < 13 or header[:6] not in (b"GIF87a", b"GIF89a"):
            raise UnreadableMediaError(f"{path} is no GIF")
        file.seek(_palette_bytes(header[10]), io.SEEK_CUR)
        while (kind := file.read(1)) != b"\x3b":
            if kind == b"\x21":
                label = file.read(1)
                text = _read_sub_blocks(file, path, max_bytes if label == b"\xfe" else 0)
                if label == b"\xfe" and len(text) <= max_bytes:
                    yield text.decode("utf-8", errors="replace")
            elif kind == b"\x2c" and len(descriptor := file.read(9)) == 9:
                # A palette of its own may follow, and one byte about the code that comes then.
                file.seek(_palette_bytes(descriptor[8]) + 1, io.SEEK_CUR)
                _read_sub_blocks(file, path, 0)
            else:
                raise UnreadableMediaError(f"{path} is a damaged GIF")


def read_webp_description(path: Path, *, max_bytes: int) -> str | None:
    """The EXIF description of a WebP, or None where it has none that can be read.

    Raises:
        UnreadableMediaError: no WebP.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        header = file.read(12)
        if header[:4] != b"RIFF" or header[8:] != b"WEBP":
            raise UnreadableMediaError(f"{path} is no WebP")
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            # A tag of text and the frame around it.
            if name == b"EXIF" and size <= max_bytes + 1024:
                return _description(file.read(size))
            file.seek(size + size % 2, io.SEEK_CUR)
    return None


def _exif(description: str) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[_IMAGE_DESCRIPTION] = description
    # The mark that a JPEG needs before it does not belong into a WebP.
    return exif.tobytes().removeprefix(b"Exif\0\0")


def _description(data: bytes) -> str | None:
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(data)
        text = exif.get(_IMAGE_DESCRIPTION)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        return None  # what Pillow raises on damaged tags
    return text if isinstance(text, str) else None


def _gif_comment(text: bytes) -> bytes:
    """A comment extension: pieces of at most 255 bytes, each after its length."""
    pieces = [text[start : start + 255] for start in range(0, len(text), 255)]
    return _GIF_COMMENT + b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\0"


def _before_first_picture(data: bytes) -> int:
    """Where the palette and the block that asks for looping end."""
    place = 13 + _palette_bytes(data[10])
    while data[place : place + 2] == _GIF_APPLICATION:
        place += 2
        while data[place]:
            place += 1 + data[place]
        place += 1
    return place


def _palette_bytes(flags: int) -> int:
    """The size of the palette that the flags of a header or of a picture announce."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _read_sub_blocks(file: IO[bytes], path: Path, max_bytes: int) -> bytes:
    """The joined pieces up to the empty one; what goes beyond `max_bytes` may be left out."""
    pieces = bytearray()
    while (length := file.read(1)) != b"\0":
        piece = file.read(length[0]) if length else b""
        if not length or len(piece) < length[0]:
            raise UnreadableMediaError(f"{path} is a GIF that was cut off")
        if len(pieces) <= max_bytes:
            pieces += piece
    return bytes(pieces)
