"""Sine coordinates name places in the frame, not token numbers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from osp_cli.models.positions import (
    cell_centres,
    grid_axis,
    grid_coordinates,
    sine_coordinates,
)


def plain(u, octaves):
    angles = [math.pi * 2**k * u / 2 for k in range(octaves)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def test_against_a_plain_version():
    indices = torch.tensor([0, 5, 12])
    got = sine_coordinates((3, 2, 4), 24, frame_indices=indices)
    assert got.shape == (3, 2, 4, 24)
    for f, index in enumerate(indices.tolist()):
        for y in range(2):
            for x in range(4):
                u = [(2 * x + 1) / 4 - 1, (2 * y + 1) / 2 - 1, index / 12]
                expected = [value for axis in u for value in plain(axis, 4)]
                torch.testing.assert_close(got[f, y, x], torch.tensor(expected))


def test_the_middle_of_any_odd_grid_is_the_same_place():
    small, large = sine_coordinates((1, 3, 5), 12), sine_coordinates((1, 9, 13), 12)
    torch.testing.assert_close(small[0, 1, 2], large[0, 4, 6])


@pytest.mark.parametrize(("size", "cell"), [(8, 1), (8, 4), (7, 2), (5, 8)])
def test_cells_are_centred_and_cover_the_frame(size, cell):
    centres = cell_centres(size, cell)
    edges = [min(start, size) for start in range(0, size + cell, cell)]
    expected = [(a + b) / size - 1 for a, b in itertools.pairwise(edges) if a < b]
    torch.testing.assert_close(centres, torch.tensor(expected))


def test_grid_coordinates_count_cells():
    got = grid_coordinates((2, 2, 3), 2, frame_indices=torch.tensor([0, 6]))
    assert got.shape == (2, 2, 3, 5)
    x, y, width, height, time = (got * 16).unbind(-1)
    # Tokens of two cells lie two cells apart; the middle of the frame is the origin.
    assert x[0, 0].tolist() == [-2.0, 0.0, 2.0]
    assert y[0, :, 0].tolist() == [-1.0, 1.0]
    assert width.unique().tolist() == [6.0]
    assert height.unique().tolist() == [4.0]
    assert (time[:, 0, 0] / 16).tolist() == [0.0, 0.5]


def test_a_token_lies_between_its_cells():
    cells, tokens = grid_axis(8), grid_axis(8, 2)
    torch.testing.assert_close(tokens, cells.reshape(4, 2).mean(1))
