"""Model cards and style presets: the TOML files under `presets/` as frozen dataclasses.

Presets are data: a fourteenth style is one more file and no code. A file is checked when
it is read, and a wrong key is refused with the file's name, so a typing error never turns
into a silent default.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from osp_cli.errors import InvalidRequestError, WeightsMissingError
from osp_cli.realtime_card import RealtimeFigures, read_realtime

VAE_CLASSES = ("AutoencoderKLWan", "AutoencoderLinear")
CONDITIONERS = ("umt5", "qwen2.5-vl", "qwen2.5-vl-released")
PIPELINES = ("flash-i2v", "wan-t2v", "wan-i2v", "helios", "none")
_FEWER_BITS = ("fp8", "int8", "nf4")
STYLE_PROMPTS = ("short", "template")
RESTYLES = ("renoise", "frames")
STEP_CACHES = ("none", "teacache", "fbcache", "magcache")
DTYPES = ("bfloat16", "float16", "float32")

_PACKAGE = Path(__file__).resolve().parent
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFigures:
    """What a step cache must know of one model.

    Attributes:
        values: TeaCache's polynomial of the signal e0, highest power first, or MagCache's ratios,
            one a step, of the conditional pass.
        source: where they were published, or how they were measured.
        threshold: of the cache where the user gives none; None leaves it to the cache.
    """

    values: tuple[float, ...]
    source: str
    threshold: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """Published files that make one part of a model.

    Attributes:
        part: folder of the installed model that they make.
        repo: repository of the hub, as in `Wan-AI/Wan2.1-T2V-1.3B`.
        revision: branch, tag or commit.
        files: patterns of file names in the repository, as in `vae/*`.
        subfolder: folder of the repository that is the part; empty where it is the root, or where
            single files are converted.
        bytes: of all of them, as published or worked out from the shapes; None where unknown.
        checked: names and sizes were compared with the hub; False is said to the user.
    """

    part: str
    repo: str
    files: tuple[str, ...]
    revision: str = "main"
    subfolder: str = ""
    bytes: int | None = None
    checked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How large a model is, so that a run can be planned before anything was downloaded.

    Attributes:
        layers: blocks of the transformer.
        width: channels of its hidden states.
        heads: of its attention.
        ffn: channels inside its feed-forward layers.
        parameters: how many numbers each part holds, by the name of its folder.
    """

    layers: int
    width: int
    heads: int
    ffn: int
    parameters: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model card.

    Attributes:
        name: what `--model` takes; also the file's name.
        title: the model's full name.
        description: one line.
        licence: of the weights.
        source: where the weights come from: a hub repository, an address, or `embedded`.
        embedded: the weights are part of this package.
        weights: folder name below the weights' home.
        parts: sub-folders that must be there for the weights to count as installed.
        pipeline: the order of operations that runs it; `none` makes no video, it is a part that
            other models use.
        downloads: where its parts are published, and which files they are.
        architecture: how large it is, where the card tells.
        vae_class: class of the autoencoder.
        conditioner: what turns prompt and picture into `encoder_hidden_states`.
        max_sequence_length: of the conditioner's text, in tokens.
        style_prompt: `template` writes a style's full prompt, `short` its short phrase.
        sizes: `(width, height)` buckets; the one nearest to the picture is used.
        default_size: the bucket used without a picture.
        multiple_of: width and height of any other size are multiples of this.
        max_pixels: width times height at most.
        max_frames: of one clip.
        scale_factor_spatial: pixels per latent cell along each side.
        scale_factor_temporal: frames per latent frame after the first.
        latent_channels: of the autoencoder.
        image_token_patch: edge of the square of latents in an image token (Eq. 3), where
            the conditioner has any.
        image_token_positions: image tokens carry their coordinates.
        image_token_surround: cells of the mirrored picture around it that image tokens show too.
        has_latent_shifting: the model shifts latents by phi of the first frame (Eq. 16).
        text_to_video: it can make a video without a picture; a card that does not say so can.
        defaults: values for what the user leaves out, by field name of the request; what
            the card leaves out too is the paper's.
        dtypes: precision of each component's weights, for those that the pipeline has.
        teacache: coefficients of TeaCache, or None: it would skip by another model's numbers.
        no_teacache: why there can be none for this model, or empty.
        magcache: ratios of MagCache, or None likewise.
        whole_weights: why its weights cannot be stored in fewer bits, or empty.
        restyle: how it makes one video of another: `renoise` samples the partly re-noised latents,
            under the conditions of the first frame; `frames` is shown every frame as a
            picture of its own.
        realtime: how it continues videos chunk by chunk; None where it cannot.
    """

    name: str
    title: str
    description: str
    licence: str
    source: str
    embedded: bool
    weights: str
    parts: tuple[str, ...]
    vae_class: str
    conditioner: str
    max_sequence_length: int
    style_prompt: str
    sizes: tuple[tuple[int, int], ...]
    default_size: tuple[int, int]
    multiple_of: int
    max_pixels: int
    max_frames: int
    scale_factor_spatial: int
    scale_factor_temporal: int
    latent_channels: int
    has_latent_shifting: bool
    text_to_video: bool = True
    image_token_patch: int
    image_token_positions: bool
    image_token_surround: int
    defaults: dict[str, int | float | str]
    dtypes: dict[str, str]
    teacache: CacheFigures | None = None
    no_teacache: str = ""
    magcache: CacheFigures | None = None
    whole_weights: str = ""
    restyle: str = "renoise"
    realtime: RealtimeFigures | None = None
    pipeline: str = "flash-i2v"
    downloads: tuple[Download, ...] = ()
    architecture: Architecture | None = None

    @property
    def image_to_video(self) -> bool:
        """Whether it can be shown a picture."""
        return self.pipeline not in ("wan-t2v", "none")

    @property
    def unpublished(self) -> tuple[str, ...]:
        """Parts that can be had nowhere, so that they must be put in place by hand."""
        published = {item.part for item in self.downloads}
        return () if self.embedded else tuple(p for p in self.parts if p not in published)

    def run_problem(self) -> str | None:
        """Why no clip can be made with this card, as a sentence; None where one can."""
        if self.pipeline == "none":
            return f"{self.name} makes no videos, it is a part that other models use"
        if self.pipeline == "helios":
            return f"{self.name} makes endless streams, with osp extend"
        return None

    def stream_problem(self) -> str | None:
        """Why no video can be continued with this card, as a sentence; None where one can."""
        if self.pipeline == "none":
            return f"{self.name} makes no videos, it is a part that other models use"
        if self.realtime is None:
            return f"{self.name} cannot continue a video: its card has no table [realtime]"
        return None

    def restyle_problem(self) -> str | None:
        """Why it cannot make one video of another, as a sentence; None where it can."""
        if self.pipeline == "wan-i2v":
            # Its first frame stays the photo that it was given, whatever the prompt says.
            return f"{self.name} holds on to the first frame as it is, it cannot restyle a video"
        return self.run_problem()

    @property
    def train_mode(self) -> str:
        """What adapters of this card are trained for, of `train_request.MODES`."""
        if self.pipeline == "wan-i2v":
            return "inpaint"
        return "flash" if self.has_latent_shifting else "t2v"

    def train_problem(self, mode: str) -> str | None:
        """Why no adapter can be trained for it in this mode, as a sentence; None where one can."""
        if self.pipeline in ("none", "helios"):
            return f"{self.name} cannot be trained here: adapters are for models that make clips"
        if mode == "t2v" and not (self.text_to_video and self.pipeline != "wan-i2v"):
            return f"{self.name} moves pictures, it cannot be trained to invent one"
        if mode == "flash" and not self.has_latent_shifting:
            return f"{self.name} has no latent shifting, which --mode flash trains with"
        if mode == "inpaint" and self.pipeline != "wan-i2v":
            return f"{self.name} has no channels for a mask, which --mode inpaint trains with"
        return None

    def precision_problem(self, dtype: str, quant: str) -> str | None:
        """Why its weights cannot be stored so, as a sentence; None where they can."""
        asked = f"--quant {quant}" if quant in _FEWER_BITS else f"--dtype {dtype}"
        if not self.whole_weights or not (quant in _FEWER_BITS or dtype == "bfloat16"):
            return None
        return f"{self.name} does not bear {asked}: {self.whole_weights}"

    def cache_problem(self, kind: str) -> str | None:
        """Why the step cache `kind` cannot run on this model, as a sentence; None where it can."""
        if kind not in STEP_CACHES:
            return f"unknown cache {kind!r}, the caches are: {', '.join(STEP_CACHES)}"
        if kind == "teacache" and self.no_teacache:
            return f"TeaCache does not work with {self.name}: {self.no_teacache}"
        if kind == "teacache" and self.teacache is None:
            return f"TeaCache needs coefficients of its model, the card of {self.name} has none"
        if kind == "magcache" and self.magcache is None:
            return f"MagCache needs ratios of its model, the card of {self.name} has none"
        return None

    def weights_places(self) -> tuple[Path, ...]:
        """The folders in which the weights are looked for, in that order."""
        home = weights_home() / self.weights
        return (_PACKAGE / "assets" / self.weights, home) if self.embedded else (home,)

    def find_weights(self) -> Path | None:
        """The folder that holds the weights, or None when they are not installed."""
        for folder in self.weights_places():
            if folder.is_dir() and all((folder / part).is_dir() for part in self.parts):
                return folder
        return None

    def weights_dir(self) -> Path:
        """The folder that holds the weights.

        Raises:
            WeightsMissingError: they are not installed; the hint says where to put them.
        """
        found = self.find_weights()
        if found is not None:
            return found
        if self.embedded:
            raise WeightsMissingError(
                f"the weights of {self.name} come with the package but are not in it",
                hint="install osp-cli again; a checkout needs its osp_cli/assets folder",
            )
        places = f"a diffusers folder with {', '.join(self.parts)} at {self.weights_places()[-1]}"
        command = f"osp download {self.name}"
        lacking = ""
        if self.downloads and self.unpublished:
            command += " --local PATH"
            lacking = f"; not published yet: {', '.join(self.unpublished)}"
        ways = f"{command}, put {places}" if self.downloads else f"put {places}"
        raise WeightsMissingError(
            f"the weights of {self.name} are not installed{lacking}",
            hint=f"{ways}, or use the built-in --model osp-mini",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StylePreset:
    """One of the styles of `--style`.

    Attributes:
        name: what `--style` takes; also the file's name.
        title: the style's name in the paper.
        description: one line.
        origin: section of the paper that names it.
        prompt_template: full prompt, with `{prompt}` where the user's goes.
        short: the phrase that small models know, for example `ghibli style`.
        negative_prompt: what the style steers away from.
        sampler: settings that replace the card's, by field name of the request.
        adapter: a LoRA by its installed name, or its path seen from the style's file; empty where
            the prompt alone makes the style.
        adapter_weight: how strongly a whole style takes it in.
        screen: a pattern that stands still on the screen belongs to it, such as bricks or paper.
        is_own: it is the user's, not one of ours.
        source: the file it is in; None for ours, and where the file is gone.
        reference: what `--style` was given for it, where that is not its name.

    `negative_prompt` and `sampler` of ours were chosen for the full-size models and apply to cards
    whose `style_prompt` is `template`; those of the user's apply to any.
    """

    name: str
    title: str
    description: str
    origin: str
    prompt_template: str
    short: str
    negative_prompt: str
    sampler: dict[str, Any]
    adapter: str
    adapter_weight: float = 1.0
    screen: bool = False
    is_own: bool = False
    source: Path | None = None
    reference: str = ""

    def settings_for(self, spec: ModelSpec) -> dict[str, Any]:
        """What this style sets for `spec`, by field name of the request."""
        if self.is_own:
            negative = {"negative_prompt": self.negative_prompt} if self.negative_prompt else {}
            return {**negative, **self.sampler}
        if spec.style_prompt != "template":
            return {}
        return {"negative_prompt": self.negative_prompt, **self.sampler}

    def prompt_for(self, spec: ModelSpec, prompt: str) -> str:
        """`prompt` in this style, in the words that `spec` was trained on."""
        if spec.style_prompt == "short" and self.short:
            return f"{self.short}, {prompt}" if prompt else self.short
        filled = self.prompt_template.replace("{prompt}", prompt)
        # Without a prompt the style's own words remain, and no separator dangles.
        return filled if prompt else filled.strip(" ,;:")


def weights_home() -> Path:
    """The folder of weights that are not part of the package: `$OSP_HOME/models` if set."""
    home = os.environ.get("OSP_HOME")
    if home:
        return Path(home).expanduser() / "models"
    import platformdirs  # not needed by most commands

    return Path(platformdirs.user_data_dir("osp", appauthor=False)) / "models"


def presets_dir() -> Path:
    """The folder of presets: the wheel's copy, or the one of the checkout.

    Raises:
        InvalidRequestError: neither is there.
    """
    for folder in (_PACKAGE / "presets", _PACKAGE.parent / "presets"):
        if (folder / "models").is_dir() and (folder / "styles").is_dir():
            return folder
    raise InvalidRequestError(
        f"the presets folder is missing beside {_PACKAGE}", hint="install osp-cli again"
    )


@cache
def model_specs() -> dict[str, ModelSpec]:
    """All model cards by name, those with built-in weights first."""
    specs = [_model_spec(path) for path in _files("models")]
    return {spec.name: spec for spec in sorted(specs, key=lambda spec: not spec.embedded)}


@cache
def style_presets() -> dict[str, StylePreset]:
    """All style presets by name, in alphabetical order."""
    return {preset.name: preset for preset in map(_style_preset, _files("styles"))}


def _files(kind: str) -> list[Path]:
    """The presets of a kind by name, in which `a` comes before `a-b`, unlike in files' names."""
    return sorted((presets_dir() / kind).glob("*.toml"), key=lambda path: path.stem)


