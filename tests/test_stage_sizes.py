"""Sizes that can pass stages of rising resolution, and the nearest to those that cannot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osp_cli.stage_sizes import most_stages, stage_multiple, staged_size_problem


@pytest.mark.parametrize(
    ("size", "stages", "nearest"),
    [
        ((640, 384), 3, None),
        ((1280, 704), 3, None),
        ((832, 480), 2, None),
        ((832, 480), 3, (832, 512)),
        ((1280, 720), 1, None),
        ((1280, 720), 2, (1280, 736)),
        ((16, 16), 3, (64, 64)),
    ],
)
def test_wan_sizes(size, stages, nearest):
    assert staged_size_problem(*size, stages, 16) == nearest


pixels = st.integers(1, 4000)


@given(pixels, pixels, st.integers(1, 4), st.sampled_from([8, 16, 32]))
def test_the_nearest_size_can_be_staged_and_no_other_is_nearer(width, height, stages, multiple):
    step = stage_multiple(stages, multiple)
    found = staged_size_problem(width, height, stages, multiple)
    assert (found is None) == (most_stages(width, height, multiple) >= stages)
    for asked, nearest in zip((width, height), found or (width, height), strict=True):
        assert nearest % step == 0 and nearest > 0
        assert nearest == step or abs(nearest - asked) * 2 <= step


@pytest.mark.parametrize(("stages", "multiple"), [(0, 16), (3, 0)])
def test_nonsense_is_refused(stages, multiple):
    with pytest.raises(ValueError, match="at least 1"):
        stage_multiple(stages, multiple)
