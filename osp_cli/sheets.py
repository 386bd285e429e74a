"""Sheets: one input in several styles, or with several seeds or cutoffs, side by side.

A dial that holds several values is an axis. One axis makes a grid, two make a table. Each cell is
a video of its own in the folder named like the sheet, so nothing is lost when one of them fails,
and the same command goes on where it was interrupted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from osp_cli.config import Layer
from osp_cli.dials import Cutoffs, Seeds
from osp_cli.errors import InvalidRequestError
from osp_cli.outputs import STDOUT, expand_output, names_folder
from osp_cli.registry import style_presets
from osp_cli.requests import STDIN, Sheet
from osp_cli.settings import (
    Setting,
    Settled,
    Source,
    flag_names,
    settle_dials,
    settle_generate,
    strongest_of,
)
from osp_cli.style_mix import NO_STYLE, read_style

ALL_STYLES = "all"
MOVING_SHEETS = (".mp4", ".gif", ".webp")
STILL_SHEETS = (".png", ".jpg", ".jpeg")
MAX_CELLS = 200
# More styles than these are too many for the name of a file.
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class _Axis:
    """A dial with several values.

    Attributes:
        field: of the request.
        values: what the dial is set to, one after the other.
        labels: what to call them.
        name: stands for all of them in the sheet's own name.
    """

    field: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]
    name: str


def settle(
    source: Source, *, layers: Sequence[Layer] = (), origin: str = "flag", **flags: Any
) -> Settled:
    """As `settle_generate`, with dials that may hold several values.

    Several seeds alone are a sheet for `stylize` only: `generate` just makes the videos.

    Raises:
        InvalidRequestError: a value makes no sense, or three dials hold several.
    """
    given = [Layer(origin, flags), *layers]
    axes = [*_styles(given), *_cutoffs(given)]
    if not axes and (source.command == "generate" or not _several_seeds(given)):
        return settle_generate(source, layers=layers, origin=origin, **flags)
    first = {axis.field: axis.values[0] for axis in axes}
    dials, _ = settle_dials(
        [Layer(origin, {**flags, **first}), *layers],
        source.command,
        any_length=source.video is not None,
        recipe=source.replayed,
    )
    axes += _seeds(dials["seed"].value)
    if dials["preview"].value == "contact":
        if [axis.field for axis in axes] == ["seed"]:
            return settle_generate(source, layers=layers, origin=origin, **flags)
        raise InvalidRequestError(
            "--preview contact makes a sheet of seeds, and these are other things to compare",
            hint="leave it out, and all of them are made",
        )
    _refuse_too_much(axes)
    output = _output(source, dials, axes)
    # The seed is drawn once, and the file's name is the cell's.
    fixed = {"seed": Seeds([dials["seed"].value[0]]), "count": 1, "output": "{seed}.mp4"}
    settled = [
        (labels, settle_generate(source, layers=layers, origin=origin, **flags | fixed | chosen))
        for labels, chosen in _cells(axes)
    ]
    requests = tuple(
        replace(each.request, output=output.with_suffix("") / f"{name}.mp4", makes_folder=True)
        for name, each in settled
    )
    sheet = Sheet(
        output=output,
        title=str(flags.get("prompt") or ""),
        rows=axes[0].labels if len(axes) == 2 else ("",),
        columns=axes[-1].labels,
        requests=requests,
        source=_shown(source, axes),
        overwrite=source.overwrite,
        makes_folder=names_folder(dials["output"].value),
    )
    settings = flag_names({**dials, "output": Setting(str(output), dials["output"].origin)})
    notices = dict.fromkeys(notice for _, each in settled for notice in each.notices)
    return Settled(requests, settings, tuple(notices), sheet)


def _cells(axes: Sequence[_Axis]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The file's name and the dials of each cell, row by row."""
    for places in product(*(range(len(axis.values)) for axis in axes)):
        chosen = {axis.field: axis.values[place] for axis, place in zip(axes, places, strict=True)}
        labels = [axis.labels[place] for axis, place in zip(axes, places, strict=True)]
        yield "-".join(map(_slug, labels)), chosen


