"""`osp styles`: what `--style` takes."""

from __future__ import annotations

import sys

from osp_cli.cli import console
from osp_cli.cli.options import DebugOpt, JsonOpt


def styles(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:
    """List the styles."""
    from osp_cli.registry import style_presets

    presets = style_presets().values()
    if as_json:
        for preset in presets:
            console.write_json(
                {
                    "name": preset.name,
                    "title": preset.title,
                    "description": preset.description,
                    "origin": preset.origin,
                    "prompt_template": preset.prompt_template,
                    "short": preset.short,
                    "negative_prompt": preset.negative_prompt,
                    "sampler": preset.sampler,
                    "adapter": preset.adapter,
                }
            )
        return
    console.write_table(
        ("style", "looks like"), [(preset.name, preset.description) for preset in presets]
    )
    if console.is_terminal(sys.stdout):
        console.write_line("half of one: --style ghibli:0.5, a mixture: --style ink+watercolor")
