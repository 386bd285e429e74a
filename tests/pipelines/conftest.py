"""The pipeline over the tiny model, and what its transformer is given."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from PIL import Image
from torch import Tensor

from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.models.state_dict import load_adapter, load_transformer
from osp_cli.pipelines.flash_i2v import FlashI2VPipeline, SamplingInputs
from osp_cli.training.mini_vlm import load_vlm, new_conditioner


@pytest.fixture(scope="session")
def _parts(tiny_home):
    folder = tiny_home / "models" / "tiny"
    conditioner = new_conditioner(1, 24)
    conditioner.model = load_vlm(folder / "text_encoder")
    conditioner.adapter = load_adapter(folder / "adapter")
    conditioner.image_adapter = load_adapter(folder / "image_adapter")
    vae = AutoencoderLinear.from_pretrained(folder / "vae").eval()
    return load_transformer(folder / "transformer"), vae, conditioner


@pytest.fixture
def pipeline(_parts):
    return FlashI2VPipeline(*_parts)


@pytest.fixture
def inputs():
    """Three steps of a clip of five frames, 96x64."""
    return SamplingInputs(
        image=Image.effect_noise((96, 64), 90).convert("RGB"),
        prompt="pan left",
        negative_prompt="",
        width=96,
        height=64,
        num_frames=5,
        num_inference_steps=3,
        guidance_scale=2.0,
        shift=3.0,
        cutoff=(0.1, 0.1),
        seed=7,
    )


@pytest.fixture
def text_inputs(inputs):
    """The same without a picture."""
    return replace(inputs, image=None)


@dataclass(frozen=True)
class Call:
    """One forward of the transformer."""

    hidden_states: Tensor
    timestep: Tensor
    context: Tensor
    features: Tensor


@pytest.fixture
def calls(pipeline, monkeypatch):
    """The genuine transformer's calls, in order."""
    made = []
    genuine = pipeline.transformer.forward

    def forward(hidden_states, timestep, context, features, **kwargs):
        made.append(Call(hidden_states.clone(), timestep, context, features.clone()))
        return genuine(hidden_states, timestep, context, features, **kwargs)

    monkeypatch.setattr(pipeline.transformer, "forward", forward)
    return made


@pytest.fixture
def play(pipeline, monkeypatch):
    """Puts a function `(hidden_states, timestep, context, features) -> v` in the model's place."""

    def place(velocity):
        monkeypatch.setattr(
            pipeline.transformer, "forward", lambda *args, **_kwargs: (velocity(*args),)
        )

    return place


@pytest.fixture(scope="session")
def finished():
    """Runs a chunk to its end; gives its latents, the state after it and its steps."""

    def run(chunk):
        steps = []
        while True:
            try:
                steps.append(next(chunk))
            except StopIteration as end:
                return (*end.value, steps)

    return run