def _styles(given: Sequence[Layer]) -> list[_Axis]:
    """The axis of `ink,oil` or `all`, if several styles are asked for."""
    text = strongest_of("style", given)
    if text is None:
        return []
    styles: list[str] = []
    for part in text.split(","):
        word = part.strip()
        if not word and "," in text:
            raise InvalidRequestError(
                f"--style lacks a name before or after a comma, got {text!r}",
                hint="--style ink,oil,lego, or --style all",
            )
        styles += style_presets() if word.lower() == ALL_STYLES else [word]
    if len(styles) < 2:
        return []
    labels = tuple(map(_named, styles))
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise InvalidRequestError(f"--style names {twice[0]} twice, got {text!r}")
    name = "styles"
    if styles == [*style_presets()]:
        name = ALL_STYLES
    elif len(styles) <= _MOST_NAMED:
        name = "-vs-".join(map(_slug, labels))
    return [_Axis("style", tuple(styles), labels, name)]


def _named(style: str) -> str:
    """Its canonical name: a style may be called by the path of its file."""
    mix = read_style(style)
    return NO_STYLE if mix is None else mix.named


def _cutoffs(given: Sequence[Layer]) -> list[_Axis]:
    cutoffs = strongest_of("cutoff", given)
    if not isinstance(cutoffs, Cutoffs):
        return []
    labels = tuple(f"cutoff {cutoff}" for cutoff in cutoffs)
    return [_Axis("cutoff", tuple(cutoffs), labels, "cutoffs")]


def _several_seeds(given: Sequence[Layer]) -> bool:
    seeds, count = strongest_of("seed", given), strongest_of("count", given)
    return (isinstance(seeds, Seeds) and len(seeds) > 1) or (count is not None and count > 1)


def _seeds(seeds: Seeds) -> list[_Axis]:
    if len(seeds) < 2:
        return []
    labels = tuple(f"seed {seed}" for seed in seeds)
    values = tuple(Seeds([seed]) for seed in seeds)
    return [_Axis("seed", values, labels, f"{seeds[0]}-{seeds[-1]}")]


def _refuse_too_much(axes: Sequence[_Axis]) -> None:
    if len(axes) > 2:
        fields = ", ".join(f"{axis.field}s" for axis in axes)
        raise InvalidRequestError(
            f"a sheet compares one thing or two, and here are several {fields}",
            hint="leave one of them at a single value",
        )
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_CELLS:
        raise InvalidRequestError(
            f"a sheet holds at most {MAX_CELLS} videos, this asks for {count}",
            hint="ask for fewer, or osp generate makes them one by one",
        )


def _output(source: Source, dials: Mapping[str, Setting], axes: Sequence[_Axis]) -> Path:
    """Where the page goes.

    Raises:
        InvalidRequestError: no page can be written like that.
    """
    names = {axis.field: axis.name for axis in axes}
    template = dials["output"].value
    if template == str(STDOUT):
        raise InvalidRequestError(
            "--output - takes one video, a sheet is many and a page", hint="-o sheet.mp4"
        )
    path = expand_output(
        template,
        image=source.called or source.video or source.image,
        prompt=dials["prompt"].value,
        style=names.get("style", dials["style"].value),
        seed=names.get("seed", str(dials["seed"].value)),
        number=source.number,
    )
    if "cutoff" in names and names["cutoff"] not in path.stem and "{" in template:
        path = path.with_name(f"{path.stem}-{names['cutoff']}{path.suffix}")
    kinds = (*MOVING_SHEETS, *STILL_SHEETS)
    if path.suffix.lower() not in kinds or "%" in path.name:
        raise InvalidRequestError(
            f"--output of a sheet must end in {', '.join(kinds)}, got {path.name!r}",
            hint=f"-o {path.with_name('sheet.mp4')}",
        )
    return path


def _shown(source: Source, axes: Sequence[_Axis]) -> Path | None:
    """What all cells are made of; beside other seeds or cutoffs it would look like one more."""
    path = source.video or source.image
    return path if [axis.field for axis in axes] == ["style"] and path != STDIN else None


def _slug(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", label.replace("..", "-to-")).strip("-.") or "clip"
