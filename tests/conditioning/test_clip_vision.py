"""What the image-to-video models of Wan see of a picture besides its latents."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from osp_cli.conditioning.clip_vision import FirstFrameConditioner


class Letters:
    """One row a letter, and a word on every prompt."""

    def encode(self, prompts, *, images=None, image_latents=None):
        return torch.tensor([[float(ord(letter))] for letter in prompts[0]])[None]

    def notice(self, prompt, image=None):
        return f"{prompt} has {len(prompt)} letters"


@pytest.fixture(scope="module")
def conditioner():
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    encoder = CLIPVisionModel(config).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    processor = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    return FirstFrameConditioner(Letters(), processor, encoder)


def test_one_row_a_patch_and_one_for_all(conditioner, pictures):
    assert conditioner.see(pictures).shape == (2, 1 + 16, 16)


def test_the_last_layer_is_left_out(conditioner, pictures, monkeypatch):
    before = conditioner.see(pictures)
    layers = conditioner.image_encoder.encoder.layers
    with torch.no_grad():
        whole = conditioner.image_encoder(
            **conditioner.processor(images=pictures, return_tensors="pt")
        ).last_hidden_state
        assert (whole - before).abs().max() > 0.1
    # What the last layer does, and the norm behind it, cannot be seen.
    monkeypatch.setattr(layers[-1], "forward", lambda hidden_states, *_, **__: hidden_states * 0)
    assert torch.equal(conditioner.see(pictures), before)
    monkeypatch.setattr(layers[-2], "forward", lambda hidden_states, *_, **__: hidden_states * 0)
    assert not torch.equal(conditioner.see(pictures), before)


def test_pictures_do_not_depend_on_their_company(conditioner, pictures):
    together = conditioner.see(pictures)
    for index, picture in enumerate(pictures):
        torch.testing.assert_close(together[index : index + 1], conditioner.see([picture]))


def test_a_picture_is_squeezed_as_the_processor_says(conditioner):
    wide = Image.linear_gradient("L").rotate(90).resize((128, 32)).convert("RGB")
    torch.testing.assert_close(
        conditioner.see([wide]),
        conditioner.see([wide.resize((32, 32), Image.Resampling.BICUBIC)]),
        atol=0.02,
        rtol=0.02,
    )
    cropped = conditioner.see([wide.crop((48, 0, 80, 32))])
    assert (conditioner.see([wide]) - cropped).abs().max() > 0.1


def test_the_encoder_keeps_its_precision(conditioner, pictures):
    assert conditioner.see(pictures).dtype == torch.float32
    assert not conditioner.see(pictures).requires_grad


def test_prompts_are_the_other_conditioner_s(conditioner, pictures):
    assert conditioner.encode(["ab"], images=pictures).flatten().tolist() == [97.0, 98.0]
    assert conditioner.notice("abc") == "abc has 3 letters"
