"""The log of a training run: `metrics.jsonl` always, TensorBoard's files if asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from osp_cli.errors import InvalidRequestError
from osp_cli.training.checkpoints import force_to_disk

_NAME = "metrics.jsonl"


class MetricsLog:
    """One line a step; a run that was stopped and resumed reads as one that was not.

    Args:
        run: the run's folder.
        step: steps that are done; what the log tells of later ones is cut off.
        logs: `tensorboard` among them writes its files too, to `run/tensorboard`.

    Raises:
        InvalidRequestError: the package tensorboard is missing.
    """

    def __init__(self, run: Path, step: int, logs: Collection[str] = ()) -> None:
        self._path = run / _NAME
        self._board: Any = _open_board(run, step) if "tensorboard" in logs else None
        self._cut(step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a step's line; numbers that are not finite are null there, as JSON has none."""
        plain = {key: _plain(value) for key, value in values.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **plain}) + "\n")
        if self._board is not None:
            for key, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(key, value, step)

    def force_to_disk(self) -> None:
        """Wait until the lines would survive a power cut."""
        if self._path.exists():
            force_to_disk(self._path)
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Nothing more is written."""
        if self._board is not None:
            self._board.close()

    def _cut(self, step: int) -> None:
        if not self._path.exists():
            return
        before = self._path.read_text("utf-8", errors="replace")
        kept = [line for line in before.splitlines(keepends=True) if _is_until(line, step)]
        if "".join(kept) != before:
            part = self._path.with_name(f".{_NAME}.tmp")
            part.write_text("".join(kept), "utf-8")
            force_to_disk(part)
            part.replace(self._path)


def _is_until(line: str, step: int) -> bool:
    """Whether a line is whole and of a step up to this one."""
    if not line.endswith("\n"):
        return False
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_board(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InvalidRequestError(
            "--log tensorboard needs the package tensorboard",
            hint="pip install tensorboard, or leave it out: metrics.jsonl is always written",
        ) from error
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
