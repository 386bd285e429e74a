"""CLIP as a judge of styles: which of their names fits a picture best, without examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from osp_cli.errors import CheckpointError, InvalidRequestError
from osp_cli.hub.hashes import weights_hash
from osp_cli.runtime.devices import resolve_device

# What a picture is that was not restyled.
UNSTYLED = "none"
_PHOTO = "a photo"
_TEMPLATE = "a picture in {}"


class ClipJudge:
    """Ranks styles by the likeness of a picture to their words.

    Args:
        folder: a CLIP model in the layout of transformers.
        styles: words by name of style; `none` for an ordinary photo is added.
        device: as of `--device`.

    Raises:
        InvalidRequestError: the folder holds no CLIP.
        CheckpointError: its files cannot be loaded.
    """

    def __init__(self, folder: Path, styles: Mapping[str, str], device: str = "auto") -> None:
        check_judge(folder)
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        self._device = resolve_device(device)
        try:
            model = CLIPModel.from_pretrained(str(folder), local_files_only=True, dtype="float32")
            tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
            self._processor = CLIPImageProcessor.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
        self._model = model.to(self._device).eval()
        texts = [_TEMPLATE.format(words) for words in styles.values()]
        self._names = [*styles, UNSTYLED]
        self._tokens = tokenizer([*texts, _PHOTO], padding=True, return_tensors="pt").to(
            self._device
        )
        hashes = json.dumps(weights_hash(folder), sort_keys=True)
        self._sha256 = hashlib.sha256(hashes.encode()).hexdigest()

    @torch.no_grad()
    def rank(self, picture: Image.Image) -> list[str]:
        """Names of styles, the likeliest first."""
        pixels = self._processor(images=picture.convert("RGB"), return_tensors="pt")
        result = self._model(pixel_values=pixels["pixel_values"].to(self._device), **self._tokens)
        order = result.logits_per_image[0].argsort(descending=True).tolist()
        return [self._names[place] for place in order]

    def describe(self) -> dict[str, Any]:
        """Name and hash of the weights."""
        return {"name": "clip", "weights_sha256": self._sha256}


def check_judge(folder: Path) -> None:
    """Refuse a folder that holds no CLIP, without loading anything.

    Raises:
        InvalidRequestError: it does not.
    """
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != "clip":
        raise InvalidRequestError(
            f"{folder} holds no CLIP model", hint="a folder in the layout of transformers"
        )
