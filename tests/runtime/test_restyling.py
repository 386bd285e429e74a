"""One video from another through the whole runtime: any length, any end, the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from osp_cli.errors import (
    InterruptedRunError,
    InvalidRequestError,
    RuntimeFailureError,
    WontFitError,
)
from osp_cli.events import ChunkDone, Done, Notice, Planned, Saved, StepDone
from osp_cli.media.video import probe_video, read_video, write_video
from osp_cli.requests import RestyleRequest
from osp_cli.runtime import restyling, source_latents
from osp_cli.runtime.models import Models
from osp_cli.runtime.restyling import run_restyle
from osp_cli.stopping import StopSignal

FRAMES = 13


def moving(num_frames: int, width: int = 96, height: int = 64) -> np.ndarray:
    """Bright bars that wander to the right over a slope."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    frames = [
        np.stack([128 + 80 * np.sin((x - 2 * t) / 9.0), 60 + y, 200 - x + 0 * y], axis=-1)
        for t in range(num_frames)
    ]
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


@pytest.fixture
def video(away):
    path = away / "walk.mp4"
    write_video(moving(FRAMES), path, fps=16)
    return path


@pytest.fixture
def ask(tiny_card, video):
    """Builds requests for windows of three pictures."""

    def build(**changes):
        settings = {
            "command": "stylize",
            "video": video,
            "style": "ink",
            "prompt": "a picture",
            "output": Path("ink.mp4"),
            "model": "tiny",
            "num_frames": 9,
            "num_inference_steps": 4,
            "guidance_scale": 1.0,
            "seed": 1,
            "device": "cpu",
            "strength": 1.0,
        }
        return RestyleRequest(**{**settings, **changes})

    return build


@pytest.fixture
def ask_wan(tiny_wan_cards, video, ask):
    """Likewise for a model that samples re-noised latents; windows of three latent frames."""

    def build(**changes):
        size = {"width": 64, "height": 48}
        asked = {"model": "tiny-t2v", "style": None, "strength": 0.6, **size}
        return ask(**{**asked, **changes})

    return build


@pytest.fixture(params=["tiny", "tiny-t2v"])
def ask_either(request, ask, ask_wan):
    """Both ways of restyling."""
    return ask if request.param == "tiny" else ask_wan


@pytest.fixture(autouse=True)
def both_cards(tiny_card, tiny_wan_cards, tiny_home, tiny_wan_home, monkeypatch, tmp_path):
    """All tiny models at once, under one home."""
    from osp_cli import registry

    specs = {**registry.model_specs(), "tiny": tiny_card, **tiny_wan_cards}
    monkeypatch.setattr(registry, "model_specs", lambda: specs)
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    for each in (tiny_home, tiny_wan_home):
        for folder in (each / "models").iterdir():
            (home / "models" / folder.name).symlink_to(folder)
    monkeypatch.setenv("OSP_HOME", str(home))
    return home


def kinds(events, kind):
    return [event for event in events if isinstance(event, kind)]


def folder_of(request) -> Path:
    return request.output.with_name(request.output.stem + ".latents")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- What comes out --------------------------------------------------------------------------


def test_a_video_becomes_one_of_the_same_length_and_nothing_is_left_over(ask_either, away):
    request = ask_either()
    events = list(run_restyle(request))
    plan = kinds(events, Planned)[0].plan
    chunks = kinds(events, ChunkDone)
    assert [chunk.chunk for chunk in chunks] == list(range(1, plan.num_windows + 1))
    assert {chunk.num_chunks for chunk in chunks} == {plan.num_windows}
    assert plan.num_windows > 1
    assert chunks[-1].num_frames == plan.total_frames == FRAMES
    assert [chunk.num_frames for chunk in chunks] == sorted({c.num_frames for c in chunks})
    assert len(kinds(events, StepDone)) == plan.num_windows * plan.steps
    assert isinstance(events[-1], Done)
    assert set(events[-1].timings) >= {"load", "condition", "sampling", "encode"}
    info = probe_video(request.output)
    assert (info.num_frames, info.fps) == (FRAMES, 16)
    assert files(away) == ["ink.mp4", "ink.mp4.json", "walk.mp4"]


