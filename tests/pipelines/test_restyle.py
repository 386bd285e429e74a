"""Videos restyled in windows: what is kept of the source, and what of the windows before."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image

from osp_cli.conditioning.vlm import QwenVLConditioner
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.pipelines.flash_i2v import FlashI2VPipeline
from osp_cli.pipelines.restyle import Renoising, Showing, Window, noise_at, num_steps, split
from osp_cli.sampling.step_cache import TeaCacheConfig
from osp_cli.style_mix import WeightedPrompt
from osp_cli.training.mini_vlm import new_conditioner

_NO_PICTURE = None
_TEXT_DIM = 24
_GEOMETRY = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16, "out_channels": 16,
    "text_dim": _TEXT_DIM, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2,
    "projection_channels": 8, "position_channels": 6, "rope_max_seq_len": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def wan_pipeline():
    """FlashI2V over Wan's autoencoder, all of it tiny and random."""
    torch.manual_seed(6)
    vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    transformer = FlashI2VTransformer3DModel(**_GEOMETRY).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    conditioner = new_conditioner(1, _TEXT_DIM)
    # Without the visual branch: it is made for other latents.
    conditioner.image_adapter = None
    return FlashI2VPipeline(transformer, vae, conditioner)


@pytest.fixture
def settings(inputs):
    """Four steps of a video of 64x48."""
    return replace(
        inputs,
        image=None,
        width=64,
        height=48,
        num_inference_steps=4,
        guidance_scale=1.0,
    )


@pytest.fixture(scope="module")
def source():
    """Nine latent frames of Wan's."""
    torch.manual_seed(7)
    return torch.randn(1, 16, 9, 6, 8)


@pytest.fixture(scope="module")
def picture():
    return Image.effect_noise((64, 48), 80).convert("RGB")


def made(way, pipeline, window, source, picture, known):
    part = source[:, :, window.start : window.stop]
    conditions = way.condition(pipeline, window, part, picture)
    with way.sampling(pipeline, window, conditions, part, known) as sampling:
        steps = list(sampling.steps())
    assert [step.step for step in steps] == list(range(1, sampling.num_steps + 1))
    return sampling.latents


