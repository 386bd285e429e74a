"""Presets: what ships is complete, and a broken file is refused by name and key."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from osp_cli import registry
from osp_cli.errors import InvalidRequestError, WeightsMissingError
from osp_cli.registry import (
    CacheFigures,
    find_model,
    find_style,
    model_specs,
    nearest,
    style_presets,
)

STYLES = {
    *("ghibli", "3d-rendering", "cyberpunk", "ink", "oil", "pixel-art", "vaporwave", "disney"),
    *("fairy-tale", "gotham-noir", "lego", "chibi", "watercolor"),
}


PUBLISHED = [
    *("flashi2v-1.3b", "helios-14b-distilled", "qwen2.5-vl-7b", "uniworld-osp2-14b"),
    *("wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b"),
]


def test_the_thirteen_styles():
    assert set(style_presets()) == STYLES


def test_the_models_with_the_built_in_one_first():
    assert list(model_specs()) == ["osp-mini", "osp-mini-live", *PUBLISHED]


@pytest.mark.parametrize("name", sorted(STYLES))
def test_style_is_complete(name):
    preset = find_style(name)
    assert preset.short.endswith(" style")
    assert 20 < len(preset.description) < 90
    assert "\n" not in preset.description
    assert len(preset.prompt_template) > 100
    assert len(preset.negative_prompt) > 30
    # Section 6.4.
    assert preset.sampler["shift"] == 3.0
    assert preset.origin == ("Section 1" if name == "watercolor" else "Section 6.2")


@pytest.mark.parametrize(
    "name", [name for name, spec in model_specs().items() if spec.pipeline != "none"]
)
def test_model_geometry_fits_together(name):
    spec = find_model(name)
    assert spec.default_size == spec.sizes[0]
    for width, height in spec.sizes:
        assert width % spec.multiple_of == height % spec.multiple_of == 0
        assert width * height <= spec.max_pixels
        assert (height, width) in spec.sizes
    # Two latent cells per token along each side.
    assert spec.multiple_of == 2 * spec.scale_factor_spatial
    assert (spec.max_frames - 1) % spec.scale_factor_temporal == 0


def test_style_words_depend_on_the_card():
    style = find_style("ghibli")
    assert style.prompt_for(find_model("osp-mini"), "snow falls") == "ghibli style, snow falls"
    assert style.prompt_for(find_model("osp-mini"), "") == "ghibli style"
    full = style.prompt_for(find_model("flashi2v-1.3b"), "Snow falls.")
    assert full.startswith("Studio Ghibli")
    assert full.endswith(" Snow falls.")
    assert style.prompt_for(find_model("flashi2v-1.3b"), "").endswith("in every frame.")


def test_only_the_built_in_model_shows_the_surroundings_of_a_picture(presets):
    assert {name: spec.image_token_surround for name, spec in model_specs().items()} == {
        "osp-mini": 5,
        "osp-mini-live": 5,
        **dict.fromkeys(PUBLISHED, 0),
    }
    path = presets / "models" / "osp-mini.toml"
    path.write_text(path.read_text().replace("surround = 5", 'surround = "wide"'))
    model_specs.cache_clear()
    with pytest.raises(InvalidRequestError, match=r"surround"):
        model_specs()


def test_braces_in_a_prompt_are_only_text():
    prompt = "a {prompt} and {0}"
    assert find_style("ink").prompt_for(find_model("flashi2v-1.3b"), prompt).endswith(prompt)


def test_style_settings_are_for_full_size_models():
    style = find_style("oil")
    assert style.settings_for(find_model("osp-mini")) == {}
    assert style.settings_for(find_model("uniworld-osp2-14b"))["shift"] == 3.0


@pytest.mark.parametrize(
    ("asked", "best"),
    [
        ("ghilbi", "ghibli"),
        ("3d", "3d-rendering"),
        ("Pixel Art", "pixel-art"),
        ("GOTHAM_NOIR", "gotham-noir"),
        ("water", "watercolor"),
        ("lego-bricks", "lego"),
    ],
)
def test_nearest(asked, best):
    assert nearest(asked, style_presets())[0] == best


@pytest.mark.parametrize("asked", ["", " ", "x", "anime", "\N{SNOWMAN}"])
def test_nothing_near(asked):
    assert nearest(asked, style_presets()) == []


@pytest.mark.parametrize("find", [find_style, find_model])
def test_unknown_name_lists_the_known(find):
    with pytest.raises(InvalidRequestError) as caught:
        find("nothing")
    assert "'nothing'" in caught.value.message
    assert ("ghibli" if find is find_style else "osp-mini") in str(caught.value.hint)


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the presets to break."""
    folder = tmp_path / "presets"
    shutil.copytree(registry.presets_dir() / "models", folder / "models")
    shutil.copytree(registry.presets_dir() / "styles", folder / "styles")
    monkeypatch.setattr(registry, "presets_dir", lambda: folder)
    registry.model_specs.cache_clear()
    registry.style_presets.cache_clear()
    yield folder
    registry.model_specs.cache_clear()
    registry.style_presets.cache_clear()


