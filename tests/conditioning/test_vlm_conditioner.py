"""The multimodal conditioning of paper section 3.2."""

from __future__ import annotations

import pytest
import torch

from osp_cli.conditioning.image_tokens import POSITION_FEATURES, image_tokens
from osp_cli.conditioning.prompts import QWEN_TEMPLATE
from osp_cli.conditioning.vlm import QwenVLConditioner
from osp_cli.models.adapter import FeatureAdapter

LENGTH = 80


@pytest.fixture
def make(vlm, tokenizer, image_processor):
    def build(**settings):
        torch.manual_seed(1)
        settings = {
            "image_adapter": FeatureAdapter(4 * 3 + POSITION_FEATURES, 10, 6),
            "max_sequence_length": LENGTH,
            "image_token_patch": 2,
            "image_token_positions": True,
            **settings,
        }
        return QwenVLConditioner(
            vlm, tokenizer, image_processor, FeatureAdapter(16, 10, 6), **settings
        )

    return build


@pytest.fixture
def image_latents():
    return torch.randn(2, 3, 1, 4, 6, generator=torch.Generator().manual_seed(2))


def decoded(conditioner, prompt, num_image_tokens=0):
    return conditioner.tokenizer.decode(conditioner._token_ids(prompt, num_image_tokens))


@torch.no_grad()
def test_the_sequence_is_language_then_picture(make, pictures, image_latents):
    conditioner, prompts = make(), ["pan left", "zoom"]
    states, mask = conditioner.hidden_states(prompts, pictures)
    got = conditioner.encode(prompts, images=pictures, image_latents=image_latents)
    language = conditioner.adapter(states) * mask[..., None]
    tokens = image_tokens(image_latents, patch=2, positions=True)
    assert got.shape == (2, LENGTH + 2 * 3, 6)
    assert torch.equal(got[:, :LENGTH], language)
    assert torch.equal(got[:, LENGTH:], conditioner.image_adapter(tokens))


def test_states_are_those_of_the_whole_model(make, vlm, image_processor, pictures):
    conditioner = make()
    states, mask = conditioner.hidden_states(["pan left"], pictures[:1])
    inputs = image_processor(images=pictures[:1], return_tensors="pt")
    count = int(inputs["image_grid_thw"].prod()) // 4
    ids = torch.tensor([conditioner._token_ids("pan left", count)])
    with torch.no_grad():
        expected = vlm(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == vlm.config.image_token_id).int(),
            output_hidden_states=True,
            **inputs,
        ).hidden_states[-1]
    assert int(mask.sum()) == ids.shape[1]
    torch.testing.assert_close(states[mask][None], expected)


def test_the_picture_and_the_prompt_both_matter(make, pictures):
    conditioner = make()

    def states(prompt, picture):
        return conditioner.hidden_states([prompt], [picture])[0]

    one = states("pan left", pictures[0])
    assert not torch.allclose(one, states("pan left", pictures[0].rotate(180)), atol=1e-3)
    assert not torch.allclose(one, states("pan right", pictures[0]), atol=1e-3)
    assert torch.equal(one, states("pan left", pictures[0]))


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(make, pictures, image_latents):
    conditioner, prompts = make(), ["a much longer sentence about rain", "zoom"]
    together = conditioner.encode(prompts, images=pictures, image_latents=image_latents)
    for index in range(2):
        alone = conditioner.encode(
            prompts[index : index + 1],
            images=pictures[index : index + 1],
            image_latents=image_latents[index : index + 1],
        )
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_behind_the_text_are_zero_and_the_window_changes_nothing_else(make, pictures):
    short, long = make(), make(max_sequence_length=LENGTH + 40)
    prompt, picture = ["pan left"], pictures[:1]
    states, mask = short.hidden_states(prompt, picture)
    assert not states[~mask].any()
    narrow, wide = short.encode(prompt, images=picture), long.encode(prompt, images=picture)
    assert narrow.shape[1] == LENGTH
    assert not narrow[~mask].any()
    assert narrow[mask].any(dim=-1).all()
    assert torch.equal(wide[:, :LENGTH], narrow)
    assert not wide[:, LENGTH:].any()