# --- Windows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [0, 1, 3])
@pytest.mark.parametrize("size", [1, 2, 5, 13])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 13, 14, 40, 151])
def test_windows_cover_every_frame_once(num_frames, size, context):
    windows = split(num_frames, size, context)
    assert windows[0].start == windows[0].known == 0
    assert windows[-1].stop == num_frames
    for before, after in itertools.pairwise(windows):
        assert before.start < after.start <= before.stop < after.stop
        assert after.known == before.stop - after.start >= min(context, size // 2)
        assert after.num_frames == size or not context
    assert all(window.num_frames <= size for window in windows)


def test_nothing_cannot_be_split():
    with pytest.raises(ValueError, match="nothing to split"):
        split(0, 5, 1)


def test_the_noise_of_a_frame_is_its_own_wherever_a_window_begins():
    like = torch.zeros(1, 4, 1, 2, 3)
    whole = noise_at(3, Window(0, 9, 0), like)
    assert torch.equal(noise_at(3, Window(4, 7, 2), like), whole[:, :, 4:7])
    assert not torch.equal(noise_at(4, Window(0, 9, 0), like), whole)
    assert len({float(frame.sum()) for frame in whole.split(1, 2)}) == 9
    assert whole.std() == pytest.approx(1, abs=0.2)


def test_steps_are_the_part_of_the_grid_that_is_left():
    assert [num_steps(strength, 50) for strength in (0, 0.001, 0.3, 1)] == [0, 1, 15, 50]


# --- Re-noised -------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "unipc"])
def test_context_comes_back_bit_for_bit_and_the_rest_follows_it(
    wan_pipeline, settings, source, picture, sampler
):
    way = Renoising(replace(settings, sampler=sampler), 0.7, 9)
    window = Window(4, 9, 2)
    known = source[:, :, :2] + 1
    latents = made(way, wan_pipeline, window, source, picture, known)
    assert latents.shape == (1, 16, 5, 6, 8)
    assert torch.equal(latents[:, :, :2], known)
    assert torch.isfinite(latents).all()
    other = made(way, wan_pipeline, window, source, picture, known - 2)
    # The model sees what it continues.
    assert not torch.equal(latents[:, :, 2:], other[:, :, 2:])


def test_the_model_is_shown_context_as_noisy_as_all_the_rest(
    wan_pipeline, settings, source, picture, monkeypatch
):
    seen = []
    genuine = wan_pipeline.transformer.forward

    def forward(hidden_states, timestep, *args, **kwargs):
        seen.append((hidden_states.clone(), float(timestep[0]) / 1000))
        return genuine(hidden_states, timestep, *args, **kwargs)

    monkeypatch.setattr(wan_pipeline.transformer, "forward", forward)
    way, window = Renoising(settings, 0.5, 9), Window(4, 9, 2)
    known = source[:, :, :2] + 1
    noise = noise_at(settings.seed, window, source)
    part = source[:, :, 4:]
    conditions = way.condition(wan_pipeline, window, part, picture)
    with way.sampling(wan_pipeline, window, conditions, part, known) as sampling:
        list(sampling.steps())
    conditions = wan_pipeline.with_projection(conditions)
    assert len(seen) == 4
    for hidden_states, sigma in seen:
        shown = hidden_states[:, :, :2] + conditions.projected
        expected = (1 - sigma) * known + sigma * noise[:, :, :2]
        torch.testing.assert_close(shown, expected, rtol=0, atol=1e-4)
    first, sigma = seen[0]
    # The grid begins in the middle, with as much of the source as that says.
    assert sigma == pytest.approx(3 * 0.5 / (1 + 2 * 0.5), abs=1e-4)
    shown = first[:, :, 2:] + conditions.projected
    expected = ((1 - sigma) * part + sigma * noise)[:, :, 2:]
    torch.testing.assert_close(shown, expected, rtol=0, atol=1e-4)


def test_full_strength_begins_with_noise_alone(wan_pipeline, settings, source, picture):
    window = Window(0, 5, 0)
    for sampler in ("euler", "unipc"):
        way = Renoising(replace(settings, sampler=sampler), 1.0, 9)
        conditions = way.condition(wan_pipeline, window, source[:, :, :5], picture)
        results = []
        for clip in (source[:, :, :5], source[:, :, :5] * 3 + 1):
            none = clip[:, :, :0]
            with way.sampling(wan_pipeline, window, conditions, clip, none) as sampling:
                assert torch.equal(sampling.latents, noise_at(settings.seed, window, clip))
                list(sampling.steps())
            results.append(sampling.latents)
        assert torch.equal(*results)


def test_the_result_is_further_from_the_source_the_stronger_it_is(
    wan_pipeline, settings, source, picture
):
    window, known = Window(0, 5, 0), source[:, :, :0]
    distances = []
    for strength in (0.02, 0.3, 0.6, 1.0):
        way = Renoising(
            replace(settings, num_inference_steps=max(1, num_steps(strength, 6))), strength, 9
        )
        latents = made(way, wan_pipeline, window, source, picture, known)
        distances.append(float((latents - source[:, :, :5]).pow(2).mean()))
    assert distances == sorted(distances)
    assert distances[0] < 0.1 < distances[-1]


def test_a_video_of_one_window_is_one_clip(wan_pipeline, settings, source, picture):
    # Where nothing is known, a window is what the pipeline itself makes of the same noise.
    window = Window(0, 5, 0)
    latents = made(
        Renoising(settings, 1.0, 5), wan_pipeline, window, source[:, :, :5], picture,
        source[:, :, :0],
    )  # fmt: skip
    inputs = replace(settings, image=picture, num_frames=17)
    conditions = wan_pipeline.condition(inputs)
    noise = noise_at(settings.seed, window, source)
    *_, (_, clip) = wan_pipeline.sample(inputs, conditions, noise)
    assert torch.equal(latents, clip)


def test_a_step_cache_begins_anew_in_every_window(wan_pipeline, settings, source, picture):
    cache = TeaCacheConfig(
        coefficients=(1.0, 0.0), source="a test", num_inference_steps=4, threshold=100.0,
        num_start_steps=1,
    )  # fmt: skip
    way = Renoising(replace(settings, step_cache=cache), 0.9, 9)
    for window in (Window(0, 5, 0), Window(4, 9, 1)):
        part = source[:, :, window.start : window.stop]
        conditions = way.condition(wan_pipeline, window, part, picture)
        known = part[:, :, : window.known]
        with way.sampling(wan_pipeline, window, conditions, part, known) as sampling:
            cached = [step.cached for step in sampling.steps()]
        # The first and the last are always computed.
        assert cached[0] is False
        assert any(cached)
        assert torch.isfinite(sampling.latents).all()


# --- Shown frame by frame --------------------------------------------------------------------


@pytest.fixture
def shown_inputs(inputs):
    return replace(inputs, guidance_scale=1.0)


@pytest.fixture(scope="module")
def frames():
    torch.manual_seed(8)
    return torch.randn(1, 48, 5, 4, 6)


def shown(pipeline, inputs, frames, strength=1.0, window=None, total=5):
    window = window or Window(0, frames.shape[2], 0)
    way = Showing(inputs, strength, total)
    assert isinstance(pipeline.conditioner, QwenVLConditioner)
    return made(way, pipeline, window, frames, _NO_PICTURE, frames[:, :, :0])


def test_windows_of_shown_frames_have_no_seam(pipeline, shown_inputs, frames):
    whole = shown(pipeline, shown_inputs, frames)
    parts = [
        shown(pipeline, shown_inputs, frames, window=window)
        for window in (Window(0, 2, 0), Window(2, 4, 0), Window(4, 5, 0))
    ]
    assert torch.isfinite(whole).all()
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=1e-4, atol=1e-4)


