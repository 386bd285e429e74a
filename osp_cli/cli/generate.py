"""`osp generate`: a picture becomes a video."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from osp_cli.cli import console
from osp_cli.cli import options as opt
from osp_cli.errors import (
    BatchPartlyFailedError,
    InterruptedRunError,
    InvalidRequestError,
    OspError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from osp_cli.cli.display import Display
    from osp_cli.cli.intake import Asked, Call
    from osp_cli.events import Event
    from osp_cli.requests import GenerateRequest
    from osp_cli.stopping import StopSignal

EXAMPLES = """\
\b
Examples:
  osp generate photo.jpg "the camera pans left"
  osp generate photo.jpg "snow falls" --style ghibli --seed 1-4
  osp generate photo.jpg @prompt.txt -s ink -o ink.gif -y
  osp generate photo.jpg "zoom in" --style ghibli:0.3+oil:0.5
  osp generate photo.jpg "zoom in" --lora style.safetensors:0.8
  osp generate --from clip.mp4 --style oil
  osp generate photo.jpg --from-file prompts.txt -o videos/
  curl -s URL | osp generate - "zoom in" -o - | ffplay -
"""


def generate(
    image: opt.ImageArg = None,
    prompt: opt.PromptArg = None,
    style: opt.StyleOpt = None,
    output: opt.OutputOpt = None,
    overwrite: opt.OverwriteOpt = False,
    seed: opt.SeedOpt = None,
    count: opt.CountOpt = None,
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
    sampler: opt.SamplerOpt = None,
    lora: opt.LoraOpt = None,
    cache: opt.CacheOpt = None,
    cache_start: opt.CacheStartOpt = None,
    preview: opt.PreviewOpt = None,
    pick: opt.PickOpt = None,
    from_recipe: opt.FromOpt = None,
    from_file: opt.FromFileOpt = None,
    model: opt.ModelOpt = None,
    device: opt.DeviceOpt = None,
    dtype: opt.DtypeOpt = None,
    offload: opt.OffloadOpt = None,
    quant: opt.QuantOpt = None,
    attention: opt.AttentionOpt = None,
    vae_tiling: opt.VaeTilingOpt = None,
    compile_blocks: opt.CompileOpt = None,
    gpus: opt.GpusOpt = None,
    max_vram: opt.MaxVramOpt = None,
    max_ram: opt.MaxRamOpt = None,
    offline: opt.OfflineOpt = False,
    metadata: opt.MetadataOpt = None,
    config: opt.ConfigOpt = None,
    print_config: opt.PrintConfigOpt = False,
    dry_run: opt.DryRunOpt = False,
    as_json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
    verbose: opt.VerboseOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Turn a picture into a video."""
    started = time.monotonic()
    # Here, as `osp --help` needs none of it.
    from osp_cli.cli.intake import Call, gather
    from osp_cli.config import stored_layers
    from osp_cli.dials import joined_loras

    if offline:
        # A run fetches nothing by itself; this keeps every library from trying.
        os.environ["HF_HUB_OFFLINE"] = "1"
    if quiet and verbose:
        raise InvalidRequestError("--quiet and --verbose exclude each other")
    call = Call(
        image=image,
        prompt=prompt,
        text=text,
        flags={
            "style": style,
            "negative_prompt": negative_prompt,
            "output": output,
            "size": size,
            "width": width,
            "height": height,
            "num_frames": frames,
            "seconds": seconds,
            "fps": fps,
            "num_inference_steps": steps,
            "guidance_scale": cfg,
            "shift": shift,
            "sampler": sampler,
            "loras": joined_loras(lora) if lora else None,
            "cutoff": cutoff,
            "seed": seed,
            "count": count,
            "cache": cache,
            "cache_start": cache_start,
            "preview": preview,
            "metadata": metadata,
            "model": model,
            "device": device,
            "dtype": dtype,
            "offload": offload,
            "quant": quant,
            "attention": attention,
            "vae_tiling": vae_tiling,
            "compile": compile_blocks,
            "gpus": gpus,
            "max_vram": max_vram,
            "max_ram": max_ram,
        },
        overwrite=overwrite,
        recipe_file=from_recipe,
        batch_file=from_file,
        pick=pick,
        stored=stored_layers("generate", None if config is None else Path(config)),
    )
    if print_config:
        _print_config(call, as_json=as_json)
        return
    asked = gather(call)
    _refuse_streams(asked, as_json=as_json)
    asked = _refuse_early(asked, dry_run=dry_run)
    if not asked.items:
        for notice in () if quiet else asked.notices:
            console.say(f"note: {notice}")
        return
    if dry_run:
        _show_plans(asked, as_json=as_json, quiet=quiet)
        return
    _run(asked, started, as_json=as_json, quiet=quiet, verbose=verbose)


