"""Reading everything again: are the bytes on this disk still the ones that were published?"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osp_cli.errors import ChecksumError, WeightsMissingError
from osp_cli.events import FileProgress, FileVerified, Verified
from osp_cli.hub import hashes, listings
from osp_cli.hub import haul as hauls
from osp_cli.hub.cache import Cache
from osp_cli.hub.whole import mend, record_parts

if TYPE_CHECKING:
    from hashlib import _Hash

    from osp_cli.events import Event
    from osp_cli.hub.haul import Haul, Wish
    from osp_cli.hub.listings import RemoteFile
    from osp_cli.registry import ModelSpec

_SECONDS_BETWEEN_REPORTS = 0.5


def verify(specs: Sequence[ModelSpec], wish: Wish) -> Iterator[Event]:
    """Compare what is in the cache and installed with the hashes that were noted with it.

    No server is asked. What is damaged is not trusted any more: the next download fetches it.

    Raises:
        ChecksumError: files are damaged or gone; the message names them.
        WeightsMissingError: nothing of a model is here.
    """
    checked: list[FileVerified] = []
    for event in _files(specs, wish):
        yield event
        if isinstance(event, FileVerified):
            checked.append(event)
    bad = [event for event in checked if event.problem is not None]
    if bad:
        names = "; ".join(f"{event.path} {event.problem}" for event in bad[:3])
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ChecksumError(
            f"{len(bad)} of {len(checked)} files are not as they should be: {names}{more}",
            hint=_mend(specs, bad),
        )
    models = {spec.name for spec in specs}
    own = sum(event.repo in models for event in checked)
    yield Verified(len(checked), sum(event.bytes for event in checked), own)


def _mend(specs: Sequence[ModelSpec], bad: Sequence[FileVerified]) -> str:
    """What to do about damaged files: to fetch those of a hub, to install the others anew."""
    damaged = {event.repo for event in bad}
    hit = [
        spec
        for spec in specs
        if spec.name in damaged or any(item.repo in damaged for item in spec.downloads)
    ]
    elsewhere = [mend(spec) for spec in hit if listings.is_from_elsewhere(spec)]
    fetched = " ".join(spec.name for spec in hit if not listings.is_from_elsewhere(spec))
    ways = [f"osp download {fetched} fetches just these"] if fetched else []
    return "; ".join([*ways, *elsewhere])


def _files(specs: Sequence[ModelSpec], wish: Wish) -> Iterator[Event]:
    """Files of the cache once, then those of each model that lie elsewhere."""
    cache, found = Cache(), []
    for spec in specs:
        card = _as_installed(spec, wish)
        try:
            if card.downloads:
                found.append(hauls.gather([card], wish, None, cache))
                continue
        except WeightsMissingError:
            pass
        # Installed from elsewhere: what the installation wrote down is all there is.
        if not record_parts(listings.install_record(spec)):
            raise _nothing(spec)
    seen: set[tuple[str, str]] = set()
    for haul in found:
        yield from _cached(haul, cache, seen)
    for spec in specs:
        yield from _installed(spec, cache)


def _as_installed(spec: ModelSpec, wish: Wish) -> ModelSpec:
    """The card with the commits from which the model was installed, unless another is asked for.

    Parts that the user installed from files of the own disk have nothing to do with a hub.
    """
    commits = {} if wish.revision else listings.installed_from(spec.name)
    parts = record_parts(listings.install_record(spec))
    local = {
        part
        for part, values in parts.items()
        if "path" in (source := values.get("source") or {}) and "repo" not in source
    }
    return replace(
        spec,
        downloads=tuple(
            replace(item, revision=commits.get(item.repo, item.revision))
            for item in spec.downloads
            if item.part not in local
        ),
    )


def _nothing(spec: ModelSpec) -> WeightsMissingError:
    place = spec.find_weights()
    if place is not None:
        return WeightsMissingError(
            f"{spec.name} in {place} was not installed by osp: nobody noted what to compare it with"
        )
    return WeightsMissingError(
        f"nothing of {spec.name} is here to check", hint=f"osp download {spec.name}"
    )


def _cached(haul: Haul, cache: Cache, seen: set[tuple[str, str]]) -> Iterator[Event]:
    for file in haul.files:
        if (file.repo, file.digest) not in seen:
            seen.add((file.repo, file.digest))
            problem = yield from _problem(file, cache)
            yield FileVerified(file.repo, file.path, file.size, problem)


def _problem(file: RemoteFile, cache: Cache) -> Generator[Event, None, str | None]:
    """What is wrong with a file in the cache, to stand after its name; None where nothing is."""
    path = cache.find(file)
    if path is None:
        there = next((p for p in (cache.blob(file), cache.pointer(file)) if p.is_file()), None)
        if there is None:
            return "is missing"
        hashes.forget_hash(there)
        return f"has {there.stat().st_size} bytes instead of {file.size}"
    found = yield from _digest(path, file.hasher(), file.repo, file.path)
    if found == file.digest:
        if file.sha256 is not None:
            hashes.remember_hash(path, file.sha256)
        return None
    # The next download must not trust its memory: its size and time may be as before.
    hashes.forget_hash(path)
    return f"has the hash {found} instead of {file.digest}"


def _installed(spec: ModelSpec, cache: Cache) -> Iterator[Event]:
    """Files of an installed model that are its own: converted, copied, or links that lead nowhere.

    What links into the cache was read there.
    """
    place = spec.weights_places()[-1]
    record = listings.install_record(spec)
    blobs = Path(os.path.realpath(cache.root))
    for part, values in record.get("parts", {}).items():
        for name, noted in (values.get("files") or {}).items():
            path = place / part / name
            if path.exists() and path.resolve().is_relative_to(blobs):
                continue
            problem = yield from _own_problem(path, noted, spec.name, f"{part}/{name}")
            if problem is not None:
                # So that the next download installs it anew.
                listings.forget_installed(spec.name)
            yield FileVerified(spec.name, f"{part}/{name}", int(noted.get("bytes") or 0), problem)


def _own_problem(
    path: Path, noted: dict[str, Any], model: str, called: str
) -> Generator[Event, None, str | None]:
    if not path.is_file():
        return "is missing"
    size, wanted = path.stat().st_size, noted.get("sha256")
    if size != noted.get("bytes"):
        return f"has {size} bytes instead of {noted.get('bytes')}"
    if wanted is None:
        return None
    found = yield from _digest(path, hashlib.sha256(), model, called)
    if found != wanted:
        hashes.forget_hash(path)
        return f"has the hash {found} instead of {wanted}"
    hashes.remember_hash(path, found)
    return None


def _digest(path: Path, hasher: _Hash, repo: str, called: str) -> Generator[Event, None, str]:
    """The hash of a file, with events that tell how far the reading is."""
    size, done, last = path.stat().st_size, 0, 0.0
    with path.open("rb", buffering=0) as opened:
        while chunk := opened.read(1 << 22):
            hasher.update(chunk)
            done += len(chunk)
            if time.monotonic() - last >= _SECONDS_BETWEEN_REPORTS:
                last = time.monotonic()
                yield FileProgress(repo, called, "check", done, size)
    return hasher.hexdigest()
