"""Plain Wan models: clip for clip what diffusers' own pipelines compute."""

from __future__ import annotations

import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
)
from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v
from PIL import Image
from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from osp_cli.conditioning.clip_vision import FirstFrameConditioner
from osp_cli.conditioning.umt5 import UMT5Conditioner
from osp_cli.media.image import to_tensor_values
from osp_cli.models.state_dict import load_autoencoder, load_wan_transformer
from osp_cli.pipelines import wan, wan_i2v
from osp_cli.pipelines.flash_i2v import SamplingInputs, SamplingState
from osp_cli.pipelines.wan_i2v import known_latents
from osp_cli.sampling.step_cache import FBCacheConfig, MagCacheConfig, TeaCacheConfig
from osp_cli.style_mix import WeightedPrompt

PROMPT = "  a red fox &amp; \n snow "
NEGATIVE = "blurred"
TOKENS = 24
COEFFICIENTS = {"coefficients": (1.0, 0.0), "source": "a straight line", "num_start_steps": 1}


@pytest.fixture(scope="module", params=["tiny-t2v", "tiny-i2v"])
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tiny_wan_home):
    return tiny_wan_home / "models" / kind


@pytest.fixture(params=["float32"])
def transformer(request, folder):
    return load_wan_transformer(folder / "transformer", dtype=getattr(torch, request.param))


@pytest.fixture
def texts(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return tokenizer, UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval()


@pytest.fixture
def ours(kind, folder, transformer, texts):
    parts, prompts = (
        (transformer, load_autoencoder(folder / "vae")),
        UMT5Conditioner(*texts, TOKENS),
    )
    if kind == "tiny-t2v":
        return wan.WanPipeline(*parts, prompts)
    conditioner = FirstFrameConditioner(
        prompts,
        CLIPImageProcessorPil.from_pretrained(folder / "image_processor"),
        CLIPVisionModel.from_pretrained(folder / "image_encoder", dtype=torch.float32).eval(),
    )
    return wan_i2v.WanImageToVideoPipeline(*parts, conditioner)


@pytest.fixture
def theirs(kind, ours, texts, monkeypatch):
    """diffusers' pipeline of the same models; makes latents of the same noise."""
    for module in (pipeline_wan, pipeline_wan_i2v):
        # Not installed, and with nothing to repair in these prompts.
        repair = types.SimpleNamespace(fix_text=lambda text: text)
        monkeypatch.setattr(module, "ftfy", repair, raising=False)

    def run(inputs):
        tokenizer, text_encoder = texts
        make = ReleasedUniPC if inputs.sampler == "unipc" else ReleasedEuler
        parts = {
            "tokenizer": tokenizer,
            "text_encoder": text_encoder,
            "vae": ours.vae,
            "transformer": ours.transformer,
            "scheduler": make(inputs.shift),
        }
        if kind == "tiny-i2v":
            pipeline = WanImageToVideoPipeline(
                image_encoder=ours.conditioner.image_encoder,
                image_processor=ours.conditioner.processor,
                **parts,
            )
            pictures = {"image": inputs.image}
        else:
            pipeline, pictures = WanPipeline(**parts), {}
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            prompt=inputs.prompt,
            negative_prompt=inputs.negative_prompt,
            width=inputs.width,
            height=inputs.height,
            num_frames=inputs.num_frames,
            num_inference_steps=inputs.num_inference_steps,
            guidance_scale=inputs.guidance_scale,
            latents=ours.initial_noise(inputs),
            max_sequence_length=TOKENS,
            output_type="latent",
            **pictures,
        ).frames

    return run


class ReleasedUniPC(UniPCMultistepScheduler):
    """With the time grid of Wan's own code, which is that of `--sampler unipc`."""

    def __init__(self, shift):
        super().__init__(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)

    def set_timesteps(self, num_inference_steps, device=None):
        sigmas = np.linspace(0.999, 0.0, num_inference_steps + 1)[:-1]
        super().set_timesteps(sigmas=sigmas, device=device)


class ReleasedEuler(FlowMatchEulerDiscreteScheduler):
    """With the time grid of `--sampler euler`."""

    def __init__(self, shift):
        super().__init__(shift=shift)

    def set_timesteps(self, num_inference_steps, device=None):
        sigmas = np.linspace(1.0, 0.0, num_inference_steps + 1)[:-1].tolist()
        super().set_timesteps(sigmas=sigmas, device=device)


@pytest.fixture
def inputs(kind):
    picture = Image.effect_noise((64, 48), 90).convert("RGB")
    return SamplingInputs(
        image=picture if kind == "tiny-i2v" else None,
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        width=64,
        height=48,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=5.0,
        shift=3.0,
        cutoff=(0.1, 0.1),
        seed=7,
        sampler="unipc",
    )


def latents_of(pipeline, inputs, state=None, until=None):
    with pipeline.sampling(inputs, pipeline.condition(inputs), state) as sampling:
        for step in sampling.steps():
            if step.step == until:
                break
        return sampling.state(), sampling


