"""`osp download`: weights, fetched, checked and installed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osp_cli.cli import console
from osp_cli.cli.options import DebugOpt, JsonOpt, OfflineOpt, QuietOpt
from osp_cli.errors import InvalidRequestError, OspError, WeightsMissingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osp_cli.events import Event
    from osp_cli.hub.download import Way
    from osp_cli.hub.haul import Wish
    from osp_cli.registry import ModelSpec

EXAMPLES = """\
\b
Examples:
  osp download --list
  osp download flashi2v-1.3b --dry-run
  osp download flashi2v-1.3b --limit-rate 5M
  osp download flashi2v-1.3b --verify
  osp download uniworld-osp2-14b --local weights/
Stopped or cut off, the same command goes on where it was. Files go to
the cache of Hugging Face (HF_HUB_CACHE), which other programs share.
"""

_MOST_JOBS = 32


def _byte_rate(text: str) -> int:
    """Read `5M`: bytes a second, in thousands of thousands."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kKmMgG]?)(?:[bB](?:/s)?)?", text.strip())
    power = 0 if match is None else " KMG".index(match[2].upper() or " ")
    if match is None or (rate := int(float(match[1]) * 1000**power)) < 1000:
        raise InvalidRequestError(
            f"--limit-rate takes bytes a second, at least 1K, got {text!r}", hint="--limit-rate 5M"
        )
    return rate


