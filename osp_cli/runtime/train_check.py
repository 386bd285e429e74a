"""The look at the data before anything is loaded, a matter of seconds."""

from __future__ import annotations

import json
from collections.abc import Generator

from osp_cli.errors import InvalidRequestError
from osp_cli.events import DatasetChecked, Event
from osp_cli.media.files import atomic_output
from osp_cli.train_request import TrainRequest
from osp_cli.training.dataset.check import CheckSettings, check_dataset
from osp_cli.training.dataset.entries import DatasetReport, refuse

REPORT = "dataset_report.json"


def checked(request: TrainRequest) -> Generator[Event, None, DatasetReport]:
    """Check the data; returns the report when they can be trained on.

    Raises:
        InvalidRequestError: they cannot, or the run's folder would lie in theirs.
    """
    _refuse_place(request)
    report = check_dataset(request.dataset, CheckSettings.of(request))
    yield DatasetChecked(report.as_json())
    if not request.validate_only and request.output.is_dir():
        # Of a run that is taken up again; a new one has no folder yet.
        write_report(request, report)
    refuse(report, skip_invalid=request.skip_invalid)
    return report


def write_report(request: TrainRequest, report: DatasetReport) -> None:
    """Keep the report in the run's folder."""
    with atomic_output(request.output / REPORT, overwrite=True) as part:
        part.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")


def _refuse_place(request: TrainRequest) -> None:
    """Nothing is ever written among the user's data."""
    data, place = request.dataset.resolve(), request.output.resolve()
    folder = data if data.is_dir() else data.parent
    if place == folder or (data.is_dir() and folder in place.parents):
        raise InvalidRequestError(
            f"--out {request.output} lies inside the data, where nothing is written",
            hint=f"--out {request.name}-lora, or another folder",
        )
