"""What the refinement learns from: the model's clips of new scenes beside the true ones."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.training import mini_decoder
from osp_cli.training.codec import Made
from osp_cli.training.mini_decoder import made_latents

SIZE = (64, 96)


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    model = AutoencoderLinear(
        z_dim=4,
        refine_width=0,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[2.0, 1.0, 3.0, 0.5],
    )
    torch.nn.init.orthogonal_(model.first_basis)
    # As the fitted one: a still clip has the latents of its picture.
    frames = model.first_basis.unflatten(1, (3, 1, 256)).expand(-1, -1, 4, -1)
    model.next_basis.data = frames.flatten(1) / 2
    return model.requires_grad_(False).eval()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(mini_decoder, "_SIZE", SIZE)
    monkeypatch.setattr(mini_decoder, "_TOGETHER", 2)


def test_clips_as_rendered_and_as_made(quiet, codec, small):
    examples = made_latents(quiet, codec, 3, 7)
    assert len(examples) == 7
    for example in examples:
        assert example.encoded.shape == example.made.shape == (4, 2, 4, 6)
        assert example.video.shape == (3, 5, *SIZE)
        assert all(getattr(example, f.name).dtype == torch.bfloat16 for f in fields(Made))
        assert -1.01 <= example.video.min() < example.video.max() <= 1.01
        # Raw latents of the very pictures.
        latents = codec.encode(example.video.float()[None]).latent_dist.mode()[0]
        torch.testing.assert_close(example.encoded.float(), latents, atol=0.05, rtol=0.02)
        # Before any training the model makes a still clip.
        first, later = example.made.float().unbind(1)
        assert (first - later).square().mean() < 0.05 * first.square().mean()
    assert not torch.equal(examples[0].video, examples[1].video)


def test_an_unstyled_clip_is_made_of_its_own_picture(quiet, codec, small, monkeypatch):
    monkeypatch.setattr(mini_decoder, "random_style", lambda _rng: None)
    for example in made_latents(quiet, codec, 5, 4):
        first, made = example.encoded[:, 0].float(), example.made[:, 0].float()
        assert (made - first).square().mean() < 0.02 * first.square().mean()


def test_what_is_made_follows_from_the_seed(quiet, codec, small):
    one, same, other = (made_latents(quiet, codec, seed, 3) for seed in (1, 1, 2))
    for first, second in zip(one, same, strict=True):
        assert all(
            torch.equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(Made)
        )
    assert not torch.equal(one[0].video, other[0].video)


def test_the_model_sees_the_surroundings_and_the_usual_cutoff(quiet, codec, small, monkeypatch):
    seen, cutoffs = [], []
    genuine = mini_decoder.fourier_features

    def features(first, cutoff, frames):
        cutoffs.append(cutoff)
        return genuine(first, cutoff, frames)

    monkeypatch.setattr(mini_decoder, "fourier_features", features)
    quiet.surround = lambda first: seen.append(first) or first
    made_latents(quiet, codec, 1, 2)
    assert set(cutoffs) == {0.1}
    assert seen[0].shape == (2, 4, 1, 4, 6)
