"""`osp stylize` up to the runner: inputs, the paper's set-up, sheets, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osp_cli.cli.intake import Asked, Call, gather
from osp_cli.dials import Seeds, StepCacheChoice
from osp_cli.errors import InterruptedRunError, WontFitError
from osp_cli.events import Done, Event, Saved
from osp_cli.media.image import load_image
from osp_cli.media.recipes import read_recipe
from osp_cli.media.video import probe_video, read_video, write_video
from osp_cli.registry import style_presets
from osp_cli.requests import GenerateRequest

GREY = np.full((3, 32, 48, 3), 128, np.uint8)


def filmed(request: GenerateRequest) -> Iterator[Event]:
    """A run that leaves a true video, grey as its seed."""
    request.output.parent.mkdir(exist_ok=True)
    write_video(GREY // 128 * (20 * request.seed % 256), request.output, comment="{}")
    yield Saved(request.output, request.output.stat().st_size)
    yield Done(1.0, {})


@pytest.fixture
def films(play):
    """The requests that reach the runner, which makes tiny videos."""
    return play(filmed)


def test_the_papers_set_up_is_where_everything_begins(osp, picture, requests):
    assert osp("stylize", "cat.png", "-s", "ink", "-m", "uniworld-osp2-14b").code == 0
    [request] = requests
    assert request.command == "stylize"
    assert (request.sampler, request.shift) == ("unipc", 3.0)
    assert (request.cache, request.cache_start) == (StepCacheChoice("teacache", 0.1), 5)
    assert (request.num_frames, request.fps) == (49, 16)
    assert request.sizes[0] == (672, 384)
    assert request.full_prompt == request.mix.strongest.prompt_for(request.spec, "")


def test_the_card_overrides_what_makes_no_sense_for_it(osp, picture, requests):
    assert osp("stylize", "cat.png", "-s", "ink").code == 0
    [request] = requests
    assert request.cache.kind == "magcache"
    assert request.num_inference_steps == 8
    assert request.sizes == request.spec.sizes


def test_a_cache_that_cannot_run_is_left_out_and_told(osp, picture, requests, monkeypatch):
    import dataclasses

    from osp_cli import registry

    specs = registry.model_specs()
    bare = dataclasses.replace(specs["flashi2v-1.3b"], teacache=None)
    monkeypatch.setattr(registry, "model_specs", lambda: {**specs, "flashi2v-1.3b": bare})
    outcome = osp("stylize", "cat.png", "-s", "ink", "-m", "flashi2v-1.3b")
    assert outcome.code == 0
    assert "no step cache: TeaCache needs coefficients" in outcome.err
    assert requests[0].cache.kind == "none"


def test_generate_keeps_its_own_set_up(osp, picture, requests):
    assert osp("generate", "cat.png", "-s", "ink", "-m", "flashi2v-1.3b").code == 0
    assert (requests[0].command, requests[0].sampler) == ("generate", "euler")


def test_a_style_is_asked_for(osp, picture, requests):
    outcome = osp("stylize", "cat.png", "it snows")
    assert outcome.code == 2
    assert outcome.err.startswith("error: a style is missing\n")
    assert osp("stylize", "cat.png", "it snows", "--style", "none").code == 0
    assert requests[0].style is None


def test_styles_of_files_count(osp, picture, requests):
    Path("osp.toml").write_text("[stylize]\nstyle = 'oil'\n[generate]\nstyle = 'lego'\n")
    assert osp("stylize", "cat.png").code == 0
    assert requests[0].style == "oil"


def test_several_pictures_share_prompt_and_seed(osp, picture, requests):
    Image.open("cat.png").save("dog.png")
    assert osp("stylize", "cat.png", "dog.png", "it snows", "-s", "ink").code == 0
    assert [request.image.name for request in requests] == ["cat.png", "dog.png"]
    assert {request.prompt for request in requests} == {"it snows"}
    assert len({request.seed for request in requests}) == 1


def test_a_folder_is_what_is_in_it_less_what_osp_made(osp, picture, requests):
    folder = Path("photos")
    folder.mkdir()
    for name in ("b.png", "a.png", ".hidden.png"):
        Image.open("cat.png").save(folder / name)
    (folder / "notes.txt").write_text("x")
    write_video(GREY, folder / "made.mp4")
    (folder / "made.mp4.json").write_text("{}")
    outcome = osp("stylize", "photos", "-s", "ink", "-o", "out/")
    assert outcome.code == 0
    assert [request.image.name for request in requests] == ["a.png", "b.png"]
    assert "left out of photos: 1 that osp made" in outcome.err
    assert all(line.startswith("out/") for line in outcome.out.splitlines())


def test_a_name_that_is_none_is_missed_and_the_others_are_made(osp, picture, requests):
    outcome = osp("stylize", "cat.png", "dgo.png", "it snows", "-s", "ink")
    assert outcome.code == 6
    assert "dgo.png does not exist" in outcome.err
    assert len(outcome.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("nothere.png", "it snows"), "nothere.png does not exist"),
        (("empty",), "empty holds no pictures or videos"),
        (("-", "cat.png"), "- reads one picture from stdin and stands alone"),
        (("cat.png", "other/cat.png"), "would both become"),
        (("cat.png", "--strength", "0.5"), "--strength is for videos, and cat.png is none"),
        (("cat.png", "--style", "inc"), "unknown style 'inc'"),
        (("cat.png", "--style", "ink,"), "--style lacks a name before or after a comma"),
        (("cat.png", "--style", "ink,INK"), "--style names ink twice"),
        (("cat.png", "--style", "ink,oil", "-o", "-"), "--output - takes one video"),
        (("cat.png", "--style", "ink,oil", "-o", "a/%04d.png"), "--output of a sheet must end in"),
        (("cat.png", "--style", "ink,oil", "-o", "a.mov"), "--output of a sheet must end in"),
        (("cat.png", "--cutoff", "0.1,2"), "--cutoff is a percentile"),
        (("cat.png", "--cutoff", "0.1,0.1"), "names a cutoff twice"),
        (("cat.png", "--seed", "1-500"), "a sheet holds at most 200 videos"),
        (
            ("cat.png", "--seed", "1-2", "--cutoff", "0,1", "--style", "ink,oil"),
            "a sheet compares one thing or two",
        ),
        (("cat.png", "--style", "ink,oil", "--preview", "contact"), "--preview contact makes"),
    ],
)
def test_refused_in_a_sentence(osp, picture, requests, args, sentence):
    Path("empty").mkdir()
    Path("other").mkdir()
    Image.open("cat.png").save("other/cat.png")
    more = () if "--style" in args else ("-s", "ink")
    outcome = osp("stylize", *args, *more)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert outcome.out == ""
    assert not requests


def test_all_styles_make_a_grid_beside_the_picture(osp, picture, films):
    outcome = osp("stylize", "cat.png", "-s", "all", "--seed", "3")
    assert outcome.code == 0
    assert [request.style for request in films] == [*style_presets()]
    assert {request.seed for request in films} == {3}
    *clips, grid = outcome.out.splitlines()
    assert clips == [f"cat-all-3/{name}.mp4" for name in style_presets()]
    assert grid == "cat-all-3.mp4"
    recipe = read_recipe("cat-all-3.mp4")
    assert recipe["columns"] == [*style_presets()]
    # A cell for the picture too: five columns of three rows of 3:2 pictures.
    info = probe_video("cat-all-3.mp4")
    assert info.num_frames == 3
    assert 1.5 < info.width / info.height < 3
    refused = osp("generate", "--from", "cat-all-3.mp4")
    assert "cat-all-3.mp4 is a sheet of several videos" in refused.err


def test_two_dials_make_a_table(osp, picture, films):
    outcome = osp("stylize", "cat.png", "-s", "ink,oil", "--cutoff", "0.1,0.2:0.5", "--seed", "1")
    assert outcome.code == 0
    assert [(request.style, request.cutoff) for request in films] == [
        ("ink", (0.1, 0.1)),
        ("ink", (0.2, 0.5)),
        ("oil", (0.1, 0.1)),
        ("oil", (0.2, 0.5)),
    ]
    recipe = read_recipe(outcome.out.splitlines()[-1])
    assert (recipe["rows"], recipe["columns"]) == (["ink", "oil"], ["cutoff 0.1", "cutoff 0.2:0.5"])
    assert len(set(outcome.out.splitlines())) == 5


def test_each_cell_shows_its_own_video(osp, picture, films):
    assert osp("stylize", "cat.png", "-s", "ink", "--seed", "2,9", "-o", "s.mp4").code == 0
    page = read_video("s.mp4")[0].astype(int)
    height, width = page.shape[:2]
    row = page[height // 3, :, 0]
    left, right = np.median(row[: width // 2]), np.median(row[width // 2 :])
    assert (left, right) == pytest.approx((40, 180), abs=6)


def test_a_still_sheet(osp, picture, films):
    outcome = osp("stylize", "cat.png", "-s", "ink,oil", "--seed", "1", "-o", "page.png")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == "page.png"
    assert Image.open("page.png").width > 600


def test_seeds_are_a_sheet_here_and_only_videos_in_generate(osp, picture, films):
    assert osp("stylize", "cat.png", "-s", "ink", "--seed", "1-3").out.splitlines() == [
        *(f"cat-ink-1-3/seed-{seed}.mp4" for seed in (1, 2, 3)),
        "cat-ink-1-3.mp4",
    ]
    assert osp("generate", "cat.png", "-s", "ink", "--seed", "1-3").out.splitlines() == [
        f"cat-ink-{seed}.mp4" for seed in (1, 2, 3)
    ]
    assert osp("generate", "cat.png", "--cutoff", "0,0.5", "--seed", "1").out.splitlines() == [
        "cat-1-cutoffs/cutoff-0.mp4",
        "cat-1-cutoffs/cutoff-0.5.mp4",
        "cat-1-cutoffs.mp4",
    ]


def test_a_random_seed_is_drawn_once_for_a_sheet(osp, picture, films):
    assert osp("stylize", "cat.png", "-s", "ink,oil").code == 0
    assert len({request.seed for request in films}) == 1


def test_what_fails_leaves_the_others_and_no_sheet(osp, picture, play):
    def fails_on_oil(request: GenerateRequest) -> Iterator[Event]:
        if request.style == "oil":
            raise WontFitError("no memory is left")
        yield from filmed(request)

    play(fails_on_oil)
    outcome = osp("stylize", "cat.png", "-s", "ink,oil", "--seed", "1")
    assert outcome.code == 6
    assert outcome.out.splitlines() == ["cat-ink-vs-oil-1/ink.mp4"]
    assert "no cat-ink-vs-oil-1.mp4 yet: 1 of its 2 videos are in cat-ink-vs-oil-1" in outcome.err
    assert not Path("cat-ink-vs-oil-1.mp4").exists()


def test_an_existing_sheet_is_refused_before_anything_is_made(osp, picture, films):
    Path("cat-ink-vs-oil-1.mp4").write_bytes(b"mine")
    outcome = osp("stylize", "cat.png", "-s", "ink,oil", "--seed", "1")
    assert outcome.code == 2
    assert "cat-ink-vs-oil-1.mp4 exists already" in outcome.err
    assert not films
    assert osp("stylize", "cat.png", "-s", "ink,oil", "--seed", "1", "-y").code == 0


def test_the_settings_show_the_seed_and_the_style_of_a_sheet(osp, picture, requests):
    outcome = osp("stylize", "cat.png", "-s", "ink", "--print-config", "--json")
    told = json.loads(outcome.out)
    assert told["sampler"] == {"value": "unipc", "origin": "paper"}
    assert told["style"] == {"value": "ink", "origin": "flag"}


def test_a_recipe_is_made_again_by_whichever_command(osp, picture, requests):
    from osp_cli.media.sinks import canonical_json

    made = GenerateRequest(command="stylize", image=Path("cat.png"), style="ink", seed=5)
    recipe = {**made.recipe(), "width": 448, "height": 256, "dtype": "float32"}
    Path("old.json").write_text(canonical_json({**recipe, "image_sha256": None}))
    for command in ("generate", "stylize"):
        assert osp(command, "--from", "old.json", "-o", f"{command}.mp4").code == 0
    assert [request.command for request in requests] == ["stylize", "stylize"]
    assert requests[0].recipe() == requests[1].recipe()


def test_an_interrupted_sheet_without_a_seed_is_taken_up_again(osp, picture, play):
    def stops_at_oil(request: GenerateRequest) -> Iterator[Event]:
        if request.style == "oil":
            raise InterruptedRunError("interrupted")
        yield from with_recipe(request)

    play(stops_at_oil)
    for output in ((), ("-o", "mine.mp4")):
        outcome = osp("stylize", "cat.png", "-s", "ink,oil", *output)
        assert outcome.code == 130
        told = re.search(r"the same command with --seed (\d+) makes the others", outcome.err)
        assert told
    again = play(with_recipe)
    for output in ((), ("-o", "mine.mp4")):
        outcome = osp("stylize", "cat.png", "-s", "ink,oil", *output)
        assert outcome.code == 0, outcome.err
        # What was there is not made again.
        assert [request.style for request in again] == ["oil"]
        again.clear()
    # What is whole is no beginning.
    assert osp("stylize", "cat.png", "-s", "ink,oil").code == 0
    assert len(again) == 2


def test_a_sheet_of_another_picture_of_that_name_is_not_taken_up(osp, picture, play):
    def stops_at_oil(request: GenerateRequest) -> Iterator[Event]:
        if request.style == "oil":
            raise InterruptedRunError("interrupted")
        yield from with_recipe(request)

    play(stops_at_oil)
    assert osp("stylize", "cat.png", "-s", "ink,oil").code == 130
    Image.new("RGB", (64, 48), "green").save("cat.png")
    again = play(with_recipe)
    assert osp("stylize", "cat.png", "-s", "ink,oil").code == 0
    assert [request.style for request in again] == ["ink", "oil"]


def with_recipe(request: GenerateRequest) -> Iterator[Event]:
    """As `filmed`, with the recipe in the video."""
    digest = load_image(request.image).sha256
    settled = {"width": 48, "height": 32, "dtype": "float32", "image_sha256": digest}
    recipe = {**request.recipe(), **settled}
    request.output.parent.mkdir(exist_ok=True)
    write_video(GREY, request.output, comment=json.dumps(recipe))
    Path(f"{request.output}.json").write_text(json.dumps(recipe))
    yield Saved(request.output, request.output.stat().st_size)
    yield Done(1.0, {})


def test_a_plan_of_nothing_but_the_sheet(osp, picture, play):
    play(with_recipe)
    assert osp("stylize", "cat.png", "-s", "ink,oil", "--seed", "1").code == 0
    Path("cat-ink-vs-oil-1.mp4").unlink()
    Path("cat-ink-vs-oil-1.mp4.json").unlink()
    outcome = osp("stylize", "cat.png", "-s", "ink,oil", "--seed", "1", "--dry-run")
    assert outcome.code == 0
    assert outcome.out == "sheet     cat-ink-vs-oil-1.mp4, of 2 videos, 2 of them there already\n"


def asked(*inputs: str, prompt: str | None = None, **flags) -> Asked:
    """What a command line asks for."""
    return gather(
        Call(
            command="stylize",
            image=inputs[0],
            inputs=inputs,
            prompt=prompt,
            flags={"style": "ink", "seed": Seeds([1]), **flags},
            overwrite=False,
            recipe_file=None,
            batch_file=None,
            pick=None,
            stored=[],
        )
    )


def test_a_picture_and_a_video_of_one_name_are_told_apart(picture):
    Path("cat.png").rename("IMG_1.PNG")
    write_video(GREY, "IMG_1.MOV")
    outputs = [str(request.output) for request in asked("IMG_1.MOV", "IMG_1.PNG").requests]
    assert outputs == ["IMG_1-MOV-ink-1.mp4", "IMG_1-PNG-ink-1.mp4"]
    assert [str(r.output) for r in asked("IMG_1.MOV").requests] == ["IMG_1-ink-1.mp4"]


def test_words_without_quotes_are_told(osp, picture, requests):
    outcome = osp("stylize", "cat.png", "zoom", "in", "-s", "ink")
    assert outcome.code == 2
    assert 'put quotes around a prompt: osp stylize cat.png "zoom in"' in outcome.err


def test_what_says_nothing_to_a_model_that_paints_frame_by_frame(away):
    write_video(GREY, "film.mp4")
    told = asked("film.mp4", prompt="zoom", num_inference_steps=9).notices
    assert told == (
        "osp-mini paints each frame in one step, without regard to --steps",
        "osp-mini takes the motion from the video: words of motion change nothing",
    )
    assert asked("film.mp4").notices == ()
    assert asked("film.mp4", prompt="zoom", model="flashi2v-1.3b").notices == ()


def test_a_folder_of_sheets_is_made(osp, picture, films):
    assert osp("stylize", "cat.png", "-s", "ink,oil", "--seed", "1", "-o", "new/").code == 0
    assert Path("new/cat-ink-vs-oil-1.mp4").exists()
