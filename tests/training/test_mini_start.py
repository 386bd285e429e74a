"""The start in closed form: before any training, the model makes a still clip of its picture."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from osp_cli.models.latent_projector import LatentProjector
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame, shift_latents
from osp_cli.sampling.schedulers import euler_schedule
from osp_cli.training.losses import flash_loss
from osp_cli.training.mini_start import PROJECTION_GAIN, start_as_identity, start_as_still
from osp_cli.training.mini_vlm import new_conditioner

CHANNELS = 4
GEOMETRY = {
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": 96,
    "freq_dim": 256,
    "ffn_dim": 32,
    "num_layers": 2,
    "projection_channels": 8,
    "position_channels": 24,
    "rope_max_seq_len": 64,
}
FRAMES = 13


@dataclass
class Start:
    """A started model with a picture and the conditioning of two prompts."""

    model: FlashI2VTransformer3DModel
    first: Tensor
    phi: Tensor
    contexts: dict[str, Tensor]

    @property
    def still(self):
        return self.first.expand(-1, -1, FRAMES, -1, -1)

    def velocity(self, z, t, context="pan left"):
        return self.model(
            shift_latents(z, self.phi),
            torch.full((len(z),), 1000.0 * t),
            self.contexts[context],
            fourier_features(self.first, 0.1, z.shape[2]),
        ).sample


@pytest.fixture(scope="module")
def start():
    conditioner = new_conditioner(1, GEOMETRY["text_dim"], CHANNELS)
    torch.manual_seed(0)
    model = FlashI2VTransformer3DModel(**GEOMETRY).eval()
    start_as_still(model, conditioner)
    first = torch.randn(1, CHANNELS, 1, 12, 16, generator=torch.Generator().manual_seed(1))
    states = {p: conditioner.hidden_states([p]) for p in ("pan left", "")}
    with torch.no_grad():
        contexts = {p: conditioner.project(*both, first) for p, both in states.items()}
        phi = project_first_frame(model, first)
    return Start(model, first, phi, contexts)


def noise(seed=2):
    shape = (1, CHANNELS, FRAMES, 12, 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(got, wanted):
    return float((got - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize("t", [1.0, 0.8, 0.5, 0.2])
def test_the_first_velocity_is_that_of_a_still_clip(start, t):
    z = (1 - t) * start.still + t * noise()
    with torch.no_grad():
        velocity = start.velocity(z, t)
    assert relative_error(velocity, noise() - start.still) < 0.05


def test_sampling_from_the_start_gives_the_still_clip(start):
    scheduler = euler_schedule(12, 3.0)
    z = noise(3)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            velocity = start.velocity(z, float(timestep) / 1000)
            z = scheduler.step(velocity, timestep, z, return_dict=False)[0]
    assert relative_error(z, start.still) < 0.05


def test_what_the_start_knows_it_knows_from_the_image_tokens(start):
    t = 0.5
    z = (1 - t) * start.still + t * noise()
    context = start.contexts["pan left"]
    text, tokens = context[:, : -6 * 8], context[:, -6 * 8 :]
    start.contexts["dropped"] = torch.cat([text, torch.zeros_like(tokens)], 1)
    start.contexts["reversed"] = torch.cat([text, tokens.flip(1)], 1)
    wanted = noise() - start.still
    with torch.no_grad():
        assert relative_error(start.velocity(z, t, "dropped"), wanted) > 0.3
        # They are found by the places they carry, not by their order.
        assert relative_error(start.velocity(z, t, "reversed"), wanted) < 0.05


def test_language_has_no_say_before_training(start):
    z = noise()
    with torch.no_grad():
        one, other = (start.velocity(z, 0.7, prompt) for prompt in ("pan left", ""))
    assert relative_error(one, other) < 0.01


def test_training_can_move_all_that_matters(start):
    start.model.zero_grad()
    moving = torch.stack([start.still[:, :, k].roll(k, 3) for k in range(FRAMES)], 2)
    flash_loss(
        lambda noisy: start.velocity(noisy + start.phi, 0.6),
        moving,
        noise(),
        torch.tensor([0.6]),
        start.phi,
    ).backward()
    # Every branch begins with nothing to say; the layer through which it speaks hears at once.
    last_layers = ("to_out.0.weight", "ffn.net.2.weight", "fourier_embedding.1.weight")
    named = dict(start.model.named_parameters())
    speaking = [name for name in named if name.endswith((*last_layers, "proj_out.weight"))]
    assert len(speaking) == 2 * 3 + 2
    for name in speaking:
        assert named[name].requires_grad
        assert named[name].grad.abs().max() > 0, name
    start.model.zero_grad()


@pytest.mark.parametrize("conv3x3x3", [False, True])
@pytest.mark.parametrize(("gain", "hidden"), [(1.0, 8), (2.0, 11), (4.0, 8)])
def test_phi_starts_as_the_scaled_negative_picture(conv3x3x3, gain, hidden):
    torch.manual_seed(0)
    projector = LatentProjector(4, hidden, conv3x3x3)
    start_as_identity(projector, gain)
    first_frame = 3 * torch.randn(2, 4, 1, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            projector(first_frame), -gain * first_frame, atol=1e-5, rtol=1e-5
        )
    # It is a start, not a constant: every layer can move.
    projector(first_frame).square().mean().backward()
    assert all(
        layer.weight.grad.abs().max() > 0 for layer in (projector.proj[0], projector.proj[2])
    )


def test_the_started_model_has_that_phi(start):
    torch.testing.assert_close(start.phi, -PROJECTION_GAIN * start.first, atol=1e-5, rtol=1e-4)


def test_the_identity_needs_two_hidden_channels_for_each():
    with pytest.raises(ValueError, match="needs 8 projection channels"):
        start_as_identity(LatentProjector(4, 7), 1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_attention_heads": 3, "text_dim": 72}, "width 72 cannot hold"),
        ({"text_dim": 48}, "width 96 cannot hold"),
        ({"position_channels": 12}, "position_channels must be 24, got 12"),
    ],
)
def test_a_geometry_without_room_is_refused(change, words):
    geometry = {**GEOMETRY, **change}
    model = FlashI2VTransformer3DModel(**geometry)
    with pytest.raises(ValueError, match=words):
        start_as_still(model, new_conditioner(1, geometry["text_dim"], CHANNELS))
