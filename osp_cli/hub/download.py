"""`osp download` as a stream of events: plan, fetch, check, install."""

from __future__ import annotations

import contextlib
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osp_cli.errors import OspError, WeightsMissingError
from osp_cli.events import Done, FileFetched, Notice, Saved
from osp_cli.hub import haul as hauls
from osp_cli.hub import listings
from osp_cli.hub.cache import Cache
from osp_cli.hub.client import Hub, endpoints
from osp_cli.hub.locks import held
from osp_cli.hub.refusals import explained
from osp_cli.hub.transfer import Limiter, Transfer
from osp_cli.registry import weights_home

if TYPE_CHECKING:
    from pathlib import Path

    from osp_cli.events import Event
    from osp_cli.hub.haul import Haul, Wish
    from osp_cli.hub.listings import RemoteFile
    from osp_cli.registry import ModelSpec

# How long a stop waits for the threads; what they write is on the disk all the while.
_SECONDS_TO_STOP = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How to fetch.

    Attributes:
        mirrors: addresses that are asked before the hub.
        jobs: files at a time.
        limit_rate: bytes a second of all files together.
        offline: use what is here, and ask nobody.
        again: install anew what is installed from these very files.
        local: where the parts are that are not fetched.
    """

    mirrors: tuple[str, ...] = ()
    jobs: int = 4
    limit_rate: int | None = None
    offline: bool = False
    again: bool = False
    local: Path | None = None


def plan(specs: Sequence[ModelSpec], wish: Wish, way: Way) -> Iterator[Event]:
    """What a download would do, with each of its files; nothing is fetched or written.

    Raises:
        OspError: as `download`.
    """
    cache = Cache()
    notices: list[Event] = []
    with _open_hub(way, threading.Event(), lambda text: notices.append(Notice(text))) as hub:
        haul = hauls.gather(specs, wish, hub, cache)
    yield from notices
    yield from _plan(haul, cache)


def download(specs: Sequence[ModelSpec], wish: Wish, way: Way) -> Iterator[Event]:
    """Fetch and install models; closing the iterator stops all of it, and nothing is lost.

    Args:
        specs: cards that have downloads.

    Raises:
        WeightsMissingError: something cannot be had: no network, no access, no such file.
        WontFitError: the disk is too small.
        ChecksumError: a server sends other contents than it should, again and again.
        InvalidRequestError: no such revision, or the patterns leave nothing.
    """
    started = time.perf_counter()
    timings: dict[str, float] = {}
    cache = Cache()
    with contextlib.ExitStack() as stack:
        if not way.offline:
            repos = {item.repo for spec in specs for item in spec.downloads}
            yield from held(stack, cache, repos)
        events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        stop = threading.Event()
        hub = stack.enter_context(_open_hub(way, stop, lambda text: events.put(Notice(text))))
        haul, notice = _gather(specs, wish, hub, cache)
        yield from _waiting(events)
        if notice is not None:
            yield notice
            hub = None
        yield from _plan(haul, cache)
        since = time.perf_counter()
        transfer = Transfer(
            hub or Hub((), stop=stop),
            cache,
            limiter=Limiter(way.limit_rate),
            report=events.put,
        )
        if hub is None:
            _refuse_missing(haul, cache)
        fetched = way.again
        for event in _in_threads(transfer, haul.contents, way.jobs, events, stop):
            fetched |= isinstance(event, FileFetched) and not event.cached
            yield event
        _finish(haul, transfer, cache)
        yield from _waiting(events)
        timings["fetch"] = time.perf_counter() - since
        since = time.perf_counter()
        yield from _install(haul, cache, anew=fetched, local=way.local)
        timings["install"] = time.perf_counter() - since
    yield Done(time.perf_counter() - started, timings)


def _plan(haul: Haul, cache: Cache) -> Iterator[Event]:
    """Each file, then all of them in numbers; refused at the end where they do not fit."""
    for file in haul.contents:
        yield hauls.file_plan(file, cache)
    planned = hauls.plan(haul, cache)
    yield planned
    hauls.check_room(planned)


@contextlib.contextmanager
def _open_hub(way: Way, stop: threading.Event, say: Callable[[str], None]) -> Iterator[Hub | None]:
    if way.offline:
        yield None
        return
    with contextlib.closing(Hub(endpoints(way.mirrors), stop=stop, say=say)) as hub:
        yield hub


def _gather(
    specs: Sequence[ModelSpec], wish: Wish, hub: Hub | None, cache: Cache
) -> tuple[Haul, Notice | None]:
    """The files to fetch; what is here already where no server answers, said in a notice."""
    try:
        return hauls.gather(specs, wish, hub, cache), None
    except WeightsMissingError as error:
        if hub is None:
            raise
        # Without a network, what was fetched before is still good.
        try:
            haul = hauls.gather(specs, wish, None, cache)
        except OspError:
            raise error from None
        if hauls.missing(haul, cache):
            raise
        return haul, Notice(f"{error.message}; what is in the cache is used")


def _refuse_missing(haul: Haul, cache: Cache) -> None:
    lacking = hauls.missing(haul, cache)
    if lacking:
        size = hauls.in_words(sum(file.size for file in lacking))
        raise WeightsMissingError(
            f"{len(lacking)} of {len(haul.files)} files are not in the cache ({size}), "
            "and nothing is fetched offline",
            hint="run it once without --offline (OSP_OFFLINE, HF_HUB_OFFLINE)",
        )


def _in_threads(
    transfer: Transfer,
    files: Iterable[RemoteFile],
    jobs: int,
    events: queue.SimpleQueue[Event | BaseException | None],
    stop: threading.Event,
) -> Iterator[Event]:
    """Fetch files side by side and give what the threads report; the first error ends all."""
    left = deque(files)

    def work() -> None:
        try:
            while not stop.is_set():
                try:
                    file = left.popleft()
                except IndexError:
                    break
                transfer.fetch(file)
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            events.put(error)
        else:
            events.put(None)

    # Daemons: a thread that waits for a silent server shall not keep the program from ending.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(left)))]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            event = events.get()
            if event is None:
                running -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield event
    finally:
        if running:
            stop.set()
            deadline = time.monotonic() + _SECONDS_TO_STOP
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))


def _finish(haul: Haul, transfer: Transfer, cache: Cache) -> None:
    """Give all files their names, in every repository that has them; what is whole comes last."""
    done = {(file.repo, file.digest) for file in haul.contents}
    for file in haul.files:
        if (file.repo, file.digest) not in done:
            transfer.fetch(file)
            done.add((file.repo, file.digest))
        with explained(cache.root):
            cache.point(file)
    for listing in haul.listings:
        listings.remember(listing)
        with explained(cache.root):
            cache.write_ref(listing)


def _waiting(events: queue.SimpleQueue[Event | BaseException | None]) -> Iterator[Event]:
    """What has been reported and not yet been told."""
    with contextlib.suppress(queue.Empty):
        while True:
            event = events.get_nowait()
            assert event is not None
            assert not isinstance(event, BaseException)
            yield event


def _install(haul: Haul, cache: Cache, *, anew: bool, local: Path | None = None) -> Iterator[Event]:
    """Put the parts of each model where it is loaded from.

    Args:
        anew: also of a model that is installed from these files; it may have to be converted.
        local: where the other parts are.
    """
    for spec in haul.specs:
        left_out = [
            file.path
            for supply in haul.supplies[spec.name]
            for file in supply.files
            if file not in supply.wanted
        ]
        if left_out:
            here = spec.find_weights() is not None
            state = "stays installed as it is" if here else "is in the cache but not installed"
            yield Notice(
                f"{spec.name} {state}: "
                f"{len(left_out)} of its files were left out, {left_out[0]} for one"
            )
            continue
        if anew or not haul.is_installed(spec):
            yield from _install_one(haul, spec, cache, local)
        yield Saved(spec.weights_dir(), _bytes_of(spec.weights_dir()))


def _install_one(haul: Haul, spec: ModelSpec, cache: Cache, local: Path | None) -> Iterator[Event]:
    from osp_cli.hub import install

    # Kept, so that what the installation notes about its sources can be found.
    links = weights_home().parent / "downloads" / spec.weights
    with explained(links):
        shutil.rmtree(links, ignore_errors=True)
        sources = hauls.sources(haul, spec, cache, links)
    try:
        if local is None:
            yield from install.install(spec, sources)
        else:
            yield from install.install(spec, sources, local=local)
    finally:
        if any(path.is_file() and not path.is_symlink() for path in links.rglob("*")):
            shutil.rmtree(links, ignore_errors=True)
    if local is None:
        listings.note_installed(spec.name, haul.commits(spec.name))


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
