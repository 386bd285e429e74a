"""Picture editors of diffusers: a tiny checkpoint of a true class, saved, loaded, called."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from osp_cli.errors import CheckpointError, InvalidRequestError, WeightsMissingError
from osp_cli.runtime import editors
from osp_cli.runtime.editors import EDITORS, EditorStylizer, editor_folder, editor_of, load_editor


@pytest.fixture(scope="module")
def klein(tmp_path_factory):
    """A Flux2KleinPipeline of random weights: 28 text layers, as three of them are read."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>", "<|im_end|>"]
    tokenizer = Qwen2TokenizerFast(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
    )
    torch.manual_seed(0)
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words) + 2,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=28,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=512,
        )
    )
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=32,
    )
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=24,
        timestep_guidance_channels=8,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )
    folder = tmp_path_factory.mktemp("klein")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    diffusers.Flux2KleinPipeline(
        scheduler, vae, text_encoder, tokenizer, transformer
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Two steps instead of fifty."""
    few = {name: replace(editor, steps=2) for name, editor in EDITORS.items()}
    monkeypatch.setattr(editors, "EDITORS", few)


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))


def test_a_true_pipeline_is_loaded_from_its_folder_and_follows_its_seed(klein, quick, capsys):
    stylizer = load_editor(str(klein), "cpu", pixels=80 * 80)
    first = stylizer.stylise(PICTURE, "oil", "paint it", 1)
    assert first.mode == "RGB" and first.size == (96, 64)
    assert stylizer.stylise(PICTURE, "oil", "paint it", 1).tobytes() == first.tobytes()
    assert stylizer.stylise(PICTURE, "oil", "paint it", 2).tobytes() != first.tobytes()
    assert stylizer.stylise(PICTURE, "oil", "draw it", 1).tobytes() != first.tobytes()
    about = stylizer.describe()
    assert about["name"] == "Flux2KleinPipeline" and about["num_inference_steps"] == 2
    assert len(about["weights_sha256"]) == 64 and about["dtype"] == "float32"
    assert json.loads(json.dumps(about)) == about
    said = capsys.readouterr()
    assert said.out == "" and said.err == ""


@pytest.mark.parametrize("name", EDITORS)
def test_every_class_takes_what_it_is_called_with(name):
    editor = EDITORS[name]
    taken = inspect.signature(getattr(diffusers, editor.class_name).__call__).parameters
    wanted = {editor.image, "prompt", "num_inference_steps", "generator", *editor.dials}
    assert wanted <= taken.keys()
    # Steps and guidance are the classes' own, as the table says.
    assert taken["num_inference_steps"].default == editor.steps
    for dial in ("guidance_scale", "true_cfg_scale"):
        if dial in editor.dials:
            assert taken[dial].default == editor.dials[dial]


class Recorder:
    """Takes what a pipeline takes and remembers it."""

    def __init__(self):
        self.calls = []

    def __call__(self, image=None, prompt=None, height=None, width=None, **others):
        self.calls.append({"image": image, "height": height, "width": width, **others})

        class Result:
            images = (image,)

        return Result()


def test_pictures_are_edited_at_the_area_that_the_model_knows():
    pipeline = Recorder()
    EditorStylizer(pipeline, EDITORS["flux-kontext"], {}).stylise(PICTURE, "oil", "paint", 3)
    [call] = pipeline.calls
    assert (call["width"], call["height"]) == call["image"].size == (1248, 832)
    assert abs(call["width"] * call["height"] / 1024**2 - 1) < 0.05
    assert call["guidance_scale"] == 3.5 and call["num_inference_steps"] == 28
    assert call["generator"].initial_seed() == 3


def test_folders_that_are_none_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    with pytest.raises(WeightsMissingError, match="qwen-image-edit are not installed"):
        editor_folder("qwen-image-edit")
    with pytest.raises(InvalidRequestError, match="unknown stylizer 'nothing'"):
        editor_folder("nothing")
    index = tmp_path / "model_index.json"
    index.write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        editor_of(editor_folder(str(tmp_path)))
    index.write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(InvalidRequestError, match="StableDiffusionPipeline, which is no picture"):
        editor_of(tmp_path)


def test_a_damaged_checkpoint_is_named(klein, tmp_path):
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(klein, folder)
    [weights] = (folder / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_editor(str(folder), "cpu")
