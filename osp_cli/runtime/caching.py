"""From what was asked of a step cache to its settings, with the figures of the model's card."""

from __future__ import annotations

from osp_cli.dials import StepCacheChoice
from osp_cli.errors import InvalidRequestError
from osp_cli.registry import ModelSpec
from osp_cli.sampling.step_cache import (
    FBCacheConfig,
    MagCacheConfig,
    NoCacheConfig,
    StepCacheConfig,
    TeaCacheConfig,
)

# The paper's (section 6.4), and MagCache's own in diffusers.
TEACACHE_THRESHOLD = 0.10
MAGCACHE_THRESHOLD = 0.06


def with_threshold(spec: ModelSpec, cache: StepCacheChoice) -> StepCacheChoice:
    """The same cache with the threshold that it would have on a model; none stays none.

    Raises:
        InvalidRequestError: it does not work there.
    """
    config = step_cache_config(spec, *cache, num_start_steps=1, num_inference_steps=1)
    return cache._replace(threshold=getattr(config, "threshold", None))


def step_cache_config(
    spec: ModelSpec,
    kind: str,
    threshold: float | None,
    num_start_steps: int,
    num_inference_steps: int,
) -> StepCacheConfig:
    """Settings for `enable_step_cache`.

    Args:
        spec: The model's card.
        kind: `none`, `teacache`, `fbcache` or `magcache`.
        threshold: Above it a step is computed; None takes the card's, or else the cache's own.
        num_start_steps: Steps from the first on that are always computed. The first-block cache
            has no such notion and takes no notice: it looks at every pass by itself.
        num_inference_steps: Of the sampler.

    Raises:
        InvalidRequestError: The kind is unknown, or the card lacks what it needs.
    """
    problem = spec.cache_problem(kind)
    if problem is not None:
        raise InvalidRequestError(problem, hint="--cache none, or another cache or model")
    if kind == "none":
        return NoCacheConfig()
    if kind == "fbcache":
        return FBCacheConfig() if threshold is None else FBCacheConfig(threshold=threshold)
    if kind == "teacache":
        assert spec.teacache is not None
        return TeaCacheConfig(
            coefficients=spec.teacache.values,
            source=spec.teacache.source,
            num_inference_steps=num_inference_steps,
            threshold=threshold or spec.teacache.threshold or TEACACHE_THRESHOLD,
            num_start_steps=num_start_steps,
        )
    assert kind == "magcache" and spec.magcache is not None
    return MagCacheConfig(
        mag_ratios=spec.magcache.values,
        num_inference_steps=num_inference_steps,
        threshold=threshold or spec.magcache.threshold or MAGCACHE_THRESHOLD,
        # A share of the steps there, rounded back to the same number.
        retention_ratio=min(1.0, num_start_steps / num_inference_steps),
    )
