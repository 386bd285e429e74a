"""The training pool: the same seed renders the same bytes, and captions tell the truth."""

from __future__ import annotations

import pytest
import torch

from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.models.latents import encode_latents
from osp_cli.procedural.motions import CAMERA_MOTIONS, SCENE_MOTIONS, SPEEDS, Motion, render_clip
from osp_cli.procedural.prompts import STYLE_PHRASES
from osp_cli.procedural.styles import BRICK_CELL, STYLE_OPERATORS
from osp_cli.registry import find_model
from osp_cli.training import mini_data
from osp_cli.training.mini_data import (
    BUCKET_WEIGHTS,
    KEPT_FRAMES,
    frame_times,
    load_shard,
    render_shard,
    render_styled,
    save_shard,
)

WIDTH, HEIGHT = 64, 32


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    model = AutoencoderLinear(
        z_dim=8, refine_width=0, latents_mean=[0.1] * 8, latents_std=[2.0] * 8
    )
    for basis in (model.first_basis, model.next_basis):
        torch.nn.init.orthogonal_(basis)
    return model.eval()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(mini_data, "BUCKET_WEIGHTS", {(WIDTH, HEIGHT): 1.0})


def render(codec, seed=1, number=0, canvases=1, clips=1):
    with torch.no_grad():
        return render_shard(codec, seed, number, canvases, clips)


def test_buckets_of_the_pool_are_those_of_the_card():
    assert set(BUCKET_WEIGHTS) == set(find_model("osp-mini").sizes)
    assert sum(BUCKET_WEIGHTS.values()) == pytest.approx(1.0)


def test_the_same_seed_and_number_give_the_same_bytes(codec, small, tmp_path):
    for name in ("a", "b"):
        save_shard(render(codec, clips=2), tmp_path / f"{name}.safetensors")
    a, b = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b
    for seed, number in ((2, 0), (1, 1)):
        other = render(codec, seed, number, clips=2)
        assert not torch.equal(other.pictures, load_shard(tmp_path / "a.safetensors").pictures)


