"""The layout `helios`: latent for latent what diffusers' own pipeline computes, chunk by chunk."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    HeliosDMDScheduler,
    HeliosPyramidPipeline,
    HeliosTransformer3DModel,
)
from safetensors.torch import load_file, save_file

from osp_cli.pipelines.realtime import RealtimePipeline, StreamInputs, StreamState, Words
from osp_cli.realtime_card import RealtimeFigures
from osp_cli.sampling.stages import block_noise

FIGURES = RealtimeFigures(
    layout="helios", stages=3, steps=(2, 2, 2), vae_chunks="independent", trained=True
)


class TheirPipeline(HeliosPyramidPipeline):
    """Its block noise, whose Cholesky factor does not exist, in closed form."""

    def sample_block_noise(
        self, batch_size, channel, num_frames, height, width, patch_size, device, generator
    ):
        return block_noise(
            (batch_size, channel, num_frames, height, width),
            lambda shape: torch.randn(shape, generator=generator),
        )


@pytest.fixture
def theirs(transformer, vae, scheduler):
    pipeline = TheirPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=scheduler,
        transformer=transformer,
        is_distilled=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def their_latents(pipeline, texts, steps, chunks, seed, **more):
    """The latents of a whole stream, `(1, 16, 9 chunks, 8, 8)`."""
    return pipeline(
        prompt_embeds=texts,
        height=64,
        width=64,
        num_frames=33 * chunks,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(seed),
        pyramid_num_inference_steps_list=list(steps),
        output_type="latent",
        **{"is_amplify_first_chunk": True, **more},
    ).frames


@pytest.fixture(scope="module")
def folder(tiny_helios_home):
    return tiny_helios_home / "models" / "tiny-helios"


@pytest.fixture(scope="module")
def transformer(folder):
    return HeliosTransformer3DModel.from_pretrained(folder / "transformer").eval()


@pytest.fixture(scope="module")
def vae(folder):
    return AutoencoderKLWan.from_pretrained(folder / "vae").eval()


@pytest.fixture
def scheduler(folder):
    return HeliosDMDScheduler.from_pretrained(folder / "scheduler")


@pytest.fixture
def engine(transformer, vae, scheduler):
    return RealtimePipeline(transformer, vae, None, FIGURES, scheduler=scheduler)


@pytest.fixture(scope="module")
def texts():
    return torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(4))


def inputs_of(steps, seed=9, **more):
    return StreamInputs(width=64, height=64, num_inference_steps=steps, seed=seed, **more)


def random_latents(frames, seed):
    return torch.randn(1, 16, frames, 8, 8, generator=torch.Generator().manual_seed(seed))


def ours(engine, finished, inputs, texts, state, chunks):
    pieces, steps = [], []
    for _ in range(chunks):
        made, state, done = finished(engine.chunk(inputs, state, Words(texts)))
        pieces.append(made)
        steps.append(len(done))
    return torch.cat(pieces, 2), state, steps


@pytest.mark.parametrize("steps", [(1, 1, 1), (2, 1, 2)])
def test_a_stream_from_text_alone(engine, theirs, finished, texts, steps):
    made, _, done = ours(
        engine, finished, inputs := inputs_of(steps), texts, engine.begin(inputs), chunks=3
    )
    wanted = their_latents(theirs, texts, steps, 3, inputs.seed)
    assert torch.equal(made, wanted)
    # The first chunk of a stream takes twice its steps.
    assert done == [2 * sum(steps), sum(steps), sum(steps)]


def test_a_stream_from_a_picture(engine, theirs, finished, texts):
    first, still = random_latents(1, 1), random_latents(1, 2)
    inputs = inputs_of((1, 1, 1))
    made, _, _ = ours(engine, finished, inputs, texts, engine.begin(inputs, still, first), chunks=2)
    wanted = their_latents(
        theirs, texts, (1, 1, 1), 2, inputs.seed,
        image_latents=first, fake_image_latents=still, add_noise_to_image_latents=False,
    )  # fmt: skip
    assert torch.equal(made, wanted[:, :, 1:])


@pytest.mark.parametrize("frames", [9, 27])
def test_a_stream_from_a_video(engine, theirs, finished, texts, frames):
    video = random_latents(frames, 3)
    inputs = inputs_of((1, 1, 1), amplify_first=False)
    made, _, _ = ours(engine, finished, inputs, texts, engine.begin(inputs, video), chunks=2)
    wanted = their_latents(
        theirs, texts, (1, 1, 1), 2, inputs.seed,
        image_latents=video[:, :, :1], video_latents=video,
        add_noise_to_image_latents=False, add_noise_to_video_latents=False,
        is_amplify_first_chunk=False,
    )  # fmt: skip
    assert torch.equal(made, wanted[:, :, frames:])


def test_a_stream_goes_on_to_the_very_same_bits(engine, finished, texts, tmp_path):
    inputs = inputs_of((1, 2, 1))
    whole, end, _ = ours(engine, finished, inputs, texts, engine.begin(inputs), chunks=4)
    before, state, _ = ours(engine, finished, inputs, texts, engine.begin(inputs), chunks=2)
    save_file(state.tensors(), tmp_path / "state.safetensors")
    state = StreamState.from_tensors(load_file(tmp_path / "state.safetensors"))
    assert state.history.shape[2] <= 19
    after, resumed, _ = ours(engine, finished, inputs, texts, state, chunks=2)
    assert torch.equal(torch.cat([before, after], 2), whole)
    for name, tensor in end.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name])


def test_steps_for_another_number_of_stages_are_refused(engine, texts):
    inputs = inputs_of((2, 2))
    with pytest.raises(ValueError, match="2 stages"):
        next(engine.chunk(inputs, engine.begin(inputs), Words(texts)))


def test_there_is_no_image_mode(engine, texts):
    inputs = inputs_of((1, 1, 1))
    with pytest.raises(ValueError, match="cannot paint"):
        next(engine.chunk(inputs, engine.begin(inputs), Words(texts), paint=True))
