"""What `osp generate` and `osp stylize` share: from a call to videos, with everything told."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osp_cli.cli import console
from osp_cli.errors import (
    BatchPartlyFailedError,
    InterruptedRunError,
    InvalidRequestError,
    OspError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from osp_cli.cli.display import Display
    from osp_cli.cli.intake import Asked, Call
    from osp_cli.events import Event
    from osp_cli.requests import GenerateRequest, Sheet
    from osp_cli.stopping import StopSignal


@dataclass(frozen=True, slots=True)
class Manner:
    """How a command tells what it does: `--dry-run`, `--json`, `--quiet` and `--verbose`."""

    dry_run: bool
    as_json: bool
    quiet: bool
    verbose: bool


def flags_of(typed: Mapping[str, Any]) -> dict[str, Any]:
    """The dials among a command's parameters, which bear their fields' names; None where not given.

    Args:
        typed: values of the parameters by name.

    Raises:
        InvalidRequestError: `--lora none` beside others.
    """
    from osp_cli.dials import DIALS, joined_loras

    fields = {dial.field for dial in DIALS.values()} | {"width", "height"}
    flags = {name: value for name, value in typed.items() if name in fields - {"prompt"}}
    return {**flags, "loras": joined_loras(flags["loras"]) if flags["loras"] else None}


def make(call: Call, started: float, manner: Manner) -> None:
    """Make all videos that are asked for, or show their plans.

    Args:
        call: the command line.
        started: when the program began, of `time.monotonic`.
        manner: how to tell of it.

    Raises:
        OspError: as named by its class.
    """
    from osp_cli.cli.intake import gather

    asked = gather(call)
    _refuse_streams(asked, as_json=manner.as_json)
    asked = _refuse_early(asked, dry_run=manner.dry_run)
    if not asked.items and not asked.sheets:
        for notice in () if manner.quiet else asked.notices:
            console.say(f"note: {notice}")
        return
    if manner.dry_run:
        _show_plans(asked, as_json=manner.as_json, quiet=manner.quiet)
        return
    _run(asked, started, manner)


def print_settings(call: Call, *, as_json: bool) -> None:
    """Show the settings; with a picture or a text, of a request that could run."""
    from osp_cli.cli.intake import gather, layers_of
    from osp_cli.cli.showing import show_settings
    from osp_cli.requests import prompts_of
    from osp_cli.settings import flag_names, settle_dials

    if call.batch_file is not None:
        raise InvalidRequestError(
            "--print-config shows one set of settings, --from-file may hold many"
        )
    if call.image is None and call.text is None and call.recipe_file is None:
        dials, _ = settle_dials(layers_of(call), call.command)
        if call.command == "generate":
            # Nothing is re-noised here.
            del dials["strength"]
        settings = flag_names(dials)
        prompts = prompts_of(dials["style"].value, dials["model"].value, dials["prompt"].value)
    else:
        asked = gather(call)
        settings = dict(asked.settings)
        # A sheet of styles has no one prompt.
        [prompts, *others] = dict.fromkeys(request.prompts for request in asked.requests)
        prompts = () if others else prompts
    show_settings(settings, as_json=as_json, prompts=prompts)


def _refuse_streams(asked: Asked, *, as_json: bool) -> None:
    """Refuse what stdout cannot carry at once."""
    from osp_cli.outputs import STDOUT

    if not any(request.output == STDOUT for request in asked.requests):
        return
    if as_json:
        raise InvalidRequestError("--json and --output - both want stdout", hint="-o clip.mp4")
    if any(request.preview != "none" for request in asked.requests):
        raise InvalidRequestError("--preview needs a file beside which to lie, not --output -")
    if sys.stdout is not None and sys.stdout.isatty():
        raise InvalidRequestError(
            "--output - writes a video, stdout is a terminal here",
            hint="pipe it on: osp generate ... -o - | ffplay -",
        )


def _refuse_early(asked: Asked, *, dry_run: bool) -> Asked:
    """Refuse what can be refused before torch is imported, a matter of seconds.

    Raises:
        OspError: of the only video, or, of the first one's class, of a batch in which none can be.
    """
    requests = asked.requests
    if requests and requests[0].preview == "contact":
        from osp_cli.media.files import check_writable
        from osp_cli.outputs import sheet_path

        sheet = sheet_path([request.output for request in requests])
        check_writable(sheet, overwrite=requests[0].overwrite)
    for page in asked.sheets:
        _check_sheet(page, dry_run=dry_run)
    done = [item for item in asked.requests if asked.is_batch and _is_done(item)]
    checked = [
        item if isinstance(item, OspError) else _checked(item, dry_run=dry_run)
        for item in asked.items
        if item not in done
    ]
    errors = [item for item in checked if isinstance(item, OspError)]
    # A sheet of seeds is one picture: all of them or none.
    skipped = tuple(f"{item.output} is there already, made by the same settings" for item in done)
    if errors and done and len(errors) == len(checked):
        for notice in skipped:
            console.say(f"note: {notice}")
        for error in errors:
            console.say_error(error.message, error.hint)
        raise BatchPartlyFailedError(f"{len(errors)} of {len(asked.items)} videos cannot be made")
    if errors and (len(errors) == len(checked) or asked.requests[0].preview == "contact"):
        if len({error.message for error in errors}) > 1:
            for error in errors:
                console.say_error(error.message, error.hint)
            raise type(errors[0])(f"none of {len(checked)} videos can be made")
        raise errors[0]
    return replace(asked, items=checked, notices=(*asked.notices, *skipped))


def _check_sheet(sheet: Sheet, *, dry_run: bool) -> None:
    """Refuse a page that cannot be written, before its videos are made.

    Raises:
        InvalidRequestError: it is there already, or its folder is not.
    """
    from osp_cli.media.files import check_writable, make_folder
    from osp_cli.media.sinks import check_output
    from osp_cli.sheets import STILL_SHEETS

    folder = sheet.output.parent
    if sheet.makes_folder and not folder.exists():
        if dry_run:
            return
        make_folder(folder)
    if sheet.output.suffix.lower() in STILL_SHEETS:
        check_writable(sheet.output, overwrite=sheet.overwrite)
    else:
        check_output(sheet.output, overwrite=sheet.overwrite, fps=sheet.requests[0].fps)


def _is_done(request: GenerateRequest) -> bool:
    """Whether an earlier run of the batch has made this very video."""
    from osp_cli.media.recipes import read_recipe
    from osp_cli.runtime.replay import made_by, same_source

    if request.overwrite or request.preview == "contact" or not request.output.exists():
        return False
    try:
        recipe = read_recipe(request.output) or {}
        return (
            made_by(recipe, request)
            and recipe.get("fps") == request.fps
            and same_source(recipe, request)
        )
    except OspError:
        return False


def _checked(request: GenerateRequest, *, dry_run: bool) -> GenerateRequest | OspError:
    from osp_cli.hub.whole import whole_weights_dir
    from osp_cli.media.files import make_folder
    from osp_cli.media.image import decode_image, load_image
    from osp_cli.media.sinks import check_output
    from osp_cli.media.source_video import probe_source
    from osp_cli.requests import RestyleRequest
    from osp_cli.runtime.adapters import check_loras
    from osp_cli.runtime.distributed import check_share
    from osp_cli.runtime.packages import check_packages
    from osp_cli.runtime.replay import refuse_unfinished

    try:
        check_packages(request)
        if isinstance(request, RestyleRequest):
            probe_source(request.video)
        if request.image_data is not None:
            decode_image(request.image_data, name="the picture on stdin")
        elif request.image is not None:
            load_image(request.image)
        whole_weights_dir(request.spec)
        if request.latents is None:
            check_loras(request, numbers=False)
        check_share(request)
        folder = request.output.parent
        if request.makes_folder and not folder.exists():
            if not dry_run:
                make_folder(folder)
        else:
            check_output(request.output, overwrite=request.overwrite, fps=request.fps)
            refuse_unfinished(request)
    except OspError as error:
        return error.at(request.place)
    return request


def _show_plans(asked: Asked, *, as_json: bool, quiet: bool) -> None:
    """What `--dry-run` does: plans, and nothing loaded."""
    from osp_cli.cli.showing import show_plan, show_sheet
    from osp_cli.runtime.start_up import light_imports

    with light_imports():
        from osp_cli.runtime.batch import plan_of

    def say_notices(notices: Iterable[str]) -> None:
        for notice in () if quiet else notices:
            console.say(f"note: {notice}")

    say_notices(asked.notices)
    errors: list[OspError] = []
    # One plan is like the others of its sheet.
    alike = {id(request) for sheet in asked.sheets for request in sheet.requests[1:]}
    for number, item in enumerate(asked.items):
        try:
            if isinstance(item, OspError):
                raise item
            planned, notices = plan_of(item)
        except OspError as error:
            if not asked.is_batch:
                raise
            console.say_error(error.message, error.hint)
            errors.append(error)
            continue
        if as_json:
            say_notices(notices)
            console.write_json(planned.as_json())
            continue
        if id(item) in alike:
            continue
        say_notices(notices)
        if number:
            console.write_line("")
        show_plan(planned.plan, item)
        for sheet in asked.sheets:
            if item is sheet.requests[0]:
                show_sheet(sheet)
    if not asked.items:
        # All videos are there; what is left takes seconds.
        for sheet in () if as_json else asked.sheets:
            show_sheet(sheet)
    elif len(errors) == len(asked.items):
        raise type(errors[0])(f"none of {len(errors)} videos can be made")
    if errors:
        raise BatchPartlyFailedError(f"{len(errors)} of {len(asked.items)} videos cannot be made")


def _run(asked: Asked, started: float, manner: Manner) -> None:
    from osp_cli.cli.display import listen, open_display
    from osp_cli.cli.showing import dial_text
    from osp_cli.stopping import StopSignal

    display: Display | None = open_display(
        quiet=manner.quiet, verbose=manner.verbose, as_json=manner.as_json
    )
    left = _Left()
    with StopSignal(talk=not manner.quiet).installed() as stop:
        try:
            with display or contextlib.nullcontext():
                if display is not None and manner.verbose:
                    for name, setting in asked.settings.items():
                        display.line(f"{name} = {dial_text(name, setting)} ({setting.origin})")
                if display is not None:
                    display.begin("load")
                listen(_events(asked, started, stop, left), display, as_json=manner.as_json)
        except BrokenPipeError as error:
            raise console.StdoutClosedError from error
        # A signal may strike anywhere in here, also while an event is being shown.
        except KeyboardInterrupt as error:
            raise stop.error(f"interrupted, {left.told()}", kept=left.kept) from error
        except InterruptedRunError as error:
            raise type(error)(f"{error.message}, {left.told()}", kept=error.kept) from error


class _Left:
    """What a run would leave behind if it ended now.

    Attributes:
        saved: videos that are whole.
        kept: latents of the one that is not.
    """

    def __init__(self) -> None:
        self.saved: list[Path] = []
        self.kept: tuple[Path, ...] = ()

    def told(self) -> str:
        """The videos, in words."""
        if not self.saved:
            return "no video was saved"
        if len(self.saved) > 3:
            return f"{len(self.saved)} videos were saved"
        return (
            f"{', '.join(map(str, self.saved))} {'was' if len(self.saved) == 1 else 'were'} saved"
        )


def _events(asked: Asked, started: float, stop: StopSignal, left: _Left) -> Iterator[Event]:
    """The events of the run, with the notices of the settings and the time of the imports."""
    from osp_cli.events import Done, LatentsSaved, Notice, Saved
    from osp_cli.last_output import remember
    from osp_cli.outputs import STDOUT
    from osp_cli.runtime.start_up import light_imports

    yield from (Notice(message) for message in asked.notices)
    with light_imports(for_good=True):
        run = _runner(asked, stop)  # torch starts here
    imported = time.monotonic() - started
    for event in run:
        match event:
            case LatentsSaved(path):
                left.kept = (path,)
            case Saved(path):
                left.saved.append(path)
                left.kept = ()
                if path != STDOUT:
                    remember(path)
            case Done(seconds, timings, skipped):
                event = Done(seconds + imported, {"imports": imported, **timings}, skipped)
        yield event


def _runner(asked: Asked, stop: StopSignal) -> Iterator[Event]:
    """The iterator that does the work, not yet begun."""
    requests: Sequence[GenerateRequest] = asked.requests
    if asked.sheets:
        from osp_cli.runtime.sheets import with_sheets

        waiting = [request.output for request in requests]
        alone = replace(asked, sheets=())
        return with_sheets(_runner(alone, stop) if requests else iter(()), asked.sheets, waiting)
    if any(request.gpus > 1 for request in requests):
        # Without torch: it starts in the processes that use it.
        from osp_cli.runtime.distributed import run_together

        return run_together(asked.items, batch=asked.is_batch, stop=stop)
    if requests[0].preview == "contact":
        from osp_cli.runtime.contact import run_contact

        return run_contact(requests, stop=stop)
    if asked.is_batch:
        from osp_cli.runtime.batch import run_batch

        return run_batch(asked.items, stop=stop)
    from osp_cli.runtime.batch import runner_of

    return runner_of(requests[0])(requests[0], stop=stop)
