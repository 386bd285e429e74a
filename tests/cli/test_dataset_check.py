"""`osp dataset check`: a table for people, lines for programs, and the exit code."""

from __future__ import annotations

import json
import runpy
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from osp_cli.cli import app as cli
from osp_cli.cli.dataset_check import check, report_lines, show_report
from osp_cli.train_request import TrainRequest
from osp_cli.training.dataset.entries import DatasetReport, Entry, Finding, Window

clips = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "media" / "clips.py")))


@pytest.fixture
def run(monkeypatch, capsys):
    """A function from arguments to exit code, stdout and stderr, through the real `main`."""
    app = typer.Typer(rich_markup_mode=None)
    app.command()(check)
    app.callback()(lambda: None)
    monkeypatch.setattr(cli, "app", app)

    def call(*arguments):
        code = cli.main(["check", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def data(tmp_path):
    """Two clips for the built-in model, of 1.5 and 1.6 seconds; one has no caption."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, seconds in (("a", 1.5), ("b", 1.6)):
        clips.run("-f", "lavfi", "-i", f"testsrc2=s=480x272:r=24:d={seconds}",
                  "-pix_fmt", "yuv420p", folder / f"{name}.mp4")  # fmt: skip
    (folder / "a.txt").write_text("a test picture")
    return folder


def test_good_clips_exit_with_zero(run, data):
    (data / "b.txt").write_text("another")
    code, out, err = run(data)
    assert (code, out) == (0, "")
    assert "2 clips, 2 can be used: 2 samples out of 3." in err
    assert "2 x 448x256x17 frames" in err
    assert "no errors, no warnings" in err


def test_faults_exit_with_two_and_are_all_told(run, data):
    code, out, err = run(data, "--frames", 81)
    # The model sees 49 frames.
    assert (code, out) == (2, "")
    assert "at most 49 frames" in err
    code, out, err = run(data, "--no-bucket")
    assert code == 2
    assert [line.split("\t")[:3] for line in out.splitlines()] == [
        ["a.mp4", "error", "too-short"],
        ["b.mp4", "error", "no-caption"],
        ["b.mp4", "error", "too-short"],
    ]
    assert "error: 2 of 2 clips" in err
    assert run(data, "--allow-empty")[0] == 0


def test_json_holds_the_report(run, data):
    code, out, _ = run(data, "--json")
    report, failed = map(json.loads, out.splitlines())
    assert code == failed["exit_code"] == 2
    assert report["type"] == "dataset"
    assert (report["num_entries"], report["num_windows"]) == (2, 1)
    (finding,) = report["findings"]
    assert (finding["place"], finding["code"]) == ("b.mp4", "no-caption")


def test_quiet_says_nothing_but_errors(run, data):
    code, out, err = run(data, "--quiet")
    assert (code, out) == (2, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]
    (data / "b.txt").write_text("another")
    assert run(data, "--quiet") == (0, "", "")


def test_the_report_is_a_file_too(run, data, tmp_path):
    path = tmp_path / "report.json"
    assert run(data, "--report", path, "--quiet")[0] == 2
    assert json.loads(path.read_text("utf-8"))["findings"][0]["code"] == "no-caption"
    assert sorted(each.name for each in data.iterdir()) == ["a.mp4", "a.txt", "b.mp4"]
    code, _, err = run(data, "--report", tmp_path / "gone" / "r.json")
    assert code == 2
    assert "gone does not exist" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "450x256"], "multiples of 32"),
        (["--model", "nothing"], "nothing"),
        (["--mode", "t2v"], "moves pictures"),
        (["--stride", "0"], "--stride"),
        (["--windows", "0"], "--windows"),
    ],
)
def test_what_cannot_be_asked_is_refused(run, data, arguments, words):
    code, out, err = run(data, *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_there_is_no_dataset(run, tmp_path):
    code, _, err = run(tmp_path / "gone")
    assert code == 2
    assert "there is no dataset" in err
    code, _, err = run(tmp_path)
    assert code == 2
    assert "nothing to train on" in err


def test_frames_are_rounded_as_for_training(run, data):
    (data / "b.txt").write_text("another")
    code, _, err = run(data, "--frames", 16)
    assert code == 0
    assert "16 frames became 17" in err
    assert "2 x 448x256x17 frames" in err


def test_settings_are_those_of_training(run, data, tmp_path, monkeypatch):
    (data / "b.txt").write_text("another")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "osp.toml").write_text('[train-lora]\nsize = "256x128"\n')
    code, _, err = run(data)
    assert code == 0
    # The nearest to 480x272 of the pixels of 256x128.
    assert "256x128x17 frames" in err


def report_of(tmp_path, findings, num_windows=3):
    entry = Entry(path=tmp_path / "a.mp4", kind="video", caption="x", place="a.mp4")
    window = Window(entry=entry, start=0.0, num_frames=17, size=(64, 64), content="c")
    return DatasetReport(
        root=tmp_path,
        layout="list metadata.jsonl",
        windows=(window,) * num_windows,
        findings=tuple(findings),
        num_entries=70,
        seconds=12.3,
        sha256="0",
        buckets={"64x64x17": num_windows},
    )


def finding(place, code="too-short", level="error", hint="--frames 17"):
    return Finding(
        code=code,
        level=level,
        place=place,
        message="lasts 0.75 s, 17 frames at 16 fps take 1.04 s, and this goes on for long enough "
        "to be broken in any terminal there is",
        hint=hint,
    )


@pytest.mark.parametrize("columns", [40, 80, 100])
def test_the_table_fits_its_terminal(tmp_path, columns):
    report = report_of(
        tmp_path, [finding("clips/a.mp4"), finding("clips/a.mp4", "has-cut", "warning"),
                   finding("clips/b.mp4", "vfr", "warning", "")]
    )  # fmt: skip
    lines = report_lines(report, columns)
    body = lines[1:]  # a path is never broken
    assert max(map(len, body)) <= columns
    assert all(unicodedata.category(c) != "Cc" for line in lines for c in line)
    text = "\n".join(lines)
    assert text.count("clips/a.mp4") == 1
    assert "1 error, 2 warnings" in text
    # What helps is told once for each kind.
    assert text.count("--frames 17") == 2


def test_long_tables_begin_with_errors_and_end(tmp_path):
    findings = [finding(f"w{n}.mp4", "vfr", "warning") for n in range(60)]
    report = report_of(tmp_path, [*findings, finding("late.mp4")])
    text = "\n".join(report_lines(report, 80))
    assert text.index("late.mp4") < text.index("w0.mp4")
    assert "and 21 more; --report FILE holds all" in text


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("auto", "the samples follow 1 from the pictures beside them, 2 from their own first"),
        ("first", "the samples follow from their own first frames"),
        ("plain", "1 from the pictures beside them, 2 from their first frames, robbed of"),
    ],
)
def test_the_pictures_that_samples_follow_from_are_told(tmp_path, condition, words):
    report = report_of(tmp_path, [])
    beside = replace(report.windows[0].entry, source=tmp_path / "a.source.png")
    windows = (replace(report.windows[0], entry=beside), *report.windows[1:])
    request = TrainRequest(
        dataset=tmp_path, name="x", output=tmp_path / "x", condition=condition, num_frames=49
    )
    lines = report_lines(replace(report, windows=windows), 200, request)
    assert words in "\n".join(lines)


def test_an_empty_folder_is_not_called_faultless(run, tmp_path):
    (tmp_path / "none").mkdir()
    code, _, err = run(tmp_path / "none")
    assert code == 2
    assert "no clips in it" in err
    assert "no errors" not in err


def test_names_give_no_orders_to_the_terminal(tmp_path, capsys):
    report = report_of(tmp_path, [finding("\x1b[31mred\n.mp4")])
    show_report(report)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert "\\x1b[31mred" in err
