"""Order of operations: what the model sees at every step, and what it must not see."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from osp_cli.events import FramesReady, StageFinished, StageStarted, StepDone
from osp_cli.media.image import to_tensor_values
from osp_cli.models.latents import (
    decode_latents,
    encode_latents,
    uint8_frames,
    with_surroundings,
)
from osp_cli.pipelines import flash_i2v
from osp_cli.pipelines.flash_i2v import SamplingState, decode_frames, decode_glimpse
from osp_cli.sampling.fourier import cutoff_at, fourier_features
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.sampling.step_cache import FBCacheConfig, NoCacheConfig, TeaCacheConfig


def frames_of(pipeline, inputs):
    *_, ready = pipeline(inputs)
    return ready.frames


def first_latents(pipeline, inputs):
    pixels = torch.from_numpy(to_tensor_values(inputs.image))[None, :, None]
    return encode_latents(pipeline.vae, pixels)


# --- events ----------------------------------------------------------------------------------


def test_events_come_in_order_with_their_seconds(pipeline, inputs):
    events = list(pipeline(inputs))
    assert [type(event) for event in events] == [
        StageStarted,
        StageFinished,
        *[StepDone] * 3,
        StageStarted,
        StageFinished,
        FramesReady,
    ]
    assert [e.name for e in events if isinstance(e, StageStarted)] == ["condition", "decode"]
    assert [e.name for e in events if isinstance(e, StageFinished)] == ["condition", "decode"]
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [(step.step, step.num_steps) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert all(e.seconds > 0 for e in events if isinstance(e, StepDone | StageFinished))


@pytest.mark.parametrize(("num_frames", "width", "height"), [(1, 64, 64), (5, 96, 64), (9, 64, 96)])
def test_frames_are_pictures_of_the_asked_size_and_number(
    pipeline, inputs, num_frames, width, height
):
    inputs = replace(
        inputs,
        image=inputs.image.resize((width, height)),
        num_frames=num_frames,
        width=width,
        height=height,
    )
    frames = frames_of(pipeline, inputs)
    assert frames.shape == (num_frames, height, width, 3)
    assert frames.dtype == np.uint8
    assert frames.std() > 1


def test_listeners_keep_their_gradients(pipeline, inputs):
    for _ in pipeline(inputs):
        # The pipeline computes without gradients, but does not switch them off for its caller.
        assert torch.is_grad_enabled()
    with torch.no_grad():
        for _ in pipeline(inputs):
            assert not torch.is_grad_enabled()


def test_closing_after_a_step_stops_the_work(pipeline, inputs, calls):
    run = pipeline(inputs)
    for event in run:
        if isinstance(event, StepDone):
            break
    run.close()
    assert len(calls) == 2
    assert list(run) == []


# --- what the model is given -----------------------------------------------------------------


def test_the_model_sees_the_noise_shifted_by_phi(pipeline, inputs, calls):
    frames_of(pipeline, inputs)
    first = first_latents(pipeline, inputs)
    with torch.no_grad():
        phi = project_first_frame(pipeline.transformer, first)
    assert phi.abs().mean() > 0.01
    noise = pipeline.initial_noise(inputs)
    assert noise.shape == (1, 48, 2, 4, 6)
    torch.testing.assert_close(calls[0].hidden_states, noise - phi, atol=1e-5, rtol=0)
    # Timesteps are 1000 sigma of the shifted grid, unrounded.
    sigmas = torch.linspace(1, 0, 4)[:-1]
    sigmas = 3 * sigmas / (1 + 2 * sigmas)
    times = torch.stack([call.timestep for call in calls[::2]]).flatten()
    torch.testing.assert_close(times, 1000 * sigmas, rtol=1e-5, atol=0)


def test_the_model_sees_the_pictures_detail(pipeline, inputs, calls):
    frames_of(pipeline, inputs)
    first = first_latents(pipeline, inputs)
    expected = fourier_features(first, 0.1, 2)
    for call in calls:
        torch.testing.assert_close(call.features, expected, atol=1e-5, rtol=0)
    assert expected.mean() > 0.01


@pytest.mark.parametrize(("start", "end"), [(0.1, 0.7), (0.9, 0.0), (0.4, 0.4)])
def test_a_ramp_gives_every_step_its_own_detail(pipeline, inputs, calls, monkeypatch, start, end):
    computed = []

    def counted(first, cutoff, num_frames):
        computed.append(cutoff)
        return fourier_features(first, cutoff, num_frames)

    monkeypatch.setattr(flash_i2v, "fourier_features", counted)
    frames_of(pipeline, replace(inputs, cutoff=(start, end), num_inference_steps=4))
    first = first_latents(pipeline, inputs)
    wanted = [cutoff_at(step, 4, start, end) for step in range(4)]
    assert (wanted[0], wanted[-1]) == (start, end)
    for step, cutoff in enumerate(wanted):
        expected = fourier_features(first, cutoff, 2)
        for call in calls[2 * step : 2 * step + 2]:
            torch.testing.assert_close(call.features, expected, atol=1e-5, rtol=0)
    # Once per step on a ramp, once in all without one.
    assert computed == (wanted if start != end else [start])


def test_text_to_video_has_no_shift_and_zero_features(pipeline, text_inputs, calls, monkeypatch):
    def refused(*_):
        raise AssertionError("there is no first frame")

    monkeypatch.setattr(flash_i2v, "project_first_frame", refused)
    monkeypatch.setattr(flash_i2v, "fourier_features", refused)
    monkeypatch.setattr(flash_i2v, "encode_latents", refused)
    frames = frames_of(pipeline, replace(text_inputs, cutoff=(0.1, 0.8)))
    assert frames.shape == (5, 64, 96, 3)
    assert torch.equal(calls[0].hidden_states, pipeline.initial_noise(text_inputs))
    assert all(call.features.abs().max() == 0 for call in calls)
    # Image tokens are dropped, which means zeros of the same number.
    assert all(call.context[:, 96:].abs().max() == 0 for call in calls)


def test_text_and_picture_contexts_have_one_length(pipeline, inputs, text_inputs):
    with torch.no_grad():
        with_picture, without = pipeline.condition(inputs), pipeline.condition(text_inputs)
    assert with_picture.cond.shape == without.cond.shape == (1, 96 + 24, 24)
    assert with_picture.cond[:, 96:].abs().mean() > 0.01
    assert without.first is None
    assert without.projected is None
    assert torch.equal(with_picture.first, first_latents(pipeline, inputs))


@torch.no_grad()
def test_image_tokens_show_the_mirrored_surroundings_and_nothing_else_does(
    pipeline, inputs, text_inputs
):
    parts = (pipeline.transformer, pipeline.vae, pipeline.conditioner)
    wide = flash_i2v.FlashI2VPipeline(*parts, surround=2)
    plain, surrounded = pipeline.condition(inputs), wide.condition(inputs)
    first = first_latents(pipeline, inputs)
    expected = pipeline.conditioner.encode(
        [inputs.prompt],
        images=[inputs.image],
        image_latents=with_surroundings(pipeline.vae, first, 2),
    )
    assert surrounded.cond.shape == (1, 96 + (4 + 4) * (6 + 4), 24)
    torch.testing.assert_close(surrounded.cond, expected)
    assert surrounded.uncond.shape == surrounded.cond.shape
    assert torch.equal(surrounded.first, first)
    assert torch.equal(surrounded.projected, plain.projected)
    # The words stay what they were, and a clip its size.
    assert torch.equal(surrounded.cond[:, :96], plain.cond[:, :96])
    assert frames_of(wide, inputs).shape == (5, 64, 96, 3)
    # Without a picture there is nothing to mirror.
    assert torch.equal(wide.condition(text_inputs).cond, pipeline.condition(text_inputs).cond)


# --- guidance --------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "passes"), [(0.0, 1), (1.0, 1), (1.01, 2), (5.0, 2)])
def test_guidance_costs_a_second_pass_only_above_one(pipeline, inputs, calls, scale, passes):
    frames_of(pipeline, replace(inputs, guidance_scale=scale))
    assert len(calls) == 3 * passes


def test_both_passes_differ_in_the_prompt_alone(pipeline, inputs, calls):
    frames_of(pipeline, replace(inputs, negative_prompt="snow falls"))
    for cond, uncond in zip(calls[::2], calls[1::2], strict=True):
        assert torch.equal(cond.hidden_states, uncond.hidden_states)
        assert torch.equal(cond.features, uncond.features)
        assert torch.equal(cond.timestep, uncond.timestep)
        assert not torch.allclose(cond.context, uncond.context)
        # The picture stands on both sides.
        assert torch.equal(cond.context[:, 96:], uncond.context[:, 96:])


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 7.5])
def test_guidance_is_its_formula(pipeline, inputs, play, scale):
    play(lambda hidden, _t, context, _f: torch.full_like(hidden, float(context.mean())))
    conditions = pipeline.condition(inputs)
    conditions = replace(
        conditions,
        cond=torch.full_like(conditions.cond, 3.0),
        uncond=None if scale <= 1 else torch.full_like(conditions.cond, 1.0),
    )
    noise = pipeline.initial_noise(inputs)
    velocity = pipeline.velocity(noise, torch.tensor(900.0), conditions, noise, scale)
    expected = 3.0 if scale <= 1 else 1.0 + scale * (3.0 - 1.0)
    torch.testing.assert_close(velocity, torch.full_like(noise, expected))


def test_without_guidance_the_negative_prompt_has_no_effect(pipeline, inputs):
    def made(scale, negative):
        return frames_of(pipeline, replace(inputs, guidance_scale=scale, negative_prompt=negative))

    np.testing.assert_array_equal(made(1.0, ""), made(1.0, "rain"))
    assert (made(4.0, "") != made(4.0, "rain")).any()


# --- the loop --------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_loop_ends_at_the_clip_itself(pipeline, inputs, play, steps):
    """With the true velocity of any step, unshifted: `v = (z_t - x) / t` (Eq. 19)."""
    target = torch.randn(1, 48, 2, 4, 6, generator=torch.Generator().manual_seed(3))
    conditions = pipeline.condition(inputs)
    shift = conditions.projected
    play(lambda hidden, t, *_: (hidden + shift - target) / (t.reshape(-1, 1, 1, 1, 1) / 1000))
    inputs = replace(inputs, num_inference_steps=steps)
    noise = pipeline.initial_noise(inputs)
    *_, (_, end) = pipeline.sample(inputs, conditions, noise)
    torch.testing.assert_close(end, target, atol=1e-4, rtol=0)
    # And what is shown is its decode: nothing is added back.
    expected = uint8_frames(decode_latents(pipeline.vae, target))[0].numpy()
    shown = frames_of(pipeline, inputs)
    assert np.abs(shown.astype(int) - expected.astype(int)).max() <= 1


def test_a_path_of_constant_velocity_is_walked_exactly(pipeline, text_inputs, play):
    noise = pipeline.initial_noise(text_inputs)
    play(lambda hidden, *_: torch.full_like(hidden, 2.0))
    conditions = pipeline.condition(text_inputs)
    path = [z for _, z in pipeline.sample(text_inputs, conditions, noise)]
    sigmas = [0.0] * 4
    for k in range(4):
        plain = 1 - k / 3
        sigmas[k] = 3 * plain / (1 + 2 * plain)
    for z, sigma in zip(path, sigmas[1:], strict=True):
        torch.testing.assert_close(z, noise - 2.0 * (1.0 - sigma), atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_frames_and_another_seed_others(pipeline, inputs):
    torch.manual_seed(1)
    one = frames_of(pipeline, inputs)
    torch.manual_seed(2)
    np.testing.assert_array_equal(frames_of(pipeline, inputs), one)
    assert (frames_of(pipeline, replace(inputs, seed=8)) != one).mean() > 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "snow falls fast"},
        {"cutoff": (0.9, 0.9)},
        {"shift": 7.0},
        {"guidance_scale": 5.0},
        {"num_inference_steps": 4},
    ],
    ids=str,
)
def test_every_dial_has_an_effect(pipeline, inputs, change):
    one, other = frames_of(pipeline, inputs), frames_of(pipeline, replace(inputs, **change))
    assert (one != other).any()


def test_noise_does_not_depend_on_the_global_generator_or_on_the_picture(
    pipeline, inputs, text_inputs
):
    torch.manual_seed(1)
    noise = pipeline.initial_noise(inputs)
    torch.manual_seed(2)
    assert torch.equal(pipeline.initial_noise(text_inputs), noise)
    assert noise.dtype == torch.float32
    assert noise.std().item() == pytest.approx(1.0, abs=0.05)


def test_a_model_in_bfloat16_keeps_the_loop_in_single_precision(pipeline, inputs, monkeypatch):
    transformer = copy.deepcopy(pipeline.transformer).to(torch.bfloat16)
    half = flash_i2v.FlashI2VPipeline(transformer, pipeline.vae, pipeline.conditioner)
    dtypes = []
    genuine = transformer.forward

    def forward(hidden_states, timestep, context, features, **kwargs):
        dtypes.append((hidden_states.dtype, timestep.dtype, context.dtype, features.dtype))
        return genuine(hidden_states, timestep, context, features, **kwargs)

    monkeypatch.setattr(transformer, "forward", forward)
    with torch.no_grad():
        conditions = half.condition(inputs)
        assert conditions.projected.dtype == torch.float32
        path = [z for _, z in half.sample(inputs, conditions, half.initial_noise(inputs))]
    assert {z.dtype for z in path} == {torch.float32}
    assert set(dtypes) == {(torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16)}
    full = frames_of(pipeline, inputs).astype(float)
    assert np.abs(frames_of(half, inputs) - full).mean() < 3


# --- samplers, caches, and going on ------------------------------------------------------------


def test_the_sampler_has_an_effect(pipeline, inputs):
    inputs = replace(inputs, num_inference_steps=4)
    assert (
        frames_of(pipeline, inputs) != frames_of(pipeline, replace(inputs, sampler="unipc"))
    ).any()


TEACACHE = TeaCacheConfig(
    coefficients=(1.0, 0.0),
    source="a test",
    num_inference_steps=6,
    threshold=1e9,
    num_start_steps=2,
)


@torch.no_grad()
def latents_of(pipeline, inputs, state=None):
    with pipeline.sampling(inputs, pipeline.condition(inputs), state) as sampling:
        for _ in sampling.steps():
            pass
    return sampling.latents


@pytest.mark.parametrize("sampler", ["euler", "unipc"])
@pytest.mark.parametrize("cache", [NoCacheConfig(), TEACACHE, FBCacheConfig(threshold=5.0)])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_clip_goes_on_to_the_same_bits(pipeline, inputs, sampler, cache, step):
    inputs = replace(
        inputs, num_inference_steps=6, sampler=sampler, step_cache=cache, cutoff=(0.1, 0.6)
    )
    expected = latents_of(pipeline, inputs)
    conditions = pipeline.condition(inputs)
    with pipeline.sampling(inputs, conditions) as sampling:
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


def test_skipped_steps_are_told(pipeline, inputs):
    inputs = replace(inputs, num_inference_steps=6, step_cache=TEACACHE)
    with torch.no_grad(), pipeline.sampling(inputs, pipeline.condition(inputs)) as sampling:
        cached = [step.cached for step in sampling.steps()]
    assert cached == [False, False, True, True, True, True]
    assert sampling.cache.skipped_steps == 4


def test_a_cache_leaves_the_model_as_it_was(pipeline, inputs):
    before = frames_of(pipeline, inputs)
    frames_of(pipeline, replace(inputs, num_inference_steps=6, step_cache=TEACACHE))
    np.testing.assert_array_equal(frames_of(pipeline, inputs), before)


def test_the_estimate_is_the_clip_where_the_velocity_is_true(pipeline, inputs, play):
    target = torch.randn(1, 48, 2, 4, 6, generator=torch.Generator().manual_seed(3))
    conditions = pipeline.condition(inputs)
    shift = conditions.projected
    play(lambda hidden, t, *_: (hidden + shift - target) / (t.reshape(-1, 1, 1, 1, 1) / 1000))
    with pipeline.sampling(inputs, conditions) as sampling:
        with pytest.raises(ValueError, match="before the first step"):
            sampling.estimate()
        for _ in sampling.steps():
            torch.testing.assert_close(sampling.estimate(), target, atol=1e-4, rtol=0)


def test_a_glimpse_begins_with_the_first_frame(pipeline):
    latents = torch.randn(1, 48, 6, 4, 6)
    pictures = decode_glimpse(pipeline.vae, latents)
    assert [picture.shape for picture in pictures] == [(64, 96, 3)] * 4
    np.testing.assert_array_equal(pictures[0], decode_frames(pipeline.vae, latents)[0])
    assert len(decode_glimpse(pipeline.vae, latents[:, :, :1])) == 1
