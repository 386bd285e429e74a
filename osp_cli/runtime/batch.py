"""Many clips from one model load."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from osp_cli.errors import (
    BatchPartlyFailedError,
    InterruptedRunError,
    OspError,
    RuntimeFailureError,
)
from osp_cli.events import Done, Event, Failed, ItemStarted, Planned
from osp_cli.requests import GenerateRequest, RestyleRequest
from osp_cli.stopping import StopSignal


def run_batch(
    items: Sequence[GenerateRequest | OspError], *, stop: StopSignal | None = None
) -> Iterator[Event]:
    """The events of one clip after the other; what fails is told, and the rest is done.

    Args:
        items: requests, and the errors of those that could not be settled.
        stop: looked at between two steps.

    Raises:
        InterruptedRunError: a signal ends the whole batch.
        BatchPartlyFailedError: some clips failed.
        OspError: all of them failed; its class is that of the first.
    """
    # Now, not when the first event is asked for; and not where other processes do the work.
    from osp_cli.runtime.models import Models

    stop, models = stop or StopSignal(), Models()
    return run_each(items, lambda request: runner_of(request)(request, stop=stop, models=models))


def runner_of(request: GenerateRequest) -> Callable[..., Iterator[Event]]:
    """What makes the video of a request: of a picture or text, or of another video."""
    if isinstance(request, RestyleRequest):
        from osp_cli.runtime.restyling import run_restyle

        return run_restyle
    from osp_cli.runtime.runner import run

    return run


def plan_of(request: GenerateRequest) -> tuple[Planned, list[str]]:
    """What a run would do, and what it would tell, without reading any weights.

    Raises:
        OspError: as the run would before it begins.
    """
    if isinstance(request, RestyleRequest):
        from osp_cli.runtime.restyle_settling import preview_restyle_plan

        return preview_restyle_plan(request)
    from osp_cli.runtime.settling import preview_plan

    return preview_plan(request)


def run_each(
    items: Sequence[GenerateRequest | OspError],
    run: Callable[[GenerateRequest], Iterator[Event]],
) -> Iterator[Event]:
    """Yields the events of `run` for each of the items, as `run_batch` tells."""
    started = time.perf_counter()
    timings: dict[str, float] = {}
    skipped = 0
    errors: list[OspError] = []
    for number, item in enumerate(items, 1):
        if isinstance(item, OspError):
            errors.append(item)
            yield _failed(item, number)
            continue
        yield ItemStarted(number, len(items), item.output, item.seed, item.prompt)
        try:
            for event in run(item):
                if isinstance(event, Done):
                    skipped += event.skipped_steps
                    for name, seconds in event.timings.items():
                        timings[name] = timings.get(name, 0.0) + seconds
                else:
                    yield event
        except InterruptedRunError:
            raise
        except OspError as error:
            errors.append(error.at(item.place))
            yield _failed(errors[-1], number)
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - one clip's surprise must not cost the others
            surprise = RuntimeFailureError(f"unexpected {type(error).__name__}: {error}")
            errors.append(surprise)
            yield _failed(surprise, number)
    yield Done(time.perf_counter() - started, timings, skipped)
    if len(errors) == len(items):
        # Each has been told already; the exit code is still that of a single video.
        raise type(errors[0])(f"none of {len(items)} videos could be made")
    if errors:
        raise BatchPartlyFailedError(f"{len(errors)} of {len(items)} videos failed")


def _failed(error: OspError, number: int) -> Failed:
    return Failed(error.message, error.hint, error.exit_code, error.kept, number)
