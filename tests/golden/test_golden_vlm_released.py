"""Fixture 6: what the release really feeds, the text model alone with all of its padding."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLTextModel

from osp_cli.conditioning.prompts import QWEN_TEMPLATE
from osp_cli.conditioning.vlm_released import ReleasedQwenConditioner, released_states
from osp_cli.models.state_dict import load_adapter
from osp_cli.registry import find_model
from osp_cli.runtime.loading import load_parts

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")
FACTS = json.loads((DATA / "vlm.json").read_text())
TENSORS = load_file(DATA / "vlm.safetensors")
TOLERANCE = FACTS["tolerance"]["fp32_max_abs"]


def sides(kind):
    """The padding sides for which `kind` is recorded."""
    return sorted(n.split(".")[0] for n in TENSORS if n.endswith(f".{kind}"))


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    """As the release loads it: the text half of a whole checkpoint."""
    folder = tmp_path_factory.mktemp("vlm")
    (folder / "config.json").write_bytes((DATA / "vlm.config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((DATA / "vlm.weights.safetensors").read_bytes())
    model, report = Qwen2_5_VLTextModel.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer that splits the template into the recorded ids, and `<p7>` into the id 7."""
    ids = FACTS["token_ids"]
    system = "system\nYou are a helpful assistant."
    ends = [len(system) * index // len(ids["sysw"]) for index in range(len(ids["sysw"]) + 1)]
    words = {
        system[start:end]: token
        for start, end, token in zip(ends, ends[1:], ids["sysw"], strict=False)
    }
    words |= {"\n": ids["nl"], "user": ids["user"], "assistant": ids["assistant"]}
    words |= {f"<p{token}>": token for token in FACTS["prompt"]}
    control = {
        "<|pad|>": ids["pad"],
        "<|im_start|>": ids["im_start"],
        "<|im_end|>": ids["im_end"],
        "<|vision_start|>": ids["vs"],
        "<|vision_end|>": ids["ve"],
        "<|image_pad|>": ids["img"],
    }
    wordwise = Tokenizer(models.WordLevel(words | control, unk_token="<|pad|>"))
    longest_first = sorted(words, key=len, reverse=True)
    pattern = Regex("|".join(re.escape(word) for word in longest_first))
    wordwise.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    wordwise.add_special_tokens([AddedToken(name, special=True) for name in control])
    return PreTrainedTokenizerFast(tokenizer_object=wordwise, pad_token="<|pad|>")


@pytest.fixture(scope="module")
def make_conditioner(text_model, tokenizer):
    def make(side):
        return ReleasedQwenConditioner(
            text_model,
            tokenizer,
            load_adapter(DATA / "adapter.weights.safetensors"),
            max_sequence_length=TENSORS[f"{side}.input_ids"].shape[1],
            template=QWEN_TEMPLATE,
            num_image_tokens=FACTS["n_image_tokens"],
            padding_side=side,
        )

    return make


@pytest.fixture(params=sides("release_hidden"))
def loaded(request, tmp_path, tokenizer):
    """The conditioner that the card of UniWorld-OSP2.0 gets from a folder of these weights."""
    for name, place in {
        "vlm.config.json": "text_encoder/config.json",
        "vlm.weights.safetensors": "text_encoder/model.safetensors",
        "adapter.weights.safetensors": "adapter/model.safetensors",
    }.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copy(DATA / name, tmp_path / place)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"padding_side": request.param}))
    card = find_model("uniworld-osp2-14b")
    spec = replace(card, dtypes={**card.dtypes, "conditioner": "float32"})
    [(_, conditioner)] = load_parts(
        spec, SimpleNamespace(device="cpu", streamed=(), loras=()), tmp_path, ["conditioner"]
    )
    return request.param, conditioner


def test_the_card_gives_the_recorded_rows(loaded):
    side, conditioner = loaded
    # Everything else is the card's; the recorded picture is smaller than the released size.
    conditioner.num_image_tokens = FACTS["n_image_tokens"]
    states, mask = conditioner.hidden_states([PROMPT])
    assert torch.equal(mask.long(), TENSORS[f"{side}.attention_mask"])
    assert largest_difference(states, f"{side}.release_hidden") <= TOLERANCE
    if side in sides("release_embeds"):
        rows = conditioner.encode([PROMPT])
        assert largest_difference(rows, f"{side}.release_embeds") <= TOLERANCE


PROMPT = "".join(f"<p{token}>" for token in FACTS["prompt"])


def states(text_model, side, count=None):
    ids, mask = TENSORS[f"{side}.input_ids"], TENSORS[f"{side}.attention_mask"]
    return released_states(text_model, ids[:, :count], mask[:, :count])


def largest_difference(got, name):
    assert got.shape == TENSORS[name].shape
    return (got - TENSORS[name]).abs().max().item()


