"""umT5 conditioning."""

from __future__ import annotations

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from osp_cli.conditioning.umt5 import UMT5Conditioner


@pytest.fixture(scope="module")
def conditioner(tokenizer):
    # As the real one: padding is token 0's place in the mask, and every text ends with </s>.
    ending = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>"
    )
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", ending.eos_token_id)]
    )
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=len(ending), d_model=8, d_kv=4, d_ff=12, num_heads=2, num_layers=1
    )
    return UMT5Conditioner(ending, UMT5EncoderModel(config).eval(), max_sequence_length=24)


def test_rows_behind_the_text_are_zero(conditioner):
    got = conditioner.encode(["pan left", ""])
    assert got.shape == (2, 24, 8)
    lengths = [len("pan left") + 1, 1]
    for states, length in zip(got, lengths, strict=True):
        assert states[:length].any(dim=-1).all()
        assert not states[length:].any()


def test_a_sample_does_not_depend_on_its_batch(conditioner):
    together = conditioner.encode(["pan left", "zoom"])
    torch.testing.assert_close(together[1:], conditioner.encode(["zoom"]))


def test_long_prompts_lose_their_end(conditioner):
    got = conditioner.encode(["x" * 100])
    assert got.shape == (1, 24, 8)
    assert got.any(dim=-1).all()


def test_a_long_prompt_is_said_to_lose_its_end(conditioner):
    conditioner.encode(["zoom"])
    # The end token takes one of the 24 places.
    assert conditioner.notice("x" * 23) is None
    assert "last token does not" in conditioner.notice("x" * 24 + "  ")
    assert "last 8 tokens do not" in conditioner.notice("x" * 31)


def test_white_space_and_escapes_do_not_matter(conditioner):
    assert torch.equal(
        conditioner.encode(["  pan &amp;amp;\n\tleft "]), conditioner.encode(["pan & left"])
    )


def test_pictures_have_no_influence(conditioner):
    latents = torch.randn(1, 3, 1, 2, 2)
    assert torch.equal(
        conditioner.encode(["zoom"], image_latents=latents), conditioner.encode(["zoom"])
    )
