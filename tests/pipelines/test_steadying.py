"""Frames that were painted one by one are led along with what moves in their source."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from osp_cli.pipelines.steadying import SHARE, optical_flow, steadied, warped
from osp_cli.procedural.noise import gaussian_blur

SIZE = (64, 96)


@pytest.fixture(scope="module")
def canvas() -> Tensor:
    """A picture with detail everywhere, larger than a frame: `(3, 96, 160)` in [0, 1]."""
    generator = torch.Generator().manual_seed(3)
    noise = gaussian_blur(torch.rand(1, 3, 96, 160, generator=generator), 1.5)[0]
    return ((noise - 0.5) * 4 + 0.5).clamp(0, 1)


def panned(canvas: Tensor, count: int, step: int = 2) -> list[Tensor]:
    """Frames of a camera that moves right by whole pixels."""
    height, width = SIZE
    return [
        canvas[:, 8 : 8 + height, index * step : index * step + width] for index in range(count)
    ]


def test_flow_finds_a_shift(canvas):
    before, after = (frame.mean(0, keepdim=True) for frame in panned(canvas, 2, step=3))
    flow = optical_flow(after, before)
    inner = flow[:, 8:-8, 8:-8]
    assert inner[0].median() == pytest.approx(3, abs=0.05)
    assert inner[1].abs().median() < 0.05


def test_flow_of_what_stands_still_is_none(canvas):
    frame = panned(canvas, 1)[0].mean(0, keepdim=True)
    assert optical_flow(frame, frame).abs().max() < 1e-4


def test_warping_fetches_from_where_the_flow_points(canvas):
    before, after = panned(canvas, 2)
    flow = torch.zeros(2, *SIZE)
    flow[0] = 2
    torch.testing.assert_close(
        warped(before, flow)[:, :, 4:-4], after[:, :, 4:-4], atol=1e-4, rtol=0
    )


def noisy(frames: list[Tensor], deviation: float = 0.05) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        frame * 0.8 + 0.1 + deviation * torch.randn(frame.shape, generator=generator)
        for frame in frames
    ]


def difference_along_the_pan(frames: list[Tensor], step: int = 2) -> float:
    """Mean difference of neighbours once the pan is taken out."""
    pairs = itertools.pairwise(frames)
    inner = slice(4, -4)
    return float(
        torch.stack(
            [(b[:, inner, :-step] - a[:, inner, step:])[:, :, 4:-4].abs().mean() for a, b in pairs]
        ).mean()
    )


def test_painters_noise_is_calmed_and_the_picture_stays(canvas):
    source = panned(canvas, 16)
    painted = noisy(source)
    calm = list(steadied(painted, source, SHARE))
    assert difference_along_the_pan(calm) < 0.3 * difference_along_the_pan(painted)
    # Nearer to what the painter meant, from the very first frame on.
    for index in (0, 1, 8, 15):
        meant = source[index] * 0.8 + 0.1
        assert (calm[index] - meant)[:, 4:-4, 8:-8].abs().mean() < 0.7 * (
            painted[index] - meant
        ).abs().mean()


def test_a_cut_leaves_nothing_of_what_was_before(canvas):
    source = [*panned(canvas, 4), *[1 - frame for frame in panned(canvas, 4)]]
    painted = [torch.full((3, *SIZE), 0.1)] * 4 + [torch.full((3, *SIZE), 0.9)] * 4
    after = list(steadied(painted, source, SHARE))[4]
    assert (after - 0.9).abs().median() < 0.01


def test_a_pattern_on_the_screen_is_not_dragged_along(canvas):
    source = panned(canvas, 12)
    columns = torch.arange(SIZE[1]) % 4 < 2
    pattern = torch.where(columns, 0.7, 0.3).expand(3, *SIZE)
    dragged = list(steadied([pattern] * 12, source, SHARE))[-1]
    standing = list(steadied([pattern] * 12, source, SHARE, 1.0))[-1]
    middle = (slice(None), slice(8, -8), slice(24, -24))
    assert (dragged - pattern)[middle].abs().mean() > 0.05
    assert (standing - pattern)[middle].abs().mean() < 0.01


def test_no_share_changes_nothing(canvas):
    source = panned(canvas, 3)
    painted = [frame.clamp(0, 1) for frame in noisy(source)]
    for calm, frame in zip(steadied(painted, source, 0.0), painted, strict=True):
        torch.testing.assert_close(calm, frame)


@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_any_number_of_frames(canvas, count):
    source = panned(canvas, count, step=1)
    assert len(list(steadied(source, source, SHARE))) == count


def test_a_source_that_ends_early_is_a_mistake(canvas):
    source = panned(canvas, 10)
    with pytest.raises(ValueError, match="shorter"):
        list(steadied(source, source[:9], SHARE))
