"""`osp dataset`: build a dataset of styled clips, or look at one that is to be trained on."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osp_cli.cli import console, dataset_check
from osp_cli.cli.options import DebugOpt, DeviceOpt, FpsOpt, JsonOpt, QuietOpt, SizeOpt
from osp_cli.dials import number, prompt_text, whole_number
from osp_cli.errors import InvalidRequestError, OspError

if TYPE_CHECKING:
    from osp_cli.events import Event, ItemBuilt
    from osp_cli.stopping import StopSignal
    from osp_cli.training.building.request import BuildRequest

EXAMPLES = """\
\b
Examples:
  osp dataset build procedural --style oil -o try
  osp dataset build clips/ --style ghibli,ink -o styled
  osp dataset build clips/ photo.jpg -s oil -o styled --animator osp-mini \\
    --caption "{caption}, {style} style"
  osp dataset build clips/ --style all -o styled --stylizer qwen-image-edit \\
    --animator wan2.1-i2v-14b-480p
  osp train-lora styled --out my-oil --trigger "my oil style"
The same command goes on where it was stopped. Text files beside the
clips, fox.txt for fox.mp4, are their captions. styled/osp.jsonl tells
what became of every clip, and why some were given up. --frames 121
--fps 24 are the paper's clips, where the animator can make them.
"""
_SECONDS_BETWEEN_LINES = 10.0
_STAGES = {
    "gated": "looked at",
    "keyframed": "keyframe taken",
    "stylised": "styled",
    "done": "animated",
}

dataset = typer.Typer(rich_markup_mode=None)
dataset.command(epilog=dataset_check.EXAMPLES)(dataset_check.check)


@dataset.callback()
def about() -> None:
    """Build a dataset for osp train-lora, or check one."""


@dataset.command(epilog=EXAMPLES)
def build(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Videos, pictures, folders of them, or `procedural` for drawn scenes",
            show_default=False,
        ),
    ],
    style: Annotated[
        str,
        typer.Option(
            "--style",
            "-s",
            metavar="NAME[,NAME]",
            help="Styles that every source is shown in, or all",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FOLDER", help="The dataset", show_default=False),
    ],
    num_frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            "-f",
            metavar="N",
            parser=whole_number("--frames"),
            help="Of every clip, 4k+1 [81, or what the animator makes at most]",
        ),
    ] = None,
    fps: FpsOpt = None,
    size: SizeOpt = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            "-c",
            metavar="N",
            parser=whole_number("--count"),
            help="Take so many sources [all; 8 drawn scenes]",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", parser=whole_number("--seed"), help="Of everything"),
    ] = 42,
    caption: Annotated[
        str | None,
        typer.Option(
            "--caption",
            metavar="TEXT",
            parser=prompt_text,
            help="Of every clip; {caption} is the text beside it, {style} the style's name",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            parser=prompt_text,
            help="What happens in every clip [what the text beside it says]",
        ),
    ] = None,
    stylizer: Annotated[
        str,
        typer.Option(
            "--stylizer",
            metavar="NAME",
            help="procedural, qwen-image-edit, flux-kontext, flux2, flux2-klein, "
            "longcat-image-edit, or a folder with one of them",
        ),
    ] = "procedural",
    animator: Annotated[
        str,
        typer.Option("--animator", metavar="NAME", help="procedural, or one of `osp models`"),
    ] = "procedural",
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="FOLDER",
            help="A CLIP model that must find the style in every picture and clip",
        ),
    ] = None,
    min_seconds: Annotated[
        float | None,
        typer.Option(
            "--min-seconds",
            metavar="S",
            parser=number("--min-seconds"),
            help="Shortest video that is taken [5]",
        ),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            "--max-seconds", metavar="S", parser=number("--max-seconds"), help="Longest one [20]"
        ),
    ] = None,
    min_side: Annotated[
        int | None,
        typer.Option(
            "--min-side",
            metavar="PIXELS",
            parser=whole_number("--min-side"),
            help="Shorter side of the smallest one [720, less for small clips]",
        ),
    ] = None,
    allow_cuts: Annotated[
        bool, typer.Option("--allow-cuts", help="Take videos with cuts too", show_default=False)
    ] = False,
    no_gates: Annotated[
        bool,
        typer.Option("--no-gates", help="Take everything, however it looks", show_default=False),
    ] = False,
    device: DeviceOpt = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            "-y",
            help="Make anew what was begun in FOLDER with other settings",
            show_default=False,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be made, and exit", show_default=False),
    ] = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Make styled clips of videos, pictures or drawn scenes (paper, section 6).

    Sources pass gates (length, size, cuts, blur, ...), their middle picture is painted in each
    style, moves, and is looked at once more. What passes is listed in FOLDER/osp.jsonl.
    """
    from osp_cli.training.building.request import BuildRequest, find_styles, settle_build

    if count is not None and count < 1:
        raise InvalidRequestError(f"--count is at least 1, got {count}")
    if seed < 0:
        raise InvalidRequestError(f"--seed is at least 0, got {seed}")
    names = [name.strip() for name in style.split(",") if name.strip()]
    if not names:
        raise InvalidRequestError("a style is missing", hint="--style oil; osp styles lists them")
    styles = find_styles(names, stylizer)
    settings, notices = settle_build(
        stylizer=_engine(stylizer),
        animator=animator,
        judge=None if judge is None else str(Path(judge).resolve()),
        num_frames=num_frames,
        fps=fps,
        size=None if size is None else (size.width, size.height),
        seed=seed,
        caption=caption,
        prompt=prompt,
        gates=not no_gates,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        min_side=min_side,
        allow_cuts=allow_cuts,
    )
    folder = Path(output)
    _refuse_inside(sources, folder)
    from osp_cli.training.building.sources import captions_for, find_sources

    found, left_out = find_sources(sources, count=count, seed=seed)
    request = BuildRequest(
        folder=folder,
        sources=tuple(found),
        captions=captions_for(found, caption),
        styles=styles,
        settings=settings,
        device=device or os.environ.get("OSP_DEVICE") or "auto",
        overwrite=overwrite,
    )
    for notice in () if quiet else (*notices, *left_out):
        console.say(f"note: {notice}")
    if dry_run:
        _show_plan(request, as_json=as_json)
        return
    _run(request, as_json=as_json, quiet=quiet)