def _print_config(call: Call, *, as_json: bool) -> None:
    """Show the settings; with a picture or a text, of a request that could run."""
    from osp_cli.cli.intake import gather, layers_of
    from osp_cli.cli.showing import show_settings
    from osp_cli.settings import flag_names, settle_dials

    if call.batch_file is not None:
        raise InvalidRequestError(
            "--print-config shows one set of settings, --from-file may hold many"
        )
    if call.image is None and call.text is None and call.recipe_file is None:
        dials, _ = settle_dials(layers_of(call))
        # Nothing is re-noised here.
        del dials["strength"]
        settings = flag_names(dials)
    else:
        settings = dict(gather(call).settings)
    show_settings(settings, as_json=as_json)


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
    from dataclasses import replace

    requests = asked.requests
    if requests and requests[0].preview == "contact":
        from osp_cli.media.files import check_writable
        from osp_cli.outputs import sheet_path

        sheet = sheet_path([request.output for request in requests])
        check_writable(sheet, overwrite=requests[0].overwrite)
    done = [item for item in asked.requests if asked.is_batch and _is_done(item)]
    checked = [
        item if isinstance(item, OspError) else _checked(item, dry_run=dry_run)
        for item in asked.items
        if item not in done
    ]
    errors = [item for item in checked if isinstance(item, OspError)]
    # A sheet of seeds is one picture: all of them or none.
    if errors and (len(errors) == len(checked) or asked.requests[0].preview == "contact"):
        if len(errors) > 1:
            for error in errors:
                console.say_error(error.message, error.hint)
            raise type(errors[0])(f"none of {len(checked)} videos can be made")
        raise errors[0]
    skipped = tuple(f"{item.output} is there already, made by the same settings" for item in done)
    return replace(asked, items=checked, notices=(*asked.notices, *skipped))


def _is_done(request: GenerateRequest) -> bool:
    """Whether an earlier run of the batch has made this very video."""
    from osp_cli.media.recipes import read_recipe
    from osp_cli.runtime.replay import made_by, same_picture

    if request.overwrite or request.preview == "contact" or not request.output.exists():
        return False
    try:
        recipe = read_recipe(request.output) or {}
        return (
            made_by(recipe, request)
            and recipe.get("fps") == request.fps
            and same_picture(recipe, request)
        )
    except OspError:
        return False


def _checked(request: GenerateRequest, *, dry_run: bool) -> GenerateRequest | OspError:
    from osp_cli.hub.whole import whole_weights_dir
    from osp_cli.media.files import make_folder
    from osp_cli.media.image import decode_image, load_image
    from osp_cli.media.sinks import check_output
    from osp_cli.runtime.adapters import check_loras
    from osp_cli.runtime.distributed import check_share
    from osp_cli.runtime.packages import check_packages
    from osp_cli.runtime.replay import refuse_unfinished

    try:
        check_packages(request)
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
    from osp_cli.cli.showing import show_plan
    from osp_cli.runtime.start_up import light_imports

    with light_imports():
        from osp_cli.runtime.settling import preview_plan

    def say_notices(notices: Iterable[str]) -> None:
        for notice in () if quiet else notices:
            console.say(f"note: {notice}")

    say_notices(asked.notices)
    errors: list[OspError] = []
    for number, item in enumerate(asked.items):
        try:
            if isinstance(item, OspError):
                raise item
            planned, notices = preview_plan(item)
        except OspError as error:
            if not asked.is_batch:
                raise
            console.say_error(error.message, error.hint)
            errors.append(error)
            continue
        say_notices(notices)
        if as_json:
            console.write_json(planned.as_json())
            continue
        if number:
            console.write_line("")
        show_plan(planned.plan, item)
    if len(errors) == len(asked.items):
        raise type(errors[0])(f"none of {len(errors)} videos can be made")
    if errors:
        raise BatchPartlyFailedError(f"{len(errors)} of {len(asked.items)} videos cannot be made")


def _run(asked: Asked, started: float, *, as_json: bool, quiet: bool, verbose: bool) -> None:
    from osp_cli.cli.display import listen, open_display
    from osp_cli.cli.showing import dial_text
    from osp_cli.stopping import StopSignal

    display: Display | None = open_display(quiet=quiet, verbose=verbose, as_json=as_json)
    left = _Left()
    with StopSignal(talk=not quiet).installed() as stop:
        try:
            with display or contextlib.nullcontext():
                if display is not None and verbose:
                    for name, setting in asked.settings.items():
                        display.line(f"{name} = {dial_text(name, setting)} ({setting.origin})")
                if display is not None:
                    display.begin("load")
                listen(_events(asked, started, stop, left), display, as_json=as_json)
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
            case Done(seconds, timings, skipped):
                event = Done(seconds + imported, {"imports": imported, **timings}, skipped)
        yield event


def _runner(asked: Asked, stop: StopSignal) -> Iterator[Event]:
    """The iterator that does the work, not yet begun."""
    requests: Sequence[GenerateRequest] = asked.requests
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
    from osp_cli.runtime.runner import run

    return run(requests[0], stop=stop)
