"""Reading the input picture and fitting it to the frame of the video.

Pillow alone does the reading, so that a picture is refused in milliseconds and without torch;
numpy is imported only where 16-bit samples or tensor values are made.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageCms

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.fitting import cover_size as cover_size
from osp_cli.media.kinds import MediaKind, content_kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 512 * 1024 * 1024

# Only formats that Pillow decodes itself: its PostScript reader, for one, starts another program.
# (MPO, the two-view JPEG of phones, is opened by the JPEG reader.)
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
_FORMATS_HINT = "PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF pictures are read"

# What Pillow's decoders raise on damaged data, besides its own UnidentifiedImageError (an OSError).
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    struct.error,
    zlib.error,
)

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """A picture ready for use.

    Attributes:
        image: upright 8-bit RGB in sRGB.
        notices: sentences about what was done to it that a user may not expect.
        sha256: hex digest of the file as it was read.
    """

    image: Image.Image
    notices: tuple[str, ...]
    sha256: str


def load_image(path: str | Path) -> LoadedImage:
    """Read a picture of any common kind as upright 8-bit sRGB.

    Palette, grey, 16-bit and CMYK pictures are converted, embedded colour profiles are applied,
    transparency is laid on white, EXIF orientation is honoured, an animation gives its first frame.

    Raises:
        UnreadableMediaError: no such file, a folder, empty, no picture, damaged or too large.
    """
    path = Path(path)
    return decode_image(_read_bytes(path), name=str(path))


def decode_image(data: bytes, *, name: str) -> LoadedImage:
    """Decode the bytes of a picture file; `name` is what the error messages call it.

    Raises:
        UnreadableMediaError: empty, no picture, damaged or too large.
    """
    if not data:
        raise UnreadableMediaError(f"{name} is empty (0 bytes)", hint="choose another picture")
    notices: list[str] = []
    try:
        # The header alone is read here: a picture too large is refused before it is decoded.
        with _pixel_limit(None):
            picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    except _DECODER_ERRORS as error:
        hint = _FORMATS_HINT
        if content_kind(data) is MediaKind.VIDEO:
            hint = "osp stylize FILE --style ink takes videos, by their names"
        raise UnreadableMediaError(
            f"{name} is not a picture that can be read{_looks_like(data)}", hint=hint
        ) from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UnreadableMediaError(
            f"{name} has {width}x{height} pixels, more than {MAX_PIXELS // 10**6} megapixels",
            hint="scale it down first; a video needs two megapixels at most",
        )
    try:
        with _pixel_limit(MAX_PIXELS):
            picture.load()
            image = _to_rgb(picture, name, notices)
            image = _upright(picture, image, notices)
            _say_if_animated(picture, notices)
    except _DECODER_ERRORS as error:
        raise UnreadableMediaError(
            f"{name} is damaged or cut short ({error})", hint="copy or download it again"
        ) from error
    return LoadedImage(image=image, notices=tuple(notices), sha256=hashlib.sha256(data).hexdigest())


def choose_bucket(width: int, height: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The `(width, height)` of `sizes` whose aspect ratio is nearest, the larger area on a tie.

    Nearness is measured on the logarithm, so that twice as wide is as far off as half as wide.

    Raises:
        ValueError: `sizes` is empty, or the picture has no area.
    """
    if not sizes:
        raise ValueError("no sizes to choose from")
    if width < 1 or height < 1:
        raise ValueError(f"a picture has at least one pixel, got {width}x{height}")
    wanted = math.log(width / height)

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        # Rounded, because equal ratios of different sizes differ in the last bit of the logarithm.
        return round(abs(math.log(size[0] / size[1]) - wanted), 9), -size[0] * size[1]

    return min(sizes, key=distance)


