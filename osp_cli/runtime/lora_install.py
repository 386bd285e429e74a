"""Giving a LoRA a name: a copy of its files in the folder where `--lora NAME` looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from osp_cli.errors import InvalidRequestError
from osp_cli.loras import installed_loras, loras_home
from osp_cli.media.files import atomic_output, explained


def check_name(name: str, *, overwrite: bool) -> None:
    """Refuse a name that another LoRA has.

    Raises:
        InvalidRequestError: there is one, and it may not be replaced.
    """
    if not overwrite and (known := installed_loras().get(name)) is not None:
        raise InvalidRequestError(
            f"a LoRA {name!r} is installed already, as {known}",
            hint=f"--out {name}-2, or -y to replace it",
        )


def install(files: Sequence[Path], name: str, *, overwrite: bool = False) -> Path:
    """Copy a LoRA, and what belongs to it, to where it is found by its name.

    Args:
        files: the LoRA first, then its companion if it has one; named after `name`.
        name: that it will be known by.
        overwrite: another one of that name is replaced.

    Returns:
        The LoRA where it is installed.

    Raises:
        InvalidRequestError: another one has the name, or the folder cannot be written to.
        WontFitError: the disk is full.
    """
    check_name(name, overwrite=overwrite)
    home = loras_home()
    with explained(home):
        home.mkdir(parents=True, exist_ok=True)
    # What it needs comes first: where the LoRA is, all of it is.
    for file in reversed(files):
        with atomic_output(home / file.name, overwrite=overwrite) as part:
            part.write_bytes(file.read_bytes())
    return home / files[0].name
