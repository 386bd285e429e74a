"""Reading pictures: every kind that is accepted, every reason to refuse one."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from osp_cli.errors import UnreadableMediaError
from osp_cli.media import image as media_image
from osp_cli.media.image import (
    choose_bucket,
    cover_resize_crop,
    cover_size,
    decode_image,
    from_tensor_values,
    load_image,
    to_tensor_values,
)


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    """A picture whose four corners differ, so that any turn or channel swap shows."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    red, green = columns / (width - 1), rows / (height - 1)
    pixels = np.stack([red, green, 1 - red * green], axis=-1)
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def saved(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)
    return path


def levels_apart(one: Image.Image, other: Image.Image) -> int:
    difference = np.asarray(one).astype(int) - np.asarray(other).astype(int)
    return int(np.abs(difference).max())


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(kind + payload)
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", checksum)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG written by hand, for the kinds that Pillow reads but does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.bmp", {}, 0),
        ("a.tiff", {}, 0),
        ("a.tga", {}, 0),
        ("a.ppm", {}, 0),
        ("a.jpg", {"quality": 95}, 12),
        ("a.webp", {"quality": 95}, 16),
    ],
)
def test_ordinary_pictures_keep_their_pixels(tmp_path, name, options, tolerance):
    path = saved(gradient(), tmp_path / name, **options)
    loaded = load_image(path)
    assert loaded.image.mode == "RGB"
    assert loaded.notices == ()
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert levels_apart(loaded.image, gradient()) <= tolerance


def test_a_name_says_nothing_about_the_contents(tmp_path):
    path = saved(gradient(), tmp_path / "really_a.jpg", format="PNG")
    assert levels_apart(load_image(path).image, gradient()) == 0


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    samples = np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16)
    path = saved(Image.fromarray(samples), tmp_path / "deep.png")
    pixels = np.asarray(load_image(path).image)
    assert pixels.min() == 0
    assert pixels.max() == 255
    np.testing.assert_array_equal(pixels[..., 0], np.rint(samples / 257.0).astype(np.uint8))


def test_sixteen_bit_colour_keeps_its_range():
    samples = np.array([[[0, 32768, 65535], [65535, 0, 257]]], dtype=">u2")
    data = png(2, 1, 16, 2, b"\0" + samples.tobytes())
    pixels = np.asarray(decode_image(data, name="deep.png").image)
    assert np.abs(pixels[0].astype(int) - [[0, 128, 255], [255, 0, 1]]).max() <= 1


def test_sixteen_bit_transparent_colour_is_laid_on_white():
    samples = np.array([[[1000, 2000, 3000], [65535, 0, 0]]], dtype=">u2")
    transparent = png_chunk(b"tRNS", struct.pack(">HHH", 1000, 2000, 3000))
    data = png(2, 1, 16, 2, b"\0" + samples.tobytes(), extra=transparent)
    loaded = decode_image(data, name="deep.png")
    assert np.asarray(loaded.image)[0].tolist() == [[255, 255, 255], [255, 0, 0]]
    assert "transparent" in loaded.notices[0]


def test_sixteen_bit_transparent_grey_is_laid_on_white():
    samples = np.array([[1000, 40000]], dtype=">u2")
    extra = png_chunk(b"tRNS", struct.pack(">H", 1000))
    loaded = decode_image(png(2, 1, 16, 0, b"\0" + samples.tobytes(), extra=extra), name="deep.png")
    assert np.asarray(loaded.image)[0, :, 0].tolist() == [255, 156]
    assert "transparent" in loaded.notices[0]


def test_sixteen_bit_alpha_is_composited():
    samples = np.array([[[65535, 0, 0, 0], [0, 0, 65535, 65535]]], dtype=">u2")
    loaded = decode_image(png(2, 1, 16, 6, b"\0" + samples.tobytes()), name="deep.png")
    assert np.asarray(loaded.image)[0].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_palette_picture(tmp_path):
    palette = gradient().quantize(16)
    path = saved(palette, tmp_path / "palette.png")
    assert levels_apart(load_image(path).image, palette.convert("RGB")) == 0


def test_transparent_palette_entry_is_laid_on_white(tmp_path):
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putpixel((1, 1), 1)
    loaded = load_image(saved(palette, tmp_path / "holes.png", transparency=0))
    assert loaded.image.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.image.getpixel((1, 1)) == (200, 0, 0)
    assert any("transparent" in notice for notice in loaded.notices)


def test_alpha_is_composited_on_white_and_said(tmp_path):
    picture = gradient().convert("RGBA")
    picture.putalpha(128)
    loaded = load_image(saved(picture, tmp_path / "half.png"))
    expected = 255 - (255 - np.asarray(gradient()).astype(float)) * 128 / 255
    assert np.abs(np.asarray(loaded.image) - expected).max() <= 1
    assert loaded.notices == ("the picture is partly transparent: laid on white",)


