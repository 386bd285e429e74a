"""What a download has to fetch: which files, what of them is here, and whether there is room."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from osp_cli.errors import InvalidRequestError, WeightsMissingError, WontFitError
from osp_cli.events import DownloadPlanned, FilePlanned
from osp_cli.hub import listings
from osp_cli.hub.listings import Listing, RemoteFile, installed_from, matches
from osp_cli.hub.whole import gap
from osp_cli.registry import weights_home

if TYPE_CHECKING:
    from osp_cli.hub.cache import Cache
    from osp_cli.hub.client import Hub
    from osp_cli.registry import Download, ModelSpec

# Kept free beside the files: other programs write too, and a full disk is nobody's friend.
_SPARE_BYTES = 100 * 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asked for beside the models.

    Attributes:
        revision: of each model's own repository, in place of the card's.
        include: patterns; only files that match one are fetched.
        exclude: patterns of files that are left out.
    """

    revision: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def wants(self, path: str) -> bool:
        """Whether a file is to be fetched."""
        return (not self.include or matches(path, self.include)) and not matches(path, self.exclude)

    def revision_of(self, spec: ModelSpec, download: Download) -> tuple[str, bool]:
        """The revision of one of a card's downloads, and whether it is the user's own."""
        repos = [other.repo for other in spec.downloads]
        own = spec.source if spec.source in repos else repos[0]
        if self.revision is not None and download.repo == own:
            return self.revision, True
        return download.revision, False


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """One download of a card with the files that it means.

    Attributes:
        files: all of them.
        wanted: those that are fetched: fewer where the user leaves some out.
    """

    download: Download
    listing: Listing
    files: tuple[RemoteFile, ...]
    wanted: tuple[RemoteFile, ...]

    @property
    def is_whole(self) -> bool:
        """Nothing is left out."""
        return self.files == self.wanted

    @property
    def is_ready_made(self) -> bool:
        """The part can be used as it lies there: it comes with its configuration."""
        folder = self.download.subfolder.rstrip("/")
        start = f"{folder}/" if folder else ""
        names = {file.path.removeprefix(start) for file in self.files}
        return bool(names & {"config.json", "tokenizer.json", "tokenizer_config.json"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Haul:
    """All that one command fetches, by name of the model."""

    specs: tuple[ModelSpec, ...]
    supplies: Mapping[str, tuple[Supply, ...]]

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """Each file once, however many models share it, the largest first."""
        unique = {
            file: None
            for supplies in self.supplies.values()
            for supply in supplies
            for file in supply.wanted
        }
        return tuple(sorted(unique, key=lambda file: -file.size))

    @property
    def contents(self) -> tuple[RemoteFile, ...]:
        """One file of each contents: what two repositories have in common is fetched once."""
        return tuple({file.digest: file for file in reversed(self.files)}.values())[::-1]

    def commits(self, model: str) -> dict[str, str]:
        """The commit of each repository that a model is made of."""
        return {item.listing.repo: item.listing.commit for item in self.supplies[model]}

    def is_installed(self, spec: ModelSpec) -> bool:
        """Whether just these files are what the installed model was made of."""
        known = installed_from(spec.name)
        is_here = spec.find_weights() is not None and gap(spec) is None
        return is_here and known == self.commits(spec.name)

    @property
    def listings(self) -> tuple[Listing, ...]:
        """Each repository at its commit, once."""
        return tuple(
            {
                (supply.listing.repo, supply.listing.revision): supply.listing
                for supplies in self.supplies.values()
                for supply in supplies
            }.values()
        )


def gather(specs: Sequence[ModelSpec], wish: Wish, hub: Hub | None, cache: Cache) -> Haul:
    """Find out which files the models need.

    Args:
        hub: asked for its lists of files; None, when offline, asks what is remembered.

    Raises:
        InvalidRequestError: the patterns leave nothing, or there is no such revision.
        WeightsMissingError: a list cannot be had, or lacks files that a card names.
    """
    found: dict[tuple[str, str], Listing] = {}
    supplies = {}
    for spec in specs:
        for download in spec.downloads:
            revision, asked = wish.revision_of(spec, download)
            key = (download.repo, revision)
            if key not in found:
                found[key] = _listing(*key, hub, cache, asked_revision=asked)
        supplies[spec.name] = tuple(
            _supply(download, found[download.repo, wish.revision_of(spec, download)[0]], wish)
            for download in spec.downloads
        )
    haul = Haul(specs=tuple(specs), supplies=supplies)
    if not haul.files:
        raise InvalidRequestError(
            "--include and --exclude leave no file to fetch",
            hint="osp download MODEL --dry-run lists the files",
        )
    return haul


def _listing(
    repo: str, revision: str, hub: Hub | None, cache: Cache, *, asked_revision: bool
) -> Listing:
    if hub is not None:
        return hub.listing(repo, revision, asked_revision=asked_revision)
    commit = cache.commit_of(repo, revision)
    known = None if commit is None else listings.recall(repo, revision, commit)
    known = known or cache.listing_on_disk(repo, revision)
    if known is None:
        raise WeightsMissingError(
            f"{repo} is not in the cache, and nothing is fetched offline",
            hint="run it once without --offline (OSP_OFFLINE, HF_HUB_OFFLINE)",
        )
    return known


def _supply(download: Download, listing: Listing, wish: Wish) -> Supply:
    # Patterns may be alternatives, as of formats; a name is meant as it stands.
    names = [pattern for pattern in download.files if not re.search(r"[*?\[]", pattern)]
    alternatives = " or ".join(download.files)
    for wanted in (*((name,) for name in names), download.files):
        if not listing.matching(wanted):
            what = alternatives if wanted is download.files else wanted[0]
            raise WeightsMissingError(
                f"{listing.repo} has no file {what} at {listing.revision}",
                hint="its owner may have moved it: --revision COMMIT, or --local PATH",
            )
    files = listing.matching(download.files)
    _check_shards(listing, files)
    chosen = tuple(file for file in files if wish.wants(file.path))
    return Supply(download=download, listing=listing, files=files, wanted=chosen)


def _check_shards(listing: Listing, files: Sequence[RemoteFile]) -> None:
    """Refuse a model of which a numbered piece is missing; the names tell how many there are."""
    names = {file.path for file in files}
    for name in names:
        if match := re.fullmatch(r"(.*-)(\d{5})-of-(\d{5})(\..*)", name):
            stem, _, count, suffix = match.groups()
            for number in range(1, int(count) + 1):
                shard = f"{stem}{number:05d}-of-{count}{suffix}"
                if shard not in names:
                    raise WeightsMissingError(f"{listing.repo} lacks the file {shard}")


def missing(haul: Haul, cache: Cache) -> list[RemoteFile]:
    """The files that are not in the cache, as far as their sizes tell."""
    return [file for file in haul.files if cache.find(file) is None]


def plan(haul: Haul, cache: Cache) -> DownloadPlanned:
    """The download in numbers."""
    planned = [file_plan(file, cache) for file in haul.contents]
    cached = sum(item.bytes for item in planned if item.here_bytes == item.bytes)
    partial = sum(item.here_bytes for item in planned if item.here_bytes < item.bytes)
    total = sum(item.bytes for item in planned)
    home = weights_home()
    return DownloadPlanned(
        models=tuple(spec.name for spec in haul.specs),
        num_files=len(haul.files),
        total_bytes=total,
        cached_bytes=cached,
        partial_bytes=partial,
        fetch_bytes=total - cached - partial,
        cache=cache.root,
        cache_free_bytes=_free_bytes(cache.root),
        home=home,
        home_free_bytes=_free_bytes(home),
        convert_bytes=_convert_bytes(haul),
        unchecked=tuple(
            spec.name for spec in haul.specs if not all(item.checked for item in spec.downloads)
        ),
    )


def file_plan(file: RemoteFile, cache: Cache) -> FilePlanned:
    """How much of a file is here."""
    whole = cache.find(file) is not None or cache.find_elsewhere(file) is not None
    here = file.size if whole else cache.part_bytes(file)
    return FilePlanned(repo=file.repo, path=file.path, bytes=file.size, here_bytes=here)


def check_room(planned: DownloadPlanned) -> None:
    """Refuse what cannot fit, before the first byte.

    Raises:
        WontFitError: with the numbers.
    """
    need = {planned.cache: planned.fetch_bytes, planned.home: planned.convert_bytes}
    if _on_one_disk(planned.cache, planned.home):
        need = {planned.cache: planned.fetch_bytes + planned.convert_bytes}
    free = {planned.cache: planned.cache_free_bytes, planned.home: planned.home_free_bytes}
    variable = {planned.cache: "HF_HUB_CACHE", planned.home: "OSP_HOME"}
    for folder, count in need.items():
        left = free[folder]
        if count and left is not None and count + _SPARE_BYTES > left:
            raise WontFitError(
                f"the download needs {in_words(count + _SPARE_BYTES)} on the disk of {folder}, "
                f"{in_words(left)} are free",
                hint=f"free some space, or {variable[folder]}=FOLDER uses another disk",
            )


def sources(haul: Haul, spec: ModelSpec, cache: Cache, scratch: Path) -> dict[str, Path]:
    """The folder or the single file of each part, holding nothing but what is the part's.

    Args:
        scratch: a folder for links, not there yet, where a repository holds more than the part.
    """
    found: dict[str, Path] = {}
    for supply in haul.supplies[spec.name]:
        download, files = supply.download, supply.files
        if len(files) == 1 and not download.subfolder:
            found[download.part] = cache.pointer(files[0])
            continue
        folder = cache.snapshot(supply.listing.repo, supply.listing.commit)
        folder = folder.joinpath(*filter(None, download.subfolder.split("/")))
        pointers = {cache.pointer(file) for file in files}
        if any(path.is_file() and path not in pointers for path in folder.rglob("*")):
            folder = _only(pointers, folder, scratch / download.part)
        found[download.part] = folder
    return found


def _only(pointers: set[Path], folder: Path, scratch: Path) -> Path:
    """A folder with links to just these files, under their paths below `folder`."""
    for pointer in pointers:
        inside = pointer.relative_to(folder) if pointer.is_relative_to(folder) else pointer.name
        link = scratch / inside
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.symlink_to(pointer.resolve())
        except (OSError, NotImplementedError):
            try:
                os.link(pointer, link)
            except OSError:
                shutil.copyfile(pointer, link)
    return scratch


def in_words(count: int) -> str:
    """A count of bytes as people say it, in decimal units."""
    if count >= 10**9:
        return f"{count / 1e9:.1f} GB"
    if count >= 10**6:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1000 else f"{count} bytes"


def _convert_bytes(haul: Haul) -> int:
    return sum(
        sum(file.size for file in supply.wanted)
        for spec in haul.specs
        for supply in haul.supplies[spec.name]
        if supply.is_whole and not supply.is_ready_made and not haul.is_installed(spec)
    )


def _existing(folder: Path) -> Path:
    """The folder, or the first one around it that is there: what it will be made on."""
    return next((parent for parent in (folder, *folder.parents) if parent.is_dir()), Path("/"))


def _on_one_disk(one: Path, other: Path) -> bool:
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError:
        return None
