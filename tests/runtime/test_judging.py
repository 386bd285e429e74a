"""A tiny CLIP as the judge of styles."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from osp_cli.errors import CheckpointError, InvalidRequestError
from osp_cli.runtime.judging import ClipJudge, check_judge

STYLES = {"ink": "ink painting style", "oil": "oil painting style", "lego": "lego style"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights in the true layout; one token a letter."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text = {**small, "num_attention_heads": 2, "vocab_size": len(words), "eos_token_id": 75}
    vision = {**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_styles_are_ranked_by_the_cosine_of_picture_and_words(folder):
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    judge = ClipJudge(folder, STYLES, "cpu")
    model = CLIPModel.from_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessor.from_pretrained(folder)
    texts = [*(f"a picture in {words}" for words in STYLES.values()), "a photo"]
    for seed in range(4):
        pixels = processor(images=picture(seed), return_tensors="pt")
        cosines = []
        for text in texts:
            with torch.no_grad():
                # One text at a time: padding must not matter.
                both = model(**tokenizer([text], return_tensors="pt"), **pixels)
            cosines.append(float((both.text_embeds * both.image_embeds).sum()))
        order = np.argsort(cosines)[::-1]
        assert judge.rank(picture(seed)) == [[*STYLES, "none"][k] for k in order]
    assert len(judge.describe()["weights_sha256"]) == 64


def test_what_is_no_clip_is_refused(folder, tmp_path):
    for text in (None, "{", "[]", '{"model_type": "bert"}'):
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        with pytest.raises(InvalidRequestError, match="holds no CLIP"):
            check_judge(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        ClipJudge(tmp_path, STYLES, "cpu")
