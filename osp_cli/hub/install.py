"""Models, installed from what was downloaded or lies on the disk in whatever layout.

A model is prepared in a hidden folder and takes its place when it is whole, so half of one never
counts as installed. What is right as it is becomes links; everything else is converted once. The
files that it is made from are only read.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from osp_cli import __version__
from osp_cli.errors import (
    CheckpointError,
    InvalidRequestError,
    RuntimeFailureError,
    WeightsMissingError,
    WontFitError,
)
from osp_cli.events import Event, Installed, Notice, PartFound, ShardConverted
from osp_cli.hub.choice import Choice, choose, missing_sentence, nothing_found, unrecognised
from osp_cli.hub.hashes import remember_hash
from osp_cli.hub.placing import clone, place
from osp_cli.hub.whole import gap, record_parts
from osp_cli.media.files import atomic_output, check_free_space, explained, flush_folder
from osp_cli.models import conversion
from osp_cli.models.layouts import UNKNOWN, FoundPart, describe
from osp_cli.registry import ModelSpec, weights_home

RECORD = "osp-install.json"

# What is stored in another precision than it is used in is cast whenever it is loaded, at the cost
# of as much memory; above this size it is worth a second copy on the disk.
NARROWED_BYTES = 10**9
_LARGE_PARTS = ("transformer", "text_encoder")
_CONDITIONERS = ("text_encoder", "adapter", "image_adapter", "image_encoder")
# The record while it is gathered.
_GATHERED = "osp-install.part.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")

_Stop = Callable[[], bool]


def install(
    spec: ModelSpec,
    sources: Mapping[str, Path],
    *,
    local: Path | None = None,
    ema: bool = True,
    stop: _Stop = lambda: False,
) -> Iterator[Event]:
    """Install a model from what was downloaded for it.

    Args:
        sources: the folder or file that holds what was published for each part.
        local: a file or folder that holds the other parts, in whatever layout.
        ema: prefer averaged weights where there are both.
        stop: asked now and then whether to stop; what is converted by then is used the next time.

    Yields:
        What was found, each file that was converted, `Installed` at the end.

    Raises:
        InvalidRequestError: something belongs to another model.
        WeightsMissingError: parts are missing.
        CheckpointError: a file is damaged, or its keys do not fit.
        WontFitError: the disk is too small for what must be converted; nothing was written.
        RuntimeFailureError: another process is installing this model.
        KeyboardInterrupt: `stop` said so.
    """
    found = [] if local is None else list(describe(local))
    for part, path in sources.items():
        # Files that came for one part may hold others, which are not what was asked for.
        welcome = {part, "tokenizer", UNKNOWN, "adapter" if part == "image_adapter" else part}
        found += [one for one in describe(path) if one.part in welcome]
    origins = {one.part: {"repo": one.repo, "revision": one.revision} for one in spec.downloads}
    places = [*([] if local is None else [local]), *sources.values()]
    where = ", ".join(dict.fromkeys(map(str, places)))
    yield from _install(spec, found, where, origins, ema, stop)


def lacking(spec: ModelSpec, path: Path, *, ema: bool = True) -> tuple[str, ...]:
    """Parts of a model that are neither at `path` nor in its present installation.

    Raises:
        InvalidRequestError, CheckpointError: as `install`.
    """
    missing = choose(spec, describe(Path(path).expanduser().resolve()), ema=ema).missing
    return tuple(part for part in missing if not (_home(spec) / part).is_dir())


def install_local(
    spec: ModelSpec, path: Path, ema: bool = True, *, stop: _Stop = lambda: False
) -> Iterator[Event]:
    """Install a model from a file or folder that is already on the disk, in whatever layout.

    Parts that are not at `path` are kept from a present installation. Errors and events are those
    of `install`.
    """
    path = Path(path).expanduser().resolve()
    if path.is_relative_to(_home(spec).resolve()):
        raise InvalidRequestError(
            f"{path} is where {spec.name} is installed", hint="name the files to install from"
        )
    yield from _install(spec, describe(path), str(path), {}, ema, stop)


def is_installed_from(spec: ModelSpec, path: Path, *, ema: bool = True) -> bool:
    """Whether `install_local` would make again what is there already, whole and of these files.

    Raises:
        InvalidRequestError, CheckpointError: as `install`.
    """
    if spec.find_weights() is None or gap(spec) is not None:
        return False
    noted = record_parts(_read(_home(spec) / RECORD))
    parts = choose(spec, describe(Path(path).expanduser().resolve()), ema=ema).parts
    return bool(parts) and all(
        noted.get(part, {}).get("fingerprint") == conversion.fingerprint(one, _dtype(spec, part))
        for part, one in parts.items()
    )


def recover(spec: ModelSpec) -> None:
    """Finish or undo what a process left that was killed while it exchanged two installations."""
    home, ready, old = (
        _home(spec),
        _hidden(_home(spec), "installing"),
        _hidden(_home(spec), "replaced"),
    )
    if not home.exists():
        if (ready / RECORD).is_file():
            ready.rename(home)
        elif old.exists():
            old.rename(home)
    if home.exists() and old.exists():
        shutil.rmtree(old)


def _install(
    spec: ModelSpec,
    found: list[FoundPart],
    where: str,
    origins: Mapping[str, Mapping[str, str]],
    ema: bool,
    stop: _Stop,
) -> Iterator[Event]:
    started = time.perf_counter()
    if spec.embedded:
        raise InvalidRequestError(f"the weights of {spec.name} come with the package")
    choice = choose(spec, found, ema=ema)
    with _locked(spec):
        recover(spec)
        kept = _kept(spec, choice, found, where)
        for part, one in choice.parts.items():
            yield PartFound(
                part, one.kind, one.layout, one.title, one.path, one.dtype, one.parameters,
                one.nbytes,
            )  # fmt: skip
        if kept:
            choice.notices.append(f"kept from the present installation: {', '.join(kept)}")
        staging = _hidden(_home(spec), "installing")
        converted = _to_convert(spec, choice, staging)
        for sentence in choice.notices:
            yield Notice(sentence)
        record = _Record(staging, spec)
        record.begin({*choice.parts})
        for part, one in choice.parts.items():
            origin = {"path": str(one.path), **origins.get(part, {})}
            if part in converted:
                yield from _convert(spec, part, one, record, origin, stop)
            else:
                shutil.rmtree(staging / part, ignore_errors=True)
                place(one, staging / part)
                mark = conversion.fingerprint(one, _dtype(spec, part))
                record.add(part, one, origin, converted=False, mark=mark)
        for part in kept:
            clone(_home(spec) / part, staging / part)
            record.keep(part, _home(spec))
        record.finish()
        if aside := _exchange(_home(spec), staging):
            yield Notice(f"what was there before, and not installed by osp, is now {aside}")
        for name, digest in record.digests():
            # So that the first run does not read all of it again.
            remember_hash(_home(spec) / name, digest)
    yield Installed(
        spec.name, _home(spec), (*choice.parts, *kept), converted, time.perf_counter() - started
    )


def _convert(
    spec: ModelSpec,
    part: str,
    found: FoundPart,
    record: _Record,
    origin: Mapping[str, str],
    stop: _Stop,
) -> Iterator[Event]:
    mark = conversion.fingerprint(found, _dtype(spec, part))
    folder = record.folder / part
    if record.has(part, mark):
        return
    shutil.rmtree(folder, ignore_errors=True)
    digests = {}
    for event in conversion.convert(found, folder, dtype=_dtype(spec, part), stop=stop):
        if isinstance(event, ShardConverted):
            digests[event.path.name] = event.sha256
        yield event
    record.add(part, found, origin, converted=True, mark=mark, digests=digests)


class _Record:
    """What a model was installed from, gathered part by part and given its name at the end."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self.folder = folder
        self._contents: dict[str, Any] = {"model": spec.name, "osp": __version__, "parts": {}}

    @property
    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = self._contents["parts"]
        return parts

    def begin(self, parts: set[str]) -> None:
        """Take over what an interrupted installation left of these parts; clear the rest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (_GATHERED, RECORD):
            former = _read(self.folder / name).get("parts", {})
            self._parts.update({part: former[part] for part in former if part in parts})
        self._save()
        wanted = {*self._parts, *(conversion.partial_folder(Path(part)).name for part in parts)}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in wanted:
                shutil.rmtree(path)
            elif not path.is_dir() and path.name != _GATHERED:
                path.unlink()

    def has(self, part: str, mark: str) -> bool:
        """Whether the part is there, converted from these very files."""
        values = self._parts.get(part, {})
        is_it = values.get("converted") and values.get("fingerprint") == mark
        return bool(is_it) and (self.folder / part).is_dir()

    def add(
        self,
        part: str,
        found: FoundPart,
        origin: Mapping[str, str],
        *,
        converted: bool,
        mark: str,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """Write down a part that is whole."""
        known = digests or {}
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": known.get(path.name, _blob(path))}
            for path in sorted((self.folder / part).iterdir())
        }
        self._parts[part] = {
            "kind": found.kind, "layout": found.layout, "branch": found.branch, "source": origin,
            "converted": converted, "fingerprint": mark, "files": files,
        }  # fmt: skip
        self._save()

    def digests(self) -> Iterator[tuple[str, str]]:
        """SHA-256 of the files whose own is known, by their path in the model's folder."""
        for part, contents in self._parts.items():
            for name, file in contents.get("files", {}).items():
                if file.get("sha256"):
                    yield f"{part}/{name}", file["sha256"]

    def keep(self, part: str, place: Path) -> None:
        """Write down a part that comes from the installation before."""
        self._parts[part] = _read(place / RECORD).get("parts", {}).get(part, {"source": None})
        self._save()

    def finish(self) -> None:
        """From here on the folder is a whole model."""
        (self.folder / _GATHERED).replace(self.folder / RECORD)
        flush_folder(self.folder)

    def _save(self) -> None:
        with atomic_output(self.folder / _GATHERED, overwrite=True) as part:
            part.write_text(json.dumps(self._contents, indent=2) + "\n", encoding="utf-8")


