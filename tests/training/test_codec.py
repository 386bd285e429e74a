"""The fitted codec: orthonormal, aligned, causal, and good at what it was fitted to."""

from __future__ import annotations

import pytest
import torch

from osp_cli.models.autoencoder_linear import AutoencoderLinear, from_blocks, to_blocks
from osp_cli.models.latents import decode_latents, encode_latents
from osp_cli.training import codec
from osp_cli.training.codec import (
    Made,
    fit_transform,
    psnr,
    reconstruction_loss,
    styled_clips,
    texture_loss,
    train_refinement,
)

SIZE = (48, 64)


def new_codec(**settings):
    """A quarter of the embedded codec's block: a fit of seconds becomes one of milliseconds."""
    torch.manual_seed(0)
    defaults = {
        "z_dim": 16,
        "block": 8,
        "scale_factor_spatial": 8,
        "refine_width": 8,
        "refine_blocks": 1,
    }
    return AutoencoderLinear(**{**defaults, **settings})


@pytest.fixture(scope="module")
def small_clips():
    """Small pictures instead of the recipe's."""
    with pytest.MonkeyPatch.context() as patch:
        genuine = codec.styled_clips
        patch.setattr(
            codec,
            "styled_clips",
            lambda seed, canvases, size, frames, device: genuine(
                seed, canvases, SIZE, frames, device
            ),
        )
        yield


@pytest.fixture(scope="module")
def fitted(small_clips):
    return fit_transform(new_codec(), seed=5, canvases=16).eval()


@pytest.fixture(scope="module")
def unseen():
    """Clips of other canvases, and still repeats of their first frames."""
    return styled_clips(77, 6, SIZE, 5, "cpu")


def still(repeat):
    return torch.cat([repeat[:, :, :1], repeat], 2)


def trained_refinement(model):
    """A copy whose refinement does something."""
    other = new_codec()
    other.load_state_dict(model.state_dict())
    other.register_to_config(
        latents_mean=model.config.latents_mean, latents_std=model.config.latents_std
    )
    for parameter in other.refinement.exit.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return other.eval()


def test_clips_and_their_stills():
    video, repeat = styled_clips(3, 4, SIZE, 5, "cpu")
    assert video.shape == (4, 3, 5, *SIZE)
    assert repeat.shape == (4, 3, 4, *SIZE)
    assert -1.01 <= video.min() < -0.5 < 0.5 < video.max() <= 1.7  # firelight overexposes
    for k in range(4):
        assert torch.equal(repeat[:, :, k], video[:, :, 0])
    again, other = styled_clips(3, 4, SIZE, 5, "cpu")[0], styled_clips(4, 4, SIZE, 5, "cpu")[0]
    assert torch.equal(video, again)
    assert not torch.allclose(video, other, atol=0.1)
    assert (video[:, :, 4] - video[:, :, 0]).abs().mean() > 0.005


def test_both_bases_are_orthonormal(fitted):
    for basis in (fitted.first_basis, fitted.next_basis):
        torch.testing.assert_close(basis @ basis.T, torch.eye(16), atol=1e-4, rtol=0)


def test_a_fit_follows_from_its_seed(fitted, small_clips):
    again = fit_transform(new_codec(), seed=5, canvases=16)
    other = fit_transform(new_codec(), seed=6, canvases=16)
    assert torch.equal(again.first_basis, fitted.first_basis)
    assert torch.equal(again.next_basis, fitted.next_basis)
    assert again.config.latents_std == fitted.config.latents_std
    assert not torch.allclose(other.next_basis, fitted.next_basis, atol=0.01)


def test_a_still_clip_has_the_latents_of_its_picture_in_every_frame(fitted, unseen):
    latents = encode_latents(fitted, still(unseen[1]))
    assert latents.shape == (6, 16, 2, 6, 8)
    first, later = latents[:, :, 0], latents[:, :, 1]
    leading = slice(0, 4)
    error = (later - first)[:, leading].square().mean((0, 2, 3))
    assert (error < 0.02 * first[:, leading].square().mean((0, 2, 3))).all()
    # All channels together, too: alignment is not a matter of the strongest alone.
    assert (later - first).square().mean() < 0.1 * first.square().mean()


def test_without_alignment_a_still_clip_would_be_another_code(fitted, unseen):
    # The same subspace in its own order: what Procrustes was needed for.
    turned = trained_refinement(fitted)
    turned.next_basis.data = fitted.next_basis.flip(0)
    latents = encode_latents(turned, still(unseen[1]))
    difference = (latents[:, :, 1] - latents[:, :, 0]).square().mean()
    assert difference > 0.5 * latents[:, :, 0].square().mean()


