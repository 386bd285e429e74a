"""Where LoRAs lie: files that are named by their path, and those that are installed by a name."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from osp_cli.errors import InvalidRequestError
from osp_cli.registry import nearest, weights_home

SUFFIX = ".safetensors"
# Whole weights that were trained with a LoRA, and are loaded with it; no LoRA themselves.
COMPANION_SUFFIX = f".adapter{SUFFIX}"
# Files that hold more than tensors, and may run code when they are read carelessly.
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")


def loras_home() -> Path:
    """The folder of installed LoRAs: `$OSP_HOME/loras` if set, else beside the weights' home."""
    return weights_home().parent / "loras"


def installed_loras() -> dict[str, Path]:
    """The LoRAs that are known by name: `NAME.safetensors`, or a folder NAME with one such file."""
    found = {}
    home = loras_home()
    for path in sorted(home.iterdir()) if home.is_dir() else ():
        if path.suffix.lower() == SUFFIX and path.is_file() and not is_companion(path):
            found[path.stem] = path
        elif path.is_dir() and (file := _only_file(path)) is not None:
            found.setdefault(path.name, file)
    return found


def find_lora(name: str) -> Path:
    """The file that `--lora NAME` means: a path, else an installed name, with or without suffix.

    A path may also be a folder that holds one safetensors file, as PEFT writes it.

    Raises:
        InvalidRequestError: there is none, or it is no safetensors file.
    """
    typed = Path(os.path.expanduser(name))  # noqa: PTH111 - the method fails on ~nobody
    # Unlike the methods of paths, these take any text for a name.
    if os.path.isfile(typed):  # noqa: PTH113
        return _checked(typed)
    installed = installed_loras()
    for known in (name, name.removesuffix(SUFFIX)):
        if known in installed:
            return installed[known]
    if os.path.isdir(typed):  # noqa: PTH112
        if (file := _only_file(typed)) is not None:
            return file
        raise InvalidRequestError(
            f"the folder {str(typed)!r} does not hold exactly one {SUFFIX} file",
            hint=f"--lora {typed / ('FILE' + SUFFIX)}",
        )
    if os.path.isfile(f"{typed}{SUFFIX}"):  # noqa: PTH113
        # Not taken for it: a name must mean the same wherever it is typed.
        raise InvalidRequestError(
            f"no LoRA {name!r} is installed", hint=f"--lora {name}{SUFFIX} is the file here"
        )
    guesses = nearest(Path(name).stem, installed)
    raise InvalidRequestError(
        f"there is no LoRA {name!r}",
        hint=f"did you mean {' or '.join(guesses)}?"
        if guesses
        else f"give a file's path, or put it at {loras_home() / (typed.stem + SUFFIX)}",
    )


def is_companion(path: Path) -> bool:
    """Whether a file is called as those that belong to a LoRA: `NAME.adapter.safetensors`."""
    return path.name.lower().endswith(COMPANION_SUFFIX)


def name_in_recipe(name: str) -> str:
    """What a recipe calls a LoRA: nothing of the folder it lies in, which is the user's business.

    It is what `--lora` takes where the file is installed, or lies in the folder one is in.
    """
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1]


def _checked(path: Path) -> Path:
    suffix = path.suffix.lower()
    if suffix in _PICKLED:
        raise InvalidRequestError(
            f"{path} is a pickled file, LoRAs are read from {SUFFIX} alone",
            hint='python -c "import sys, torch, safetensors.torch as s; '
            "s.save_file(torch.load(sys.argv[1], weights_only=True), "
            f"sys.argv[1] + '{SUFFIX}')\" {shlex.quote(str(path))}",
        )
    return path


def _only_file(folder: Path) -> Path | None:
    files = sorted(path for path in folder.glob(f"*{SUFFIX}") if not is_companion(path))
    return files[0] if len(files) == 1 else None