def _kept(spec: ModelSpec, choice: Choice, found: list[FoundPart], where: str) -> tuple[str, ...]:
    """Parts that the present installation has and the new files do not.

    Raises:
        InvalidRequestError: the new files have none at all.
        CheckpointError: shards are missing of something that could be what is needed.
        WeightsMissingError: neither has some part.
    """
    if not choice.parts:
        raise nothing_found(spec, where, found)
    broken = [one for one in unrecognised(found) if one.missing_files or not one.tensors]
    torn = next((one for one in broken if one.missing_files), None)
    if torn is not None and choice.missing:
        raise CheckpointError(f"{torn.problem}; {spec.name} needs {', '.join(choice.missing)}")
    # What cannot be read may be what was meant to replace it.
    present = [part for part in choice.missing if (_home(spec) / part).is_dir()]
    kept = () if broken else tuple(present)
    absent = [part for part in choice.missing if part not in kept]
    if absent:
        problems = "".join(f"; {one.problem}" for one in unrecognised(found)[:3])
        raise WeightsMissingError(
            f"{where} holds the {', '.join(choice.parts)} of {spec.name}, "
            f"but no {', '.join(absent)}{problems}",
            hint=missing_sentence(spec, absent),
        )
    return kept


def _to_convert(spec: ModelSpec, choice: Choice, staging: Path) -> tuple[str, ...]:
    """The parts that cannot stay as they are, and those that had better not.

    Raises:
        WontFitError: the disk is too small for the former.
    """
    must = [
        part for part, one in choice.parts.items() if not one.ready or _is_too_large_to_map(one)
    ]
    needed = sum(_converted_bytes(spec, part, choice.parts[part]) for part in must)
    # What an interrupted installation wrote is used again, or cleared away.
    there = sum(path.lstat().st_size for path in staging.rglob("*") if path.is_file())
    check_free_space(
        staging.parent,
        needed - there,
        what=f"the converted {', '.join(must)}",
        hint=conversion.ROOM_HINT,
    )
    for part in _LARGE_PARTS:
        one = choice.parts.get(part)
        if one is None or part in must or not _is_worth_narrowing(spec, part, one):
            continue
        more = _converted_bytes(spec, part, one)
        try:
            check_free_space(staging.parent, needed + more - there, what=part)
        except WontFitError:
            choice.notices.append(
                f"the {part} stays {one.dtype}, there is no room for {more / 1e9:.1f} GB of "
                f"{_dtype(spec, part)}: whenever it is loaded it is converted in memory"
            )
        else:
            must.append(part)
            needed += more
    return tuple(must)


