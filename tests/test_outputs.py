"""Names of outputs: templates, folders, streams, and what lies beside a video."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osp_cli.errors import InvalidRequestError
from osp_cli.outputs import (
    BATCH_TEMPLATE,
    LATENTS_SUFFIX,
    OUTPUT_TEMPLATE,
    STDOUT,
    check_output_name,
    expand_output,
    latents_path,
    output_of_latents,
    preview_path,
)

CAT = Path("pictures/cat.jpg")


def expand(template: str, style: str | None = None, image: Path | None = CAT, **fields) -> str:
    given_fields = {"prompt": "", "seed": 7, **fields}
    return str(expand_output(template, image=image, style=style, **given_fields))


@pytest.mark.parametrize(
    ("template", "plain", "styled"),
    [
        (OUTPUT_TEMPLATE, "cat-7.mp4", "cat-ink-7.mp4"),
        ("{style}-{name}.mp4", "cat.mp4", "ink-cat.mp4"),
        ("{name}_{style}.mp4", "cat.mp4", "cat_ink.mp4"),
        ("{name}{style}.mp4", "cat.mp4", "catink.mp4"),
        ("out/{style}/{seed}.mp4", "out/7.mp4", "out/ink/7.mp4"),
        ("/{style}/{seed}.mp4", "/7.mp4", "/ink/7.mp4"),
        ("{style}/{seed}.mp4", "7.mp4", "ink/7.mp4"),
        ("fixed.mp4", "fixed.mp4", "fixed.mp4"),
        ("{name}/%04d.png", "cat/%04d.png", "cat/%04d.png"),
        ("{name}-{style}/%d.png", "cat/%d.png", "cat-ink/%d.png"),
        ("videos/", "videos/cat-7.mp4", "videos/cat-ink-7.mp4"),
        ("{style}/", "cat-7.mp4", "ink/cat-ink-7.mp4"),
        ("-", "-", "-"),
    ],
)
def test_template(template, plain, styled):
    assert expand(template) == str(Path(plain))
    assert expand(template, "ink") == str(Path(styled))


@pytest.mark.parametrize(
    ("style", "name"),
    [
        ("ghibli:0.5", "cat-ghibli-0.5-7.mp4"),
        ("ink+watercolor", "cat-ink+watercolor-7.mp4"),
        ("ghibli:0.3+ink:0.5", "cat-ghibli-0.3+ink-0.5-7.mp4"),
        ("none..ghibli:0.5", "cat-none-to-ghibli-0.5-7.mp4"),
    ],
)
def test_a_mixture_of_styles_makes_a_name_for_any_system(style, name):
    assert expand(OUTPUT_TEMPLATE, style) == name
    assert not {*'<>:"/\\|?*'} & {*name}


def test_numbers_of_a_batch():
    assert expand(BATCH_TEMPLATE, number="03") == "cat-03-7.mp4"
    assert expand("{n}.mp4") == "1.mp4"


def test_a_folder_that_is_there_needs_no_separator(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expand("videos") == "videos"
    (tmp_path / "videos").mkdir()
    assert expand("videos") == str(Path("videos/cat-7.mp4"))
    assert expand(".") == "cat-7.mp4"


@pytest.mark.parametrize("template", ["{what}.mp4", "{}.mp4", "{Name}.mp4", "{n }/a.mp4"])
def test_unknown_fields(template):
    with pytest.raises(InvalidRequestError, match="--output knows no field") as caught:
        expand(template)
    assert caught.value.hint == "the fields are: {name}, {style}, {seed}, {n}"


@pytest.mark.parametrize("name", ["{seed}{x}", "{style}", "%04d", "a{b"])
def test_braces_in_the_name_of_a_picture_are_only_text(name):
    assert expand("{name}-{seed}.mp4", image=Path(f"{name}.jpg")) == f"{name}-7.mp4"


def test_name_of_a_prompt_is_short_and_safe():
    prompt = "../Été: a/very " + "long " * 40
    output = Path(expand("{name}.mp4", image=None, prompt=prompt))
    assert output.parent == Path()
    assert output.name.startswith("été-a-very-long")
    assert len(output.name) < 50
    assert expand("{name}.mp4", image=None, prompt="?!") == "clip.mp4"
    assert expand("{name}.mp4", image=Path("-")) == "stdin.mp4"


@given(prompt=st.text(), seed=st.integers(0, 2**63), style=st.sampled_from([None, "ink"]))
def test_a_prompt_never_names_another_folder(prompt, seed, style):
    output = expand(OUTPUT_TEMPLATE, style, image=None, prompt=prompt, seed=seed)
    for path in (Path(output), PureWindowsPath(output)):
        assert len(path.parts) == 1
        assert path.name.endswith(f"{seed}.mp4")
    check_output_name(Path(output))


@pytest.mark.parametrize("name", ["con", "CON", "nul", "Aux", "prn", "com1", "LPT9", "con.old"])
def test_devices_of_windows_are_no_names(name):
    # There, `nul.mp4` is the device and not a file.
    assert expand("{name}.mp4", image=Path(f"{name}.png")) == f"clip-{name}.mp4"


@pytest.mark.parametrize("name", ["contact", "console", "com", "com10", "nulls", "a.con"])
def test_other_names_are_kept(name):
    assert expand("{name}.mp4", image=Path(f"{name}.png")) == f"{name}.mp4"


def test_device_made_of_a_prompt():
    assert expand("{name}.mp4", image=None, prompt="Nul!") == "clip-nul.mp4"


@pytest.mark.parametrize(
    "name", ["a.mp4", "A.MP4", "a.gif", "a.webp", "x/%04d.png", "x/a-%d.png", "/x/%08d.PNG", "-"]
)
def test_kinds_of_outputs(name):
    check_output_name(Path(name))


@pytest.mark.parametrize(
    ("name", "sentence", "hint"),
    [
        ("a.mov", "'a.mov' ends in '.mov'", "--output a.mp4"),
        ("a.b/c.mp4.txt", "'a.b/c.mp4.txt' ends in '.txt'", "--output a.b/c.mp4.mp4"),
        ("a", "'a' has no extension", "--output a.mp4, or --output a/ in a folder"),
        (".mp4", "'.mp4' has no extension", "--output .mp4.mp4"),
        ("", "--output must end in .mp4, .gif, .webp or /%04d.png", "--output clip.mp4"),
        ("/", "--output must end in .mp4, .gif, .webp or /%04d.png", "--output clip.mp4"),
        ("x/a.png", "'x/a.png' must name a folder and number them", "--output x/a/%04d.png"),
        ("%04d.png", "'%04d.png' must name a folder", "--output %04d/%04d.png"),
        ("/%04d.png", "'/%04d.png' must name a folder", "--output /%04d/%04d.png"),
        ("x/%s.png", "'x/%s.png' must name a folder", "--output x/%s/%04d.png"),
        ("x/%4d.png", "'x/%4d.png' must name a folder", "--output x/%4d/%04d.png"),
        ("a" * 230 + ".mp4", "the output's name is longer than 230 bytes", "choose a shorter"),
        ("ü" * 115 + ".mp4", "the output's name is longer than 230 bytes", "choose a shorter"),
        ("a\0.mp4", "--output is no possible file name: 'a\\x00.mp4'", None),
        ("\ud800.mp4", "--output is no possible file name: '\\ud800.mp4'", None),
    ],
)
def test_names_that_are_no_outputs(name, sentence, hint):
    with pytest.raises(InvalidRequestError) as caught:
        check_output_name(Path(name))
    assert sentence in caught.value.message
    assert (caught.value.hint or "").startswith(hint or "")


@given(st.text(max_size=20))
def test_the_hint_for_any_name_is_itself_a_name(text):
    try:
        check_output_name(Path(text))
    except InvalidRequestError as error:
        if error.hint and error.hint.startswith("--output "):
            check_output_name(Path(error.hint.removeprefix("--output ").partition(", or ")[0]))


@pytest.mark.parametrize(
    ("output", "latents", "preview"),
    [
        ("a.mp4", "a", "a"),
        ("x/a.b.gif", "x/a.b", "x/a.b"),
        ("x/frames/%04d.png", "x/frames", "x/frames"),
        ("x/v1.5/%04d.png", "x/v1.5", "x/v1.5"),
    ],
)
def test_what_lies_beside_a_video(output, latents, preview):
    assert latents_path(Path(output)) == Path(latents + LATENTS_SUFFIX)
    assert preview_path(Path(output)) == Path(preview + ".preview.png")


@given(st.from_regex(r"[a-z.]{1,8}[a-z]", fullmatch=True))
def test_latents_know_their_video(name):
    output = Path("x") / f"{name}.mp4"
    assert output_of_latents(latents_path(output)) == output


def test_stdout_is_a_dash():
    assert Path("-") == STDOUT
