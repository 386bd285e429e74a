"""`osp bench`: measure a model, and tell whether it keeps what is promised of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osp_cli.cli import console
from osp_cli.cli.options import DebugOpt, JsonOpt, ModelOpt, QuietOpt, StepsOpt, StyleOpt
from osp_cli.errors import InterruptedRunError, InvalidRequestError, WeightsMissingError
from osp_cli.registry import ModelSpec, find_model

if TYPE_CHECKING:
    from osp_cli.evaluation.mini_bench import Line
    from osp_cli.evaluation.photos import Photo
    from osp_cli.stopping import StopSignal

SUBJECTS = {
    "mini": "The built-in model, on photos that its training never saw",
    "cache": "Step caches: what each threshold saves and costs on a model",
}

EXAMPLES = """\
\b
Examples:
  osp bench mini --quick
  osp bench mini --out report/
  osp bench mini --photos my-pictures/ --json
  osp bench cache --model osp-mini --out report/
  osp bench cache --caches teacache:0.05,teacache:0.1 --photos pictures/
Each line of mini ends with the goal, what must be reached at least, and
whether it is: yes, least (the least but not the goal) or no. The exit
code is 1 if there is any no, else 0. Without --photos it needs
pip install 'osp-cli[bench]'. A line of cache compares clips with those
without a cache: sampling time, PSNR, the frame that differs most (in
grey levels) and the motion that is left. The exit code is 1 if the
model's own cache made one stand still.
"""


def bench(
    subject: Annotated[
        str,
        typer.Argument(metavar="WHAT", help=f"{', '.join(SUBJECTS)}", show_default=False),
    ],
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Fewer photos and shorter clips: minutes", show_default=False),
    ] = False,
    photos: Annotated[
        str | None,
        typer.Option("--photos", metavar="FOLDER", help="Pictures to measure on [seven photos]"),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FOLDER", help="Keep a report and sheets of clips there"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="FOLDER", help="Other weights of the same layout"),
    ] = None,
    model: ModelOpt = None,
    caches: Annotated[
        str | None,
        typer.Option(
            "--caches", metavar="LIST", help="What cache compares, as in fbcache:0.1,magcache"
        ),
    ] = None,
    steps: StepsOpt = None,
    style: StyleOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure a model against what is promised of it."""
    if subject not in SUBJECTS:
        raise InvalidRequestError(
            f"osp bench does not know {subject!r}", hint=f"it measures: {', '.join(SUBJECTS)}"
        )
    if subject == "cache":
        _bench_cache(
            photos, out, weights, model, caches, steps, style,
            quick=quick, as_json=as_json, quiet=quiet,
        )  # fmt: skip
        return
    _refuse_for_mini(model=model, caches=caches, steps=steps, style=style)
    from osp_cli.evaluation.photos import held_out_photos, photos_in, require_packages
    from osp_cli.media.files import make_folder
    from osp_cli.stopping import StopSignal

    require_packages()
    chosen = held_out_photos() if photos is None else photos_in(Path(photos))
    folder = _weights_folder(find_model("osp-mini"), weights)
    if out is not None:
        make_folder(Path(out))

    found = []
    with StopSignal(talk=not quiet).installed() as stop:
        try:
            for line in _lines(chosen, folder, out, stop, quick=quick, quiet=quiet):
                found.append(line)
                if as_json:
                    console.write_json(line.as_json())
        except (KeyboardInterrupt, InterruptedRunError) as error:
            raise stop.error("interrupted, nothing was measured to the end") from error
    if not as_json:
        _show(found)
    if any(line.met is False for line in found):
        raise typer.Exit(1)


def _refuse_for_mini(**flags: object) -> None:
    """Refuse what only `osp bench cache` takes; `mini` is one model as it is.

    Raises:
        InvalidRequestError: one of them was typed.
    """
    for name, value in flags.items():
        if value is not None:
            raise InvalidRequestError(
                f"osp bench mini takes no --{name}", hint="osp bench cache does"
            )