def _is_too_large_to_map(found: FoundPart) -> bool:
    """Loaders map whole files, and many systems refuse to map more than there is memory."""
    if found.layout == "gguf" or not hasattr(os, "sysconf"):
        return False
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return any(file.stat().st_size > memory for file in found.files)


def _is_worth_narrowing(spec: ModelSpec, part: str, found: FoundPart) -> bool:
    wanted = _dtype(spec, part)
    is_other = wanted is not None and found.dtype != wanted and found.layout != "gguf"
    return found.ready and is_other and found.nbytes >= NARROWED_BYTES


def _converted_bytes(spec: ModelSpec, part: str, found: FoundPart) -> int:
    shards = conversion.plan_shards(found, dtype=_dtype(spec, part))
    return sum(shard.nbytes for shard in shards)


def _dtype(spec: ModelSpec, part: str) -> str | None:
    """The card's precision for a part; None where it has none, and what is stored is right."""
    group = "conditioner" if part in _CONDITIONERS else part
    return spec.dtypes.get(part) or spec.dtypes.get(group)


def _exchange(place: Path, staging: Path) -> Path | None:
    """Let the new installation take its place; where the old one went, if it is not gone."""
    old = _hidden(place, "replaced")
    aside = None
    if place.exists() and not (place / RECORD).is_file():
        # Somebody put it there by hand: it is not ours to delete.
        numbers = itertools.count(1)
        old = aside = next(
            path for n in numbers if not (path := place.with_name(f"{place.name}.old-{n}")).exists()
        )
    if place.exists():
        place.rename(old)
    staging.rename(place)
    flush_folder(place.parent)
    if aside is None and old.exists():
        shutil.rmtree(old)
    return aside


@contextlib.contextmanager
def _locked(spec: ModelSpec) -> Iterator[None]:
    """Keep a second process from installing the same model.

    Raises:
        RuntimeFailureError: one is at it.
    """
    home = _home(spec)
    with explained(home):
        home.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_hidden(home, "lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeFailureError(
            f"another osp is installing {spec.name}", hint="wait until it has finished"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _home(spec: ModelSpec) -> Path:
    return weights_home() / spec.weights


def _hidden(place: Path, ending: str) -> Path:
    return place.with_name(f".{place.name}.{ending}")


def _blob(path: Path) -> str | None:
    """SHA-256 of a link into the hub's cache, whose files are named after it."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if _SHA256.fullmatch(name) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return contents if isinstance(contents, dict) else {}