def test_the_folder_has_cases():
    assert sides("release_hidden")
    assert sides("release_embeds")
    assert sides("pre_final_norm")
    assert sides("all_ones_mask_hidden")
    assert "image_pad_embedding" in TENSORS


@pytest.mark.parametrize("side", sides("release_hidden"))
def test_hidden_states(text_model, side):
    assert int(TENSORS[f"{side}.attention_mask"].sum()) == FACTS[side]["n_real"]
    name = f"{side}.release_hidden"
    assert largest_difference(states(text_model, side), name) <= TOLERANCE


@pytest.mark.parametrize("side", sides("release_embeds"))
def test_rows_after_the_adapter(text_model, side):
    adapter = load_adapter(DATA / "adapter.weights.safetensors")
    got = adapter(states(text_model, side))
    assert largest_difference(got, f"{side}.release_embeds") <= TOLERANCE


@pytest.mark.parametrize("side", sides("pre_final_norm"))
def test_states_before_the_final_norm(text_model, side):
    seen = []
    handle = text_model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    states(text_model, side)
    handle.remove()
    real = seen[0][TENSORS[f"{side}.attention_mask"].bool()][None]
    name = f"{side}.pre_final_norm"
    assert largest_difference(real, name) <= TOLERANCE
    # Which of the two is fed matters: the norm changes these states.
    after = TENSORS[f"{side}.release_hidden"][TENSORS[f"{side}.attention_mask"].bool()]
    assert (after[None] - TENSORS[name]).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize("side", sides("all_ones_mask_hidden"))
def test_states_without_a_mask(text_model, side):
    recorded = TENSORS[f"{side}.all_ones_mask_hidden"]
    ids = TENSORS[f"{side}.input_ids"]
    got = released_states(text_model, ids, torch.ones_like(ids))[:, : recorded.shape[1]]
    assert largest_difference(got, f"{side}.all_ones_mask_hidden") <= TOLERANCE


@pytest.mark.parametrize("side", sides("all_ones_mask_hidden"))
def test_the_mask_changes_padding_rows_only(side):
    without = TENSORS[f"{side}.all_ones_mask_hidden"]
    count = without.shape[1]
    real = TENSORS[f"{side}.attention_mask"][:, :count].bool()
    difference = (without - TENSORS[f"{side}.release_hidden"][:, :count]).abs().amax(-1)
    assert (difference[real] <= TOLERANCE).all()
    assert (difference[~real] > TOLERANCE).any()


def test_image_token_is_a_learnt_embedding(text_model):
    token = torch.tensor(FACTS["token_ids"]["img"])
    assert largest_difference(text_model.embed_tokens(token), "image_pad_embedding") <= TOLERANCE


@pytest.mark.parametrize("side", sides("release_hidden"))
def test_positions_count_from_the_first_row(text_model, side):
    positions = []
    rotary = text_model.rotary_emb
    handle = rotary.register_forward_pre_hook(lambda _, inputs: positions.append(inputs[1]))
    states(text_model, side)
    handle.remove()
    counted = torch.arange(TENSORS[f"{side}.input_ids"].shape[1])
    assert torch.equal(positions[0], counted.expand(3, 1, -1))


@pytest.mark.parametrize("side", sides("release_hidden"))
def test_the_conditioner_feeds_the_recorded_rows(make_conditioner, side):
    input_ids, mask = make_conditioner(side).inputs([PROMPT])
    assert torch.equal(input_ids, TENSORS[f"{side}.input_ids"])
    assert torch.equal(mask.long(), TENSORS[f"{side}.attention_mask"])


@pytest.mark.parametrize("side", sides("release_embeds"))
def test_the_conditioner_from_prompt_to_rows(make_conditioner, side):
    got = make_conditioner(side).encode([PROMPT])
    assert largest_difference(got, f"{side}.release_embeds") <= TOLERANCE


@pytest.mark.parametrize("side", sides("release_hidden"))
def test_the_over_long_prompt_keeps_to_the_window(make_conditioner, side):
    """The release lets it grow to more rows; ours gives up the end of the prompt, and says so."""
    conditioner = make_conditioner(side)
    length, num_real = conditioner.max_sequence_length, FACTS["over_long"]["n_real"]
    num_template = FACTS[side]["n_real"] - len(FACTS["prompt"])
    prompt = f"<p{FACTS['prompt'][0]}>" * (num_real - num_template)
    input_ids, mask = conditioner.inputs([prompt])
    assert input_ids.shape == (1, length)
    assert int(mask.sum()) == min(num_real, length)
    recorded = TENSORS[f"{side}.input_ids"][TENSORS[f"{side}.attention_mask"].bool()]
    # <|im_end|>, a new line and the assistant's turn.
    assert torch.equal(input_ids[mask][-5:], recorded[-5:])
    notice = conditioner.notice(prompt)
    assert str(num_real - length) in notice if num_real > length else notice is None
    assert conditioner.notice(PROMPT) is None
