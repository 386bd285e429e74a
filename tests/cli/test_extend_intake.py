"""What `osp extend` is asked for: what goes on, where it goes, and what is told of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from osp_cli.cli.extend_intake import ExtendCall, gather_extend, print_extend_settings
from osp_cli.cli.extend_values import StageList
from osp_cli.config import Layer
from osp_cli.dials import Ramp, Seeds, Size
from osp_cli.errors import InvalidRequestError
from osp_cli.extend_request import state_before, state_path
from osp_cli.last_output import remember
from osp_cli.media.sinks import open_sink
from osp_cli.runtime.stream_state import SavedStream, save_stream
from osp_cli.screenplay import Cue

SEED = {"seed": Seeds([7])}


def call(flags=None, **changes):
    return ExtendCall(
        **{"source": None, "prompt": None, "flags": {**SEED, **(flags or {})}, **changes}
    )


def settled(flags=None, **changes):
    return gather_extend(call(flags, **changes))


def request(flags=None, **changes):
    return settled(flags, **changes).request


def refused(flags=None, **changes):
    with pytest.raises(InvalidRequestError) as caught:
        settled(flags, **changes)
    return caught.value


def video(path, recipe=None):
    """A clip of nine frames, with a recipe or without."""
    frames = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
    open_sink(path, fps=12, recipe=recipe or {}, overwrite=True).write(frames)
    if recipe is None:
        Path(f"{path}.json").unlink()
    return Path(path)


MADE = {"command": "generate", "model": "osp-mini", "prompt": "rain", "negative_prompt": "sun",
        "fps": 12, "seed": 3, "style": "ink"}  # fmt: skip


# What goes on


def test_a_picture(picture):
    made = request(source="cat.png", prompt="pan left")
    assert (made.image, made.video, made.prompt) == (Path("cat.png"), None, "pan left")


def test_a_video_that_osp_did_not_make(away):
    video("clip.mp4")
    made = settled(source="clip.mp4")
    assert (made.request.video, made.request.image, made.request.latents) == (
        *(Path("clip.mp4"), None, None),
    )
    assert made.notices == ()


def test_a_text(away):
    made = request({"model": "flashi2v-1.3b"}, text="snow falls")
    assert (made.text_only, made.prompt, made.image, made.video) == (True, "snow falls", None, None)


def test_a_picture_on_stdin(piped):
    piped(b"bytes")
    made = request(source="-")
    assert (made.image_data, made.output) == (b"bytes", Path("stdin-7.mp4"))
    # What gave the picture gives no lines.
    assert not made.listens
    assert request({"model": "flashi2v-1.3b"}, text="x").listens
    assert not request({"model": "flashi2v-1.3b"}, text="x", listens=False).listens


def test_nothing_on_stdin(piped):
    piped(b"")
    assert refused(source="-").message == "stdin is empty"


def test_a_prompt_on_stdin(piped, picture):
    piped("\n snow fällt \n".encode())
    made = request(source="cat.png", prompt="-")
    assert (made.prompt, made.listens) == ("snow fällt", False)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"source": "-", "prompt": "-"}, "the picture and the prompt"),
        ({"source": "-", "screenplay": "-"}, "the picture and the screenplay"),
        ({"source": "cat.png", "prompt": "-", "screenplay": "-"}, "the prompt and the screenplay"),
    ],
)
def test_stdin_is_one_thing(piped, picture, given, words):
    piped(b"0s: x")
    assert f"stdin is {words}" in refused(**given).message


@pytest.mark.parametrize(
    "given",
    [{"source": "cat.png", "text": "x"}, {"source": "cat.png", "from_recipe": "clip.mp4"},
     {"text": "x", "from_recipe": "clip.mp4"}],
)  # fmt: skip
def test_one_beginning_only(picture, given):
    assert "one stream begins with one thing" in refused(**given).message


@pytest.mark.parametrize(
    ("name", "why"), [("gone.mp4", "does not exist"), ("folder", "is a folder")]
)
def test_what_cannot_go_on(away, name, why):
    (away / "folder").mkdir()
    assert refused(source=name).message == f"{name} {why}"


# The last output


def test_without_an_input_the_last_output_goes_on(away):
    video("clip.mp4", MADE)
    remember(Path("clip.mp4"))
    assert request().video == away / "clip.mp4"
    assert request(prompt="now snow").prompt == "now snow"
    (away / "clip.mp4").unlink()
    error = refused()
    assert "nothing to go on from" in error.message
    assert "osp extend photo.jpg" in error.hint


def test_what_was_made_last_and_is_no_video(away):
    (away / "page.json").write_text("{}")
    remember(Path("page.json"))
    assert "nothing to go on from" in refused().message


# What a video that osp made brings along


def test_prompt_model_and_rate_are_brought_along(away):
    video("clip.mp4", MADE)
    made = settled(source="clip.mp4")
    asked = made.request
    assert (asked.prompt, asked.negative_prompt, asked.model, asked.fps) == (
        *("rain", "sun", "osp-mini", 12),
    )
    # A seed would repeat the noise, a style is in the picture already.
    assert (asked.seed, asked.style) == (7, None)
    assert made.settings["prompt"].origin == "recipe of clip.mp4"
    assert made.notices == ("the prompt of clip.mp4: 'rain'",)


def test_what_is_typed_is_stronger_than_what_is_brought_along(away):
    video("clip.mp4", MADE)
    made = request({"fps": 16}, source="clip.mp4", prompt="snow")
    assert (made.prompt, made.fps) == ("snow", 16)
    stored = (Layer("./osp.toml", {"fps": 20}),)
    assert request(source="clip.mp4", stored=stored).fps == 12


def test_a_model_that_continues_nothing_is_not_brought_along(away):
    video("clip.mp4", {**MADE, "model": "wan2.1-i2v-14b-480p"})
    made = request(source="clip.mp4")
    assert (made.model, made.prompt) == ("osp-mini", "rain")
    video("clip.mp4", {**MADE, "model": "of another program"})
    assert request(source="clip.mp4").model == "osp-mini"


def test_a_damaged_recipe_brings_nothing_along(away):
    video("clip.mp4", {**MADE, "prompt": 7, "negative_prompt": ["x"], "fps": "many"})
    made = request(source="clip.mp4")
    assert (made.fps, made.negative_prompt) == (16, "")
    assert made.prompt not in (7, "rain")


def test_a_sidecar_names_its_video(away):
    video("clip.mp4", MADE)
    assert request(source="clip.mp4.json").video == Path("clip.mp4")
    assert request(from_recipe="clip.mp4.json").video == Path("clip.mp4")


def test_the_state_beside_a_video_goes_with_it(away):
    video("clip.mp4", MADE)
    state = state_path(Path("clip.mp4"))
    assert request(source="clip.mp4").latents is None
    state.write_bytes(b"state")
    assert request(source="clip.mp4").latents == state
    assert request(source=str(state)).video == Path("clip.mp4")
    Path("clip.mp4").unlink()
    error = refused(source=str(state))
    assert "the video of clip.state.safetensors is not beside it" in error.message
    assert "--resume" in error.hint


# Where it goes


@pytest.mark.parametrize(
    ("output", "sinks", "found"),
    [
        (None, (), ("file",)),
        ("x.mkv", (), ("file",)),
        ("-", (), ("stdout",)),
        ("-", ("stdout:y4m",), ("stdout:y4m",)),
        ("-", ("file", "http"), ("http", "stdout")),
        (None, ("http",), ("http",)),
        ("x.mp4", ("http:8080",), ("file", "http:8080")),
        ("x.mp4", ("http", "file"), ("http", "file")),
        (None, ("udp://127.0.0.1:9000", "a/live.m3u8"), ("udp://127.0.0.1:9000", "a/live.m3u8")),
    ],
)
def test_sinks(picture, output, sinks, found):
    made = request({"output": output}, source="cat.png", sinks=sinks)
    assert made.sinks == found
    assert made.is_file == ("file" in found)


@pytest.mark.parametrize(
    ("output", "sinks", "why"),
    [
        (None, ("vlc",), "'vlc' is no target"),
        (None, ("",), "'' is no target"),
        (None, ("stdout:mov",), "stdout cannot be mov"),
        (None, ("http", "http"), "named twice"),
        (None, ("stdout", "stdout:y4m"), "one stream only"),
        (None, ("udp://nowhere",), "needs a port"),
        (None, ("http:99999",), "at most 65535"),
        ("clip.gif", (), "ends in .mp4 or .mkv"),
        ("frames/%04d.png", (), "ends in .mp4 or .mkv"),
        ("clip", (), "ends in .mp4 or .mkv"),
    ],
)
def test_sinks_that_are_none(picture, output, sinks, why):
    assert why in refused({"output": output}, source="cat.png", sinks=sinks).message


# Screenplays and stages


def test_a_screenplay(picture, away):
    (away / "play.txt").write_text("0s: rain\n2s: snow --style ink\n", encoding="utf-8")
    made = request(source="cat.png", screenplay="play.txt")
    assert made.cues == (Cue(seconds=0.0, prompt="rain"), Cue(seconds=2.0, prompt="snow",
                                                              style="ink"))  # fmt: skip
    assert made.recipe()["screenplay"] == "0s: rain\n2s: snow --style ink\n"


def test_a_screenplay_on_stdin(picture, piped):
    piped(b"0s: rain\n")
    made = request(source="cat.png", screenplay="-")
    assert (made.cues, made.listens) == ((Cue(seconds=0.0, prompt="rain"),), False)
    piped(b"rain\n")
    assert "the screenplay on stdin, line 1" in refused(source="cat.png", screenplay="-").message


def test_a_screenplay_that_makes_no_sense(picture, away):
    (away / "play.txt").write_text("2s: snow\n1s: rain\n")
    assert "play.txt, line 2" in refused(source="cat.png", screenplay="play.txt").message
    assert "'gone.txt' cannot be read" in refused(source="cat.png", screenplay="gone.txt").message


def test_stages_name_the_size(picture):
    stages = StageList(2, (448, 256))
    made = request(source="cat.png", stages=stages)
    assert (made.width, made.height, len(made.stage_steps)) == (448, 256, 2)
    error = refused({"size": Size(448, 256)}, source="cat.png", stages=stages)
    assert "name a size each" in error.message


# What is told


def test_a_model_without_live_weights_says_so(picture):
    live = settled({"model": "flashi2v-1.3b"}, source="cat.png", realtime=True)
    assert any("has no weights for few steps" in said for said in live.notices)
    for quiet in (
        settled({"model": "flashi2v-1.3b"}, source="cat.png"),
        settled(source="cat.png", realtime=True),
    ):
        assert not any("no weights for few" in said for said in quiet.notices)


def test_a_negative_prompt_without_guidance_is_told_of_once(picture):
    told = settled({"negative_prompt": "fog"}, source="cat.png", realtime=True).notices
    assert sum("--negative-prompt has no effect" in said for said in told) == 1
    flags = {"negative_prompt": "fog", "guidance_scale": 3.0}
    assert not any("no effect" in said for said in settled(flags, source="cat.png").notices)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"gpus": 2}, "--gpus 2 is for single clips"),
        ({"style": "ghibli..ink"}, "a stream has no end"),
        ({"preview": "latent"}, "--preview latent is for single clips"),
        ({"model": "wan2.1-i2v-14b-480p"}, "cannot continue a video"),
        ({"model": "qwen2.5-vl-7b"}, "makes no videos"),
        ({"size": Size(450, 256)}, "multiples of"),
    ],
)
def test_what_a_stream_cannot_have(picture, flags, why):
    assert why in refused(flags, source="cat.png").message


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"context": -1}, "--context at least 0"),
        ({"latent_frames": 0}, "--latent-frames must be at least 1"),
        ({"latent_frames": 90}, "sees 13 latent frames at once"),
        ({"anchor_color": 1.5}, "--anchor-color must be 0 to 1"),
        ({"anchor_color": math.nan}, "--anchor-color must be 0 to 1"),
    ],
)
def test_numbers_out_of_range(picture, more, why):
    assert why in refused(source="cat.png", **more).message


# Taking up again


@pytest.fixture
def stopped(picture):
    """The request of a stream, and the state that it left."""
    made = request(
        {"cutoff": Ramp(0.2, 0.4), "style": "ink:0.5", "size": Size(448, 256), STEPS: 6,
         "seconds": 3.0, "output": "clip.mkv"},
        source="cat.png", prompt="rain", realtime=True, context=0, latent_frames=5,
        anchor_color=0.25, stages=StageList(2),
    )  # fmt: skip
    saved = SavedStream(
        tensors={"x": torch.zeros(1)}, frames=20, made=20, notes={}, recipe=made.recipe()
    )
    save_stream(state_path(made.output), saved)
    made.output.with_name("clip.recording.mkv").touch()
    return made


STEPS = "num_inference_steps"
RESUME = {"resume": "clip.state.safetensors", "flags": {"seed": None}}


def resumed(flags=None, **changes):
    return gather_extend(
        replace(call(), **{**RESUME, "flags": {"seed": None, **(flags or {})}, **changes})
    ).request


def test_a_stream_is_taken_up_as_it_was(stopped):
    again = resumed()
    assert again.recipe() == stopped.recipe() | {"image": again.recipe()["image"]}
    assert (again.output, again.resume) == (stopped.output, Path("clip.state.safetensors"))
    assert again.stage_steps == stopped.stage_steps == (3, 3)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.recording.mkv", "./clip.mkv"])
def test_by_the_name_of_its_video(stopped, name):
    assert resumed(resume=name).resume == Path("clip.state.safetensors")


@pytest.mark.parametrize(
    ("flags", "frames"),
    [({"seconds": 10.0}, 160), ({"num_frames": 99}, 99), ({"seconds": math.inf}, None)],
)
def test_how_long_may_be_said_anew(stopped, flags, frames):
    assert resumed(flags).new_frames == frames


def test_an_endless_one_stays_without_end(stopped):
    recipe = {**stopped.recipe(), "new_frames": None}
    saved = SavedStream(tensors={"x": torch.zeros(1)}, frames=1, made=1, notes={}, recipe=recipe)
    save_stream(state_path(stopped.output), saved)
    assert resumed().new_frames is None
    assert resumed({"seconds": 2.0}).new_frames == 32


@pytest.mark.parametrize(
    "changes",
    [{"flags": SEED}, {"flags": {"style": "ink"}}, {"flags": {"fps": 16}}, {"prompt": "snow"},
     {"source": "cat.png"}, {"text": "snow"}, {"screenplay": "play.txt"}, {"prompt": ""},
     {"context": 1}, {"latent_frames": 3}, {"stages": StageList(1)}, {"anchor_color": 0.5},
     {"from_recipe": "clip.mp4"}],
    ids=str,
)  # fmt: skip
def test_other_settings_make_another_stream(stopped, changes):
    with pytest.raises(InvalidRequestError, match="--resume goes on exactly as before"):
        gather_extend(replace(call(), **{**RESUME, **changes}))


def test_live_again_only_what_was_live(stopped):
    assert resumed(realtime=True).recipe() == resumed().recipe()
    recipe = {**stopped.recipe(), "realtime": False}
    saved = SavedStream(tensors={"x": torch.zeros(1)}, frames=1, made=1, notes={}, recipe=recipe)
    save_stream(state_path(stopped.output), saved)
    with pytest.raises(InvalidRequestError, match="--resume goes on exactly as before"):
        resumed(realtime=True)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gone.state.safetensors", "gone.state.safetensors does not exist"),
        ("gone.mp4", "gone.state.safetensors does not exist"),
        ("text.state.safetensors", "text.state.safetensors"),
    ],
)
def test_states_that_are_none(stopped, away, name, why):
    (away / "text.state.safetensors").write_text("no state")
    with pytest.raises(InvalidRequestError, match=why):
        resumed(resume=name)


@pytest.mark.parametrize("damage", ["missing", "half"])
def test_the_state_before_is_taken_where_the_last_is_lost(stopped, damage):
    state = state_path(stopped.output)
    state_before(state).write_bytes(state.read_bytes())
    if damage == "missing":
        state.unlink()
    else:
        state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    assert resumed().recipe()["prompt"] == "rain"


@pytest.mark.parametrize("key", ["width", "seed", "stage_steps", "sampler", "cutoff"])
def test_a_recipe_that_lacks_something(stopped, key):
    recipe = {name: value for name, value in stopped.recipe().items() if name != key}
    saved = SavedStream(tensors={"x": torch.zeros(1)}, frames=1, made=1, notes={}, recipe=recipe)
    save_stream(state_path(stopped.output), saved)
    with pytest.raises(InvalidRequestError, match="the recipe in clip"):
        resumed()


# --print-config


def test_settings_are_shown_without_anything_to_go_on_from(away, capsys):
    print_extend_settings(call(realtime=True), as_json=True)
    shown = json.loads(capsys.readouterr().out)
    text = json.dumps(shown)
    assert "--realtime" in text
    assert "cutoff" in text


def test_settings_are_shown_of_what_goes_on(away, capsys):
    video("clip.mp4", MADE)
    print_extend_settings(call(source="clip.mp4"), as_json=False)
    out = capsys.readouterr().out
    assert "recipe of clip.mp4" in out
    assert "rain" in out


def test_pictures_are_not_opened_yet(away):
    """The intake names what goes on; whether it is one is found out before weights are loaded."""
    Image.new("RGB", (8, 8)).save("cat.webp")
    assert request(source="cat.webp").image == Path("cat.webp")
