"""From what was typed to a request: flag > style preset > model card > paper default.

Each value keeps its origin, so that a run can say why it uses the number it uses.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osp_cli.errors import InvalidRequestError
from osp_cli.registry import ModelSpec, StylePreset, find_model, find_style
from osp_cli.requests import OUTPUT_TEMPLATE, GenerateRequest, expand_output, round_up_frames

DEFAULT_MODEL = "osp-mini"

# Section 5.1 of the paper: 49 frames at 16 fps in training; discrete Euler, sigma shift 7.0,
# guidance 5.0, 50 steps and a cutoff percentile of 0.1 in sampling.
PAPER_DEFAULTS: Mapping[str, int | float | str] = {
    "num_frames": 49,
    "fps": 16,
    "num_inference_steps": 50,
    "guidance_scale": 5.0,
    "shift": 7.0,
    "cutoff": 0.1,
    "prompt": "",
    "negative_prompt": "",
}

# Seeds people can read aloud and type again.
_RANDOM_SEEDS = 2**32


@dataclass(frozen=True, slots=True)
class Setting:
    """One settled value and where it came from."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Settled:
    """A request with the history of its values.

    Attributes:
        request: ready to run.
        origins: for each dial of the request, `flag`, `style NAME`, `card NAME` or `paper`.
        notices: sentences about values that had to be changed.
    """

    request: GenerateRequest
    origins: dict[str, str]
    notices: tuple[str, ...]


def resolve(
    given: Mapping[str, Any], spec: ModelSpec, style: StylePreset | None
) -> dict[str, Setting]:
    """Every dial of the paper's defaults with the value of the strongest source.

    Args:
        given: flags by field name; None counts as not given.
        spec: the model card.
        style: the style preset, if any.
    """
    layers: list[tuple[str, Mapping[str, Any]]] = [("flag", given)]
    if style is not None:
        layers.append((f"style {style.name}", style.settings_for(spec)))
    layers += [(f"card {spec.name}", spec.defaults), ("paper", PAPER_DEFAULTS)]
    return {
        name: next(
            Setting(values[name], origin)
            for origin, values in layers
            if values.get(name) is not None
        )
        for name in PAPER_DEFAULTS
    }


def settle_generate(
    *,
    image: Path | None = None,
    text: str | None = None,
    prompt: str | None = None,
    style: str | None = None,
    negative_prompt: str | None = None,
    output: str | None = None,
    size: tuple[int, int] | None = None,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    seconds: float | None = None,
    fps: int | None = None,
    steps: int | None = None,
    cfg: float | None = None,
    shift: float | None = None,
    cutoff: tuple[float, float] | None = None,
    seed: int | None = None,
    model: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Settled:
    """Settle the flags of `osp generate`; None stands for a flag that was not given.

    Raises:
        InvalidRequestError: a value, or two values together, make no sense.
    """
    _refuse_both("--size", size, "--width/--height", width or height)
    _refuse_both("--frames", frames, "--seconds", seconds)
    _refuse_both("--text", text, "PROMPT", prompt)
    if size is not None:
        width, height = size
    spec = find_model(model or DEFAULT_MODEL)
    preset = None if style is None else find_style(style)
    settings = resolve(
        {
            "num_frames": frames,
            "fps": fps,
            "num_inference_steps": steps,
            "guidance_scale": cfg,
            "shift": shift,
            "cutoff": cutoff,
            "prompt": prompt if text is None else text,
            "negative_prompt": negative_prompt,
        },
        spec,
        preset,
    )
    notices: list[str] = []
    if seconds is not None:
        settings["num_frames"] = Setting(_frames_of(seconds, settings["fps"].value), "flag")
    asked_frames = settings["num_frames"].value
    if asked_frames >= 1 and (num_frames := round_up_frames(asked_frames, spec)) != asked_frames:
        settings["num_frames"] = Setting(num_frames, settings["num_frames"].origin)
        notices.append(f"{asked_frames} frames rounded up to {num_frames}")
    settings["cutoff"] = Setting(_ramp(settings["cutoff"].value), settings["cutoff"].origin)
    if seed is None:
        seed = secrets.randbelow(_RANDOM_SEEDS)
    values = {name: setting.value for name, setting in settings.items()}
    request = GenerateRequest(
        image=image,
        text_only=text is not None,
        style=style,
        output=expand_output(
            output or OUTPUT_TEMPLATE,
            image=image,
            prompt=values["prompt"],
            style=style,
            seed=seed,
        ),
        model=spec.name,
        width=width,
        height=height,
        seed=seed,
        device=device or "auto",
        dtype=dtype or "auto",
        overwrite=overwrite,
        **values,
    )
    origins = {name: setting.origin for name, setting in settings.items()}
    return Settled(request, origins, tuple(notices))


def _refuse_both(one: str, first: object, other: str, second: object) -> None:
    if first is not None and second is not None:
        raise InvalidRequestError(f"{one} and {other} say the same thing", hint="give one of them")


def _frames_of(seconds: float, fps: int) -> int:
    # The request refuses what is out of range; here the arithmetic only has to be possible.
    if not 0 < seconds <= 86400:
        raise InvalidRequestError(f"--seconds must be above 0 and at most 86400, got {seconds:g}")
    return math.ceil(seconds * fps - 1e-9)


def _ramp(cutoff: float | tuple[float, float]) -> tuple[float, float]:
    return cutoff if isinstance(cutoff, tuple) else (cutoff, cutoff)
