"""The start: before any training, the model makes a still clip of its picture."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from osp_cli.conditioning.image_tokens import blur_latents
from osp_cli.models.latent_projector import LatentProjector
from osp_cli.models.mini_stream import (
    CODE_SCALE,
    CODES,
    COPY_CHANNELS,
    CUTOFF_STEPS,
    PLACE_SCALE,
    RING_CHANNELS,
    stream_layout,
)
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame, shift_latents
from osp_cli.sampling.schedulers import euler_schedule
from osp_cli.training.losses import flash_loss
from osp_cli.training.mini_fit import fit_guide
from osp_cli.training.mini_start import (
    PROJECTION_GAIN,
    SPECTRUM_GAIN,
    lookups,
    protect,
    start_as_identity,
)

CHANNELS = 4
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
def start(start_model):
    model, conditioner = start_model()
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(1, CHANNELS, 1, HEIGHT, WIDTH, generator=generator)
    states = {p: conditioner.hidden_states([p]) for p in ("pan left", "")}
    with torch.no_grad():
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


@torch.no_grad()
def test_beyond_the_border_lies_what_the_tokens_show_there(start):
    layout = stream_layout(start.model)
    shape = (1, CHANNELS, 1, HEIGHT + 6, WIDTH + 6)
    wide = torch.randn(shape, generator=torch.Generator().manual_seed(8))
    start.first = wide[..., 3:-3, 3:-3]
    start.contexts["wide"] = start.conditioner.project(*start.conditioner.hidden_states([""]), wide)
    # Around the picture, the picture is where it was.
    guess = noise() - start.velocity(noise(), 1.0, "wide")
    assert relative_error(guess, start.still) < 0.02
    # Two cells to the left and one up, everywhere, the first rows and columns included.
    shift = torch.tensor([-2.0, 2.0, -1.0, 1.0]) * PLACE_SCALE / 16
    start.model.patch_embedding.bias[layout.place] += shift
    guess = noise() - start.velocity(noise(), 1.0, "wide")
    moved = wide[..., 2:-4, 1:-5].expand_as(guess)
    assert relative_error(guess, moved) < 0.06


@torch.no_grad()
def test_the_ring_holds_the_cells_around_a_token(start):
    layout = stream_layout(start.model)
    seen = {}
    start.model.blocks[-1].register_forward_hook(
        lambda _module, _args, result: seen.update(stream=result)
    )
    start.velocity(noise(), 0.7)
    ring = seen["stream"][0, :, layout.ring].unflatten(1, (12, RING_CHANNELS))
    row, column = 2, 3  # the token of cells 4, 5 and 6, 7
    got = ring[row * WIDTH // 2 + column]
    block = start.first[0, :, 0, 3:7, 5:9]
    around = [(y, x) for y in range(4) for x in range(4) if y in (0, 3) or x in (0, 3)]
    wanted = torch.stack([block[:, y, x] for y, x in around])
    torch.testing.assert_close(got[:, :CHANNELS], wanted, atol=0.02, rtol=0.02)


@torch.no_grad()
@pytest.mark.parametrize("cutoff", [0.1, 0.9, None])
def test_every_token_reads_the_mean_magnitudes_of_the_clip(start, cutoff):
    seen = {}
    start.model.blocks[0].norm3.register_forward_hook(
        lambda _module, args, _result: seen.update(stream=args[0])
    )
    z, layout = noise(), stream_layout(start.model)
    features = torch.zeros_like(z)
    if cutoff is not None:
        features = fourier_features(start.first, cutoff, FRAMES)
    start.model(z, torch.tensor([700.0]), start.contexts[""], features)
    own = start.model.fourier_embedding(features)[0, layout.spectrum].flatten(1).T
    wanted = own + SPECTRUM_GAIN * own.mean(0)
    assert (wanted.max() > 0.25) == (cutoff is not None)
    # Whatever else is in the stream: its mean, which layer norms take out, does not count.
    torch.testing.assert_close(seen["stream"][0, :, layout.spectrum], wanted, atol=0.1, rtol=0.05)


# Channels that are left where the features were cut at a percentile.
LEFT = {0.1: 40, 0.52: 32, 0.7: 20, 0.95: 8}


def soft_pictures(count, seed):
    """First frames of 40 channels, all of the same detail."""
    generator = torch.Generator().manual_seed(seed)
    sharp = torch.randn(count, 40, 1, HEIGHT, WIDTH, generator=generator)
    return sharp / 2 + blur_latents(sharp, 2)


@pytest.fixture(scope="module")
def guided(start_model):
    """A model of 40 channels that tells cutoffs from the Fourier features."""
    model, conditioner = start_model(
        num_attention_heads=28,
        text_dim=448,
        in_channels=40,
        out_channels=40,
        projection_channels=80,
        num_layers=2,
    )
    told = fit_guide(model, list(soft_pictures(24, seed=3).split(6)), seed=1, steps=300)
    assert told > 0.9
    return model, conditioner


@torch.no_grad()
def test_a_cutoff_decides_which_channels_of_the_picture_are_kept(guided):
    model, conditioner = guided
    first = soft_pictures(2, seed=4)
    context = conditioner.project(*conditioner.hidden_states(["", ""]), first)
    context[:, 50, 40 + 4] = 1.0  # as if language had been fitted: there is a last row
    z = torch.randn(2, 40, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))

    def guess(features):
        time = torch.full((2,), 1000.0)
        return z - model(z, time, context, features).sample

    still = first.expand(-1, -1, 3, -1, -1)
    for cutoff, kept in LEFT.items():
        made = guess(fourier_features(first, cutoff, 3))
        assert relative_error(made[:, :kept], still[:, :kept]) < 0.02, cutoff
        if kept < 40:
            # Hardly the picture: nothing instead, which is its mean.
            assert relative_error(made[:, kept:], still[:, kept:]) > 0.5, cutoff
    # Without features a clip is continued, and nothing is left out.
    assert relative_error(guess(torch.zeros_like(z)), still) < 0.02


@torch.no_grad()
def test_what_no_block_can_read_gives_way_to_a_style(guided):
    model, conditioner = guided
    first = soft_pictures(1, seed=4)
    context = conditioner.project(*conditioner.hidden_states([""]), first)
    context[:, 50, 40 + 4] = 1.0
    z = torch.randn(1, 40, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))
    made = {}
    for code in (("style", "ink"), ("camera", "pan-left")):
        asked = context.clone()
        asked[:, 50, 40 + 5 + CODES.index(code)] = 1.0
        features = fourier_features(first, 0.1, 1)
        made[code[0]] = z - model(z, torch.tensor([1000.0]), asked, features).sample
    assert COPY_CHANNELS == 32
    assert relative_error(made["camera"], first) < 0.02
    assert relative_error(made["style"][:, :32], first[:, :32]) < 0.02
    assert relative_error(made["style"][:, 32:], first[:, 32:]) > 0.5


def test_a_code_of_the_last_row_reaches_every_token(start):
    layout = stream_layout(start.model)
    context = torch.zeros(1, 96 + HEIGHT * WIDTH, layout.width)
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
    wanted = lookups(64, 2)
    assert wanted[0].channels == -1
    # Four corners of five slices of channels: the token's own cells, whole.
    own = {(one.corner, one.channels, one.stop) for one in wanted[1:21]}
    assert len(own) == 20
    assert sorted({(start, stop) for _, start, stop in own}) == [
        (0, 8), (8, 20), (20, 32), (32, 48), (48, 64),
    ]  # fmt: skip
    assert wanted[21].sharpness == 0
    assert [one.ring for one in wanted[22:34]] == list(range(12))
    assert len({one.offset for one in wanted[22:34]}) == 12
    assert all(max(map(abs, one.offset)) == 1.5 for one in wanted[22:34])
    near = [one.offset for one in wanted[34:59]]
    assert all(one.moved for one in wanted[34:])
    assert len(set(near)) == 25
    lengths = [x * x + y * y for x, y in near]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("channels", [4, 8, 12, 40, 64])
def test_finer_channels_turn_away_at_smaller_cutoffs(channels):
    own = [one for one in lookups(channels, 2) if one.corner is not None]
    # Every channel is carried once for every corner, by a head with room for it.
    carried = [c for one in own for c in range(one.channels, one.stop)]
    assert sorted(carried) == sorted(list(range(channels)) * 4)
    assert all(one.stop - one.channels <= 16 for one in own)
    steps = [one.cutoff if one.cutoff else 1.0 for one in own]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == 1.0
    assert set(steps) <= {1.0, *CUTOFF_STEPS}


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
        ({"num_attention_heads": 11, "text_dim": 176}, "width 176 cannot hold"),
        ({"text_dim": 176}, "width 192 cannot hold"),
        ({"num_attention_heads": 24, "attention_head_dim": 8}, "at least 16"),
    ],
)
def test_a_geometry_without_room_is_refused(start_model, change, words):
    with pytest.raises(ValueError, match=words):
        start_model(**change)
