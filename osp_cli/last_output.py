"""The last video that was made here, for commands that go on from it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def remember(path: Path) -> None:
    """Note that `path` was made; where that cannot be kept, nothing is lost but the convenience."""
    place = _place()
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.{os.getpid()}")
        part.write_bytes(os.fsencode(path.absolute()))
        part.replace(place)


def last_output() -> Path | None:
    """The last video that was made, if it is still there."""
    try:
        path = Path(os.fsdecode(_place().read_bytes()))
    except (OSError, ValueError):
        return None
    return path if path.is_file() else None


def _place() -> Path:
    home = os.environ.get("OSP_HOME")
    if home:
        return Path(home).expanduser() / "last-output"
    import platformdirs  # not needed by most commands

    return Path(platformdirs.user_state_dir("osp", appauthor=False)) / "last-output"
