"""The tiny vision-language model: any bytes go in, the right shapes come out, it can be taught."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from osp_cli.procedural.prompts import CAMERA_PHRASES, SCENE_PHRASES, STYLE_PHRASES
from osp_cli.training.mini_vlm import (
    MAX_SEQUENCE_LENGTH,
    SPECIAL_TOKENS,
    VOCABULARY,
    Questions,
    build_tokenizer,
    load_vlm,
    new_conditioner,
    pretrain,
    save_vlm,
)

TEXT_DIM = 24


@pytest.fixture(scope="module")
def conditioner():
    return new_conditioner(3, TEXT_DIM)


@pytest.fixture(scope="module")
def tokenizer(conditioner):
    return conditioner.tokenizer


@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_becomes_tokens_and_comes_back(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert all(0 <= token < VOCABULARY for token in ids)
    if not any(token in text for token in SPECIAL_TOKENS):
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_every_byte_is_a_token(tokenizer):
    for text in ("".join(map(chr, range(256))), "日本語 🎬 عربى", "\x00\x7f\t\r\n"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_known_phrases_are_short(tokenizer):
    phrases = [
        phrase
        for table in (CAMERA_PHRASES, SCENE_PHRASES, STYLE_PHRASES)
        for group in table.values()
        for phrase in group
    ]
    tokens = sum(len(tokenizer(p, add_special_tokens=False)["input_ids"]) for p in phrases)
    assert tokens < 0.35 * sum(map(len, phrases))
    assert len(tokenizer) <= VOCABULARY


def test_a_tokenizer_follows_from_its_seed(tokenizer):
    assert build_tokenizer(3).get_vocab() == tokenizer.get_vocab()


def test_a_conditioner_follows_from_its_seed(conditioner):
    torch.manual_seed(99)
    again, other = new_conditioner(3, TEXT_DIM), new_conditioner(4, TEXT_DIM)
    for part in ("model", "adapter", "image_adapter"):
        for name, value in getattr(conditioner, part).state_dict().items():
            assert torch.equal(value, getattr(again, part).state_dict()[name]), name
    weight = conditioner.adapter.fc1.weight
    assert not torch.equal(weight, other.adapter.fc1.weight)


@pytest.mark.parametrize(("width", "height"), [(224, 128), (128, 224), (176, 176)])
def test_conditioning_has_one_length_with_and_without_a_picture(conditioner, width, height):
    picture = Image.effect_noise((width, height), 60).convert("RGB")
    # Latents of 16-pixel blocks of a picture twice as large, a token each.
    latents = torch.randn(1, 48, 1, height // 8, width // 8)
    with torch.no_grad():
        both = conditioner.encode(["pan left"], images=[picture], image_latents=latents)
        text = conditioner.encode(["pan left"], image_latents=latents)
        nothing = conditioner.encode([""], image_latents=latents)
    tokens = (height // 8) * (width // 8)
    assert both.shape == text.shape == (1, MAX_SEQUENCE_LENGTH + tokens, TEXT_DIM)
    # Dropped image tokens are zeros, kept ones are not; the prompt is told apart.
    assert text[:, MAX_SEQUENCE_LENGTH:].abs().max() == 0.0
    assert both[:, MAX_SEQUENCE_LENGTH:].abs().mean() > 0.01
    assert not torch.allclose(text, nothing)


def test_a_long_prompt_is_cut_and_a_strange_one_accepted(conditioner):
    with torch.no_grad():
        for prompt in ("word " * 500, "\x00\xff" * 300, "吹" * 400):
            encoded = conditioner.encode([prompt])
            assert encoded.shape == (1, MAX_SEQUENCE_LENGTH, TEXT_DIM)
            assert encoded.isfinite().all()


def test_the_model_survives_its_folder(tmp_path):
    conditioner = new_conditioner(5, TEXT_DIM)
    save_vlm(conditioner, tmp_path)
    loaded = load_vlm(tmp_path)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for name, value in conditioner.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.float()), name
    assert {"tokenizer.json", "preprocessor_config.json"} <= {p.name for p in tmp_path.iterdir()}


def test_pretraining_teaches_and_then_freezes():
    conditioner = new_conditioner(6, TEXT_DIM)
    pictures = torch.randint(
        0, 256, (6, 3, 56, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    before = {k: v.clone() for k, v in conditioner.model.state_dict().items()}
    steps = []
    torch.manual_seed(0)
    accuracy = pretrain(
        conditioner, pictures, 2, 24, lambda *report: steps.append(report), batch_size=12
    )
    assert [step for step, _ in steps] == list(range(1, 25))
    losses = [loss for _, loss in steps]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    assert set(accuracy) == {"camera", "scene", "speed", "style"}
    assert all(0.0 <= value <= 1.0 for value in accuracy.values())
    assert not any(p.requires_grad for p in conditioner.model.parameters())
    assert not conditioner.model.training
    after = conditioner.model.state_dict()
    # Both towers have learned.
    for part in ("visual.", "language_model."):
        assert any(not torch.equal(after[k], before[k]) for k in before if k.startswith(part))


def test_questions_count_right_answers():
    torch.manual_seed(0)
    questions = Questions(8)
    state = torch.randn(5, 8)
    answers = {name: head(state).argmax(-1) for name, head in questions.heads.items()}
    assert set(questions.accuracy(state, answers).values()) == {1.0}
    wrong = {
        name: (answer + 1) % questions.heads[name].out_features for name, answer in answers.items()
    }
    assert set(questions.accuracy(state, wrong).values()) == {0.0}
    assert questions.loss(state, answers, None) < questions.loss(state, wrong, None)
    colours = torch.zeros(5, 12)
    extra = questions.loss(state, answers, colours) - questions.loss(state, answers, None)
    expected = 4 * questions.colours(state).square().mean()
    torch.testing.assert_close(extra, expected)
