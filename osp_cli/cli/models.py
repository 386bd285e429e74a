"""`osp models`: what `--model` takes, and which of them can run here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from osp_cli.cli import console
from osp_cli.cli.options import DebugOpt, JsonOpt

if TYPE_CHECKING:
    from osp_cli.registry import ModelSpec


def models(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:
    """List the models and where their weights are, or would go."""
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
                    "installed": spec.find_weights() is not None,
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
    if spec.find_weights() is None:
        return "not installed"
    return "built in" if spec.embedded else "installed"


def _place(spec: ModelSpec) -> str:
    return str(spec.find_weights() or spec.weights_places()[-1])
