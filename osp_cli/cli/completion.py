"""`osp completion`: a script from which a shell completes command lines of `osp`.

The scripts are written from the commands themselves and are static: nothing of Python starts
when TAB is pressed. `python -m osp_cli.cli.completion` writes those of the folder `completions`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from osp_cli.cli import console
from osp_cli.cli.options import DebugOpt
from osp_cli.errors import InvalidRequestError

# What each script is called in the folder `completions`, by the shell that reads it.
SCRIPTS = {
    "bash": "osp.bash",
    "zsh": "_osp",
    "fish": "osp.fish",
    "powershell": "osp.ps1",
}

EXAMPLES = """\
\b
To keep one, open a new shell after:
  osp completion bash > ~/.local/share/bash-completion/completions/osp
  osp completion zsh > "${fpath[1]}/_osp"
  osp completion fish > ~/.config/fish/completions/osp.fish
  osp completion powershell >> $PROFILE
"""


def script(shell: str, group: Any) -> str:
    """The completion script of `shell` for the program whose outermost command is `group`.

    Raises:
        InvalidRequestError: no such shell.
    """
    from osp_cli.cli import shells
    from osp_cli.cli.description import describe, known_values

    writers = {
        "bash": shells.bash,
        "zsh": shells.zsh,
        "fish": shells.fish,
        "powershell": shells.powershell,
    }
    if shell not in writers:
        raise InvalidRequestError(
            f"unknown shell {shell!r}", hint=f"the shells are: {', '.join(writers)}"
        )
    return writers[shell](describe(group), known_values())


def write_scripts(folder: Path) -> list[Path]:
    """Write the scripts of all shells into `folder`; gives their paths."""
    from osp_cli.cli.app import app

    group = typer.main.get_command(app)
    folder.mkdir(exist_ok=True)
    paths = []
    for shell, name in SCRIPTS.items():
        path = folder / name
        path.write_text(script(shell, group), encoding="utf-8", newline="\n")
        paths.append(path)
    return paths


def completion(
    context: typer.Context,
    shell: Annotated[
        str,
        typer.Argument(metavar="SHELL", help=f"One of {', '.join(SCRIPTS)}", show_default=False),
    ],
    debug: DebugOpt = False,
) -> None:
    """Print a script that lets a shell complete osp's command lines."""
    text = script(shell.lower(), context.find_root().command)
    console.write_line(text.rstrip("\n"))


if __name__ == "__main__":
    for written in write_scripts(Path(__file__).resolve().parents[2] / "completions"):
        console.write_line(str(written))
