"""The state of a stream on the disk: all that is needed to go on as if nothing had happened.

A safetensors file beside the video, written anew after each chunk, whole or not at all. The one
before is kept too: should the video have lost its last chunk, the stream goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from osp_cli.errors import UnreadableMediaError
from osp_cli.extend_request import state_before
from osp_cli.media.files import atomic_output, explained, flush_file, hidden_sibling
from osp_cli.media.recipes import canonical_json
from osp_cli.outputs import STDOUT

# Latent frames that are kept to warm the decoder up again. With random weights it took 30 until
# the first picture was the same to the last bit; trained ones forget sooner.
TAIL = 32
_FORMAT = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedStream:
    """A stream between two chunks.

    Attributes:
        tensors: of the engine's state, of drift meter and anchor, and `tail`: the last latents.
        frames: pictures that the video has by then, its source with them.
        made: those of them that were made here.
        notes: direction, drift and all else that is plain JSON.
        recipe: of the stream.
    """

    tensors: Mapping[str, Tensor]
    frames: int
    made: int
    notes: Mapping[str, Any]
    recipe: Mapping[str, Any]


def save_stream(path: Path, saved: SavedStream) -> None:
    """Write the state; what was there becomes the one before.

    Raises:
        WontFitError: the disk is full; the last state is whole.
    """
    metadata = {
        "format": _FORMAT,
        "frames": str(saved.frames),
        "made": str(saved.made),
        "notes": json.dumps(saved.notes, ensure_ascii=False, sort_keys=True),
        "recipe": canonical_json(saved.recipe),
    }
    data = save({name: each.contiguous() for name, each in saved.tensors.items()}, metadata)
    with explained(path), atomic_output(path, overwrite=True) as part:
        part.write_bytes(data)
        flush_file(part)
        # Only now, when nothing but a new name is left to be done.
        _keep_as_before(path)


def _keep_as_before(path: Path) -> None:
    """Give the state a second name, so that there is one at every moment under the first."""
    if not path.exists():
        return
    link = hidden_sibling(path, "before")
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    try:
        os.link(path, link)
    except (OSError, NotImplementedError):
        # A file system without links: for a moment there is only the one before.
        path.replace(state_before(path))
        return
    link.replace(state_before(path))
    # It stays where both were the same file already.
    link.unlink(missing_ok=True)


def load_stream(path: Path) -> SavedStream:
    """Read a state.

    Raises:
        UnreadableMediaError: it is missing, damaged, or none.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != _FORMAT:
            raise ValueError("it is of another version")
        return SavedStream(
            tensors=tensors,
            frames=int(metadata["frames"]),
            made=int(metadata["made"]),
            notes=json.loads(metadata["notes"]),
            recipe=json.loads(metadata["recipe"]),
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UnreadableMediaError(
            f"{path} cannot be read as the state of a stream: {error}",
            hint="osp extend VIDEO goes on from the video itself",
        ) from error


def states_of(path: Path) -> list[SavedStream]:
    """The states that can be read, the newest first.

    Raises:
        UnreadableMediaError: there is none.
    """
    found: list[SavedStream] = []
    problem: UnreadableMediaError | None = None
    for each in (path, state_before(path)):
        try:
            found.append(load_stream(each))
        except UnreadableMediaError as error:
            problem = problem or error
    if not found:
        assert problem is not None
        raise problem
    return found


def forget(path: Path) -> None:
    """Remove a state and the one before."""
    if path != STDOUT:
        for each in (path, state_before(path)):
            with contextlib.suppress(OSError):
                each.unlink()