def test_clips_come_back(fitted, unseen):
    video = unseen[0].clamp(-1, 1)
    decoded = decode_latents(fitted, encode_latents(fitted, video))
    assert decoded.shape == video.shape
    assert psnr(decoded[:, :, :1], video[:, :, :1]) > 24
    assert psnr(decoded, video) > 22
    # It is a projection: once through, twice through.
    linear = fitted.decode_linear(fitted.encode(video).latent_dist.mode())
    twice = fitted.decode_linear(fitted.encode(linear).latent_dist.mode())
    torch.testing.assert_close(twice, linear, atol=1e-4, rtol=0)


def test_statistics_bring_latents_to_order(fitted, small_clips):
    video = codec.styled_clips(5, 8, SIZE, 5, "cpu")[0]
    raw = fitted.encode(video).latent_dist.mode()
    latents = encode_latents(fitted, video)
    # About half whitened: channels differ less than before, and are of unit power together.
    spread = raw.std((0, 2, 3, 4)).log().std()
    assert latents.std((0, 2, 3, 4)).log().std() < 0.75 * spread
    assert latents.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.2)
    assert latents.mean().abs() < 0.1
    assert len(fitted.config.latents_mean) == len(fitted.config.latents_std) == 16


def test_encoding_is_causal(fitted, unseen):
    video = torch.cat([unseen[0], unseen[0][:, :, 1:].flip(2)], 2)
    latents = encode_latents(fitted, video)
    assert latents.shape[2] == 3
    for frames, latent_frames in ((1, 1), (5, 2)):
        head = encode_latents(fitted, video[:, :, :frames])
        torch.testing.assert_close(head, latents[:, :, :latent_frames], atol=1e-6, rtol=0)


def test_decoding_in_parts_is_decoding_the_whole(fitted):
    model = trained_refinement(fitted)
    generator = torch.Generator().manual_seed(1)
    z = 0.5 * torch.randn(1, 16, 5, 6, 8, generator=generator)
    with torch.no_grad():
        whole = model.decode(z).sample
        assert whole.shape == (1, 3, 17, *SIZE)
        for cut in (1, 2, 4):
            head = model.decode(z[:, :, :cut]).sample
            tail = model.decode(z[:, :, cut:], first=False).sample
            assert torch.equal(torch.cat([head, tail], 2), whole), cut
        one_by_one = [model.decode(z[:, :, :1]).sample]
        one_by_one += [model.decode(z[:, :, k : k + 1], first=False).sample for k in range(1, 5)]
        assert torch.equal(torch.cat(one_by_one, 2), whole)
    assert (whole - model.decode_linear(z).clamp(-1, 1)).abs().max() > 0.01