@pytest.mark.parametrize("length", [1, 2, 9, 10])
def test_any_length_comes_out_frame_for_frame(ask_either, away, length):
    write_video(moving(length), away / "short.mp4", fps=16)
    request = ask_either(video=away / "short.mp4")
    list(run_restyle(request))
    assert probe_video(request.output).num_frames == length


def test_the_result_has_its_own_rate_and_no_more_frames_than_asked(ask, away):
    list(run_restyle(ask(fps=8)))
    # 13 frames at 16 a second last until the seventh at 8.
    assert probe_video("ink.mp4").num_frames == 7
    list(run_restyle(ask(total_frames=5, overwrite=True)))
    assert probe_video("ink.mp4").num_frames == 5


def test_without_strength_the_source_comes_back(ask_either, video, monkeypatch):
    # Not a single pass is made for it.
    monkeypatch.setattr(restyling._Maker, "_make", None)
    request = ask_either(strength=0.0)
    plan = next(iter(run_restyle(request))).plan
    assert plan.steps == (1 if request.model == "tiny" else 0)


def test_the_source_comes_back_through_the_embedded_codec(away, video):
    request = RestyleRequest(
        video=video, strength=0.0, output=Path("same.mp4"), width=96, height=64, seed=1,
        device="cpu",
    )  # fmt: skip
    list(run_restyle(request))
    error = read_video("same.mp4").astype(float) - read_video(video)
    assert 10 * np.log10(255**2 / (error**2).mean()) > 30


def test_the_result_moves_away_from_the_source_with_strength(ask, video):
    results = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        list(run_restyle(ask(strength=strength, overwrite=True)))
        results.append(read_video("ink.mp4").astype(float))
    # The first is the source as the autoencoder shows it, which loses much of a tiny video.
    distances = [((result - results[0]) ** 2).mean() for result in results[1:]]
    assert distances == sorted(distances)
    assert distances[-1] > 3 * distances[0] > 0


def test_the_recipe_says_what_was_restyled(ask_either, video):
    request = ask_either()
    list(run_restyle(request))
    recipe = json.loads(Path("ink.mp4.json").read_text())
    asked = request.recipe()
    assert {name: recipe[name] for name in ("video", "strength", "num_frames", "cache")} == {
        name: asked[name] for name in ("video", "strength", "num_frames", "cache")
    }
    assert recipe["num_inference_steps"] == 4
    assert len(recipe["video_sha256"]) == 64
    assert (recipe["width"], recipe["height"]) in ((96, 64), (64, 48))


def test_another_source_under_the_name_of_the_replayed_one_is_told(ask, away, video):
    list(run_restyle(ask()))
    recipe = json.loads(Path("ink.mp4.json").read_text())
    write_video(moving(FRAMES)[::-1], video, fps=16)
    request = ask(replayed=recipe, replayed_from="ink.mp4", overwrite=True)
    notices = [notice.message for notice in kinds(run_restyle(request), Notice)]
    assert any("the video is not the one of ink.mp4" in notice for notice in notices)


# --- Broken off ------------------------------------------------------------------------------


def whole(request) -> bytes:
    """The bytes of an uninterrupted run."""
    list(run_restyle(replace(request, output=Path("whole.mp4"))))
    return Path("whole.mp4").read_bytes()


def test_a_run_goes_on_from_the_first_missing_window_to_the_same_bytes(ask_either, away):
    request = ask_either()
    expected = whole(request)
    stop = StopSignal()
    with pytest.raises(InterruptedRunError, match="window 1 of") as caught:
        for event in run_restyle(request, stop=stop):
            if isinstance(event, ChunkDone) and event.chunk == 1:
                stop.note(signal.SIGINT)
    assert caught.value.kept == (folder_of(request),)
    assert not request.output.exists()
    assert files(folder_of(request)) == [
        "recipe.json", "window-00001.safetensors",
    ]  # fmt: skip
    events = list(run_restyle(request))
    assert kinds(events, ChunkDone)[0].chunk == 2
    assert any("has 1 of" in notice.message for notice in kinds(events, Notice))
    assert request.output.read_bytes() == expected
    assert not folder_of(request).exists()


