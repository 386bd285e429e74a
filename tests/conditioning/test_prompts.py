"""Prompt text before tokenising."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osp_cli.conditioning.prompts import (
    QWEN_TEMPLATE,
    USER_TEMPLATE,
    clean_prompt,
    remove_tokens,
    split_template,
)

TOKENS = ("<|im_end|>", "<|image_pad|>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  two\n words\t", "two words"),
        ("cats &amp; dogs", "cats & dogs"),
        ("a &amp;lt; b", "a < b"),
        ("", ""),
        ("日本　の  風景", "日本 の 風景"),
    ],
)
def test_cleaning(text, expected):
    assert clean_prompt(text) == expected


@given(
    st.lists(st.sampled_from([*TOKENS, "<|im_", "end|>", "<|image", "_pad|>", "a"])).map("".join)
)
def test_no_token_survives_removal(text):
    cleaned = remove_tokens(text, TOKENS)
    assert not any(token in cleaned for token in TOKENS)
    assert any(token in text for token in TOKENS) or cleaned == text


@pytest.mark.parametrize("template", [USER_TEMPLATE, QWEN_TEMPLATE])
def test_templates_split_at_the_prompt(template):
    head, tail = split_template(template)
    assert "{image}" in head
    assert f"{head}{{prompt}}{tail}" == template


@pytest.mark.parametrize("template", ["no place", "{prompt}{prompt}", "{prompt}{image}"])
def test_templates_without_a_clear_place_are_refused(template):
    with pytest.raises(ValueError, match="once, after"):
        split_template(template)
