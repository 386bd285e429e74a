"""Measuring the magnitude ratios that MagCache skips by (arXiv:2506.09045)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.hooks.hooks import ModelHook
from torch import Tensor, nn

from osp_cli.sampling.hooks import LEADING_CONTEXT, ContextHook, hooks_changed, register, remove
from osp_cli.sampling.step_cache import is_cached

_ENTRY_HOOK = "osp_magnitude_entry"
_EXIT_HOOK = "osp_magnitude_exit"


class MagCalibration:
    """What one clip's conditional passes have shown so far.

    Attributes:
        mag_ratios: one per step: by how much the residual of the blocks is longer than that of the
            step before, a mean over tokens. The first is 1.
    """

    def __init__(self) -> None:
        self.mag_ratios: tuple[float, ...] = ()
        self._previous: Tensor | None = None

    def record(self, residual: Tensor) -> None:
        """Take what the blocks of one step added, `(batch, tokens, width)`."""
        lengths = residual.detach().float().norm(dim=-1)
        ratio = 1.0
        if self._previous is not None:
            ratio = (lengths / (self._previous + 1e-8)).mean().item()
        self.mag_ratios += (ratio,)
        self._previous = lengths


@contextmanager
def calibrate_mag_ratios(transformer: Any) -> Iterator[MagCalibration]:
    """Measure `MagCacheConfig.mag_ratios` while one clip is sampled inside the `with`.

    Nothing is skipped and no result changes. (diffusers' own calibration prints the ratios to
    standard output and forgets them.) Every call must stand inside a `cache_context`.

    Raises:
        ValueError: A step cache or another calibration is on.
    """
    if is_cached(transformer):
        raise ValueError("calibration must run without a step cache")
    calibration = MagCalibration()
    entry = _EntryHook()
    try:
        register(transformer.blocks[0], entry, _ENTRY_HOOK)
        register(transformer.blocks[-1], _ExitHook(entry, calibration), _EXIT_HOOK)
        hooks_changed(transformer)
        yield calibration
    finally:
        remove(transformer, _ENTRY_HOOK, _EXIT_HOOK)


class _EntryHook(ModelHook):
    """Keeps what goes into the first block."""

    hidden_states: Tensor | None = None

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.hidden_states = args[0] if args else kwargs["hidden_states"]
        return args, kwargs


class _ExitHook(ContextHook):
    """Compares it with what comes out of the last one."""

    def __init__(self, entry: _EntryHook, calibration: MagCalibration) -> None:
        super().__init__()
        self.entry = entry
        self.calibration = calibration

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        if self.context == LEADING_CONTEXT:
            self.calibration.record(output - self.entry.hidden_states)
        self.entry.hidden_states = None
        return output
