"""Whether a LoRA fits a model: by the shapes of both, without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from osp_cli.errors import InvalidRequestError
from osp_cli.models.lora_file import (
    Change,
    LoraFile,
    Shape,
    Size,
    size_of,
)
from osp_cli.models.lora_names import is_of_image
from osp_cli.models.original_names import transformer_name
from osp_cli.models.safetensors_header import read_header
from osp_cli.registry import ModelSpec, model_specs

# So many keys are named where some do not fit.
_MOST_NAMED = 3

OF_IMAGE = "for the picture's features of inpainting models"
NO_LAYER = "the model has no such layer"
OTHER_WIDTH = "of another width than the other layers"
NO_TRANSFORMER = "no layer of a Wan-style transformer"


@dataclass(frozen=True, slots=True)
class Fit:
    """A LoRA beside one model.

    Attributes:
        changes: that can be applied.
        left_out: keys that cannot, with the reason.
    """

    changes: tuple[Change, ...]
    left_out: Mapping[str, str]

    def notice(self, path: Path, model: str) -> str | None:
        """A sentence about what is left out, if anything is."""
        if not self.left_out:
            return None
        reasons = ", ".join(
            f"{count} {reason}" for reason, count in Counter(self.left_out.values()).most_common()
        )
        named = ", ".join(list(self.left_out)[:_MOST_NAMED])
        more = ", ..." if len(self.left_out) > _MOST_NAMED else ""
        return (
            f"{path.name}: {len(self.left_out)} keys do not fit {model} and are left out "
            f"({reasons}): {named}{more}"
        )


def fit_lora(lora: LoraFile, shapes: Mapping[str, Shape], model: str) -> Fit:
    """What of a LoRA can be applied to a model.

    Args:
        lora: as read.
        shapes: of the model's parameters, by their names in our transformer.
        model: what to call it.

    Raises:
        InvalidRequestError: it was made for a model of another size, or nothing of it fits.
    """
    here = size_of(shapes)
    if not same_size(lora.size, here):
        raise _wrong_size(lora, here, model)
    changes = []
    left_out = dict.fromkeys(lora.strangers, NO_TRANSFORMER)
    for change in lora.changes:
        expected = shapes.get(change.target)
        if expected == change.shape:
            changes.append(change)
        else:
            reason = _misfit(change, expected)
            left_out |= dict.fromkeys(change.keys, reason)
    if not changes:
        raise InvalidRequestError(
            f"nothing in {lora.path} fits {model}: {next(iter(left_out.values()))}",
            hint=f"osp models inspect {lora.path} tells what it is for",
        )
    return Fit(tuple(changes), left_out)


def same_size(lora: Size, model: Size) -> bool:
    """Whether a LoRA, which may change only some layers, can be one of a model of this size."""
    return (
        lora.width in (None, model.width)
        and lora.ffn in (None, model.ffn)
        and lora.layers <= model.layers
    )


def cards_of_size(lora: Size) -> list[ModelSpec]:
    """The model cards whose transformer a LoRA of this size fits; they need not be installed."""
    return [
        spec
        for spec in model_specs().values()
        if (size := size_of_card(spec)) is not None and same_size(lora, size)
    ]


def size_of_card(spec: ModelSpec) -> Size | None:
    """What a card, or the weights where they are installed, say of the transformer's size."""
    if (card := spec.architecture) is not None:
        return Size(card.width, card.ffn, card.layers)
    folder = spec.find_weights()
    shapes = {} if folder is None else installed_shapes(folder)
    return size_of(shapes) if shapes else None


def installed_shapes(folder: Path) -> dict[str, Shape]:
    """Shapes of the transformer's parameters in a folder of weights, by our names.

    Empty where they are in another format than safetensors.

    Raises:
        InvalidRequestError: a file is damaged.
    """
    return {
        transformer_name(name): entry.shape
        for path in sorted((folder / "transformer").glob("*.safetensors"))
        for name, entry in read_header(path).entries.items()
    }


def _misfit(change: Change, expected: Shape | None) -> str:
    if expected is not None:
        return f"of shape {_text(change.shape)} where the model has {_text(expected)}"
    return OF_IMAGE if is_of_image(change.name) else NO_LAYER


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _wrong_size(lora: LoraFile, here: Size, model: str) -> InvalidRequestError:
    fitting = cards_of_size(lora.size)
    # A hint is something that can be done, at once if possible.
    usable = [spec for spec in fitting if spec.run_problem() is None]
    usable.sort(key=lambda spec: spec.find_weights() is None)
    made_for = f" as {(usable or fitting)[0].name} has" if fitting else ""
    return InvalidRequestError(
        f"{lora.path} is for a transformer of {lora.size}{made_for}, {model} has {here}",
        hint=f"--model {usable[0].name}" if usable else f"use a LoRA that was trained on {model}",
    )
