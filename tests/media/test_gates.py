"""Measures of clips that were made to have, or not to have, what is measured."""

from __future__ import annotations

import runpy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.gates import (
    ClipMeasures,
    GateSettings,
    clipped_fraction,
    gate_problems,
    laplacian_variance,
    measure_clip,
)
from osp_cli.media.source_probe import probe_source

# The helper beside this file, however pytest imports either.
make = runpy.run_path(str(Path(__file__).parent / "clips.py"))["make"]
CODED = ("-c:v", "libx264", "-crf", "23", "-preset", "veryfast")
LOOSE = GateSettings(min_seconds=None, max_seconds=None, min_side=None)


@cache
def scene(seed: int, level: float = 120.0) -> np.ndarray:
    """A picture of 200x360 with structure at every size, `(height, width, 3)`."""
    rng = np.random.default_rng(seed)
    total = np.zeros((200, 360))
    for cell, weight in ((100, 40.0), (40, 30.0), (10, 16.0), (4, 10.0)):
        small = rng.standard_normal((200 // cell + 1, 360 // cell + 1))
        total += weight * np.kron(small, np.ones((cell, cell)))[:200, :360]
    grey = np.clip(level + total, 4, 250)
    return np.repeat(grey[..., None], 3, -1).astype(np.uint8)


def panned(picture: np.ndarray, count: int = 24, speed: int = 1) -> np.ndarray:
    """A camera going over it, `(count, 144, 256, 3)`."""
    return np.stack([picture[20:164, speed * i : speed * i + 256] for i in range(count)])


def measured(tmp_path, frames: np.ndarray, fps: int = 24) -> ClipMeasures:
    return measure_clip(make(tmp_path / "clip.mp4", frames, fps=fps, codec=CODED))


def test_a_moving_clip_passes(tmp_path):
    path = make(tmp_path / "clip.mp4", panned(scene(1)), fps=24, codec=CODED)
    measures = measure_clip(path)
    assert measures.num_frames == 24
    assert not (measures.has_cut or measures.is_black or measures.is_frozen)
    assert gate_problems(probe_source(path), measures, LOOSE) == []


def test_a_cut_is_found_and_a_fast_pan_is_none(tmp_path):
    cut = np.concatenate([panned(scene(1), 12), panned(scene(2, 60.0), 12)])
    assert measured(tmp_path, cut).has_cut
    assert not measured(tmp_path, panned(scene(1), 24, speed=4)).has_cut


def test_frames_that_repeat_are_counted(tmp_path):
    moving = panned(scene(1), 24, speed=3)
    held = measured(tmp_path, np.repeat(moving[:1], 24, 0))
    assert held.duplicate_fraction == 1.0 and held.is_frozen and held.motion < 0.5
    half = measured(tmp_path, np.concatenate([moving[:12], np.repeat(moving[11:12], 12, 0)]))
    assert half.duplicate_fraction == pytest.approx(12 / 23, abs=0.1) and half.is_frozen
    assert not measured(tmp_path, moving).is_frozen


def test_black_frames_are_counted_and_a_short_fade_passes(tmp_path):
    moving = panned(scene(1), 24)
    dark = measured(tmp_path, np.concatenate([np.zeros_like(moving[:6]), moving[:18]]))
    assert dark.black_fraction == pytest.approx(0.25) and dark.is_black
    light = np.minimum(1, np.arange(24) / 8)[:, None, None, None]
    assert not measured(tmp_path, (moving * light).astype(np.uint8)).is_black


def test_motion_is_the_deviation_of_what_changes(tmp_path):
    # P.910: the standard deviation over space of the difference of two frames; here half of the
    # picture changes by 40 levels.
    frames = np.full((12, 144, 256, 3), 100, np.uint8)
    frames[1::2, :, :128] = 140
    path = make(tmp_path / "clip.mp4", frames, fps=24)
    assert measure_clip(path).motion == pytest.approx(20.0, rel=0.03)


def test_blurring_lowers_the_sharpness(tmp_path):
    sharp = panned(scene(1))
    soft = sharp.astype(np.float64)
    for _ in range(2):
        for axis in (1, 2):
            soft = sum(np.roll(soft, shift, axis) for shift in range(-4, 5)) / 9
    before = measured(tmp_path, sharp)
    after = measured(tmp_path, soft.astype(np.uint8))
    assert before.blur > 100 > LOOSE.min_blur > after.blur


def test_exposure_is_read_in_full_range(tmp_path):
    frames = np.zeros((6, 144, 256, 3), np.uint8)
    frames[:, :, 64:] = 255
    measures = measure_clip(make(tmp_path / "clip.mp4", frames, fps=24))
    assert measures.mean_luma == pytest.approx(0.75 * 255, abs=1.5)
    assert measures.clipped_fraction > 0.99


def test_a_part_is_measured_alone(tmp_path):
    moving, other = panned(scene(1), 24), panned(scene(2, 60.0), 24)
    path = make(tmp_path / "clip.mp4", np.concatenate([moving, other]), fps=24, codec=CODED)
    assert measure_clip(path).has_cut
    first, second = measure_clip(path, 0.0, 1.0), measure_clip(path, 1.0)
    assert first.num_frames == second.num_frames == 24
    assert not first.has_cut and not second.has_cut
    assert first.mean_luma == pytest.approx(moving.mean(), abs=3)
    assert second.mean_luma == pytest.approx(other.mean(), abs=3)


def test_a_part_late_in_a_long_file_is_found(tmp_path):
    greys = np.repeat(20 + 8 * np.arange(25), 2).astype(np.uint8)
    frames = np.broadcast_to(greys[:, None, None, None], (50, 48, 64, 3))
    path = make(tmp_path / "clip.mp4", frames, fps=2)
    part = measure_clip(path, 20.0, 2.0)
    assert part.num_frames == 4
    assert part.mean_luma == pytest.approx(20 + 8 * 20.5, abs=1)


def test_what_is_no_part_is_refused(tmp_path):
    path = make(tmp_path / "clip.mp4", panned(scene(1), 6), fps=24)
    for start, seconds in ((-1.0, None), (0.0, 0.0), (9.0, None)):
        with pytest.raises(ValueError, match="are no part"):
            measure_clip(path, start, seconds)


def test_a_clip_that_cannot_be_decoded_is_named(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\0\0\0\x20ftypisom" + bytes(range(256)) * 8)
    with pytest.raises(UnreadableMediaError, match=r"clip\.mp4"):
        measure_clip(path)


def test_a_decoder_that_dies_is_no_measure(tmp_path, fake_ffmpeg):
    path = make(tmp_path / "clip.mp4", panned(scene(1), 6), fps=24)
    source = probe_source(path)
    fake_ffmpeg("echo broken >&2; exit 3")
    with pytest.raises(UnreadableMediaError, match=r"clip\.mp4 .*\(broken\)"):
        measure_clip(source)


def test_one_frame_has_no_motion(tmp_path):
    measures = measured(tmp_path, panned(scene(1), 1))
    assert (measures.num_frames, measures.motion, measures.duplicate_fraction) == (1, 0.0, 0.0)


def test_the_laplacian_equals_a_slow_one():
    luma = np.random.default_rng(0).integers(0, 256, (7, 9), dtype=np.uint8)
    values = []
    for y in range(1, 6):
        for x in range(1, 8):
            around = [luma[y - 1, x], luma[y + 1, x], luma[y, x - 1], luma[y, x + 1]]
            values.append(sum(map(float, around)) - 4 * float(luma[y, x]))
    assert laplacian_variance(luma) == pytest.approx(np.var(values), rel=1e-5)
    assert clipped_fraction(np.uint8([[0, 2, 3, 252, 253]])) == pytest.approx(0.6)


GOOD = ClipMeasures(
    num_frames=100,
    cut_score=2.0,
    black_fraction=0.0,
    duplicate_fraction=0.0,
    motion=8.0,
    blur=150.0,
    mean_luma=120.0,
    clipped_fraction=0.1,
)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = make(tmp_path_factory.mktemp("video") / "clip.mp4", panned(scene(1), 6), fps=24)
    return replace(probe_source(path), width=1280, height=720, duration=8.0)


@pytest.mark.parametrize(
    ("code", "measures", "shape"),
    [
        ("has-cut", {"cut_score": 10.0}, {}),
        ("black", {"black_fraction": 0.2}, {}),
        ("frozen", {"duplicate_fraction": 0.4}, {}),
        ("still", {"motion": 0.9}, {}),
        ("hectic", {"motion": 41.0}, {}),
        ("blurred", {"blur": 19.0}, {}),
        ("clipped", {"clipped_fraction": 0.7}, {}),
        ("dark", {"mean_luma": 19.0}, {}),
        ("bright", {"mean_luma": 236.0}, {}),
        ("too-short", {}, {"duration": 4.9}),
        ("too-long", {}, {"duration": 20.1}),
        ("too-small", {}, {"height": 719}),
        ("extreme-aspect", {}, {"width": 1801}),
        ("extreme-aspect", {}, {"width": 720, "height": 1441}),
    ],
)
def test_every_gate_alone(video, code, measures, shape):
    assert gate_problems(video, GOOD, GateSettings()) == []
    problems = gate_problems(replace(video, **shape), replace(GOOD, **measures), GateSettings())
    assert [problem.code for problem in problems] == [code]


def test_all_problems_are_told_at_once_with_their_limits(video):
    problems = gate_problems(
        replace(video, duration=2.0), replace(GOOD, cut_score=17.6), GateSettings()
    )
    assert [problem.code for problem in problems] == ["too-short", "has-cut"]
    assert "2.00 s, at least 5 s" in problems[0].message
    assert "17.6 of 100" in problems[1].message and "10 is the limit" in problems[1].message


def test_limits_can_be_left_out(video):
    short = replace(video, duration=1.0, width=64, height=48)
    assert gate_problems(short, None, LOOSE) == []
    assert (
        gate_problems(video, replace(GOOD, cut_score=50.0), replace(LOOSE, allow_cuts=True)) == []
    )