def find_model(name: str) -> ModelSpec:
    """The model card called `name`.

    Raises:
        InvalidRequestError: there is none; the hint offers the nearest names.
    """
    return _find("model", name, model_specs())


def find_style(name: str) -> StylePreset:
    """The style preset called `name`.

    Raises:
        InvalidRequestError: there is none; the hint offers the nearest names.
    """
    return _find("style", name, style_presets())


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of `names` that `name` may have meant, best first; perhaps none."""
    known = list(names)
    asked = name.strip().lower().replace(" ", "-").replace("_", "-")
    # One letter is inside nearly everything.
    inside = [
        candidate
        for candidate in known
        if len(asked) > 1 and (asked in candidate or candidate in asked)
    ]
    close = difflib.get_close_matches(asked, known, n=3, cutoff=0.6)
    return list(dict.fromkeys([*inside, *close]))[:3]


def _find(kind: str, name: str, known: dict[str, _T]) -> _T:
    if name in known:
        return known[name]
    raise unknown_name(kind, name, known)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InvalidRequestError:
    """The error of a name that nothing has; its hint offers the nearest ones, and all."""
    known = list(known)
    guesses = nearest(name, known)
    hint = f"did you mean {' or '.join(guesses)}? " if guesses else ""
    return InvalidRequestError(
        f"unknown {kind} {name!r}", hint=f"{hint}the {kind}s are: {', '.join(known)}"
    )


class _Table:
    """One TOML table being read; every problem is reported with the file and the key."""

    def __init__(self, path: Path, values: dict[str, Any], prefix: str = "") -> None:
        self._path = path
        self._values = dict(values)
        self._prefix = prefix

    def refuse(self, key: str, problem: str) -> InvalidRequestError:
        """An error about `key` that names the file."""
        place = f"{self._path.parent.name}/{self._path.name}"
        return InvalidRequestError(f"{place}: {self._prefix}{key} {problem}")

    def _take(self, key: str, kind: type | tuple[type, ...], word: str) -> Any:
        if key not in self._values:
            raise self.refuse(key, "is missing")
        value = self._values.pop(key)
        # bool is an int to Python, not to a reader of TOML.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.refuse(key, f"must be {word}, got {value!r}")
        return value

    def text(self, key: str, among: tuple[str, ...] = ()) -> str:
        value: str = self._take(key, str, "a string")
        if among and value not in among:
            raise self.refuse(key, f"must be one of {', '.join(among)}, got {value!r}")
        return value

    def boolean(self, key: str, default: bool | None = None) -> bool:
        if default is not None and key not in self._values:
            return default
        value: bool = self._take(key, bool, "true or false")
        return value

    def count(self, key: str) -> int:
        value: int = self._take(key, int, "a whole number")
        if value < 1:
            raise self.refuse(key, f"must be at least 1, got {value}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._take(key, list, "a list of strings")
        if not all(isinstance(value, str) for value in values):
            raise self.refuse(key, f"must be a list of strings, got {values!r}")
        return tuple(values)

    def size(self, key: str) -> tuple[int, int]:
        return self._as_size(key, self._take(key, list, "[width, height]"))

    def sizes(self, key: str) -> tuple[tuple[int, int], ...]:
        values = self._take(key, list, "a list of [width, height]")
        return tuple(self._as_size(key, value) for value in values)

    def _as_size(self, key: str, value: Any) -> tuple[int, int]:
        match value:
            case [int(width), int(height)] if width > 0 and height > 0:
                return width, height
        raise self.refuse(key, f"must hold [width, height], got {value!r}")

    def settings(self, key: str, kinds: dict[str, type]) -> dict[str, Any]:
        """The sub-table `key` with any of the keys of `kinds`; absent means empty."""
        values = self._values.pop(key, {})
        if not isinstance(values, dict):
            raise self.refuse(key, f"must be a table, got {values!r}")
        table = _Table(self._path, values, f"{key}.")
        words = {
            int: "a whole number",
            float: "a number",
            str: "a string",
            bool: "true or false",
        }
        found: dict[str, Any] = {}
        for name, kind in kinds.items():
            if name in values:
                # 3 is a fine way to write 3.0.
                accepted: type | tuple[type, ...] = (int, float) if kind is float else kind
                found[name] = kind(table._take(name, accepted, words[kind]))
        table.done()
        return found

    def numbers(self, key: str) -> tuple[float, ...]:
        values = self._take(key, list, "a list of numbers")
        if not values or not all(_is_number(value) for value in values):
            raise self.refuse(key, f"must be a list of numbers, got {values!r}")
        return tuple(float(value) for value in values)

    def positive(self, key: str) -> float | None:
        """A number above zero; None where it is absent."""
        if key not in self._values:
            return None
        value = self._take(key, (int, float), "a number")
        if not (_is_number(value) and value > 0):
            raise self.refuse(key, f"must be a number above 0, got {value!r}")
        return float(value)

    def has(self, key: str) -> bool:
        return key in self._values

    def tables(self, key: str) -> list[_Table]:
        """The list of tables `key`; absent means none."""
        values = self._values.pop(key, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.refuse(key, f"must be a list of tables, got {values!r}")
        return [
            _Table(self._path, value, f"{key}[{number}].") for number, value in enumerate(values)
        ]

    def counts(self, key: str) -> dict[str, int]:
        """The sub-table `key` of positive whole numbers by name."""
        table = self.table(key)
        return {name: table.count(name) for name in list(table._values)}

    def table(self, key: str) -> _Table:
        return _Table(self._path, self._take(key, dict, "a table"), f"{key}.")

    def done(self) -> None:
        """Refuse what nobody asked for."""
        for key in self._values:
            raise self.refuse(key, "is not a known key")


def _is_number(value: object) -> bool:
    # bool is an int to Python; TOML knows inf and nan.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Request fields that presets may set, with the type of their values.
SAMPLER_FIELDS: dict[str, type] = {
    "num_frames": int,
    "fps": int,
    "num_inference_steps": int,
    "guidance_scale": float,
    "shift": float,
    "cutoff": float,
    "sampler": str,
    "cache": str,
    "cache_start": int,
    "strength": float,
}


def _read(path: Path) -> _Table:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(
            f"{path.parent.name}/{path.name} is not valid TOML: {error}"
        ) from error
    return _Table(path, values)


def _named(table: _Table, path: Path) -> str:
    name = table.text("name")
    if name != path.stem:
        raise table.refuse("name", f"must be the file's name {path.stem!r}, got {name!r}")
    return name


def _cache_figures(card: _Table, key: str, values_key: str) -> CacheFigures | None:
    """The optional table `key` of a card."""
    if not card.has(key):
        return None
    table = card.table(key)
    figures = CacheFigures(
        values=table.numbers(values_key),
        source=table.text("source"),
        threshold=table.positive("threshold"),
    )
    table.done()
    # Unsourced numbers cannot be told from invented ones.
    if not figures.source.strip():
        raise table.refuse("source", "must say where the numbers come from")
    return figures


def _magcache_figures(card: _Table) -> CacheFigures | None:
    figures = _cache_figures(card, "magcache", "ratios")
    if figures is not None and min(figures.values) <= 0:
        raise card.refuse("magcache.ratios", f"must be above 0, got {min(figures.values):g}")
    return figures


def _downloads(card: _Table) -> tuple[Download, ...]:
    found = []
    for table in card.tables("downloads"):
        found.append(
            Download(
                part=table.text("part"),
                repo=table.text("repo"),
                files=table.texts("files"),
                revision=table.text("revision") if table.has("revision") else "main",
                subfolder=table.text("subfolder") if table.has("subfolder") else "",
                bytes=table.count("bytes") if table.has("bytes") else None,
                checked=table.boolean("checked", default=False),
            )
        )
        table.done()
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", found[-1].repo):
            raise table.refuse("repo", f"must be OWNER/NAME, got {found[-1].repo!r}")
    return tuple(found)


def _architecture(card: _Table) -> Architecture | None:
    if not card.has("architecture"):
        return None
    table = card.table("architecture")
    found = Architecture(
        layers=table.count("layers"),
        width=table.count("width"),
        heads=table.count("heads"),
        ffn=table.count("ffn"),
        parameters=table.counts("parameters"),
    )
    table.done()
    return found


def _model_spec(path: Path) -> ModelSpec:
    card = _read(path)
    pipeline = card.text("pipeline", PIPELINES) if card.has("pipeline") else "flash-i2v"
    dtypes = card.table("dtypes")
    image_tokens = card.settings("image_tokens", {"patch": int, "positions": bool, "surround": int})
    spec = ModelSpec(
        name=_named(card, path),
        title=card.text("title"),
        description=card.text("description"),
        licence=card.text("licence"),
        source=card.text("source"),
        embedded=card.boolean("embedded"),
        weights=card.text("weights"),
        parts=card.texts("parts"),
        image_token_patch=image_tokens.get("patch", 1),
        image_token_positions=image_tokens.get("positions", False),
        image_token_surround=image_tokens.get("surround", 0),
        defaults=card.settings(
            "defaults", {**SAMPLER_FIELDS, "negative_prompt": str, "prompt": str}
        ),
        dtypes={
            component: dtypes.text(component, DTYPES)
            for component in ("transformer", "vae", "conditioner", "image_encoder")
            if dtypes.has(component) or component in _COMPONENTS[pipeline]
        },
        teacache=_cache_figures(card, "teacache", "coefficients"),
        no_teacache=card.text("no_teacache") if card.has("no_teacache") else "",
        whole_weights=card.text("whole_weights") if card.has("whole_weights") else "",
        restyle=card.text("restyle", RESTYLES) if card.has("restyle") else "renoise",
        magcache=_magcache_figures(card),
        realtime=read_realtime(card.table("realtime")) if card.has("realtime") else None,
        pipeline=pipeline,
        downloads=_downloads(card),
        architecture=_architecture(card),
        **(_NO_VIDEO if pipeline == "none" else _video_fields(card)),
    )
    for table in (dtypes, card):
        table.done()
    if spec.teacache is not None and spec.no_teacache:
        raise card.refuse("no_teacache", "stands beside a table teacache")
    if foreign := [item.part for item in spec.downloads if item.part not in spec.parts]:
        raise card.refuse("downloads", f"makes {foreign[0]!r}, which is not among its parts")
    return spec


# What each pipeline computes with, and in which precision a card must therefore say.
_COMPONENTS = {
    **dict.fromkeys(PIPELINES, ("transformer", "vae", "conditioner")),
    "wan-i2v": ("transformer", "vae", "conditioner", "image_encoder"),
    "none": (),
}
# A card that makes no video has no table of its geometry, and nothing to say of these.
_NO_VIDEO: dict[str, Any] = {
    "vae_class": "",
    "conditioner": "",
    "max_sequence_length": 0,
    "style_prompt": "short",
    "has_latent_shifting": False,
    "text_to_video": False,
    "sizes": (),
    "default_size": (0, 0),
    "multiple_of": 1,
    "max_pixels": 0,
    "max_frames": 0,
    "scale_factor_spatial": 1,
    "scale_factor_temporal": 1,
    "latent_channels": 0,
}


def _video_fields(card: _Table) -> dict[str, Any]:
    """What only a card that makes videos says."""
    geometry = card.table("geometry")
    sizes, default_size = geometry.sizes("sizes"), geometry.size("default_size")
    fields = {
        "vae_class": card.text("vae_class", VAE_CLASSES),
        "conditioner": card.text("conditioner", CONDITIONERS),
        "max_sequence_length": card.count("max_sequence_length"),
        "style_prompt": card.text("style_prompt", STYLE_PROMPTS),
        "has_latent_shifting": card.boolean("has_latent_shifting"),
        "text_to_video": card.boolean("text_to_video", default=True),
        "sizes": sizes,
        "default_size": default_size,
        "multiple_of": geometry.count("multiple_of"),
        "max_pixels": geometry.count("max_pixels"),
        "max_frames": geometry.count("max_frames"),
        "scale_factor_spatial": geometry.count("scale_factor_spatial"),
        "scale_factor_temporal": geometry.count("scale_factor_temporal"),
        "latent_channels": geometry.count("latent_channels"),
    }
    geometry.done()
    if default_size not in sizes:
        raise geometry.refuse("default_size", "must be one of geometry.sizes")
    return fields


def _style_preset(path: Path) -> StylePreset:
    style = _read(path)
    # Names stand between the signs of a mixture, in any case, beside words of their own.
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", path.stem) or path.stem in ("all", "none"):
        raise style.refuse(
            "name", f"must be of small letters, digits and hyphens, not {path.stem!r}"
        )
    prompt = style.table("prompt")
    preset = StylePreset(
        name=_named(style, path),
        title=style.text("title"),
        description=style.text("description"),
        origin=style.text("origin"),
        adapter=style.text("adapter"),
        adapter_weight=style.positive("adapter_weight") or 1.0,
        screen=style.boolean("screen", default=False),
        prompt_template=prompt.text("template"),
        short=prompt.text("short"),
        negative_prompt=prompt.text("negative"),
        sampler=style.settings("sampler", SAMPLER_FIELDS),
    )
    for table in (prompt, style):
        table.done()
    if preset.prompt_template.count("{prompt}") != 1:
        raise prompt.refuse("template", "must contain {prompt} once")
    return preset
