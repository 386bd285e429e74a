"""The start: before any training, the model makes a still clip of its picture."""

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
from osp_cli.training.mini_start import (
    CODE_SCALE,
    CODES,
    PLACE_SCALE,
    PROJECTION_GAIN,
    lookups,
    protect,
    start_as_identity,
    stream_layout,
    write_start,
)
from osp_cli.training.mini_vlm import new_conditioner

CHANNELS = 4
GEOMETRY = {
    "num_attention_heads": 8,
    "attention_head_dim": 16,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": 128,
    "freq_dim": 256,
    "ffn_dim": 32,
    "num_layers": 3,
    "projection_channels": 8,
    "position_channels": 24,
    "rope_max_seq_len": 64,
}
FRAMES, HEIGHT, WIDTH = 13, 12, 16


@dataclass
class Start:
    """A started model with a picture and the conditioning of two prompts."""

    model: FlashI2VTransformer3DModel
    conditioner: object
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


@pytest.fixture
def start():
    conditioner = new_conditioner(1, GEOMETRY["text_dim"], CHANNELS)
    torch.manual_seed(0)
    model = FlashI2VTransformer3DModel(**GEOMETRY).eval()
    write_start(model, conditioner)
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(1, CHANNELS, 1, HEIGHT, WIDTH, generator=generator)
    states = {p: conditioner.hidden_states([p]) for p in ("pan left", "")}
    with torch.no_grad():
        # Language is fitted, not written: until then it says nothing.
        conditioner.adapter.fc2.weight.zero_()
        conditioner.adapter.fc2.bias.zero_()
        contexts = {p: conditioner.project(*both, first) for p, both in states.items()}
        phi = project_first_frame(model, first)
    return Start(model, conditioner, first, phi, contexts)


def noise(seed=2):
    shape = (1, CHANNELS, FRAMES, HEIGHT, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(got, wanted):
    return float((got - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize("t", [1.0, 0.8, 0.5, 0.2])
def test_the_first_velocity_is_that_of_a_still_clip(start, t):
    z = (1 - t) * start.still + t * noise()
    with torch.no_grad():
        velocity = start.velocity(z, t)
    assert relative_error(velocity, noise() - start.still) < 0.02


def test_sampling_from_the_start_gives_the_still_clip(start):
    scheduler = euler_schedule(12, 3.0)
    z = noise(3)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            velocity = start.velocity(z, float(timestep) / 1000)
            z = scheduler.step(velocity, timestep, z, return_dict=False)[0]
    assert relative_error(z, start.still) < 0.02


def test_what_the_start_knows_it_knows_from_the_image_tokens(start):
    t = 0.5
    z = (1 - t) * start.still + t * noise()
    context = start.contexts["pan left"]
    text, tokens = context[:, : -HEIGHT * WIDTH], context[:, -HEIGHT * WIDTH :]
    start.contexts["dropped"] = torch.cat([text, torch.zeros_like(tokens)], 1)
    start.contexts["reversed"] = torch.cat([text, tokens.flip(1)], 1)
    wanted = noise() - start.still
    with torch.no_grad():
        assert relative_error(start.velocity(z, t, "dropped"), wanted) > 0.2
        # They are found by the places they carry, not by their order.
        assert relative_error(start.velocity(z, t, "reversed"), wanted) < 0.02


def test_an_address_elsewhere_shows_what_is_there(start):
    """The address is the place plus a displacement; two cells to the right of it lies x + 2."""
    layout = stream_layout(start.model)
    shift = PLACE_SCALE * 2 / 16
    with torch.no_grad():
        start.model.patch_embedding.bias[layout.place] += torch.tensor([shift, -shift, 0.0, 0.0])
        velocity = start.velocity(noise(), 1.0)
    moved = torch.cat([start.still[..., 2:], start.still[..., -2:]], -1)
    inside = (..., slice(0, WIDTH - 2))
    assert relative_error((noise() - velocity)[inside], moved[inside]) < 0.06


def test_a_code_of_the_last_row_reaches_every_token(start):
    layout = stream_layout(start.model)
    context = torch.zeros(1, 96 + HEIGHT * WIDTH, GEOMETRY["text_dim"])
    row = 40  # anywhere: it is found by its flag
    wanted = torch.zeros(len(CODES))
    wanted[[2, 17]] = 1.0
    context[0, row, CHANNELS + 4] = 1.0
    context[0, row, CHANNELS + 5 : CHANNELS + 5 + len(CODES)] = wanted
    context[0, 3, CHANNELS + 5 : CHANNELS + 5 + len(CODES)] = 1.0  # another row: not asked
    context[:, 96:] = start.contexts[""][:, 96:]
    seen = {}
    start.model.blocks[0].norm3.register_forward_hook(
        lambda _module, args, _result: seen.update(stream=args[0])
    )
    start.contexts["coded"] = context
    with torch.no_grad():
        start.velocity(noise(), 0.7, "coded")
    codes = seen["stream"][0, :, layout.codes] / CODE_SCALE
    torch.testing.assert_close(codes, wanted.expand_as(codes), atol=0.01, rtol=0.01)


def test_lookups_come_in_an_order_that_brings_the_picture_first():
    wanted = lookups(48, 2)
    assert wanted[0].channels == -1
    # Four corners of three slices of channels: the token's own cells, whole.
    own = {(one.corner, one.channels) for one in wanted[1:13]}
    assert len(own) == 12
    assert {channels for _, channels in own} == {0, 16, 32}
    near = [one.offset for one in wanted[13:34]]
    assert len(set(near)) == 21
    lengths = [x * x + y * y for x, y in near]
    assert lengths == sorted(lengths)


def test_training_leaves_addresses_and_the_noise_alone(start):
    layout = stream_layout(start.model)
    protect(start.model, start.conditioner)
    moving = torch.stack([start.still[:, :, k].roll(k, 3) for k in range(FRAMES)], 2)

    def loss():
        return flash_loss(
            lambda noisy: start.velocity(noisy + start.phi, 0.6),
            moving,
            noise(),
            torch.tensor([0.6]),
            start.phi,
        )

    trained = {n: p for n, p in start.model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    closed = layout.writable == 0
    assert closed.any()
    for number in (1, 2):
        block = start.model.blocks[number]
        for name in ("attn2.to_out.0", "ffn.net.2"):
            key = f"blocks.{number}.{name}.weight"
            assert not torch.equal(trained[key], before[key])
            assert torch.equal(trained[key][closed], before[key][closed])
        assert block.ffn.net[0].proj.weight[:, layout.content].abs().max() == 0
    frozen = [n for n, p in start.model.named_parameters() if n.startswith("blocks.0.")]
    assert not any(name in trained for name in frozen)
    assert not any(p.requires_grad for p in start.conditioner.image_adapter.parameters())


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
        ({"num_attention_heads": 7, "text_dim": 112}, "width 112 cannot hold"),
        ({"text_dim": 112}, "width 128 cannot hold"),
        ({"num_attention_heads": 16, "attention_head_dim": 8}, "at least 16"),
    ],
)
def test_a_geometry_without_room_is_refused(change, words):
    geometry = {**GEOMETRY, **change}
    model = FlashI2VTransformer3DModel(**geometry)
    with pytest.raises(ValueError, match=words):
        write_start(model, new_conditioner(1, geometry["text_dim"], CHANNELS))