def replace(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return edit


BROKEN_STYLES = [
    (lambda text: text + "strenght = 1\n", "sampler.strenght is not a known key"),
    (lambda text: "colour = 1\n" + text, "colour is not a known key"),
    (replace("short =", "shrt ="), "prompt.short is missing"),
    (replace('short = "ink painting style"', "short = 3"), "prompt.short must be a string, got 3"),
    (replace("shift = 3.0", 'shift = "3"'), "sampler.shift must be a number, got '3'"),
    (replace("shift = 3.0", "shift = true"), "sampler.shift must be a number, got True"),
    (replace("fps = 16", "fps = 16.5"), "sampler.fps must be a whole number, got 16.5"),
    (replace("{prompt}", "{promt}"), "prompt.template must contain {prompt} once"),
    (replace('name = "ink"', 'name = "inc"'), "name must be the file's name 'ink', got 'inc'"),
    (replace('adapter = ""', "adapter = 3"), "adapter must be a string, got 3"),
    (
        replace('adapter = ""', 'adapter = "a"\nadapter_weight = 0'),
        "adapter_weight must be a number above 0",
    ),
    (replace("[prompt]", "[prompt"), "is not valid TOML"),
]


@pytest.mark.parametrize(("edit", "problem"), BROKEN_STYLES)
def test_broken_style_is_refused_by_file_and_key(presets, edit, problem):
    path = presets / "styles" / "ink.toml"
    path.write_text(edit(path.read_text()))
    with pytest.raises(InvalidRequestError) as caught:
        style_presets()
    assert caught.value.message.startswith("styles/ink.toml")
    assert problem in caught.value.message


BROKEN_CARDS = [
    (replace("[geometry]", "[geometry]\ndepth = 3"), "geometry.depth is not a known key"),
    (replace("[defaults]", "[defaults]\nsteps = 3"), "defaults.steps is not a known key"),
    (replace("[dtypes]", "[dtypes]\nadapter = 'x'"), "dtypes.adapter is not a known key"),
    (replace('vae = "float32"', 'vae = "float8"'), "dtypes.vae must be one of bfloat16, float16"),
    (replace("AutoencoderLinear", "Autoencoder"), "vae_class must be one of AutoencoderKLWan"),
    (replace("embedded = true", 'embedded = "yes"'), "embedded must be true or false, got 'yes'"),
    (replace("multiple_of = 32", "multiple_of = 0"), "geometry.multiple_of must be at least 1"),
    (replace("[448, 256], [416", "[448], [416"), "geometry.sizes must hold [width, height]"),
    (
        replace("default_size = [448, 256]", "default_size = [448, 448]"),
        "geometry.default_size must be one of geometry.sizes",
    ),
]

TEACACHE = "\n[teacache]\ncoefficients = [2, -1.5]\nsource = 'measured'\nthreshold = 0.2\n"
MAGCACHE = "\n[magcache]\nratios = [1.0, 0.9]\nsource = 'measured'\n"
BROKEN_FIGURES = [
    ("[2, -1.5]", "[]", "teacache.coefficients must be a list of numbers, got []"),
    ("[2, -1.5]", "2", "teacache.coefficients must be a list of numbers, got 2"),
    ("-1.5", "'1'", "teacache.coefficients must be a list of numbers"),
    ("-1.5", "true", "teacache.coefficients must be a list of numbers"),
    ("-1.5", "nan", "teacache.coefficients must be a list of numbers"),
    ("coefficients", "coeficients", "teacache.coefficients is missing"),
    ("0.2", "0", "teacache.threshold must be a number above 0, got 0"),
    ("0.2", "inf", "teacache.threshold must be a number above 0, got inf"),
    ("0.2", "'0.2'", "teacache.threshold must be a number, got '0.2'"),
    ("threshold", "treshold", "teacache.treshold is not a known key"),
    ("source = 'measured'\nthreshold", "threshold", "teacache.source is missing"),
    ("'measured'\nthr", "' '\nthr", "teacache.source must say where the numbers come from"),
    ("[1.0, 0.9]", "[1.0, 0.0]", "magcache.ratios must be above 0, got 0"),
    ("ratios", "coefficients", "magcache.ratios is missing"),
]


def without_figures(text: str) -> str:
    """A card up to its cache tables, which stand last."""
    head, *_ = re.split(r"(?m)^\[(?:teacache|magcache)\]", text)
    return re.sub(r"(?m)^no_teacache = .*\n", "", head)


@pytest.mark.parametrize(("old", "new", "problem"), BROKEN_FIGURES)
def test_broken_figures_are_refused_by_file_and_key(presets, old, new, problem):
    path = presets / "models" / "osp-mini.toml"
    path.write_text(without_figures(path.read_text()) + replace(old, new)(TEACACHE + MAGCACHE))
    with pytest.raises(InvalidRequestError) as caught:
        model_specs()
    assert caught.value.message.startswith("models/osp-mini.toml")
    assert problem in caught.value.message


def test_a_card_s_figures_are_read(presets):
    path = presets / "models" / "osp-mini.toml"
    path.write_text(without_figures(path.read_text()) + TEACACHE + MAGCACHE)
    spec = model_specs()["osp-mini"]
    assert spec.teacache == CacheFigures(values=(2.0, -1.5), source="measured", threshold=0.2)
    assert spec.magcache == CacheFigures(values=(1.0, 0.9), source="measured")


def test_a_card_without_figures_refuses_the_caches_that_need_them(presets):
    path = presets / "models" / "osp-mini.toml"
    path.write_text(without_figures(path.read_text()))
    spec = model_specs()["osp-mini"]
    assert spec.cache_problem("none") is None
    assert spec.cache_problem("fbcache") is None
    assert "coefficients of its model, the card of osp-mini" in str(spec.cache_problem("teacache"))
    assert "ratios of its model, the card of osp-mini" in str(spec.cache_problem("magcache"))
    assert "unknown cache 'tea'" in str(spec.cache_problem("tea"))


def test_the_built_in_model_says_why_it_has_no_teacache():
    spec = find_model("osp-mini")
    assert spec.cache_problem("teacache") == (
        "TeaCache does not work with osp-mini: its modulation is the same at every step"
    )
    from safetensors import safe_open

    [path] = (spec.weights_dir() / "transformer").glob("*.safetensors")
    with safe_open(path, framework="pt") as weights:
        for name in ("weight", "bias"):
            assert not weights.get_tensor(f"condition_embedder.time_proj.{name}").any()


def test_a_reason_and_figures_exclude_each_other(presets):
    path = presets / "models" / "osp-mini.toml"
    path.write_text(path.read_text() + TEACACHE)
    with pytest.raises(InvalidRequestError, match="no_teacache stands beside a table teacache"):
        model_specs()


@pytest.mark.parametrize(
    ("name", "base", "steps"),
    [
        ("flashi2v-1.3b", "Wan2.1-T2V-1.3B", 50),
        ("uniworld-osp2-14b", "Wan2.1-T2V-14B", 50),
        ("wan2.1-t2v-1.3b", "Wan2.1-T2V-1.3B", 50),
        ("wan2.1-t2v-14b", "Wan2.1-T2V-14B", 50),
        ("wan2.1-i2v-14b-480p", "Wan2.1-I2V-14B-480P", 40),
        ("wan2.1-i2v-14b-720p", "Wan2.1-I2V-14B-720P", 40),
    ],
)
def test_the_large_cards_carry_their_base_model_s_figures(name, base, steps):
    spec = find_model(name)
    assert spec.teacache is not None
    assert spec.magcache is not None
    assert base in spec.teacache.source
    assert base in spec.magcache.source
    facts = json.loads((Path(__file__).parent / "golden/data/teacache.json").read_text())
    published = facts["coefficients_videox_fun(signal e0)"][base]
    assert spec.teacache.values == tuple(published)
    # The paper's, or its default.
    assert spec.teacache.threshold in (0.1, None)
    assert len(spec.magcache.values) == steps
    assert spec.magcache.values[0] == 1.0


# --- cards of plain Wan, and cards that make no video ------------------------------------------


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("wan")])
def test_the_cards_of_wan(name):
    spec = find_model(name)
    i2v = "i2v" in name
    assert spec.pipeline == ("wan-i2v" if i2v else "wan-t2v")
    assert (spec.text_to_video, spec.image_to_video) == (not i2v, i2v)
    assert not spec.has_latent_shifting
    assert "cutoff" not in spec.defaults
    assert spec.defaults["sampler"] == "unipc"
    assert ("image_encoder" in spec.dtypes) == ("image_encoder" in spec.parts) == i2v
    assert spec.run_problem() is None
    # Its own words, not those of the weights' authors.
    assert (
        spec.defaults["negative_prompt"] == find_model("flashi2v-1.3b").defaults["negative_prompt"]
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_card_says_where_each_part_is_and_how_large(name):
    spec = find_model(name)
    assert spec.architecture is not None
    assert spec.source
    unpublished = ("transformer", "adapter") if name == "uniworld-osp2-14b" else ()
    assert spec.unpublished == unpublished
    assert len({item.part for item in spec.downloads}) == len(spec.downloads)
    for item in spec.downloads:
        assert item.files
        if item.subfolder:
            assert all(pattern.startswith(f"{item.subfolder}/") for pattern in item.files)
        # The bytes fit the numbers, in a precision that there is.
        numbers = spec.architecture.parameters.get(item.part)
        if numbers is not None and item.bytes is not None:
            each = item.bytes / numbers
            assert any(abs(each - width) < 0.01 * width for width in (2, 4)), item


def test_only_what_was_compared_with_the_hub_is_called_checked():
    checked = {
        item.repo for spec in model_specs().values() for item in spec.downloads if item.checked
    }
    assert checked == {
        "Wan-AI/Wan2.1-T2V-1.3B",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    }


def test_cards_share_what_is_the_same_on_the_hub():
    """Text encoder, tokenizer and autoencoder of all Wan2.1 models lie in the cache once."""
    for part in ("text_encoder", "tokenizer", "vae"):
        shared = {
            next(item for item in find_model(name).downloads if item.part == part)
            for name in PUBLISHED
            if name.startswith(("wan", "flash"))
        }
        assert len(shared) == 1
    qwen, uniworld = find_model("qwen2.5-vl-7b"), find_model("uniworld-osp2-14b")
    [alone] = qwen.downloads
    inside = next(item for item in uniworld.downloads if item.part == "text_encoder")
    assert inside == alone


@pytest.mark.parametrize(
    ("name", "words"), [("qwen2.5-vl-7b", "makes no videos"), ("helios-14b-distilled", "streams")]
)
def test_cards_that_cannot_be_run_say_why(name, words):
    assert words in str(find_model(name).run_problem())


def test_a_card_that_makes_no_video_has_no_geometry(presets):
    spec = find_model("qwen2.5-vl-7b")
    assert (spec.sizes, spec.vae_class, spec.conditioner) == ((), "", "")
    path = presets / "models" / "qwen2.5-vl-7b.toml"
    path.write_text(path.read_text().replace("[dtypes]", "[geometry]\nmultiple_of = 16\n[dtypes]"))
    model_specs.cache_clear()
    with pytest.raises(InvalidRequestError, match="geometry is not a known key"):
        model_specs()


def test_a_card_must_say_the_precision_of_its_image_encoder(presets):
    path = presets / "models" / "wan2.1-i2v-14b-480p.toml"
    path.write_text(path.read_text().replace('image_encoder = "float32"\n', ""))
    with pytest.raises(InvalidRequestError, match=r"dtypes\.image_encoder is missing"):
        model_specs()


@pytest.mark.parametrize(("edit", "problem"), BROKEN_CARDS)
def test_broken_card_is_refused_by_file_and_key(presets, edit, problem):
    path = presets / "models" / "osp-mini.toml"
    path.write_text(edit(path.read_text()))
    with pytest.raises(InvalidRequestError) as caught:
        model_specs()
    assert caught.value.message.startswith("models/osp-mini.toml")
    assert problem in caught.value.message


def test_a_fourteenth_style_is_a_file_and_no_code(presets):
    text = (presets / "styles" / "ink.toml").read_text()
    new = text.replace('name = "ink"', 'name = "charcoal"')
    (presets / "styles" / "charcoal.toml").write_text(new)
    assert set(style_presets()) == STYLES | {"charcoal"}


@pytest.mark.parametrize("name", ["Charcoal", "ink+oil", "a..b", "a-", "all", "none", "a b"])
def test_a_style_whose_name_says_something_else_is_refused(presets, name):
    text = (presets / "styles" / "ink.toml").read_text()
    (presets / "styles" / f"{name}.toml").write_text(text.replace('"ink"', f'"{name}"'))
    with pytest.raises(InvalidRequestError, match="must be of small letters, digits and hyphens"):
        style_presets()


def test_the_live_card_is_the_built_in_model_in_fewer_steps():
    """The weights are shared, so all that is true of them must be said alike."""
    mini, live = find_model("osp-mini"), find_model("osp-mini-live")
    assert live.weights_dir() == mini.weights_dir()
    of_its_own = {"name", "title", "description", "defaults", "magcache"}
    for field in dataclasses.fields(mini):
        if field.name not in of_its_own:
            assert getattr(live, field.name) == getattr(mini, field.name), field.name
    assert live.defaults["num_inference_steps"] == 4
    assert live.defaults["num_inference_steps"] < mini.defaults["num_inference_steps"]
    assert live.defaults["guidance_scale"] == 1.0
    assert live.cache_problem(live.defaults["cache"]) is None
    for name in ("num_frames", "fps", "shift", "prompt", "negative_prompt"):
        assert live.defaults[name] == mini.defaults[name], name


def test_weights_are_found_where_the_error_said(tmp_path, monkeypatch):
    monkeypatch.setenv("OSP_HOME", str(tmp_path))
    spec = find_model("flashi2v-1.3b")
    with pytest.raises(WeightsMissingError) as caught:
        spec.weights_dir()
    folder = tmp_path / "models" / "flashi2v-1.3b"
    assert str(folder) in str(caught.value.hint)
    for part in spec.parts:
        assert spec.find_weights() is None
        (folder / part).mkdir(parents=True)
    assert spec.weights_dir() == folder


def test_weights_home_without_a_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("OSP_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry.weights_home().name == "models"
    assert registry.weights_home().parent.name == "osp"
