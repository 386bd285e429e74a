"""From what was trained to the files of it, and the name under which they are found."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor

from osp_cli import __version__
from osp_cli.events import Event, Notice, Saved
from osp_cli.hub.hashes import part_hash, weights_hash
from osp_cli.hub.lora_install import install
from osp_cli.train_request import TrainRequest
from osp_cli.training.dataset.entries import DatasetReport
from osp_cli.training.export import ExportInfo, write_adapter, write_full


def export(
    request: TrainRequest,
    report: DatasetReport,
    weights: Path,
    state: Mapping[str, Tensor],
    companion: Mapping[str, Tensor],
    steps: int,
) -> Iterator[Event]:
    """Write the finished files into the run's folder, and install them under the run's name.

    Args:
        request: of the run.
        report: of the data.
        weights: folder of the base.
        state: the LoRA's factors, of `adapters.adapter_state`.
        companion: what was trained of the conditioner, as `adapter.fc1.weight`.
        steps: that were done.
    """
    info = _info(request, report, weights, steps)
    path = request.output / f"{request.name}.safetensors"
    files = write_adapter(path, state, info, request.save_format, companion or None, overwrite=True)
    installed = install(files, request.name, overwrite=True)
    yield Saved(path, path.stat().st_size)
    yield Notice(f"installed as {installed}; use it with --style or --lora {request.name}")


def export_full(
    request: TrainRequest,
    report: DatasetReport,
    weights: Path,
    state: Mapping[str, Tensor],
    transformer: Any,
    adapters: Mapping[str, Any],
    steps: int,
) -> Iterator[Event]:
    """Write all weights of a full training as a folder that `osp download --local` takes.

    Args:
        request, report, weights, steps: as of `export`.
        state: all weights of the transformer, whole and on the host.
        transformer: whose class and configuration are written.
        adapters: of the conditioner, by the names of their folders.
    """
    with init_empty_weights():
        whole = type(transformer).from_config(transformer.config)
    whole.load_state_dict(
        {name: value.to(torch.bfloat16) for name, value in state.items()}, assign=True
    )
    folder = request.output / "weights"
    info = _info(request, report, weights, steps)
    write_full(folder, whole, info, adapters, overwrite=True)
    yield Saved(folder, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
    yield Notice(f"osp download {request.model} --local {shlex.quote(str(folder))} installs it")


def _info(request: TrainRequest, report: DatasetReport, weights: Path, steps: int) -> ExportInfo:
    hashes = weights_hash(weights)
    return ExportInfo(
        name=request.name,
        title=request.title,
        trigger=request.trigger,
        style=request.name,
        mode=request.mode,
        rank=request.rank,
        alpha=request.alpha,
        targets=request.targets,
        base_id=request.model,
        base_sha256=part_hash(hashes, "transformer"),
        vlm_sha256=part_hash(hashes, "text_encoder"),
        dataset_sha256=report.sha256,
        sigma_shift=request.sigma_shift,
        seed=request.seed,
        steps=steps,
        version=__version__,
    )
