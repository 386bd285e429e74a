"""`osp models`: what `--model` takes, and which of them can run here; and what is in a file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from osp_cli.cli import console
from osp_cli.cli.options import DebugOpt, JsonOpt
from osp_cli.errors import OspError

if TYPE_CHECKING:
    from osp_cli.registry import ModelSpec
    from osp_cli.runtime.inspection import Inspected

EXAMPLES = """\
\b
Examples:
  osp models
  osp models inspect style.safetensors
  osp models inspect style.safetensors --model osp-mini
  osp models inspect *.safetensors --json
"""

models = typer.Typer(rich_markup_mode=None)


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, as_json: JsonOpt = False, debug: DebugOpt = False) -> None:
    """List the models and where their weights are, or would go."""
    if context.invoked_subcommand is not None:
        return
    from osp_cli.registry import model_specs, weights_home

    specs = model_specs().values()
    if as_json:
        for spec in specs:
            console.write_json(
                {
                    "name": spec.name,
                    "title": spec.title,
                    "description": spec.description,
                    "licence": spec.licence,
                    "source": spec.source,
                    "embedded": spec.embedded,
                    "installed": _state(spec) in ("installed", "built in"),
                    "state": _state(spec),
                    "weights": _place(spec),
                    "sizes": [f"{width}x{height}" for width, height in spec.sizes],
                    "max_frames": spec.max_frames,
                }
            )
        return
    if console.is_terminal(sys.stdout):
        console.write_table(
            ("model", "weights", "about"),
            [(spec.name, _state(spec), spec.description) for spec in specs],
        )
        console.write_line(f"weights that are not built in: {weights_home() / 'MODEL'}")
        return
    for spec in specs:
        console.write_line("\t".join((spec.name, _state(spec), _place(spec), spec.description)))


def _state(spec: ModelSpec) -> str:
    from osp_cli.hub.whole import gap

    if spec.find_weights() is None:
        return "not installed"
    if gap(spec) is not None:
        return "incomplete"
    return "built in" if spec.embedded else "installed"


def _place(spec: ModelSpec) -> str:
    return str(spec.find_weights() or spec.weights_places()[-1])


@models.command(epilog=EXAMPLES)
def inspect(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="LoRAs, by path or name, or other weights in a file or folder",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME", help="Hold it against one of `osp models`"),
    ] = None,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Tell what is in a file of weights: a LoRA's layout, rank, strength and what it fits.

    The exit code is 1 where something in a file keeps it from being used.
    """
    from osp_cli.registry import find_model

    spec = None if model is None else find_model(model)
    from osp_cli.runtime.inspection import inspect as look_into

    errors: list[OspError] = []
    problems: list[Inspected] = []
    for number, name in enumerate(files):
        try:
            things = look_into(name, spec)
        except OspError as error:
            if len(files) == 1:
                raise
            console.say_error(error.message, error.hint)
            errors.append(error)
            continue
        problems += [found for found in things if found.problem]
        for index, found in enumerate(things):
            if as_json:
                console.write_json(found.as_json())
            else:
                _show(found, first=not number and not index)
    if errors:
        raise type(errors[0])(f"{len(errors)} of {len(files)} files cannot be read")
    if len(problems) == 1:
        raise OspError(problems[0].problem or "").at(str(problems[0].path))
    if problems:
        raise OspError(f"{len(problems)} files have a problem")


def _show(found: Inspected, *, first: bool) -> None:
    """A block of lines on a terminal; elsewhere file, name and value, parted by tabs."""
    from osp_cli.cli.showing import inspection_rows

    rows = inspection_rows(found)
    if not console.is_terminal(sys.stdout):
        for name, text in rows:
            console.write_line("\t".join((str(found.path), name, text)))
        return
    if not first:
        console.write_line("")
    console.write_line(str(found.path))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        console.write_row(f"  {name:<{width}}  ", text)
