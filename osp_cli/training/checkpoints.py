"""Checkpoints of a training run: each appears whole or not at all, with older ones behind it.

`checkpoints/step-000250/` holds `state.safetensors` (parameters, their average, the optimizers'
tensors) and `state.json` (everything else). It is written as `step-000250.tmp`, forced to the disk
and renamed; older ones are removed only after that.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from osp_cli.errors import CheckpointError, InvalidRequestError, RuntimeFailureError, WontFitError

AUTO = "auto"
NEVER = "never"

_FOLDER = "checkpoints"
_TENSORS = "state.safetensors"
_STATE = "state.json"
_UNFINISHED = ".tmp"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What `state.json` holds.

    Attributes:
        step: optimiser steps that were done.
        batch: samples of a step over all processes; a run keeps it, whoever goes on with it. None
            where the loss knows nothing of samples.
        settings: of the loop, for the reader.
        fingerprint: what a run that goes on from here may not change.
        numbers: what optimizers remember beside tensors, by the name a tensor would have.
        tensors_bytes: size of `state.safetensors`.
    """

    step: int
    batch: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    tensors_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that is whole."""

    path: Path
    state: State

    def load(self) -> dict[str, Tensor]:
        """Its tensors, on the CPU."""
        return dict(load_file(self.path / _TENSORS))

    def check(self, fingerprint: Mapping[str, Any]) -> None:
        """Refuse to go on from it with other settings.

        Raises:
            InvalidRequestError: every setting that differs is named, with both values.
        """
        now = json.loads(json.dumps(dict(fingerprint)))
        before = self.state.fingerprint
        differing = [
            f"{key} {_shown(before, key)}, not {_shown(now, key)}"
            for key in sorted({*now, *before})
            if key not in now or key not in before or now[key] != before[key]
        ]
        if differing:
            raise InvalidRequestError(
                f"{self.path} is of a run with {'; '.join(differing)}",
                hint="use the same settings, or another folder, or start anew with --resume never",
            )


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "nothing"


def folder_of(run: Path) -> Path:
    """Where the checkpoints of a run's folder are."""
    return run / _FOLDER


def name_of(step: int) -> str:
    """The name of the checkpoint after that many steps."""
    return f"step-{step:06d}"


def checkpoints_in(run: Path) -> list[Path]:
    """All that have a final name, the newest last; whether they are whole was not looked at."""
    folder = folder_of(run)
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The steps before a checkpoint, of its name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is no checkpoint's name")
    return int(match[1])


def find_checkpoint(run: Path, resume: str | Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Where a run goes on, and sentences about what could not be used.

    Args:
        run: the run's folder.
        resume: `auto` for the newest checkpoint that is whole, `never`, or a checkpoint's folder.

    Raises:
        CheckpointError: the named one is missing or damaged.
    """
    if resume == NEVER:
        return None, ()
    if resume != AUTO:
        return read_checkpoint(Path(resume)), ()
    notices: list[str] = []
    for path in reversed(checkpoints_in(run)):
        try:
            return read_checkpoint(path), tuple(notices)
        except CheckpointError as error:
            notices.append(f"{error}; the one before it is used")
    if notices:
        notices[-1] = notices[-1].replace("the one before it is used", "the run starts anew")
    return None, tuple(notices)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        state = State(**json.loads((path / _STATE).read_text("utf-8")))
        # Its header tells how long the file must be, and opening it compares.
        with safe_open(path / _TENSORS, "pt"):
            pass
        size = (path / _TENSORS).stat().st_size
        if size != state.tensors_bytes:
            raise ValueError(f"{_TENSORS} has {size} bytes, not {state.tensors_bytes}")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {error}") from error
    return Checkpoint(path, state)


def write_checkpoint(run: Path, tensors: Mapping[str, Tensor], state: State) -> Path:
    """Put a checkpoint into a run's folder; returns its own.

    Raises:
        WontFitError: the disk is full; those before it are as they were.
        RuntimeFailureError: it could not be written otherwise; the same holds.
    """
    folder = folder_of(run)
    final = folder / name_of(state.step)
    part = final.with_name(final.name + _UNFINISHED)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file({name: _own(tensor) for name, tensor in tensors.items()}, part / _TENSORS)
        values = {**asdict(state), "tensors_bytes": (part / _TENSORS).stat().st_size}
        (part / _STATE).write_text(json.dumps(values, indent=1) + "\n", "utf-8")
        for path in (part / _TENSORS, part / _STATE, part):
            force_to_disk(path)
        _give_name(part, final)
        force_to_disk(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        # The format's own error has the number in its words only.
        full = any(
            getattr(error, "errno", None) == number or f"os error {number})" in str(error)
            for number in (errno.ENOSPC, errno.EDQUOT)
        )
        kind = WontFitError if full else RuntimeFailureError
        raise kind(
            f"the checkpoint {final} cannot be written: {'no space left' if full else reason}",
            kept=tuple(checkpoints_in(run)[-1:]),
        ) from error
    return final


def _own(tensor: Tensor) -> Tensor:
    """The tensor on the CPU with a memory of its own, as the format wants it."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _give_name(part: Path, final: Path) -> None:
    """Rename; what had the name is a former run's, which is being replaced."""
    if final.exists():
        former = final.with_name(f"{final.name}.former{_UNFINISHED}")
        shutil.rmtree(former, ignore_errors=True)
        final.rename(former)
    part.rename(final)


def prune(run: Path, kept: Collection[Path]) -> None:
    """Remove all checkpoints but these, and what was never finished."""
    remove_unfinished(run)
    for path in checkpoints_in(run):
        if path not in kept:
            # Under this name a half-removed one is no checkpoint.
            former = path.with_name(f"{path.name}.former{_UNFINISHED}")
            path.rename(former)
            shutil.rmtree(former, ignore_errors=True)


def remove_unfinished(run: Path) -> None:
    """Remove what a killed process left."""
    for path in folder_of(run).glob(f"step-*{_UNFINISHED}"):
        shutil.rmtree(path, ignore_errors=True)


def force_to_disk(path: Path) -> None:
    """Wait until a file or a folder's list of names would survive a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
