"""Laws of sizes and lengths."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osp_cli.registry import model_specs
from osp_cli.train_request import TrainRequest
from osp_cli.training.dataset.buckets import (
    MAX_ASPECT,
    bucket_frames,
    bucket_of,
    bucket_sizes,
    frames_within,
    is_enlarged,
    least_frames,
)
from osp_cli.training.dataset.settings import CheckSettings

MULTIPLES = st.sampled_from([16, 32])
SIDES = st.integers(4, 40)
CLIPS = st.tuples(st.integers(16, 4000), st.integers(16, 4000)).filter(
    lambda size: max(size) <= 4 * min(size)
)


def distance(clip, size):
    return abs(math.log(clip[0] / clip[1]) - math.log(size[0] / size[1]))


@given(multiple=MULTIPLES, columns=SIDES, rows=SIDES, more=st.integers(0, 200_000))
def test_sizes_are_multiples_within_the_budget(multiple, columns, rows, more):
    asked = (columns * multiple, rows * multiple)
    budget = asked[0] * asked[1] + more
    sizes = bucket_sizes(*asked, multiple, budget)
    assert asked in sizes
    assert len(set(sizes)) == len(sizes) <= 83
    for width, height in sizes:
        assert width % multiple == height % multiple == 0
        assert width * height <= budget
        if (width, height) != asked:
            assert max(width, height) <= MAX_ASPECT * min(width, height)
            assert min((width + multiple) * height, width * (height + multiple)) > budget
    # Turned by a quarter, they are the same.
    assert {(h, w) for w, h in sizes} - {asked[::-1]} == set(
        bucket_sizes(*asked[::-1], multiple, budget)
    ) - {asked[::-1]}


@given(clip=CLIPS, multiple=MULTIPLES, columns=SIDES, rows=SIDES)
def test_the_nearest_shape_is_taken_and_nothing_is_enlarged(clip, multiple, columns, rows):
    sizes = bucket_sizes(columns * multiple, rows * multiple, multiple)
    nearest = min(distance(clip, size) for size in sizes)
    allowed = bucket_of(clip, sizes, allow_upscale=True)
    assert distance(clip, allowed) == pytest.approx(nearest, abs=1e-8)
    size = bucket_of(clip, sizes)
    if size is None:
        assert max(allowed[0] / clip[0], allowed[1] / clip[1]) > 1
    else:
        assert size == allowed
        assert max(size[0] / clip[0], size[1] / clip[1]) <= 1


@given(clip=CLIPS, size=st.tuples(st.integers(16, 900), st.integers(16, 900)))
def test_enlarged_means_that_the_crop_has_fewer_pixels(clip, size):
    # The part that is left after cutting the clip to the shape of the size.
    scale = min(clip[0] / size[0], clip[1] / size[1])
    area = (size[0] * scale) * (size[1] * scale)
    if abs(area - size[0] * size[1]) > 1e-6 * area:
        assert is_enlarged(clip, size) == (area < size[0] * size[1])


@given(available=st.integers(1, 400), quarter=st.integers(0, 30))
def test_lengths_are_the_longest_that_fit(available, quarter):
    num_frames = 4 * quarter + 1
    found = bucket_frames(available, num_frames)
    known = {n for n in (17, 33, 49, 81) if n <= num_frames} | {num_frames}
    assert found == max((n for n in known if n <= available), default=None)
    assert (found is None) == (available < least_frames(num_frames))
    assert bucket_frames(available, num_frames, bucket=False) == (
        num_frames if available >= num_frames else None
    )


@pytest.mark.parametrize(
    ("side", "frames"), [(256, 49), (512, 49), (640, 29), (768, 21), (1024, 13), (4096, 1)]
)
def test_larger_sizes_have_fewer_frames_for_the_same_tokens(side, frames):
    assert frames == min(49 * 512 * 512 // side**2, 49) // 4 * 4 + 1
    assert frames_within((side, side), 49, 512 * 512) == frames


def settings(spec, size):
    return CheckSettings.of(
        TrainRequest(
            dataset=".",
            name="x",
            output=".",
            model=spec.name,
            mode=spec.train_mode,
            width=size[0],
            height=size[1],
            num_frames=min(49, spec.max_frames),
        )
    )


@pytest.mark.parametrize(
    "spec",
    [spec for spec in model_specs().values() if spec.train_problem(spec.train_mode) is None],
    ids=lambda spec: spec.name,
)
def test_a_cards_own_sizes_are_what_clips_of_their_shapes_get(spec):
    found = settings(spec, spec.default_size)
    for size in spec.sizes:
        ours = bucket_of((size[0] * 8, size[1] * 8), found.sizes)
        if size in found.own_sizes:
            assert ours == size
        assert ours[0] * ours[1] <= 1.15 * spec.default_size[0] * spec.default_size[1]
    for width, height in found.sizes:
        assert width * height <= spec.max_pixels


def test_another_size_is_its_own_measure():
    spec = model_specs()["osp-mini"]
    assert max(w * h for w, h in settings(spec, (256, 128)).sizes) == 256 * 128


def test_one_size_for_all():
    assert CheckSettings(bucket=False, width=512, height=256).sizes == ((512, 256),)