def test_within_a_window_its_step_is_finished_and_earlier_windows_stay(ask_wan):
    request, stop = ask_wan(), StopSignal()
    steps = 0
    with pytest.raises(InterruptedRunError) as caught:
        for event in run_restyle(request, stop=stop):
            steps += isinstance(event, StepDone)
            if steps == 3:
                stop.note(signal.SIGTERM)
    # Two steps of each window: this was the first of the second.
    assert steps == 3
    assert caught.value.exit_code == 143
    assert files(folder_of(request)) == ["recipe.json", "window-00001.safetensors"]


def test_all_windows_are_there_when_saving_fails(ask, monkeypatch):
    request = ask()
    expected = whole(request)
    genuine = restyling.open_sink

    class Failing:
        notices = ()

        def write(self, frames):
            next(iter(frames))
            raise OSError("the stick was pulled out")

    monkeypatch.setattr(restyling, "open_sink", lambda *args, **kwargs: Failing())
    with pytest.raises(RuntimeFailureError, match="stick") as caught:
        list(run_restyle(request))
    assert caught.value.kept == (folder_of(request),)
    monkeypatch.setattr(restyling, "open_sink", genuine)
    events = list(run_restyle(request))
    # Nothing is read or sampled again.
    assert not kinds(events, ChunkDone)
    assert request.output.read_bytes() == expected


def test_a_damaged_window_is_told_and_made_again(ask):
    request = ask()
    expected = whole(request)
    broken_off(request, after=3)
    path = folder_of(request) / "window-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    events = list(run_restyle(request))
    assert any("window 2 in" in notice.message for notice in kinds(events, Notice))
    assert kinds(events, ChunkDone)[0].chunk == 2
    assert request.output.read_bytes() == expected


def broken_off(request, after: int) -> None:
    stop = StopSignal()
    with pytest.raises(InterruptedRunError):
        for event in run_restyle(request, stop=stop):
            if isinstance(event, ChunkDone) and event.chunk == after:
                stop.note(signal.SIGINT)


@pytest.mark.parametrize("change", [{"strength": 0.5}, {"fps": 8}, {"seed": 2}, {"style": "oil"}])
def test_windows_of_another_video_are_in_the_way(ask, change):
    broken_off(ask(), after=1)
    other = ask(**change)
    with pytest.raises(InvalidRequestError, match="unfinished work of another run") as caught:
        list(run_restyle(other))
    assert "-y" in caught.value.hint
    assert files(folder_of(other)) == ["recipe.json", "window-00001.safetensors"]
    list(run_restyle(replace(other, overwrite=True)))
    assert not folder_of(other).exists()


def test_a_file_of_the_user_among_the_windows_is_left_alone(ask):
    request = ask()
    broken_off(request, after=1)
    (folder_of(request) / "notes.txt").write_text("mine")
    list(run_restyle(request))
    assert files(folder_of(request)) == ["notes.txt"]


_KILLED = """
import sys
sys.path.insert(0, {tests!r})
from conftest import register_tiny
register_tiny()
from pathlib import Path
from osp_cli.requests import RestyleRequest
from osp_cli.runtime.restyling import run_restyle
request = RestyleRequest(
    command="stylize", video=Path("walk.mp4"), style="ink", prompt="a picture", model="tiny",
    output=Path("ink.mp4"), num_frames=9, num_inference_steps=4, guidance_scale=1.0, seed=1,
    device="cpu", strength=1.0,
)
for event in run_restyle(request):
    print(event.type, flush=True)
"""