def test_an_untrained_refinement_is_the_identity(fitted):
    z = torch.randn(2, 16, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        linear = fitted.decode_linear(z).clamp(-1, 1)
        torch.testing.assert_close(fitted.decode(z).sample, linear, atol=0, rtol=0)
    plain = AutoencoderLinear(z_dim=16, block=8, refine_width=0)
    plain.load_state_dict(
        {k: v for k, v in fitted.state_dict().items() if not k.startswith("refinement")}
    )
    assert plain.refinement is None
    assert torch.equal(plain.decode(z).sample, linear)


@torch.no_grad()
def made_of(model, clips):
    """Examples of which the model made every other cell too bright."""
    encoded = model.encode(clips).latent_dist.mode()
    rows, columns = encoded.shape[-2:]
    board = (torch.arange(rows)[:, None] + torch.arange(columns)) % 2
    made = encoded.clone()
    made[:, 0] += 0.8 * board
    return [Made(*parts) for parts in zip(encoded, made, clips, strict=True)]


def fresh_copy(model):
    other = trained_refinement(model)
    torch.nn.init.zeros_(other.refinement.exit.weight)
    torch.nn.init.zeros_(other.refinement.exit.bias)
    return other


def test_refinement_trains_alone_and_helps_both_kinds(fitted, unseen):
    model = fresh_copy(fitted)
    examples = made_of(model, unseen[0].clamp(-1, 1))

    @torch.no_grad()
    def losses():
        return [
            float(
                sum(
                    reconstruction_loss(
                        model.decode(getattr(one, kind)[None]).sample, one.video[None]
                    )
                    for one in examples
                )
            )
            for kind in ("encoded", "made")
        ]

    before, kept = losses(), {k: v.clone() for k, v in model.state_dict().items()}
    assert before[1] > 1.05 * before[0]
    reports = []
    train_refinement(
        model,
        examples,
        1,
        150,
        lambda step, loss: reports.append((step, loss)),
        learning_rate=5e-3,
        crop=4,
    )
    assert [step for step, _ in reports] == list(range(1, 151))
    after = losses()
    assert after[0] < 0.99 * before[0]
    assert after[1] < 0.97 * before[1]
    for key, value in model.state_dict().items():
        assert torch.equal(value, kept[key]) == (not key.startswith("refinement")), key


def test_a_refinement_follows_from_its_seed_and_takes_the_kinds_in_turn(
    fitted, unseen, monkeypatch
):
    kinds = []
    genuine = codec._crop

    def crop(examples, generator, cells, encoded):
        kinds.append(encoded)
        z, video = genuine(examples, generator, cells, encoded)
        assert z.shape == (16, 2, 3, 3)
        assert video.shape == (3, 5, 24, 24)
        return z, video

    monkeypatch.setattr(codec, "_crop", crop)
    weights = []
    for seed in (1, 1, 2):
        model = fresh_copy(fitted)
        examples = made_of(model, unseen[0])
        train_refinement(model, examples, seed, 4, lambda *_: None, batch_size=2, crop=3)
        weights.append(model.refinement.exit.weight.clone())
    assert kinds[:8] == [True, True, False, False] * 2
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("encoded", [True, False])
def test_a_crop_is_one_place_of_latents_and_pixels(encoded):
    rows, columns, side = 5, 7, 8
    places = torch.arange(rows * columns).reshape(rows, columns).float()
    pixels = places.repeat_interleave(side, 0).repeat_interleave(side, 1)
    example = Made(
        places.expand(3, 2, -1, -1), places.expand(3, 2, -1, -1) + 100, pixels.expand(3, 5, -1, -1)
    )
    generator = torch.Generator().manual_seed(2)
    seen = set()
    for _ in range(20):
        z, video = codec._crop([example], generator, 3, encoded)
        z = z - (0 if encoded else 100)
        assert torch.equal(video[0, 0, ::side, ::side], z[0, 0])
        seen.add(int(z[0, 0, 0, 0]))
    assert len(seen) > 5


def test_the_loss_is_nothing_for_equal_pictures_and_sees_edges():
    target = torch.rand(1, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert reconstruction_loss(target, target).item() == 0.0
    brighter = reconstruction_loss(target + 0.1, target)
    assert brighter.item() == pytest.approx(10 * 0.01 + 0.1, rel=1e-4)
    # The same error everywhere has no steps; of alternating sign, it has.
    signs = torch.ones(8)
    signs[::2] = -1
    striped = reconstruction_loss(target + 0.1 * signs, target)
    assert striped.item() == pytest.approx(brighter.item() + 0.5 * 0.2, rel=1e-3)


def test_psnr_by_hand():
    target = torch.zeros(1, 3, 4, 4)
    assert psnr(target + 0.2, target) == pytest.approx(20.0, abs=1e-3)
    assert psnr(target + 0.1, target, peak=1.0) == pytest.approx(20.0, abs=1e-3)


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(2, 16, 16), (4, 16, 16), (6, 16, 16), (5, 12, 16), (1, 16, 9)]
)
def test_clips_that_do_not_divide_are_refused(fitted, frames, height, width):
    with pytest.raises(ValueError, match=r"1 \+ 4k frames and sides divisible by 8"):
        fitted.encode(torch.zeros(1, 3, frames, height, width))


@pytest.mark.parametrize("group", [1, 4])
def test_blocks_and_back(group):
    clip = torch.arange(2 * 3 * 4 * 8 * 12, dtype=torch.float32).reshape(2, 3, 4, 8, 12)
    blocks = to_blocks(clip, 4, group)
    assert blocks.shape == (2, 4 // group, 2, 3, 3 * group * 16)
    assert torch.equal(from_blocks(blocks, 4, group), clip)
    # A block holds one place of the picture: channel, frame, row, column.
    place = blocks[1, 0, 1, 2].reshape(3, group, 4, 4)
    assert torch.equal(place, clip[1, :, :group, 4:8, 8:12])


def test_a_codec_survives_its_folder(fitted, tmp_path):
    model = trained_refinement(fitted)
    model.save_pretrained(tmp_path)
    again = AutoencoderLinear.from_pretrained(tmp_path).eval()
    assert dict(again.config)["latents_std"] == dict(model.config)["latents_std"]
    z = torch.randn(1, 16, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again.decode(z).sample, model.decode(z).sample)


def test_texture_counts_contrast_and_not_its_place():
    generator = torch.Generator().manual_seed(3)
    sharp = torch.rand(1, 3, 2, 34, 34, generator=generator)
    soft = (sharp + sharp.roll(1, -1) + sharp.roll(1, -2) + sharp.roll((1, 1), (-1, -2))) / 4
    assert texture_loss(sharp, sharp).item() == 0.0
    assert texture_loss(sharp + 0.2, sharp).item() < 1e-6
    elsewhere = texture_loss(sharp.roll(1, -1), sharp)
    assert 10 * elsewhere < texture_loss(soft, sharp)
    assert reconstruction_loss(sharp.roll(1, -1), sharp) > reconstruction_loss(soft, sharp)
