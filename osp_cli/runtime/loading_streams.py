"""The pipeline of endless video that each card asks for."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from osp_cli.errors import RuntimeFailureError
from osp_cli.pipelines.realtime import RealtimePipeline
from osp_cli.realtime_card import RealtimeFigures
from osp_cli.registry import ModelSpec


def make_stream_pipeline(
    spec: ModelSpec,
    parts: MutableMapping[str, Any],
    folder: Path,
    figures: RealtimeFigures | None = None,
) -> RealtimePipeline:
    """The pipeline of a card that can continue its own video.

    Args:
        spec: the card.
        parts: those that are loaded, by the names of `load_parts`; what is lacking is None in the
            pipeline, and must be there for what needs it. The schedule of a model that was made for
            several stages is put among them, so that it is read once.
        folder: of the weights.
        figures: of the card, with what the user changed of them; None takes the card's own.

    Raises:
        RuntimeFailureError: the card has no table `[realtime]`.
        CheckpointError: the schedule is not the card's.
    """
    if (problem := spec.stream_problem()) is not None or spec.realtime is None:
        raise RuntimeFailureError(str(problem))
    if "scheduler" in spec.parts and "scheduler" not in parts:
        # Only here: no other model waits for the import.
        from osp_cli.models.helios import load_stage_scheduler

        parts["scheduler"] = load_stage_scheduler(folder / "scheduler", spec.realtime.stages)
    known = figures or spec.realtime
    kind = RealtimePipeline
    if known.memory == "picture":
        # Only here: its motions are the embedded model's alone.
        from osp_cli.pipelines.remembering import RememberingPipeline

        kind = RememberingPipeline
    return kind(
        parts.get("transformer"),
        parts.get("vae"),
        parts.get("conditioner"),
        known,
        surround=spec.image_token_surround,
        scheduler=parts.get("scheduler"),
    )
