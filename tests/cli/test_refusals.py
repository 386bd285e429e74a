"""Bad values: one sentence, the right exit code, nothing left behind, the runner never asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

BAD_VALUES = [
    (["--style", "ghilbi"], "unknown style 'ghilbi'"),
    (["--style", "ghilbi:0.5"], "unknown style 'ghilbi'"),
    (["--style", "ink+"], "--style lacks a name before or after a sign, got 'ink+'"),
    (["--style", "ghibli:1.5"], "--style takes a weight above 0 and at most 1 behind the colon"),
    (["--style", "ghibli:0.6+ink:0.5"], "--style takes weights that add up to 1 at most"),
    (["--style", "ghibli:1+ink"], "--style leaves nothing for ink, got 'ghibli:1+ink'"),
    (["--style", "ink+ink"], "--style names ink twice, got 'ink+ink'"),
    (["--style", "all:0.5"], "--style makes one video here, got 'all:0.5'"),
    (["--style", "ink+none"], "--style none stands alone, got 'ink+none'"),
    (["--style", "ghibli.."], "--style lacks a name before or after the dots, got 'ghibli..'"),
    (["--style", "ghibli..oyl"], "unknown style 'oyl'"),
    (["--model", "osp-min"], "unknown model 'osp-min'"),
    (["--cutoff", "1.5"], "--cutoff is a percentile between 0 and 1, got 1.5"),
    (["--cutoff", "-0.1"], "--cutoff is a percentile between 0 and 1, got -0.1"),
    (["--cutoff", "nan"], "--cutoff is a percentile between 0 and 1, got nan"),
    (["--cutoff", "0.1:2"], "--cutoff is a percentile between 0 and 1, got 2"),
    (["--cutoff", "0.05,much"], "--cutoff takes one number between 0 and 1, or START:END"),
    (["--cutoff", "a:b"], "--cutoff takes one number between 0 and 1, or START:END"),
    (["--frames", "0"], "--frames must be at least 1, got 0"),
    (["--frames", "-3"], "--frames must be at least 1, got -3"),
    (["--frames", "ten"], "--frames takes a whole number, got 'ten'"),
    (["--frames", "4.5"], "--frames takes a whole number, got '4.5'"),
    (["--frames", "100000"], "osp-mini makes at most"),
    (["--seconds", "0"], "--seconds must be above 0"),
    (["--seconds", "nan"], "--seconds must be above 0"),
    (["--seconds", "inf"], "--seconds must be above 0"),
    (["--seconds", "2", "--frames", "9"], "--frames and --seconds say the same thing"),
    (["--seconds", "1", "--fps", "0"], "--fps must be 1 to 120, got 0"),
    (["--steps", "0"], "--steps must be 1 to 1000, got 0"),
    (["--steps", "9" * 5000], "--steps takes a whole number"),
    (["--cfg", "nan"], "--cfg must be 0 to 100, got nan"),
    (["--cfg", "inf"], "--cfg must be 0 to 100, got inf"),
    (["--cfg", "strong"], "--cfg takes a number, got 'strong'"),
    (["--shift", "0"], "--shift must be 0.01 to 100, got 0"),
    (["--size", "13x17"], "--size of osp-mini takes multiples of 32, got 13x17"),
    (["--size", "0x0"], "--size must be positive, got 0x0"),
    (["--size", "4096x4096"], "--size 4096x4096 is more than"),
    (["--size", "large"], "--size takes WIDTHxHEIGHT in pixels, got 'large'"),
    (["--width", "448"], "--width needs --height too"),
    (["--size", "448x256", "--width", "448"], "--size and --width/--height say the same thing"),
    (["--seconds", "1", "--fps", "9" * 25], "--fps must be 1 to 120"),
    (["--frames", "9" * 25], "osp-mini makes at most 49 frames"),
    (["--frames", "9" * 400], "--frames takes at most 30 digits"),
    (["--seed", "abc"], "--seed takes whole numbers, a range or random, got 'abc'"),
    (["--seed", "4-1"], "--seed 4-1 counts backwards"),
    (["--seed", "1-3,2"], "--seed 1-3,2 names a seed twice"),
    (["--seed", "0-99999"], "--seed 0-99999 asks for more than 10000 videos"),
    (["--seed", "1-4", "--count", "3"], "--seed names 4 videos, --count asks for 3"),
    (["--seed", "1-4", "-o", "a.mp4"], "4 videos cannot all be a.mp4"),
    (["--seed", "1-4", "-o", "-"], "--output - takes one video, got 4"),
    (["--count", "0"], "--count must be 1 to 10000, got 0"),
    (["--cache", "turbo"], "unknown cache 'turbo'"),
    (["--cache", "none:1"], "--cache none has no threshold"),
    (["--cache", "fbcache:x"], "--cache takes a number after the colon, got 'fbcache:x'"),
    (["--cache", "fbcache:0"], "the threshold of --cache must be above 0"),
    (["--cache", "teacache"], "TeaCache "),
    (["--cache-start", "-1"], "--cache-start must be 0 to 1000, got -1"),
    (["--sampler", "magic"], "unknown sampler 'magic'"),
    (["--preview", "film"], "unknown preview 'film'"),
    (["--preview", "contact", "--pick", "3"], "--preview contact makes a sheet, --pick finishes"),
    (["--preview", "latent", "-o", "-"], "--preview needs a file beside which to lie"),
    (["--pick", "9", "--seed", "1-4"], "--pick 9 is not one of --seed 1,2,3,4"),
    (["--pick", "-1"], "--seed must be 0 to"),
    (["--from", "none.mp4"], "none.mp4 does not exist"),
    (["--from", "cat.png"], "cat.png "),
    (["--from-file", "none.txt"], "none.txt cannot be read: No such file"),
    (["--from-file", "cat.png"], "cat.png is not UTF-8 text"),
    (["--from", "a.mp4", "--from-file", "a.txt"], "--from and --from-file exclude each other"),
    (["--pick", "3", "--from-file", "a.txt"], "--pick finishes one video, --from-file may hold"),
    (["--print-config", "--from-file", "a.txt"], "--print-config shows one set of settings"),
    (["--config", "none.toml"], "--config none.toml is no file"),
    (["--config", "n" * 300], "--config nnn"),
    (["--config", "cat.png"], "cat.png is not UTF-8 text"),
    (["--seed", "-1"], "--seed must be 0 to"),
    (["--device", "tpu"], "unknown device 'tpu'"),
    (["--dtype", "int4"], "unknown dtype 'int4'"),
    (["--output", "out.mov"], "--output must end in .mp4, .gif, .webp or /%04d.png, but 'out.mov'"),
    (["--output", "out"], "--output must end in .mp4, .gif, .webp or /%04d.png, but 'out' has no"),
    (["--output", "out.png"], "a video is many pictures: 'out.png' must name a folder and number"),
    (["--output", "frames/%d-%d.png"], "frames/%d-%d.png does not number its frames"),
    (["--output", "a.gif", "--fps", "60"], "a GIF shows at most 50 frames a second"),
    (["--output", ""], "--output must end in .mp4"),
    (["--output", "{what}.mp4"], "--output knows no field {what}"),
    (["--output", "no/where.mp4"], "the folder no does not exist"),
    (["--output", "a" * 300 + ".mp4"], "the output's name is longer than"),
    (["--quiet", "--verbose"], "--quiet and --verbose exclude each other"),
    (["--text", "clouds"], "--text and PROMPT say the same thing"),
    (["--stile", "ink"], "no such option: --stile"),
    (["another"], "got unexpected extra argument"),
    (["--steps"], "option '--steps' requires an argument"),
]


def assert_refused(outcome, sentence: str, code: int = 2) -> None:
    assert outcome.code == code
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert lines[0].startswith(f"error: {sentence}")
    assert len(lines) <= 2
    assert all(line.startswith("hint: ") for line in lines[1:])


@pytest.mark.parametrize(("args", "sentence"), BAD_VALUES)
def test_bad_value(osp, away, picture, requests, args, sentence):
    assert_refused(osp("generate", "cat.png", "x", *args), sentence)
    assert [path.name for path in away.iterdir()] == ["cat.png"]
    assert requests == []


def test_nearest_names_are_offered(osp, picture):
    assert "did you mean ghibli" in osp("generate", "cat.png", "-s", "ghilbi").err
    assert "did you mean 3d-rendering?" in osp("generate", "cat.png", "-s", "3d").err
    assert "did you mean osp-mini or osp-mini-live?" in osp("generate", "cat.png", "-m", "mini").err
    assert "did you mean" not in osp("generate", "cat.png", "-s", "anime").err
    assert "watercolor" in osp("generate", "cat.png", "-s", "anime").err


def make_missing(path: Path) -> None:
    assert not path.exists()


def make_folder(path: Path) -> None:
    path.mkdir()


def make_empty(path: Path) -> None:
    path.touch()


def make_text(path: Path) -> None:
    path.write_text("this is no picture")


def make_truncated_jpeg(path: Path) -> None:
    Image.effect_noise((256, 256), 80).save(path, "JPEG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def make_huge(path: Path) -> None:
    Image.new("1", (20000, 20000)).save(path, "PNG")


@pytest.mark.parametrize(
    "make",
    [make_missing, make_folder, make_empty, make_text, make_truncated_jpeg, make_huge],
    ids=lambda make: make.__name__,
)
def test_bad_picture(osp, away, requests, make):
    path = away / "bad.png"
    make(path)
    before = sorted(away.iterdir())
    assert_refused(osp("generate", "bad.png", "x"), "bad.png ")
    assert sorted(away.iterdir()) == before
    assert requests == []


def test_no_picture_at_all(osp):
    assert_refused(osp("generate"), "a picture is missing")


def test_picture_and_text(osp, picture):
    assert_refused(
        osp("generate", "cat.png", "--text", "clouds"),
        "--text makes a video without a picture, but 'cat.png' was given too",
    )


def test_empty_text(osp):
    assert_refused(osp("generate", "--text", " "), "--text needs a prompt")


def test_text_alone_for_a_model_that_needs_a_picture(osp):
    assert_refused(
        osp("generate", "--text", "clouds"),
        "osp-mini moves pictures, it cannot invent one: give it a picture",
    )


def test_unknown_command(osp):
    assert_refused(osp("generat"), "no such command 'generat'. Did you mean 'generate'?")


@pytest.mark.parametrize("model", ["flashi2v-1.3b", "uniworld-osp2-14b"])
def test_weights_that_are_not_installed(osp, away, tmp_path, picture, model):
    outcome = osp("generate", "cat.png", "x", "-m", model)
    assert_refused(outcome, f"the weights of {model} are not installed", code=3)
    assert str(tmp_path / "home" / "models" / model) in outcome.err
    assert [path.name for path in away.iterdir()] == ["cat.png"]


def test_control_characters_are_not_obeyed(osp, picture):
    outcome = osp("generate", "cat.png", "-s", "\x1b[31mred")
    assert outcome.code == 2
    assert "\x1b" not in outcome.err


@pytest.mark.parametrize("flag", ["--config", "--from", "--from-file", "-o", "-m", "--size"])
def test_control_characters_of_names_are_spelled_out(osp, picture, flag):
    outcome = osp("generate", "cat.png", flag, "\x1b[2J\r\x9b.")
    assert outcome.code == 2
    assert not {*"\x1b\r\x9b"} & {*outcome.err}
    assert "\\x1b[2J" in outcome.err
