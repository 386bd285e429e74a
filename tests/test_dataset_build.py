"""`osp dataset build` from end to end, with engines that need no weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osp_cli.cli.app import main
from osp_cli.media.video import read_video, write_video

SMALL = ("--frames", "5", "--size", "96x64", "--min-side", "64", "--min-seconds", "0.5", "-q")
BUILD = ("dataset", "build", "in", "-s", "ghibli,pixel-art", "-o", "out", *SMALL)


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch):
    """A folder to work in, with two clips, one of them too short, and a picture."""
    for name in [name for name in os.environ if name.startswith("OSP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    work = tmp_path / "work"
    (work / "in").mkdir(parents=True)
    monkeypatch.chdir(work)
    lake = np.asarray(Image.open(EXAMPLE).convert("RGB").resize((320, 180)))
    slide = np.stack([lake[:, 2 * k : 2 * k + 256] for k in range(16)])
    write_video(slide, work / "in" / "lake.mp4", fps=16)
    write_video(slide[:4], work / "in" / "wink.mp4", fps=16)
    Image.fromarray(lake).save(work / "in" / "photo.png")
    for name in ("lake", "wink", "photo"):
        (work / "in" / f"{name}.txt").write_text("a lake, the camera pans left")
    return work


EXAMPLE = Path(__file__).parents[1] / "presets" / "examples" / "lake.jpg"


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def rows() -> list[dict]:
    return [json.loads(line) for line in Path("out/osp.jsonl").read_text("utf-8").splitlines()]


def test_a_dataset_is_built_and_can_be_trained_on(capsys):
    before = files(Path("in"))
    assert main([*BUILD, "--caption", "{caption}, {style} style"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("out/osp.jsonl\n", "")
    assert [(row["source_id"][:4], row["style"], row["accepted"]) for row in rows()] == [
        ("lake", "ghibli", True),
        ("lake", "pixel-art", True),
        ("phot", "ghibli", True),
        ("phot", "pixel-art", True),
        ("wink", "ghibli", False),
        ("wink", "pixel-art", False),
    ]
    assert rows()[1]["caption"] == "a lake, the camera pans left, Pixel Art style"
    clip = read_video(Path("out") / rows()[0]["video"])
    assert clip.shape == (5, 64, 96, 3)
    assert files(Path("in")) == before

    # It is what training takes: found, listed, without an error.
    code = main(["dataset", "check", "out", "--size", "96x64", "--frames", "5", "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one for one in told["findings"] if one["level"] == "error"] == []
    assert (code, told["num_entries"], told["num_windows"]) == (0, 4, 4)
    assert told["layout"].startswith("manifest osp.jsonl, 4 of 6")


def test_lines_of_json_and_a_second_run_that_has_nothing_to_do(capsys):
    one = ("dataset", "build", "in/photo.png", "-s", "ink", "-o", "out", *SMALL, "--json")
    assert main([*one]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stages = [line["stage"] for line in lines if line["type"] == "built"]
    assert stages == ["gated", "keyframed", "stylised", "done"]
    built = next(line for line in lines if line["type"] == "dataset_built")
    assert (built["num_clips"], built["num_rows"]) == (1, 1)
    assert lines[-1]["type"] == "done" and "animate" in lines[-1]["timings"]
    there = files(Path("out"))
    assert main([*one]) == 0
    again = [json.loads(line)["type"] for line in capsys.readouterr().out.splitlines()]
    assert "built" not in again and again[-2:] == ["dataset_built", "done"]
    assert files(Path("out")) == there


def test_other_settings_are_refused_or_replace_what_is_there(capsys):
    one = ("dataset", "build", "in/photo.png", "-s", "ink", "-o", "out", *SMALL)
    assert main([*one]) == 0
    there = files(Path("out"))
    assert main([*one, "--seed", "7"]) == 2
    assert "begun with other settings: seed 42, not 7" in capsys.readouterr().err
    assert files(Path("out")) == there
    assert main([*one, "--seed", "7", "-y"]) == 0
    assert rows()[0]["seed"] != json.loads(there["osp.jsonl"])["seed"]
    assert json.loads(Path("out/build.json").read_text())["seed"] == 7


def test_drawn_scenes_need_no_files(capsys):
    words = ("procedural", "-s", "oil", "-o", "out", "--count", "1", "--frames", "9")
    assert main(["dataset", "build", *words, "--size", "224x128"]) == 0
    said = capsys.readouterr()
    assert said.out == "out/osp.jsonl\n" and "1 clip is ready" in said.err
    assert rows()[0]["caption"].startswith("a drawn scene")


def test_a_plan_writes_nothing(capsys):
    assert main([*BUILD, "--dry-run"]) == 0
    assert "6 at most, 0 of them done" in capsys.readouterr().out
    assert main([*BUILD, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["num_sources"], plan["num_rows"], plan["num_done"]) == (3, 6, 0)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("in", "-s", "nope"), "unknown style 'nope'"),
        (("in", "-s", ","), "a style is missing"),
        (("gone", "-s", "oil"), "gone does not exist"),
        (("in", "-s", "oil", "--animator", "nope"), "unknown model 'nope'"),
        (("in", "-s", "oil", "--stylizer", "nope"), "unknown stylizer 'nope'"),
        (("in", "-s", "oil", "--count", "0"), "--count is at least 1"),
        (("in", "-s", "oil", "--size", "97x64"), "even sides"),
        (("in", "-s", "oil", "--animator", "osp-mini", "--size", "100x64"), "multiples of 32"),
        (("in", "-s", "oil", "--animator", "osp-mini", "--frames", "81"), "at most 49 frames"),
        (("in", "-s", "oil", "--animator", "wan2.1-t2v-14b"), "cannot be shown a picture"),
        ((".", "-s", "oil"), "lies in ."),
    ],
)
def test_refusals_come_before_any_file(capsys, words, said):
    assert main(["dataset", "build", *words, "-o", "out"]) == 2
    told = capsys.readouterr()
    assert said in told.err and told.out == ""
    assert not Path("out").exists()


def test_a_missing_caption_is_refused(capsys):
    Path("in/lake.txt").unlink()
    assert main([*BUILD]) == 2
    assert "1 of 3 sources have no caption: lake.mp4" in capsys.readouterr().err


def test_nothing_that_passes_is_an_error_with_its_reason(capsys):
    assert main(["dataset", "build", "in/wink.mp4", "-s", "oil", "-o", "out", *SMALL]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "0.25 s, at least 0.5 s" in said.err and "--no-gates" in said.err
    assert rows()[0]["problems"] == ["too-short"]


def test_two_builds_do_not_share_a_folder(capsys):
    from filelock import FileLock

    Path("out").mkdir()
    with FileLock("out/.osp-build.lock"):
        assert main([*BUILD]) == 2
    assert "another osp is building in out" in capsys.readouterr().err


def start(*, work: Path) -> subprocess.Popen:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "osp_cli", *BUILD, "--json"]
    return subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of POSIX")
@pytest.mark.parametrize(
    ("how", "stage", "code"), [(signal.SIGKILL, "stylised", -9), (signal.SIGINT, "done", 130)]
)
def test_stopped_for_good_the_same_command_ends_at_the_same_files(away, how, stage, code):
    process = start(work=away)
    try:
        for line in process.stdout:
            event = json.loads(line)
            if (event["type"], event.get("stage")) == ("built", stage):
                process.send_signal(how)
                break
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    there = rows()
    assert any(row["stage"] != "done" for row in there if row["accepted"])
    assert main([*BUILD]) == 0
    stopped = files(Path("out"))
    Path("out").rename("stopped")
    assert main([*BUILD]) == 0
    assert files(Path("out")) == stopped
