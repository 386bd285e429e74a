"""The programs under `tests/benchmarks` at their smallest: that they run, and what they show."""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from osp_cli import registry
from osp_cli.models.safetensors_header import read_header
from osp_cli.models.state_dict import read_state_dict

FOLDER = Path(__file__).parent / "benchmarks"
PARTS = ("full", "fp8", "paged", "disk", "diffusers", "diffusers-group", "decode-tiled", "encode")


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Imports one of them by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    return importlib.import_module


def test_formulas_lie_above_what_is_traced(program):
    traces = program("activations")
    size = [(448, 256)]
    rows = [*traces.passes(size, [5]), *traces.codings(size, [1, 5]), *traces.texts()]
    assert len(rows) == 3 * 2 + 2 * 4 + 2
    for row in rows:
        # Five frames alone do not fill what clips need.
        share = 1.2 if row.what.startswith("encode") and row.what.endswith("x5") else 1.1
        assert row.traced <= row.formula <= max(share * row.traced, row.traced + 1e8), row


def test_formulas_lie_above_what_chunks_of_streams_take(program):
    rows = list(program("activations").streams([(640, 384), (1280, 704)]))
    assert len(rows) == 2 * 2 + 2
    for row in rows:
        assert row.traced <= row.formula <= 1.1 * row.traced, row


def test_a_pass_is_traced_in_bytes(program):
    """Two products of 8 x 8 in single precision, the first of which the second needs."""
    traces = program("activations")
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(5)))
    model = model.to("meta")
    assert traces.traced(model, lambda: model(torch.empty(8, 8, device="meta"))) == 3 * 256


def test_the_table_has_a_way_for_what_people_have(program):
    table = program("planner_table")
    spec = table.model_specs()["flashi2v-1.3b"]
    [*_, four, eight, last] = list(table.table(spec, 32, (4, 8, 24), 1e14))[:-1]
    assert four.startswith("|4|group text in pieces, ")
    assert "|-|" not in eight
    assert "tiles" in eight
    assert "tiles" not in last
    assert table.clips(spec)[0] == ((448, 256), 49)


def test_random_checkpoints_are_what_they_say(program, tmp_path):
    synthetic, loading = program("synthetic"), program("loading")
    model = loading.empty_model(0.1)
    size = synthetic.write_checkpoint(tmp_path / "new", model, shards=3)
    entries = {}
    for path in (tmp_path / "new").glob("*.safetensors"):
        entries |= read_header(path).entries
    assert sum(entry.bytes for entry in entries.values()) == size
    assert {name: entry.shape for name, entry in entries.items()} == {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }
    for name, tensor in read_state_dict(tmp_path / "new").items():
        assert tensor.isfinite().all()
        drawn = not (name.endswith(".bias") or "norm" in name)
        assert bool(tensor.float().std() > 0.01) == drawn


@pytest.mark.parametrize(
    ("mode", "least", "most"),
    # Shares of the weights in bfloat16; the rest of the room is Python's own.
    [("none", 0, 0.15), ("disk", 0, 0.3), ("fp8", 0.3, 0.65), ("float32", 0.9, 1.15)],
)
def test_what_loading_needs_of_the_host(program, tmp_path, mode, least, most):
    loading, synthetic = program("loading"), program("synthetic")
    model = loading.empty_model(0.3)
    wanted = loading.MODES[mode]
    size = synthetic.write_checkpoint(
        tmp_path / "transformer", model, getattr(torch, wanted.stored), shards=wanted.shards
    )
    in_half = size / (2 if wanted.stored == "float32" else 1)
    # What earlier tests have left to be reused would not count.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    found = loading.load(wanted, tmp_path)
    assert least * in_half <= found["anonymous_bytes"] <= most * in_half
    assert 0.45 * in_half < found["moved_bytes"] < 1.05 * in_half


def test_each_way_of_the_14b_gives_the_same_clip(program, tmp_path):
    big = program("fourteen_billion")
    options = argparse.Namespace(tiny=True, folder=tmp_path / "weights", steps=2, cap=24.0)
    big.write_weights(options.folder, tiny=True)
    found = {name: json.loads(json.dumps(big.measure(name, options, None))) for name in PARTS}
    for name in ("full", "paged", "disk"):
        assert found[name]["same"], name
        assert found[name]["plan"]["offload"] == {"full": "none", "paged": "group"}.get(name, name)
    assert 0 < found["fp8"]["relative_error"] < 0.05
    assert all(len(found[name]["steps"]) == 2 for name in PARTS if "seconds" not in found[name])
    [head, rule, *rows] = big.table(found)
    assert len(rows) == len(PARTS)
    assert {row.count("|") for row in (head, rule, *rows)} == {12}


LIVE = ("diffusers", "helios-fp8", "osp-3", "decode-eight", "rates")


def live(program, names):
    """Results of the parts of `realtime_14b` at their smallest, and its module."""
    big = program("realtime_14b")
    job = big.Job(tiny=True, runs=1, size=(64, 64))
    return big, {name: json.loads(json.dumps(big.measure(name, job, None))) for name in names}


