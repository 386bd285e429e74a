"""A cached run that is broken off goes on to the very same bits."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from osp_cli.sampling.step_cache import (
    FBCacheConfig,
    MagCacheConfig,
    NoCacheConfig,
    TeaCacheConfig,
    enable_step_cache,
)

STEPS = 12
# Settings under which each cache skips some steps and computes others, late ones too.
TEACACHE = TeaCacheConfig(
    coefficients=(1.0, 0.0),
    source="the distance itself",
    num_inference_steps=STEPS,
    threshold=0.6,
    num_start_steps=2,
)
FBCACHE = FBCacheConfig(threshold=0.3)
MAGCACHE = MagCacheConfig(
    num_inference_steps=STEPS,
    mag_ratios=(1.0, 0.97, 1.02, 0.96, 0.99),
    threshold=0.05,
    retention_ratio=0.1,
)
CACHES = {"teacache": TEACACHE, "fbcache": FBCACHE, "magcache": MAGCACHE}

every_cache = pytest.mark.parametrize("config", CACHES.values(), ids=CACHES)
every_guidance = pytest.mark.parametrize("guided", [True, False], ids=["guided", "unguided"])


def saved_run(transformer, denoise, config, guided=True):
    """A whole run, with what a file would hold after each of its steps."""
    files, flags = [], []
    with enable_step_cache(transformer, config) as cache:

        def keep(step, latents):
            files.append(save({"latents": latents, **cache.state()}))
            flags.append(cache.last_step_skipped)

        outputs, ran = denoise(transformer, guided=guided, after_step=keep)
    return outputs, ran, cache, files, flags


@every_cache
@every_guidance
def test_a_cached_run_resumes_to_the_same_bits_after_any_step(
    make_transformer, denoise, config, guided
):
    outputs, ran, whole, files, _ = saved_run(make_transformer(), denoise, config, guided)
    assert 0 < whole.skipped_steps < STEPS
    transformer = make_transformer()
    for done, file in enumerate(files, start=1):
        state = load(file)
        latents = state.pop("latents")
        with enable_step_cache(transformer, config) as cache:
            cache.restore(state)
            if done < STEPS:
                rest, ran_after = denoise(transformer, guided=guided, start=(done, latents))
                assert torch.equal(ran_after, ran[done:]), done
                assert torch.equal(rest, outputs[done:]), done
        # The report is of the whole run too.
        assert cache.entered == whole.entered
        assert cache.finished == whole.finished
        assert [d.computed for d in cache.decisions] == [d.computed for d in whole.decisions]
        assert cache.decisions == whole.decisions
        assert cache.last_step_skipped == whole.last_step_skipped


@every_cache
def test_without_its_state_a_resumed_run_is_another(make_transformer, denoise, config):
    outputs, _, _, files, _ = saved_run(make_transformer(), denoise, config)
    transformer, differences = make_transformer(), 0
    for done, file in enumerate(files[:-1], start=1):
        with enable_step_cache(transformer, config):
            rest, _ = denoise(transformer, start=(done, load(file)["latents"]))
            differences += not torch.equal(rest, outputs[done:])
    # Not after each: where the next steps are computed anyway, nothing is missed.
    assert differences >= STEPS // 3


@every_cache
def test_restoring_forgets_what_was_there(make_transformer, denoise, config):
    outputs, _, _, files, _ = saved_run(make_transformer(), denoise, config)
    transformer, state = make_transformer(), load(files[5])
    latents = state.pop("latents")
    with enable_step_cache(transformer, config) as cache:
        denoise(transformer, seed=7, only=9)
        cache.restore(state)
        rest, _ = denoise(transformer, start=(6, latents))
    assert torch.equal(rest, outputs[6:])


@every_cache
def test_a_resumed_cache_begins_the_next_clip_afresh(make_transformer, denoise, config):
    outputs, _, _, files, _ = saved_run(make_transformer(), denoise, config)
    transformer, state = make_transformer(), load(files[5])
    latents = state.pop("latents")
    with enable_step_cache(transformer, config) as cache:
        cache.restore(state)
        denoise(transformer, start=(6, latents))
        cache.reset()
        assert torch.equal(denoise(transformer)[0], outputs)


@every_cache
def test_the_flag_says_which_steps_were_skipped(make_transformer, denoise, config):
    _, ran, cache, _, flags = saved_run(make_transformer(), denoise, config)
    assert flags == [not computed for computed in ran[:, 0].tolist()]
    assert True in flags
    assert False in flags
    cache.reset()
    assert not cache.last_step_skipped


def test_no_cache_has_no_state(transformer, denoise):
    with enable_step_cache(transformer, NoCacheConfig()) as cache:
        denoise(transformer, only=3)
        assert cache.state() == {}
        cache.restore({})
        assert not cache.last_step_skipped
        with pytest.raises(ValueError, match="there is none"):
            cache.restore({"teacache.residual.cond": torch.zeros(1)})


def refuses(transformer, denoise, config, state, expected):
    """Whether restoring is refused, and the cache then as new."""
    with enable_step_cache(transformer, config) as cache:
        with pytest.raises(ValueError, match="saved state of"):
            cache.restore(state)
        return torch.equal(denoise(transformer)[0], expected)


@every_cache
def test_a_state_that_is_not_its_own_is_refused(make_transformer, denoise, config):
    transformer = make_transformer()
    with enable_step_cache(transformer, config):
        expected, _ = denoise(transformer)
    for other in CACHES.values():
        if other is not config:
            state = load(saved_run(make_transformer(), denoise, other)[3][5])
            assert refuses(transformer, denoise, config, state, expected)


@pytest.mark.parametrize(
    ("config", "lacking"),
    [
        (TEACACHE, "teacache.gate.counts"),
        (TEACACHE, "teacache.gate.decisions"),
        (TEACACHE, "teacache.clip.uncond"),
        (FBCACHE, "fbcache.tail.uncond"),
        (FBCACHE, "fbcache.finished_before"),
        (MAGCACHE, "magcache.sums.cond"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_state_that_is_not_whole_is_refused(make_transformer, denoise, config, lacking):
    transformer = make_transformer()
    with enable_step_cache(transformer, config):
        expected, _ = denoise(transformer)
    state = load(saved_run(make_transformer(), denoise, config)[3][5])
    del state[lacking]
    assert refuses(transformer, denoise, config, state, expected)


@every_cache
def test_a_cache_that_is_over_has_no_state(transformer, config):
    with enable_step_cache(transformer, config) as cache:
        pass
    with pytest.raises(ValueError, match="not enabled"):
        cache.state()
    with pytest.raises(ValueError, match="not enabled"):
        cache.restore({})


@every_cache
def test_group_offload_does_not_stand_in_the_way(make_transformer, denoise, config):
    outputs, _, _, files, _ = saved_run(make_transformer(), denoise, config)
    transformer, state = make_transformer(), load(files[6])
    latents = state.pop("latents")
    cpu = torch.device("cpu")
    transformer.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="leaf_level"
    )
    with enable_step_cache(transformer, config) as cache:
        cache.restore(state)
        rest, _ = denoise(transformer, start=(7, latents))
    assert torch.equal(rest, outputs[7:])