def test_strength_weighs_the_answer_against_the_source(pipeline, shown_inputs, frames):
    answer = shown(pipeline, shown_inputs, frames)
    for strength in (0.0, 0.3, 0.6):
        latents = shown(pipeline, shown_inputs, frames, strength)
        expected = strength * answer + (1 - strength) * frames
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)


def test_prompts_morph_along_the_whole_video(pipeline, shown_inputs, frames):
    alone = [
        shown(pipeline, replace(shown_inputs, prompt=prompt), frames) for prompt in ("ink", "oil")
    ]
    assert not torch.allclose(*alone)
    morph = replace(shown_inputs, prompt="ink", also=(WeightedPrompt("oil", (0.0, 1.0)),))
    latents = shown(pipeline, morph, frames)
    for index in range(5):
        share = index / 4
        expected = (1 - share) * alone[0][:, :, index] + share * alone[1][:, :, index]
        torch.testing.assert_close(latents[:, :, index], expected, rtol=0, atol=1e-4)


def test_guidance_leads_away_from_the_negative_prompt(pipeline, shown_inputs, frames):
    positive = shown(pipeline, replace(shown_inputs, prompt="ink"), frames)
    negative = shown(pipeline, replace(shown_inputs, prompt="oil"), frames)
    guided = replace(shown_inputs, prompt="ink", negative_prompt="oil", guidance_scale=2.0)
    latents = shown(pipeline, guided, frames)
    torch.testing.assert_close(latents, 2 * positive - negative, rtol=0, atol=1e-3)


def test_morphs_are_shared_out_to_windows(wan_pipeline, settings, source, picture):
    inputs = replace(settings, also=(WeightedPrompt("oil", (0.0, 1.0)),))
    way = Renoising(inputs, 0.5, 9)
    found = []
    for window in split(9, 5, 2):
        part = source[:, :, window.start : window.stop]
        ((_, weights),) = way.condition(wan_pipeline, window, part, picture).also
        found += weights[window.known :]
    assert found == pytest.approx([index / 8 for index in range(9)])
