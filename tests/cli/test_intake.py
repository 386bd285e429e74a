"""What a command line asks for: pipes, recipes made again, latents finished, files of jobs."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osp_cli.cli import console
from osp_cli.cli.intake import Asked, Call, gather
from osp_cli.config import Layer
from osp_cli.dials import Seeds, Size
from osp_cli.errors import InvalidRequestError
from osp_cli.media.sinks import open_sink
from osp_cli.requests import GenerateRequest
from osp_cli.settings import Source, settle_generate

NO_FLAGS = dict.fromkeys(
    [
        *("style", "negative_prompt", "output", "size", "width", "height", "num_frames"),
        *("seconds", "fps", "num_inference_steps", "guidance_scale", "shift", "sampler"),
        *("cutoff", "seed", "count", "cache", "cache_start", "preview", "metadata", "model"),
        *("device", "dtype", "loras"),
    ]
)
NOTHING = Call(
    image=None,
    prompt=None,
    text=None,
    flags=NO_FLAGS,
    overwrite=False,
    recipe_file=None,
    batch_file=None,
    pick=None,
    stored=(),
)


def call(*, flags=None, **changes) -> Call:
    return replace(NOTHING, flags={**NO_FLAGS, **(flags or {})}, **changes)


def asked(**changes) -> Asked:
    return gather(call(**changes))


def request(**changes) -> GenerateRequest:
    [item] = asked(**changes).requests
    return item


def refusal(**changes) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        asked(**changes)
    return caught.value.message


# Pipes


def test_a_picture_through_a_pipe(piped):
    piped(b"bytes")
    made = request(image="-", prompt="x", flags={"seed": Seeds([3])})
    assert (made.image, made.image_data) == (Path("-"), b"bytes")
    assert made.output == Path("stdin-3.mp4")


@pytest.mark.parametrize("data", [b"snow\n", b"\xef\xbb\xbf snow \r\n"])
def test_a_prompt_through_a_pipe(piped, data):
    piped(data)
    assert request(image="cat.png", prompt="-").prompt == "snow"
    piped(data)
    made = request(text="-", flags={"model": "flashi2v-1.3b"})
    assert (made.prompt, made.text_only) == ("snow", True)


def test_a_dash_in_a_file_is_only_a_dash(piped):
    piped(b"never read")
    assert request(image="cat.png", stored=[Layer("osp.toml", {"prompt": "-"})]).prompt == "-"


@pytest.mark.parametrize(
    ("readers", "names"),
    [
        ({"image": "-", "prompt": "-"}, "IMAGE and PROMPT"),
        ({"image": "-", "batch_file": "-"}, "IMAGE and --from-file"),
        ({"text": "-", "batch_file": "-"}, "--text and --from-file"),
        ({"image": "-", "prompt": "-", "text": "-"}, "IMAGE and PROMPT and --text"),
    ],
)
def test_one_pipe_has_one_reader(readers, names):
    assert refusal(**readers) == f"{names} cannot both be read from stdin"


@pytest.mark.parametrize(
    ("reader", "what"),
    [
        ({"image": "cat.png", "prompt": "-"}, "the prompt"),
        ({"image": "cat.png", "batch_file": "-"}, "the list of jobs"),
    ],
)
def test_a_pipe_without_text(piped, reader, what):
    piped(b"\xff\xfe")
    assert refusal(**reader) == f"{what} on stdin is not UTF-8 text"


@pytest.mark.parametrize("reader", [{"image": "-"}, {"text": "-"}, {"batch_file": "-"}])
def test_no_pipe_at_all(piped, monkeypatch, reader):
    piped(b"typed")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert refusal(**reader) == "- reads from stdin, which is a terminal here"
    monkeypatch.setattr("sys.stdin", None)
    assert refusal(**reader).startswith("- reads from stdin")


def test_a_pipe_has_an_end(piped, monkeypatch):
    monkeypatch.setattr("osp_cli.cli.intake._MAX_STDIN_BYTES", 3)
    piped(b"123")
    assert request(image="-").image_data == b"123"
    piped(b"1234")
    assert refusal(image="-").startswith("stdin holds more than")


# Recipes


@pytest.fixture
def recipe(picture) -> dict:
    """The recipe of a clip of `cat.png`."""
    return settle_generate(
        Source(image=Path("cat.png")),
        prompt="it snows",
        style="ink",
        size=Size(448, 256),
        seed=Seeds([5]),
        num_inference_steps=3,
    ).request.recipe()


@pytest.fixture
def keep(away):
    """Write a recipe as a sidecar and give its path."""

    def write(recipe, path="old.mp4.json"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(json.dumps(recipe))
        return path

    return write


def test_a_recipe_is_made_again(recipe, keep):
    path = keep(recipe)
    made = request(recipe_file=path)
    assert made.recipe() == recipe
    assert made.image == Path("cat.png")
    assert (made.replayed, made.replayed_from) == (recipe, path)
    # It keeps no place: the clip goes where clips go.
    assert made.output == Path("cat-ink-5.mp4")


def test_flags_beat_the_recipe_and_it_beats_the_stored(recipe, keep):
    stored = [Layer("osp.toml", {"style": "oil", "fps": 8, "output": "x.gif", "count": 3})]
    made = request(
        recipe_file=keep(recipe), prompt="it rains", flags={"seconds": 0.5}, stored=stored
    )
    assert (made.prompt, made.num_frames, made.style, made.fps) == ("it rains", 9, "ink", 16)
    assert made.output == Path("x.gif")
    seeds = [item.seed for item in asked(recipe_file=keep(recipe), pick=9).requests]
    assert seeds == [9]
    several = asked(recipe_file=keep(recipe), flags={"seed": Seeds([1, 2, 3])})
    assert [item.seed for item in several.requests] == [1, 2, 3]
    counted = asked(recipe_file=keep(recipe), flags={"count": 2})
    assert [item.seed for item in counted.requests] == [5, 6]


def test_another_picture_beats_that_of_the_recipe(recipe, keep):
    assert request(recipe_file=keep(recipe), image="dog.png").image == Path("dog.png")


def test_the_picture_is_looked_for_beside_the_recipe_and_here(recipe, keep, picture):
    path = keep(recipe, "clips/old.mp4.json")
    assert request(recipe_file=path).image == Path("cat.png")
    picture.rename("clips/cat.png")
    assert request(recipe_file=path).image == Path("clips/cat.png")
    Path("clips/cat.png").unlink()
    assert refusal(recipe_file=path) == (
        f"the picture 'cat.png' of {path} is neither beside it nor here"
    )


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "./../secret.png",
        "{outside}",
        "clips/../../secret.png",
        "..",
        ".",
        "",
        "/",
        "a" * 5000,
        "a\0b",
        "\ud800",
        "-",
    ],
)
def test_a_recipe_names_a_file_and_no_path(recipe, keep, tmp_path, name):
    outside = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(outside)
    name = name.replace("{outside}", str(outside))
    assert "neither beside it nor here" in refusal(recipe_file=keep({**recipe, "image": name}))


def test_a_picture_that_came_through_a_pipe_is_needed_again(recipe, keep, piped):
    path = keep({**recipe, "image": "stdin"})
    assert "came through stdin and is needed again" in refusal(recipe_file=path)
    piped(b"bytes")
    assert request(recipe_file=path, image="-").image_data == b"bytes"


@pytest.fixture
def text_recipe(keep):
    """The sidecar of a clip made of text."""
    return keep(
        settle_generate(
            Source(text="a lake"), model="flashi2v-1.3b", size=Size(832, 480), seed=Seeds([5])
        ).request.recipe()
    )


def test_a_clip_of_text_is_made_again(text_recipe):
    made = request(recipe_file=text_recipe)
    assert (made.text_only, made.prompt, made.image) == (True, "a lake", None)
    assert request(recipe_file=text_recipe, text="a hill").prompt == "a hill"
    assert request(recipe_file=text_recipe, prompt="a hill").prompt == "a hill"
    with_picture = request(recipe_file=text_recipe, image="cat.png")
    assert (with_picture.text_only, with_picture.prompt) == (False, "a lake")


def test_text_instead_of_the_picture_of_a_recipe(recipe, keep):
    made = request(recipe_file=keep({**recipe, "model": "flashi2v-1.3b"}), text="a hill",
                   flags={"size": Size(832, 480)})  # fmt: skip
    assert (made.text_only, made.image, made.prompt) == (True, None, "a hill")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}", "old.mp4.json was not made by osp generate"),
        ("[]", "old.mp4.json is no recipe: it holds no JSON object"),
        ("{", "old.mp4.json is no recipe: it holds no JSON object"),
        ('{"command": "generate"}', "the recipe in old.mp4.json is damaged: "),
    ],
)
def test_files_that_are_no_recipe(away, text, sentence):
    Path("old.mp4.json").write_text(text)
    assert refusal(recipe_file="old.mp4.json").startswith(sentence)


def test_a_folder_without_a_recipe(away):
    Path("frames").mkdir()
    assert refusal(recipe_file="frames") == "frames holds no recipe"


# Latents


@pytest.fixture
def latents(recipe) -> str:
    """A file with the head of latents; nothing here reads further."""
    head = json.dumps({"__metadata__": {"recipe": json.dumps(recipe)}}).encode()
    path = Path("old.latents.safetensors")
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    return str(path)


def test_latents_are_finished_as_they_were_begun(latents, recipe):
    stored = [Layer("osp.toml", {"style": "oil", "num_frames": 9, "metadata": False, "fps": 8})]
    made = request(recipe_file=latents, stored=stored)
    assert made.latents == Path(latents)
    assert made.output == Path("old.mp4")
    assert made.metadata is False
    assert {**made.recipe(), "image": "cat.png"} == recipe


def test_latents_leave_the_dials_of_the_file(latents):
    flags = {"output": "a.gif", "fps": 8, "metadata": False, "device": "cpu", "preview": "none"}
    made = request(recipe_file=latents, flags=flags)
    assert (made.output, made.fps, made.metadata) == (Path("a.gif"), 8, False)


OF_THE_FILE = {"output", "fps", "metadata", "device", "preview"}


@pytest.mark.parametrize("field", sorted(NO_FLAGS.keys() - OF_THE_FILE))
def test_other_dials_come_too_late_for_latents(latents, field):
    message = refusal(recipe_file=latents, flags={field: 1})
    assert message.startswith("--")
    assert message.endswith("cannot change latents that were sampled already")


def test_inputs_come_too_late_for_latents(latents):
    assert refusal(recipe_file=latents, image="cat.png", prompt="x", pick=3) == (
        "IMAGE, PROMPT, --pick cannot change latents that were sampled already"
    )


# Files of jobs


def batch(lines: str, name: str = "jobs.txt", /, **changes) -> Asked:
    Path(name).write_text(lines)
    return asked(batch_file=name, **{"image": "cat.png", **changes})


def test_a_line_beats_the_flags_and_they_the_stored(away):
    made = batch(
        "a\nb --style oil --steps 5\n",
        flags={"style": "ink", "seed": Seeds([7])},
        stored=[Layer("osp.toml", {"style": "cyberpunk", "fps": 8})],
        prompt="c",
    )
    assert [(item.prompt, item.style, item.fps, item.seed) for item in made.requests] == [
        ("a", "ink", 8, 7),
        ("b", "oil", 8, 7),
    ]
    assert [str(item.output) for item in made.requests] == ["cat-1-ink-7.mp4", "cat-2-oil-7.mp4"]
    assert made.is_batch


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ("a --style 'Oil + ink:0.3'\nb --style=ghibli:.5\nc", "jobs.txt"),
        ('{"prompt": "a", "style": "ink:0.3+oil:0.7"}\n'
         '{"prompt": "b", "style": "ghibli:0.50"}\n{"prompt": "c"}', "jobs.jsonl"),
        ("prompt,style\na,oil+ink:0.3\nb,ghibli:0.5\nc,", "jobs.csv"),
    ],
)  # fmt: skip
def test_lines_and_stored_settings_know_mixtures_of_styles(away, lines, name):
    stored = [Layer("osp.toml", {"style": "ink + watercolor"})]
    made = batch(lines, name, flags={"seed": Seeds([7])}, stored=stored)
    styles = ["ink:0.3+oil:0.7", "ghibli:0.5", "ink+watercolor"]
    assert [item.style for item in made.requests] == styles
    assert [str(item.output) for item in made.requests] == [
        "cat-1-ink-0.3+oil-0.7-7.mp4",
        "cat-2-ghibli-0.5-7.mp4",
        "cat-3-ink+watercolor-7.mp4",
    ]


@pytest.mark.parametrize(
    ("flags", "line", "field", "value"),
    [
        ({"num_frames": 9}, "--seconds 1", "num_frames", 17),
        ({"seconds": 1.0}, "--frames 9", "num_frames", 9),
        ({"width": 320, "height": 384}, "--size 448x256", "width", 448),
        ({"count": 3}, "--seed 4", "seed", 4),
    ],
)
def test_a_line_replaces_a_flag_of_another_name(away, flags, line, field, value):
    [item] = batch(f"x {line}", flags=flags).requests
    assert getattr(item, field) == value


def test_seeds_of_a_line_and_of_the_flags(away):
    made = batch("a --seed 1-2\nb\nc --count 2", flags={"seed": Seeds([8])})
    assert [(item.prompt, item.seed) for item in made.requests] == [
        *(("a", 1), ("a", 2), ("b", 8), ("c", 8), ("c", 9))
    ]
    assert len({item.output for item in made.requests}) == 5


def test_a_line_may_bring_its_picture_or_text(away):
    made = batch(
        '{"image": "dog.png", "prompt": "x"}\n{"text": "a lake", "model": "flashi2v-1.3b"}\n{}',
        "jobs.jsonl",
        prompt="y",
    )
    assert [(str(item.image), item.prompt) for item in made.requests] == [
        ("dog.png", "x"),
        ("None", "a lake"),
        ("cat.png", "y"),
    ]


def test_prompts_alone_are_texts_where_the_command_says_text(away):
    made = batch("a lake\na hill", image=None, text="x", flags={"model": "flashi2v-1.3b"})
    assert [(item.text_only, item.prompt) for item in made.requests] == [
        (True, "a lake"),
        (True, "a hill"),
    ]


def test_a_picture_through_a_pipe_serves_all_lines(away, piped):
    piped(b"bytes")
    made = batch("a\nb", image="-")
    assert [item.image_data for item in made.requests] == [b"bytes", b"bytes"]


def test_jobs_through_a_pipe(away, piped):
    piped(b"\xef\xbb\xbfprompt,seed\r\na,1\r\nb,2\r\n")
    made = asked(image="cat.png", batch_file="-")
    assert [(item.prompt, item.seed) for item in made.requests] == [("a", 1), ("b", 2)]


def test_numbers_are_as_wide_as_the_last(away):
    made = batch("\n".join("abcdefghijk"), flags={"output": "v{n}.mp4"})
    assert [str(item.output) for item in made.requests][:2] == ["v01.mp4", "v02.mp4"]
    assert str(made.requests[-1].output) == "v11.mp4"


@pytest.mark.parametrize("template", ["a.mp4", "{style}a.mp4", "{name}-{seed}.mp4"])
def test_two_lines_never_write_one_file(away, template):
    made = batch("a\nb\n", flags={"output": template, "seed": Seeds([7])})
    first, second = made.items
    assert isinstance(first, GenerateRequest)
    assert isinstance(second, InvalidRequestError)
    assert second.message == (
        f"jobs.txt, line 2: {first.output} is written by jobs.txt, line 1 already"
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a --steps 0", "jobs.txt, line 1: --steps must be 1 to 1000, got 0"),
        ("a --style inc", "jobs.txt, line 1: unknown style 'inc'"),
        ("a --style ink+ink", "jobs.txt, line 1: --style names ink twice, got 'ink+ink'"),
        ("a --stile ink", "jobs.txt, line 1: unknown name 'stile'"),
        ("a --image -", "jobs.txt, line 1: image names a file, stdin can be read only once"),
        ("a --frames 9 --seconds 1", "jobs.txt, line 1: --frames and --seconds say the same"),
        ("a --text b", "jobs.txt, line 1: --text and PROMPT say the same thing"),
        ("a --seed 1-2 --output a.mp4", "jobs.txt, line 1: 2 videos cannot all be a.mp4"),
        ("a --output -", "jobs.txt, line 1: --output - takes one video, a batch makes many"),
        ("a --preview contact", "jobs.txt, line 1: --preview contact makes one sheet"),
        ("a --seed 1,2 --count 3", "jobs.txt, line 1: --seed names 2 videos"),
    ],
)
def test_a_bad_line_costs_only_itself(away, line, sentence):
    made = batch(f"{line}\nb")
    error, good = made.items
    assert isinstance(error, InvalidRequestError)
    assert error.message.startswith(sentence)
    # The place is told once.
    assert error.message.count("line 1") == 1
    assert isinstance(good, GenerateRequest)


def test_notices_tell_their_line(away):
    made = batch("a --frames 8\nb --frames 9\nc --seconds 1")
    assert made.notices == (
        "jobs.txt, line 1: 8 frames rounded up to 9",
        "jobs.txt, line 3: 16 frames rounded up to 17",
    )


def test_a_stored_contact_sheet_is_no_batch_either(away):
    made = batch("a", stored=[Layer("OSP_PREVIEW", {"preview": "contact"})])
    assert isinstance(made.items[0], InvalidRequestError)


def test_a_folder_named_as_one_is_made(osp, picture, requests):
    outcome = osp("generate", "cat.png", "x", "--seed", "3", "-o", "videos/")
    assert (outcome.code, outcome.out) == (0, f"{Path('videos/cat-3.mp4')}\n")
    assert Path("videos/cat-3.mp4").read_bytes() == b"clip"


def test_a_folder_is_made_by_a_run_alone(osp, picture, requests):
    assert osp("generate", "cat.png", "x", "-o", "videos/", "--dry-run").code == 0
    assert osp("generate", "no.png", "x", "-o", "videos/").code == 2
    assert osp("generate", "cat.png", "x", "-o", "videos/cat.mp4").code == 2
    outcome = osp("generate", "cat.png", "x", "-o", "no/videos/")
    assert (outcome.code, outcome.err) == (
        2,
        "error: the folder no does not exist\nhint: create it: mkdir -p 'no/videos'\n",
    )
    assert not Path("videos").exists()
    assert not Path("no").exists()


def test_lines_of_a_batch_have_names_of_their_own_in_a_folder(osp, picture, requests):
    Path("jobs.txt").write_text("a cat\na dog\n")
    assert osp("generate", "cat.png", "-F", "jobs.txt", "--seed", "7", "-o", "videos/").code == 0
    assert [request.output for request in requests] == [
        Path("videos/cat-1-7.mp4"),
        Path("videos/cat-2-7.mp4"),
    ]


# --- going on where an earlier run stopped -----------------------------------------------------


def leave_latents(away, recipe, seed):
    """What an interrupted run of `recipe` with that seed leaves."""
    header = {"__metadata__": {"recipe": json.dumps({**recipe, "seed": seed})}}
    data = json.dumps(header).encode()
    path = away / f"cat-{seed}.latents.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    return path


def recipe_of(request, picture):
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    return {**request.recipe(), "width": 448, "height": 256, "image_sha256": digest}


def test_a_run_without_a_seed_takes_that_of_what_was_begun(osp, away, picture, requests):
    osp("generate", "cat.png", "x", "--steps", "5")
    recipe = recipe_of(requests[0], picture)
    leave_latents(away, recipe, 77)
    osp("generate", "cat.png", "x", "--steps", "5")
    assert requests[1].seed == 77


@pytest.mark.parametrize(
    "args",
    [
        ("cat.png", "y", "--steps", "5"),
        ("cat.png", "x"),
        ("cat.png", "x", "--steps", "5", "--seed", "random"),
        ("cat.png", "x", "--steps", "5", "--seed", "3"),
        ("cat.png", "x", "--steps", "5", "-y"),
        ("cat.png", "x", "--steps", "5", "-o", "dog-{seed}.mp4"),
        ("cat.png", "x", "--steps", "5", "--count", "2"),
    ],
    ids=" ".join,
)
def test_another_command_draws_its_own_seed(osp, away, picture, requests, args):
    osp("generate", "cat.png", "x", "--steps", "5")
    leave_latents(away, recipe_of(requests[0], picture), 77)
    assert osp("generate", *args).code == 0
    assert 77 not in [request.seed for request in requests]


def test_another_picture_of_the_same_name_is_begun_anew(osp, away, picture, requests):
    osp("generate", "cat.png", "x")
    leave_latents(away, recipe_of(requests[0], picture), 77)
    Image.new("RGB", (64, 48)).save(picture)
    assert osp("generate", "cat.png", "x").code == 0
    assert requests[1].seed != 77


def make_clip(request, recipe):
    """A true video with that recipe where the request wants one."""
    frames = np.zeros((1, 16, 16, 3), np.uint8)
    open_sink(request.output, fps=request.fps, recipe=recipe, overwrite=True).write(frames)


def test_a_batch_leaves_out_what_is_there(osp, picture, requests):
    command = ("generate", "cat.png", "x", "--seed", "1-3", "-o", "{name}-{seed}.mp4")
    assert osp(*command).code == 0
    for request in requests:
        request.output.unlink()
    make_clip(requests[1], recipe_of(requests[1], picture))
    requests.clear()
    outcome = osp(*command)
    assert (outcome.code, outcome.out) == (0, "cat-1.mp4\ncat-3.mp4\n")
    assert "note: cat-2.mp4 is there already, made by the same settings\n" in outcome.err
    assert [request.seed for request in requests] == [1, 3]
    for request in requests:
        make_clip(request, recipe_of(request, picture))
    requests.clear()
    outcome = osp(*command)
    assert (outcome.code, outcome.out, requests) == (0, "", [])
    assert outcome.err.count("is there already") == 3


@pytest.mark.parametrize("change", ["steps", "picture", "fps"])
def test_a_batch_does_not_take_another_video_for_its_own(osp, picture, requests, change):
    command = ["generate", "cat.png", "x", "--seed", "1-2"]
    osp(*command)
    for request in requests:
        request.output.unlink()
    make_clip(requests[0], recipe_of(requests[0], picture))
    if change == "picture":
        Image.new("RGB", (64, 48)).save(picture)
    else:
        command += [f"--{change}", "5"]
    outcome = osp(*command)
    assert outcome.code == 6
    assert "error: cat-1.mp4 exists already" in outcome.err


def test_a_lone_text_beside_a_recipe_is_the_prompt(osp, picture, requests):
    osp("generate", "cat.png", "x", "--seed", "5")
    Path("cat-5.mp4.json").write_text(json.dumps(recipe_of(requests[0], picture)))
    assert osp("generate", "--from", "cat-5.mp4.json", "zoom out", "-y").code == 0
    assert (requests[1].prompt, requests[1].image) == ("zoom out", Path("cat.png"))
    assert requests[1].seed == 5


def test_quiet_tells_what_failed(osp, picture, requests):
    Path("jobs.txt").write_text("a cat\na dog --steps 0\n")
    outcome = osp("generate", "cat.png", "-F", "jobs.txt", "-q")
    assert (outcome.code, outcome.err) == (
        6,
        "error: jobs.txt, line 2: --steps must be 1 to 1000, got 0\nerror: 1 of 2 videos failed\n",
    )


def test_a_closed_list_of_paths_ends_no_work(osp, picture, requests, monkeypatch):
    def closed(text):
        raise console.StdoutClosedError

    monkeypatch.setattr(console, "write_line", closed)
    monkeypatch.setattr(console, "discard_stdout", lambda: None)
    assert osp("generate", "cat.png", "x", "--seed", "1-3").code == 0
    assert len(requests) == 3


def test_a_sheet_that_is_there_is_refused_before_anything_is_loaded(osp, picture, requests):
    Path("cat.contact.png").write_bytes(b"mine")
    command = ("generate", "cat.png", "x", "--seed", "1-3", "--preview", "contact")
    outcome = osp(*command)
    assert (outcome.code, requests) == (2, [])
    assert outcome.err.startswith("error: cat.contact.png exists already")
    assert osp(*command, "-y").code == 0
