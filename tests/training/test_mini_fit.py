"""What of the start is fitted: language, motion, lookups."""

from __future__ import annotations

import random

import pytest
import torch

from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.procedural.motions import Motion
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.training.losses import add_noise
from osp_cli.training.mini_fit import (
    Sample,
    code_vector,
    fit_language,
    fit_lookups,
    fit_motion,
    latent_motion,
)
from osp_cli.training.mini_start import CODES, FRACTION_SCALE, PLACE_SCALE, stream_layout, write_start
from osp_cli.training.mini_vlm import new_conditioner

CHANNELS = 4
GEOMETRY = {
    "num_attention_heads": 8,
    "attention_head_dim": 16,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": 128,
    "freq_dim": 256,
    "ffn_dim": 256,
    "num_layers": 3,
    "projection_channels": 8,
    "position_channels": 24,
    "rope_max_seq_len": 64,
}


@pytest.fixture
def started():
    conditioner = new_conditioner(1, GEOMETRY["text_dim"], CHANNELS)
    torch.manual_seed(0)
    model = FlashI2VTransformer3DModel(**GEOMETRY).eval()
    write_start(model, conditioner)
    with torch.no_grad():  # language says nothing until it is fitted
        conditioner.adapter.fc2.weight.zero_()
        conditioner.adapter.fc2.bias.zero_()
    return model, conditioner


def test_codes_name_what_a_caption_asks():
    codes = code_vector(Motion("pan-left", "snow", "fast"), "ink")
    asked = {CODES[k] for k in codes.nonzero().flatten().tolist()}
    assert asked == {("camera", "pan-left"), ("scene", "snow"), ("speed", "fast"), ("style", "ink")}
    assert code_vector(Motion("tilt-up", None, "normal"), None).sum() == 1
    # The speed of nothing in particular is in no caption.
    assert code_vector(Motion(None, None, "fast"), None).sum() == 0


def test_language_is_read_from_the_last_row(started):
    _, conditioner = started
    pictures = [torch.randint(0, 256, (3, 3, 56, 112)).to(torch.uint8)]
    accuracy = fit_language(conditioner, CHANNELS, 3, pictures, count=256)
    # The language model is random here, yet its states tell some of the words.
    assert accuracy > 0.02
    states, mask = conditioner.hidden_states(["pan left, ink", "zoom in"], None)
    with torch.no_grad():
        mapped = conditioner.project(states, mask)
    flag = mapped[..., CHANNELS + 4]
    last = mask.sum(1) - 1
    for row in range(2):
        assert flag[row].argmax() == last[row]
        assert flag[row, last[row]] > 0.9
        assert flag[row, mask.shape[1] - 1] == 0  # padding
    codes = mapped[..., CHANNELS + 5 : CHANNELS + 5 + len(CODES)]
    assert codes.min() > -0.05
    assert codes.max() < 1.05


def test_a_latent_lies_in_the_middle_of_its_frames():
    motion = Motion("pan-right", None, "normal")
    moved, speed = latent_motion(motion, (256, 448), torch.tensor([0, 1, 6, 12]), (2, 3))
    assert moved.shape == speed.shape == (4, 2, 3, 2)
    step = 0.17 * 448 / 48  # pixels per frame
    expected = torch.tensor([0.0, 2.5, 22.5, 46.5]) * step
    torch.testing.assert_close(moved[:, 0, 0, 0], expected)
    torch.testing.assert_close(speed[:, 0, 0, 0], torch.tensor([0.0, 4.0, 4.0, 4.0]) * step)
    assert moved[..., 1].abs().max() == 0


def test_the_first_layer_learns_every_motion(started):
    model, _ = started
    layout = stream_layout(model)
    before = fit_motion(model, 1, steps=2, clips=200)
    after = fit_motion(model, 1, steps=150, clips=200)
    assert after < 0.5 * before
    # It moves the address and the fraction alike, the former with both signs.
    last = model.blocks[0].ffn.net[2].weight
    right, left, _, _ = last[layout.place]
    assert torch.equal(right, -left)
    torch.testing.assert_close(last[layout.fraction][0] * PLACE_SCALE, right * FRACTION_SCALE)
    untouched = torch.ones(layout.width, dtype=torch.bool)
    for part in (layout.place, layout.fraction, layout.velocity):
        untouched[part] = False
    assert last[untouched].abs().max() == 0


def test_lookups_are_fitted_to_what_is_missing(started):
    model, conditioner = started
    generator = torch.Generator().manual_seed(1)
    state, mask = conditioner.hidden_states(["a cat"])
    # Clips that are half their picture and half its left neighbours: no lookup alone has that.
    clips = []
    for _ in range(4):
        first = torch.randn(1, CHANNELS, 1, 12, 16, generator=generator)
        clips.append((first, (first + first.roll(1, -1)).expand(-1, -1, 3, -1, -1) / 2))

    def samples():
        noise_of = torch.Generator().manual_seed(2)
        for first, clip in clips:
            with torch.no_grad():
                context = conditioner.project(state, mask, first)
            noise = torch.randn(clip.shape, generator=noise_of)
            noisy = add_noise(clip, noise, torch.tensor(0.8))

            def velocity(z, context=context):
                return model(z, torch.tensor([800.0]), context, torch.zeros_like(z)).sample

            yield Sample(clip, noisy, velocity)

    assert project_first_frame(model, clips[0][0]).abs().max() == 0
    missing = fit_lookups(model, samples)
    assert missing == sorted(missing, reverse=True)
    # What lies a cell beyond the corner is out of sight for half of the cells.
    assert missing[-1] < 0.3
    errors = []
    for sample in samples():
        with torch.no_grad():
            guess = sample.noisy - 0.8 * sample.velocity(sample.noisy)
        errors.append(float((guess - sample.latents).square().sum() / sample.latents.square().sum()))
    assert sum(errors) / 4 == pytest.approx(missing[-1], abs=0.03)


def test_fits_follow_from_the_seed(started):
    model, _ = started
    results = []
    for seed in (1, 1, 2):
        random.seed(9)
        torch.manual_seed(random.randrange(100))
        fit_motion(model, seed, steps=3, clips=20)
        results.append(model.blocks[0].ffn.net[2].weight.clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
