"""Style operators: one per preset, in range, and in their place: on the thing or on the screen."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from osp_cli.procedural.noise import luminance
from osp_cli.procedural.scenes import make_canvases
from osp_cli.procedural.styles import (
    BRICK_CELL,
    PIXEL_CELL,
    STYLE_OPERATORS,
    TILE,
    apply_style,
    contours,
    edges,
    kuwahara,
    posterise,
)
from osp_cli.registry import style_presets

NAMES = sorted(STYLE_OPERATORS)
ON_SCREEN = {
    "chibi", "fairy-tale", "gotham-noir", "ink", "lego", "oil", "pixel-art", "vaporwave",
    "watercolor",
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures():
    return make_canvases(torch.Generator().manual_seed(7), 2, 64, 96)


def test_the_operators_are_the_thirteen_presets():
    assert set(STYLE_OPERATORS) == set(style_presets())
    assert len(STYLE_OPERATORS) == 13


@pytest.mark.parametrize("name", NAMES)
def test_a_look_keeps_shape_and_range_and_changes_the_picture(pictures, name):
    look = apply_style(name, pictures)
    assert look.shape == pictures.shape
    assert look.dtype == pictures.dtype
    assert 0.0 <= look.min() <= look.max() <= 1.0
    assert ((look - pictures).abs().mean((1, 2, 3)) > 0.03).all()
    # It is a picture of the same thing, not a pattern or a flat colour.
    assert (luminance(look).flatten(1).std(1) > 0.02).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(45, 61), (32, 32), (70, 40)])
def test_any_size_has_a_look(name, height, width):
    picture = make_canvases(torch.Generator().manual_seed(1), 1, height, width)
    look = apply_style(name, picture)
    assert look.shape == picture.shape
    assert look.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_look_follows_from_its_picture_alone(pictures, name):
    torch.manual_seed(3)
    together = apply_style(name, pictures)
    torch.manual_seed(4)
    alone = torch.cat([apply_style(name, picture[None]) for picture in pictures])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


def test_no_two_looks_are_alike(pictures):
    looks = {name: apply_style(name, pictures) for name in NAMES}
    for one, other in combinations(NAMES, 2):
        assert (looks[one] - looks[other]).abs().mean() > 0.03, (one, other)


def test_an_unknown_style_is_refused(pictures):
    with pytest.raises(KeyError):
        apply_style("baroque", pictures)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"ghibli"}))  # whose sky is always above
def test_painted_marks_move_with_the_things(name):
    # Rolled, not cropped: some looks depend on the mean of the whole picture.
    canvas = make_canvases(torch.Generator().manual_seed(9), 1, 176, 176)
    paint, shift = STYLE_OPERATORS[name].paint, (5, 9)
    inside = (..., slice(56, -56), slice(56, -56))
    painted, shifted = paint(canvas), paint(canvas.roll(shift, (2, 3)))
    torch.testing.assert_close(
        shifted[inside], painted.roll(shift, (2, 3))[inside], atol=1e-3, rtol=0
    )
    assert (shifted[inside] - painted[inside]).abs().mean() > 0.01


def test_summer_skies_are_azure_where_it_is_light_and_high_up():
    def blueness(level):
        look = STYLE_OPERATORS["ghibli"].paint(torch.full((1, 3, 96, 96), level))[0]
        return (look[2] - look[0]).mean(1)

    light, dark = blueness(0.9), blueness(0.3)
    assert light[:10].mean() > light[-10:].mean() + 0.1
    assert abs(dark[:10].mean() - dark[-10:].mean()) < 0.02


@pytest.mark.parametrize("name", sorted(ON_SCREEN))
def test_screen_patterns_repeat_with_the_tokens_of_the_embedded_model(name):
    # In the middle of a large flat frame, which no vignette and no margin reaches.
    look = STYLE_OPERATORS[name].screen(torch.full((1, 3, 384, 384), 0.45))[0]
    tile = look[:, 160:192, 160:192]
    assert TILE == 32
    assert tile.std((1, 2)).max() > 0.003
    for row, column in ((160, 192), (192, 160), (192, 192)):
        other = look[:, row : row + 32, column : column + 32]
        torch.testing.assert_close(other, tile, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", sorted(set(NAMES) - ON_SCREEN))
def test_looks_without_a_screen_leave_finished_frames_alone(pictures, name):
    assert torch.equal(STYLE_OPERATORS[name].screen(pictures), pictures)


@pytest.mark.parametrize("name", sorted(ON_SCREEN - {"pixel-art"}))
def test_screen_patterns_stay_put_while_the_picture_moves(name):
    # The pattern on a flat frame, and on a picture and the same picture shifted under it: what
    # the screen adds on average does not move.
    screen = STYLE_OPERATORS[name].screen
    flat = 0.25 if name == "chibi" else 0.45  # dots belong to the shadows
    pattern = screen(torch.full((1, 3, 96, 96), flat))[0].mean(0)
    assert pattern.std() > 0.005
    # Strokes cross and dots grow with the picture, yet they stay in their places.
    least = 0.25 if name in ("chibi", "oil") else 0.5
    frames = make_canvases(torch.Generator().manual_seed(2), 12, 96, 96)
    for shift in (0, 7):
        moved = frames.roll(shift, 3)
        added = (screen(moved) - moved).mean((0, 1))
        assert correlation(added, pattern) > least
        assert correlation(added, pattern) > correlation(added, pattern.roll((3, 5), (0, 1)))


def correlation(one, other):
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / (one.norm() * other.norm()))


@pytest.mark.parametrize("shift", [0, 3, 11])
def test_pixels_are_squares_at_fixed_places_of_the_screen(pictures, shift):
    look = STYLE_OPERATORS["pixel-art"].screen(pictures.roll(shift, 3))
    cells = look.unfold(2, PIXEL_CELL, PIXEL_CELL).unfold(3, PIXEL_CELL, PIXEL_CELL)
    inside = cells[..., 1:-1, 1:-1]
    torch.testing.assert_close(inside, inside[..., :1, :1].expand_as(inside))
    assert inside[..., 0, 0].std() > 0.05
    # Beside it on all sides, a darker gap.
    for edge in (cells[..., 0, :], cells[..., -1, :], cells[..., :, 0], cells[..., :, -1]):
        torch.testing.assert_close(edge, 0.7 * inside[..., :1, 0].expand_as(edge))


@pytest.mark.parametrize("shift", [0, 3, 11])
def test_bricks_have_dark_seams_at_fixed_places_of_the_screen(pictures, shift):
    frame = (0.4 + 0.4 * pictures).roll(shift, 3)
    look = luminance(STYLE_OPERATORS["lego"].screen(frame))[:, 0]
    columns = look.mean((0, 1))
    seams = torch.arange(len(columns)) % BRICK_CELL
    at_seam, inside = columns[(seams == 0) | (seams == BRICK_CELL - 1)], columns[seams == 3]
    assert at_seam.max() < inside.min()


def test_cells_of_the_screen_lie_on_cells_of_the_codec():
    # A grid that always falls on the same place of a 16-pixel block is one a codec keeps sharp.
    assert 16 % PIXEL_CELL == 0
    assert BRICK_CELL == 16


def test_kuwahara_moves_with_the_picture_and_keeps_edges():
    picture = torch.rand(1, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    smooth = kuwahara(picture, 4)
    inside = (..., slice(12, -12), slice(12, -12))
    torch.testing.assert_close(
        kuwahara(picture.roll((2, 3), (2, 3)), 4)[inside], smooth.roll((2, 3), (2, 3))[inside]
    )
    assert smooth.std() < 0.5 * picture.std()

    edge = torch.zeros(1, 3, 20, 20)
    edge[..., 10:] = 1.0
    torch.testing.assert_close(kuwahara(edge, 4), edge, atol=1e-6, rtol=0)


def test_lines_are_drawn_where_dark_meets_light_and_nowhere_else():
    picture = torch.full((1, 3, 40, 40), 0.8)
    picture[..., 20:] = 0.2
    line = contours(picture, 1.4, 13.0, 0.012)[0, 0]
    assert 0.0 <= line.min() <= line.max() <= 1.0
    assert line[20, 20:24].max() > 0.5
    assert line[:, :12].max() == 0.0
    assert line[:, 32:].max() == 0.0
    strength = edges(picture)[0, 0]
    assert strength[:, 19:21].min() > 0.5
    assert strength[:, :18].max() < 1e-3


@pytest.mark.parametrize("levels", [2, 4, 6])
def test_posterise_keeps_the_ends_and_lies_on_steps(levels):
    ramp = torch.linspace(0, 1, 1001)
    steps = posterise(ramp, levels, 0.15)
    assert steps[0] == 0.0
    assert steps[-1].item() == pytest.approx(1.0)
    assert (steps[1:] >= steps[:-1] - 1e-6).all()
    scaled = steps * (levels - 1)
    on_a_step = (scaled - scaled.round()).abs() < 1e-5
    assert on_a_step.float().mean() > 0.8
    assert set(scaled[on_a_step].round().int().tolist()) == set(range(levels))
