"""What of the start is fitted: language and the guide."""

from __future__ import annotations

import pytest
import torch

from osp_cli.conditioning.image_tokens import blur_latents
from osp_cli.models.mini_stream import (
    CODE_SCALE,
    CODES,
    CUTOFF_STEPS,
    GUIDE_SCALE,
    stream_layout,
)
from osp_cli.procedural.motions import Motion
from osp_cli.procedural.styles import STYLE_OPERATORS
from osp_cli.sampling.fourier import fourier_features
from osp_cli.training.mini_fit import code_vector, fit_guide, fit_language
from osp_cli.training.mini_motion import (
    fit_motion,
)
from osp_cli.training.mini_start import GUIDE_UNITS

CHANNELS = 4


@pytest.fixture
def started(start_model):
    return start_model()


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
    assert codes.min() > -0.15
    assert codes.max() < 1.15


def pictures_with_detail(count, seed):
    """First frames, each with its own share of detail."""
    generator = torch.Generator().manual_seed(seed)
    sharp = torch.randn(count, CHANNELS, 1, 12, 16, generator=generator)
    soft = blur_latents(sharp, 2) * 2
    share = torch.rand(count, 1, 1, 1, 1, generator=generator)
    return share * sharp + (1 - share) * soft


@pytest.fixture(scope="module")
def guided(start_model):
    """A model that was told cutoffs, its conditioner, and what the fit said of itself."""
    model, conditioner = start_model(num_layers=2)
    firsts = list(pictures_with_detail(48, seed=1).split(12))
    told = fit_guide(model, firsts, seed=1, steps=400)
    return model, conditioner, told


@torch.no_grad()
def stream_after_the_first_block(model, context, features):
    seen = {}
    handle = model.blocks[1].register_forward_pre_hook(
        lambda _module, args: seen.update(stream=args[0])
    )
    time = torch.full((len(features),), 700.0)
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(6))
    model(noise, time, context, features)
    handle.remove()
    return seen["stream"], stream_layout(model)


def test_cutoffs_are_told_of_pictures_that_were_not_fitted(guided):
    model, conditioner, told = guided
    assert told > 0.85
    firsts = pictures_with_detail(40, seed=2)
    cutoffs = torch.linspace(0.05, 0.95, 40)
    with torch.no_grad():
        context = conditioner.project(*conditioner.hidden_states([""] * 40), firsts)
    features = fourier_features(firsts, cutoffs, 2)
    stream, layout = stream_after_the_first_block(model, context, features)
    answers = (stream[..., layout.guide] / GUIDE_SCALE).mean(1)
    wanted = (cutoffs[:, None] > torch.tensor(CUTOFF_STEPS)).float()
    assert ((answers > 0.5) == (wanted > 0.5)).float().mean() > 0.75
    # Far from a step there is no doubt.
    clear = (cutoffs[:, None] - torch.tensor(CUTOFF_STEPS)).abs() > 0.2
    assert (answers - wanted)[clear].abs().mean() < 0.25
    # All tokens of a clip say the same, nearly.
    spread = (stream[..., layout.guide] / GUIDE_SCALE).std(1)
    assert spread.mean() < 0.1


def test_more_is_left_out_at_higher_cutoffs_and_finer_steps_come_first(guided):
    model, conditioner, _ = guided
    first = pictures_with_detail(1, seed=3).expand(9, -1, -1, -1, -1)
    cutoffs = torch.linspace(0.1, 0.95, 9)
    with torch.no_grad():
        context = conditioner.project(*conditioner.hidden_states([""] * 9), first)
    stream, layout = stream_after_the_first_block(
        model, context, fourier_features(first, cutoffs, 1)
    )
    answers = (stream[..., layout.guide] / GUIDE_SCALE).mean(1)
    assert (answers.sum(1).diff() > -0.1).all()
    assert answers[-1].mean() > 0.6 > 0.4 > answers[0].max()
    # A step at a smaller percentile is reached no later than one at a larger.
    assert (answers.diff(dim=1) < 0.15).all()


@pytest.mark.parametrize("cutoff", [0.05, 0.5, 0.95, None])
def test_styles_are_taken_back_where_there_are_no_features(guided, cutoff):
    model, conditioner, _ = guided
    first = pictures_with_detail(1, seed=4)
    with torch.no_grad():
        context = conditioner.project(*conditioner.hidden_states([""]), first)
    asked = code_vector(Motion("pan-left", "fire", "fast"), "ink")
    context[0, 20, CHANNELS + 4] = 1.0  # as if language had been fitted
    context[0, 20, CHANNELS + 5 : CHANNELS + 5 + len(CODES)] = asked
    none = torch.zeros_like(first)
    features = none if cutoff is None else fourier_features(first, cutoff, 1)
    stream, layout = stream_after_the_first_block(model, context, features)
    style = torch.tensor([kind == "style" for kind, _ in CODES])
    wanted = torch.where(style & (cutoff is None), torch.zeros(()), asked)
    codes = stream[0, :, layout.codes] / CODE_SCALE
    torch.testing.assert_close(codes, wanted.expand_as(codes), atol=0.05, rtol=0)
    if cutoff is None:
        # And nothing is left out of a clip that is continued.
        assert (stream[..., layout.guide] / GUIDE_SCALE).abs().max() < 0.3


def test_the_guide_leaves_the_motion_as_it_was(started):
    model, _ = started
    fit_motion(model, 1, steps=3, clips=20)
    layout = stream_layout(model)
    entry, last = model.blocks[0].ffn.net[0].proj, model.blocks[0].ffn.net[2]
    hidden = entry.out_features - GUIDE_UNITS - 2 * len(STYLE_OPERATORS)
    before = [entry.weight[:hidden].clone(), last.weight[:, :hidden].clone(), last.bias.clone()]
    fit_guide(model, [pictures_with_detail(4, seed=1)], seed=1, steps=3)
    assert torch.equal(entry.weight[:hidden], before[0])
    assert torch.equal(last.weight[:, :hidden], before[1])
    rest = torch.ones(layout.width, dtype=torch.bool)
    rest[layout.guide] = False
    assert torch.equal(last.bias[rest], before[2][rest])
    assert last.weight[layout.guide, hidden:].abs().max() > 0
