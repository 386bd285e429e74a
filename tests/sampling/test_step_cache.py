"""What all step caches have in common."""

from __future__ import annotations

import json
import math

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers import MagCacheConfig as DiffusersMagCacheConfig
from diffusers.hooks.hooks import HookRegistry, ModelHook

from osp_cli.sampling.mag_calibration import calibrate_mag_ratios
from osp_cli.sampling.step_cache import (
    FBCacheConfig,
    MagCacheConfig,
    NoCacheConfig,
    TeaCacheConfig,
    enable_step_cache,
)

STEPS = 12
TEACACHE = TeaCacheConfig(
    coefficients=(1.0, 0.0),
    source="the distance itself",
    num_inference_steps=STEPS,
    threshold=0.6,
    num_start_steps=3,
)
FBCACHE = FBCacheConfig(threshold=0.3)
MAGCACHE = MagCacheConfig(num_inference_steps=STEPS, mag_ratios=(1.0, 0.99), threshold=0.05)

every_cache = pytest.mark.parametrize(
    "config", [TEACACHE, FBCACHE, MAGCACHE], ids=["teacache", "fbcache", "magcache"]
)


def hooked_parts(transformer):
    """Names of the parts that carry a hook of diffusers' registry."""
    return [
        name
        for name, part in transformer.named_modules()
        if hasattr(part, "_diffusers_hook") and part._diffusers_hook.hooks
    ]


def forwards(transformer):
    return {name: part.forward for name, part in transformer.named_modules()}


@every_cache
def test_the_counts_are_what_happened(transformer, denoise, config):
    with enable_step_cache(transformer, config) as cache:
        _, ran = denoise(transformer)
    assert 0 < cache.skipped_steps < STEPS
    assert cache.computed_steps == int(ran[:, 0].sum())
    assert cache.skipped_steps == STEPS - cache.computed_steps
    assert cache.computed_passes == int(ran.sum())
    assert cache.skipped_passes == int((~ran).sum())


@every_cache
def test_a_cached_clip_is_another_clip_but_not_a_strange_one(transformer, denoise, config):
    plain, _ = denoise(transformer)
    with enable_step_cache(transformer, config):
        cached, _ = denoise(transformer)
    error = (cached - plain).norm() / plain.norm()
    assert 0 < error < 0.2


@every_cache
def test_afterwards_the_model_is_as_before(transformer, denoise, config):
    plain, before = denoise(transformer)[0], forwards(transformer)
    with enable_step_cache(transformer, config):
        assert hooked_parts(transformer)
        denoise(transformer)
    assert not hooked_parts(transformer)
    assert forwards(transformer) == before
    assert torch.equal(denoise(transformer)[0], plain)


@every_cache
def test_a_failure_inside_leaves_nothing_behind(transformer, denoise, config):
    plain = denoise(transformer)[0]
    with pytest.raises(KeyboardInterrupt), enable_step_cache(transformer, config):
        denoise(transformer, only=5)
        raise KeyboardInterrupt
    assert not hooked_parts(transformer)
    assert torch.equal(denoise(transformer)[0], plain)


@every_cache
def test_a_reset_makes_clips_repeat(transformer, denoise, config):
    with enable_step_cache(transformer, config) as cache:
        first, _ = denoise(transformer)
        counts = (cache.computed_passes, cache.skipped_passes)
        cache.reset()
        # Broken off: without the reset below the rest of this clip would leak into the next.
        denoise(transformer, seed=2, only=7)
        cache.reset()
        assert (cache.computed_passes, cache.skipped_passes) == (0, 0)
        again, _ = denoise(transformer)
        assert torch.equal(again, first)
        assert (cache.computed_passes, cache.skipped_passes) == counts


@every_cache
def test_the_report_outlives_the_cache(transformer, denoise, config):
    with enable_step_cache(transformer, config) as cache:
        denoise(transformer)
    skipped, decided = cache.skipped_steps, len(cache.decisions)
    denoise(transformer)
    assert cache.skipped_steps == skipped > 0
    assert decided == (STEPS if config is TEACACHE else 0)
    cache.reset()
    assert cache.skipped_steps == 0


@every_cache
@pytest.mark.parametrize("offload_first", [True, False], ids=["offload-first", "cache-first"])
@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
def test_group_offload_changes_nothing(make_transformer, denoise, config, offload_first, level):
    def offload(transformer):
        extra = {"num_blocks_per_group": 2} if level == "block_level" else {}
        cpu = torch.device("cpu")
        transformer.enable_group_offload(
            onload_device=cpu, offload_device=cpu, offload_type=level, **extra
        )

    transformer = make_transformer()
    uncached = denoise(transformer)[0]
    with enable_step_cache(transformer, config) as cache:
        expected, ran = denoise(transformer)
    if offload_first:
        offload(transformer)
    with enable_step_cache(transformer, config) as offloaded:
        if not offload_first:
            offload(transformer)
        got, ran_offloaded = denoise(transformer)
    assert torch.equal(got, expected)
    assert torch.equal(ran_offloaded, ran)
    assert offloaded.skipped_passes == cache.skipped_passes
    assert torch.equal(denoise(transformer)[0], uncached)


@every_cache
def test_a_hook_removed_from_below_does_not_take_the_cache_along(transformer, denoise, config):
    with enable_step_cache(transformer, config):
        expected, ran = denoise(transformer)
    # What group offloading with streams does: a hook of the first pass only, below the cache.
    for block in transformer.blocks:
        HookRegistry.check_if_exists_or_initialize(block).register_hook(ModelHook(), "tracker")
    with enable_step_cache(transformer, config):
        for block in transformer.blocks:
            block._diffusers_hook.remove_hook("tracker", recurse=False)
        got, ran_after = denoise(transformer)
    assert torch.equal(ran_after, ran)
    assert torch.equal(got, expected)