def download(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="One or more of the list", show_default=False),
    ] = None,
    list_models: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Show what there is: size, licence, what is installed, what fits this machine",
            show_default=False,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the files, bytes and free space, and exit", show_default=False
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read what is here again and compare its hashes", show_default=False
        ),
    ] = False,
    local: Annotated[
        str | None,
        typer.Option(
            "--local", metavar="PATH", help="Install weights that are on this disk, in any layout"
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            metavar="NAME",
            help="Branch, tag or commit of the model's own repository [the card's]",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="GLOB",
            help="Only files that match, into the cache; may be repeated [all]",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="GLOB",
            help="No files that match; may be repeated [none]",
            show_default=False,
        ),
    ] = None,
    mirror: Annotated[
        list[str] | None,
        typer.Option(
            "--mirror",
            metavar="URL",
            help="Ask this server first, without your token; may be repeated [none]",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", help="Files at a time [4]", show_default=False)
    ] = 4,
    limit_rate: Annotated[
        int | None,
        typer.Option(
            "--limit-rate",
            metavar="RATE",
            parser=_byte_rate,
            help="Bytes a second of all files together, as in 500K or 5M [unlimited]",
        ),
    ] = None,
    offline: OfflineOpt = False,
    again: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            "-y",
            help="Install anew what is installed, also from elsewhere",
            show_default=False,
        ),
    ] = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Fetch the weights of models, or go on with it, and check them."""
    ways = {"--list": list_models, "--verify": verify, "--local": local, "--dry-run": dry_run}
    chosen = [flag for flag, value in ways.items() if value]
    if len(chosen) > 1:
        raise InvalidRequestError(f"{chosen[0]} and {chosen[1]} exclude each other")
    specs = _specs(models or [])
    if list_models:
        from osp_cli.cli.download_list import show_list

        show_list(specs, as_json=as_json)
        return
    if not specs:
        raise InvalidRequestError(
            "which model?", hint="osp download --list shows them, osp download NAME fetches one"
        )
    if not 1 <= jobs <= _MOST_JOBS:
        raise InvalidRequestError(f"--jobs must be from 1 to {_MOST_JOBS}, got {jobs}")
    from osp_cli.hub.client import is_offline
    from osp_cli.hub.download import Way
    from osp_cli.hub.haul import Wish

    wish = Wish(revision=revision, include=tuple(include or ()), exclude=tuple(exclude or ()))
    way = Way(
        mirrors=tuple(mirror or ()),
        jobs=jobs,
        limit_rate=limit_rate,
        offline=is_offline(offline),
        again=again,
    )
    if local is not None:
        run = _local(specs, Path(local), way)
    else:
        specs = _published(
            specs,
            again=again,
            quiet=quiet or as_json,
            verify=verify,
            dry_run=dry_run,
            partly=bool(wish.include or wish.exclude),
        )
        if not specs:
            return
        if dry_run:
            from osp_cli.cli.fetching import show_plan
            from osp_cli.hub.download import plan

            show_plan(plan(specs, wish, way), as_json=as_json)
            return
        run = _events(specs, wish, way, verify=verify)
    _show(run, as_json=as_json, quiet=quiet)


def _specs(names: Sequence[str]) -> list[ModelSpec]:
    """The cards of these names, each once."""
    from osp_cli.registry import find_model

    return [find_model(name) for name in dict.fromkeys(names)]


def _published(
    specs: Sequence[ModelSpec],
    *,
    again: bool,
    quiet: bool,
    verify: bool,
    dry_run: bool,
    partly: bool,
) -> list[ModelSpec]:
    """Those of the models that are to be fetched or checked; of the others it is said why not.

    Raises:
        WeightsMissingError: the weights of one are published nowhere, and not here either; or
            they are from elsewhere and incomplete.
    """
    from osp_cli.hub.listings import is_from_elsewhere
    from osp_cli.hub.whole import whole_weights_dir

    wanted = []
    checking = verify or dry_run
    for spec in specs:
        if verify and not spec.embedded and (spec.downloads or spec.find_weights()):
            wanted.append(spec)
        elif spec.downloads and (again or checking or not is_from_elsewhere(spec)):
            published = {item.part for item in spec.downloads}
            lacking = [part for part in spec.parts if part not in published]
            # Before gigabytes are fetched that make no model.
            if lacking and not (checking or partly or spec.find_weights()):
                raise _unpublished(spec, lacking)
            wanted.append(spec)
        elif (place := spec.find_weights()) is not None:
            how = "comes with the package" if spec.embedded else "is installed from elsewhere"
            more = "; -y fetches and replaces it" if spec.downloads else ""
            if verify:
                more = "; there is nothing to check"
            else:
                # Its next run would fail, and nothing here repairs it.
                whole_weights_dir(spec)
            if not quiet:
                console.say(f"note: {spec.name} {how}, in {place}{more}")
        else:
            raise _unpublished(spec, spec.parts)
    return wanted


def _unpublished(spec: ModelSpec, parts: Sequence[str]) -> OspError:
    return WeightsMissingError(
        f"{', '.join(parts)} of {spec.name} {'is' if len(parts) == 1 else 'are'} not published "
        "where osp could fetch them",
        hint=f"once you have the model: osp download {spec.name} --local PATH",
    )


def _local(specs: Sequence[ModelSpec], path: Path, way: Way) -> Iterator[Event]:
    """Install what is at `path`; what is not there and was published is fetched."""
    from dataclasses import replace

    from osp_cli.events import Notice

    if len(specs) != 1:
        raise InvalidRequestError("--local installs one model at a time")
    if not path.exists():
        raise InvalidRequestError(f"--local {path} is not there", hint="check the name")
    from osp_cli.hub import install

    [spec] = specs
    if not (way.again or spec.embedded) and install.is_installed_from(spec, path):
        yield Notice(f"{spec.name} is installed from there already; -y installs it anew")
        yield _saved(spec)
        return
    absent = set() if spec.embedded else {*install.lacking(spec, path)}
    published = tuple(item for item in spec.downloads if item.part in absent)
    if absent and absent == {item.part for item in published}:
        from osp_cli.hub.download import download as fetch
        from osp_cli.hub.haul import Wish

        parts = ", ".join(part for part in spec.parts if part in absent)
        yield Notice(f"not at {path}, but published, and so fetched: {parts}")
        yield from fetch(
            [replace(spec, downloads=published)], Wish(), replace(way, again=True, local=path)
        )
        return
    yield from install.install_local(spec, path)
    yield _saved(spec)


def _saved(spec: ModelSpec) -> Event:
    from osp_cli.events import Saved

    place = spec.weights_dir()
    return Saved(place, sum(file.stat().st_size for file in place.rglob("*") if file.is_file()))


def _events(
    specs: Sequence[ModelSpec],
    wish: Wish,
    way: Way,
    *,
    verify: bool,
) -> Iterator[Event]:
    from osp_cli.hub import download as fetching

    if verify:
        from osp_cli.hub.verify import verify as check

        return check(specs, wish)
    return fetching.download(specs, wish, way)


def _show(run: Iterator[Event], *, as_json: bool, quiet: bool) -> None:
    """Tell the story of the run, and of what is kept where it is stopped.

    Raises:
        InterruptedRunError: by a signal.
    """
    from osp_cli.cli.display import listen
    from osp_cli.cli.fetching import Tally, open_display
    from osp_cli.stopping import StopSignal

    tally = Tally()
    display = open_display(tally, quiet=quiet, as_json=as_json)
    with StopSignal().installed() as stop:
        try:
            with display or contextlib.nullcontext():
                listen(tally.watch(run), display, as_json=as_json)
        except BrokenPipeError as error:
            raise console.StdoutClosedError from error
        except KeyboardInterrupt as error:
            raise stop.error(f"interrupted, {tally.told()}") from error