@pytest.mark.parametrize(("sampler", "shift"), [("unipc", 3.0), ("unipc", 5.0), ("euler", 3.0)])
def test_the_clip_is_diffusers_clip(ours, theirs, inputs, sampler, shift):
    inputs = replace(inputs, sampler=sampler, shift=shift)
    state, _ = latents_of(ours, inputs)
    assert state.latents.shape == (1, 16, 3, 6, 8)
    expected = theirs(inputs)
    assert expected.std() > 0.5
    torch.testing.assert_close(state.latents, expected, atol=1e-4, rtol=0)


def test_without_guidance_too(ours, theirs, inputs):
    inputs = replace(inputs, guidance_scale=1.0)
    state, _ = latents_of(ours, inputs)
    torch.testing.assert_close(state.latents, theirs(inputs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("transformer", ["bfloat16"], indirect=True)
def test_in_half_precision_it_differs_by_the_rounding_of_guidance(ours, theirs, inputs):
    # diffusers guides and steps in the transformer's precision, which is kept for the model here.
    assert ours.transformer.dtype == torch.bfloat16
    state, _ = latents_of(ours, inputs)
    expected = theirs(inputs)
    assert (state.latents - expected).norm() < 0.02 * expected.norm()


def test_a_longer_portrait_too(ours, theirs, inputs):
    picture = inputs.image and inputs.image.resize((48, 80))
    inputs = replace(inputs, width=48, height=80, num_frames=13, image=picture)
    state, _ = latents_of(ours, inputs)
    assert state.latents.shape == (1, 16, 4, 10, 6)
    torch.testing.assert_close(state.latents, theirs(inputs), atol=1e-4, rtol=0)


def test_everything_asked_for_counts(ours, inputs):
    changes = [{"prompt": "a blue fox"}, {"negative_prompt": ""}, {"seed": 8}]
    if inputs.image is not None:
        changes.append({"image": Image.linear_gradient("L").resize((64, 48)).convert("RGB")})
    one, _ = latents_of(ours, inputs)
    for change in changes:
        two, _ = latents_of(ours, replace(inputs, **change))
        assert (one.latents - two.latents).abs().max() > 1e-2, change


def test_the_cutoff_does_not_count(ours, inputs):
    one, _ = latents_of(ours, inputs)
    two, _ = latents_of(ours, replace(inputs, cutoff=(0.9, 0.2)))
    assert torch.equal(one.latents, two.latents)


@pytest.mark.parametrize(
    "cache",
    [
        None,
        TeaCacheConfig(num_inference_steps=4, threshold=5.0, **COEFFICIENTS),
        FBCacheConfig(threshold=0.5),
        MagCacheConfig(num_inference_steps=4, mag_ratios=(1.0, 0.99), retention_ratio=0.25),
    ],
    ids=["none", "teacache", "fbcache", "magcache"],
)
def test_a_frozen_clip_goes_on_to_the_same_bits(ours, inputs, cache):
    inputs = inputs if cache is None else replace(inputs, step_cache=cache)
    whole, sampling = latents_of(ours, inputs)
    if cache is not None:
        assert sampling.cache.skipped_steps > 0
    for steps in (1, 3):
        state, _ = latents_of(ours, inputs, until=steps)
        assert state.step == steps
        kept = {name: tensor.clone() for name, tensor in state.cache.items()}
        state = SamplingState(state.latents.clone(), state.step, dict(state.solver), kept)
        again, _ = latents_of(ours, inputs, state)
        assert torch.equal(again.latents, whole.latents)


def test_a_mixture_of_one_prompt_with_itself_is_that_prompt(ours, inputs):
    one, _ = latents_of(ours, inputs)
    two, _ = latents_of(ours, replace(inputs, also=(WeightedPrompt(inputs.prompt, 0.3),)))
    torch.testing.assert_close(one.latents, two.latents, atol=1e-4, rtol=0)


def test_the_other_kind_of_input_is_a_mistake(ours, inputs):
    other = None if inputs.image else Image.new("RGB", (64, 48))
    with pytest.raises(ValueError, match="picture"):
        ours.condition(replace(inputs, image=other))


@pytest.mark.parametrize("kind", ["tiny-i2v"], indirect=True)
@pytest.mark.parametrize("num_frames", [1, 5, 9])
def test_what_is_known_is_the_first_frame(ours, inputs, num_frames):
    picture = torch.from_numpy(to_tensor_values(inputs.image))[None]
    known = known_latents(ours.vae, picture, num_frames)
    frames = 1 + (num_frames - 1) // 4
    assert known.shape == (1, 20, frames, 6, 8)
    mask = known[:, :4]
    assert mask[:, :, 0].eq(1).all()
    assert not mask[:, :, 1:].any()
    # The autoencoder is causal: of the first frame it sees nothing else.
    torch.testing.assert_close(known[:, :, :1], known_latents(ours.vae, picture, 1))
    if num_frames > 1:
        assert (known[:, 4:, 1:] - known[:, 4:, :1]).abs().max() > 1e-3
