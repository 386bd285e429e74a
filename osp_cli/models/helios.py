"""Loading a Helios: diffusers' transformer with a history at three scales, and its schedule."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import init_empty_weights

from osp_cli.errors import CheckpointError, WeightsMissingError
from osp_cli.models.state_dict import accepted, fill, read_config, read_state_dict

if TYPE_CHECKING:
    from diffusers import HeliosDMDScheduler, HeliosTransformer3DModel

# What makes a folder of diffusers one with such a schedule.
SCHEDULER_FILE = "scheduler_config.json"


def load_helios_transformer(
    path: Path, *, dtype: torch.dtype | None = None
) -> HeliosTransformer3DModel:
    """Load a Helios transformer from a folder of diffusers, on the CPU, in eval mode.

    Args:
        path: a folder with safetensors, sharded or not, and `config.json`.
        dtype: of the weights; None keeps what is stored. Layers that lose too much in half
            precision stay fp32 either way.

    Raises:
        WeightsMissingError: there are no weights, or their settings are not beside them: shapes do
            not tell how positions are split.
        CheckpointError: they are damaged, or their keys or shapes do not fit; all named.
    """
    from diffusers import HeliosTransformer3DModel

    state = read_state_dict(path)
    settings = read_config(path)
    if not settings:
        raise WeightsMissingError(
            f"there is no config.json in {path}", hint="put that of the weights beside them"
        )
    # Published with some models, and used by none.
    state = {name: tensor for name, tensor in state.items() if ".norm_added_q." not in name}
    try:
        with init_empty_weights():
            model = HeliosTransformer3DModel(**accepted(HeliosTransformer3DModel, settings))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"no Helios has the settings of {path}: {error}") from error
    fill(model, state, path, dtype=dtype)
    return model.eval()


def load_stage_scheduler(folder: Path, stages: int) -> HeliosDMDScheduler:
    """The schedule of a model whose weights know several stages.

    Args:
        folder: with `scheduler_config.json`.
        stages: as many as the card says.

    Raises:
        WeightsMissingError: the file is not there.
        CheckpointError: it is another kind of schedule, or one of other stages.
    """
    from diffusers import HeliosDMDScheduler

    if not (folder / SCHEDULER_FILE).is_file():
        raise WeightsMissingError(
            f"there is no schedule in {folder}", hint=f"put {SCHEDULER_FILE} there"
        )
    settings = HeliosDMDScheduler.load_config(folder, local_files_only=True)
    kind = settings.get("_class_name")
    if kind != HeliosDMDScheduler.__name__:
        raise CheckpointError(f"the schedule in {folder} is {kind}, expected HeliosDMDScheduler")
    scheduler: HeliosDMDScheduler = HeliosDMDScheduler.from_config(settings)
    if scheduler.config.stages != stages:
        raise CheckpointError(
            f"the schedule in {folder} has {scheduler.config.stages} stages, the card {stages}"
        )
    return scheduler
