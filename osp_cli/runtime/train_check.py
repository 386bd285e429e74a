"""The look at the data before anything is loaded, a matter of seconds."""

from __future__ import annotations

import json
from collections.abc import Callable

from osp_cli.errors import InvalidRequestError
from osp_cli.media.files import atomic_output
from osp_cli.train_request import TrainRequest
from osp_cli.training.dataset.check import CheckSettings, check_dataset
from osp_cli.training.dataset.entries import DatasetReport

REPORT = "dataset_report.json"


def look_at(
    request: TrainRequest, progress: Callable[[int, int], None] | None = None
) -> DatasetReport:
    """Check the data of a run.

    Raises:
        InvalidRequestError: nothing of them can be read, or the run's folder would lie in theirs.
    """
    _refuse_place(request)
    return check_dataset(request.dataset, CheckSettings.of(request), progress)


def write_report(request: TrainRequest, report: DatasetReport) -> None:
    """Keep the report in the run's folder."""
    with atomic_output(request.output / REPORT, overwrite=True) as part:
        part.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")


def _refuse_place(request: TrainRequest) -> None:
    """Nothing is ever written among the user's data."""
    data = request.dataset.resolve()
    folder = data if data.is_dir() else data.parent
    places = []
    if not (request.validate_only or request.cache_only):
        places.append(("--out", request.output))
    if request.cache_dir is not None and not request.validate_only:
        places.append(("--cache-dir", request.cache_dir))
    for flag, place in places:
        where = place.resolve()
        if where == folder or (data.is_dir() and folder in where.parents):
            raise InvalidRequestError(
                f"{flag} {place} lies inside the data, where nothing is written",
                hint=f"{flag} another folder",
            )