def test_endless_video_is_measured_each_way(program):
    big, found = live(program, ("loop", *LIVE))
    # Two chunks that warm up and three that count, nine pictures each.
    assert found["loop"]["frames"] == 45
    assert found["loop"]["deepest_queue"] <= 2
    assert found["loop"]["bytes"] > 1000
    assert 0 < found["diffusers"]["decode"] < found["diffusers"]["seconds"]
    for row in found.values():
        assert all(value >= 0 for value in row.values())
    [head, rule, *rows] = big.table({**found, "passes": {"error": "out of memory"}})
    assert len(rows) == len(LIVE) + 2
    assert {row.count("|") for row in (head, rule, *rows)} == {6}
    assert any("failed" in row and "out of memory" in row for row in rows)


@pytest.mark.slow
def test_all_ways_of_endless_video_run(program):
    big = program("realtime_14b")
    _, found = live(program, big.PARTS)
    assert found.keys() == big.PARTS.keys()


def test_float8_products_are_near_those_of_their_layer(program):
    models = program("random_models")
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 48, dtype=torch.bfloat16)
    values = torch.randn(2, 5, 64, dtype=torch.bfloat16)
    wanted = layer(values).detach().float()
    found = models.Fp8Linear(layer)(values).float()
    assert found.shape == wanted.shape
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.06


@pytest.mark.slow
def test_what_stylize_promises_is_measured_through_the_command(
    program, tiny_card, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(program("stylize"), "SIZE", (96, 64))
    short = replace(tiny_card, defaults={**tiny_card.defaults, "num_frames": 17})
    monkeypatch.setattr(registry, "model_specs", lambda: {"tiny": short})
    # All of it would take a minute; random weights paint all styles alike, so nothing morphs.
    genuine = program("stylize").films
    monkeypatch.setattr(program("stylize"), "films", lambda *args: islice(genuine(*args), 1))
    monkeypatch.setattr(program("stylize"), "STRENGTHS", (0.0, 1.0))
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "ab":
        Image.effect_noise((96, 64), 90).convert("RGB").save(photos / f"{name}.png")
    arguments = ["--model", "tiny", "--photos", str(photos), "--styles", "ink", "--frames", "9"]
    parts = ["--parts", "restyle,strength", "--keep", str(tmp_path / "kept")]
    found = program("stylize").main([*arguments, *parts])
    assert json.loads(capsys.readouterr().out) == found
    videos = found["restyle"]["videos"]
    assert [(video["film"], video["style"]) for video in videos] == [("pan", "ink")]
    # Random weights keep nothing; the operator keeps the motion of the film.
    assert all(video["operators_correlation"] > 0.5 for video in videos)
    assert all(len(video["flicker_by_phase"]) == 4 for video in videos)
    assert len(found["strength"]["ink"]["share_of_style"]) == 2
    assert (tmp_path / "kept" / "restyle.mp4").exists()


def test_each_way_of_training_the_14b_gives_the_same_losses(program):
    big = program("training_14b")
    job = big.Job(tiny=True, runs=1, cap=24.0)
    found = {name: json.loads(json.dumps(big.measure(name, job, None))) for name in big.PARTS}
    for same in (("bf16", "bf16-swap30"), ("fp8", "fp8-swap20", "cap", "fp8-offload", "least")):
        assert len({str(found[name]["losses"]) for name in same}) == 1, same
    assert found["fp8"]["losses"] != found["bf16"]["losses"]
    # PEFT rounds less on its way; the first loss is that of the base.
    theirs, losses = found["plain"]["losses"], found["bf16"]["losses"]
    assert losses[0] == theirs[0]
    assert theirs == pytest.approx(losses[: len(theirs)], rel=1e-3)
    assert found["cap"]["expected_bytes"] <= 24e9 < found["bf16"]["expected_bytes"]
    assert found["cap"]["swap_blocks"] > 2
    shown = big.table({**found, "small": {"error": "out of memory"}})
    [head, rule, *rows] = shown
    assert len(rows) == len(big.PARTS)
    assert {row.count("|") for row in (head, rule, *rows)} == {8}
    assert any("failed" in row and "out of memory" in row for row in rows)


def test_the_training_loop_is_compared_with_a_plain_one(program, tmp_path, capsys):
    path = tmp_path / "training.json"
    arguments = ["--models", "tiny", "--size", "64x32", "--frames", "5", "--batch", "2"]
    found = program("training").main(
        [*arguments, "--steps", "2", "--turns", "2", "--json", str(path)]
    )
    row = found["tiny"]
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))
    assert row["tokens"] == 2 * 4 * 2
    # Of the first step nothing counts; both take the same ones.
    assert [len(seconds) for seconds in row["all_seconds"]["ours"]] == [2, 2]
    assert len(row["losses"]["ours"]) == len(row["losses"]["plain"]) == 3
    assert row["losses"]["ours"][0] == row["losses"]["plain"][0]
    assert row["loss_difference"] < 1e-3
    assert row["ratio"] == row["seconds"]["ours"] / row["seconds"]["plain"]
    assert "|tiny|16|" in capsys.readouterr().out
