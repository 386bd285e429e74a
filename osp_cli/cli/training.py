"""From a settled `osp train-lora` to its adapter: planned, or run with everything told."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from osp_cli.cli import console

if TYPE_CHECKING:
    from osp_cli.cli.display import Display
    from osp_cli.cli.making import Manner
    from osp_cli.errors import InterruptedRunError
    from osp_cli.events import Event
    from osp_cli.settings import Setting
    from osp_cli.stopping import StopSignal
    from osp_cli.train_plan import TrainPlan
    from osp_cli.train_request import TrainRequest
    from osp_cli.train_settings import SettledTraining
    from osp_cli.training.dataset.entries import DatasetReport


def show_training_settings(settled: SettledTraining, *, as_json: bool) -> None:
    """Write every dial with its origin: TOML that `--config` takes, or one JSON object.

    What nobody chose is a remark in the TOML, so that the file leaves it to the base that is used.
    """
    if as_json:
        console.write_json(
            {
                name: {"value": _plain(setting.value), "origin": setting.origin}
                for name, setting in settled.settings.items()
            }
        )
        return
    console.write_line("[train-lora]")
    lines = {name: _line(name, setting) for name, setting in settled.settings.items()}
    width = min(60, max(map(len, lines.values())))
    for name, setting in settled.settings.items():
        console.write_line(f"{lines[name]:<{width}}  # {setting.origin}")


def _line(name: str, setting: Setting) -> str:
    import json

    value = _plain(setting.value)
    if value is None or value == []:
        return f"# {name} ="
    text = json.dumps(value, ensure_ascii=False)
    chosen = setting.origin not in ("paper", "default") and not setting.origin.startswith("recipe ")
    return f"{name} = {text}" if chosen else f"# {name} = {text}"


def _plain(value: Any) -> Any:
    from pathlib import Path

    from osp_cli.dials import MemorySize, Size

    if isinstance(value, Size | MemorySize | Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def train_now(settled: SettledTraining, started: float, manner: Manner) -> None:
    """Train what is asked for, or show what would be done.

    Args:
        settled: from `settle_training`.
        started: when the program began, of `time.monotonic`.
        manner: how to tell of it.

    Raises:
        OspError: as named by its class.
    """
    from osp_cli.cli.display import listen
    from osp_cli.cli.training_display import open_training_display
    from osp_cli.stopping import StopSignal

    request = settled.request
    is_group = "WORLD_SIZE" in os.environ
    if request.gpus > 1 and not is_group and not (manner.dry_run or request.validate_only):
        from osp_cli.runtime.train_launch import launch

        code = launch(sys.argv[1:], request.gpus)
        if code:
            raise SystemExit(code)
        return
    speaks = _is_first()
    display = None
    if speaks:
        display = open_training_display(
            quiet=manner.quiet, verbose=manner.verbose, as_json=manner.as_json
        )
    talk = speaks and not manner.quiet
    with StopSignal(talk=talk, unit="step").installed() as stop:
        try:
            with display or contextlib.nullcontext():
                if display is not None and manner.verbose:
                    for name, setting in settled.settings.items():
                        display.line(f"{_line(name, setting)} ({setting.origin})")
                run = _events(settled, started, stop, display, manner)
                listen(run, display, as_json=manner.as_json and speaks)
        except BrokenPipeError as error:
            raise console.StdoutClosedError from error
        # A signal may strike anywhere in here, also while an event is being shown.
        except KeyboardInterrupt as error:
            raise _interrupted(request, stop) from error


def _interrupted(request: TrainRequest, stop: StopSignal) -> InterruptedRunError:
    """The error of a run that was stopped without being asked to save."""
    # As `osp_cli.training.checkpoints` names them, which would import torch.
    found = {
        int(path.name.removeprefix("step-")): path
        for path in request.output.glob("checkpoints/step-*")
        if path.name.removeprefix("step-").isdecimal()
    }
    if found and not request.cache_only:
        return stop.error(
            "interrupted; steps after the last checkpoint are lost", kept=(found[max(found)],)
        )
    return stop.error(
        "interrupted before the first checkpoint; the same command begins again, "
        "with what was encoded so far"
    )


def _show_plan(plan: TrainPlan, display: Display | None) -> None:
    """A plan on stdout; where stdout is the screen that stderr is, it is there by then."""
    from osp_cli.cli.training_display import plan_lines

    both = console.is_terminal(sys.stdout) and console.is_terminal(sys.stderr)
    if display is None or not both:
        for line in plan_lines(plan):
            console.write_line(line)


def _refuse_packages(request: TrainRequest) -> None:
    """What is asked for and needs a package that is not here."""
    from importlib.util import find_spec

    from osp_cli.errors import InvalidRequestError

    for asked, package, otherwise in (
        (request.optimizer == "adamw8bit", "bitsandbytes", "--optimizer adamw"),
        (
            "tensorboard" in request.logs,
            "tensorboard",
            "leave it out: metrics.jsonl is always written",
        ),
    ):
        if asked and find_spec(package) is None:
            flag = "--optimizer adamw8bit" if package == "bitsandbytes" else "--log tensorboard"
            raise InvalidRequestError(
                f"{flag} needs the package {package}", hint=f"pip install {package}, or {otherwise}"
            )


def _is_first() -> bool:
    """Whether this process looks and speaks, of those that share a run."""
    return os.environ.get("RANK", "0") == "0"


def _events(
    settled: SettledTraining,
    started: float,
    stop: StopSignal,
    display: Display | None,
    manner: Manner,
) -> Iterator[Event]:
    """The events of the run, with the notices of the settings and the time of the imports."""
    from osp_cli.events import DatasetChecked, Done, Notice, TrainingPlanned
    from osp_cli.hub.whole import whole_weights_dir

    request = settled.request
    yield from (Notice(message) for message in settled.notices)
    if not (manner.dry_run or request.validate_only):
        # Known in milliseconds, where a look at the data may take minutes.
        whole_weights_dir(request.spec)
        _refuse_packages(request)
    report, looked = None, 0.0
    if _is_first():
        began = time.monotonic()
        report = _look_at_data(request, display)
        looked = time.monotonic() - began
        yield DatasetChecked(report.as_json())
        from osp_cli.training.dataset.entries import refuse

        refuse(report, skip_invalid=request.skip_invalid)
    if request.validate_only:
        return
    if display is not None:
        display.begin("load")
    from osp_cli.runtime.training import train  # torch starts here

    imported = time.monotonic() - started - looked
    for event in train(request, report, stop=stop, dry_run=manner.dry_run):
        if manner.dry_run and not manner.as_json and isinstance(event, TrainingPlanned):
            # Asked for, so it is the result.
            _show_plan(event.plan, display)
        if isinstance(event, Done):
            timings = {"imports": imported, "check": looked, **event.timings}
            event = Done(event.seconds + imported + looked, timings, event.skipped_steps)
        yield event


def _look_at_data(request: TrainRequest, display: Display | None) -> DatasetReport:
    """Check the data, and tell what was found."""
    from osp_cli.cli.dataset_check import report_lines
    from osp_cli.runtime.train_check import look_at

    if display is not None:
        display.begin("check the data")
    report = look_at(request)
    if display is not None:
        display.rest()
        for line in report_lines(report, console.columns(sys.stderr), request):
            display.line(line)
    return report
