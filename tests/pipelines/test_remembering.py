"""Endless video from a remembered picture, by the model inside the package."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from osp_cli.media.image import to_tensor_values
from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.models.latents import decode_latents, encode_latents
from osp_cli.models.picture_memory import OVERLAP
from osp_cli.models.state_dict import load_adapter, load_transformer
from osp_cli.pipelines.realtime import RealtimePipeline, StreamInputs, StreamState
from osp_cli.pipelines.remembering import RememberingPipeline
from osp_cli.procedural.scenes import sharp_canvases
from osp_cli.registry import find_model
from osp_cli.training.mini_vlm import load_vlm, new_conditioner

WIDTH, HEIGHT = 192, 128
INPUTS = StreamInputs(
    width=WIDTH, height=HEIGHT, latent_frames=4, num_inference_steps=(1,), seed=3, shift=3.0
)


@pytest.fixture(scope="module")
def parts():
    """Transformer, autoencoder and conditioner as the package holds them."""
    folder = find_model("osp-mini").weights_dir()
    transformer = load_transformer(folder / "transformer", dtype=torch.float32).eval()
    conditioner = new_conditioner(1, transformer.config.text_dim, transformer.config.in_channels)
    conditioner.model = load_vlm(folder / "text_encoder")
    conditioner.adapter = load_adapter(folder / "adapter", dtype=torch.float32)
    conditioner.image_adapter = load_adapter(folder / "image_adapter", dtype=torch.float32)
    vae = AutoencoderLinear.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    return transformer, vae, conditioner


@pytest.fixture(scope="module")
def picture():
    scene = sharp_canvases(torch.Generator().manual_seed(5), 1, HEIGHT, WIDTH)[0].clamp(0, 1)
    return Image.fromarray((scene.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())


@pytest.fixture
def engine(parts):
    card = find_model("osp-mini")
    return RememberingPipeline(*parts, card.realtime, surround=card.image_token_surround)


@pytest.fixture
def start(engine, picture):
    """The state before the first chunk."""
    pixels = torch.from_numpy(to_tensor_values(picture))[None, :, None]
    return engine.begin(INPUTS, None, encode_latents(engine.vae, pixels), picture)


def test_the_card_asks_for_it():
    assert find_model("osp-mini").realtime.memory == "picture"


def test_a_stream_neither_fades_nor_builds_up_a_pattern(engine, finished, start, picture):
    def contrasts(engine, state):
        words = engine.read("the camera rolls right slowly", None, picture)
        found = []
        for _ in range(12):
            latents, state, _ = finished(engine.chunk(INPUTS, state, words))
            pixels = decode_latents(engine.vae, latents[:, :, -1:])
            found.append(pixels.diff(dim=-1).abs().mean().item())
        return found

    remembering = contrasts(engine, start)
    assert remembering[-1] == pytest.approx(remembering[1], rel=0.15)
    forgetful = RealtimePipeline(
        engine.transformer, engine.vae, engine.conditioner, engine.figures, engine.surround
    )
    alone = contrasts(forgetful, start)
    assert abs(alone[-1] / alone[1] - 1) > 0.15


def test_another_style_is_painted_from_the_picture_not_over_the_last_style(
    engine, finished, start, picture
):
    noir = engine.read("gotham noir style, pan left", None, picture)
    plain = engine.read("pan left", None, picture)
    _, state, _ = finished(engine.chunk(INPUTS, start, noir, paint=True))
    _, state, _ = finished(engine.chunk(INPUTS, state, noir, paint=True))
    after, _, _ = finished(engine.chunk(INPUTS, state, plain))
    _, state, _ = finished(engine.chunk(INPUTS, start, plain))
    _, state, _ = finished(engine.chunk(INPUTS, state, plain))
    never, _, _ = finished(engine.chunk(INPUTS, state, plain))
    # Past the overlap nothing is left of the style.
    torch.testing.assert_close(after[:, :, OVERLAP:], never[:, :, OVERLAP:])
    assert (after[:, :, 0] - never[:, :, 0]).abs().max() > 0.1


def test_a_stream_goes_on_from_a_file_to_the_very_same_bits(
    engine, finished, start, picture, tmp_path
):
    words = engine.read("zoom in", None, picture)
    _, state, _ = finished(engine.chunk(INPUTS, start, words))
    save_file(state.tensors(), tmp_path / "state.safetensors")
    again = StreamState.from_tensors(load_file(tmp_path / "state.safetensors"))
    whole, after, _ = finished(engine.chunk(INPUTS, state, words))
    resumed, resumed_after, _ = finished(engine.chunk(INPUTS, again, words))
    assert torch.equal(whole, resumed)
    tensors = resumed_after.tensors()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in after.tensors().items())


def test_without_pixels_the_picture_is_what_the_latents_show(engine, start, picture):
    decoded = engine.begin(INPUTS, None, start.history).memory["picture"]
    assert decoded.shape == (HEIGHT, WIDTH, 3) and decoded.dtype == torch.uint8
    kept = start.memory["picture"]
    assert (decoded.float() - kept.float()).abs().mean() < 12
    groups = engine.begin(INPUTS, start.history.repeat(1, 1, 3, 1, 1)).memory["picture"]
    assert (groups.float() - kept.float()).abs().mean() < 12


def test_it_needs_a_picture(engine, start):
    with pytest.raises(ValueError, match="there is none"):
        engine.begin(INPUTS)
    words = engine.read("zoom in")
    with pytest.raises(ValueError, match="picture of its own state"):
        next(engine.chunk(INPUTS, replace(start, memory={}), words))
