"""`osp bench`: its table, its JSON, its exit codes; the measuring itself is tested elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image

from osp_cli.evaluation import cache_bench, mini_bench, process_bench
from osp_cli.evaluation.cache_bench import CacheExtent
from osp_cli.evaluation.mini_bench import Extent, Line
from osp_cli.registry import find_model

GOOD = Line("good", "a promise kept", 96.0, "%", 95.0, 80.0, note="how", details={"a": 1.5})
HALF = Line("half", "half a promise", 90.0, "%", 95.0, 80.0)
SLOW = Line("slow", "a promise broken", 13.5, "s", 12.0, 12.0, more_is_better=False)
BLIND = Line("blind", "a promise not looked at", None, "MB", 60.0, 60.0, False, "no way")


@pytest.fixture
def pictures(away):
    """A folder `photos` with two small pictures, one wide and one tall."""
    folder = away / "photos"
    folder.mkdir()
    for name, size in (("one", (96, 64)), ("two", (64, 96))):
        noise = Image.effect_noise((size[0] // 4, size[1] // 4), 90).resize(size)
        Image.merge("RGB", (noise, noise.rotate(180), noise)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def recorded(monkeypatch, pictures):
    """Gives a function that puts lines in place of all measuring."""

    class Studio:
        def __init__(self, model, **settings):
            assert model == "osp-mini"

    def place(*lines):
        class Bench:
            def __init__(self, studio, photos, extent, tell):
                self.extent = extent

            def lines(self):
                yield from lines

            def save_sheets(self, folder):
                path = folder / "styles.png"
                path.write_bytes(b"sheet")
                return [path]

        monkeypatch.setattr("osp_cli.runtime.studio.Studio", Studio)
        monkeypatch.setattr(mini_bench, "MiniBench", Bench)
        monkeypatch.setattr(process_bench, "process_lines", lambda *_, **__: iter(()))

    return place


def test_all_met_ends_with_0_and_a_line_for_each(osp, recorded):
    recorded(GOOD, HALF, BLIND)
    done = osp("bench", "mini", "--quick", "--photos", "photos", "--quiet")
    assert done.code == 0
    assert [line.split("\t") for line in done.out.splitlines()] == [
        ["a promise kept", "96.0 %", ">= 95 %", ">= 80 %", "yes", "how"],
        ["half a promise", "90.0 %", ">= 95 %", ">= 80 %", "least", ""],
        ["a promise not looked at", "not measured", "<= 60 MB", "<= 60 MB", "-", "no way"],
    ]
    assert done.err == ""


def test_one_promise_broken_ends_with_1(osp, recorded):
    recorded(GOOD, SLOW)
    done = osp("bench", "mini", "--photos", "photos")
    assert done.code == 1
    assert done.out.splitlines()[1].split("\t")[1:5] == ["13.5 s", "<= 12 s", "<= 12 s", "no"]


def test_json_is_a_line_for_each_with_what_is_behind_it(osp, recorded):
    recorded(GOOD, SLOW)
    done = osp("bench", "mini", "--photos", "photos", "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [(line["key"], line["met"]) for line in lines] == [("good", True), ("slow", False)]
    assert lines[0]["details"] == {"a": 1.5}


def test_out_keeps_a_report_and_the_sheets(osp, recorded, away):
    recorded(GOOD, SLOW)
    assert osp("bench", "mini", "--quick", "--photos", "photos", "--out", "report").code == 1
    report = json.loads((away / "report" / "report.json").read_text())
    assert report["quick"] is True
    assert report["met"] is False
    card = json.loads((find_model("osp-mini").weights_dir() / "training.json").read_text())
    assert report["weights"] == card["parameters_sha256"]
    assert [line["measured"] for line in report["lines"]] == [96.0, 13.5]
    assert (away / "report" / "styles.png").exists()


def test_the_shipped_weights_hold_what_was_measured_of_them():
    folder = find_model("osp-mini").weights_dir()
    bench = json.loads((folder / "bench.json").read_text())
    card = json.loads((folder / "training.json").read_text())
    assert bench["weights"] == card["parameters_sha256"]
    assert bench["quick"] is False
    assert bench["met"] is True
    keys = {line["key"] for line in bench["lines"]}
    assert {"clip-process", "memory", "weights", "frame-0", "colour-drift"} <= keys


@pytest.mark.parametrize(
    ("code", "words", "args"),
    [
        (2, "does not know 'maxi'", ["maxi"]),
        (2, "names a folder", ["mini", "--photos", "nowhere"]),
        (2, "at least two pictures", ["mini", "--photos", "."]),
        (3, "no folder transformer", ["mini", "--weights", "photos"]),
        (2, "does not exist", ["mini", "--out", "nowhere/report"]),
    ],
)
def test_what_cannot_be_measured_is_refused(osp, pictures, code, words, args):
    done = osp("bench", *args)
    assert done.code == code
    assert words in done.err
    assert done.out == ""


def test_missing_packages_are_one_sentence(osp, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = osp("bench", "mini")
    assert done.code == 2
    assert "osp bench needs scikit-image" in done.err
    assert "hint: pip install 'osp-cli[bench]'" in done.err


@pytest.mark.slow
def test_the_true_model_is_measured_from_end_to_end(osp, pictures, monkeypatch, away):
    """The shortest clips of two small pictures; the default clip as a process is left out."""
    small = Extent(
        style_photos=1,
        camera_photos=1,
        cutoff_photos=1,
        weight_photos=1,
        weight_styles=("ink",),
        style_frames=5,
        camera_frames=5,
        cutoff_frames=1,
        gentle_frames=5,
        num_views=2,
        all_sizes=False,
        size=(64, 64),
    )
    monkeypatch.setattr(mini_bench, "QUICK", small)
    monkeypatch.setattr(process_bench, "_clip_lines", lambda *_: iter(()))
    done = osp("bench", "mini", "--quick", "--photos", "photos", "--out", "report", "--json")
    assert done.code in (0, 1), done.err
    keys = [json.loads(line)["key"] for line in done.out.splitlines()]
    assert keys == [
        "weights", "codec-64x64", "frame-0", "colour-drift", "style-nearest", "style-stranger",
        "camera-words", "detail-against-cutoff", "style-weights", "motion",
    ]  # fmt: skip
    files = {path.name for path in (away / "report").iterdir()}
    assert files == {
        "report.json", "styles.png", "styles-unlabelled.png", "motions.png",
        "motions-unlabelled.png",
    }  # fmt: skip


# --- caches ----------------------------------------------------------------------------------


@pytest.fixture
def tiny_bench(osp, pictures, tiny_card, monkeypatch):
    """`osp bench cache` of the tiny model on one small picture."""
    monkeypatch.setattr(
        cache_bench, "CACHE_QUICK", CacheExtent(photos=1, num_frames=9, twice=False)
    )
    return lambda *args: osp(
        *("bench", "cache", "--model", "tiny", "--quick", "--photos", "photos", "--steps", "4"),
        *args,
    )


def test_caches_are_compared_from_end_to_end(tiny_bench, away):
    done = tiny_bench("--out", "report")
    assert done.code == 0, done.err
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [row[0] for row in rows] == ["none", "fbcache:0.05", "magcache:0.06"]
    assert rows[0][1] == "0 of 4"
    assert rows[0][3:7] == ["100%", "same", "0.0", "100%"]
    assert rows[0][7].startswith("best at its speed")
    assert "the model's own" in rows[2][7]
    assert rows[2][1] == "3 of 4"
    assert "TeaCache does not work with tiny" in done.err
    report = json.loads((away / "report" / "report.json").read_text())
    assert (report["model"], report["quick"]) == ("tiny", True)
    assert "TeaCache does not work with tiny" in report["left_out"][0]
    assert [line["cache"] for line in report["lines"]] == [row[0] for row in rows]
    assert (away / "report" / "caches.png").exists()


def test_caches_and_a_style_may_be_named(tiny_bench):
    done = tiny_bench("--caches", "fbcache:5, fbcache", "--style", "ink", "--json", "--quiet")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    # A threshold that was left out is the one it would have.
    assert [line["cache"] for line in lines] == ["none", "fbcache:5", "fbcache:0.05"]
    assert lines[1]["skipped"] == 3
    assert done.err == ""


def test_the_model_s_own_cache_must_not_make_a_clip_still(tiny_bench, monkeypatch):
    genuine = cache_bench.compare

    def compare(cache, *args):
        return replace(genuine(cache, *args), went_still=("one",) * (cache == "magcache:0.06"))

    monkeypatch.setattr(cache_bench, "compare", compare)
    done = tiny_bench()
    assert done.code == 1
    assert "one went still" in done.out
    assert tiny_bench("--caches", "fbcache:5").code == 0


def test_an_interrupted_comparison_ends_with_130(tiny_bench, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_bench, "compare", interrupted)
    done = tiny_bench()
    assert done.code == 130
    assert "interrupted" in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("code", "words", "args"),
    [
        (2, "osp bench mini takes no --steps", ["mini", "--steps", "4"]),
        (2, "osp bench mini takes no --model", ["mini", "--model", "osp-mini"]),
        (2, "unknown cache 'speedy'", ["cache", "--caches", "speedy"]),
        (2, "none is measured anyway", ["cache", "--caches", "none"]),
        (2, "stands there twice", ["cache", "--caches", "fbcache:1,fbcache:1"]),
        (2, "TeaCache does not work with osp-mini", ["cache", "--caches", "teacache"]),
        (2, "unknown style", ["cache", "--style", "nonesuch"]),
        (2, "unknown model", ["cache", "--model", "nonesuch"]),
        (2, "at least a picture", ["cache", "--photos", "."]),
        (3, "are not installed", ["cache", "--model", "flashi2v-1.3b"]),
    ],
)
def test_caches_that_cannot_be_measured_are_refused(osp, pictures, code, words, args):
    done = osp("bench", *args)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
