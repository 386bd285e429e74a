"""Whether an installed model is whole, as far as names and lengths of its files tell.

Nothing is hashed and torch is not needed, so this can be asked before every run.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osp_cli.errors import WeightsMissingError
from osp_cli.hub.listings import install_record, is_from_elsewhere

if TYPE_CHECKING:
    from osp_cli.registry import ModelSpec


def gap(spec: ModelSpec) -> str | None:
    """The first file of an installed model that is gone or has another length, in a few words.

    Files are those that the installation wrote down, and those that an index of shards names.
    None where nothing is wrong, of a model that is not installed, and of one in the package.
    """
    place = spec.find_weights()
    if place is None or spec.embedded:
        return None
    noted = _noted(install_record(spec))
    for name, size in (*noted.items(), *((name, None) for name in _indexed(spec, place))):
        try:
            found = (place / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if size is not None and found != size:
            return f"{name} has {found} bytes instead of {size}"
    return None


def whole_weights_dir(spec: ModelSpec) -> Path:
    """The folder that holds the weights, no file of them missing or cut.

    Raises:
        WeightsMissingError: they are not installed, or not all of them are there.
    """
    place = spec.weights_dir()
    if (problem := gap(spec)) is not None:
        raise WeightsMissingError(
            f"{spec.name} in {place} is incomplete: {problem}", hint=mend(spec)
        )
    return place


def mend(spec: ModelSpec) -> str:
    """What makes a damaged or incomplete model whole again, as a command where there is one."""
    if spec.embedded:
        return "install osp-cli again"
    if not is_from_elsewhere(spec):
        # A folder that is gone altogether leaves nothing that would be from elsewhere.
        where = f"osp download {spec.name}"
        return f"{where} fetches what is damaged" if spec.downloads else f"{where} --local PATH"
    ways = []
    source = local_source(spec)
    if source is not None and source.exists():
        path = shlex.quote(str(source))
        ways.append(f"osp download {spec.name} --local {path} -y installs it anew")
    if spec.downloads and not spec.unpublished:
        ways.append(f"osp download {spec.name} -y fetches and replaces it")
    return ", ".join(ways) or f"osp download {spec.name} --local PATH, with the model's files"


def local_source(spec: ModelSpec) -> Path | None:
    """The file or folder with all that was installed from the user's own disk; None without."""
    paths = [
        str(source["path"])
        for values in record_parts(install_record(spec)).values()
        if isinstance(source := values.get("source"), dict)
        and "repo" not in source
        and source.get("path")
    ]
    try:
        return Path(os.path.commonpath(paths)) if paths else None
    except ValueError:
        # On several drives: no single path holds them all.
        return None


def record_parts(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What an installation wrote down about each part."""
    parts = record.get("parts")
    if not isinstance(parts, dict):
        return {}
    return {part: values for part, values in parts.items() if isinstance(values, dict)}


def _noted(record: dict[str, Any]) -> dict[str, int | None]:
    """Bytes of each file that the installation wrote down, by its path in the model's folder."""
    return {
        f"{part}/{name}": facts.get("bytes")
        for part, values in record_parts(record).items()
        for name, facts in (values.get("files") or {}).items()
    }


def _indexed(spec: ModelSpec, place: Path) -> Iterator[str]:
    """Files that an index of shards names, by their path in the model's folder."""
    for part in spec.parts:
        for index in sorted((place / part).glob("*.index.json")):
            try:
                shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
                names = sorted({str(shard) for shard in shards})
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                # Not what is asked here: it is told by whoever reads the weights.
                continue
            yield from (f"{part}/{name}" for name in names)