def test_no_cache_does_not_touch_the_model(transformer, denoise):
    plain, before = denoise(transformer)[0], forwards(transformer)
    with enable_step_cache(transformer, NoCacheConfig()) as cache:
        assert not hooked_parts(transformer)
        assert forwards(transformer) == before
        got, ran = denoise(transformer)
    assert torch.equal(got, plain)
    assert ran.all()
    assert cache.skipped_steps == cache.skipped_passes == 0
    cache.reset()


@every_cache
def test_calls_without_a_context_are_refused(transformer, config):
    arguments = torch.zeros(1, 4, 2, 4, 6), torch.tensor([1.0]), torch.zeros(1, 3, 8)
    with enable_step_cache(transformer, config), pytest.raises(ValueError, match="cache context"):
        transformer(*arguments)


@every_cache
@pytest.mark.parametrize("inner", [TEACACHE, FBCACHE], ids=["teacache", "fbcache"])
def test_a_second_cache_is_refused_and_the_first_goes_on(transformer, denoise, config, inner):
    with enable_step_cache(transformer, config):
        expected, _ = denoise(transformer)
    with enable_step_cache(transformer, config) as cache:
        with pytest.raises(ValueError, match="already"), enable_step_cache(transformer, inner):
            pass
        assert torch.equal(denoise(transformer)[0], expected)
        assert cache.skipped_steps


def test_a_cache_enabled_elsewhere_is_left_alone(transformer):
    transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="already"), enable_step_cache(transformer, TEACACHE):
        pass
    assert transformer.is_cache_enabled


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (FBCACHE, FirstBlockCacheConfig(threshold=0.3)),
        (
            MAGCACHE,
            DiffusersMagCacheConfig(
                num_inference_steps=STEPS, mag_ratios=[1.0, 0.99], threshold=0.05
            ),
        ),
    ],
    ids=["fbcache", "magcache"],
)
def test_the_caches_of_diffusers_are_its_own(make_transformer, denoise, ours, theirs):
    transformer = make_transformer()
    transformer.enable_cache(theirs)
    expected, ran = denoise(transformer)
    with enable_step_cache(plain := make_transformer(), ours):
        got, ran_here = denoise(plain)
    assert torch.equal(got, expected)
    assert torch.equal(ran_here, ran)


def test_the_first_block_cache_needs_two_blocks(make_transformer):
    transformer = make_transformer(num_layers=1)
    with pytest.raises(ValueError, match="second block"), enable_step_cache(transformer, FBCACHE):
        pass
    assert not hooked_parts(transformer)


def test_magcache_without_ratios_is_refused():
    with pytest.raises(ValueError, match="calibrate_mag_ratios"):
        MagCacheConfig(num_inference_steps=STEPS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FBCacheConfig(threshold=0.0), "positive"),
        (lambda: FBCacheConfig(threshold=math.nan), "positive"),
        (lambda: MagCacheConfig(num_inference_steps=0, mag_ratios=(1.0,)), "at least 1"),
        (lambda: MagCacheConfig(num_inference_steps=9, mag_ratios=(0.0,)), "positive"),
        (
            lambda: MagCacheConfig(num_inference_steps=9, mag_ratios=(1.0,), max_skip_steps=0),
            "max_skip_steps",
        ),
        (
            lambda: MagCacheConfig(num_inference_steps=9, mag_ratios=(1.0,), retention_ratio=2.0),
            "retention_ratio",
        ),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_calibration_measures_what_diffusers_prints(make_transformer, denoise, capsys):
    plain = make_transformer()
    with calibrate_mag_ratios(plain) as calibration:
        got, _ = denoise(plain)
    assert not capsys.readouterr().out
    transformer = make_transformer()
    transformer.enable_cache(DiffusersMagCacheConfig(num_inference_steps=STEPS, calibrate=True))
    assert torch.equal(denoise(transformer)[0], got)
    lists = [row for row in capsys.readouterr().out.splitlines() if row.startswith("[1.0,")]
    # One per branch of guidance, the conditional one first.
    assert len(lists) == 2
    assert calibration.mag_ratios == pytest.approx(json.loads(lists[0]))
    assert calibration.mag_ratios != pytest.approx(json.loads(lists[1]))


def test_calibrated_ratios_make_a_cache(transformer, denoise):
    with calibrate_mag_ratios(transformer) as calibration:
        plain, _ = denoise(transformer)
    config = MagCacheConfig(num_inference_steps=STEPS, mag_ratios=calibration.mag_ratios)
    with enable_step_cache(transformer, config) as cache:
        cached, _ = denoise(transformer)
    assert cache.skipped_steps
    assert (cached - plain).norm() / plain.norm() < 0.2


def test_calibration_and_cache_exclude_each_other(transformer):
    with (
        enable_step_cache(transformer, TEACACHE),
        pytest.raises(ValueError, match="without a step cache"),
        calibrate_mag_ratios(transformer),
    ):
        pass


def test_calibration_leaves_the_model_as_before(transformer, denoise):
    plain, before = denoise(transformer)[0], forwards(transformer)
    with calibrate_mag_ratios(transformer):
        assert torch.equal(denoise(transformer)[0], plain)
    assert not hooked_parts(transformer)
    assert forwards(transformer) == before
