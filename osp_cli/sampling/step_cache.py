"""Step caches: skip denoising work that would hardly change the result.

Four kinds: none, TeaCache (ours, see `teacache`), and diffusers' first-block cache and MagCache.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import nn

from osp_cli.sampling.hooks import (
    LEADING_CONTEXT,
    ContextHook,
    has_hook,
    hooks_changed,
    register,
    remove,
)
from osp_cli.sampling.teacache import (
    TeaCacheConfig,
    TeaCacheDecision,
    apply_teacache,
    remove_teacache,
)

__all__ = [
    "FBCacheConfig",
    "MagCacheConfig",
    "NoCacheConfig",
    "StepCache",
    "StepCacheConfig",
    "TeaCacheConfig",
    "enable_step_cache",
    "is_cached",
]

_PASS_HOOK = "osp_step_cache_pass"
_FLOOR_HOOK = "osp_step_cache_floor"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoCacheConfig:
    """Every step is computed; the model is not touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FBCacheConfig:
    """diffusers' first-block cache: block 0 runs always, and decides for each pass by itself.

    Attributes:
        threshold: of the relative change of block 0's residual, below which the rest is skipped.

    Raises:
        ValueError: The threshold is not positive.
    """

    threshold: float = 0.05

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class MagCacheConfig:
    """diffusers' MagCache: skips by a curve measured beforehand, whatever the clip.

    Attributes:
        num_inference_steps: of the sampler; a new clip begins after so many steps.
        mag_ratios: by how much the blocks' residual is longer than at the step before, from
            `calibrate_mag_ratios` or published for this model. Their number may differ from that
            of the steps: the nearest is taken.
        threshold: of the accumulated error.
        max_skip_steps: how many steps in a row may be skipped.
        retention_ratio: share of the steps, from the first on, that is always computed.

    Raises:
        ValueError: There are no ratios, or a number is out of range.
    """

    num_inference_steps: int
    mag_ratios: tuple[float, ...] = ()
    threshold: float = 0.06
    max_skip_steps: int = 3
    retention_ratio: float = 0.2

    def __post_init__(self) -> None:
        if not self.mag_ratios:
            raise ValueError(
                "MagCache needs the magnitude ratios of this very model; "
                "calibrate_mag_ratios measures them in one uncached run"
            )
        if not all(math.isfinite(ratio) and ratio > 0 for ratio in self.mag_ratios):
            raise ValueError(f"magnitude ratios must be positive, got {self.mag_ratios}")
        if self.num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps must be at least 1, got {self.num_inference_steps}"
            )
        _check_threshold(self.threshold)
        if self.max_skip_steps < 1:
            raise ValueError(f"max_skip_steps must be at least 1, got {self.max_skip_steps}")
        if not 0 <= self.retention_ratio <= 1:
            raise ValueError(f"retention_ratio must lie in [0, 1], got {self.retention_ratio}")


StepCacheConfig = NoCacheConfig | TeaCacheConfig | FBCacheConfig | MagCacheConfig


class StepCache:
    """What a cache has done since it was enabled or last reset; readable after it is gone.

    A step means its conditional pass; with guidance each step has a second pass, which the caches
    of diffusers decide on separately. Without a cache nothing is counted.

    Attributes:
        decisions: TeaCache's, one per step, with its distances; empty for the other kinds.
    """

    def __init__(self) -> None:
        self.decisions: list[TeaCacheDecision] = []
        # Passes by context: those that reached the model, and those that reached its last block.
        self.entered: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self._transformer: nn.Module | None = None

    @property
    def computed_steps(self) -> int:
        """Steps whose conditional pass ran through all blocks."""
        return self.finished[LEADING_CONTEXT]

    @property
    def skipped_steps(self) -> int:
        """Steps whose conditional pass used an earlier result."""
        return self.entered[LEADING_CONTEXT] - self.computed_steps

    @property
    def computed_passes(self) -> int:
        """Model calls, of all branches of guidance, that ran through all blocks."""
        return self.finished.total()

    @property
    def skipped_passes(self) -> int:
        """Model calls that used an earlier result."""
        return self.entered.total() - self.computed_passes

    def reset(self) -> None:
        """Forget residuals and counts: for the next clip, above all after one was broken off."""
        if self._transformer is not None:
            registry = HookRegistry.check_if_exists_or_initialize(self._transformer)
            registry.reset_stateful_hooks()
        self.decisions.clear()
        self.entered.clear()
        self.finished.clear()


@contextmanager
def enable_step_cache(transformer: Any, config: StepCacheConfig) -> Iterator[StepCache]:
    """Cache the steps of a Wan transformer inside a `with`; outside, the model is as it was.

    Every call of the transformer must stand inside `transformer.cache_context("cond")` or
    `("uncond")`, the conditional pass first in its step. Group offloading may be enabled before or
    after; before is faster, since skipped blocks are then not even loaded.

    Raises:
        ValueError: A cache is enabled already, or the first-block cache meets a single block.
    """
    cache = StepCache()
    if isinstance(config, NoCacheConfig):
        yield cache
        return
    if is_cached(transformer):
        raise ValueError("a step cache is enabled already")
    if isinstance(config, FBCacheConfig) and len(transformer.blocks) < 2:
        raise ValueError("the first-block cache needs a second block to skip")
    try:
        _count_passes(transformer, cache)
        if isinstance(config, TeaCacheConfig):
            cache.decisions = apply_teacache(transformer, config).decisions
        else:
            transformer.enable_cache(_diffusers_config(config))
        cache._transformer = transformer
        yield cache
    finally:
        cache._transformer = None
        if transformer.is_cache_enabled:
            transformer.disable_cache()
        remove_teacache(transformer)
        remove(transformer, _PASS_HOOK, _FLOOR_HOOK)


def is_cached(transformer: Any) -> bool:
    """Whether a step cache of any kind is enabled."""
    return transformer.is_cache_enabled or has_hook(transformer.condition_embedder, _PASS_HOOK)


class _Counter(ContextHook):
    """Counts the passes that reach its module, by context."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.counts[self.context] += 1
        return args, kwargs


def _count_passes(transformer: Any, cache: StepCache) -> None:
    """Register what must be in place before the cache: counters, and a floor under its hooks.

    The floor is a hook that does nothing. When a hook right below one with `new_forward` is
    removed, diffusers 0.42 overwrites that `new_forward`; group offloading with streams removes
    such a hook after the first pass, and would silently take the cache off the blocks.
    """
    register(transformer.condition_embedder, _Counter(cache.entered), _PASS_HOOK)
    for block in transformer.blocks[:-1]:
        register(block, ModelHook(), _FLOOR_HOOK)
    # Inside the cache's own hook, it sees only what is really computed.
    register(transformer.blocks[-1], _Counter(cache.finished), _FLOOR_HOOK)
    hooks_changed(transformer)


def _diffusers_config(config: FBCacheConfig | MagCacheConfig) -> Any:
    if isinstance(config, FBCacheConfig):
        return diffusers.FirstBlockCacheConfig(threshold=config.threshold)
    return diffusers.MagCacheConfig(
        threshold=config.threshold,
        max_skip_steps=config.max_skip_steps,
        retention_ratio=config.retention_ratio,
        num_inference_steps=config.num_inference_steps,
        mag_ratios=list(config.mag_ratios),
    )


def _check_threshold(threshold: float) -> None:
    if not (math.isfinite(threshold) and threshold > 0):
        raise ValueError(f"threshold must be positive, got {threshold}")
