"""What the start knows of motion."""

from __future__ import annotations

import random

import pytest
import torch

from osp_cli.models.mini_stream import (
    FRACTION_SCALE,
    GUIDE_SCALE,
    JACOBIAN_SCALE,
    PLACE_SCALE,
    stream_layout,
)
from osp_cli.models.positions import CELLS_PER_UNIT
from osp_cli.procedural.motions import Motion
from osp_cli.training.mini_fit import code_vector
from osp_cli.training.mini_motion import (
    fit_motion,
    latent_motion,
    motion_groups,
    token_motion,
    told_motion,
)

CHANNELS = 4


@pytest.fixture
def started(start_model):
    return start_model()


def test_a_latent_lies_in_the_middle_of_its_frames():
    motion = Motion("pan-right", None, "normal")
    moved, speed = latent_motion(motion, (256, 448), torch.tensor([0, 1, 6, 12]), (2, 3))
    assert moved.shape == speed.shape == (4, 2, 3, 2)
    step = 0.13 * 448 / 48  # pixels per frame
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
    for part in ("place", "fraction", "velocity", "jacobian", "moved"):
        untouched[getattr(layout, part)] = False
    assert last[untouched].abs().max() == 0


@pytest.mark.parametrize(
    ("motion", "jacobian"),
    [
        (Motion("pan-left"), (0.0, 0.0, 0.0, 0.0)),
        (Motion("zoom-in"), (1 / 1.26 - 1, 0.0, 0.0, 1 / 1.26 - 1)),
        (Motion("roll-right", speed="fast"), (-0.034, 0.259, -0.259, -0.034)),
    ],
)
def test_tokens_know_how_the_picture_grows_and_turns(motion, jacobian):
    told = token_motion(motion, torch.tensor([0, 3, 12]), (4, 6), 2)
    assert told.shape == (3, 4, 6, 9)
    assert told[0, ..., :2].abs().max() == 0
    # Latent 12 covers frames 45 to 48, 48 being where the path is counted to.
    last = told[2, ..., 4:8].flatten(0, 1)
    torch.testing.assert_close(last, torch.tensor(jacobian).expand_as(last), atol=0.012, rtol=0.02)
    # A token's displacement and its growth say where every cell of it went.
    moved, _ = latent_motion(motion, (4 * 32, 6 * 32), torch.tensor([0, 3, 12]), (8, 12))
    cells = moved.unflatten(2, (6, 2)).unflatten(1, (4, 2)) / 16
    for row, column in ((0, 0), (1, 0), (1, 1)):
        offset = torch.tensor([column - 0.5, row - 0.5])
        growth = (told[..., 4:8].unflatten(-1, (2, 2)) * offset).sum(-1)
        torch.testing.assert_close(
            told[..., :2] + growth, cells[:, :, row, :, column], atol=1e-4, rtol=1e-4
        )


def test_what_has_left_its_place_stays_so():
    swaying = token_motion(Motion(scene="sway"), torch.arange(13), (8, 14), 2)
    left = swaying[..., 8]
    assert left[0].max() == 0
    assert left[-1].max() == 1
    assert (left.diff(dim=0) >= 0).all()
    # At the bottom nothing sways.
    assert left[-1, -1].max() < 0.5


@torch.no_grad()
def test_told_of_a_motion_tokens_go_where_it_leads(started):
    model, conditioner = started
    first = torch.randn(1, CHANNELS, 1, 12, 16, generator=torch.Generator().manual_seed(1))
    context = conditioner.project(*conditioner.hidden_states(["a cat"]), first)
    clip = torch.zeros(1, CHANNELS, 2, 12, 16)
    indices, motion = torch.tensor([0, 12]), Motion("zoom-in")
    seen = {}
    handle = model.blocks[0].register_forward_hook(lambda _m, _a, r: seen.update(stream=r))
    with told_motion(model, [motion], clip, indices):
        model(clip, torch.tensor([800.0]), context, clip, frame_indices=indices)
    told, layout = seen["stream"][0].clone(), stream_layout(model)
    model(clip, torch.tensor([800.0]), context, clip, frame_indices=indices)
    handle.remove()
    added = told - seen["stream"][0]
    wanted = token_motion(motion, indices, (6, 8), 2).flatten(0, 2)
    torch.testing.assert_close(
        added[:, layout.place.start] * CELLS_PER_UNIT / PLACE_SCALE, wanted[:, 0]
    )
    torch.testing.assert_close(added[:, layout.jacobian] / JACOBIAN_SCALE, wanted[:, 4:8])
    torch.testing.assert_close(added[:, layout.moved.start] / GUIDE_SCALE, wanted[:, 8])
    assert added[:, layout.content].abs().max() == 0


def test_a_group_is_asked_for_by_all_its_codes_and_none_of_the_others():
    slow = code_vector(Motion("pan-left", None, "slow"), "ink")
    normal = code_vector(Motion("pan-left", None, "normal"), None)
    gentle = code_vector(Motion(), "oil")
    codes = torch.stack([slow, normal, gentle])
    members = {
        tuple(name for _, name in group.wanted): group.holds(codes).tolist()
        for group in motion_groups()
        if group.holds(codes).any()
    }
    assert members == {
        (): [False, False, True],
        ("pan-left", "slow"): [True, False, False],
        ("pan-left",): [False, True, False],
    }
    for group in motion_groups():
        weights, bias = group.gate(20.0)
        pull = 4.0 * codes @ weights + bias
        assert torch.equal(pull == 0, group.holds(codes))
        assert pull[~group.holds(codes)].max() <= -20.0


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