def cover_resize_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale a picture until it covers `width` x `height`, then cut out the centre.

    The side that overhangs is rounded up and the crop offset is rounded half to even, as in the
    released preprocessing; the filter is the antialiased bicubic.

    Raises:
        ValueError: the wanted size has no area.
    """
    if width < 1 or height < 1:
        raise ValueError(f"the wanted size must be positive, got {width}x{height}")
    image = image if image.mode == "RGB" else image.convert("RGB")
    if image.size == (width, height):
        return image.copy()
    scaled_width, scaled_height = cover_size(*image.size, width, height)
    left, top = round((scaled_width - width) / 2), round((scaled_height - height) / 2)
    if scaled_width * scaled_height <= MAX_PIXELS:
        scaled = image.resize((scaled_width, scaled_height), Image.Resampling.BICUBIC)
        return scaled.crop((left, top, left + width, top + height))
    # A picture of 1x50000 would become gigapixels: only the part that survives the crop is made.
    # Not done always, because Pillow then may swap its two passes and differ by a few levels.
    step_x, step_y = image.width / scaled_width, image.height / scaled_height
    box = (
        left * step_x,
        top * step_y,
        min((left + width) * step_x, image.width),
        min((top + height) * step_y, image.height),
    )
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def to_tensor_values(image: Image.Image) -> NDArray[np.float32]:
    """The picture as model input: float32 `(3, height, width)` in [-1, 1]."""
    import numpy as np

    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    values: NDArray[np.float32] = pixels.transpose(2, 0, 1) / np.float32(255)
    return np.ascontiguousarray(values * np.float32(2) - np.float32(1))


def from_tensor_values(values: NDArray[np.float32]) -> Image.Image:
    """Inverse of `to_tensor_values`: `(3, height, width)` in [-1, 1], clipped, to 8-bit RGB."""
    import numpy as np

    pixels = np.rint((np.clip(values, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise UnreadableMediaError(
                f"{path} is a folder, not a picture", hint="name one picture in it"
            )
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise UnreadableMediaError(
            f"{path} does not exist", hint=_similar_names(path) or "check the name and the folder"
        ) from error
    except PermissionError as error:
        raise UnreadableMediaError(
            f"{path} may not be read (permission denied)", hint="check who owns the file"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableMediaError(f"{path} cannot be read ({reason})") from error
    if len(data) > MAX_FILE_BYTES:
        raise UnreadableMediaError(
            f"{path} is larger than {MAX_FILE_BYTES // 2**20} MiB", hint="scale it down first"
        )
    return data


def _similar_names(path: Path) -> str | None:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else None


def _looks_like(data: bytes) -> str:
    """A short remark on what a file that is no picture seems to be."""
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        if brand in (b"heic", b"heix", b"mif1", b"msf1"):
            return ": it is HEIC, export it as JPEG"
    if content_kind(data) is MediaKind.VIDEO:
        return ": it looks like a video"
    try:
        # The last characters of a sample may be cut in the middle.
        data[:1024].decode()
    except UnicodeDecodeError as error:
        if error.start < min(len(data), 1024) - 3:
            return ""
    return "" if b"\0" in data[:1024] else ": it holds text"


_limit_lock = threading.Lock()


@contextlib.contextmanager
def _pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Hold Pillow's own guard against huge pictures, which is global, at `max_pixels`."""
    with _limit_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _to_rgb(picture: Image.Image, name: str, notices: list[str]) -> Image.Image:
    """8-bit sRGB of the current frame, transparency laid on white."""
    picture = _with_8_bit_samples(picture, name)
    profile = picture.info.get("icc_profile")
    if picture.mode in ("P", "PA", "1") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    elif picture.mode in ("RGBa", "La"):
        picture = picture.convert(picture.mode.upper())
    alpha = picture.getchannel("A") if picture.mode in ("RGBA", "LA") else None
    if alpha is not None:
        picture = picture.convert("RGB" if picture.mode == "RGBA" else "L")
    image = _from_profile(picture, profile, notices) if profile else picture
    image = image.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return image
    notices.append("the picture is partly transparent: laid on white")
    opaque = Image.new("RGB", image.size, "white")
    opaque.paste(image, mask=alpha)
    return opaque


def _with_8_bit_samples(picture: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit grey to 8 bits; Pillow's own conversion clips everything above 255."""
    if picture.mode == "F":
        raise UnreadableMediaError(
            f"{name} holds floating-point samples, whose range is not known",
            hint="convert it to 8 or 16 bits per sample",
        )
    transparent = picture.info.get("transparency")
    if not picture.mode.startswith("I"):
        if isinstance(transparent, tuple) and max(transparent) > 255:
            # Pillow reduces 16-bit colour by itself, but not the colour that means transparent.
            picture.info["transparency"] = tuple(value >> 8 for value in transparent)
        return picture

    import numpy as np

    samples = np.asarray(picture).astype(np.int64)
    if samples.min() < 0 or samples.max() > 65535:
        raise UnreadableMediaError(
            f"{name} holds 32-bit samples, whose range is not known",
            hint="convert it to 8 or 16 bits per sample",
        )
    grey = Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8))
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(samples == transparent, 0, 255).astype(np.uint8)))
    return grey


def _from_profile(picture: Image.Image, profile: bytes, notices: list[str]) -> Image.Image:
    """Convert from the embedded ICC profile to sRGB; left alone where the profile is unusable."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return picture
        converted = ImageCms.profileToProfile(
            picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notices.append("the embedded colour profile cannot be used: colours are taken as sRGB")
        return picture
    return picture if converted is None else converted


def _upright(picture: Image.Image, image: Image.Image, notices: list[str]) -> Image.Image:
    try:
        orientation = picture.getexif().get(_ORIENTATION_TAG)
    except _DECODER_ERRORS:
        notices.append("the EXIF block cannot be read: orientation is left as stored")
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _say_if_animated(picture: Image.Image, notices: list[str]) -> None:
    # The extra pictures of an MPO are a second view or a depth map, nothing that anyone sees.
    if picture.format == "MPO":
        return
    try:
        num_frames = getattr(picture, "n_frames", 1)
    except _DECODER_ERRORS:
        # The first frame is whole; damage further on does not concern it.
        num_frames = 2
    if num_frames > 1:
        pages = picture.format == "TIFF"
        notices.append(
            "the picture has several pages: the first one is used"
            if pages
            else "the picture is animated: the first frame is used"
        )
