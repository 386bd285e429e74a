"""Several prompts for one clip: the weighted mean of their velocities, and no more than that."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from osp_cli.pipelines.flash_i2v import SamplingState
from osp_cli.registry import find_model
from osp_cli.sampling.step_cache import (
    FBCacheConfig,
    MagCacheConfig,
    NoCacheConfig,
    TeaCacheConfig,
)
from osp_cli.style_mix import WeightedPrompt, read_style

STYLED, OTHER, PLAIN = "ghibli style, pan left", "ink painting style, snow falls fast", "pan left"
STEPS = 6
CACHES = {
    "none": NoCacheConfig(),
    "teacache": TeaCacheConfig(
        coefficients=(1.0, 0.0),
        source="a test",
        num_inference_steps=STEPS,
        threshold=1e9,
        num_start_steps=2,
    ),
    "fbcache": FBCacheConfig(threshold=5.0),
    "magcache": MagCacheConfig(
        num_inference_steps=STEPS, mag_ratios=(1.0, 0.99), threshold=0.05, retention_ratio=0.1
    ),
}
every_cache = pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
every_guidance = pytest.mark.parametrize("scale", [1.0, 3.0], ids=["unguided", "guided"])


def mixed(inputs, *prompts, **changes):
    """The inputs with these `(prompt, weight)` pairs."""
    (first, _), *also = prompts
    return replace(
        inputs, prompt=first, also=tuple(WeightedPrompt(*pair) for pair in also), **changes
    )


@torch.no_grad()
def latents_of(pipeline, inputs, state=None):
    with pipeline.sampling(inputs, pipeline.condition(inputs), state) as sampling:
        for _ in sampling.steps():
            pass
    return sampling.latents


@torch.no_grad()
def velocity_of(pipeline, inputs):
    noise = pipeline.initial_noise(inputs)
    conditions = pipeline.condition(inputs)
    time = torch.tensor(900.0)
    return pipeline.velocity(noise, time, conditions, noise, inputs.guidance_scale)


@every_guidance
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.3, 0.5), (0.9, 0.1)])
def test_the_velocity_is_the_weighted_mean(pipeline, inputs, scale, weights):
    inputs = replace(inputs, guidance_scale=scale)
    texts = (STYLED, OTHER, PLAIN)[: len(weights)]
    alone = [velocity_of(pipeline, replace(inputs, prompt=text)) for text in texts]
    mean = sum(weight * v for weight, v in zip(weights, alone, strict=True))
    made = velocity_of(pipeline, mixed(inputs, *zip(texts, weights, strict=True)))
    torch.testing.assert_close(made, mean)
    assert not torch.allclose(made, alone[0])


def test_all_passes_of_a_step_differ_in_the_prompt_alone(pipeline, inputs, calls):
    latents_of(pipeline, mixed(inputs, (STYLED, 0.5), (OTHER, 0.2), (PLAIN, 0.3)))
    # Three prompts and guidance, three steps.
    assert len(calls) == 4 * 3
    for start in range(0, 12, 4):
        first, *others = calls[start : start + 4]
        for other in others:
            assert torch.equal(first.hidden_states, other.hidden_states)
            assert torch.equal(first.features, other.features)
            assert torch.equal(first.timestep, other.timestep)
            assert not torch.allclose(first.context, other.context)
            # The picture stands in all of them.
            assert torch.equal(first.context[:, 96:], other.context[:, 96:])


@every_cache
@every_guidance
def test_a_prompt_mixed_with_itself_is_that_prompt(pipeline, inputs, cache, scale):
    """Each cache treats all prompts of a step alike."""
    inputs = replace(inputs, num_inference_steps=STEPS, step_cache=cache, guidance_scale=scale)
    alone = latents_of(pipeline, replace(inputs, prompt=STYLED))
    # A half is exact in binary: not even a bit may differ.
    assert torch.equal(latents_of(pipeline, mixed(inputs, (STYLED, 0.5), (STYLED, 0.5))), alone)


def test_next_to_nothing_of_a_style_is_the_unstyled_clip(pipeline, inputs):
    mix = read_style("ghibli:1e-300").prompts_for(find_model("osp-mini"), PLAIN)
    plain = latents_of(pipeline, replace(inputs, prompt=PLAIN))
    torch.testing.assert_close(latents_of(pipeline, mixed(inputs, *mix)), plain)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_the_distance_to_the_unstyled_clip_grows_with_the_weight(pipeline, inputs, steps):
    inputs = replace(inputs, num_inference_steps=steps, guidance_scale=1.0)
    plain = latents_of(pipeline, replace(inputs, prompt=PLAIN))
    clips = [
        latents_of(pipeline, mixed(inputs, (STYLED, weight), (PLAIN, 1 - weight)))
        for weight in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    clips.append(latents_of(pipeline, replace(inputs, prompt=STYLED)))
    distances = [(clip - plain).norm().item() for clip in clips]
    assert all(near < far for near, far in pairwise([0.0, *distances]))
    # No jump at either end: the weights are those of a mean.
    assert distances[0] == pytest.approx(0.1 * distances[-1], rel=0.2)
    assert distances[-2] == pytest.approx(0.9 * distances[-1], rel=0.2)


def test_a_mixture_of_two_lies_between_them(pipeline, inputs):
    one = latents_of(pipeline, replace(inputs, prompt=STYLED))
    other = latents_of(pipeline, replace(inputs, prompt=OTHER))
    between = latents_of(pipeline, mixed(inputs, (STYLED, 0.5), (OTHER, 0.5)))
    apart = (one - other).norm()
    assert 0.3 * apart < (between - one).norm() < 0.7 * apart
    assert 0.3 * apart < (between - other).norm() < 0.7 * apart
    # Near the straight line, not somewhere else at those distances.
    assert (between - (one + other) / 2).norm() < 0.2 * apart


@every_cache
@every_guidance
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_mixture_goes_on_to_the_same_bits(pipeline, inputs, cache, scale, step):
    changes = {"num_inference_steps": STEPS, "step_cache": cache, "guidance_scale": scale}
    inputs = mixed(inputs, (STYLED, 0.3), (OTHER, 0.5), (PLAIN, 0.2), sampler="unipc", **changes)
    expected = latents_of(pipeline, inputs)
    with torch.no_grad(), pipeline.sampling(inputs, pipeline.condition(inputs)) as sampling:
        for _ in sampling.steps():
            if sampling.step == step:
                break
        state = sampling.state()
    # As from a file: new tensors, nothing shared.
    state = SamplingState(
        state.latents.clone(),
        state.step,
        {name: tensor.clone() for name, tensor in state.solver.items()},
        {name: tensor.clone() for name, tensor in state.cache.items()},
    )
    assert torch.equal(latents_of(pipeline, inputs, state), expected)


@pytest.mark.parametrize("kind", ["teacache", "fbcache", "magcache"])
def test_a_cache_remembers_each_prompt_by_itself(pipeline, inputs, kind):
    """What one prompt has left behind is not used for another: that would mix up the styles."""
    changes = {"num_inference_steps": STEPS, "step_cache": CACHES[kind]}
    inputs = mixed(inputs, (STYLED, 0.3), (OTHER, 0.5), (PLAIN, 0.2), **changes)
    with torch.no_grad(), pipeline.sampling(inputs, pipeline.condition(inputs)) as sampling:
        for _ in sampling.steps():
            if sampling.step == 3:
                break
        state = sampling.state().cache
    part = "tail" if kind == "fbcache" else "residual"
    contexts = ("cond", "cond1", "cond2", "uncond")
    kept = [state[f"{kind}.{part}.{context}"] for context in contexts]
    for index, one in enumerate(kept):
        assert not any(torch.equal(one, other) for other in kept[index + 1 :])
    assert set(sampling.cache.entered) == {*contexts}
    assert sampling.cache.entered.total() == 4 * 3


# --- weights that change while the clip plays ----------------------------------------------------

RISING, FALLING = (0.0, 1.0), (1.0, 0.0)


@pytest.fixture
def long(inputs):
    """Five latent frames."""
    return replace(inputs, num_frames=17)


@every_guidance
def test_each_latent_frame_has_its_own_weights(pipeline, long, scale):
    long = replace(long, guidance_scale=scale)
    alone = [velocity_of(pipeline, replace(long, prompt=text)) for text in (STYLED, OTHER, PLAIN)]
    weights = [(1.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.0, 0.5, 0.5)]
    made = velocity_of(pipeline, mixed(long, *zip((STYLED, OTHER, PLAIN), weights, strict=True)))
    for frame, left in enumerate((1, 0.5, 0, 0, 0)):
        shares = (left, (1 - left) / 2, (1 - left) / 2)
        mean = sum(share * v[:, :, frame] for share, v in zip(shares, alone, strict=True))
        torch.testing.assert_close(made[:, :, frame], mean)
    assert not torch.allclose(alone[0], alone[1])


@every_cache
@every_guidance
@pytest.mark.parametrize("sampler", ["euler", "unipc"])
def test_both_ends_of_a_morph_are_the_pure_styles_to_the_bit(
    pipeline, long, play, cache, scale, sampler
):
    """Where each latent frame is made by itself; caches sit on blocks, which are not there."""

    def velocity(hidden_states, timestep, context, _features):
        return hidden_states * 0.3 + context.float().mean() + timestep / 1000

    play(velocity)
    long = replace(long, guidance_scale=scale, sampler=sampler)
    first = latents_of(pipeline, replace(long, prompt=STYLED))
    last = latents_of(pipeline, replace(long, prompt=OTHER))
    made = latents_of(pipeline, mixed(long, (STYLED, FALLING), (OTHER, RISING)))
    assert torch.equal(made[:, :, 0], first[:, :, 0])
    assert torch.equal(made[:, :, -1], last[:, :, -1])
    assert not torch.equal(first, last)
    for frame in (1, 2, 3):
        mean = first[:, :, frame].lerp(last[:, :, frame], frame / 4)
        torch.testing.assert_close(made[:, :, frame], mean)


@every_cache
def test_a_weight_that_does_not_change_is_a_plain_mixture(pipeline, long, cache):
    long = replace(long, num_inference_steps=STEPS, step_cache=cache)
    plain = latents_of(pipeline, mixed(long, (STYLED, 0.7), (OTHER, 0.3)))
    made = latents_of(pipeline, mixed(long, (STYLED, (0.7, 0.7)), (OTHER, (0.3, 0.3))))
    torch.testing.assert_close(made, plain)


@every_cache
def test_a_morph_takes_a_pass_for_each_style_and_goes_on_to_the_same_bits(pipeline, long, cache):
    long = replace(long, num_inference_steps=STEPS, step_cache=cache, guidance_scale=2.0)
    long = mixed(long, (STYLED, FALLING), (OTHER, RISING))
    expected = latents_of(pipeline, long)
    with torch.no_grad(), pipeline.sampling(long, pipeline.condition(long)) as sampling:
        for _ in sampling.steps():
            if sampling.step == 3:
                break
        state = sampling.state()
        assert set(sampling.cache.entered) <= {"cond", "cond1", "uncond"}
    assert torch.equal(latents_of(pipeline, long, state), expected)


def test_a_clip_of_a_longer_video_has_the_weights_of_its_part(pipeline, long):
    """What a window of it would be given: the middle half of a way from one style to another."""
    window = mixed(long, (STYLED, FALLING), (OTHER, RISING), span=(0.25, 0.75))
    [(_, weights)] = pipeline.condition(window).also
    assert weights == (0.25, 0.375, 0.5, 0.625, 0.75)
    whole = replace(window, span=(0.0, 1.0))
    assert pipeline.condition(whole).also[0][1] == (0.0, 0.25, 0.5, 0.75, 1.0)
    [(_, alone)] = pipeline.condition(replace(whole, num_frames=1)).also
    assert alone == (0.0,)
    assert latents_of(pipeline, replace(whole, num_frames=1)).shape[2] == 1


@pytest.mark.parametrize("span", [(0.5, 0.4), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_an_impossible_span_is_refused(inputs, span):
    with pytest.raises(ValueError, match="span must lie in 0 to 1"):
        replace(inputs, span=span)


@pytest.mark.parametrize(
    "weights",
    [
        (1.1,),
        (0.5, 0.6),
        (-0.1,),
        (0.0, 0.5),
        (float("nan"),),
        ((0.0, 0.0),),
        ((0.0, 1.1),),
        ((0.0, 1.0, 0.0), (0.2, 0.2)),
        ((0.5, -0.5),),
    ],
)
def test_impossible_weights_are_refused(inputs, weights):
    with pytest.raises(ValueError, match="add up to 1 at most"):
        replace(inputs, also=tuple(WeightedPrompt("x", weight) for weight in weights))