def _bench_cache(
    photos: str | None,
    out: str | None,
    weights: str | None,
    model: str | None,
    caches: str | None,
    steps: int | None,
    style: str | None,
    *,
    quick: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    import time

    from osp_cli.cli.bench_cache import measure_caches, read_caches, show_caches, usable_caches
    from osp_cli.evaluation.photos import held_out_photos, photos_in
    from osp_cli.media.files import make_folder
    from osp_cli.stopping import StopSignal
    from osp_cli.style_mix import read_style

    spec = find_model(model or os.environ.get("OSP_MODEL") or "osp-mini")
    asked = read_caches(caches)
    if asked is not None:
        usable_caches(spec, asked, typed=True)
    if style is not None:
        read_style(style)
    folder = _weights_folder(spec, weights)
    chosen = held_out_photos() if photos is None else photos_in(Path(photos), least=1)
    if out is not None:
        make_folder(Path(out))
    started = time.monotonic()

    def tell(text: str) -> None:
        if not quiet:
            console.say(f"{time.monotonic() - started:4.0f} s  {text}")

    with StopSignal(talk=not quiet).installed() as stop:
        try:
            lines = measure_caches(
                spec, folder, chosen, asked, stop, tell,
                quick=quick, steps=steps, style=style, out=None if out is None else Path(out),
            )  # fmt: skip
        except (KeyboardInterrupt, InterruptedRunError) as error:
            raise stop.error("interrupted, nothing was measured to the end") from error
    if as_json:
        for line in lines:
            console.write_json(line.as_json())
    else:
        show_caches(lines)
    if any(line.is_default and line.went_still for line in lines):
        raise typer.Exit(1)


def _weights_folder(spec: ModelSpec, weights: str | None) -> Path:
    """The weights to measure: those named, or those that are installed.

    Raises:
        WeightsMissingError: there are none.
    """
    if weights is None:
        return spec.weights_dir()
    folder = Path(weights)
    missing = [part for part in spec.parts if not (folder / part).is_dir()]
    if missing:
        raise WeightsMissingError(
            f"{folder} does not hold weights of {spec.name}: no folder {', '.join(missing)}"
        )
    return folder


def _lines(
    photos: list[Photo],
    weights: Path,
    out: str | None,
    stop: StopSignal,
    *,
    quick: bool,
    quiet: bool,
) -> Iterator[Line]:
    """All lines, each as soon as it is known; at the end the files in `out`."""
    import tempfile
    import time

    from osp_cli.runtime.start_up import light_imports

    started = time.monotonic()

    def tell(text: str) -> None:
        if not quiet:
            console.say(f"{time.monotonic() - started:4.0f} s  {text}")

    with tempfile.TemporaryDirectory(prefix="osp-bench-") as scratch:
        tell("load")
        with light_imports(for_good=True):
            from osp_cli.runtime.studio import Studio  # torch starts here
        from osp_cli.evaluation.mini_bench import FULL, QUICK, MiniBench
        from osp_cli.evaluation.process_bench import process_lines

        found: list[Line] = []
        for line in process_lines(photos[0].path, weights, Path(scratch), tell, full=not quick):
            found.append(line)
            yield line
        studio = Studio("osp-mini", weights=weights, folder=Path(scratch), stop=stop)
        measures = MiniBench(studio, photos, QUICK if quick else FULL, tell)
        for line in measures.lines():
            found.append(line)
            yield line
    if out is not None:
        seconds = time.monotonic() - started
        about = {"quick": quick, "seconds": round(seconds, 1), "weights": _trained(weights)}
        _write_report(Path(out), found, about)
        for path in (Path(out) / "report.json", *measures.save_sheets(Path(out))):
            tell(f"saved {path}")


def _trained(weights: Path) -> str | None:
    """The hash of the trained parameters, as the training wrote it beside them, if it did."""
    import json

    card = weights / "training.json"
    if not card.is_file():
        return None
    return str(json.loads(card.read_text("utf-8")).get("parameters_sha256"))


def _write_report(out: Path, lines: list[Line], about: dict[str, Any]) -> None:
    import json

    from osp_cli import __version__
    from osp_cli.media.files import atomic_output

    report = {
        "version": __version__,
        **about,
        "met": all(line.met is not False for line in lines),
        "lines": [line.as_json() for line in lines],
    }
    with atomic_output(out / "report.json", overwrite=True) as part:
        part.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def _show(lines: list[Line]) -> None:
    """The table; on stdout, as it is what was asked for."""
    rows: list[tuple[str, ...]] = [
        (
            line.what,
            _number(line.measured, line.unit),
            _limit(line.goal, line),
            _limit(line.least, line),
            _verdict(line),
            line.note,
        )
        for line in lines
    ]
    console.write_table(("what", "measured", "goal", "at least", "met", "how"), rows)
    if not console.is_terminal(sys.stdout):
        return
    missed = sum(line.met is False for line in lines)
    console.write_line("all is met" if not missed else f"not met: {missed} of {len(lines)}")


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    digits = 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f} {unit}".rstrip()


def _limit(value: float | None, line: Line) -> str:
    if value is None:
        return ""
    return f"{'>=' if line.more_is_better else '<='} {value:g} {line.unit}".rstrip()


def _verdict(line: Line) -> str:
    if line.met is None:
        return "-"
    if not line.met:
        return "no"
    return "least" if line.goal_met is False else "yes"