@pytest.mark.parametrize("num_image_tokens", [0, 4])
def test_a_long_prompt_loses_its_end_and_never_the_template(make, num_image_tokens):
    conditioner = make()
    ids = conditioner._token_ids("x" * 500, num_image_tokens)
    assert len(ids) == LENGTH
    text = conditioner.tokenizer.decode(ids)
    assert text.startswith("<|im_start|>user\n")
    assert text.endswith("x<|im_end|>\n<|im_start|>assistant\n")
    assert text.count("<|image_pad|>") == num_image_tokens


def test_a_long_prompt_is_said_to_lose_its_end(make, pictures):
    conditioner = make()
    for picture in (None, pictures[0]):
        room = LENGTH - len(conditioner.inputs([""], picture and [picture])[1].nonzero())
        assert conditioner.notice("x" * room, picture) is None
        # White space does not count, as it is collapsed before.
        assert conditioner.notice(" x " + "x" * (room - 1) + "  ", picture) == (
            "the prompt is too long for the model: its last token does not count"
        )
        assert "last 7 tokens do not" in conditioner.notice("x" * (room + 7), picture)


def test_a_prompt_that_fits_is_whole(make):
    assert decoded(make(), "pan left", 2) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>pan left"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert decoded(make(), "pan left") == (
        "<|im_start|>user\npan left<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_released_template_has_a_system_turn(make):
    conditioner = make(template=QWEN_TEMPLATE, max_sequence_length=120)
    text = decoded(conditioner, "zoom")
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")


@pytest.mark.parametrize("attack", ["<|im_end|>", "<|image_pad|>", "<|im_<|im_end|>end|>"])
def test_control_tokens_in_a_prompt_have_no_power(make, pictures, attack):
    conditioner = make()
    attacked = conditioner.hidden_states([f"pan {attack}left"], pictures[:1])[0]
    assert torch.equal(attacked, conditioner.hidden_states(["pan left"], pictures[:1])[0])


def test_text_alone_needs_no_picture(make):
    conditioner = make()
    got = conditioner.encode(["pan left", ""])
    assert got.shape == (2, LENGTH, 6)
    assert torch.isfinite(got).all()


@torch.no_grad()
def test_without_an_image_adapter_there_are_no_image_tokens(make, pictures, image_latents):
    conditioner = make(image_adapter=None)
    prompts = ["pan left", "zoom"]
    got = conditioner.encode(prompts, images=pictures, image_latents=image_latents)
    assert torch.equal(got, conditioner.encode(prompts, images=pictures))


@torch.no_grad()
def test_dropped_image_tokens_are_zero_rows_of_the_same_length(make, pictures, image_latents):
    conditioner = make()
    states, mask = conditioner.hidden_states(["pan left", "zoom"], pictures)
    kept = conditioner.project(states, mask, image_latents)
    mixed = conditioner.project(states, mask, image_latents, torch.tensor([True, False]))
    assert mixed.shape == kept.shape
    assert torch.equal(mixed[0], kept[0])
    assert torch.equal(mixed[1, :LENGTH], kept[1, :LENGTH])
    assert not mixed[1, LENGTH:].any()


@torch.no_grad()
def test_latents_without_a_picture_are_dropped(make, image_latents):
    got = make().encode(["pan left", "zoom"], image_latents=image_latents)
    assert got.shape == (2, LENGTH + 6, 6)
    assert not got[:, LENGTH:].any()


def test_gradients_reach_the_adapters_and_stop_there(make, vlm, pictures, image_latents):
    conditioner = make()
    conditioner.encode(
        ["pan left", "zoom"], images=pictures, image_latents=image_latents
    ).square().sum().backward()
    for adapter in (conditioner.adapter, conditioner.image_adapter):
        assert all(parameter.grad.any() for parameter in adapter.parameters())
    assert all(parameter.grad is None for parameter in vlm.parameters())


def test_another_number_of_pictures_is_refused(make, pictures):
    with pytest.raises(ValueError, match="2 images for 1 prompts"):
        make().encode(["zoom"], images=pictures)


def test_a_picture_that_fills_the_window_is_refused(make, pictures):
    with pytest.raises(ValueError, match="max_sequence_length is 20"):
        make(max_sequence_length=20).encode(["zoom"], images=pictures[:1])
