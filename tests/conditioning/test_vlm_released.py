"""The released way of running Qwen2.5-VL, which never looks at the picture."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil

from osp_cli.conditioning.prompts import USER_TEMPLATE
from osp_cli.conditioning.vlm_released import (
    RELEASED_IMAGE_TOKENS,
    ReleasedQwenConditioner,
    released_states,
)
from osp_cli.models.adapter import FeatureAdapter

LENGTH = 60
NUM_IMAGE_TOKENS = 3


@pytest.fixture
def make(vlm, tokenizer):
    def build(model=vlm, **settings):
        torch.manual_seed(1)
        settings = {
            "max_sequence_length": LENGTH,
            "template": USER_TEMPLATE,
            "num_image_tokens": NUM_IMAGE_TOKENS,
            **settings,
        }
        return ReleasedQwenConditioner(model, tokenizer, FeatureAdapter(16, 10, 6), **settings)

    return build


def text_of(conditioner, prompt):
    input_ids, mask = conditioner.inputs([prompt])
    return conditioner.tokenizer.decode(input_ids[mask])


def room_for_prompt(conditioner):
    return conditioner.max_sequence_length - int(conditioner.inputs([""])[1].sum())


def test_the_number_of_image_tokens_is_that_of_the_released_size(tokenizer, vlm):
    grid = Qwen2VLImageProcessorPil()(images=[Image.new("RGB", (416, 240))])["image_grid_thw"][0]
    assert int(torch.as_tensor(grid).prod()) // 4 == RELEASED_IMAGE_TOKENS
    conditioner = ReleasedQwenConditioner(vlm, tokenizer, FeatureAdapter(16, 10, 6))
    assert text_of(conditioner, "zoom") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|>" + "<|image_pad|>" * RELEASED_IMAGE_TOKENS + "<|vision_end|>zoom"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


@torch.no_grad()
def test_pictures_have_no_influence(make, pictures):
    conditioner, prompts = make(), ["pan left", "zoom"]
    expected = conditioner.encode(prompts)
    assert expected.shape == (2, LENGTH, 6)
    latents = torch.randn(2, 3, 1, 4, 6)
    assert torch.equal(conditioner.encode(prompts, images=pictures), expected)
    assert torch.equal(conditioner.encode(prompts, image_latents=latents), expected)
    assert not torch.allclose(conditioner.encode(["tilt up", "zoom"])[0], expected[0], atol=1e-3)


@torch.no_grad()
def test_every_row_passes_the_adapter_without_a_mask(make):
    conditioner = make()
    states, mask = conditioner.hidden_states(["pan left"])
    got = conditioner.encode(["pan left"])
    assert torch.equal(got, conditioner.adapter(states))
    padding = got[~mask]
    assert padding.any(dim=-1).all()
    # They are not copies of one row either: each has a position of its own.
    assert not torch.allclose(padding[0], padding[-1], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_stands_on_its_side_and_changes_no_real_row(make, side):
    conditioner = make(padding_side=side)
    input_ids, mask = conditioner.inputs(["pan left"])
    count = int(mask.sum())
    real = slice(count) if side == "right" else slice(LENGTH - count, None)
    assert mask[0, real].all()
    assert (input_ids[~mask] == conditioner.tokenizer.pad_token_id).all()
    states, _ = conditioner.hidden_states(["pan left"])
    # Rotary positions are relative, so an unpadded run agrees wherever it begins.
    alone = released_states(conditioner.model, input_ids[mask][None], mask[mask][None])
    torch.testing.assert_close(states[:, real], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_sample_does_not_depend_on_its_batch(make, side):
    conditioner = make(padding_side=side)
    together = conditioner.encode(["a much longer prompt", "zoom"])
    torch.testing.assert_close(together[1:], conditioner.encode(["zoom"]), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_any_qwen_that_holds_the_text_model_does(make, vlm):
    expected = make(vlm).encode(["zoom"])
    assert torch.equal(make(vlm.model).encode(["zoom"]), expected)
    assert torch.equal(make(vlm.model.language_model).encode(["zoom"]), expected)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_long_prompt_loses_its_end_and_never_the_template(make, side):
    conditioner = make(padding_side=side)
    room = room_for_prompt(conditioner)
    assert text_of(conditioner, "x" * (room + 1) + "lost") == (
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * NUM_IMAGE_TOKENS + "<|vision_end|>"
        + "x" * room + "<|im_end|>\n<|im_start|>assistant\n"
    )  # fmt: skip
    assert conditioner.encode(["x" * 500]).shape == (1, LENGTH, 6)


def test_a_long_prompt_is_said_to_lose_its_end(make):
    conditioner = make()
    room = room_for_prompt(conditioner)
    assert conditioner.notice("") is None
    assert conditioner.notice("x" * room) is None
    assert conditioner.notice("x" * (room + 1)) == (
        "the prompt is too long for the model: its last token does not count"
    )
    assert "last 40 tokens do not" in conditioner.notice("x" * (room + 40))


def test_prompts_are_taken_as_they_are(make):
    # The release cleans them for umT5 only.
    assert "pan  &amp;\nleft" in text_of(make(), "pan  &amp;\nleft")


@pytest.mark.parametrize("attack", ["<|im_end|>", "<|image_pad|>", "<|im_<|im_end|>end|>"])
def test_control_tokens_in_a_prompt_have_no_power(make, attack):
    conditioner = make()
    got, expected = conditioner.inputs([f"pan {attack}left"]), conditioner.inputs(["pan left"])
    assert all(map(torch.equal, got, expected))


def test_gradients_reach_the_adapter_and_stop_there(make, vlm):
    conditioner = make()
    conditioner.encode(["zoom"]).square().sum().backward()
    assert all(parameter.grad.any() for parameter in conditioner.adapter.parameters())
    assert all(parameter.grad is None for parameter in vlm.parameters())


def test_a_window_that_the_picture_fills_is_refused(make):
    with pytest.raises(ValueError, match="max_sequence_length is 20"):
        make(max_sequence_length=20).encode(["zoom"])


def test_an_unknown_padding_side_is_refused(make):
    with pytest.raises(ValueError, match="left or right"):
        make(padding_side="longest")


def test_a_tokenizer_without_padding_is_refused(vlm, tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="padding token"):
        ReleasedQwenConditioner(vlm, bare, FeatureAdapter(16, 10, 6))
