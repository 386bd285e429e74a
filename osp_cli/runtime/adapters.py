"""The LoRAs of a request: found and judged before torch is there, applied when weights are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osp_cli.dials import LoraChoice
from osp_cli.errors import CheckpointError, InvalidRequestError
from osp_cli.hub.hashes import file_hash, part_hash
from osp_cli.loras import find_lora
from osp_cli.models.lora_file import DAMAGED_HINT, Change, LoraFile, Shape, read_lora
from osp_cli.models.lora_fit import fit_lora, installed_shapes, same_size, size_of_card
from osp_cli.models.safetensors_header import not_finite, read_header
from osp_cli.runtime.companions import (
    apply_companions,
    check_companion,
    companion_of,
    companions_of,
)

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
        InvalidRequestError: a file is missing or damaged, no LoRA, or one of another model; also
            of its companion, where it names one.
        WeightsMissingError: the model is not installed.
    """
    loras = _read(request.loras)
    if not loras:
        return []
    folder = request.spec.weights_dir()
    shapes = installed_shapes(folder)
    if not shapes:
        # Weights in another format are judged when they are loaded.
        for lora in loras if numbers else ():
            _check_numbers(lora, lora.changes)
        _check_companions(loras, folder, shapes, request.model, numbers=numbers)
        return []
    fits = [(lora, fit_lora(lora, shapes, request.model)) for lora in loras]
    for lora, fit in fits if numbers else ():
        _check_numbers(lora, fit.changes)
    _check_companions(loras, folder, shapes, request.model, numbers=numbers)
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


def base_notices(loras: Sequence[LoraChoice], weights: Mapping[str, str], model: str) -> list[str]:
    """A sentence about each LoRA that was trained on another base than the one in use.

    Args:
        loras: as asked for.
        weights: SHA-256 of the model's files, as `hub.hashes.weights_hash` gives them.
        model: what to call it.
    """
    here = part_hash(weights, "transformer")
    found = []
    for choice in loras:
        path = find_lora(choice.name)
        told = read_header(path).metadata
        trained_on = told.get("osp.base_sha256", "")
        if trained_on and trained_on != here:
            base = told.get("osp.base_id", "")
            of = f" of {base}" if base else ""
            found.append(
                f"{path.name} was trained on a transformer{of} with other weights than {model} "
                "has here: it may do more, less or something else"
            )
    return found


def companion_hashes(loras: Sequence[LoraChoice]) -> list[str]:
    """SHA-256 of the files that were trained beside LoRAs, of those that have one."""
    return [companion.sha256 for companion, _ in companions_of(loras)]


def lora_hashes(loras: Sequence[LoraChoice]) -> list[str]:
    """SHA-256 of each LoRA's file."""
    return [file_hash(find_lora(choice.name)) for choice in loras]


def lora_bytes(loras: Sequence[LoraChoice]) -> int:
    """Bytes of all their files, and of those beside them."""
    beside = sum(companion.path.stat().st_size for companion, _ in companions_of(loras))
    return beside + sum(find_lora(choice.name).stat().st_size for choice in loras)


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
    apply_companions("transformer", transformer, loras)
    return transformer


def _check_companions(
    loras: Iterable[LoraFile],
    folder: Path,
    shapes: Mapping[str, Shape],
    model: str,
    *,
    numbers: bool,
) -> None:
    for lora in loras:
        if (companion := companion_of(lora.path, lora.metadata)) is not None:
            check_companion(companion, folder, shapes, model, numbers=numbers)


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
