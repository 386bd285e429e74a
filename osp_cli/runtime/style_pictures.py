"""A photo in many styles, made by the built-in model of one load."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from osp_cli.media.image import choose_bucket, load_image
from osp_cli.registry import find_model
from osp_cli.runtime.studio import Studio

MODEL = "osp-mini"
_QUALITY = 88


def style_pictures(photo: Path, styles: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Each style with a JPEG of the photo in it, at the model's own size.

    Args:
        photo: of any size.
        styles: as `--style` takes them.

    Raises:
        OspError: the photo cannot be read, or a style makes no sense.
    """
    loaded = load_image(photo).image
    size = choose_bucket(loaded.width, loaded.height, find_model(MODEL).sizes)
    with tempfile.TemporaryDirectory(prefix="osp-styles-") as folder:
        studio = Studio(MODEL, folder=Path(folder))
        for style in styles:
            frame = studio.clip(photo, size, 1, style=style)[0]
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "JPEG", quality=_QUALITY, optimize=True)
            yield style, file.getvalue()
