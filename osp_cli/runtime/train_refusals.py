"""What speaks against a training run, before minutes are spent on it."""

from __future__ import annotations

from pathlib import Path

from osp_cli.errors import CheckpointError, InvalidRequestError
from osp_cli.hub.lora_install import check_name
from osp_cli.loras import SUFFIX, loras_home
from osp_cli.media.files import explained
from osp_cli.own_styles import lora_metadata
from osp_cli.runtime.sizes import transformer_shape
from osp_cli.runtime.train_samples import sample_pictures
from osp_cli.train_request import AUTO, NEVER, TrainRequest
from osp_cli.training.checkpoints import checkpoints_in, find_checkpoint
from osp_cli.training.dataset.entries import DatasetReport
from osp_cli.training.distributed import (
    check_context,
)

# What does not change while a run goes on.
_OF_RUN = ("ss_output_name", "osp.base_sha256", "osp.dataset_sha256", "osp.seed", "osp.trigger")


def refuse_paths(request: TrainRequest) -> None:
    """What is named must be there before minutes are spent.

    Raises:
        CheckpointError: the checkpoint of `--resume` is missing or damaged.
        OspError: a picture of `--sample-image` is missing or no picture.
    """
    sample_pictures(request.sample_images)
    if request.resume not in (AUTO, NEVER):
        path = Path(request.resume)
        try:
            find_checkpoint(request.output, path)
        except CheckpointError as error:
            inside = checkpoints_in(path) or checkpoints_in(request.output)
            if inside and not error.hint:
                error.hint = f"--resume {inside[-1]} is the newest one"
            raise


def check_tokens(request: TrainRequest, report: DatasetReport, weights: Path | None) -> None:
    """Refuse samples whose tokens the processes could not share out evenly."""
    spec = request.spec
    cell = 2 * spec.scale_factor_spatial
    tokens = [
        (window.size[0] // cell)
        * (window.size[1] // cell)
        * (1 + (window.num_frames - 1) // spec.scale_factor_temporal)
        for window in report.windows
    ]
    shape = transformer_shape(spec, weights)
    if shape is not None:
        check_context(shape.heads, tokens, request.context_parallel)


def refuse_name(request: TrainRequest) -> None:
    """An adapter of that name may not be lost; one that this very run made is its own."""
    if request.full:
        return
    finished = request.output / f"{request.name}{SUFFIX}"
    installed = loras_home() / f"{request.name}{SUFFIX}"
    ours = finished.is_file() and (not installed.is_file() or _of_one_run(finished, installed))
    check_name(request.name, overwrite=request.overwrite or ours)


def _of_one_run(*files: Path) -> bool:
    """Whether adapters say that they are of one run, perhaps after more or fewer steps."""
    told = [lora_metadata(path) for path in files]
    return len({tuple(each.get(key) for key in _OF_RUN) for each in told}) == 1


def make_run_folder(request: TrainRequest) -> None:
    output = request.output
    strange = output.is_dir() and any(output.iterdir()) and not _is_run(output)
    if strange and not request.overwrite:
        raise InvalidRequestError(
            f"{output} is there already, and is no training run",
            hint=f"--out {request.name}-2, or -y to use it",
        )
    if request.resume == NEVER and checkpoints_in(output) and not request.overwrite:
        raise InvalidRequestError(
            f"{output} holds a run, which --resume never would begin anew",
            hint="-y replaces it, another --out keeps it",
        )
    with explained(output):
        output.mkdir(parents=True, exist_ok=True)


def _is_run(folder: Path) -> bool:
    from osp_cli.runtime.train_check import REPORT

    return (folder / REPORT).is_file() or (folder / "checkpoints").is_dir()
