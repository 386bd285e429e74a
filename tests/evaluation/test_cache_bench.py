"""What is made of clips with and without a cache, from clips that are known."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from osp_cli.dials import NO_CACHE, step_cache
from osp_cli.evaluation.cache_bench import (
    CacheBench,
    CacheExtent,
    CacheLine,
    Take,
    compare,
    with_front,
)
from osp_cli.evaluation.photos import Photo

FRAMES = 17
RNG = np.random.default_rng(0)
NOISE = RNG.integers(40, 200, (32, 80, 3), dtype=np.uint8)


def panned(pixels_a_frame=1.0, offset=0):
    """A clip of noise that moves to the left."""
    frames = [np.roll(NOISE, -round(k * pixels_a_frame), 1)[:, :48] for k in range(FRAMES)]
    return np.stack(frames) + np.uint8(offset)


def a_take(frames, seconds=2.0, skipped=0, steps=8):
    return Take(frames, seconds, skipped, steps)


def test_the_same_clip_is_the_same():
    plain = a_take(panned())
    line = compare("magcache", a_take(panned(), seconds=1.0, skipped=4), plain, "cat")
    assert (line.time_ratio, line.skipped, line.num_steps) == (0.5, 4, 8)
    assert (line.psnr, line.largest, line.motion_kept) == (math.inf, 0.0, 1.0)
    assert line.went_still == ()
    assert json.loads(json.dumps(line.as_json()))["psnr"] is None


def test_an_error_is_measured_in_its_units():
    frames = panned()
    frames[5] += np.uint8(17)
    line = compare("fbcache", a_take(frames), a_take(panned()), "cat")
    assert line.largest == pytest.approx(17)
    assert line.psnr == pytest.approx(10 * math.log10(255**2 / (17**2 / FRAMES)), abs=1e-6)
    evenly = compare("fbcache", a_take(panned(offset=3)), a_take(panned()), "cat")
    assert evenly.largest == pytest.approx(3)
    assert evenly.motion_kept == pytest.approx(1)


def test_a_clip_that_went_still_is_named_and_one_that_was_is_not():
    still, moving = a_take(panned(0.0)), a_take(panned())
    line = compare("teacache:9", still, moving, "cat")
    assert line.went_still == ("cat",)
    assert line.motion_kept == 0
    assert compare("teacache:9", still, still, "wall").went_still == ()
    assert compare("teacache:9", moving, still, "wall").went_still == ()


def a_line(cache, time_ratio, quality, skipped=4.0):
    return CacheLine(
        cache=cache, skipped=skipped, num_steps=8, seconds=time_ratio, time_ratio=time_ratio,
        psnr=quality, largest=0.0, motion_kept=1.0,
    )  # fmt: skip


def test_the_front_holds_what_nothing_beats():
    lines = with_front(
        [
            a_line("none", 1.0, math.inf, skipped=0),
            a_line("slow and far", 0.8, 20.0),
            a_line("slow and near", 0.7, 50.0),
            a_line("quick and far", 0.3, 30.0),
            a_line("quick and farther", 0.3, 29.0),
            # The same, on a machine that was busy for a moment.
            a_line("as near", 0.75, 50.0),
            # A machine that was quicker for a moment.
            a_line("skipped nothing", 0.2, math.inf, skipped=0),
        ]
    )
    assert [line.cache for line in lines if line.on_front] == [
        "none", "slow and near", "quick and far", "as near",
    ]  # fmt: skip


class Maker:
    """Clips that are known; a cache costs a tenth of the steps' time and one grey level."""

    def __init__(self):
        self.asked = []

    def take(self, photo, *, num_frames, prompt, style, steps, cache):
        self.asked.append((photo.name, num_frames, style, steps, str(cache)))
        # The machine grows slower: each clip takes a second more than the one before.
        seconds = 10.0 + len(self.asked)
        if cache == NO_CACHE:
            return Take(panned(), seconds, 0, steps or 8)
        frames = panned(0.0) if cache.threshold == 9 else panned(offset=1)
        return Take(frames, seconds / 10, 6, steps or 8)


def a_bench(tmp_path, maker, extent, **settings):
    for name in "abc":
        Image.fromarray(NOISE).save(tmp_path / f"{name}.png")
    photos = [Photo(name, tmp_path / f"{name}.png") for name in "abc"]
    caches = [step_cache("magcache:0.06"), step_cache("fbcache:9")]
    return CacheBench(
        maker, photos, caches,
        **{"default": caches[0], "extent": extent, "max_frames": 17, **settings},
    )  # fmt: skip


def test_each_cache_meets_each_photo(tmp_path):
    maker, said = Maker(), []
    extent = CacheExtent(photos=2, num_frames=49, twice=True)
    bench = a_bench(tmp_path, maker, extent, steps=5, tell=said.append)
    none, magcache, fbcache = bench.lines()
    # Once to warm up; the uncached clip first and last.
    assert maker.asked[0] == ("a.png", 17, None, 1, "none")
    order = ["none", "magcache:0.06", "fbcache:9", "none"]
    assert [asked[4] for asked in maker.asked[1:]] == order * 2
    assert {asked[3] for asked in maker.asked[1:]} == {5}
    # Every photo has a wish of its own.
    assert {asked[:3] for asked in maker.asked[1:]} == {("a.png", 17, None), ("b.png", 17, "ink")}
    # The mean of both runs: a machine that slows down evenly does not matter.
    assert none.seconds == pytest.approx(np.mean([12, 15, 16, 19]))
    assert none.time_ratio == 1
    assert magcache.time_ratio == pytest.approx(np.mean([1.3 / 13.5, 1.7 / 17.5]))
    assert (magcache.is_default, fbcache.is_default, none.is_default) == (True, False, False)
    assert fbcache.went_still == ("a", "b")
    assert none.on_front and magcache.on_front and not fbcache.on_front
    assert any("fbcache:9" in text for text in said)
    sheet = bench.save_sheet(tmp_path / "sheet.png")
    with Image.open(sheet) as saved:
        assert saved.width > 5 * 224


def test_a_quick_one_is_short_and_a_style_holds_for_all(tmp_path):
    maker = Maker()
    extent = CacheExtent(photos=1, num_frames=9, twice=False)
    lines = a_bench(tmp_path, maker, extent, style="lego", default=NO_CACHE).lines()
    assert len(maker.asked) == 1 + 3
    assert {asked[1:3] for asked in maker.asked} == {(9, "lego")}
    assert {asked[3] for asked in maker.asked[1:]} == {None}
    assert [line.is_default for line in lines] == [True, False, False]
    assert replace(lines[0], on_front=True) == lines[0]