def test_opaque_alpha_is_not_worth_a_notice(tmp_path):
    loaded = load_image(saved(gradient().convert("RGBA"), tmp_path / "opaque.png"))
    assert loaded.notices == ()
    assert levels_apart(loaded.image, gradient()) == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_pictures(tmp_path, mode):
    picture = gradient().convert(mode)
    loaded = load_image(saved(picture, tmp_path / "grey.png"))
    assert levels_apart(loaded.image, picture.convert("RGB")) == 0


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    loaded = load_image(saved(gradient().convert("CMYK"), tmp_path / "print.jpg", quality=95))
    assert levels_apart(loaded.image, gradient()) <= 16


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    upright = gradient()
    # What the camera stores is the inverse of what the viewer must do.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(saved(stored, tmp_path / "turned.png", exif=exif))
    assert loaded.image.size == upright.size
    assert levels_apart(loaded.image, upright) == 0


def test_damaged_exif_is_no_reason_to_refuse(tmp_path):
    path = saved(gradient(), tmp_path / "odd.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffgarbage")
    assert load_image(path).image.size == (48, 32)


def test_embedded_profile_is_applied(tmp_path):
    # sRGB with two of its primaries swapped: what it calls red, sRGB calls green.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = (
        profile.replace(b"rXYZ", b"tmp-", 1)
        .replace(b"gXYZ", b"rXYZ", 1)
        .replace(b"tmp-", b"gXYZ", 1)
        .replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    )
    path = saved(Image.new("RGB", (8, 8), (220, 30, 60)), tmp_path / "p.png", icc_profile=swapped)
    loaded = load_image(path)
    assert loaded.notices == ()
    assert levels_apart(loaded.image, Image.new("RGB", (8, 8), (30, 220, 60))) <= 2


def test_unusable_profile_is_said_and_ignored(tmp_path):
    # An XYZ profile does not describe RGB samples.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    loaded = load_image(saved(gradient(), tmp_path / "p.png", icc_profile=profile))
    assert loaded.notices == (
        "the embedded colour profile cannot be used: colours are taken as sRGB",
    )
    assert levels_apart(loaded.image, gradient()) == 0


def test_srgb_profile_changes_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    loaded = load_image(saved(gradient(), tmp_path / "s.png", icc_profile=profile))
    assert loaded.notices == ()
    assert levels_apart(loaded.image, gradient()) <= 1


@pytest.mark.parametrize(("name", "options"), [("a.gif", {}), ("a.webp", {"lossless": True})])
def test_animation_gives_its_first_frame_and_says_so(tmp_path, name, options):
    first, second = Image.new("RGB", (16, 8), (250, 0, 0)), Image.new("RGB", (16, 8), (0, 0, 250))
    path = saved(
        first, tmp_path / name, save_all=True, append_images=[second], duration=100, **options
    )
    loaded = load_image(path)
    assert loaded.image.getpixel((3, 3)) == (250, 0, 0)
    assert loaded.notices == ("the picture is animated: the first frame is used",)


def test_still_gif_is_not_called_animated(tmp_path):
    assert load_image(saved(gradient(), tmp_path / "still.gif")).notices == ()


def test_one_pixel_is_a_picture(tmp_path):
    loaded = load_image(saved(Image.new("RGB", (1, 1), (9, 8, 7)), tmp_path / "dot.png"))
    fitted = cover_resize_crop(loaded.image, 448, 256)
    assert fitted.size == (448, 256)
    assert fitted.getextrema() == ((9, 9), (8, 8), (7, 7))


def refusal(path: Path) -> UnreadableMediaError:
    with pytest.raises(UnreadableMediaError) as caught:
        load_image(path)
    assert caught.value.exit_code == 2
    assert path.name in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


def test_missing_file_names_the_nearest(tmp_path):
    saved(gradient(), tmp_path / "photo.jpg")
    assert "does not exist" in refusal(tmp_path / "foto.jpg").message
    assert "photo.jpg" in (refusal(tmp_path / "foto.jpg").hint or "")


