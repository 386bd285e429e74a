"""From folders of weights in the true layout to a stream."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import HeliosTransformer3DModel
from safetensors.torch import load_file, save_file

from osp_cli import registry
from osp_cli.config import Layer
from osp_cli.dials import Seeds
from osp_cli.errors import CheckpointError, RuntimeFailureError, WeightsMissingError
from osp_cli.extend_settings import Continuation, settle_extend
from osp_cli.models.helios import load_helios_transformer, load_stage_scheduler
from osp_cli.pipelines.realtime import StreamInputs
from osp_cli.runtime.devices import this_machine
from osp_cli.runtime.loading import PARTS, load_parts
from osp_cli.runtime.loading_streams import make_stream_pipeline
from osp_cli.runtime.models import Models
from osp_cli.runtime.planner import make_plan


@pytest.fixture
def folder(tiny_helios_home, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(tiny_helios_home / "models" / "tiny-helios", tmp_path / "weights")


def planned(spec, folder):
    request = settle_extend(
        Continuation(text="a fox in the snow", realtime=True),
        layers=[Layer("card", {"model": spec.name, "device": "cpu"})],
        seed=Seeds([0]),
    ).request
    machine = this_machine(torch.device("cpu"))
    plan = make_plan(request, spec, size=spec.default_size, machine=machine, weights=folder)
    return request, plan


def stream_of(spec, folder):
    request, plan = planned(spec, folder)
    parts = {event.component: part for event, part in load_parts(spec, plan, folder, PARTS)}
    return request, make_stream_pipeline(spec, parts, folder)


def one_chunk(request, pipeline):
    inputs = StreamInputs(
        width=64,
        height=64,
        latent_frames=request.latent_frames,
        num_inference_steps=request.stage_steps,
        sampler=request.sampler,
    )
    words = pipeline.read("a fox in the snow")
    chunk = pipeline.chunk(inputs, pipeline.begin(inputs), words)
    steps = []
    while True:
        try:
            steps.append(next(chunk))
        except StopIteration as end:
            return end.value[0], steps


def test_helios_runs_from_a_folder_of_diffusers(tiny_helios_card, folder):
    request, pipeline = stream_of(tiny_helios_card, folder)
    transformer = pipeline.transformer
    assert isinstance(transformer, HeliosTransformer3DModel)
    assert transformer.dtype == torch.bfloat16 and not transformer.training
    # As in diffusers, these lose too much otherwise.
    assert transformer.blocks[0].scale_shift_table.dtype == torch.float32
    assert pipeline.vae.dtype == torch.float32
    seen = []
    transformer.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    latents, steps = one_chunk(request, pipeline)
    # What was planned for: noise and history together, at full size.
    assert seen[-1] == planned(tiny_helios_card, folder)[1].num_tokens
    assert latents.shape == (1, 16, 9, 8, 8) and latents.isfinite().all()
    # Two at each of three resolutions, twice in the first chunk.
    assert len(steps) == 12


def test_the_weights_are_those_of_the_file(folder):
    genuine = HeliosTransformer3DModel.from_pretrained(folder / "transformer")
    ours = load_helios_transformer(folder / "transformer")
    assert ours.config.rope_dim == genuine.config.rope_dim
    for name, tensor in genuine.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    # Positions are not among the weights; nothing may stay without memory.
    assert not any(buffer.is_meta for buffer in ours.buffers())


def test_a_missing_weight_is_named(tiny_helios_card, folder):
    [path] = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(path)
    del tensors["patch_long.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing: patch_long\.bias"):
        load_helios_transformer(folder / "transformer")


def test_shapes_alone_are_not_enough(folder):
    (folder / "transformer" / "config.json").unlink()
    with pytest.raises(WeightsMissingError, match=r"no config\.json"):
        load_helios_transformer(folder / "transformer")


def test_another_number_of_channels_is_refused(tiny_helios_card, folder, monkeypatch):
    with pytest.raises(CheckpointError, match="takes 16 channels"):
        stream_of(replace(tiny_helios_card, latent_channels=48), folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": 2, "stage_range": [0, 0.5, 1]}, "has 2 stages, the card 3"),
        ({"_class_name": "HeliosScheduler"}, "is HeliosScheduler, expected HeliosDMDScheduler"),
    ],
)
def test_another_schedule_is_refused(folder, changes, words):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=words):
        load_stage_scheduler(folder / "scheduler", 3)


def test_a_lost_schedule_is_missed(folder):
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(WeightsMissingError, match="there is no schedule"):
        load_stage_scheduler(folder / "scheduler", 3)


def test_a_card_that_cannot_continue_gets_no_pipeline(tmp_path):
    with pytest.raises(RuntimeFailureError, match=r"no table \[realtime\]"):
        make_stream_pipeline(registry.find_model("wan2.1-i2v-14b-480p"), {}, tmp_path)


def test_models_hand_out_streams(tiny_helios_card, folder):
    """As a run asks: through what keeps parts in memory, with figures that the user changed."""
    request, plan = planned(tiny_helios_card, folder)
    models = Models()
    assert len(list(models.load(tiny_helios_card, plan, folder))) == 3
    figures = replace(request.figures, latent_frames=2)
    pipeline = models.stream_pipeline(figures)
    assert pipeline.figures is figures
    latents, _ = one_chunk(replace(request, latent_frames=2), pipeline)
    assert latents.shape == (1, 16, 2, 8, 8)
    assert list(models.load(tiny_helios_card, plan, folder)) == []


def test_the_small_model_streams_with_its_surroundings(tiny_card, tmp_path):
    pipeline = make_stream_pipeline(tiny_card, {}, tmp_path)
    assert pipeline.surround == tiny_card.image_token_surround > 0
    assert pipeline.figures.conditions == "context"