@pytest.mark.slow
def test_a_killed_run_comes_to_the_same_bytes(ask, away):
    expected = whole(ask())
    tests = Path(__file__).parents[1]
    random = np.random.default_rng(9)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": str(tests.parent),
    }
    kills, ended = 0, False
    for _ in range(20):
        command = [sys.executable, "-c", _KILLED.format(tests=str(tests))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        if kills < 5:
            # Somewhere between its first line and a little later than a window takes.
            process.stdout.readline()
            time.sleep(random.uniform(0, 0.6))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        else:
            process.communicate()
            ended = process.returncode == 0
        if Path("ink.mp4").exists():
            break
    assert kills
    assert Path("ink.mp4").read_bytes() == expected
    # A kill may come between the two; the video is whole all the same.
    assert not (ended and (away / "ink.latents").exists())


# --- Memory ----------------------------------------------------------------------------------


def test_frames_in_memory_do_not_grow_with_the_length(ask_either, away, monkeypatch):
    def most_alive(length: int) -> int:
        path = away / f"{length}.mp4"
        write_video(moving(length), path, fps=16)
        alive, most = set(), 0
        genuine = source_latents.read_frames

        class Tracked(np.ndarray):
            def __del__(self):
                alive.discard(id(self))

        def read(*args, **kwargs):
            nonlocal most
            for frame in genuine(*args, **kwargs):
                tracked = frame.view(Tracked)
                alive.add(id(tracked))
                most = max(most, len(alive))
                del frame
                yield tracked

        with monkeypatch.context() as patch:
            patch.setattr(source_latents, "read_frames", read)
            list(run_restyle(ask_either(video=path, output=Path(f"o{length}.mp4")), models=models))
        return most

    models = Models()
    short, long = most_alive(17), most_alive(53)
    assert long <= short + 1
    assert long < 20


def test_where_memory_ends_a_smaller_plan_goes_on(ask, monkeypatch):
    request = ask()
    expected = whole(request)
    genuine, failed = restyling._Maker._make, []

    def fail_once(self, way, window, *args):
        if window.start == 3 and not failed:
            failed.append(window)
            raise MemoryError
        yield from genuine(self, way, window, *args)

    monkeypatch.setattr(restyling._Maker, "_make", fail_once)
    monkeypatch.setattr(restyling, "in_less_memory", lambda clip, stage: clip)
    events = list(run_restyle(request))
    assert [chunk.chunk for chunk in kinds(events, ChunkDone)] == list(range(1, 6))
    assert any("out of memory after window 1" in n.message for n in kinds(events, Notice))
    assert request.output.read_bytes() == expected


def test_without_a_smaller_plan_the_windows_are_named(ask, monkeypatch):
    request = ask()

    def refuse(clip, stage):
        raise WontFitError("", hint="use a smaller --size")

    genuine = restyling._Maker._make

    def fail(self, way, window, *args):
        if window.start == 3:
            raise MemoryError
        yield from genuine(self, way, window, *args)

    monkeypatch.setattr(restyling._Maker, "_make", fail)
    monkeypatch.setattr(restyling, "in_less_memory", refuse)
    with pytest.raises(WontFitError, match="ran out of memory") as caught:
        list(run_restyle(request))
    assert caught.value.kept == (folder_of(request),)


# --- Refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gpus": 2}, "one device"),
        ({"vae_tiling": True}, "--vae-tiling"),
        ({"preview": "latent"}, "--preview latent"),
        ({"video": Path("gone.mp4")}, "gone.mp4 does not exist"),
    ],
)
def test_what_a_video_cannot_have_is_refused_before_anything_is_loaded(ask, change, told):
    with pytest.raises(InvalidRequestError, match=told):
        next(run_restyle(ask(**change)))


def test_saved_comes_before_done_and_closing_early_leaves_a_whole_video(ask):
    request = ask()
    run = run_restyle(request)
    for event in run:
        if isinstance(event, Saved):
            break
    run.close()
    assert probe_video(request.output).num_frames == FRAMES
    assert not folder_of(request).exists()


def test_frames_are_led_along_as_far_as_they_are_painted(ask, monkeypatch):
    seen = []

    def record(painted, source, share, screen):
        seen.append((round(share, 3), screen, len(list(source))))
        yield from painted

    monkeypatch.setattr("osp_cli.runtime.restyling.steadied", record)
    for changes in ({}, {"strength": 0.5}, {"style": "ink+lego"}, {"strength": 0.0}):
        list(run_restyle(ask(**changes, overwrite=True)))
    count = seen[0][2]
    # Bricks stand on the screen; and what is not painted is not touched.
    assert seen == [(0.85, 0, count), (0.425, 0, count), (0.85, 0.5, count)]
