"""The page of a run, drawn anew at every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from osp_cli.train_plan import TrainPlan
from osp_cli.train_request import TrainRequest
from osp_cli.training.dataset.entries import DatasetReport
from osp_cli.training.page import SampleRecord, write_page

if TYPE_CHECKING:
    from osp_cli.runtime.train_samples import TrainingSamples

PAGE = "index.html"


class RunPage:
    """What a run shows of itself in a browser.

    Args:
        request, report, plan: of the run.
        samples: that were made, or None.
        step: steps that are done.
    """

    def __init__(
        self,
        request: TrainRequest,
        report: DatasetReport,
        plan: TrainPlan,
        samples: TrainingSamples | None,
        step: int,
    ) -> None:
        self.path = request.output / PAGE
        self._request, self._report, self._plan = request, report, plan
        self._samples = samples
        if samples is not None:
            samples.found(step)

    def write(self) -> Path:
        """Write the page as things stand; returns where."""
        request, plan = self._request, self._plan
        what = "all weights" if plan.full else f"rank {plan.rank}, alpha {plan.alpha:g}"
        facts = {
            "base": f"{plan.model}, mode {plan.mode}",
            "trained": f"{what}, {plan.targets}, {plan.trained_parameters / 1e6:.3g} M numbers",
            "trigger": request.trigger or "none",
            "data": f"{self._report.num_entries} clips, {len(self._report.windows)} samples, "
            f"{self._report.seconds:.0f} s",
            "steps": f"{plan.steps} of {plan.batch}, learning rate {request.learning_rate:g}, "
            f"seed {request.seed}",
            "use": f"osp download {plan.model} --local {request.output}/weights"
            if plan.full
            else f'osp generate photo.jpg "..." --style {request.name}',
        }
        records: Sequence[SampleRecord] = () if self._samples is None else self._samples.records
        metrics = request.output / "metrics.jsonl"
        write_page(self.path, f"osp train-lora: {request.name}", facts, metrics, records)
        return self.path
