"""LoRAs, put where they are known by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from osp_cli.errors import InvalidRequestError
from osp_cli.loras import COMPANION_SUFFIX, SUFFIX, installed_loras, is_companion, loras_home
from osp_cli.media.files import atomic_output, explained


def check_name(name: str, *, overwrite: bool) -> None:
    """Refuse a name by which another LoRA is known.

    Raises:
        InvalidRequestError: there is one, or a companion without one, and it may not be replaced;
            or it is a folder.
    """
    known = installed_loras().get(name)
    if known is None:
        # What nothing names may be anybody's.
        stray = loras_home() / f"{name}{COMPANION_SUFFIX}"
        if stray.exists() and not overwrite:
            raise InvalidRequestError(
                f"{stray} is there already, and belongs to no LoRA {name!r}",
                hint=f"--out {name}-2, or -y to replace it",
            )
        return
    if not overwrite:
        raise InvalidRequestError(
            f"a LoRA {name!r} is installed already, as {known}",
            hint=f"--out {name}-2, or -y to replace it",
        )
    if known != loras_home() / f"{name}{SUFFIX}":
        raise InvalidRequestError(
            f"the LoRA {name!r} is a folder, {known.parent}",
            hint=f"move it away, or choose another name: --out {name}-2",
        )


def install(files: Iterable[Path], name: str, *, overwrite: bool = False) -> Path:
    """Put a LoRA, and what belongs to it, where it is known by its name.

    The files become hard links where that works, else copies; each appears whole or not at all,
    the LoRA last, so that it is never there without the other.

    Args:
        files: the LoRA, and its companion if it has one.
        name: what `--lora` and `--style` will call it.
        overwrite: whether one of this name may be replaced.

    Returns:
        Where the LoRA is now.

    Raises:
        InvalidRequestError: as `check_name`, or no folder can be made there.
        WontFitError: the disk is full.
        ValueError: this is not one LoRA with at most one companion.
    """
    given = list(files)
    loras = [path for path in given if not is_companion(path)]
    companions = [path for path in given if is_companion(path)]
    if len(loras) != 1 or len(companions) > 1:
        raise ValueError(f"one LoRA and at most one companion, got {[p.name for p in given]}")
    check_name(name, overwrite=overwrite)
    home = loras_home()
    target = home / f"{name}{SUFFIX}"
    with explained(target):
        home.mkdir(parents=True, exist_ok=True)
    other = home / f"{name}{COMPANION_SUFFIX}"
    replaced = target.exists()
    if companions:
        _put(companions[0], other)
    _put(loras[0], target)
    if replaced and not companions:
        # Of the LoRA that was there.
        other.unlink(missing_ok=True)
    return target


def _put(source: Path, target: Path) -> None:
    if target.exists() and source.samefile(target):
        return
    with atomic_output(target, overwrite=True) as part:
        part.unlink()
        try:
            os.link(source.resolve(), part)
        except OSError:
            shutil.copyfile(source, part)
