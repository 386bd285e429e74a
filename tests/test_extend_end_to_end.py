"""`osp extend` as it is typed: videos go on, without a seam, to the frame, and again the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from osp_cli.cli.app import main
from osp_cli.media.recipes import read_recipe
from osp_cli.media.video import probe_video, read_video
from osp_cli.models.latents import uint8_frames
from osp_cli.runtime import stream_engine
from osp_cli.runtime.stream_state import load_stream, states_of

LIVE = ("--model", "tiny", "--realtime", "--seed", "7", "--device", "cpu", "--fps", "12", "-q")
CHUNK = 12


@dataclass(frozen=True)
class Outcome:
    """What one command line left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch, tiny_card):
    """A folder with a picture, and the tiny model."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("osp_cli.config.user_config", lambda: tmp_path / "config.toml")
    monkeypatch.setattr("osp_cli.last_output._place", lambda: tmp_path / "last-output")
    Image.radial_gradient("L").resize((96, 64)).convert("RGB").save(folder / "cat.png")
    return folder


@pytest.fixture
def osp(capsys):
    def run(*args):
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def good(osp):
    """Runs that must end well."""

    def run(*args):
        outcome = osp(*args)
        assert outcome.code == 0, outcome.err
        return outcome

    return run


@pytest.fixture
def latents(monkeypatch):
    """The latents of the chunks that are made, in their order."""
    made = []
    genuine = stream_engine.Maker.__call__

    def watched(maker):
        chunk = genuine(maker)
        if chunk is not None:
            made.append(chunk.latents.clone())
        return chunk

    monkeypatch.setattr(stream_engine.Maker, "__call__", watched)
    return made


def tensors(name="clip"):
    return dict(load_stream(Path(f"{name}.state.safetensors")).tensors)


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def frames(name="clip.mp4"):
    return read_video(name)


def matches(pictures, others):
    """The number of that of the other pictures which each is most like."""
    return [int(np.abs(others - each).mean((1, 2, 3)).argmin()) for each in pictures.astype(float)]


def names(folder=None):
    return {path.name for path in (folder or Path()).iterdir() if not path.name.startswith(".")}


def noise_video(path, num_frames, size=(64, 96)):
    from osp_cli.media.sinks import open_sink

    rng = np.random.default_rng(3)
    picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    rolled = np.stack([np.roll(picture, 2 * shift, axis=1) for shift in range(num_frames)])
    open_sink(path, fps=12, recipe={}, overwrite=True).write(rolled)
    Path(f"{path}.json").unlink()
    return rolled


# A picture, a video, a text


def test_a_picture_goes_on(good, away):
    outcome = good("extend", "cat.png", "pan left", *LIVE, "-t", "2", "-o", "clip.mp4")
    assert (outcome.out, outcome.err) == ("clip.mp4\n", "")
    assert names() == {"cat.png", "clip.mp4", "clip.mp4.json", "clip.state.safetensors"}
    info = probe_video("clip.mp4")
    assert (info.width, info.height, info.fps, info.num_frames) == (96, 64, 12, 24)
    video = frames()
    # It begins with the picture, as the autoencoder shows it, and moves.
    assert video.std() > 5
    assert np.abs(np.diff(video.astype(int), axis=0)).mean() > 0.1
    recipe = read_recipe("clip.mp4")
    assert (recipe["command"], recipe["prompt"], recipe["seed"]) == ("extend", "pan left", 7)
    assert recipe["new_frames"] == recipe["frames"] == 24


@pytest.mark.parametrize("count", [1, 26])
def test_the_length_is_exact(good, count):
    good("extend", "cat.png", "x", *LIVE, "-f", count, "-o", "clip.mkv")
    assert len(frames("clip.mkv")) == count


def test_a_video_goes_on(good):
    noise_video("old.mp4", 21)
    good("extend", "old.mp4", "x", *LIVE, "-t", "1.5", "-o", "clip.mp4")
    old, new = frames("old.mp4").astype(float), frames().astype(float)
    assert len(new) == 21 + 18
    # What was there comes first, coded anew.
    assert matches(new[:21], old) == list(range(21))
    assert min(np.abs(new[20] - each).mean() for each in new[21:]) > 1


def test_a_video_of_another_size_and_rate(good, osp):
    noise_video("old.mp4", 24, size=(80, 150))
    flags = [flag for flag in LIVE if flag != "-q"]
    outcome = good("extend", "old.mp4", "x", *flags, "--fps", "6", "-f", "12", "-o", "clip.mp4")
    info = probe_video("clip.mp4")
    assert (info.width, info.height, info.fps, info.num_frames) == (96, 64, 6, 12 + 12)
    assert "note:" in outcome.err


def test_a_text_becomes_a_stream(good):
    good("extend", "--text", "a red ball", *LIVE, "-f", "14", "-o", "clip.mp4")
    assert len(frames()) == 14


def test_the_same_engine_without_realtime(good):
    flags = [flag for flag in LIVE if flag != "--realtime"]
    good("extend", "cat.png", "x", *flags, "--steps", "2", "--cfg", "3", "-f", 20, "-o", "clip.mp4")
    recipe = read_recipe("clip.mp4")
    assert (len(frames()), recipe["guidance_scale"]) == (20, 3.0)
    assert recipe["num_inference_steps"] == 2


# Again the same


def test_equal_seeds_are_equal_bytes_and_others_are_not(good):
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        good("extend", "cat.png", "x", *LIVE, "--seed", seed, "-f", 20, "-o", f"{name}.mp4")
    videos = [Path(f"{name}.mp4").read_bytes() for name in "abc"]
    assert videos[0] == videos[1] != videos[2]
    assert_equal(tensors("a"), tensors("b"))
    assert not np.array_equal(frames("a.mp4"), frames("c.mp4"))


# One decoder for the whole stream


def test_chunks_decode_as_the_whole_does(good, latents, monkeypatch):
    shown, vaes = [], []
    genuine = stream_engine.Shower.__call__

    def watched(shower, made):
        result = genuine(shower, made)
        shown.append(result.frames)
        vaes.append(shower._vae)
        return result

    monkeypatch.setattr(stream_engine.Shower, "__call__", watched)
    good("extend", "--text", "a ball", *LIVE, "-f", 9 + 2 * CHUNK, "-o", "clip.mp4")
    from osp_cli.models.streaming import StreamingDecoder

    with torch.no_grad():
        whole = StreamingDecoder(vaes[0]).push(torch.cat(latents, 2))
    expected = uint8_frames(whole)[0].cpu().numpy()
    assert [len(each) for each in shown] == [9, CHUNK, CHUNK]
    np.testing.assert_array_equal(np.concatenate(shown), expected)


# A video of ours goes on


def test_a_video_of_ours_goes_on_from_its_latents(good, latents, monkeypatch):
    good("extend", "cat.png", "pan", *LIVE, "-f", 1 + 2 * CHUNK, "-o", "a.mp4")
    end = tensors("a")["stream.history"]
    torch.testing.assert_close(end, latents[-1][:, :, -1:].float(), rtol=0, atol=0)
    latents.clear()
    begun = []
    genuine = stream_engine.Maker.__init__

    def watched(maker, *args, **more):
        genuine(maker, *args, **more)
        begun.append(maker.first[0].history)

    monkeypatch.setattr(stream_engine.Maker, "__init__", watched)
    good("extend", "a.mp4", *LIVE, "-f", CHUNK, "-o", "b.mp4")
    from_latents = latents.pop()
    Path("a.state.safetensors").rename("elsewhere")
    good("extend", "a.mp4", *LIVE, "-f", CHUNK, "-o", "c.mp4")
    from_pictures = latents.pop()
    # The context of its first chunk is what the other stream ended with, to the last bit; that
    # of pictures, coded twice, is something near.
    exact, near = (each[:, :, -1:].float().cpu() for each in begun)
    assert torch.equal(exact, end)
    assert 0 < (near - end).abs().mean() < (end - end.mean()).abs().mean()
    assert not torch.equal(from_latents, from_pictures)
    assert len(frames("b.mp4")) == 1 + 3 * CHUNK
    assert read_recipe("b.mp4")["prompt"] == "pan"


@pytest.mark.parametrize(
    "count", [20, *(pytest.param(count, marks=pytest.mark.slow) for count in (13, 21, 23))]
)
def test_no_picture_is_missing_or_doubled_where_it_goes_on(good, count):
    """Also where the last group of pictures was shown in part: what was made comes first."""
    cut = -(count - 1) % 4
    good("extend", "cat.png", "pan", *LIVE, "-f", count + cut, "-o", "whole.mkv")
    good("extend", "cat.png", "pan", *LIVE, "-f", count, "-o", "a.mkv")
    good("extend", "a.mkv", *LIVE, "-f", CHUNK, "-o", "b.mkv")
    old, new = frames("a.mkv").astype(float), frames("b.mkv").astype(float)
    assert len(new) == count + CHUNK
    assert matches(new[:count], old) == list(range(count))
    whole = frames("whole.mkv").astype(float)
    assert matches(new[: count + cut], whole) == list(range(count + cut))
    assert np.abs(new[: count + cut] - whole).mean() < 5


def test_a_damaged_state_beside_a_video_is_told_and_its_pictures_taken(good):
    good("extend", "cat.png", "pan", *LIVE, "-f", 1 + CHUNK, "-o", "a.mp4")
    state = Path("a.state.safetensors")
    state.write_bytes(state.read_bytes()[:-9])
    flags = [flag for flag in LIVE if flag != "-q"]
    outcome = good("extend", "a.mp4", *flags, "-f", CHUNK, "-o", "b.mp4")
    assert "going on from the video's pictures" in outcome.err.replace("\n", " ")
    assert len(frames("b.mp4")) == 1 + 2 * CHUNK


def test_the_last_output_goes_on(good):
    good("extend", "cat.png", "pan", *LIVE, "-f", 13, "-o", "a.mp4")
    good("extend", *LIVE, "-f", CHUNK, "-o", "b.mp4")
    assert len(frames("b.mp4")) == 13 + CHUNK
    assert read_recipe("b.mp4")["video"] == "a.mp4"


# Taking up


@pytest.mark.parametrize("first", [1 + 2 * CHUNK, pytest.param(1 + CHUNK, marks=pytest.mark.slow)])
def test_more_of_the_same_stream_is_as_if_it_had_never_ended(good, first):
    count = 1 + 4 * CHUNK
    good("extend", "cat.png", "pan", *LIVE, "-f", count, "-o", "whole.mp4", "--anchor-color", "0.5")
    good("extend", "cat.png", "pan", *LIVE, "-f", first, "-o", "clip.mp4", "--anchor-color", "0.5")
    outcome = good("extend", "--resume", "clip.mp4", "-f", count, "--device", "cpu", "-q")
    assert outcome.out == "clip.mp4\n"
    assert_equal(tensors("whole"), tensors("clip"))
    video, whole = frames().astype(float), frames("whole.mp4").astype(float)
    assert len(video) == len(whole) == count
    # Two encoders instead of one: not bit for bit.
    assert np.abs(video - whole).mean() < 2
    assert names() >= {"clip.mp4", "clip.mp4.json"}
    assert not {name for name in names() if "piece" in name or "recording" in name}


def test_a_text_is_taken_up_too(good):
    good("extend", "--text", "ball", *LIVE, "-f", 33, "-o", "whole.mp4")
    good("extend", "--text", "ball", *LIVE, "-f", 9, "-o", "clip.mp4")
    good("extend", "--resume", "clip.state.safetensors", "-f", 33, "--device", "cpu", "-q")
    assert_equal(tensors("whole"), tensors("clip"))


def test_one_that_ended_within_a_group_goes_on_with_the_rest_of_it(good):
    good("extend", "cat.png", "pan", *LIVE, "-f", 18, "-o", "clip.mkv")
    assert load_stream(Path("clip.state.safetensors")).notes["cut"] == 3
    good("extend", "cat.png", "pan", *LIVE, "-f", 21, "-o", "whole.mkv")
    good("extend", "--resume", "clip.mkv", "-f", 33, "--device", "cpu", "-q")
    video, whole = frames("clip.mkv").astype(float), frames("whole.mkv").astype(float)
    assert len(video) == 33
    assert matches(video[:21], whole) == list(range(21))
    good("extend", "--resume", "clip.mkv", "-f", 34, "--device", "cpu", "-q")
    assert len(frames("clip.mkv")) == 34


def test_a_finished_stream_has_nothing_to_add(osp):
    osp("extend", "cat.png", "pan", *LIVE, "-f", 13, "-o", "clip.mp4")
    before = frames()
    outcome = osp("extend", "--resume", "clip.mp4", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "s already and nothing is added" in outcome.err
    np.testing.assert_array_equal(frames(), before)


def test_other_weights_are_another_stream(osp, good, tiny_home, tmp_path, monkeypatch):
    import shutil

    good("extend", "cat.png", "pan", *LIVE, "-f", 13, "-o", "clip.mp4")
    home = tmp_path / "other"
    shutil.copytree(tiny_home, home)
    for file in (home / "models" / "tiny" / "transformer").glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    monkeypatch.setenv("OSP_HOME", str(home))
    outcome = osp("extend", "--resume", "clip.mp4", "-f", 25, "--device", "cpu", "-q")
    assert outcome.code == 2
    assert "the weights of tiny are others" in outcome.err
    assert len(frames()) == 13


def test_a_stream_begun_anew_keeps_no_state_of_the_old_one(good):
    good("extend", "cat.png", "pan", *LIVE, "-f", 1 + 2 * CHUNK, "-o", "clip.mp4")
    good("extend", "cat.png", "rain", *LIVE, "-f", 1 + CHUNK, "-o", "clip.mp4", "-y")
    [state] = states_of(Path("clip.state.safetensors"))
    assert state.recipe["prompt"] == "rain"


# Screenplays


def test_a_screenplay_changes_the_picture_from_its_time_on(good):
    Path("play.txt").write_text("2s: snow falls on a red barn --style ink\n")
    common = ("extend", "cat.png", "rain", *LIVE, "-f", 1 + 4 * CHUNK)
    good(*common, "-o", "plain.mkv")
    good(*common, "-F", "play.txt", "-o", "played.mkv")
    plain, played = frames("plain.mkv").astype(int), frames("played.mkv").astype(int)
    apart = np.abs(plain - played).mean((1, 2, 3))
    # Chunks of a second, the first picture is one of its own.
    assert apart[: 1 + 2 * CHUNK].max() == 0
    assert apart[1 + 2 * CHUNK :].min() > 0.5


def test_the_log_of_a_stream_plays_it_again(good):
    Path("play.txt").write_text("1s: snow --style ink --cutoff 0.3\n3s: --style none\n")
    flags = (*LIVE, "-f", 1 + 4 * CHUNK)
    good("extend", "cat.png", "rain", *flags, "-F", "play.txt", "-o", "first.mkv")
    log = Path("first.screenplay.txt").read_text()
    assert log.startswith("0s: rain")
    good("extend", "cat.png", *flags, "-F", "first.screenplay.txt", "-o", "again.mkv")
    np.testing.assert_array_equal(frames("first.mkv"), frames("again.mkv"))
    assert Path("again.screenplay.txt").read_text().endswith(log)
    assert read_recipe("first.mkv.json")["screenplay"] == log


# What is told


def test_json_lines_are_as_the_schema_says(good):
    import jsonschema

    schema = json.loads(good("schema").out)
    flags = [flag for flag in LIVE if flag != "-q"]
    outcome = good("extend", "cat.png", "rain", *flags, "-f", 30, "--json", "-o", "clip.mp4")
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    for line in lines:
        jsonschema.validate(line, schema)
    recipe = json.loads(Path("clip.mp4.json").read_text())
    jsonschema.validate(recipe, json.loads(good("schema", "recipe").out))
    kinds = [line["type"] for line in lines]
    assert kinds[0] in ("notice", "plan", "planned")
    assert kinds[-2:] == ["saved", "done"]
    chunks = [line for line in lines if line["type"] == "stream"]
    assert [chunk["chunk"] for chunk in chunks] == [1, 2, 3]
    assert [chunk["num_frames"] for chunk in chunks] == [13, 25, 30]
    assert chunks[-1]["video_seconds"] == pytest.approx(2.5)
    assert {chunk["prompt"] for chunk in chunks} == {"rain"}


def test_the_plan_is_shown_and_nothing_made(good):
    outcome = good("extend", "cat.png", "x", *LIVE, "--dry-run")
    assert "tiny" in outcome.out + outcome.err
    assert names() == {"cat.png"}


# Refusals


REFUSALS = {
    "missing file": (("gone.mp4", "x"), "gone.mp4 does not exist"),
    "missing picture": (("gone.png",), "gone.png does not exist"),
    "empty file": (("empty.mp4", "x"), "empty.mp4"),
    "empty picture": (("empty.png", "x"), "empty.png"),
    "text in a picture's name": (("text.png", "x"), "text.png"),
    "text in a video's name": (("text.mp4", "x"), "text.mp4"),
    "folder": (("folder", "x"), "folder is a folder"),
    "unknown sink": (("cat.png", "x", "--sink", "vlc"), "'vlc' is no target"),
    "gpus": (("cat.png", "x", "--gpus", "2"), "--gpus"),
    "morph": (("cat.png", "x", "-s", "ghibli..ink"), "a stream has no end"),
    "json on stdout": (("cat.png", "x", "--json", "-o", "-"), "both want stdout"),
    "existing": (("cat.png", "x", "-o", "there.mp4"), "there.mp4 exists already"),
    "unfinished": (("cat.png", "x", "-o", "cut.mp4"), "cut.recording.mp4 exists already"),
    "no folder": (("cat.png", "x", "-o", "nowhere/x.mp4"), "nowhere"),
    "kind of file": (("cat.png", "x", "-o", "x.gif"), "ends in .mp4 or .mkv"),
    "size": (("cat.png", "x", "--size", "97x64"), "multiples of"),
    "length": (("cat.png", "x", "-t", "-1"), "--seconds must be"),
    "screenplay": (("cat.png", "x", "-F", "gone.txt"), "'gone.txt' cannot be read"),
    "model without a stream": (("cat.png", "x", "--model", "qwen2.5-vl-7b"), "makes no videos"),
    "text for a model without": (("--text", "x", "--model", "osp-mini"), "cannot invent one"),
    "state": (("--resume", "gone.state.safetensors"), "does not exist"),
    "nothing": ((), "nothing to go on from"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(osp, case):
    Path("folder").mkdir()
    for name in ("empty.mp4", "empty.png", "cut.recording.mp4"):
        Path(name).touch()
    for name in ("text.png", "text.mp4", "there.mp4"):
        Path(name).write_text("just a text, long enough to be looked at\n" * 20)
    before = {name: Path(name).stat().st_mtime_ns for name in names()}
    args, why = REFUSALS[case]
    model = () if "--model" in args or "--resume" in args else ("--model", "tiny")
    outcome = osp("extend", *args, *model)
    assert outcome.code == 2, outcome.err
    assert outcome.out == "" or ("--json" in args and json.loads(outcome.out)["exit_code"] == 2)
    assert why in outcome.err.replace("\n", " ")
    assert {name: Path(name).stat().st_mtime_ns for name in names()} == before


def test_refusals_come_before_torch():
    """Nobody waits seconds to be told of a name that is not there."""
    code = (
        "import sys; from osp_cli.cli.app import main\n"
        "assert main(['extend', 'cat.png', 'x', '--sink', 'vlc', '--realtime']) == 2\n"
        "assert main(['extend', 'gone.mp4', 'x']) == 2\n"
        "assert main(['extend', '--resume', 'gone.mp4']) == 2\n"
        "sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error:") == 3


# The model that ships


@pytest.mark.slow
def test_a_photo_goes_on_with_the_model_that_ships(good, tmp_path, monkeypatch):
    """Two chunks: no seam that is worse than what moves, and a third of the same stream."""
    from skimage import data

    monkeypatch.setenv("OSP_HOME", str(tmp_path / "bare"))
    Image.fromarray(data.rocket()[:, :640]).save("rocket.png")
    flags = ("--realtime", "--seed", "3", "--size", "192x128", "--device", "cpu", "-q")
    good("extend", "rocket.png", "the camera pans left", *flags, "-f", "73", "-o", "clip.mp4")
    video = frames().astype(float)
    assert video.shape == (73, 128, 192, 3)
    photo = np.asarray(Image.open("rocket.png").convert("RGB").resize((192, 128))).astype(float)
    assert np.abs(video[0] - photo).mean() < 30
    moved = np.abs(np.diff(video, axis=0)).mean((1, 2, 3))
    # The border of the chunks is between pictures 36 and 37.
    assert moved[36] < 3 * np.median(moved) + 2
    assert video[-1].std() > 20
    good("extend", "--resume", "clip.mp4", "-f", "109", "--device", "cpu", "-q")
    longer = frames().astype(float)
    assert len(longer) == 109
    assert np.abs(longer[:73] - video).mean() < 2
    assert np.abs(longer[72] - longer[73]).mean() < 3 * np.median(moved) + 2
