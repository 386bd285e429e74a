"""The page of a run stands on its own."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from osp_cli.training.page import SampleRecord, write_page, write_strip


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def page(tmp_path, lines, samples=()):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(lines))
    write_page(tmp_path / "index.html", "a <run>", {"base": "x & y"}, metrics, samples)
    reader = Reader()
    reader.feed((tmp_path / "index.html").read_text())
    return reader


def line(step, loss, **others):
    return json.dumps({"step": step, "loss": loss, "grad_norm": 1.0, **others}) + "\n"


def test_curves_are_drawn_and_words_are_escaped(tmp_path):
    reader = page(tmp_path, [line(k, 5 / k) for k in range(1, 60)])
    assert reader.tags.count("svg") == 2 and reader.tags.count("polyline") == 4
    assert "a <run>" in reader.text and "x & y" in reader.text
    assert not reader.sources


def test_broken_and_skipped_lines_are_left_out(tmp_path):
    lines = [line(1, 4.0), line(2, float("nan"), skipped=True), line(3, 2.0), '{"step": 4, "lo']
    page(tmp_path, lines)
    text = (tmp_path / "index.html").read_text()
    points = re.search(r'polyline points="([^"]*)"', text)[1].split()
    assert len(points) == 2 and "nan" not in text


def test_an_empty_run_has_a_page(tmp_path):
    assert "svg" not in page(tmp_path, []).tags


def test_samples_are_inside(tmp_path):
    frames = np.zeros((9, 32, 48, 3), np.uint8)
    frames[4] = 255
    samples = []
    for step in (0, 10):
        clip, strip = tmp_path / f"{step}.mp4", tmp_path / f"{step}.jpg"
        clip.write_bytes(b"a video")
        write_strip(frames, strip)
        samples.append(SampleRecord(step, "a <fox>", clip, strip))
    with Image.open(samples[0].strip) as picture:
        assert picture.size == (5 * 216, 144)
        columns = np.asarray(picture.convert("L")).mean(0).reshape(5, 216).mean(1)
        assert columns[2] > 250 and columns[0] < 5
    reader = page(tmp_path, [], samples)
    assert reader.tags.count("img") == 2 and reader.tags.count("video") == 1
    assert all(source.startswith("data:") for source in reader.sources)
    assert reader.text.count("a <fox>") == 2
    assert [t for t in reader.text if t.startswith(("Before", "After"))] == [
        "After step 10",
        "Before training",
    ]


def test_samples_that_were_cleared_away_are_left_out(tmp_path):
    samples = []
    for step in (0, 10):
        clip, strip = tmp_path / f"{step}.mp4", tmp_path / f"{step}.jpg"
        clip.write_bytes(b"a video")
        write_strip(np.zeros((5, 32, 48, 3), np.uint8), strip)
        samples.append(SampleRecord(step, "snow", clip, strip))
    samples[1].strip.unlink()
    reader = page(tmp_path, [], samples)
    assert reader.tags.count("img") == 1 and "Before training" in reader.text
    samples[0].path.unlink()
    assert "img" not in page(tmp_path, [], samples).tags
