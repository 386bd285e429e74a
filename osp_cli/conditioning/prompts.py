"""Prompt text before it meets a tokenizer."""

from __future__ import annotations

import html
from collections.abc import Iterable

# The chat turn of the small model; the system turn carries no information there.
USER_TEMPLATE = "<|im_start|>user\n{image}{prompt}<|im_end|>\n<|im_start|>assistant\n"
# The chat turn of the released Qwen2.5-VL pipeline.
QWEN_TEMPLATE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + USER_TEMPLATE


def clean_prompt(text: str) -> str:
    """Undo HTML escapes (twice escaped too) and collapse white space, as the released umT5 does.

    The release also repairs mis-decoded text with ftfy; that is not done here.
    """
    return " ".join(html.unescape(html.unescape(text)).split())


def remove_tokens(text: str, tokens: Iterable[str]) -> str:
    """Take a tokenizer's control tokens out of user text.

    Without this a prompt holding `<|im_end|>` would close its own turn, and one holding
    `<|image_pad|>` would claim picture features that do not exist.
    """
    tokens = [token for token in tokens if token]
    # Until nothing changes: removing an inner token must not assemble an outer one.
    while any(token in text for token in tokens):
        for token in tokens:
            text = text.replace(token, "")
    return text


def split_template(template: str) -> tuple[str, str]:
    """Split at `{prompt}` into head and tail.

    Raises:
        ValueError: The template lacks `{prompt}`, repeats it, or has `{image}` behind it.
    """
    head, found, tail = template.partition("{prompt}")
    if not found or "{prompt}" in tail or "{image}" in tail:
        raise ValueError(f"a chat template needs {{prompt}} once, after {{image}}: {template!r}")
    return head, tail
