"""`osp generate` up to the runner: flags to request, events to streams, errors to codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from osp_cli.dials import StepCacheChoice
from osp_cli.errors import InterruptedRunError, WontFitError
from osp_cli.events import Event, FramesReady, Notice, Saved
from osp_cli.requests import GenerateRequest


def test_flags_reach_the_request(osp, picture, requests):
    outcome = osp(
        *("generate", "cat.png", "the camera pans left", "-s", "ink", "-n", "blur", "-o", "a.mp4"),
        *("--size", "320x384", "-f", "17", "--fps", "8", "--steps", "5", "-g", "1.5"),
        *("--shift", "4", "--cutoff", "0.2:0.6", "--seed", "7", "--device", "cpu"),
        *("--dtype", "fp16", "-m", "osp-mini", "--sampler", "unipc", "--cache", "fbcache:0.3"),
        *("--cache-start", "2", "--preview", "latent", "--no-metadata"),
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
        dtype="float16",
        sampler="unipc",
        cache=StepCacheChoice("fbcache", 0.3),
        cache_start=2,
        preview="latent",
        metadata=False,
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
    assert "steps = 5 (flag)\n" in err
    assert "fps = 16 (card osp-mini)\n" in err
    assert "style = none (default)\n" in err
    assert "cutoff = 0.1 (card osp-mini)\n" in err
    assert "loaded transformer in 0.5 s" in err


def test_json_lines_are_the_events(osp, picture, requests):
    outcome = osp("generate", "cat.png", "x", "--json", "-o", "a.mp4", "-f", "48")
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert [event["type"] for event in events] == [
        *("notice", "plan", "load", "stage", "stage", "step", "step", "stage", "stage", "stage"),
        *("saved", "done"),
    ]
    assert events[0] == {"type": "notice", "message": "48 frames rounded up to 49"}
    assert events[6] == {
        "type": "step",
        "step": 2,
        "num_steps": 2,
        "seconds": 2.0,
        "cached": False,
    }
    assert events[-2] == {
        "type": "saved",
        "path": "a.mp4",
        "bytes": 4,
        "sidecar": "a.mp4.json",
    }
    assert set(events[-1]["timings"]) == {"imports", "load", "sampling", "encode"}


def test_json_leaves_the_pixels_out(osp, picture, play):
    def with_frames(request: GenerateRequest) -> Iterator[Event]:
        yield FramesReady(np.zeros((3, 4, 6, 3), np.uint8))

    play(with_frames)
    outcome = osp("generate", "cat.png", "x", "--json", "-q")
    assert outcome.out == '{"type": "frames", "num_frames": 3, "width": 6, "height": 4}\n'


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
        "kept": [],
        "item": None,
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


def test_each_seed_is_a_video(osp, picture, requests):
    outcome = osp("generate", "cat.png", "x", "--seed", "1-2,7")
    assert outcome.out == "cat-1.mp4\ncat-2.mp4\ncat-7.mp4\n"
    assert [request.seed for request in requests] == [1, 2, 7]
    assert "video 2 of 3: cat-2.mp4\n" in outcome.err
    outcome = osp("generate", "cat.png", "x", "--seed", "8", "-c", "2", "-o", "{seed}/%04d.png")
    assert outcome.code == 0
    assert [str(request.output) for request in requests[3:]] == ["8/%04d.png", "9/%04d.png"]


def test_a_failed_video_does_not_end_the_others(osp, picture, play):
    def second_fails(request: GenerateRequest) -> Iterator[Event]:
        yield Notice("starting")
        if request.seed == 2:
            raise WontFitError("too big", hint="smaller", kept=(Path("a.latents.safetensors"),))
        if request.seed == 3:
            raise ZeroDivisionError("by zero")
        yield Saved(request.output, 4, None)

    requests = play(second_fails)
    outcome = osp("generate", "cat.png", "x", "--seed", "1-4", "--json", "-q")
    assert outcome.code == 6
    assert len(requests) == 4
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert [event["path"] for event in events if event["type"] == "saved"] == [
        "cat-1.mp4",
        "cat-4.mp4",
    ]
    assert [event for event in events if event["type"] == "error"] == [
        {
            "type": "error",
            "message": "too big",
            "hint": "smaller",
            "exit_code": 4,
            "kept": ["a.latents.safetensors"],
            "item": 2,
        },
        {
            "type": "error",
            "message": "unexpected ZeroDivisionError: by zero",
            "hint": None,
            "exit_code": 1,
            "kept": [],
            "item": 3,
        },
        {
            "type": "error",
            "message": "2 of 4 videos failed",
            "hint": None,
            "exit_code": 6,
            "kept": [],
            "item": None,
        },
    ]


def test_videos_that_all_fail_end_with_the_code_of_the_first(osp, picture, play):
    def too_big(request: GenerateRequest) -> Iterator[Event]:
        yield Notice("starting")
        raise WontFitError("too big")

    play(too_big)
    assert osp("generate", "cat.png", "x", "--seed", "1-2").code == 4


def test_ctrl_c_ends_all_videos(osp, picture, play):
    def interrupted(request: GenerateRequest) -> Iterator[Event]:
        if request.seed == 2:
            raise KeyboardInterrupt
        yield Saved(request.output, 4, None)

    requests = play(interrupted)
    outcome = osp("generate", "cat.png", "x", "--seed", "1-4", "-q")
    assert (outcome.code, outcome.out) == (130, "cat-1.mp4\n")
    assert outcome.err == "error: interrupted, cat-1.mp4 was saved\n"
    assert len(requests) == 2


def test_kept_latents_tell_how_to_go_on(osp, picture, play):
    def interrupted(request: GenerateRequest) -> Iterator[Event]:
        yield Notice("starting")
        raise InterruptedRunError("interrupted after step 1 of 2", kept=(Path("my cat.latents"),))

    play(interrupted)
    outcome = osp("generate", "cat.png", "x", "-q")
    assert outcome.code == 130
    assert outcome.err == (
        "error: interrupted after step 1 of 2, no video was saved\n"
        "kept: my cat.latents\n"
        "hint: osp generate --from 'my cat.latents' goes on from it\n"
    )


def test_a_contact_sheet_is_one_picture_of_all_seeds(osp, picture, requests):
    outcome = osp("generate", "cat.png", "x", "--seed", "1-3", "--preview", "contact")
    assert (outcome.code, outcome.out) == (0, "cat.contact.png\n")
    assert [request.seed for request in requests] == [1, 2, 3]


def test_a_contact_sheet_is_whole_or_refused(osp, picture, requests):
    Path("cat-2.mp4").touch()
    outcome = osp("generate", "cat.png", "x", "--seed", "1-3", "--preview", "contact")
    assert outcome.code == 2
    assert outcome.err.startswith("error: cat-2.mp4 exists already")
    assert requests == []


def test_a_picked_seed_is_finished_alone(osp, picture, requests, monkeypatch):
    monkeypatch.setenv("OSP_PREVIEW", "contact")
    monkeypatch.setenv("OSP_COUNT", "3")
    outcome = osp("generate", "cat.png", "x", "--seed", "1-3", "--pick", "2")
    assert (outcome.code, outcome.out) == (0, "cat-2.mp4\n")
    [request] = requests
    assert (request.seed, request.preview) == (2, "none")
    assert osp("generate", "cat.png", "x", "--pick", "9").out == "cat-9.mp4\n"


def test_the_way_to_stdout_is_kept_clean(osp, picture, requests):
    outcome = osp("generate", "cat.png", "x", "-o", "-")
    assert (outcome.code, outcome.out) == (0, "")
    assert requests[0].output == Path("-")


def test_stdout_takes_one_kind_of_thing(osp, picture, requests):
    outcome = osp("generate", "cat.png", "x", "-o", "-", "--json")
    assert outcome.code == 2
    assert json.loads(outcome.out)["message"] == "--json and --output - both want stdout"
    assert outcome.err.startswith("error: --json and --output - both want stdout")
    assert requests == []


def test_no_video_for_a_terminal(osp, picture, requests, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    outcome = osp("generate", "cat.png", "x", "-o", "-")
    assert outcome.code == 2
    assert outcome.err.startswith("error: --output - writes a video, stdout is a terminal here")
    assert requests == []


def test_variables_and_files_reach_the_request(osp, picture, requests, tmp_path, monkeypatch):
    Path("osp.toml").write_text("steps = 3\nfps = 8\n[generate]\nshift = 2\n")
    Path("mine.toml").write_text("steps = 4\ncfg = 2.5\n")
    monkeypatch.setenv("OSP_STEPS", "5")
    assert osp("generate", "cat.png", "x", "--config", "mine.toml", "--cutoff", "0").code == 0
    [request] = requests
    assert (request.num_inference_steps, request.guidance_scale) == (5, 2.5)
    assert (request.fps, request.shift, request.cutoff) == (8, 2.0, (0.0, 0.0))


def test_switches_of_a_file_can_be_undone(osp, picture, requests):
    Path("osp.toml").write_text('metadata = false\nstyle = "ink"\ncache = "fbcache"\n')
    osp("generate", "cat.png", "x", "-o", "a.mp4")
    osp("generate", "cat.png", "x", "-o", "b.mp4", "--metadata", "-s", "none", "--cache", "none")
    assert [request.metadata for request in requests] == [False, True]
    assert [request.style for request in requests] == ["ink", None]
    assert [str(request.cache) for request in requests] == ["fbcache", "none"]


def test_a_picture_through_a_pipe(osp, picture, requests, piped):
    piped(picture.read_bytes())
    outcome = osp("generate", "-", "x", "--seed", "3")
    assert (outcome.code, outcome.out) == (0, "stdin-3.mp4\n")
    assert requests[0].image_data == picture.read_bytes()
    piped(b"no picture")
    outcome = osp("generate", "-", "x")
    assert outcome.code == 2
    assert outcome.err.startswith("error: the picture on stdin ")


def test_a_batch_reports_its_bad_lines_and_does_the_rest(osp, picture, requests):
    Path("jobs.txt").write_text("a cat\na dog --steps many\n# remark\na cow --steps 0\na hen\n")
    outcome = osp("generate", "cat.png", "-F", "jobs.txt", "--seed", "7")
    assert (outcome.code, outcome.out) == (6, "cat-1-7.mp4\ncat-4-7.mp4\n")
    assert [request.prompt for request in requests] == ["a cat", "a hen"]
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: jobs.txt, line 2: --steps takes a whole number, got 'many'",
        "error: jobs.txt, line 4: --steps must be 1 to 1000, got 0",
        "error: 2 of 4 videos failed",
    ]


def test_a_batch_without_any_good_line_is_refused_before_it_begins(osp, picture, requests):
    Path("jobs.txt").write_text("a cat --image no.png\na dog --steps 0\n")
    outcome = osp("generate", "cat.png", "-F", "jobs.txt")
    assert (outcome.code, outcome.out) == (2, "")
    assert [line for line in outcome.err.splitlines() if line.startswith("error: ")] == [
        "error: jobs.txt, line 1: no.png does not exist",
        "error: jobs.txt, line 2: --steps must be 1 to 1000, got 0",
        "error: none of 2 videos can be made",
    ]
    assert requests == []


def test_the_code_of_a_batch_without_any_good_line_is_the_first_ones(osp, picture, requests):
    Path("jobs.csv").write_text("model,steps\nflashi2v-1.3b,\n,0\n")
    for folder in Path("../home/models").iterdir():
        folder.rename(folder.with_name(f"{folder.name}-away"))
    assert osp("generate", "cat.png", "-F", "jobs.csv").code == 3
    assert requests == []
