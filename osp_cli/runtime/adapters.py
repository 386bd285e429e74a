"""The LoRAs of a request: found and judged before torch is there, applied when weights are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osp_cli.dials import LoraChoice
from osp_cli.errors import CheckpointError, InvalidRequestError
from osp_cli.hub.hashes import file_hash
from osp_cli.loras import find_lora
from osp_cli.models.lora_file import DAMAGED_HINT, Change, LoraFile, read_lora
from osp_cli.models.lora_fit import fit_lora, installed_shapes, same_size, size_of_card
from osp_cli.models.safetensors_header import not_finite, read_header

if TYPE_CHECKING:
    from osp_cli.registry import ModelSpec
    from osp_cli.requests import GenerateRequest


def check_loras(request: GenerateRequest, *, numbers: bool = True) -> list[str]:
    """Refuse LoRAs that cannot be applied to the request's model, before weights are read.

    Args:
        request: with its LoRAs.
        numbers: look at their numbers too, for which numpy is imported; else at headers alone.

    Returns:
        A sentence about each LoRA of which something is left out.

    Raises:
        InvalidRequestError: a file is missing or damaged, no LoRA, or one of another model.
        WeightsMissingError: the model is not installed.
    """
    loras = _read(request.loras)
    if not loras:
        return []
    shapes = installed_shapes(request.spec.weights_dir())
    if not shapes:
        # Weights in another format are judged when they are loaded.
        for lora in loras if numbers else ():
            _check_numbers(lora, lora.changes)
        return []
    fits = [(lora, fit_lora(lora, shapes, request.model)) for lora in loras]
    for lora, fit in fits if numbers else ():
        _check_numbers(lora, fit.changes)
    notices = [fit.notice(lora.path, request.model) for lora, fit in fits]
    return [notice for notice in notices if notice]


def adapter_problem(path: str, spec: ModelSpec) -> str | None:
    """Why the LoRA of a style cannot be used with a model, as a sentence; None where it can.

    Where the model's size is not known, nothing speaks against it.

    Raises:
        InvalidRequestError: the file is damaged, or no LoRA.
    """
    lora = read_lora(Path(path))
    size = size_of_card(spec)
    if size is not None and not same_size(lora.size, size):
        return f"its adapter is for a transformer of {lora.size}, and {spec.name} has {size}"
    folder = spec.find_weights()
    shapes = {} if folder is None else installed_shapes(folder)
    if shapes and not any(shapes.get(change.target) == change.shape for change in lora.changes):
        return f"no layer of its adapter fits {spec.name}"
    return None


def _check_numbers(lora: LoraFile, changes: Iterable[Change]) -> None:
    """Refuse numbers that would blacken the whole video, before anything is loaded.

    Raises:
        InvalidRequestError: one is not finite.
    """
    try:
        header = read_header(lora.path)
        found = header.first_not_finite(key for change in changes for key in change.keys)
    except OSError as error:
        raise InvalidRequestError(f"{lora.path} cannot be read: {error.strerror}") from error
    if found is not None:
        raise InvalidRequestError(not_finite(lora.path, found), hint=DAMAGED_HINT)


def lora_hashes(loras: Sequence[LoraChoice]) -> list[str]:
    """SHA-256 of each LoRA's file."""
    return [file_hash(find_lora(choice.name)) for choice in loras]


def lora_bytes(loras: Sequence[LoraChoice]) -> int:
    """Bytes of all their files."""
    return sum(find_lora(choice.name).stat().st_size for choice in loras)


def apply_loras(
    transformer: Any, loras: Sequence[LoraChoice], model: str, *, may_fuse: bool = True
) -> Any:
    """Apply LoRAs to a transformer just built: before its weights are cast, and before any hook.

    Args:
        transformer: of diffusers, its weights as loaded.
        loras: as asked for; without any it stays as it is.
        model: what to call it.
        may_fuse: the weights may take them in, and do where they are plain numbers. Otherwise
            LoRAs stay beside the weights, which costs time at each step, but no copy of them.

    Returns:
        The transformer.

    Raises:
        InvalidRequestError: as of `check_loras`.
        CheckpointError: tensors that the header promised cannot be read.
    """
    if not loras:
        return transformer
    from safetensors import SafetensorError

    from osp_cli.models.lora import Strong, attach_loras, can_fuse, fuse_loras, parameter_shapes

    shapes = parameter_shapes(transformer)
    strong = [
        Strong(lora, fit_lora(lora, shapes, model), choice.weight)
        for lora, choice in zip(_read(loras), loras, strict=True)
    ]
    apply = fuse_loras if may_fuse and can_fuse(transformer) else attach_loras
    try:
        apply(transformer, strong)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"a LoRA cannot be read: {error}") from error
    return transformer


def _read(loras: Sequence[LoraChoice]) -> list[LoraFile]:
    return list(_read_each(loras))


def _read_each(loras: Sequence[LoraChoice]) -> Iterator[LoraFile]:
    seen: dict[Path, LoraChoice] = {}
    for choice in loras:
        path = find_lora(choice.name)
        real = path.resolve()
        if real in seen:
            total = LoraChoice(choice.name, choice.weight + seen[real].weight)
            raise InvalidRequestError(
                f"--lora names {path.name} twice", hint=f"give it one strength: --lora {total}"
            )
        seen[real] = choice
        yield read_lora(path)
