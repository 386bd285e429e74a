"""`osp doctor`: what is here, what is missing, and what a run would do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from osp_cli.cli import console
from osp_cli.cli.options import DebugOpt, JsonOpt

if TYPE_CHECKING:
    from osp_cli.cli.checks import Finding

EXAMPLES = """\
\b
Each line is ok, note (worth knowing) or problem (a run with the
settings of this folder would fail). The exit code is 1 if there is
any problem, else 0.
"""


def doctor(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:
    """Look at this machine, and tell what would run on it."""
    from osp_cli.cli.checks import examine, report

    found = []
    for finding in examine():
        found.append(finding)
        if not as_json:
            _show(finding)
    healthy = all(finding.state != "problem" for finding in found)
    if as_json:
        console.write_json(report(found))
    else:
        console.write_line("")
        problems = sum(finding.state == "problem" for finding in found)
        console.write_line(
            "a run would work" if healthy else f"a run would fail, problems: {problems}"
        )
    if not healthy:
        raise typer.Exit(1)


def _show(finding: Finding) -> None:
    for text in (
        f"{finding.state:<7} {finding.name}: {finding.message}",
        f"        hint: {finding.hint}" if finding.hint else "",
    ):
        if text and console.is_terminal(sys.stdout):
            console.write_line(_folded(text, console.columns()))
        elif text:
            console.write_line(text)


def _folded(text: str, width: int) -> str:
    """The text in lines of at most `width` columns, but for paths, which stay whole."""
    import textwrap

    columns = 8
    if width < 60:
        # No room for columns: only the first line of a finding begins at the left.
        columns = 2
        text = ("  " if text.startswith(" ") else "") + " ".join(text.split())
    return textwrap.fill(
        text,
        max(width, 16),
        subsequent_indent=" " * columns,
        break_long_words=False,
        break_on_hyphens=False,
    )
