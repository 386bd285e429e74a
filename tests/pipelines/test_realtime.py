"""Endless video: chunk for chunk what a loop by hand computes, and the same after a break."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from osp_cli.conditioning.umt5 import UMT5Conditioner
from osp_cli.models.latents import with_surroundings
from osp_cli.models.state_dict import load_autoencoder, load_wan_transformer
from osp_cli.pipelines.realtime import RealtimePipeline, StreamInputs, StreamState
from osp_cli.realtime_card import RealtimeFigures
from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.sampling.stages import shrunk_picture
from osp_cli.sampling.step_cache import MagCacheConfig

SIZE = {"width": 96, "height": 64, "latent_frames": 3}
PICTURE = Image.effect_noise((96, 64), 90).convert("RGB")


@pytest.fixture
def engine(pipeline):
    def make(**figures):
        return RealtimePipeline(
            pipeline.transformer,
            pipeline.vae,
            pipeline.conditioner,
            RealtimeFigures(**{"context": 1, "conditions": "context", **figures}),
            surround=1,
        )

    return make


def latents(frames, seed=1, channels=48, size=(4, 6)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, channels, frames, *size, generator=generator)


@torch.no_grad()
def by_hand(engine, noise, context, prompt, sigmas, paint=None):
    """One chunk by Euler steps, written out."""
    transformer, conditioner = engine.transformer, engine.conditioner
    newest = context[:, :, -1:]
    states, mask = conditioner.hidden_states([prompt], [PICTURE])
    texts = conditioner.project(states, mask, with_surroundings(engine.vae, newest, 1))
    length, tokens = context.shape[2], 6
    for sigma, after in pairwise(sigmas):
        shown = torch.cat([context, noise], 2)
        timestep = torch.full((1, shown.shape[2] * tokens), 1000 * sigma)
        timestep[:, : length * tokens] = 0
        features = torch.zeros_like(shown)
        if paint is not None:
            features = fourier_features(newest, paint, shown.shape[2])
            shown = shown - project_first_frame(transformer, newest)
        velocity = transformer(
            shown,
            timestep,
            texts,
            features,
            frame_indices=torch.arange(shown.shape[2]),
            return_dict=False,
        )[0]
        noise = noise + (after - sigma) * velocity[:, :, length:]
    return noise


@pytest.mark.parametrize("paint", [None, 0.3])
def test_a_stream_is_the_explicit_loop(engine, finished, paint):
    engine = engine(context=2)
    inputs = StreamInputs(**SIZE, num_inference_steps=(2,), sampler="euler", shift=1.0, seed=5)
    generator = torch.Generator().manual_seed(5)
    words = engine.read("pan left", None, PICTURE)
    context = latents(3)[:, :, -2:]
    state = engine.begin(inputs, latents(3))
    for _ in range(2):
        made, state, steps = finished(
            engine.chunk(inputs, state, words, cutoff=paint or 0.1, paint=paint is not None)
        )
        noise = torch.randn(1, 48, 3, 4, 6, generator=generator)
        wanted = by_hand(engine, noise, context, "pan left", (1.0, 0.5, 0.0), paint)
        torch.testing.assert_close(made, wanted)
        context = wanted[:, :, -2:]
        assert [(step.step, step.num_steps) for step in steps] == [(1, 2), (2, 2)]


def test_a_stream_goes_on_to_the_very_same_bits(engine, finished, tmp_path):
    engine = engine()
    inputs = StreamInputs(**SIZE, num_inference_steps=(3,), seed=2)
    words = engine.read("zoom in", None, PICTURE)
    whole = state = engine.begin(inputs, None, latents(1))
    first, state, _ = finished(engine.chunk(inputs, state, words))
    save_file(state.tensors(), tmp_path / "state.safetensors")
    again = StreamState.from_tensors(load_file(tmp_path / "state.safetensors"))
    second, after, _ = finished(engine.chunk(inputs, state, words))
    resumed, resumed_after, _ = finished(engine.chunk(inputs, again, words))
    assert torch.equal(second, resumed)
    assert after.chunk == 2 and all(
        torch.equal(tensor, resumed_after.tensors()[name])
        for name, tensor in after.tensors().items()
    )
    # What was given is not changed, and fresh noise makes each chunk another.
    assert torch.equal(finished(engine.chunk(inputs, whole, words))[0], first)
    assert not torch.equal(first, second)


def test_a_stream_without_any_picture_goes_through_a_file(engine, finished, tmp_path):
    """Nothing is known yet: the history is empty, and there is no first frame."""
    engine = engine(conditions="none")
    inputs = StreamInputs(**SIZE, num_inference_steps=(1,))
    state = engine.begin(inputs)
    assert state.history.shape == (1, 48, 0, 4, 6) and state.sink is None
    save_file(state.tensors(), tmp_path / "state.safetensors")
    again = StreamState.from_tensors(load_file(tmp_path / "state.safetensors"))
    words = engine.read("zoom in")
    made, after, _ = finished(engine.chunk(inputs, state, words))
    assert torch.equal(made, finished(engine.chunk(inputs, again, words))[0])
    assert torch.equal(after.sink, made[:, :, :1])
    assert torch.equal(after.history, made[:, :, -1:])


def test_what_lacks_a_tensor_is_no_state(engine):
    tensors = engine().begin(StreamInputs(**SIZE)).tensors()
    del tensors["generator"]
    with pytest.raises(ValueError, match="lacks 'generator'"):
        StreamState.from_tensors(tensors)


@pytest.fixture
def shown(pipeline, monkeypatch):
    """What the genuine transformer is shown, call by call."""
    seen = []
    genuine = pipeline.transformer.forward

    def forward(hidden_states, timestep, texts, **rest):
        seen.append((hidden_states.clone(), timestep.clone(), texts.clone(), rest))
        return genuine(hidden_states, timestep, texts, **rest)

    monkeypatch.setattr(pipeline.transformer, "forward", forward)
    return seen


def test_the_context_grows_and_stays_clean(engine, finished, shown):
    engine = engine(context=4)
    inputs = StreamInputs(**SIZE, num_inference_steps=(1,))
    words, state = engine.read("zoom in"), engine.begin(inputs)
    made = torch.zeros(1, 48, 0, 4, 6)
    for length in (0, 3, 4):
        latents, state, _ = finished(engine.chunk(inputs, state, words))
        hidden_states, timestep, texts, _ = shown.pop()
        assert torch.equal(hidden_states[:, :, :length], made[:, :, made.shape[2] - length :])
        if length:
            assert timestep.shape == (1, (length + 3) * 6)
            assert not timestep[:, : length * 6].any() and (timestep[:, length * 6 :] == 1000).all()
        # Image tokens are dropped while there is no picture, and never left out.
        assert texts[:, words.cond.shape[1] :].any() == bool(length)
        made = torch.cat([made, latents], 2)


def test_stages_show_the_context_at_their_own_size(engine, finished, shown):
    engine = engine(conditions="none")
    inputs = StreamInputs(width=128, height=64, latent_frames=3, num_inference_steps=(1, 2))
    context = latents(1, size=(4, 8))
    made, _, steps = finished(engine.chunk(inputs, engine.begin(inputs, context), engine.read("x")))
    sizes = [tuple(call[0].shape[2:]) for call in shown]
    assert sizes == [(4, 2, 4), (4, 4, 8), (4, 4, 8)]
    torch.testing.assert_close(shown[0][0][:, :, :1], shrunk_picture(context, 1))
    assert made.shape == (1, 48, 3, 4, 8) and len(steps) == 3


def test_guidance_leads_away_from_the_negative_prompt(engine, finished):
    engine = engine()
    plain = StreamInputs(**SIZE, num_inference_steps=(1,), sampler="euler")
    guided = StreamInputs(**SIZE, num_inference_steps=(1,), sampler="euler", guidance_scale=3.0)
    state = engine.begin(plain, latents(1))
    words = engine.read("pan left", "blurred", PICTURE)
    cond, _, _ = finished(engine.chunk(plain, state, words))
    uncond, _, _ = finished(engine.chunk(plain, state, engine.read("blurred", None, PICTURE)))
    made, _, _ = finished(engine.chunk(guided, state, words))
    torch.testing.assert_close(made, uncond + 3 * (cond - uncond))
    with pytest.raises(ValueError, match="negative prompt"):
        next(engine.chunk(guided, state, engine.read("pan left")))


def test_words_pass_into_each_other_on_a_straight_line(engine):
    engine = engine()
    a, b = engine.read("pan left", "x", PICTURE), engine.read("zoom in", "y", PICTURE)
    assert engine.blend(a, b, 0.0) is a and engine.blend(a, b, 1.0) is b
    between = engine.blend(a, b, 0.25)
    torch.testing.assert_close(between.cond, 0.75 * a.cond + 0.25 * b.cond)
    torch.testing.assert_close(between.uncond, 0.75 * a.uncond + 0.25 * b.uncond)
    with pytest.raises(ValueError, match="share"):
        engine.blend(a, b, 1.1)
    with pytest.raises(ValueError, match="guidance"):
        engine.blend(a, engine.read("zoom in"), 0.5)


def test_an_anchor_has_the_last_word(engine, finished):
    engine = engine()
    inputs = StreamInputs(**SIZE, num_inference_steps=(1,))
    state, words = engine.begin(inputs, latents(1)), engine.read("pan left")
    plain, _, _ = finished(engine.chunk(inputs, state, words))
    made, after, _ = finished(engine.chunk(inputs, state, words, anchor=lambda x: 0.5 * x))
    torch.testing.assert_close(made, 0.5 * plain)
    assert torch.equal(after.history, made[:, :, -1:])


def test_a_step_cache_skips_and_is_gone_afterwards(engine, finished):
    engine = engine()
    cache = MagCacheConfig(num_inference_steps=99, mag_ratios=(1.0, 1.0, 1.0, 1.0), threshold=1.0)
    inputs = StreamInputs(**SIZE, num_inference_steps=(4,), step_cache=cache)
    state, words = engine.begin(inputs, latents(1)), engine.read("pan left")
    for _ in range(2):
        _, state, steps = finished(engine.chunk(inputs, state, words))
        assert [step.cached for step in steps] == [False, True, True, True]
    assert not engine.transformer.is_cache_enabled
    # Also where a chunk is broken off.
    chunk = engine.chunk(inputs, state, words)
    next(chunk)
    assert engine.transformer.is_cache_enabled
    chunk.close()
    assert not engine.transformer.is_cache_enabled


def test_nothing_can_be_painted_before_there_is_a_picture(engine):
    engine = engine()
    inputs = StreamInputs(**SIZE)
    with pytest.raises(ValueError, match="before there is a picture"):
        next(engine.chunk(inputs, engine.begin(inputs), engine.read("x"), paint=True))


def test_latents_of_another_size_are_refused(engine):
    with pytest.raises(ValueError, match="none of a stream"):
        engine().begin(StreamInputs(**SIZE), latents(1, size=(4, 4)))


@pytest.mark.parametrize("changes", [{"num_inference_steps": ()}, {"latent_frames": 0}])
def test_a_stream_of_nothing_is_refused(changes):
    with pytest.raises(ValueError, match="needs"):
        StreamInputs(**{**SIZE, **changes})


# --- Plain Wan ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wan(tiny_wan_home):
    from transformers import AutoTokenizer, UMT5EncoderModel

    folder = tiny_wan_home / "models" / "tiny-t2v"
    conditioner = UMT5Conditioner(
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval(),
        24,
    )
    return RealtimePipeline(
        load_wan_transformer(folder / "transformer"),
        load_autoencoder(folder / "vae"),
        conditioner,
        RealtimeFigures(context=3),
    )


WAN = {"width": 64, "height": 64, "latent_frames": 2, "shift": 3.0}


@torch.no_grad()
def test_plain_wan_continues_by_its_own_steps_and_guidance(wan, finished):
    inputs = StreamInputs(
        **WAN, num_inference_steps=(2,), sampler="euler", guidance_scale=4.0, seed=3
    )
    context = latents(3, channels=16, size=(8, 8))
    words = wan.read("a fox", "blurred")
    made, _, _ = finished(wan.chunk(inputs, wan.begin(inputs, context), words))
    noise = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    for sigma, after in pairwise((1.0, 0.75, 0.0)):
        shown = torch.cat([context, noise], 2)
        timestep = torch.tensor([[0.0] * 48 + [1000 * sigma] * 32])
        cond, uncond = (
            wan.transformer(shown, timestep, texts, return_dict=False)[0][:, :, 3:]
            for texts in (words.cond, words.uncond)
        )
        noise = noise + (after - sigma) * (uncond + 4 * (cond - uncond))
    torch.testing.assert_close(made, noise)


@pytest.mark.parametrize(
    ("sampler", "steps"), [("unipc", (3,)), ("unipc", (2, 2)), ("euler", (1, 3))]
)
def test_plain_wan_takes_any_ordinary_sampler(wan, finished, sampler, steps):
    inputs = StreamInputs(**WAN, num_inference_steps=steps, sampler=sampler)
    made, _, done = finished(wan.chunk(inputs, wan.begin(inputs), wan.read("a fox")))
    assert made.shape == (1, 16, 2, 8, 8) and made.isfinite().all()
    assert len(done) == sum(steps)


def test_plain_wan_cannot_paint(wan):
    inputs = StreamInputs(**WAN)
    state = wan.begin(inputs, latents(1, channels=16, size=(8, 8)))
    with pytest.raises(ValueError, match="without latent shifting"):
        next(wan.chunk(inputs, state, wan.read("x"), paint=True))
