"""Telling pictures from videos by the first bytes of a file, without any library."""

from __future__ import annotations

import enum
import io
import re
import stat
from pathlib import Path
from typing import IO

_VIDEO_NAMES = """
    mp4 m4v mov qt 3gp 3g2 mkv webm avi mpg mpeg mpe m2v vob ts m2ts mts flv f4v ogv ogm wmv asf
    rm rmvb mxf dv ivf nut y4m h264 264 h265 265 hevc
"""
_PICTURE_NAMES = """
    png apng jpg jpeg jpe jfif webp gif bmp dib tif tiff ppm pgm pbm pnm avif avifs heic heif jp2
    j2k tga mpo jxl
"""
VIDEO_EXTENSIONS = frozenset(f".{name}" for name in _VIDEO_NAMES.split())
PICTURE_EXTENSIONS = frozenset(f".{name}" for name in _PICTURE_NAMES.split())

_HEAD_BYTES = 4096
_PNG = b"\x89PNG\r\n\x1a\n"
_PICTURES = (
    _PNG,
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP  ",
)
_PICTURE_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc", b"avif", b"avis")
_VIDEOS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"\0\0\x01\xba",  # MPEG program stream
    b"\0\0\x01\xb3",  # MPEG elementary stream
    b"FLV\x01",
    b"OggS",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b".RMF",
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01",  # MXF
    b"DKIF",  # IVF
    b"nut/multimedia container\0",
    b"YUV4MPEG2 ",
)
# The first box of an old QuickTime file, which says no brand.
_QUICKTIME_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


class MediaKind(enum.Enum):
    """What an input is, as far as a cheap look tells."""

    PICTURE = "picture"
    ANIMATION = "animation"  # a GIF, PNG or WebP that moves
    VIDEO = "video"
    OTHER = "other"


def media_kind(path: str | Path) -> MediaKind:
    """What a file is by its first bytes, or by its name where they do not tell.

    Never fails: what is missing, or cannot be opened, goes by its name, and whoever then reads it
    says what is wrong. Nothing is waited for: a pipe goes by its name too.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return MediaKind.OTHER if path.is_dir() else _by_name(path)
        with path.open("rb") as file:
            return _by_content(file) or _by_name(path)
    except (OSError, ValueError):
        return _by_name(path)


def is_video_file(path: str | Path) -> bool:
    """Whether an input is to be taken as a video.

    Animated pictures are pictures here, of which the first frame is used (`load_image`);
    `media_kind` tells them apart. Sound alone in a container of videos counts as a video, so that
    its reader can say that the pictures are missing.
    """
    return media_kind(path) is MediaKind.VIDEO


def is_text(data: bytes) -> bool:
    """Whether the first bytes of a file are something to read with the eyes."""
    if not data or data.startswith(b"YUV4MPEG2 "):
        return False
    try:
        data.decode()
    except UnicodeDecodeError as error:
        # The last character of a sample may be cut in the middle.
        if error.start < len(data) - 3:
            return False
    return re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", data) is None


def read_head(path: Path) -> bytes:
    """The bytes by which `is_text` and `media_kind` judge."""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _by_name(path: Path) -> MediaKind:
    extension = path.suffix.lower()
    if extension in VIDEO_EXTENSIONS:
        return MediaKind.VIDEO
    return MediaKind.PICTURE if extension in PICTURE_EXTENSIONS else MediaKind.OTHER


def content_kind(data: bytes) -> MediaKind:
    """What bytes are that came without a name."""
    return _by_content(io.BytesIO(data)) or MediaKind.OTHER


def _by_content(file: IO[bytes]) -> MediaKind | None:
    head = file.read(_HEAD_BYTES)
    if head.startswith(_PICTURES) or head[:4] == b"RIFF":
        return _of_picture(head, file)
    box, brand = head[4:8], head[8:12]
    if box == b"ftyp":
        return MediaKind.PICTURE if brand in _PICTURE_BRANDS else MediaKind.VIDEO
    if head.startswith(_VIDEOS) or box in _QUICKTIME_BOXES or _is_transport_stream(head):
        return MediaKind.VIDEO
    return None


def _of_picture(head: bytes, file: IO[bytes]) -> MediaKind | None:
    """Of a file that begins as a picture does, or as all RIFF files do."""
    moves = False
    if head[:4] == b"RIFF":
        if head[8:12] == b"AVI ":
            return MediaKind.VIDEO
        if head[8:12] != b"WEBP":
            return None
        moves = head[12:16] == b"VP8X" and len(head) > 20 and bool(head[20] & 2)
    elif head.startswith(_PNG):
        # The chunk that makes it move stands before the first pixels.
        moves = b"acTL" in head.partition(b"IDAT")[0]
    elif head.startswith(b"GIF"):
        file.seek(0)
        moves = _gif_moves(file)
    return MediaKind.ANIMATION if moves else MediaKind.PICTURE


def _is_transport_stream(head: bytes) -> bool:
    """Whether packets begin where those of MPEG-TS do, with or without a Blu-ray's time codes."""
    return any(
        len(head) > start + 2 * step and all(head[start + n * step] == 0x47 for n in range(3))
        for start, step in ((0, 188), (4, 192))
    )


def _gif_moves(file: IO[bytes]) -> bool:
    """Whether a second picture begins after the first; only the sizes of blocks are read."""
    header = file.read(13)
    if len(header) < 13:
        return False
    _skip_palette(file, header[10])
    num_pictures = 0
    while True:
        match file.read(1):
            case b"!":
                file.seek(1, io.SEEK_CUR)
            case b",":
                num_pictures += 1
                if num_pictures > 1:
                    return True
                descriptor = file.read(9)
                if len(descriptor) < 9:
                    return False
                _skip_palette(file, descriptor[8])
                file.seek(1, io.SEEK_CUR)
            case _:
                return False
        while size := file.read(1):
            if size == b"\0":
                break
            file.seek(size[0], io.SEEK_CUR)


def _skip_palette(file: IO[bytes], flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << ((flags & 7) + 1), io.SEEK_CUR)
