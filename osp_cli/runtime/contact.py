"""A sheet of many seeds after a few steps, to choose from before the rest is computed."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from osp_cli.events import Done, Event, ItemStarted, Notice, Planned, Saved
from osp_cli.media.files import check_writable
from osp_cli.media.sheet import contact_sheet, save_sheet
from osp_cli.outputs import sheet_path
from osp_cli.pipelines.flash_i2v import decode_glimpse
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.models import DECODING, Models
from osp_cli.runtime.settling import Clip, settle
from osp_cli.runtime.stages import sample
from osp_cli.stopping import StopSignal

# Of a clip's steps: the layout stands by then, the detail does not.
_SHARE_OF_STEPS = 0.2


def run_contact(
    requests: Sequence[GenerateRequest],
    *,
    stop: StopSignal | None = None,
    models: Models | None = None,
) -> Iterator[Event]:
    """Yields the events of sampling each clip for a few steps, then of saving the sheet.

    The latents of every clip stay beside its output, so that whichever is chosen goes on from
    there, bit-exactly.

    Raises:
        OspError: as named by its class; what was sampled is kept.
    """
    started = time.perf_counter()
    path = sheet_path([request.output for request in requests])
    check_writable(path, overwrite=requests[0].overwrite)
    stop, models = stop or StopSignal(), models or Models()
    rows = {}
    for number, request in enumerate(requests, 1):
        yield ItemStarted(number, len(requests), request.output, request.seed, request.prompt)
        clip, notices = settle(request)
        if number == 1:
            yield Planned(clip.plan)
            yield from map(Notice, notices)
        rows[f"seed {request.seed}"] = yield from _glimpse(clip, models, stop)
    sheet = contact_sheet(rows, title=requests[0].prompt)
    save_sheet(sheet, path, overwrite=requests[0].overwrite)
    yield Saved(path, path.stat().st_size)
    yield Notice("the same command with --pick SEED in place of --preview contact finishes one")
    yield Done(time.perf_counter() - started, {})


def _glimpse(
    clip: Clip, models: Models, stop: StopSignal
) -> Generator[Event, None, list[NDArray[np.uint8]]]:
    """A few pictures of a clip after a few steps; never fewer steps than an earlier run left."""
    done = 0 if clip.frozen is None else clip.frozen.state.step
    if clip.frozen is not None and clip.frozen.is_sampled:
        yield from models.load(clip.request.spec, clip.plan, clip.weights, DECODING)
        return decode_glimpse(models.vae, clip.frozen.state.latents)
    steps = math.ceil(clip.request.num_inference_steps * _SHARE_OF_STEPS)
    sampled = yield from sample(clip, models, stop, until=max(steps, done + 1))
    return decode_glimpse(models.vae, sampled.sampling.estimate())
