"""From a settled `osp extend` to its video: refused early, planned, or run with everything told."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from osp_cli.cli import console
from osp_cli.errors import InvalidRequestError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from osp_cli.cli.display import Display
    from osp_cli.cli.making import Manner
    from osp_cli.events import Event
    from osp_cli.extend_request import ExtendRequest
    from osp_cli.extend_settings import SettledExtend
    from osp_cli.stopping import StopSignal


def extend_now(settled: SettledExtend, started: float, manner: Manner) -> None:
    """Make the video that is asked for, or show its plan.

    Args:
        settled: from `gather_extend`.
        started: when the program began, of `time.monotonic`.
        manner: how to tell of it.

    Raises:
        OspError: as named by its class.
    """
    request = settled.request
    _refuse_early(request, as_json=manner.as_json, dry_run=manner.dry_run)
    if manner.dry_run:
        _show_plan(settled, manner)
        return
    _run(settled, started, manner)


def _refuse_early(request: ExtendRequest, *, as_json: bool, dry_run: bool) -> None:
    """Refuse what can be refused before torch is imported, a matter of seconds."""
    from osp_cli.hub.whole import whole_weights_dir
    from osp_cli.media.image import decode_image, load_image
    from osp_cli.media.live.targets import check_targets, parse_targets
    from osp_cli.media.source_video import probe_source
    from osp_cli.runtime.adapters import check_loras
    from osp_cli.runtime.packages import check_packages

    targets = parse_targets(request.sinks, request.output)
    if as_json and any(target.kind == "stdout" for target in targets):
        raise InvalidRequestError("--json and --output - both want stdout", hint="-o clip.mp4")
    check_packages(request)
    if request.video is not None:
        probe_source(request.video)
    elif request.image_data is not None:
        decode_image(request.image_data, name="the picture on stdin")
    elif request.image is not None:
        load_image(request.image)
    whole_weights_dir(request.spec)
    check_loras(request, numbers=False)
    new_folder = request.makes_folder and not request.output.parent.exists()
    if request.resume is None and not new_folder and not dry_run:
        check_targets(targets, request.output, overwrite=request.overwrite)


def _show_plan(settled: SettledExtend, manner: Manner) -> None:
    """What `--dry-run` does: the plan, and nothing loaded."""
    from osp_cli.cli.showing import show_plan
    from osp_cli.runtime.start_up import light_imports

    with light_imports():
        from osp_cli.runtime.extend_settling import preview_extend_plan

    planned, notices = preview_extend_plan(settled.request)
    for notice in () if manner.quiet else (*settled.notices, *notices):
        console.say(f"note: {notice}")
    if manner.as_json:
        console.write_json(planned.as_json())
        return
    show_plan(planned.plan, settled.request)


def _run(settled: SettledExtend, started: float, manner: Manner) -> None:
    from osp_cli.cli.display import listen, open_display
    from osp_cli.cli.showing import dial_text
    from osp_cli.stopping import StopSignal

    display = open_display(quiet=manner.quiet, verbose=manner.verbose, as_json=manner.as_json)
    with StopSignal(talk=not manner.quiet, unit="chunk").installed() as stop:
        try:
            with display or contextlib.nullcontext():
                if display is not None and manner.verbose:
                    for name, setting in settled.settings.items():
                        display.line(f"{name} = {dial_text(name, setting)} ({setting.origin})")
                if display is not None:
                    display.begin("load")
                events = _events(settled, started, stop, display)
                listen(events, display, as_json=manner.as_json)
        except BrokenPipeError as error:
            raise console.StdoutClosedError from error
        # A signal may strike anywhere in here, also while an event is being shown.
        except KeyboardInterrupt as error:
            raise stop.error("interrupted before the stream began") from error


def _events(
    settled: SettledExtend, started: float, stop: StopSignal, display: Display | None
) -> Iterator[Event]:
    """The events of the run, with the notices of the settings and the time of the imports."""
    from osp_cli.events import Done, Notice, Saved
    from osp_cli.last_output import remember
    from osp_cli.outputs import STDOUT
    from osp_cli.runtime.start_up import light_imports

    yield from (Notice(message) for message in settled.notices)
    with light_imports(for_good=True):
        from osp_cli.runtime.extending import run_extend  # torch starts here

    imported = time.monotonic() - started
    for event in run_extend(settled.request, stop=stop, listen=_ear(settled.request, display)):
        match event:
            case Done(seconds, timings, skipped):
                event = Done(seconds + imported, {"imports": imported, **timings}, skipped)
            case Saved(path) if path != STDOUT:
                remember(path)
        yield event


def _ear(
    request: ExtendRequest, display: Display | None
) -> Callable[[Callable[[str], str]], AbstractContextManager[object]] | None:
    """What listens to stdin while the stream runs; None where nobody may steer it."""
    if not (request.listens and request.realtime) or sys.stdin is None:
        return None
    from osp_cli.cli.director import Director

    return lambda say: Director(say, display)
