"""`osp generate`: a picture becomes a video."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from osp_cli.cli import options as opt
from osp_cli.errors import InterruptedRunError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from osp_cli.events import Event
    from osp_cli.requests import GenerateRequest
    from osp_cli.settings import Settled

EXAMPLES = """\
\b
Examples:
  osp generate photo.jpg "the camera pans left"
  osp generate photo.jpg "snow falls" --style ghibli --seed 7
  osp generate photo.jpg @prompt.txt -s ink -o ink.mp4 -y
  osp generate --text "clouds drift over a lake" -m flashi2v-1.3b
"""


def generate(
    image: opt.ImageArg = None,
    prompt: opt.PromptArg = None,
    style: opt.StyleOpt = None,
    output: opt.OutputOpt = None,
    overwrite: opt.OverwriteOpt = False,
    seed: opt.SeedOpt = None,
    negative_prompt: opt.NegativePromptOpt = None,
    text: opt.TextOpt = None,
    size: opt.SizeOpt = None,
    width: opt.WidthOpt = None,
    height: opt.HeightOpt = None,
    frames: opt.FramesOpt = None,
    seconds: opt.SecondsOpt = None,
    fps: opt.FpsOpt = None,
    steps: opt.StepsOpt = None,
    cfg: opt.CfgOpt = None,
    cutoff: opt.CutoffOpt = None,
    shift: opt.ShiftOpt = None,
    model: opt.ModelOpt = None,
    device: opt.DeviceOpt = None,
    dtype: opt.DtypeOpt = None,
    as_json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
    verbose: opt.VerboseOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Turn a picture into a video."""
    started = time.monotonic()
    # Here, as `osp --help` needs none of it.
    from osp_cli.cli.display import listen, open_display
    from osp_cli.settings import settle_generate

    if quiet and verbose:
        raise InvalidRequestError("--quiet and --verbose exclude each other")
    settled = settle_generate(
        image=None if image is None else Path(image),
        prompt=prompt,
        text=text,
        style=style,
        negative_prompt=negative_prompt,
        output=output,
        size=size,
        width=width,
        height=height,
        frames=frames,
        seconds=seconds,
        fps=fps,
        steps=steps,
        cfg=cfg,
        shift=shift,
        cutoff=cutoff,
        seed=seed,
        model=model,
        device=device,
        dtype=dtype,
        overwrite=overwrite,
    )
    request = settled.request
    _refuse_early(request)

    display = open_display(quiet=quiet, verbose=verbose, as_json=as_json)
    if display is None:
        listen(_events(settled, started), None, as_json=as_json)
        return
    with display:
        if verbose:
            for name, origin in settled.origins.items():
                display.line(f"{name} = {getattr(request, name)!r} ({origin})")
        display.begin("load")
        listen(_events(settled, started), display, as_json=as_json)


def _refuse_early(request: GenerateRequest) -> None:
    """Refuse what can be refused before torch is imported, a matter of seconds."""
    from osp_cli.media.sinks import check_video_output

    if request.image is not None:
        from osp_cli.media.image import load_image

        load_image(request.image)
    check_video_output(request.output, overwrite=request.overwrite)
    request.spec.weights_dir()


def _events(settled: Settled, started: float) -> Iterator[Event]:
    """The events of the run, with the notices of the settings and the time of the imports."""
    from osp_cli.events import Done, Notice, Saved

    yield from (Notice(message) for message in settled.notices)
    saved: list[Path] = []
    try:
        from osp_cli.runtime.runner import run  # torch starts here

        imported = time.monotonic() - started
        for event in run(settled.request):
            match event:
                case Saved(path):
                    saved.append(path)
                case Done(seconds, timings):
                    event = Done(seconds + imported, {"imports": imported, **timings})
            yield event
    except KeyboardInterrupt as error:
        kept = f"{', '.join(map(str, saved))} was saved" if saved else "no video was saved"
        raise InterruptedRunError(f"interrupted, {kept}") from error
