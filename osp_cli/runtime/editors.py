"""Stylizers with weights: the picture editors of diffusers, loaded from a folder.

Step1X-Edit, which the paper used, has no class in diffusers and wants code of its own to be run, so
it is none of them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from osp_cli.errors import CheckpointError, InvalidRequestError, WeightsMissingError
from osp_cli.hub.hashes import weights_hash
from osp_cli.registry import weights_home
from osp_cli.runtime.devices import available_memory, resolve_device

_INDEX = "model_index.json"
# Sides that all of them take, and the area that most were trained at.
_MULTIPLE = 16
_PIXELS = 1024 * 1024
# Of the memory that is free, so much may be weights; the rest is for what they compute.
_WEIGHTS_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Editor:
    """How a class of diffusers is called.

    Attributes:
        class_name: of the pipeline.
        steps: default of the sampler.
        dials: other arguments.
        licence: of the published weights, as their page told when this was written; a folder may
            hold others.
        image: name of the argument that takes the picture.
    """

    class_name: str
    steps: int
    dials: Mapping[str, Any]
    licence: str
    image: str = field(default="image")


# Steps and guidance are the classes' own defaults.
EDITORS = {
    "qwen-image-edit": Editor(
        "QwenImageEditPlusPipeline",
        50,
        # Without a negative prompt its true guidance is off.
        {"true_cfg_scale": 4.0, "negative_prompt": " "},
        "Apache-2.0",
    ),
    "flux-kontext": Editor(
        "FluxKontextPipeline", 28, {"guidance_scale": 3.5}, "FLUX.1 dev non-commercial"
    ),
    "flux2": Editor("Flux2Pipeline", 50, {"guidance_scale": 4.0}, "FLUX.2 dev non-commercial"),
    "flux2-klein": Editor(
        "Flux2KleinPipeline", 50, {"guidance_scale": 4.0}, "see the weights' page"
    ),
    "longcat-image-edit": Editor(
        "LongCatImageEditPipeline",
        50,
        {"guidance_scale": 4.5, "negative_prompt": ""},
        "Apache-2.0",
    ),
}


class EditorStylizer:
    """A picture editor that follows an instruction.

    Args:
        pipeline: of one of the classes of `EDITORS`.
        editor: how it is called.
        about: what it is, for the manifest.
        pixels: area at which it edits; the result is brought to the picture's size afterwards.
    """

    is_seeded = True

    def __init__(
        self, pipeline: Any, editor: Editor, about: Mapping[str, Any], *, pixels: int = _PIXELS
    ) -> None:
        self._pipeline, self._editor, self._pixels = pipeline, editor, pixels
        self._about = dict(about)
        self._takes_size = "height" in inspect.signature(type(pipeline).__call__).parameters

    def stylise(self, picture: Image.Image, style: str, prompt: str, seed: int) -> Image.Image:
        """The picture as the instruction `prompt` wants it, at the area that the model knows."""
        # On the processor, so that equal seeds are equal on every device.
        generator = torch.Generator("cpu").manual_seed(seed)
        scale = math.sqrt(self._pixels / (picture.width * picture.height))
        width, height = (
            max(1, round(side * scale / _MULTIPLE)) * _MULTIPLE for side in picture.size
        )
        # Some make a square where they are not told.
        size = {"width": width, "height": height} if self._takes_size else {}
        arguments = {self._editor.image: picture.resize((width, height), Image.Resampling.LANCZOS)}
        result = self._pipeline(
            **arguments,
            prompt=prompt,
            num_inference_steps=self._editor.steps,
            generator=generator,
            **self._editor.dials,
            **size,
        )
        image: Image.Image = result.images[0]
        return image

    def describe(self) -> dict[str, Any]:
        """Class, hash of the weights, licence and dials."""
        return {
            **self._about,
            "num_inference_steps": self._editor.steps,
            **self._editor.dials,
            "pixels": self._pixels,
        }


def editor_folder(name: str) -> Path:
    """Where the weights of a stylizer are: `name` is one of `EDITORS`, or a folder.

    Raises:
        InvalidRequestError: it is neither.
        WeightsMissingError: the folder of a known name is not there.
    """
    if name in EDITORS:
        folder = weights_home() / name
        if not (folder / _INDEX).is_file():
            raise WeightsMissingError(
                f"the weights of {name} are not installed",
                hint=f"put a {EDITORS[name].class_name} in {folder}, or use --stylizer FOLDER",
            )
        return folder
    folder = Path(name).expanduser()
    if not (folder / _INDEX).is_file():
        raise InvalidRequestError(
            f"unknown stylizer {name!r}",
            hint=f"procedural, {', '.join(EDITORS)}, or a folder in the layout of diffusers",
        )
    return folder


def editor_of(folder: Path) -> Editor:
    """How the pipeline in a folder is called.

    Raises:
        CheckpointError: its index cannot be read.
        InvalidRequestError: it holds no picture editor that is known.
    """
    try:
        class_name = json.loads((folder / _INDEX).read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder / _INDEX} cannot be read ({error})") from error
    for editor in EDITORS.values():
        if editor.class_name == class_name:
            return editor
    classes = ", ".join(editor.class_name for editor in EDITORS.values())
    raise InvalidRequestError(
        f"{folder} holds a {class_name}, which is no picture editor that is known here",
        hint=f"these are: {classes}",
    )


def load_editor(name: str, device: str = "auto", *, pixels: int = _PIXELS) -> EditorStylizer:
    """Loads a picture editor.

    Args:
        name: one of `EDITORS`, or a folder.
        device: as of `--device`.
        pixels: as of `EditorStylizer`.

    Raises:
        OspError: as `editor_folder` and `editor_of`.
        CheckpointError: the files cannot be loaded.
    """
    import diffusers
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    folder = editor_folder(name)
    editor = editor_of(folder)
    where = resolve_device(device)
    # A processor without matrix units is quicker in single precision.
    dtype = torch.float32 if where.type == "cpu" else torch.bfloat16
    # stderr is ours.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        pipeline = getattr(diffusers, editor.class_name).from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    if where.type == "cuda" and _bytes(pipeline) > _WEIGHTS_SHARE * available_memory(where):
        pipeline.enable_model_cpu_offload(device=where)
    else:
        pipeline.to(where)
    hashes = json.dumps(weights_hash(folder), sort_keys=True)
    about = {
        "name": editor.class_name,
        "weights_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
        "licence": editor.licence,
        "dtype": str(dtype).removeprefix("torch."),
    }
    return EditorStylizer(pipeline, editor, about, pixels=pixels)


def _bytes(pipeline: Any) -> int:
    modules = (part for part in pipeline.components.values() if isinstance(part, torch.nn.Module))
    return sum(
        tensor.numel() * tensor.element_size()
        for module in modules
        for tensor in module.parameters()
    )
