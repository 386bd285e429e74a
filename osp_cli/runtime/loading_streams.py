"""The pipeline of endless video that each card asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osp_cli.errors import RuntimeFailureError
from osp_cli.models.helios import load_stage_scheduler
from osp_cli.pipelines.realtime import RealtimePipeline
from osp_cli.registry import ModelSpec


def make_stream_pipeline(
    spec: ModelSpec, parts: Mapping[str, Any], folder: Path
) -> RealtimePipeline:
    """The pipeline of a card that can continue its own video.

    Args:
        spec: the card.
        parts: those that are loaded, by the names of `load_parts`; what is lacking is None in the
            pipeline, and must be there for what needs it.
        folder: of the weights, for the schedule of a model that was made for several stages.

    Raises:
        RuntimeFailureError: the card has no table `[realtime]`.
        CheckpointError: the schedule is not the card's.
    """
    if (problem := spec.stream_problem()) is not None or spec.realtime is None:
        raise RuntimeFailureError(str(problem))
    scheduler = None
    if "scheduler" in spec.parts:
        scheduler = load_stage_scheduler(folder / "scheduler", spec.realtime.stages)
    return RealtimePipeline(
        *map(parts.get, ("transformer", "vae", "conditioner")),
        spec.realtime,
        surround=spec.image_token_surround,
        scheduler=scheduler,
    )