def test_missing_folder(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere" / "photo.jpg").message


def test_folder(tmp_path):
    assert "folder" in refusal(tmp_path).message


def test_empty_file(tmp_path):
    (tmp_path / "empty.png").touch()
    assert "empty" in refusal(tmp_path / "empty.png").message


@pytest.mark.parametrize("text", ["not a picture\n", "ä" * 3000, "x"])
def test_text_named_png(tmp_path, text):
    (tmp_path / "notes.png").write_text(text, encoding="utf-8")
    assert "it holds text" in refusal(tmp_path / "notes.png").message


def test_random_bytes(tmp_path):
    (tmp_path / "noise.png").write_bytes(random.Random(0).randbytes(5000))
    message = refusal(tmp_path / "noise.png").message
    assert "not a picture" in message
    assert "text" not in message


@pytest.mark.parametrize(("brand", "word"), [(b"isom", "video"), (b"heic", "HEIC")])
def test_other_media_is_named(tmp_path, brand, word):
    (tmp_path / "clip.jpg").write_bytes(b"\0\0\0\x20ftyp" + brand + b"\0" * 40)
    assert word in refusal(tmp_path / "clip.jpg").message


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.webp"])
def test_truncated_file(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refusal(path)


def test_huge_picture_is_refused_from_its_header(tmp_path, monkeypatch):
    # No pixel data at all: had it been decoded, the complaint would be about damage.
    path = tmp_path / "huge.png"
    path.write_bytes(png(20_000, 20_000, 8, 2, b""))
    error = refusal(path)
    assert "20000x20000" in error.message
    assert "100 megapixels" in error.message


def test_pillow_limit_is_left_as_it_was(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    load_image(saved(gradient(), tmp_path / "a.png"))
    (tmp_path / "b.png").write_bytes(png(20_000, 20_000, 8, 2, b""))
    refusal(tmp_path / "b.png")
    assert before == Image.MAX_IMAGE_PIXELS


def test_permission_denied(tmp_path, monkeypatch):
    path = saved(gradient(), tmp_path / "private.png")

    def deny(*_: object) -> io.BufferedReader:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    assert "permission denied" in refusal(path).message


def test_file_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(media_image, "MAX_FILE_BYTES", 100)
    assert "larger than" in refusal(saved(gradient(), tmp_path / "big.bmp")).message


def test_floating_point_samples_are_refused(tmp_path):
    path = saved(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path / "hdr.tiff")
    assert "floating-point" in refusal(path).message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_damaged_bytes_are_read_or_refused_but_never_a_traceback(kind):
    buffer = io.BytesIO()
    gradient().save(buffer, kind)
    pristine = buffer.getvalue()
    generator = random.Random(kind)
    refused = 0
    for _ in range(60):
        data = bytearray(pristine)
        for _ in range(generator.randint(1, 12)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        try:
            assert decode_image(bytes(data), name="x").image.mode == "RGB"
        except UnreadableMediaError:
            refused += 1
    assert refused > 0


def test_reading_needs_neither_torch_nor_numpy(tmp_path):
    path = saved(gradient(), tmp_path / "a.png")
    script = (
        "import sys; from osp_cli.media.image import load_image; "
        f"load_image({str(path)!r}); "
        "print([name for name in ('torch', 'numpy', 'diffusers') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


BUCKETS = [(448, 256), (416, 288), (384, 320), (352, 352), (320, 384), (288, 416), (256, 448)]


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((1344, 768), (448, 256)),
        ((512, 512), (352, 352)),
        ((768, 1344), (256, 448)),
        ((600, 400), (416, 288)),
        ((5000, 10), (448, 256)),
        ((1, 1), (352, 352)),
    ],
)
def test_nearest_bucket(size, bucket):
    assert choose_bucket(*size, BUCKETS) == bucket


def test_tie_goes_to_the_larger_area():
    assert choose_bucket(100, 100, [(64, 64), (128, 128), (96, 96)]) == (128, 128)
    assert choose_bucket(2, 1, [(448, 256), (896, 512)]) == (896, 512)


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_bucket_of_a_turned_picture_is_the_turned_bucket(width, height):
    across, down = choose_bucket(width, height, BUCKETS)
    assert choose_bucket(height, width, BUCKETS) == (down, across)


def test_bucket_misuse():
    with pytest.raises(ValueError, match="no sizes"):
        choose_bucket(1, 1, [])
    with pytest.raises(ValueError, match="at least one pixel"):
        choose_bucket(0, 1, BUCKETS)


@given(*[st.integers(1, 3000)] * 4)
def test_cover_size_covers_with_one_side_exact(width, height, to_width, to_height):
    across, down = cover_size(width, height, to_width, to_height)
    assert across >= to_width
    assert down >= to_height
    assert across == to_width or down == to_height
    # Rounded up, by less than one pixel.
    assert abs(across * height - down * width) < max(width, height)


def test_extreme_aspect_is_cropped_before_it_is_enlarged(monkeypatch):
    picture = gradient(20, 900)
    whole = cover_resize_crop(picture, 64, 48)
    monkeypatch.setattr(media_image, "MAX_PIXELS", 1000)
    assert levels_apart(cover_resize_crop(picture, 64, 48), whole) <= 1
    monkeypatch.undo()
    # 448 x 26 880 000 pixels, were it done the plain way.
    ribbon = Image.new("RGB", (1, 60_000), (1, 2, 3))
    assert cover_resize_crop(ribbon, 448, 256).size == (448, 256)


def test_same_size_is_untouched():
    assert levels_apart(cover_resize_crop(gradient(), 48, 32), gradient()) == 0


def test_tensor_values_round_trip():
    values = to_tensor_values(gradient())
    assert values.shape == (3, 32, 48)
    assert values.dtype == np.float32
    assert values.min() == -1.0
    assert values.max() == 1.0
    assert levels_apart(from_tensor_values(values), gradient()) == 0
