"""`osp styles`: the list with pictures, one style whole, and the page."""

from __future__ import annotations

import base64
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from osp_cli.cli import console
from osp_cli.cli.style_page import Card, style_page
from osp_cli.own_styles import styles_home
from osp_cli.registry import find_model, presets_dir, style_presets

OWN = 'description = "Puppets <b>"\n[prompt]\ntemplate = "Felt. {prompt}"\n'


@pytest.fixture
def own(away):
    """A style in the user's folder, and a broken one."""
    styles_home().mkdir(parents=True)
    (styles_home() / "felt.toml").write_text(OWN)
    (styles_home() / "broken.toml").write_text(OWN + "negativ = 3\n")
    return styles_home() / "felt.toml"


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of so many columns that knows all colours."""

    def make(columns: int = 122) -> None:
        monkeypatch.setattr(console, "is_terminal", lambda stream: stream is sys.stdout)
        monkeypatch.setenv("COLORTERM", "truecolor")
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.delenv("NO_COLOR", raising=False)

    return make


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


# --- the list ---------------------------------------------------------------------------------


def test_every_preset_has_a_small_picture():
    folder = presets_dir() / "gallery" / "styles"
    assert {path.stem for path in folder.iterdir()} == set(style_presets())
    for path in folder.iterdir():
        assert path.stat().st_size < 6 * 1024
        with Image.open(path) as image:
            assert image.size == (160, 90)


def test_own_styles_are_listed_and_broken_ones_told(osp, own):
    outcome = osp("styles")
    assert outcome.out.splitlines()[-1] == f"felt\tPuppets <b> - own, {own}"
    assert outcome.err == (f"note: {own.with_name('broken.toml')}, line 4: unknown key 'negativ'\n")
    row = json.loads(osp("styles", "--json", "-q").out.splitlines()[-1])
    assert (row["name"], row["own"], row["file"], row["picture"]) == ("felt", True, str(own), None)
    first = json.loads(osp("styles", "--json", "-q").out.splitlines()[0])
    assert (first["own"], first["file"], first["adapter_file"]) == (False, None, None)
    assert Path(first["picture"]).is_file()


@pytest.mark.parametrize(("columns", "cards"), [(60, 1), (122, 2), (200, 3)])
def test_a_terminal_that_knows_all_colours_shows_pictures(osp, own, terminal, columns, cards):
    terminal(columns)
    out = osp("styles", "-q").out
    lines = plain(out).splitlines()
    assert all(len(line) <= columns for line in lines[:-1])
    assert len([name for name in style_presets() if f"  {name}" in plain(out)]) == 13
    # Two pixels a letter: rows of half blocks, both halves in their colours.
    shown = [line for line in lines if line.startswith("\N{UPPER HALF BLOCK}" * 24)]
    assert len(shown) == 7 * -(-13 // cards)
    colours = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m", out)
    assert len(colours) == 13 * 7 * 24
    assert len(set(colours)) > 1000
    assert "felt" in plain(out)


@pytest.mark.parametrize(
    ("name", "value"), [("NO_COLOR", "1"), ("COLORTERM", ""), ("COLUMNS", "50")]
)
def test_other_terminals_get_words(osp, terminal, monkeypatch, name, value):
    terminal()
    monkeypatch.setenv(name, value)
    out = osp("styles").out
    assert "\N{UPPER HALF BLOCK}" not in out
    assert "watercolor" in out


def test_a_terminal_is_told_where_own_styles_go(osp, terminal):
    terminal()
    assert osp("styles").out.rstrip().endswith(f"a file NAME.toml in {styles_home()}")


def test_a_picture_that_is_damaged_is_left_out(osp, terminal, monkeypatch, tmp_path):
    terminal()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    monkeypatch.setattr("osp_cli.cli.styles._picture_of", lambda preset: broken)
    outcome = osp("styles")
    assert outcome.code == 0
    assert "ghibli" in outcome.out


# --- one of them ------------------------------------------------------------------------------


def test_one_style_whole(osp, own):
    out = osp("styles", "Ghibli").out
    preset = style_presets()["ghibli"]
    for text in (preset.prompt_template, preset.negative_prompt, "Section 6.2", "shift 3.0"):
        assert text in out
    assert "adapter   none, the prompt alone makes it" in out
    assert f"from      {own}" in osp("styles", "felt").out
    own.rename("wool.toml")
    assert "use       --style ./wool.toml" in osp("styles", "./wool.toml").out
    assert json.loads(osp("styles", "./wool.toml", "--json").out)["name"] == "wool"
    assert "unknown style 'gibli'" in osp("styles", "gibli").err
    assert osp("styles", "gibli").code == 2


def test_an_adapter_that_is_not_there_is_said(osp, own):
    own.write_text('adapter = "felt-lora"\n' + OWN)
    out = osp("styles", "felt").out
    assert "felt-lora, weight 1: not installed, the prompt alone makes it" in out
    own.with_name("felt-lora.safetensors").touch()
    assert str(own.with_name("felt-lora.safetensors")) in osp("styles", "felt").out


# --- the page ---------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page shows, and what it would fetch."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images, self.addresses, self.words = [], [], {}
        self.open = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.addresses += [values[name] for name in ("src", "href", "srcset") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.setdefault(self.open[-1] if self.open else "", []).append(data)


def test_the_page_has_all_and_fetches_nothing(osp, own):
    outcome = osp("styles", "--gallery", "all.html", "-q")
    assert (outcome.code, outcome.out, outcome.err) == (0, "all.html\n", "")
    text = Path("all.html").read_text("utf-8")
    page = Page(text)
    assert len(page.images) == 13
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not re.search(r"https?:|@import|url\(", text)
    names = list(style_presets())
    for name, image in zip(names, page.images, strict=True):
        picture = base64.b64decode(image["src"].partition(",")[2])
        assert picture == (presets_dir() / "gallery" / "styles" / f"{name}.jpg").read_bytes()
        assert style_presets()[name].title in image["alt"]
    commands = [f"osp stylize photo.jpg --style {name}" for name in [*names, "felt"]]
    assert page.words["code"] == commands
    assert "Puppets <b>" in page.words["p"]
    assert "prefers-color-scheme: dark" in text
    one = osp("styles", "ink", "--gallery", "one.html")
    assert one.code == 0
    assert len(Page(Path("one.html").read_text("utf-8")).images) == 1


def test_a_page_is_not_replaced_unasked(osp):
    Path("all.html").write_text("mine")
    outcome = osp("styles", "--gallery", "all.html")
    assert outcome.code == 2
    assert "exists already" in outcome.err
    assert Path("all.html").read_text() == "mine"
    assert osp("styles", "--gallery", "all.html", "-y").code == 0
    assert [path.name for path in Path().iterdir()] == ["all.html"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--gallery", "all.png"], "does not end in .html"),
        (["--gallery", "none/all.html"], "none"),
        (["--gallery", "all.html", "--json"], "ask for one of them"),
        (["--image", "cat.png"], "--image is for --gallery"),
        (["-y"], "--overwrite is for --gallery"),
        (["--gallery", "all.html", "--image", "none.png"], "none.png"),
    ],
)
def test_what_makes_no_page_is_refused(osp, args, sentence):
    outcome = osp("styles", *args)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert not list(Path().iterdir())


def test_whatever_a_style_says_stays_text():
    card = Card("a'b", '<script>x</script>"', "</style><img src=x>", b"x", '"><b>', is_own=True)
    page = Page(style_page([card], photo="my photo's.jpg", told="<i>"))
    assert len(page.images) == 1
    assert page.images[0]["alt"] == '"><b>'
    assert page.words["h2"] == ['<script>x</script>" ']
    assert page.words["small"] == ["a'b, own"]
    assert page.words["code"] == ["osp stylize 'my photo'\"'\"'s.jpg' --style 'a'\"'\"'b'"]


def test_the_pictures_are_made_of_ones_own_photo(osp, picture, own):
    """With the built-in model, as it is: one style is enough to see that it is that photo."""
    outcome = osp("styles", "ink", "--gallery", "mine.html", "--image", "cat.png")
    assert (outcome.code, outcome.out) == (0, "mine.html\n")
    assert "1 of 1: ink" in outcome.err
    page = Page(Path("mine.html").read_text("utf-8"))
    [image] = page.images
    assert image["alt"] == f"cat.png in the style {style_presets()['ink'].title}"
    data = base64.b64decode(image["src"].partition(",")[2])
    Path("made.jpg").write_bytes(data)
    with Image.open("made.jpg") as made:
        assert made.size in find_model("osp-mini").sizes
    assert page.words["code"] == ["osp stylize cat.png --style ink"]
