"""`osp generate` up to the runner: flags to request, events to streams, errors to codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from osp_cli.errors import WontFitError
from osp_cli.events import Event, FramesReady, Notice, Saved
from osp_cli.requests import GenerateRequest


def test_flags_reach_the_request(osp, picture, requests):
    outcome = osp(
        *("generate", "cat.png", "the camera pans left", "-s", "ink", "-n", "blur", "-o", "a.mp4"),
        *("--size", "320x384", "-f", "17", "--fps", "8", "--steps", "5", "-g", "1.5"),
        *("--shift", "4", "--cutoff", "0.2:0.6", "--seed", "7", "--device", "cpu"),
        *("--dtype", "bf16", "-m", "osp-mini"),
    )
    assert outcome.code == 0
    [request] = requests
    assert request == GenerateRequest(
        image=Path("cat.png"),
        prompt="the camera pans left",
        style="ink",
        negative_prompt="blur",
        output=Path("a.mp4"),
        width=320,
        height=384,
        num_frames=17,
        fps=8,
        num_inference_steps=5,
        guidance_scale=1.5,
        shift=4.0,
        cutoff=(0.2, 0.6),
        seed=7,
        device="cpu",
        dtype="bfloat16",
    )


@pytest.mark.parametrize(
    ("alias", "flag"),
    [
        (["--num-inference-steps", "3"], ["--steps", "3"]),
        (["--guidance-scale=3"], ["--cfg", "3"]),
        (["--flow-shift", "3"], ["--shift", "3"]),
        (["--num-frames", "9"], ["--frames", "9"]),
        (["--height", "256", "--width", "448"], ["--size", "448x256"]),
        (["--seconds", "0.5"], ["--frames", "9"]),
        (["--dtype", "fp32"], ["--dtype", "float32"]),
        (["-t", "1", "--fps", "20"], ["--frames", "21", "--fps", "20"]),
    ],
)
def test_aliases_mean_the_same(osp, picture, requests, alias, flag):
    for args in (alias, flag):
        assert osp("generate", "cat.png", "x", "--seed", "1", "-y", *args).code == 0
    assert requests[0] == requests[1]


def test_aliases_are_not_advertised(osp):
    help_text = osp("generate", "--help").out
    assert "--steps" in help_text
    for alias in ("--num-inference-steps", "--guidance-scale", "--flow-shift", "--height"):
        assert alias not in help_text


def test_stdout_carries_the_path_and_nothing_else(osp, picture, requests):
    outcome = osp("generate", "cat.png", "x", "--style", "ghibli", "--seed", "3")
    assert outcome.out == "cat-ghibli-3.mp4\n"
    assert Path("cat-ghibli-3.mp4").read_bytes() == b"clip"


def test_stderr_tells_the_stages_and_the_time_split(osp, picture, requests):
    lines = osp("generate", "cat.png", "x", "--seed", "3").err.splitlines()
    assert lines[:-1] == [
        "load",
        "osp-mini: 448x256, 49 frames, 2 steps, seed 3, cpu bfloat16",
        "condition",
        "step 2/2, 1.50 s/it, 0:00 left",
        "decode",
        "save",
    ]
    assert lines[-1].startswith("done in ")
    assert lines[-1].endswith("load 0.5, sampling 3.0, save 0.1")


def test_a_random_seed_is_told(osp, picture, requests):
    outcome = osp("generate", "cat.png", "x")
    assert f"seed {requests[0].seed}," in outcome.err
    assert outcome.out == f"cat-{requests[0].seed}.mp4\n"
    osp("generate", "cat.png", "x", "--seed", "random")
    assert requests[0].seed != requests[1].seed


def test_quiet_leaves_the_path_alone(osp, picture, requests):
    outcome = osp("generate", "cat.png", "x", "-q", "--seed", "3", "-f", "48")
    assert (outcome.code, outcome.out, outcome.err) == (0, "cat-3.mp4\n", "")


def test_verbose_tells_where_settings_come_from(osp, picture, requests):
    err = osp("generate", "cat.png", "x", "-v", "--steps", "5").err
    assert "num_inference_steps = 5 (flag)" in err
    assert "fps = 16 (card osp-mini)" in err
    assert "loaded transformer in 0.5 s" in err


def test_json_lines_are_the_events(osp, picture, requests):
    outcome = osp("generate", "cat.png", "x", "--json", "-o", "a.mp4", "-f", "48")
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert [event["type"] for event in events] == [
        *("notice", "plan", "load", "stage", "stage", "step", "step", "stage", "stage", "stage"),
        *("saved", "done"),
    ]
    assert events[0] == {"type": "notice", "message": "48 frames rounded up to 49"}
    assert events[6] == {"type": "step", "step": 2, "num_steps": 2, "seconds": 2.0}
    assert events[-2] == {
        "type": "saved",
        "path": "a.mp4",
        "bytes": 4,
        "sidecar": "a.mp4.json",
    }
    assert set(events[-1]["timings"]) == {"imports", "load", "sampling", "encode"}


def test_json_leaves_the_pixels_out(osp, picture, play):
    def with_frames(request: GenerateRequest) -> Iterator[Event]:
        yield FramesReady(frames=None)  # type: ignore[arg-type]
        yield Notice("over")

    play(with_frames)
    outcome = osp("generate", "cat.png", "x", "--json", "-q")
    assert outcome.out == '{"type": "notice", "message": "over"}\n'


def test_text_needs_no_picture(osp, requests):
    command = ("generate", "--text", "Clouds over a lake!", "--seed", "4")
    assert osp(*command, "--model", "flashi2v-1.3b").code == 0
    [request] = requests
    assert request.text_only
    assert request.image is None
    assert request.prompt == "Clouds over a lake!"
    assert request.output == Path("clouds-over-a-lake-4.mp4")


def test_prompt_from_a_file(osp, picture, requests):
    Path("prompt.txt").write_text("snow falls,\nslowly, très lentement\n", encoding="utf-8")
    osp("generate", "cat.png", "@prompt.txt")
    assert requests[0].prompt == "snow falls,\nslowly, très lentement"


@pytest.mark.parametrize("name", ["nope.txt", "."])
def test_prompt_file_that_cannot_be_read(osp, picture, name):
    outcome = osp("generate", "cat.png", f"@{name}")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: the prompt file '{name}' cannot be read")


def test_prompt_file_that_is_no_text(osp, picture):
    outcome = osp("generate", "cat.png", "@cat.png")
    assert (outcome.code, outcome.err) == (
        2,
        "error: the prompt file 'cat.png' is not UTF-8 text\n",
    )


def test_frames_are_rounded_up_and_said(osp, picture, requests):
    outcome = osp("generate", "cat.png", "x", "--frames", "46")
    assert requests[0].num_frames == 49
    assert "note: 46 frames rounded up to 49\n" in outcome.err


def test_existing_output_needs_overwrite(osp, picture, requests):
    Path("a.mp4").write_text("mine")
    outcome = osp("generate", "cat.png", "x", "-o", "a.mp4")
    assert outcome.code == 2
    assert outcome.err.startswith("error: a.mp4 exists already\nhint: -y")
    assert Path("a.mp4").read_text() == "mine"
    assert requests == []
    assert osp("generate", "cat.png", "x", "-o", "a.mp4", "-y").code == 0
    assert requests[0].overwrite


def test_errors_of_the_run_keep_their_code_and_hint(osp, picture, play):
    def too_big(request: GenerateRequest) -> Iterator[Event]:
        yield Notice("starting")
        raise WontFitError("needs 40 GB, 8 GB are free", hint="--size 448x256")

    play(too_big)
    outcome = osp("generate", "cat.png", "x", "-q")
    assert outcome.code == 4
    assert outcome.err == "error: needs 40 GB, 8 GB are free\nhint: --size 448x256\n"
    outcome = osp("generate", "cat.png", "x", "-q", "--json")
    assert json.loads(outcome.out.splitlines()[-1]) == {
        "type": "error",
        "message": "needs 40 GB, 8 GB are free",
        "hint": "--size 448x256",
        "exit_code": 4,
    }


def test_unexpected_errors_are_one_sentence_unless_debugging(osp, picture, play):
    def broken(request: GenerateRequest) -> Iterator[Event]:
        raise ZeroDivisionError("float division\nby zero")
        yield

    play(broken)
    outcome = osp("generate", "cat.png", "x", "-q")
    assert outcome.code == 1
    assert outcome.err == (
        "error: unexpected ZeroDivisionError: float division\n"
        "hint: run it again with --debug for the traceback\n"
    )
    outcome = osp("generate", "cat.png", "x", "-q", "--debug")
    assert outcome.code == 1
    assert outcome.err.startswith("Traceback")
    assert outcome.err.endswith("error: unexpected ZeroDivisionError: float division\n")


def test_ctrl_c_closes_the_run(osp, picture, play):
    closed: list[str] = []

    def interrupted(request: GenerateRequest) -> Iterator[Event]:
        try:
            yield Notice("starting")
            raise KeyboardInterrupt
        finally:
            closed.append("run")

    play(interrupted)
    outcome = osp("generate", "cat.png", "x", "-q")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err == "error: interrupted, no video was saved\n"
    assert closed == ["run"]


def test_ctrl_c_names_what_was_saved(osp, picture, play):
    def interrupted(request: GenerateRequest) -> Iterator[Event]:
        yield Saved(request.output, 4, None)
        raise KeyboardInterrupt

    play(interrupted)
    outcome = osp("generate", "cat.png", "x", "-q", "-o", "a.mp4")
    assert (outcome.code, outcome.out) == (130, "a.mp4\n")
    assert outcome.err == "error: interrupted, a.mp4 was saved\n"
