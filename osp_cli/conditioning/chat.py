"""A chat turn as the tokens of a window of fixed length."""

from __future__ import annotations

from typing import Any

from osp_cli.conditioning.prompts import remove_tokens, split_template


class ChatWindow:
    """Turns a prompt into token ids; where room is short the prompt gives way, never the template.

    Args:
        tokenizer: A fast tokenizer that knows the template's control tokens.
        template: Chat turn with `{image}` and `{prompt}`.
        max_sequence_length: Most tokens of a turn, template and picture included.
    """

    def __init__(self, tokenizer: Any, template: str, max_sequence_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_sequence_length = max_sequence_length
        self._head, self._tail = split_template(template)
        self._control_tokens = tuple(tokenizer.get_added_vocab())

    def token_ids(self, prompt: str, num_image_tokens: int = 0) -> list[int]:
        """Tokens of one turn, at most `max_sequence_length`.

        Control tokens in `prompt` are removed.

        Raises:
            ValueError: The picture and the template alone do not fit.
        """
        body, tail, room = self._parts(prompt, num_image_tokens)
        return body[:room] + tail

    def num_cut(self, prompt: str, num_image_tokens: int = 0) -> int:
        """How many tokens at the end of `prompt` do not fit; errors as `token_ids`."""
        body, _, room = self._parts(prompt, num_image_tokens)
        return max(0, len(body) - room)

    def _parts(self, prompt: str, num_image_tokens: int) -> tuple[list[int], list[int], int]:
        """Tokens up to the end of the prompt, those behind it, and the room for the former."""
        image = ""
        if num_image_tokens:
            pads = "<|image_pad|>" * num_image_tokens
            image = f"<|vision_start|>{pads}<|vision_end|>"
        head = self._head.replace("{image}", image)
        body = self._tokenize(head + remove_tokens(prompt, self._control_tokens))
        # The tail begins with a control token, so no token can span the seam.
        tail = self._tokenize(self._tail)
        room = self.max_sequence_length - len(tail)
        needed = len(self._tokenize(head))
        if room < needed:
            raise ValueError(
                f"the picture and the template take {needed + len(tail)} tokens, "
                f"max_sequence_length is {self.max_sequence_length}"
            )
        return body, tail, room

    def _tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def cut_notice(num_cut: int) -> str | None:
    """What to tell the user about a prompt that lost its end; None where nothing was lost."""
    if not num_cut:
        return None
    tokens = "token does" if num_cut == 1 else f"{num_cut} tokens do"
    return f"the prompt is too long for the model: its last {tokens} not count"
