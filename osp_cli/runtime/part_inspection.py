"""Weights that are no LoRA, in whatever layout: parts of models, told by their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from osp_cli.errors import InvalidRequestError
from osp_cli.hub.choice import misfit
from osp_cli.models.layouts import UNKNOWN, FoundPart, describe
from osp_cli.registry import ModelSpec, model_specs
from osp_cli.runtime.inspection import Inspected

_MOST_NAMES = 3


def inspect_parts(path: Path) -> list[Inspected]:
    """What is in a file or folder; of a folder, everything in it that could be part of a model.

    Raises:
        OspError: there is nothing, or it cannot be read.
    """
    found = describe(path)
    # Where there are weights, settings and vocabularies without any are nobody's question.
    known = [one for one in found if one.part != UNKNOWN and one.tensors]
    known = known or [one for one in found if one.part != UNKNOWN] or found
    if not known:
        raise InvalidRequestError(f"there are no weights in {path}")
    return [_inspected(one) for one in known]


def _inspected(found: FoundPart) -> Inspected:
    notes = [f"weights averaged over the training ({found.branch})"] * (found.branch == "ema")
    if found.part == UNKNOWN and found.tensors:
        names = ", ".join(list(found.tensors)[:_MOST_NAMES])
        notes.append(f"its keys are {names}, ...")
    said: dict[str, Any] = {}
    if problem := found.problem or found.incompleteness:
        said["problem"] = problem
    return Inspected(
        path=found.path,
        kind=UNKNOWN if found.part == UNKNOWN else f"{found.part}: {found.title}",
        num_bytes=found.nbytes or sum(file.stat().st_size for file in found.files),
        num_keys=found.num_tensors,
        dtypes={found.dtype: found.parameters} if found.dtype else {},
        layout=found.layout,
        fits=tuple(card.name for card in model_specs().values() if _is_part_of(card, found)),
        notes=tuple(notes),
        **said,
    )


def _is_part_of(card: ModelSpec, found: FoundPart) -> bool:
    return found.part in card.parts and not card.embedded and not misfit(card, found.part, found)
