"""From what was typed after `osp extend` to its request.

As for clips, flag > variable > configuration > style > card > paper; `--realtime` puts its own
defaults (section 7.1: few steps, no guidance) above those of styles and cards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osp_cli.config import Layer
from osp_cli.dials import LoraChoice, Loras
from osp_cli.errors import InvalidRequestError
from osp_cli.extend_request import ExtendRequest, split_steps
from osp_cli.outputs import expand_output, names_folder
from osp_cli.registry import ModelSpec, find_model
from osp_cli.settings import Setting, flag_names, settle_dials, strongest_of
from osp_cli.style_adapters import with_adapters
from osp_cli.style_mix import read_style

if TYPE_CHECKING:
    from osp_cli.screenplay import Cue

# FLAGS: five seconds where nothing is said.
DEFAULT_SECONDS = 5.0
ENDLESS = math.inf
_NOT_OF_REQUEST = ("size", "seed", "count", "output", "strength", "num_frames", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """What goes on, and how, besides the dials.

    Attributes:
        video, image, image_data, text: what the stream begins with; at most one of them.
        latents: the state of the stream that `video` is, beside it.
        overwrite: an existing output may be replaced.
        realtime: `--realtime`.
        cues, screenplay: of a screenplay, and its file.
        sinks: where pictures go.
        context, latent_frames, stages: None for the card's.
        anchor_color: how far colours are held.
        resume: a state to take up.
        listens: stdin steers.
    """

    video: Path | None = None
    image: Path | None = None
    image_data: bytes | None = None
    text: str | None = None
    latents: Path | None = None
    overwrite: bool = False
    realtime: bool = False
    cues: tuple[Cue, ...] = ()
    screenplay: str = ""
    sinks: tuple[str, ...] = ("file",)
    context: int | None = None
    latent_frames: int | None = None
    stages: int | None = None
    anchor_color: float = 0.0
    resume: Path | None = None
    listens: bool = True


@dataclass(frozen=True, slots=True)
class SettledExtend:
    """The request with the history of its values, and sentences about what was changed."""

    request: ExtendRequest
    settings: dict[str, Setting]
    notices: tuple[str, ...]


def settle_extend(
    wanted: Continuation, *, layers: Sequence[Layer] = (), **flags: Any
) -> SettledExtend:
    """Settle the dials of `osp extend` and make its request.

    Args:
        wanted: what goes on.
        layers: other sources of values than flags, strongest first.
        flags: by field name of the request, None where not given.

    Raises:
        InvalidRequestError: a value, or two values together, make no sense.
    """
    above = [Layer("flag", flags), *layers]
    if wanted.text is not None:
        if flags.get("prompt") is not None:
            raise InvalidRequestError(
                "--text and PROMPT say the same thing", hint="give one of them"
            )
        above[0] = Layer("flag", {**flags, "prompt": wanted.text})
    settings, notices = dials_of(above, realtime=wanted.realtime)
    spec = find_model(settings["model"].value)
    if len(settings["seed"].value) > 1:
        raise InvalidRequestError(
            "osp extend makes one video, several seeds were given", hint="--seed 7"
        )
    mix = None if settings["style"].value is None else read_style(settings["style"].value)
    loras, more = _loras(mix, settings["loras"].value, spec)
    figures = spec.realtime
    usual = figures.steps if figures is not None and wanted.realtime else (1,)
    if wanted.stages is not None:
        usual = (1,) * wanted.stages
    elif figures is not None and figures.layout == "helios":
        usual = figures.steps
    steps = settings["num_inference_steps"].value
    values = {field: setting.value for field, setting in settings.items()}
    size = values["size"] or (None, None)
    [seed] = values["seed"]
    request = ExtendRequest(
        output=_output(wanted, values, mix_name=None if mix is None else mix.named, seed=seed),
        width=size[0],
        height=size[1],
        seed=seed,
        num_frames=_seen(wanted, spec),
        new_frames=_new_frames(values),
        makes_folder=names_folder(values["output"]),
        overwrite=wanted.overwrite,
        video=wanted.video,
        image=wanted.image,
        image_data=wanted.image_data,
        text_only=wanted.text is not None,
        latents=wanted.latents,
        realtime=wanted.realtime,
        cues=wanted.cues,
        screenplay=wanted.screenplay,
        sinks=wanted.sinks,
        context=_context(wanted, spec),
        latent_frames=_latent_frames(wanted, spec),
        stage_steps=split_steps(steps, usual),
        anchor_color=wanted.anchor_color,
        resume=wanted.resume,
        listens=wanted.listens,
        **{name: value for name, value in values.items() if name not in _NOT_OF_REQUEST}
        | {"loras": loras},
    )
    return SettledExtend(request, flag_names(settings), (*notices, *more))


def dials_of(
    layers: Sequence[Layer], *, realtime: bool
) -> tuple[dict[str, Setting], tuple[str, ...]]:
    """Every dial of `osp extend`, as `settle_dials` tells, with `seconds` instead of a length.

    Raises:
        InvalidRequestError: two values contradict each other, or a name is unknown.
    """
    spec = find_model(strongest_of("model", layers) or "osp-mini")
    given = [*layers, *_live(spec, realtime=realtime)]
    default = ENDLESS if realtime else DEFAULT_SECONDS
    length = Setting(default, "default")
    bare = []
    for layer in given:
        values = dict(layer.values)
        seconds, frames = values.pop("seconds", None), values.pop("num_frames", None)
        if seconds is not None and frames is not None:
            raise InvalidRequestError(
                "--frames and --seconds say the same thing", hint="give one of them"
            )
        if length.origin == "default":
            if seconds is not None:
                length = Setting(float(seconds), layer.origin_of("seconds"))
            elif frames is not None:
                length = Setting(int(frames), layer.origin_of("num_frames"))
        bare.append(Layer(layer.origin, values, layer.origins))
    settings, notices = settle_dials(bare, "extend", any_length=True)
    settings["seconds"] = length
    del settings["num_frames"], settings["strength"]
    return settings, notices


def _live(spec: ModelSpec, *, realtime: bool) -> list[Layer]:
    """What `--realtime` sets for a model that was trained for it; others keep their own ways.

    One whose stages are trained knows no other way.
    """
    figures = spec.realtime
    if figures is None or not figures.trained:
        return []
    if not realtime and figures.layout != "helios":
        return []
    values = {
        "num_inference_steps": sum(figures.steps),
        "guidance_scale": 1.0,
        "sampler": figures.sampler,
    }
    return [Layer("--realtime" if realtime else f"card {spec.name}", values)]


def _new_frames(values: Mapping[str, Any]) -> int | None:
    """Pictures to add; a whole number is one already, seconds are a `float`."""
    length: int | float = values["seconds"]
    if isinstance(length, int):
        return int(length)
    if length == math.inf:
        return None
    if not 0 < length <= 86400 * 30:
        raise InvalidRequestError(f"--seconds must be above 0, got {length:g}")
    frames: int = math.ceil(length * values["fps"] - 1e-9)
    return frames


def _context(wanted: Continuation, spec: ModelSpec) -> int:
    if wanted.context is not None:
        return wanted.context
    return 0 if spec.realtime is None else spec.realtime.context


def _latent_frames(wanted: Continuation, spec: ModelSpec) -> int:
    if wanted.latent_frames is not None:
        return wanted.latent_frames
    return 9 if spec.realtime is None else spec.realtime.latent_frames


def _seen(wanted: Continuation, spec: ModelSpec) -> int:
    """Frames that the model sees at once, for the plan."""
    seen = _latent_frames(wanted, spec)
    if spec.realtime is None or spec.realtime.layout == "osp":
        seen += _context(wanted, spec)
    return 1 + spec.scale_factor_temporal * (seen - 1)


def _output(
    wanted: Continuation, values: Mapping[str, Any], *, mix_name: str | None, seed: int
) -> Path:
    return expand_output(
        values["output"],
        image=wanted.video or wanted.image,
        prompt=values["prompt"],
        style=mix_name,
        seed=seed,
    )


def _loras(mix: Any, asked: Loras, spec: ModelSpec) -> tuple[tuple[LoraChoice, ...], list[str]]:
    chosen, notices = with_adapters(mix, asked, lambda _path: None, None)
    return tuple(chosen), list(notices)
