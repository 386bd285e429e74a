"""Endless video: chunk for chunk what a loop by hand computes, and the same after a break."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from osp_cli.models.latents import with_surroundings
from osp_cli.pipelines.realtime import RealtimePipeline, StreamInputs, StreamState
from osp_cli.realtime_card import RealtimeFigures
from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame

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
