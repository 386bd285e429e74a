"""What is in a file of weights: the LoRA doctor, and a few words on other checkpoints."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from osp_cli.errors import InvalidRequestError, OspError
from osp_cli.loras import find_lora
from osp_cli.models.lora_file import Change, LoraFile, Size, is_lora, lora_of, size_of
from osp_cli.models.lora_fit import (
    NO_TRANSFORMER,
    OTHER_WIDTH,
    cards_of_size,
    fit_lora,
    installed_shapes,
    same_size,
    size_of_card,
)
from osp_cli.models.original_names import transformer_name
from osp_cli.models.safetensors_header import Header, read_header
from osp_cli.registry import ModelSpec
from osp_cli.runtime.companions import companion_of

# Metadata of trainers that says what a LoRA is for, in the order of its usefulness.
_TOLD = {
    "title": ("modelspec.title", "ss_output_name", "name"),
    "trigger": (
        *("osp.trigger", "osp_trigger", "modelspec.trigger_phrase"),
        *("trigger_words", "trained_words", "trigger"),
    ),
    "style": ("osp.style", "osp_style"),
    "base model": (
        *("osp.base_id", "modelspec.architecture", "ss_base_model_version", "ss_sd_model_name"),
    ),
    "steps": ("osp.steps", "ss_steps"),
    "companion": ("osp.companion",),
    "author": ("modelspec.author",),
    "licence": ("modelspec.license",),
}
_TAGS = "ss_tag_frequency"
_OTHER_FORMATS = (".pt", ".pth", ".bin", ".ckpt", ".gguf")
_MOST_TAGS = 8
_MOST_LETTERS = 200

# Other checkpoints, by keys that only they have.
_CHECKPOINTS = {
    "umT5 text encoder": r"blocks\.0\.attn\.q\.weight|encoder\.block\.0\.layer\.0\..*",
    "Qwen2.5-VL": r"(model\.)?visual\.blocks\.0\..*|(model\.)?language_model\.layers\.0\..*",
    "language model": r"model\.layers\.0\.self_attn\.q_proj\.weight",
    "Wan autoencoder": r"(encoder|decoder)\.(conv1|conv_in|middle\.0\.residual\.0)\.\w+",
    "CLIP image encoder": r"(visual\.transformer|vision_model\.encoder)\..*",
    "adapter": r"fc1\.weight",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """How much a LoRA changes its layers, `||scale * up @ down||`, at strength 1.

    Attributes:
        model: beside whose weights' norms it is given; None for the plain norm.
        median, largest: over all layers.
        largest_layer: where that is.
        layers: each, by its parameter's name.
    """

    model: str | None
    median: float
    largest: float
    largest_layer: str
    layers: dict[str, float] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """One file.

    Attributes:
        path: as it was found.
        kind: `lora`, `transformer` or what else it is.
        num_bytes: of the file.
        num_keys: tensors in it.
        dtypes: how many numbers there are of each type, by the format's names.
        layout: of a LoRA.
        ranks, alphas: all that occur; alpha None where nothing tells it.
        size: of the transformer that it is, or is made for.
        layers: how many layers a LoRA changes, by what they are.
        fits: model cards of that size.
        left_out: keys that no such model, or not the model asked about, has a place for, and why.
        strength: of a LoRA that can be read.
        told: by its metadata.
        notes: sentences.
        problem: why it cannot be used, as a sentence.
    """

    path: Path
    kind: str
    num_bytes: int
    num_keys: int
    dtypes: dict[str, int]
    layout: str | None = None
    ranks: tuple[int, ...] = ()
    alphas: tuple[float | None, ...] = ()
    size: Size | None = None
    layers: dict[str, int] = field(default_factory=dict)
    fits: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    strength: Strength | None = None
    told: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        size = None if self.size is None else self.size._asdict()
        return {**asdict(self), "path": str(self.path), "size": size}


def inspect(name: str, spec: ModelSpec | None = None) -> list[Inspected]:
    """Tell what is in a file or a folder: LoRAs, and parts of models in any layout.

    Args:
        name: a path, or an installed LoRA's name.
        spec: a model to hold a LoRA against.

    Raises:
        OspError: there is no such thing, or it cannot be read.
    """
    path = Path(name).expanduser()
    is_other = path.is_file() and path.suffix.lower() in _OTHER_FORMATS
    if is_other or (path.is_dir() and not _holds_lora(path)):
        # torch starts here.
        from osp_cli.runtime.part_inspection import inspect_parts

        return inspect_parts(path)
    return [inspect_file(name, spec)]


def _holds_lora(folder: Path) -> bool:
    try:
        return is_lora(read_header(find_lora(str(folder))))
    except InvalidRequestError:
        return False


def inspect_file(name: str, spec: ModelSpec | None = None) -> Inspected:
    """Tell what is in a file, given as a path or an installed LoRA's name.

    Args:
        name: of the file.
        spec: a model to hold it against.

    Raises:
        InvalidRequestError: there is no such file, or it is damaged.
    """
    path = find_lora(name)
    header = read_header(path)
    known: dict[str, Any] = {
        "path": path,
        "num_bytes": path.stat().st_size,
        "num_keys": len(header.entries),
        "dtypes": _dtypes(header),
        "told": _told(header.metadata),
    }
    if not is_lora(header):
        return Inspected(**known, **_checkpoint(header))
    try:
        lora = lora_of(header)
        companion = companion_of(path, header.metadata)
    except InvalidRequestError as error:
        return Inspected(**known, kind="lora", problem=error.message)
    told = _lora(lora, spec)
    if companion is not None:
        roots = ", ".join(companion.roots)
        told["notes"] += (f"{companion.path.name} is loaded with it, and changes {roots}",)
    return Inspected(**known, kind="lora", **told)


def _lora(lora: LoraFile, spec: ModelSpec | None) -> dict[str, Any]:
    misfits = lora.misfits
    changes = tuple(change for change in lora.changes if change not in misfits)
    left_out = dict.fromkeys(lora.strangers, NO_TRANSFORMER)
    left_out |= {key: OTHER_WIDTH for change in misfits for key in change.keys}
    problem, strength = None, None
    folder = None if spec is None else spec.find_weights()
    try:
        if spec is not None:
            changes, left_out = _held_against(lora, spec, folder, changes, left_out)
        strength = _strength(lora, changes, spec, folder)
    except OspError as error:
        problem = error.message
    notes = lora.notes
    if strength is not None and spec is not None and len(strength.layers) < len(changes):
        zeros = len(changes) - len(strength.layers)
        notes += (f"{zeros} of the layers are zeros in {spec.name}, and have no share",)
    return {
        "layout": lora.layout,
        "ranks": lora.ranks,
        "alphas": lora.alphas,
        "size": lora.size,
        "layers": dict(Counter(_part(change.name) for change in lora.changes)),
        "fits": tuple(card.name for card in cards_of_size(lora.size)),
        "left_out": left_out,
        "strength": strength,
        "notes": notes,
        "problem": problem,
    }


def _held_against(
    lora: LoraFile,
    spec: ModelSpec,
    folder: Path | None,
    changes: tuple[Change, ...],
    left_out: dict[str, str],
) -> tuple[tuple[Change, ...], dict[str, str]]:
    """What fits a model: by its weights, or by its card's word where they are not installed.

    Raises:
        InvalidRequestError: it is of another size.
    """
    shapes = {} if folder is None else installed_shapes(folder)
    if shapes:
        fit = fit_lora(lora, shapes, spec.name)
        return fit.changes, dict(fit.left_out)
    size = size_of_card(spec)
    if size is not None and not same_size(lora.size, size):
        raise InvalidRequestError(f"it is for a transformer of {lora.size}, {spec.name} has {size}")
    return changes, left_out


def _strength(
    lora: LoraFile, changes: tuple[Change, ...], spec: ModelSpec | None, folder: Path | None
) -> Strength | None:
    # torch starts here.
    from osp_cli.models.lora import strengths, weight_norms

    norms = None
    if folder is not None:
        norms = weight_norms(folder, {change.target for change in changes}) or None
    layers = strengths(lora, changes, norms)
    if not layers:
        return None
    largest = max(layers, key=lambda name: layers[name])
    return Strength(
        model=spec.name if spec is not None and norms is not None else None,
        median=statistics.median(layers.values()),
        largest=layers[largest],
        largest_layer=largest,
        layers=layers,
    )


def _part(name: str) -> str:
    """What a layer is, whichever block it is in."""
    return re.sub(r"^blocks\.\d+\.", "", name)


def _dtypes(header: Header) -> dict[str, int]:
    found: Counter[str] = Counter()
    for entry in header.entries.values():
        found[entry.dtype] += math.prod(entry.shape)
    return dict(found.most_common())


def _told(metadata: Mapping[str, str]) -> dict[str, str]:
    told = {}
    for what, names in _TOLD.items():
        if text := next((metadata[name] for name in names if metadata.get(name)), ""):
            told[what] = text[:_MOST_LETTERS]
    if tags := _tags(metadata.get(_TAGS, "")):
        told["tags"] = ", ".join(tags)
    return told


def _tags(text: str) -> list[str]:
    """The most frequent captions' words, which kohya's trainers count for each data set."""
    try:
        counts: Counter[str] = Counter()
        for folder in json.loads(text or "{}").values():
            counts.update({str(tag).strip(): int(count) for tag, count in folder.items()})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return []
    return [tag[:_MOST_LETTERS] for tag, _ in counts.most_common(_MOST_TAGS) if tag]


def _checkpoint(header: Header) -> dict[str, Any]:
    """A checkpoint that is no LoRA, by what its keys look like."""
    if not header.entries:
        return {"kind": "unknown", "problem": "it holds no tensors"}
    if header.metadata.get("osp.kind") == "companion":
        return {"kind": "companion of a LoRA", "notes": ("it is loaded with its LoRA",)}
    names = [re.sub(r"^(module\.|model\.diffusion_model\.|diffusion_model\.)", "", key)
             for key in header.entries]  # fmt: skip
    shapes = {
        transformer_name(name): entry.shape
        for name, entry in zip(names, header.entries.values(), strict=True)
    }
    size = size_of(shapes)
    if size.width is not None and "patch_embedding.weight" in shapes:
        own = any(name.startswith("fourier_embedding.") for name in shapes)
        channels = shapes["patch_embedding.weight"][1]
        return {
            "kind": f"{'FlashI2V' if own else 'Wan'} transformer of {channels} channels",
            "size": size,
            "fits": tuple(card.name for card in cards_of_size(size) if _is_whole(size, card)),
        }
    for kind, pattern in _CHECKPOINTS.items():
        if any(re.fullmatch(pattern, name) for name in names):
            return {"kind": kind}
    return {
        "kind": "unknown",
        "notes": (f"its keys are {', '.join(names[:3])}{', ...' * (len(names) > 3)}",),
    }


def _is_whole(size: Size, card: ModelSpec) -> bool:
    return size_of_card(card) == size