def _engine(name: str) -> str:
    """A folder under the same name wherever the command is typed."""
    return str(Path(name).resolve()) if os.sep in name else name


def _refuse_inside(sources: list[str], folder: Path) -> None:
    """Refuse a dataset among its own sources, which belong to somebody.

    Raises:
        InvalidRequestError: it would be.
    """
    home = folder.resolve()
    for word in sources:
        source = Path(word).resolve()
        if source.is_dir() and (source == home or source in home.parents):
            raise InvalidRequestError(
                f"{folder} lies in {word}, which the dataset is made of",
                hint="choose a folder elsewhere with -o",
            )


def _show_plan(request: BuildRequest, *, as_json: bool) -> None:
    """What `--dry-run` tells: nothing is written or loaded."""
    from osp_cli.training.building.manifest import MANIFEST, Manifest

    settings = request.settings
    rows = len(request.sources) * len(request.styles)
    done = len(Manifest(request.folder / MANIFEST).at("done"))
    if as_json:
        console.write_json(
            {
                "type": "dataset_plan",
                "path": str(request.folder),
                "num_sources": len(request.sources),
                "styles": [style.name for style in request.styles],
                "num_rows": rows,
                "num_done": done,
                "settings": settings.as_json(),
            }
        )
        return
    sizes = [settings.size] if settings.size else settings.sizes
    lines = {
        "dataset": str(request.folder),
        "sources": str(len(request.sources)),
        "styles": ", ".join(style.name for style in request.styles),
        "clips": f"{rows} at most, {done} of them done",
        "frames": f"{settings.num_frames} at {settings.fps} a second",
        "size": ", ".join(f"{width}x{height}" for width, height in sizes),
        "stylizer": settings.stylizer,
        "animator": settings.animator,
    }
    for name, text in lines.items():
        console.write_line(f"{name + ':':<10}{text}")


def _run(request: BuildRequest, *, as_json: bool, quiet: bool) -> None:
    from osp_cli.events import DatasetBuilt
    from osp_cli.stopping import StopSignal

    teller = None if quiet else _Teller()
    with StopSignal(talk=not quiet, unit="clip").installed() as stop:
        try:
            for event in _events(request, stop):
                if as_json:
                    console.write_json(event.as_json())
                elif isinstance(event, DatasetBuilt):
                    console.write_line(str(event.path))
                if teller is not None:
                    teller.show(event)
        except KeyboardInterrupt as error:
            raise stop.error("interrupted, the same command goes on") from error
        except OspError as error:
            if stop.requested and not error.hint:
                error.hint = "the same command goes on"
            raise


def _events(request: BuildRequest, stop: StopSignal) -> Iterator[Event]:
    from osp_cli.runtime.start_up import light_imports

    with light_imports(for_good=True):
        from osp_cli.runtime.building import run  # torch starts here
    yield from run(request, stop=stop)


class _Teller:
    """Lines on stderr: one now and then, and one for each clip that is given up."""

    def __init__(self) -> None:
        self._last_line = time.monotonic()
        self._given_up: set[tuple[str, str | None]] = set()

    def show(self, event: Event) -> None:
        """Tell about one event."""
        from osp_cli.events import DatasetBuilt, ItemBuilt, Notice

        match event:
            case Notice(message):
                console.say(f"note: {message}")
            case DatasetBuilt(path=path, num_clips=clips, num_rejected=rejected):
                gone = f", {rejected} were given up" if rejected else ""
                console.say(f"{clips} clip{'s are' if clips > 1 else ' is'} ready{gone}")
                if clips:
                    folder = shlex.quote(str(path.parent))
                    console.say(f'osp train-lora {folder} --out NAME --trigger "WORDS"')
            case ItemBuilt():
                self._item(event)

    def _item(self, event: ItemBuilt) -> None:
        # A source that is given up is that in all styles.
        name = event.id.rpartition("--")[0] if event.stage == "gated" else event.id
        if not event.accepted and (name, event.reason) not in self._given_up:
            self._given_up.add((name, event.reason))
            console.say(f"given up: {name}: {event.reason}")
        now = time.monotonic()
        if event.item == event.num_items or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            console.say(f"{_STAGES[event.stage]}: {event.item} of {event.num_items}")
