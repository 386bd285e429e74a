"""Styles of the user's own: files, LoRAs that say they are styles, and what is wrong with them."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from osp_cli.dials import LoraChoice, Size
from osp_cli.errors import InvalidRequestError
from osp_cli.own_styles import own_names, own_styles, read_style_file, styles_home
from osp_cli.registry import StylePreset, find_model, style_presets
from osp_cli.requests import GenerateRequest
from osp_cli.settings import Source, recipe_layer, settle_generate
from osp_cli.style_mix import read_style
from osp_cli.style_text import read_stops

FELT = "Felt puppets, stop motion. {prompt}"
SMALL = f'[prompt]\ntemplate = "{FELT}"\n'
FULL = """\
title = "Felt"
description = "Puppets on a table"
adapter = "felt.safetensors"
adapter_weight = 0.8

[prompt]
template = "Felt puppets. {prompt}"
short = "felt style"
negative = "photo"

[sampler]
steps = 20
guidance_scale = 4
cfg = 3.5
cache = "fbcache:0.2"
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home, and a folder to work in."""
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "home"


def write(path: str | Path, text: str = SMALL) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_lora(name: str, **metadata: str) -> Path:
    """A header is all that is looked at here."""
    header = json.dumps({"__metadata__": metadata}).encode()
    path = Path(os.environ["OSP_HOME"], "loras", f"{name}.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def only(text: str) -> StylePreset:
    [(preset, _)] = read_style(text).parts
    return preset


def settled(style: str, **flags):
    source = flags.pop("source", Source(image=Path("cat.png")))
    size = Size(448, 256)
    return settle_generate(source, style=style, size=size, **flags)


def refusal(text: str) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        read_style(text)
    return caught.value


# --- files ------------------------------------------------------------------------------------


def test_two_lines_are_a_style():
    preset = read_style_file(write("my_felt Style.toml"))
    assert (preset.name, preset.title) == ("my-felt-style", "My felt style")
    assert preset.is_own
    assert (preset.description, preset.adapter, preset.sampler) == ("", "", {})
    # Without a short phrase, small models get the same words.
    for model in ("osp-mini", "flashi2v-1.3b"):
        assert preset.prompt_for(find_model(model), "x") == "Felt puppets, stop motion. x"
        assert preset.settings_for(find_model(model)) == {}


def test_a_file_may_say_all_that_a_preset_says():
    preset = read_style_file(write("felt.toml", FULL.replace("guidance_scale = 4\n", "")))
    assert preset.title == "Felt"
    assert (preset.adapter, preset.adapter_weight) == ("felt.safetensors", 0.8)
    assert preset.prompt_for(find_model("osp-mini"), "x") == "felt style, x"
    # What the user says holds for any model.
    dials = settled("./felt.toml", seed=None).settings
    assert (dials["steps"].value, dials["steps"].origin) == (20, "style felt")
    assert (dials["cfg"].value, dials["negative-prompt"].value) == (3.5, "photo")
    assert str(dials["cache"].value) == "fbcache:0.2"


MISTAKES = [
    ("descripton = 'x'\n" + SMALL, "felt.toml, line 1: unknown key 'descripton'", "description"),
    (SMALL + "negativ = 'x'\n", "felt.toml, line 3: unknown key 'negativ'", "negative"),
    (SMALL + "\n[sampler]\n# how often\nstep = 3", "line 6: unknown key 'step'", "steps"),
    (SMALL + "\n[sampler]\nsteps = 'x'", "line 5: --steps takes a whole number, got 'x'", None),
    (SMALL + "[samplr]\n", "line 3: unknown key 'samplr'", "sampler"),
    (SMALL + "qqq = 1\n", "line 3: unknown key 'qqq'", "the keys of [prompt] are: template"),
    ("title = 3\n" + SMALL, "line 1: title must be a string, got 3", None),
    ("adapter_weight = true\n" + SMALL, "line 1: adapter_weight must be a number", None),
    ("prompt = 'x'\n", "line 1: prompt must be a table, got 'x'", None),
    ("[prompt]\nshort = 'x'\n", "felt.toml: prompt.template is missing", "{prompt}"),
    ("", "felt.toml: prompt.template is missing", "{prompt}"),
    ("[prompt]\n\ntemplate = 'x'\n", "line 3: prompt.template must contain {prompt} once", None),
    ("name = 'wool'\n" + SMALL, "line 1: name must be the file's name 'felt'", None),
    ("[prompt\n", "felt.toml is not valid TOML", None),
]


@pytest.mark.parametrize(("text", "message", "hint"), MISTAKES)
def test_a_mistake_is_told_by_file_line_and_key(text, message, hint):
    write("felt.toml", text)
    error = refusal("./felt.toml+ink")
    assert message in error.message
    assert "\n" not in error.message
    assert hint is None or hint in error.hint


@pytest.mark.parametrize("name", ["ghibli", "Pixel Art"])
def test_no_file_takes_the_name_of_one_of_ours(name):
    write(f"{name}.toml")
    error = refusal(f"./{name}.toml")
    assert "is the name of a style that osp has already" in error.message
    assert "rename the file, for example to my-" in error.hint


@pytest.mark.parametrize("name", ["none", "all", "sch\u00f6n", "a.b", "x!"])
def test_a_name_that_could_not_be_written_in_a_mixture_is_refused(name):
    write(f"{name}.toml")
    reason = "a word of --style" if name in ("all", "none") else "letters, digits and hyphens"
    assert reason in refusal(f"./{name}.toml").message


def test_a_file_that_is_not_there_is_said():
    assert "there is no style file 'felt.toml'" in refusal("felt.toml").message
    write("felt.toml")
    assert "--style ./felt.toml is the file here" in refusal("felt").hint


# --- names and paths in mixtures --------------------------------------------------------------


def test_files_of_the_folder_are_known_by_name(home):
    write(styles_home() / "felt.toml")
    write(styles_home() / "Old_Map.toml")
    write(styles_home() / "broken.toml", "x = 1")
    assert styles_home() == home / "styles"
    assert own_names() == ["broken", "felt", "old-map"]
    good = [style.name for style in own_styles() if isinstance(style, StylePreset)]
    assert good == ["felt", "old-map"]
    assert str(read_style("Old Map:0.5+FELT")) == "felt:0.5+old-map:0.5".replace(":0.5", "")
    assert [p.name for p in read_style("felt..ink").presets] == ["felt", "ink"]
    assert "did you mean felt?" in refusal("feld").hint
    assert "line 1: unknown key 'x'" in refusal("broken").message


def test_a_file_that_changed_is_read_anew():
    path = write("felt.toml")
    assert only("./felt.toml").prompt_template == FELT
    write(path, SMALL.replace("Felt", "Wool"))
    os.utime(path, ns=(1, 1))
    assert only("./felt.toml").prompt_template.startswith("Wool")


PATHS = ["./felt.toml", "../desk/felt.toml", "sub/../felt.toml", "a+b/felt.toml", "felt.toml"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("text", "names", "named"),
    [
        ("{}", ["felt"], "felt"),
        ("{}:0.5", ["felt"], "felt:0.5"),
        ("{}+ink", ["felt", "ink"], "felt+ink"),
        ("ink:0.2+{}:0.3", ["felt", "ink"], "felt:0.3+ink:0.2"),
        ("{}..ink", ["felt", "ink"], "felt..ink"),
        ("ink..{}", ["felt", "ink"], "ink..felt"),
        ("none..{}:0.5+oil", ["felt", "oil"], "none..felt+oil"),
        ("{}..ink..{}", ["felt", "ink"], "felt..ink..felt"),
    ],
)
def test_paths_stand_where_names_do(path, text, names, named):
    Path("sub").mkdir()
    write(path)
    mix = read_style(text.replace("{}", path))
    assert [preset.name for preset in mix.presets] == names
    # The canonical text finds the same again; the name of a video has no folders in it.
    assert path in str(mix)
    assert read_style(str(mix)) == mix
    assert mix.named == named
    [request] = settled(text.replace("{}", path), seed=None).requests
    assert request.recipe()["style"] == named
    assert "/" not in str(request.output)


def test_the_weight_of_a_windows_path_is_no_drive():
    [[(name, weight)]] = read_stops(r"C:\styles\felt.toml")
    assert (name, weight) == (r"C:\styles\felt.toml", 1)
    assert read_stops(r"C:\styles\felt.toml:0.5") == [[(r"C:\styles\felt.toml", 0.5)]]


def test_one_style_by_two_paths_is_named_twice():
    write("felt.toml")
    assert "names felt twice" in refusal("./felt.toml+felt.toml").message


# --- LoRAs that are styles --------------------------------------------------------------------


def test_a_lora_that_says_so_is_a_style():
    path = write_lora("felt-v2", osp_trigger="f3lt puppets", osp_style="Felt")
    preset = only("felt")
    assert preset.prompt_for(find_model("osp-mini"), "x") == "f3lt puppets, x"
    assert (preset.adapter, preset.source) == (str(path), path)
    told = {"name": "wool", "title": "Wool!", "description": "Soft"}
    write_lora("other", osp_style=json.dumps(told))
    preset = only("wool")
    assert (preset.title, preset.description) == ("Wool!", "Soft")
    # Without a trigger the LoRA alone makes it.
    assert preset.prompt_for(find_model("osp-mini"), "x") == "x"
    write_lora("Map", **{"modelspec.trigger_phrase": "0ld map", "modelspec.title": "Old map"})
    assert (only("map").title, only("map").prompt_template) == ("Old map", "0ld map, {prompt}")
    assert own_names() == ["felt", "map", "wool"]


def test_other_loras_are_none():
    write_lora("plain", ss_output_name="plain")
    write_lora("ghibli", osp_trigger="ghibli")
    path = write_lora("damaged", osp_trigger="x")
    path.write_bytes(path.read_bytes()[:-9])
    assert own_names() == []
    assert only("ghibli").source is None


def test_a_file_goes_before_a_lora_of_its_name():
    write_lora("felt", osp_trigger="f3lt")
    write(styles_home() / "felt.toml")
    assert only("felt").prompt_template == FELT
    assert own_names() == ["felt"]


# --- adapters ---------------------------------------------------------------------------------


def styled(style: str, **flags) -> tuple[list[tuple[str, float, str]], list[str]]:
    made = settled(style, seed=None, **flags)
    return [(Path(c.name).name, c.weight, c.style) for c in made.request.loras], [*made.notices]


def with_adapter(name: str = "felt", adapter: str = "felt.safetensors", weight: float = 0.8):
    text = f'adapter = "{adapter}"\nadapter_weight = {weight}\n' + SMALL
    return write(f"styles/{name}.toml", text)


@pytest.mark.parametrize("adapter", ["felt.safetensors", "felt", "../styles/felt.safetensors"])
def test_an_adapter_lies_beside_its_style_or_is_installed(adapter):
    with_adapter(adapter=adapter)
    loras, notices = styled("styles/felt.toml")
    assert loras == []
    [notice] = notices
    assert notice.startswith(f"style felt: its adapter {adapter} is not installed, the prompt")
    assert str(Path("loras", "felt.safetensors")) in notice
    beside = Path("styles", "felt.safetensors")
    beside.touch()
    assert styled("styles/felt.toml") == ([("felt.safetensors", 0.8, "felt")], [])
    if "/" not in adapter:
        beside.unlink()
        write_lora("felt")
        assert styled("styles/felt.toml")[0] == [("felt.safetensors", 0.8, "felt")]


def test_an_adapter_counts_as_much_as_its_style():
    with_adapter()
    write_lora("felt")
    assert styled("styles/felt.toml:0.25") == ([("felt.safetensors", 0.2, "felt")], [])
    loras, [notice] = styled("ink..styles/felt.toml")
    assert loras == [("felt.safetensors", 0.4, "felt")]
    assert "counts as much in the whole clip as the style does in the mean, 0.4" in notice


def test_a_lora_that_the_user_named_too_is_as_strong_as_the_user_says():
    with_adapter()
    path = write_lora("felt")
    for name in ("felt", str(path)):
        loras, notices = styled("styles/felt.toml", loras=(LoraChoice(name, 0.3),))
        assert [(weight, style) for _, weight, style in loras] == [(0.3, "")]
        assert notices == []
    other = write_lora("other")
    loras, _ = styled("styles/felt.toml", loras=(LoraChoice(str(other)),))
    assert [name for name, *_ in loras] == ["other.safetensors", "felt.safetensors"]


def test_a_lora_style_brings_itself():
    write_lora("felt", osp_trigger="f3lt")
    assert styled("felt:0.5") == ([("felt.safetensors", 0.5, "felt")], [])


def test_an_adapter_of_another_model_is_left_out_and_told():
    with_adapter()
    write_lora("felt")
    source = Source(image=Path("cat.png"), misfit=lambda path, spec: f"{spec.name} is too small")
    assert styled("styles/felt.toml", source=source) == (
        [],
        ["style felt: the prompt alone makes it, as osp-mini is too small"],
    )


# --- replay -----------------------------------------------------------------------------------


def again(recipe, **flags):
    source = Source(image=Path("cat.png"), replayed=recipe, replayed_from="clip.mp4")
    return settle_generate(source, layers=[recipe_layer(recipe, "clip.mp4")], **flags)


@pytest.mark.parametrize("style", ["{}", "{}:0.5..ink", "{}+ink"])
def test_a_recipe_makes_the_clip_again_without_the_file_of_its_style(style):
    path = with_adapter()
    write_lora("felt")
    recipe = settled(style.replace("{}", str(path)), prompt="it rains", seed=None).request.recipe()
    recipe = json.loads(json.dumps(recipe))
    assert recipe["own_styles"] == {"felt": {"template": FELT, "short": ""}}
    assert [entry["style"] for entry in recipe["loras"]] == ["felt"]
    path.unlink()
    made = again(recipe)
    assert made.request.recipe() == recipe
    assert made.notices == ("style felt is not installed here, its words are those of clip.mp4",)
    # In other words too, and with other LoRAs beside.
    changed = again(recipe, prompt="it snows", loras=(LoraChoice("other"),)).request
    assert changed.prompts[0].text == "Felt puppets, stop motion. it snows"
    assert [choice.style for choice in changed.loras] == ["", "felt"]
    # Another style has another adapter: none.
    other = again(recipe, style="oil").request.recipe()
    assert other["loras"] == []
    assert "own_styles" not in other


def test_a_style_that_is_here_is_used_as_it_is_now():
    path = write(styles_home() / "felt.toml")
    recipe = settled("felt", seed=None).request.recipe()
    write(path, SMALL.replace("Felt", "Wool"))
    os.utime(path, ns=(1, 1))
    assert again(recipe).request.prompts[0].text.startswith("Wool")


@pytest.mark.parametrize(
    "own", [None, 3, {"felt": 3}, {"felt": {"template": "no place", "short": ""}}, {"wool": {}}]
)
def test_a_recipe_without_the_words_says_what_is_missing(own):
    path = write("felt.toml")
    recipe = settled("./felt.toml", seed=None).request.recipe() | {"own_styles": own}
    path.unlink()
    with pytest.raises(
        InvalidRequestError, match=r"unknown style 'felt' \(from recipe of clip.mp4"
    ):
        again(recipe)


def test_the_recipe_of_one_of_ours_has_no_words_of_own_styles():
    request = GenerateRequest(image=Path("cat.png"), style="ink", seed=1)
    assert "own_styles" not in request.recipe()
    assert set(style_presets()).isdisjoint(own_names())