def test_a_shard_survives_its_file(codec, small, tmp_path):
    shard = render(codec, canvases=2, clips=2)
    save_shard(shard, tmp_path / "shard.safetensors")
    again = load_shard(tmp_path / "shard.safetensors")
    for name in ("latents", "indices", "first", "pictures"):
        one, other = getattr(shard, name), getattr(again, name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert again.captions == shard.captions
    assert [entry.name for entry in tmp_path.iterdir()] == ["shard.safetensors"]


def test_what_a_shard_holds(codec, small):
    shard = render(codec, canvases=2, clips=3)
    assert shard.latents.shape == (6, 8, 4, HEIGHT // 16, WIDTH // 16)
    assert tuple(shard.indices.tolist()) in KEPT_FRAMES
    assert shard.first.shape == (6, 8, 1, HEIGHT // 16, WIDTH // 16)
    assert shard.latents.dtype == shard.first.dtype == torch.bfloat16
    assert shard.pictures.shape == (6, 3, HEIGHT // 2, WIDTH // 2)
    assert shard.pictures.dtype == torch.uint8
    assert len(shard.captions) == 6
    # Canvases differ, and so do the views of one.
    assert (shard.pictures[0].float() - shard.pictures[3].float()).abs().mean() > 5
    assert not torch.equal(shard.latents[0], shard.latents[1])


def test_kept_frames_are_the_same_as_in_the_whole_clip(codec, small, monkeypatch):
    shard = render(codec, canvases=1, clips=2)
    # As many choices as before, so that nothing else is drawn otherwise.
    monkeypatch.setattr(mini_data, "KEPT_FRAMES", (tuple(range(13)),) * len(KEPT_FRAMES))
    whole = render(codec, canvases=1, clips=2)
    assert whole.captions == shard.captions
    assert whole.latents.shape[2] == 13
    torch.testing.assert_close(
        whole.latents[:, :, shard.indices].float(), shard.latents.float(), atol=0.02, rtol=0.02
    )
    assert torch.equal(whole.first, shard.first)


def test_all_frames_of_a_clip_are_kept_in_some_shard():
    assert {index for kept in KEPT_FRAMES for index in kept} == set(range(13))
    for kept in KEPT_FRAMES:
        assert kept[0] == 0
        assert list(kept) == sorted(set(kept))
        assert len(kept) == len(KEPT_FRAMES[0])  # or shards could not share a step's shape


def test_a_latent_covers_four_frames_but_the_first():
    assert frame_times((0,)).tolist() == [0]
    assert frame_times((0, 1, 5)).tolist() == [0, 1, 2, 3, 4, 17, 18, 19, 20]
    assert frame_times(tuple(range(13))).tolist() == list(range(49))


def test_half_of_the_shards_have_sharp_canvases(codec, small, monkeypatch):
    drawn = []

    def stop(kind):
        def draw(*_):
            drawn.append(kind)
            raise StopIteration

        return draw

    monkeypatch.setattr(mini_data, "make_canvases", stop("plain"))
    monkeypatch.setattr(mini_data, "sharp_canvases", stop("sharp"))
    for number in range(200):
        with pytest.raises(StopIteration):
            render(codec, number=number)
    assert drawn.count("sharp") / 200 == pytest.approx(0.5, abs=0.1)


def test_captions_name_what_is_there_to_be_named(codec, small):
    captions = [c for number in range(6) for c in render(codec, number=number, clips=2).captions]
    for caption in captions:
        assert set(caption) == {"prompt", "style", "camera", "scene", "speed"}
        assert caption["style"] in (None, *STYLE_OPERATORS)
        assert caption["camera"] in (None, *CAMERA_MOTIONS)
        assert caption["scene"] in (None, *SCENE_MOTIONS)
        assert caption["speed"] in SPEEDS
        if caption["style"]:
            prompt = caption["prompt"].lower()
            assert any(phrase in prompt for phrase in STYLE_PHRASES[caption["style"]])
    assert len({caption["prompt"] for caption in captions}) == len(captions)


def test_an_unstyled_clip_begins_with_its_picture_and_a_styled_one_does_not(codec, small):
    shards = [render(codec, number=number, clips=3) for number in range(4)]
    differences = {True: [], False: []}
    for shard in shards:
        for index, caption in enumerate(shard.captions):
            start = shard.latents[index, :, :1].float()
            error = (start - shard.first[index].float()).square().mean().sqrt()
            differences[caption["style"] is None].append(float(error))
    assert max(differences[True]) == 0.0
    assert min(differences[False]) > 0.05


def test_the_picture_is_what_the_latents_encode(codec, small):
    shard = render(codec, clips=2)
    pictures = shard.pictures.float() / 255
    sharp = torch.nn.functional.interpolate(pictures, scale_factor=2)[:, :, None] * 2 - 1
    latents = encode_latents(codec, sharp)
    flat = torch.stack([latents.flatten(), shard.first.float().flatten()])
    assert torch.corrcoef(flat)[0, 1] > 0.9


@pytest.fixture(scope="module")
def canvas():
    generator = torch.Generator().manual_seed(2)
    return torch.rand(3, 84, 130, generator=generator)


def test_without_a_style_a_clip_is_rendered_as_it_is(canvas):
    motion, times = Motion("zoom-in", "snow"), torch.tensor([0, 9])
    plain = render_styled(canvas, motion, None, (64, 100), times, 5)
    assert torch.equal(plain, render_clip(canvas, motion, (64, 100), times, 5).clamp(0, 1))


def test_paint_moves_with_the_things(canvas):
    # Under a pan of 20 pixels it goes along.
    first, last = render_styled(
        canvas, Motion("pan-left", speed="fast"), "disney", (64, 100), torch.tensor([0, 48]), 0
    )
    torch.testing.assert_close(last[:, :, 20:], first[:, :, :-20], atol=1e-3, rtol=0)
    assert (last - first).abs().mean() > 0.01


def test_the_screen_stays_where_it_is(canvas):
    flat = torch.full_like(canvas, 0.5)
    clip = render_styled(
        flat, Motion("pan-left", speed="fast"), "lego", (64, 100), torch.tensor([0, 20, 48]), 0
    )
    torch.testing.assert_close(clip, clip[:1].expand_as(clip), atol=1e-4, rtol=0)
    tiles = clip[0, 0, :64, :96].unfold(0, BRICK_CELL, BRICK_CELL).unfold(1, BRICK_CELL, BRICK_CELL)
    torch.testing.assert_close(tiles, tiles[:1, :1].expand_as(tiles), atol=1e-4, rtol=0)
    assert clip.std() > 0.02


@pytest.mark.parametrize("style", [None, *sorted(STYLE_OPERATORS)])
def test_every_style_renders_in_range(canvas, style):
    clip = render_styled(
        canvas, Motion("roll-left", "rain"), style, (64, 100), torch.tensor([0, 30]), 1
    )
    assert clip.shape == (2, 3, 64, 100)
    assert 0.0 <= clip.min() <= clip.max() <= 1.0
