"""The card of the released model: Qwen2.5-VL's text half out of a whole checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextModel,
)

from osp_cli import registry
from osp_cli.conditioning.vlm_released import (
    RELEASED_IMAGE_TOKENS,
    ReleasedQwenConditioner,
    released_states,
)
from osp_cli.errors import CheckpointError, WeightsMissingError
from osp_cli.media.video import probe_video
from osp_cli.models.adapter import FeatureAdapter
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.registry import find_model, model_specs
from osp_cli.runtime import runner
from osp_cli.runtime.devices import this_machine
from osp_cli.runtime.loading import load_components, load_parts
from osp_cli.runtime.planner import make_plan

ROWS = 240
WIDTH = 16
TEXT_DIM = 24
CONTROL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)


def save_tokenizer(folder, *, padding_side=None, control=CONTROL):
    """One token a letter, and the control tokens."""
    letters = {chr(code): code - 32 for code in range(32, 127)} | {"\n": 95}
    known = letters | {name: 96 + index for index, name in enumerate(control)}
    letterwise = Tokenizer(models.WordLevel(known, unk_token=control[0]))
    letterwise.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letterwise.add_special_tokens([AddedToken(name, special=True) for name in control])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letterwise,
        pad_token=control[0],
        **({} if padding_side is None else {"padding_side": padding_side}),
    )
    tokenizer.save_pretrained(folder)


def vlm_config(vocab_size=103):
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": WIDTH,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_heads": 1,
            "out_hidden_size": WIDTH,
        },
    )  # fmt: skip


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """`$OSP_HOME/models/released-tiny` in the true layout; `--model released-tiny` is known."""
    folder = tmp_path / "home" / "models" / "released-tiny"
    torch.manual_seed(0)
    transformer = FlashI2VTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=TEXT_DIM, freq_dim=16, ffn_dim=32,
        num_layers=2, rope_max_seq_len=64, projection_channels=6,
    )  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    transformer.save_pretrained(folder / "transformer")
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1)
    vae.save_pretrained(folder / "vae")
    whole = Qwen2_5_VLForConditionalGeneration(vlm_config())
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    whole.save_pretrained(folder / "text_encoder")
    save_tokenizer(folder / "tokenizer")
    FeatureAdapter(WIDTH, 20, TEXT_DIM).save_pretrained(folder / "adapter")
    spec = replace(
        find_model("uniworld-osp2-14b"), name="released-tiny", weights="released-tiny",
        max_sequence_length=ROWS, sizes=((32, 32),), default_size=(32, 32),
    )  # fmt: skip
    specs = {**model_specs(), "released-tiny": spec}
    monkeypatch.setattr(registry, "model_specs", lambda: specs)
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    return folder


@pytest.fixture
def load(request_for, weights):
    def load():
        request = request_for(model="released-tiny", dtype="float32")
        plan = make_plan(
            request,
            request.spec,
            size=(32, 32),
            machine=this_machine(torch.device("cpu")),
            weights=weights,
        )
        *_, components = load_components(request.spec, plan, weights)
        return components

    return load


def same_text_model(weights):
    """The text half of the stored checkpoint, by another way."""
    whole = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        weights / "text_encoder", dtype=torch.bfloat16
    )
    return whole.model.language_model.eval()


def test_the_checkpoint_is_in_the_layout_of_the_hub(weights):
    keys = load_file(weights / "text_encoder" / "model.safetensors")
    heads = {key.split(".")[0] for key in keys}
    assert heads == {"model", "visual", "lm_head"}
    assert "model.embed_tokens.weight" in keys


def test_the_card_asks_for_what_the_release_does(load):
    conditioner = load().conditioner
    assert isinstance(conditioner, ReleasedQwenConditioner)
    assert isinstance(conditioner.model, Qwen2_5_VLTextModel)
    assert conditioner.num_image_tokens == RELEASED_IMAGE_TOKENS == 135
    assert conditioner.max_sequence_length == ROWS
    assert conditioner.padding_side == "right"
    assert conditioner.model.dtype == torch.bfloat16
    assert not conditioner.model.training
    assert find_model("uniworld-osp2-14b").max_sequence_length == 1024


def test_every_weight_of_the_text_model_is_the_stored_one(load, weights):
    model = load().conditioner.model
    stored = load_file(weights / "text_encoder" / "model.safetensors")
    state = model.state_dict()
    assert len(state) == sum(key.startswith("model.") for key in stored)
    for name, tensor in state.items():
        assert torch.equal(tensor, stored[f"model.{name}"].bfloat16()), name


@pytest.mark.parametrize("side", ["right", "left", None])
@torch.no_grad()
def test_prompts_become_the_rows_of_the_release(load, weights, side):
    save_tokenizer(weights / "tokenizer", padding_side=side)
    conditioner = load().conditioner
    got = conditioner.encode(["the camera pans left"])
    # Written out: the chat turn, 135 image tokens, the padding on the tokenizer's side.
    pad, start, end, vision_start, vision_end, image, _ = range(96, 103)

    def letters(text):
        return [95 if letter == "\n" else ord(letter) - 32 for letter in text]

    turn = [
        *(start, *letters("system\nYou are a helpful assistant."), end, *letters("\n")),
        *(start, *letters("user\n"), vision_start, *[image] * 135, vision_end),
        *(*letters("the camera pans left"), end, *letters("\n")),
        *(start, *letters("assistant\n")),
    ]
    padding = [pad] * (ROWS - len(turn))
    ids = padding + turn if side == "left" else turn + padding
    mask = [token != pad for token in ids]
    assert sum(mask) == len(turn) < ROWS
    states = released_states(same_text_model(weights), torch.tensor([ids]), torch.tensor([mask]))
    torch.testing.assert_close(got, conditioner.adapter(states), atol=0.05, rtol=0.05)
    assert got.shape == (1, ROWS, TEXT_DIM)
    wrong_side = turn + padding if side == "left" else padding + turn
    other = released_states(
        same_text_model(weights),
        torch.tensor([wrong_side]),
        torch.tensor([[token != pad for token in wrong_side]]),
    )
    assert (got - conditioner.adapter(other)).abs().max() > 0.1


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_prompt_longer_than_the_window_fills_it(load, weights, side):
    save_tokenizer(weights / "tokenizer", padding_side=side)
    conditioner = load().conditioner
    room = ROWS - int(conditioner.inputs([""])[1].sum())
    assert room > 0
    long = "pan left and then right, " * 20
    ids, mask = conditioner.inputs([long])
    assert ids.shape == (1, ROWS)
    assert mask.all()
    assert torch.equal(ids, conditioner.inputs([long[:room]])[0])
    assert f"{len(long) - room} tokens" in str(conditioner.notice(long))
    assert conditioner.notice(long[:room]) is None
    assert torch.equal(conditioner.encode([long]), conditioner.encode([long[:room]]))
    assert not torch.equal(conditioner.encode([long]), conditioner.encode([long[: room - 1]]))


def test_the_picture_does_not_count(load):
    conditioner = load().conditioner
    black, white = (Image.new("RGB", (64, 48), colour) for colour in ("black", "white"))
    assert torch.equal(
        conditioner.encode(["x"], images=[black]), conditioner.encode(["x"], images=[white])
    )


def test_the_tokenizer_may_lie_beside_the_text_encoder_as_on_the_hub(load, weights):
    before = load().conditioner.encode(["pan left"])
    for path in (weights / "tokenizer").iterdir():
        shutil.move(path, weights / "text_encoder" / path.name)
    (weights / "tokenizer").rmdir()
    assert find_model("released-tiny").find_weights() == weights
    assert torch.equal(load().conditioner.encode(["pan left"]), before)


def test_sharded_weights_and_the_flat_config_of_the_hub(load, weights):
    before = load().conditioner.encode(["pan left"])
    folder = weights / "text_encoder"
    path = folder / "model.safetensors"
    stored = load_file(path)
    path.unlink()
    of = {
        name: f"model-0000{1 + name.startswith('visual')}-of-00002.safetensors" for name in stored
    }
    for shard in set(of.values()):
        tensors = {name: tensor for name, tensor in stored.items() if of[name] == shard}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    # Checkpoints of 2025 have the text model's settings at the top.
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    flat = {
        **text,
        **config,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    (folder / "config.json").write_text(json.dumps(flat))
    assert torch.equal(load().conditioner.encode(["pan left"]), before)


# --- what does not fit is refused -------------------------------------------------------------


def test_a_missing_weight_is_named(load, weights):
    path = weights / "text_encoder" / "model.safetensors"
    stored = load_file(path)
    del stored["model.norm.weight"]
    save_file(stored, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"Qwen2_5_VLTextModel: 1 missing: norm\.weight"):
        load()


def test_an_adapter_of_other_features_is_refused(load, weights):
    FeatureAdapter(WIDTH + 1, 20, TEXT_DIM).save_pretrained(weights / "adapter")
    with pytest.raises(CheckpointError, match="reads 17 features, it would get 16"):
        load()


def test_an_adapter_for_another_transformer_is_refused(load, weights):
    FeatureAdapter(WIDTH, 20, TEXT_DIM + 8).save_pretrained(weights / "adapter")
    with pytest.raises(CheckpointError, match=r"adapter .* of width 32, the transformer .* 24"):
        load()


def test_that_holds_for_original_names_and_a_conditioner_loaded_alone(request_for, weights):
    for path in (weights / "transformer").glob("*.safetensors"):
        save_file({"text_embedding.0.weight": torch.zeros(8, TEXT_DIM + 8)}, path)
    request = request_for(model="released-tiny", dtype="float32")
    plan = make_plan(
        request,
        request.spec,
        size=(32, 32),
        machine=this_machine(torch.device("cpu")),
        weights=weights,
    )
    with pytest.raises(CheckpointError, match="width 24, the transformer there takes 32"):
        list(load_parts(request.spec, plan, weights, ["conditioner"]))


def test_a_folder_without_a_tokenizer_is_refused(load, weights):
    shutil.rmtree(weights / "tokenizer")
    with pytest.raises(WeightsMissingError, match="there is no tokenizer in") as refused:
        load()
    assert "tokenizer.json" in str(refused.value.hint)


def test_a_tokenizer_without_image_tokens_is_refused(load, weights):
    save_tokenizer(weights / "tokenizer", control=CONTROL[:5])
    with pytest.raises(CheckpointError, match=r"does not know the control token <\|image_pad\|>"):
        load()


def test_a_tokenizer_of_a_larger_model_is_refused(load, weights):
    small = Qwen2_5_VLForConditionalGeneration(vlm_config(vocab_size=100))
    small.save_pretrained(weights / "text_encoder")
    with pytest.raises(CheckpointError, match="counts up to 102, the model knows 100 tokens"):
        load()


# --- and what fits makes a video --------------------------------------------------------------


def test_the_card_makes_a_video(request_for, weights):
    request = request_for(model="released-tiny", style="ink", num_inference_steps=2)
    events = list(runner.run(request))
    assert events[-1].type == "done"
    info = probe_video(request.output)
    assert (info.width, info.height, info.num_frames) == (32, 32, 5)
