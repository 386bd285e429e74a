"""From what was typed to requests: the strongest of many sources speaks, and is remembered.

flag > line of a batch's file > recipe that is made again > variable > configuration files > style
preset > model card > paper > the program's own default.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osp_cli.config import Layer
from osp_cli.dials import (
    DIALS,
    MAX_SEEDS,
    NO_CACHE,
    RANDOM_SEED,
    Cutoffs,
    LoraChoice,
    Loras,
    Seeds,
    Size,
    StepCacheChoice,
    step_cache,
)
from osp_cli.errors import InvalidRequestError
from osp_cli.loras import name_in_recipe
from osp_cli.outputs import OUTPUT_TEMPLATE, STDOUT, expand_output, latents_path, names_folder
from osp_cli.registry import ModelSpec, find_model, model_specs
from osp_cli.requests import (
    GenerateRequest,
    RestyleRequest,
    Sheet,
    check_fps,
    round_up_frames,
)
from osp_cli.style_adapters import with_adapters
from osp_cli.style_mix import NO_STYLE, StyleMix, read_style

DEFAULT_MODEL = "osp-mini"

# Section 5.1 of the paper: 49 frames at 16 fps in training; discrete Euler, sigma shift 7.0,
# guidance 5.0, 50 steps and a cutoff percentile of 0.1 in sampling.
PAPER_DEFAULTS: Mapping[str, int | float | str] = {
    "num_frames": 49,
    "fps": 16,
    "num_inference_steps": 50,
    "guidance_scale": 5.0,
    "shift": 7.0,
    "sampler": "euler",
    "cutoff": 0.1,
}
# Section 6.4 of the paper: Flow_UniPC with shift 3, TeaCache at 0.10 after 5 steps, 672x384. How
# far a video is re-noised it does not say.
STYLIZE_DEFAULTS: Mapping[str, int | float | str] = {
    **PAPER_DEFAULTS,
    "shift": 3.0,
    "sampler": "unipc",
    "cache": "teacache:0.1",
    "cache_start": 5,
}
# The paper's size, and others of its area for pictures of other shapes.
STYLIZE_SIZES = ((672, 384), (576, 448), (512, 512), (448, 576), (384, 672))
_OF_CLIPS = ("generate", "stylize")
_PAPER = {"generate": PAPER_DEFAULTS, "stylize": STYLIZE_DEFAULTS, "extend": PAPER_DEFAULTS}
PROGRAM_DEFAULTS: Mapping[str, Any] = {
    "model": DEFAULT_MODEL,
    "style": None,
    "prompt": "",
    "negative_prompt": "",
    "output": OUTPUT_TEMPLATE,
    "size": None,
    "seed": RANDOM_SEED,
    "count": None,
    "loras": Loras(),
    "cache": NO_CACHE,
    "cache_start": 5,
    "strength": 0.6,
    "preview": "none",
    "metadata": True,
    "device": "auto",
    "dtype": "auto",
    "offload": "auto",
    "quant": "auto",
    "attention": "auto",
    "vae_tiling": None,
    "compile": False,
    "gpus": 1,
    "max_vram": None,
    "max_ram": None,
}

# Stands for a length in seconds where the length is counted in frames.
_COUNTED = object()
# Seeds people can read aloud and type again.
_RANDOM_SEEDS = 2**32
# Fields of the request that no layer settles under that name.
_NOT_OF_REQUEST = ("size", "seed", "count", "output", "strength")


@dataclass(frozen=True, slots=True)
class Setting:
    """One settled value and where it came from."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Settled:
    """Requests with the history of their values.

    Attributes:
        requests: ready to run, one per seed.
        settings: every dial by the name of its flag, as it holds for all requests.
        notices: sentences about values that had to be changed.
        sheet: the page on which all requests come together, where they are to be compared.
    """

    requests: tuple[GenerateRequest, ...]
    settings: dict[str, Setting]
    notices: tuple[str, ...]
    sheet: Sheet | None = None

    @property
    def request(self) -> GenerateRequest:
        """The first request, where there is only one."""
        return self.requests[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a clip is made of besides its dials.

    Attributes:
        command: whose defaults hold, and whose name the recipe tells.
        image: path of the picture, `-` for the one in `image_data`.
        video: path of a video to restyle, in the place of a picture.
        called: what the output's `{name}` is made of, where that is not its file's name.
        image_data: bytes of a picture from stdin.
        text: prompt of a video without a picture.
        overwrite: existing outputs may be replaced.
        latents: a file of latents to go on from.
        replayed: the recipe that is made again, called `replayed_from`.
        number: of the line in a batch, for the output's `{n}`.
        place: of that line, for messages.
        misfit: says why the LoRA of a style, by its path, cannot be used with a model; None where
            it can. Without this function all can.
    """

    command: str = "generate"
    image: Path | None = None
    video: Path | None = None
    called: Path | None = None
    image_data: bytes | None = None
    text: str | None = None
    overwrite: bool = False
    latents: Path | None = None
    replayed: Mapping[str, Any] | None = None
    replayed_from: str = ""
    number: str = ""
    place: str = ""
    misfit: Callable[[str, ModelSpec], str | None] | None = None


def settle_generate(
    source: Source | None = None,
    *,
    layers: Sequence[Layer] = (),
    origin: str = "flag",
    **flags: Any,
) -> Settled:
    """Settle the dials of `osp generate` and make its requests.

    Args:
        source: picture or text, and how to treat files.
        layers: other sources of values than flags, strongest first.
        origin: what to call the place of the flags.
        flags: by field name of the request; besides, `size`, `seconds`, `seed` and `count`. None
            stands for a flag that was not given.

    Raises:
        InvalidRequestError: a value, or two values together, make no sense; the message tells
            where a value that was not typed comes from.
    """
    source = source or Source()
    _refuse_both("--text", source.text, "PROMPT", flags.get("prompt"))
    if source.text is not None:
        flags["prompt"] = source.text
    settings, notices = settle_dials(
        [Layer(origin, flags), *layers],
        source.command,
        any_length=source.video is not None,
        recipe=source.replayed,
    )
    if source.video is None:
        _refuse_strength(settings, source, typed=origin)
    else:
        spec = find_model(settings["model"].value)
        notices = (*notices, *_unheard(settings, spec, typed=origin))
    if source.command == "stylize" and settings["style"].origin == "default":
        raise InvalidRequestError(
            "a style is missing",
            hint="--style ink, --style all for one of each, or --style none; osp styles lists them",
        )
    try:
        requests, more = _requests(source, settings)
    except InvalidRequestError as error:
        raise _with_origin(error, settings, typed=origin) from None
    return Settled(requests, flag_names(settings), (*notices, *more))


def _unheard(settings: Mapping[str, Setting], spec: ModelSpec, *, typed: str) -> Iterator[str]:
    """What was typed to no effect, where a model paints a video frame by frame."""
    if spec.restyle != "frames":
        return
    fields = ("num_inference_steps", "sampler", "shift", "cache", "cache_start")
    names = [
        f"--{name}"
        for name, dial in DIALS.items()
        if dial.field in fields and settings[dial.field].origin in (typed, "flag")
    ]
    if names:
        yield f"{spec.name} paints each frame in one step, without regard to {', '.join(names)}"
    if settings["prompt"].origin in (typed, "flag"):
        yield f"{spec.name} takes the motion from the video: words of motion change nothing"


def _refuse_strength(settings: dict[str, Setting], source: Source, *, typed: str) -> None:
    """Leave out how far a video is re-noised where there is none.

    Raises:
        InvalidRequestError: it was typed.
    """
    if settings.pop("strength").origin in (typed, "flag"):
        what = source.image or "this"
        raise InvalidRequestError(
            f"--strength is for videos, and {what} is none",
            hint="--style ink:0.5 is half of a style",
        )


def flag_names(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """The same by the names of flags, in the order of `DIALS`."""
    return {name: settings[dial.field] for name, dial in DIALS.items() if dial.field in settings}


def settle_dials(
    layers: Sequence[Layer],
    command: str = "generate",
    *,
    any_length: bool = False,
    recipe: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Setting], tuple[str, ...]]:
    """Every dial by field name, with the value of the strongest source.

    Args:
        layers: what was given, strongest first; style, card and defaults come below.
        command: whose defaults are the paper's.
        any_length: frames are counted as asked, not rounded up to what one clip can have.
        recipe: that is made again, for styles that are here no more.

    Returns:
        The settings, and sentences about values that had to be changed. A random seed has been
        drawn, with the origin `random`.

    Raises:
        InvalidRequestError: two values contradict each other, or model or style are unknown.
    """
    above = [_checked(layer) for layer in layers]
    named = _strongest(("model", "style"), [*above, Layer("default", PROGRAM_DEFAULTS)])
    spec = find_model(named["model"].value)
    mix = _read_style(named, recipe, typed=layers[0].origin if layers else "flag")
    below = [Layer(f"card {spec.name}", spec.defaults), Layer("paper", _PAPER[command])]
    if mix is not None:
        style = mix.strongest
        below.insert(0, Layer(f"style {style.name}", style.settings_for(spec)))
    known = [*above, *below, Layer("default", PROGRAM_DEFAULTS)]
    fields = dict.fromkeys([*PROGRAM_DEFAULTS, *PAPER_DEFAULTS])
    settings = _strongest((*fields, "seconds"), known)
    settings["style"] = Setting(None if mix is None else str(mix), named["style"].origin)
    _settle_cutoff(settings, spec, typed={"flag", *(layer.origin for layer in layers[:1])})
    notices = _settle_cache(settings, spec)
    notices += _settle_frames(settings, spec, any_length=any_length)
    _settle_seeds(settings)
    return settings, tuple(notices)


def _settle_cache(settings: dict[str, Setting], spec: ModelSpec) -> list[str]:
    """Bring the cache into its form; the paper's is left out, and told, where it cannot run."""
    cache = _cache(settings["cache"].value)
    problem = spec.cache_problem(cache.kind) if settings["cache"].origin == "paper" else None
    if problem is None:
        settings["cache"] = Setting(cache, settings["cache"].origin)
        return []
    settings["cache"] = Setting(NO_CACHE, "default")
    return [f"no step cache: {problem}"]


def _settle_cutoff(settings: dict[str, Setting], spec: ModelSpec, *, typed: set[str]) -> None:
    """Bring the cutoff into its form, or leave it out where the model has no use for one.

    Raises:
        InvalidRequestError: it has no use for one, and one was typed. One that is stored somewhere
            is meant for other models.
    """
    cutoff = settings.pop("cutoff")
    if isinstance(cutoff.value, Cutoffs):
        raise InvalidRequestError(f"--cutoff takes one value here, got {cutoff.value}")
    if spec.has_latent_shifting:
        settings["cutoff"] = Setting(_ramp(cutoff.value), cutoff.origin)
    elif cutoff.origin in typed:
        shifting = [name for name, other in model_specs().items() if other.has_latent_shifting]
        raise InvalidRequestError(
            f"--cutoff filters the picture of models with latent shifting, {spec.name} has none",
            hint=f"leave it out, or take one of them: {', '.join(shifting)}",
        )


def recipe_layer(recipe: Mapping[str, Any], called: str) -> Layer:
    """The values of a recipe, so that it is made again where nothing else is asked.

    Args:
        recipe: as a run wrote it.
        called: the file that it was read from.

    Raises:
        InvalidRequestError: no recipe of these commands, or one that was tampered with.
    """
    if recipe.get("command") == "sheet":
        raise InvalidRequestError(
            f"{called} is a sheet of several videos, one of them can be made again",
            hint=f"they are in the folder {recipe.get('folder')!r} beside it",
        )
    if recipe.get("command") == "extend":
        raise InvalidRequestError(
            f"{called} was made by osp extend, which goes on from it",
            hint=f"osp extend {called}",
        )
    if recipe.get("command") not in _OF_CLIPS:
        raise InvalidRequestError(f"{called} was not made by osp {' or '.join(_OF_CLIPS)}")
    values: dict[str, Any] = {}
    try:
        for field, kind in _RECIPE_KINDS.items():
            # Nobody has settled it where the run decides.
            undecided = field == "vae_tiling" and recipe.get(field) is None
            if field in recipe and not undecided:
                values[field] = _of_kind(kind, recipe[field])
        if "video" in recipe:
            # What a model sees at once is the card's business; the length is what was asked for.
            total = recipe["total_frames"]
            values["num_frames"] = None if total is None else _of_kind(int, total)
        values["style"] = _of_kind(str, recipe.get("style") or NO_STYLE)
        values["size"] = Size(_of_kind(int, recipe["width"]), _of_kind(int, recipe["height"]))
        values["seed"] = Seeds([_of_kind(int, recipe["seed"])])
        # None was written for a model that has no use for one.
        if recipe["cutoff"] is not None:
            values["cutoff"] = tuple(_of_kind(float, part) for part in recipe["cutoff"])
            if len(values["cutoff"]) != 2:
                raise ValueError("cutoff holds two numbers")
        values["loras"] = Loras(
            LoraChoice(
                # A recipe may come from anyone: it names a file, not a path.
                name_in_recipe(_of_kind(str, entry["file"])),
                _of_kind(float, entry["weight"]),
                _of_kind(str, entry.get("style", "")),
            )
            for entry in _of_kind(list, recipe.get("loras", []))
        )
        values["cache"] = DIALS["cache"].read(_of_kind(str, recipe.get("cache", "none")))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InvalidRequestError(f"the recipe in {called} is damaged: {error}") from None
    # One clip is made again, however many the settings of this folder would ask for.
    values["count"] = 1
    return Layer(f"recipe of {called}", values)


_RECIPE_KINDS: Mapping[str, type] = {
    "model": str,
    "prompt": str,
    "negative_prompt": str,
    "num_frames": int,
    "fps": int,
    "num_inference_steps": int,
    "guidance_scale": float,
    "shift": float,
    "sampler": str,
    "cache_start": int,
    "strength": float,
    "dtype": str,
    "quant": str,
    "vae_tiling": bool,
    "compile": bool,
    "attention": str,
}


def _of_kind(kind: type, value: Any) -> Any:
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return kind(value)


def strongest_of(field: str, layers: Sequence[Layer]) -> Any:
    """What the strongest layer says of one dial; None where none says anything."""
    found = _strongest((field,), [_checked(layer) for layer in layers])
    return found[field].value if field in found else None


def _checked(layer: Layer) -> Layer:
    """The layer without empty values, with one size and one length.

    Raises:
        InvalidRequestError: it has two names for one thing.
    """
    values = {field: value for field, value in layer.values.items() if value is not None}
    unknown = values.keys() - {*PROGRAM_DEFAULTS, *PAPER_DEFAULTS, "seconds", "width", "height"}
    if unknown:
        raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
    width, height = values.pop("width", None), values.pop("height", None)
    place = "" if layer.origin == "flag" else f"{layer.origin}: "
    _refuse_both(f"{place}--size", values.get("size"), "--width/--height", width or height)
    if width is not None or height is not None:
        if width is None or height is None:
            given, missing = ("--width", "--height") if width else ("--height", "--width")
            raise InvalidRequestError(f"{given} needs {missing} too", hint="or use --size WxH")
        values["size"] = Size(width, height)
    seconds = values.get("seconds")
    _refuse_both(f"{place}--frames", values.get("num_frames"), "--seconds", seconds)
    if "num_frames" in values:
        # Hides the seconds of weaker layers.
        values["seconds"] = _COUNTED
    if isinstance(seeds := values.get("seed"), Seeds) and len(seeds) > 1:
        # Hides the count of weaker layers.
        values.setdefault("count", len(seeds))
    return Layer(layer.origin, values, layer.origins)


def _strongest(fields: Sequence[str], layers: Sequence[Layer]) -> dict[str, Setting]:
    """For each field the value of the first layer that has one; fields of no layer are left out."""
    found = {}
    for field in fields:
        for layer in layers:
            value = layer.values.get(field)
            if value is not None or (field in layer.values and layer.values is PROGRAM_DEFAULTS):
                found[field] = Setting(value, layer.origin_of(field))
                break
    return found


def _read_style(
    settings: Mapping[str, Setting], recipe: Mapping[str, Any] | None, *, typed: str
) -> StyleMix | None:
    text = settings["style"].value
    try:
        return None if text is None else read_style(text, recipe)
    except InvalidRequestError as error:
        raise _with_origin(error, settings, typed=typed) from None


def _settle_frames(settings: dict[str, Setting], spec: ModelSpec, *, any_length: bool) -> list[str]:
    """Bring seconds and frames together as `4k + 1` frames; says what was rounded."""
    seconds = settings.pop("seconds", None)
    frames = settings["num_frames"]
    if seconds is not None and seconds.value is not _COUNTED:
        frames = Setting(_frames_of(seconds.value, settings["fps"].value), seconds.origin)
    asked = frames.value
    possible = 1 <= asked <= spec.max_frames and not any_length
    settled = round_up_frames(asked, spec) if possible else asked
    settings["num_frames"] = Setting(settled, frames.origin)
    return [] if settled == asked else [f"{asked} frames rounded up to {settled}"]


def _settle_seeds(settings: dict[str, Setting]) -> None:
    """Bring seed and count together as a list of seeds.

    Raises:
        InvalidRequestError: a count that contradicts the seeds.
    """
    wanted, count = settings["seed"], settings["count"]
    if count.value is not None and not 1 <= count.value <= MAX_SEEDS:
        raise InvalidRequestError(f"--count must be 1 to {MAX_SEEDS}, got {count.value}")
    seeds, origin = wanted.value, wanted.origin
    if seeds == RANDOM_SEED:
        seeds, origin = Seeds([secrets.randbelow(_RANDOM_SEEDS)]), "random"
    if len(seeds) == 1:
        # One after the other, so that one number tells how to make all of them again.
        seeds = Seeds(seeds[0] + index for index in range(count.value or 1))
    elif count.value is not None and count.value != len(seeds):
        raise InvalidRequestError(
            f"--seed names {len(seeds)} videos, --count asks for {count.value}",
            hint="leave one of the two out",
        )
    settings["seed"] = Setting(seeds, origin)
    settings["count"] = Setting(len(seeds), count.origin)


def _requests(
    source: Source, settings: Mapping[str, Setting]
) -> tuple[tuple[GenerateRequest, ...], list[str]]:
    """The requests, and sentences about what their styles bring."""
    values = {field: setting.value for field, setting in settings.items()}
    size = values["size"] or (None, None)
    template = values["output"]
    seeds = values["seed"]
    if len(seeds) > 1 and template == str(STDOUT):
        raise InvalidRequestError(f"--output - takes one video, got {len(seeds)}")
    dials = {field: value for field, value in values.items() if field not in _NOT_OF_REQUEST}
    dials |= _of_the_source(source, values, settings)
    mix = None if values["style"] is None else read_style(values["style"], source.replayed)
    spec = find_model(values["model"])
    misfit = source.misfit or (lambda _path, _spec: None)
    dials["loras"], notices = with_adapters(
        mix, values["loras"], lambda path: misfit(path, spec), source.replayed
    )
    kind = GenerateRequest if source.video is None else RestyleRequest
    requests = tuple(
        kind(
            command=source.command,
            output=expand_output(
                template,
                image=source.called or source.video or source.image,
                prompt=values["prompt"],
                style=None if mix is None else mix.named,
                seed=seed,
                number=source.number,
            ),
            width=size[0],
            height=size[1],
            buckets=_buckets(source.command, spec),
            seed=seed,
            overwrite=source.overwrite,
            latents=source.latents,
            makes_folder=names_folder(template),
            place=source.place,
            replayed=source.replayed,
            replayed_from=source.replayed_from,
            **dials,
        )
        for seed in seeds
    )
    refuse_shared_outputs(requests, template)
    return requests, [*_lost_styles(mix, source), *notices]


def _lost_styles(mix: StyleMix | None, source: Source) -> Iterator[str]:
    """A sentence about each style that only the recipe still knows."""
    for preset in mix.presets if mix is not None else ():
        if preset.is_own and preset.source is None:
            yield (
                f"style {preset.name} is not installed here, its words are those of "
                f"{source.replayed_from}"
            )


def _of_the_source(
    source: Source, values: Mapping[str, Any], settings: Mapping[str, Setting]
) -> dict[str, Any]:
    """Fields of the request that say what the clip is made of."""
    if source.video is None:
        return {
            "image": source.image,
            "image_data": source.image_data,
            "text_only": source.text is not None,
        }
    # What is asked for is the result's length; how much the model sees at once is its own business.
    window = _window(find_model(values["model"]))
    frames = settings["num_frames"]
    asked = not re.match(r"card |style |paper$|default$", frames.origin)
    return {
        "video": source.video,
        "strength": values["strength"],
        "total_frames": frames.value if asked else None,
        "num_frames": window,
    }


def _window(spec: ModelSpec) -> int:
    """Frames that a model is shown at once."""
    return min(int(spec.defaults.get("num_frames", PAPER_DEFAULTS["num_frames"])), spec.max_frames)


def _buckets(command: str, spec: ModelSpec) -> tuple[tuple[int, int], ...]:
    """The paper's sizes for stylizing, where the card can make them; empty for the card's own."""
    if command != "stylize":
        return ()
    fit = all(
        not (width % spec.multiple_of or height % spec.multiple_of)
        and width * height <= spec.max_pixels
        for width, height in STYLIZE_SIZES
    )
    return STYLIZE_SIZES if fit else ()


def refuse_shared_outputs(requests: Sequence[GenerateRequest], template: str) -> None:
    """Refuse several videos under one name.

    Raises:
        InvalidRequestError: the hint offers a name with the seed in it.
    """
    # Latents too: `a.mp4` and `a.gif` would share theirs.
    names = {latents_path(request.output) for request in requests}
    if len(names) < len(requests):
        path = Path(template)
        if requests[0].output.suffix.lower() == ".png":
            # The folder makes them different.
            better = path.parent.with_name(path.parent.name + "-{seed}") / path.name
        else:
            better = path.with_name(path.stem + "-{seed}" + path.suffix)
        raise InvalidRequestError(
            f"{len(requests)} videos cannot all be {template}", hint=f"--output {better}"
        )


def _with_origin(
    error: InvalidRequestError, settings: Mapping[str, Setting], *, typed: str
) -> InvalidRequestError:
    """The error, saying where a value that was not typed comes from."""
    match = re.match(r"(?:--|unknown )([a-z-]+)", error.message)
    setting = settings.get(DIALS[match[1]].field) if match and match[1] in DIALS else None
    if setting is None or setting.origin in (typed, "flag", "paper", "default"):
        return error
    return type(error)(f"{error.message} (from {setting.origin})", hint=error.hint)


def _refuse_both(one: str, first: object, other: str, second: object) -> None:
    if first is not None and second is not None:
        raise InvalidRequestError(f"{one} and {other} say the same thing", hint="give one of them")


def _frames_of(seconds: float, fps: int) -> int:
    # The request refuses what is out of range; here the arithmetic only has to be possible.
    if not 0 < seconds <= 86400:
        raise InvalidRequestError(f"--seconds must be above 0 and at most 86400, got {seconds:g}")
    check_fps(fps)
    return math.ceil(seconds * fps - 1e-9)


def _cache(cache: str | StepCacheChoice) -> StepCacheChoice:
    """A card or style spells it as a user would."""
    choice: StepCacheChoice = step_cache(cache) if isinstance(cache, str) else cache
    return choice


def _ramp(cutoff: float | tuple[float, float]) -> tuple[float, float]:
    return cutoff if isinstance(cutoff, tuple) else (cutoff, cutoff)
