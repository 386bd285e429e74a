"""Step caches: skip denoising work that would hardly change the result.

Four kinds: none, TeaCache (ours, see `teacache`), and diffusers' first-block cache and MagCache.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from osp_cli.sampling.diffusers_state import (
    fbcache_state,
    magcache_state,
    restore_fbcache,
    restore_magcache,
)
from osp_cli.sampling.hooks import (
    LEADING_CONTEXT,
    ContextHook,
    below,
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
    restore_teacache,
    teacache_state,
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

_Save = Callable[[Any], dict[str, Tensor]]
_Restore = Callable[[Any, Mapping[str, Tensor], torch.device], None]
# Also what the tensors of a saved state are called, so that one is not taken for another's.
_STATE_OF: dict[type, tuple[str, _Save, _Restore]] = {
    TeaCacheConfig: ("teacache", teacache_state, restore_teacache),
    FBCacheConfig: ("fbcache", fbcache_state, restore_fbcache),
    MagCacheConfig: ("magcache", magcache_state, restore_magcache),
}


class StepCache:
    """What a cache has done since it was enabled or last reset; readable after it is gone.

    A step means its leading conditional pass; guidance and further prompts add passes, on which the
    caches of diffusers decide separately. Without a cache nothing is counted.

    Attributes:
        decisions: TeaCache's, one per step, with its distances; empty for the other kinds.
    """

    def __init__(self, config: StepCacheConfig | None = None) -> None:
        self.decisions: list[TeaCacheDecision] = []
        # Passes by context: those that reached the model, and those that reached its last block.
        self.entered: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        # How many of the latter there were when the last step began.
        self._finished_before = 0
        self._config = config or NoCacheConfig()
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
    def last_step_skipped(self) -> bool:
        """Whether the last step so far used an earlier result; False before the first."""
        return self.skipped_steps > 0 and self.computed_steps == self._finished_before

    @property
    def computed_passes(self) -> int:
        """Model calls, of all prompts and of guidance, that ran through all blocks."""
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
        self._forget_counts()

    def state(self) -> dict[str, Tensor]:
        """All that the cache remembers between two steps, its counts included.

        With it, the sampler's state and the latents, another process goes on to the very same
        bits. Call it after all passes of a step, while the cache is enabled.

        Returns:
            Tensors that safetensors can hold, not copied; empty without a cache. The largest is one
            tensor of hidden states (two for the first-block cache) per context.

        Raises:
            ValueError: The cache is not enabled any more.
        """
        if isinstance(self._config, NoCacheConfig):
            return {}
        kind, save, _ = _STATE_OF[type(self._config)]
        state = save(self._enabled())
        for context, entered in self.entered.items():
            state[f"passes.{context}"] = torch.tensor([entered, self.finished[context]])
        state["finished_before"] = torch.tensor(self._finished_before)
        return {f"{kind}.{name}": tensor for name, tensor in state.items()}

    def restore(self, state: Mapping[str, Tensor], device: torch.device | None = None) -> None:
        """Go on as the cache whose `state` this is, which had the same settings.

        Args:
            state: May have come from a file.
            device: Where the model computes; None means where its weights are.

        Raises:
            ValueError: The state is another cache's or not whole, or this one is not enabled.
        """
        if isinstance(self._config, NoCacheConfig):
            if state:
                raise ValueError("the state of a step cache was given, but there is none")
            return
        kind, _, restore = _STATE_OF[type(self._config)]
        transformer: Any = self._enabled()
        own = below(state, kind)
        try:
            restore(transformer, own, device or transformer.device)
            self._finished_before = int(own["finished_before"].item())
        except KeyError as error:
            self.reset()
            raise ValueError(f"the saved state of {kind} lacks {error}") from error
        self.entered.clear()
        self.finished.clear()
        for context, counts in below(own, "passes").items():
            self.entered[context], self.finished[context] = counts.tolist()

    def _enabled(self) -> nn.Module:
        if self._transformer is None:
            raise ValueError("the step cache is not enabled")
        return self._transformer

    def _forget_counts(self) -> None:
        self.entered.clear()
        self.finished.clear()
        self._finished_before = 0

    def _enter(self, context: str) -> None:
        """A pass begins."""
        if context == LEADING_CONTEXT:
            self._finished_before = self.computed_steps
        self.entered[context] += 1

    def _finish(self, context: str) -> None:
        """A pass has come to the last block."""
        self.finished[context] += 1


@contextmanager
def enable_step_cache(transformer: Any, config: StepCacheConfig) -> Iterator[StepCache]:
    """Cache the steps of a Wan transformer inside a `with`; outside, the model is as it was.

    Every call of the transformer must stand inside `transformer.cache_context("cond")`, in that of
    a further prompt (`conditional_context`) or in `("uncond")`; "cond" is the first in its step.
    Group offloading may be enabled before or after; before is faster, since skipped blocks are then
    not even loaded.

    Raises:
        ValueError: A cache is enabled already, or the first-block cache meets a single block.
    """
    cache = StepCache(config)
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


class _PassHook(ContextHook):
    """Says when a pass reaches its module, and in which context."""

    def __init__(self, reached: Callable[[str], None]) -> None:
        super().__init__()
        self.reached = reached

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.reached(self.context)
        return args, kwargs


def _count_passes(transformer: Any, cache: StepCache) -> None:
    """Register what must be in place before the cache: counters, and a floor under its hooks.

    The floor is a hook that does nothing. When a hook right below one with `new_forward` is
    removed, diffusers 0.42 overwrites that `new_forward`; group offloading with streams removes
    such a hook after the first pass, and would silently take the cache off the blocks.
    """
    register(transformer.condition_embedder, _PassHook(cache._enter), _PASS_HOOK)
    for block in transformer.blocks[:-1]:
        register(block, ModelHook(), _FLOOR_HOOK)
    # Inside the cache's own hook, it sees only what is really computed.
    register(transformer.blocks[-1], _PassHook(cache._finish), _FLOOR_HOOK)
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
