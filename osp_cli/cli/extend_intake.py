"""What `osp extend` is asked for, gathered from wherever it is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osp_cli.cli.extend_values import StageList, read_text
from osp_cli.config import Layer
from osp_cli.dials import Seeds, Size
from osp_cli.errors import InvalidRequestError, UnreadableMediaError
from osp_cli.extend_request import state_before, state_path
from osp_cli.extend_settings import Continuation, SettledExtend, dials_of, settle_extend
from osp_cli.outputs import STATE_SUFFIX, STDOUT, STREAM_EXTENSIONS
from osp_cli.registry import model_specs
from osp_cli.requests import STDIN

_MAX_STDIN_BYTES = 512 * 2**20
# What `--resume` may be told anew: all else is the stream's own.
_OF_A_RESUME = frozenset(
    {"num_frames", "seconds", "output", "device", "offload", "max_vram", "max_ram", "metadata"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendCall:
    """The command line; `flags` are dials by field name, None where not given."""

    source: str | None
    prompt: str | None
    text: str | None = None
    flags: Mapping[str, Any]
    overwrite: bool = False
    realtime: bool = False
    screenplay: str | None = None
    sinks: tuple[str, ...] = ()
    context: int | None = None
    latent_frames: int | None = None
    stages: StageList | None = None
    anchor_color: float | None = None
    from_recipe: str | None = None
    resume: str | None = None
    listens: bool = True
    stored: Sequence[Layer] = ()


def gather_extend(call: ExtendCall) -> SettledExtend:
    """Everything that `call` asks for.

    Raises:
        InvalidRequestError: it makes no sense, or something it names cannot be read.
    """
    if call.resume is not None:
        return _resumed(call)
    call = _with_source(call)
    stdin = [what for what, used in _stdin_uses(call) if used]
    if len(stdin) > 1:
        raise InvalidRequestError(f"stdin is {stdin[0]} and {stdin[1]}: - can be one of them")
    call = _with_prompt(call)
    wanted, more, notices = _continuation(call, listens=call.listens and not stdin)
    flags = dict(call.flags)
    if call.stages is not None and call.stages.size is not None:
        if flags.get("size") is not None:
            raise InvalidRequestError(
                "--size and --stages name a size each", hint="the last of --stages is the size"
            )
        flags["size"] = Size(*call.stages.size)
    settled = settle_extend(wanted, layers=[*more, *call.stored], prompt=call.prompt, **flags)
    return replace(settled, notices=(*settled.notices, *notices, *_notices(settled)))


def print_extend_settings(call: ExtendCall, *, as_json: bool) -> None:
    """Show the settings; with something to continue, of a request that could run."""
    from osp_cli.cli.showing import show_settings
    from osp_cli.requests import prompts_of
    from osp_cli.settings import flag_names

    if call.source is None and call.text is None and call.resume is None:
        layers = [Layer("flag", {**call.flags, "prompt": call.prompt}), *call.stored]
        dials, _ = dials_of(layers, realtime=call.realtime)
        prompts = prompts_of(dials["style"].value, dials["model"].value, dials["prompt"].value)
        show_settings(flag_names(dials), as_json=as_json, prompts=prompts)
        return
    settled = gather_extend(call)
    show_settings(settled.settings, as_json=as_json, prompts=settled.request.prompts)


def _stdin_uses(call: ExtendCall) -> list[tuple[str, bool]]:
    return [
        ("the picture", call.source == "-"),
        ("the prompt", call.prompt == "-"),
        ("the screenplay", call.screenplay == "-"),
    ]


def _with_source(call: ExtendCall) -> ExtendCall:
    """The call with what it goes on from: INPUT, `--from`, or the last output."""
    given = [name for name in (call.source, call.from_recipe, call.text) if name is not None]
    if len(given) > 1:
        raise InvalidRequestError(
            "one stream begins with one thing, several were given",
            hint="INPUT, --from and --text exclude each other",
        )
    if call.from_recipe is not None:
        return replace(call, source=call.from_recipe)
    if given:
        return call
    from osp_cli.last_output import last_output

    last = last_output()
    if last is None or last.suffix.lower() in (".json", ".txt"):
        raise InvalidRequestError(
            "there is nothing to go on from: no video was made here yet",
            hint='osp extend photo.jpg "the camera pans left" --realtime',
        )
    return replace(call, source=str(last))


def _with_prompt(call: ExtendCall) -> ExtendCall:
    if call.prompt != "-":
        return call
    return replace(call, prompt=sys.stdin.read().strip())


def _continuation(
    call: ExtendCall, *, listens: bool
) -> tuple[Continuation, list[Layer], list[str]]:
    """What goes on, the settings that it brings along, and what to tell of them."""
    cues, screenplay = _screenplay(call)
    sinks = _sinks(call)
    common: dict[str, Any] = {
        "overwrite": call.overwrite,
        "realtime": call.realtime,
        "cues": cues,
        "screenplay": screenplay,
        "sinks": sinks,
        "context": call.context,
        "latent_frames": call.latent_frames,
        "stages": None if call.stages is None else call.stages.count,
        "anchor_color": call.anchor_color or 0.0,
        "listens": listens,
    }
    if call.text is not None:
        return Continuation(text=call.text, **common), [], []
    assert call.source is not None
    if call.source == "-":
        return Continuation(image=STDIN, image_data=_stdin_bytes(), **common), [], []
    return _of_file(Path(call.source), common)


def _of_file(path: Path, common: dict[str, Any]) -> tuple[Continuation, list[Layer], list[str]]:
    from osp_cli.media.kinds import is_video_file

    if path.name.endswith(STATE_SUFFIX):
        path = _video_of(path)
    elif path.suffix.lower() == ".json" and path.with_suffix("").is_file():
        path = path.with_suffix("")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InvalidRequestError(
            f"{path} {what}", hint="give a video or a picture; a prompt alone needs quotes"
        )
    if not is_video_file(path):
        return Continuation(image=path, **common), [], []
    recipe = _recipe_of(path)
    state = state_path(path)
    latents = state if state.is_file() and recipe is not None else None
    wanted = Continuation(video=path, latents=latents, **common)
    if recipe is None:
        return wanted, [], []
    layer = Layer(f"recipe of {path.name}", {**_brought_along(recipe), **_last_scene(latents)})
    said = f"the prompt of {path.name}: {recipe['prompt']!r}" if recipe.get("prompt") else ""
    return wanted, [layer], [said] if said and "prompt" in layer.values else []


def _last_scene(state: Path | None) -> dict[str, Any]:
    """What a stream showed when it ended, so that it looks the same when it goes on."""
    if state is None:
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(state, "np") as file:
            scene = json.loads((file.metadata() or {})["notes"])["direction"]["shown"]
        return {
            "prompt": str(scene["prompt"]),
            "style": str(scene["style"]),
            "cutoff": tuple(map(float, scene["cutoff"])),
        }
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        # It is read again, and refused, before anything is made.
        return {}


def _recipe_of(path: Path) -> Mapping[str, Any] | None:
    from osp_cli.media.recipes import read_recipe

    return read_recipe(path)


def _brought_along(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a video that osp made is continued with where nothing is said."""
    values: dict[str, Any] = {}
    model = recipe.get("model")
    spec = model_specs().get(model) if isinstance(model, str) else None
    if spec is not None and spec.stream_problem() is None:
        values["model"] = model
        values["fps"] = recipe.get("fps") if isinstance(recipe.get("fps"), int) else None
    for name in ("prompt", "negative_prompt"):
        if isinstance(recipe.get(name), str) and recipe[name]:
            values[name] = recipe[name]
    return values


def _screenplay(call: ExtendCall) -> tuple[tuple[Any, ...], str]:
    if call.screenplay is None:
        return (), ""
    from osp_cli.screenplay import parse_screenplay

    if call.screenplay == "-":
        return parse_screenplay(sys.stdin.read(), "the screenplay on stdin"), "stdin"
    path = Path(call.screenplay)
    return parse_screenplay(read_text(path, "the screenplay"), path.name), path.name


def _sinks(call: ExtendCall) -> tuple[str, ...]:
    """Where pictures go; `-o -` is a sink too.

    Raises:
        InvalidRequestError: nobody knows such a place, or it is named twice.
    """
    from osp_cli.media.live.targets import parse_targets

    output = call.flags.get("output")
    sinks = list(call.sinks)
    if output == str(STDOUT):
        sinks = [name for name in sinks if name != "file"]
        if not any(name.startswith("stdout") for name in sinks):
            sinks.append("stdout")
    elif output is not None and "file" not in sinks:
        sinks.insert(0, "file")
    sinks = sinks or ["file"]
    parse_targets(sinks, STDOUT if output == str(STDOUT) else Path(output or "clip.mp4"))
    return tuple(sinks)


def _notices(settled: SettledExtend) -> list[str]:
    request = settled.request
    told = []
    if request.realtime and not request.figures.trained:
        told.append(
            f"{request.model} has no weights for few steps: its stream takes "
            f"{request.num_inference_steps} and runs slower than the clock"
        )
    if request.negative_prompt and request.guidance_scale <= 1 and (
        settled.settings["negative-prompt"].origin == "flag"
    ):  # fmt: skip
        told.append("--negative-prompt has no effect without guidance (--cfg above 1)")
    return told


def _resumed(call: ExtendCall) -> SettledExtend:
    """The request of a stream that is taken up again: its recipe, and what may be said anew."""
    assert call.resume is not None
    late = [name for name, value in call.flags.items() if value is not None]
    wrong = [name for name in late if name not in _OF_A_RESUME]
    own = (
        *(call.source, call.prompt, call.text, call.screenplay, call.from_recipe),
        *(call.context, call.latent_frames, call.stages, call.anchor_color),
    )
    other = InvalidRequestError(
        "--resume goes on exactly as before, other settings make another stream",
        hint="leave them out, or go on with them: osp extend VIDEO PROMPT",
    )
    if wrong or any(value is not None for value in own):
        raise other
    state = _state_of(Path(call.resume))
    recipe = _recipe_of_state(state)
    if recipe is None or recipe.get("command") != "extend":
        raise InvalidRequestError(
            f"{state} is no state of osp extend", hint=f"a state ends in {STATE_SUFFIX}"
        )
    if call.realtime and recipe.get("realtime") is False:
        raise other
    return _request_of(recipe, call, state)


def _request_of(recipe: Mapping[str, Any], call: ExtendCall, state: Path) -> SettledExtend:
    from osp_cli.screenplay import parse_screenplay

    try:
        values = {
            name: recipe[name]
            for name in (
                *("model", "prompt", "negative_prompt", "fps", "num_inference_steps"),
                *("guidance_scale", "shift", "sampler", "cache_start", "dtype", "quant"),
                *("compile", "attention"),
            )
        }
        values["style"] = recipe["style"] or "none"
        values["size"] = Size(int(recipe["width"]), int(recipe["height"]))
        values["seed"] = Seeds([int(recipe["seed"])])
        values["cutoff"] = None if recipe["cutoff"] is None else tuple(recipe["cutoff"])
        values["cache"] = str(recipe["cache"])
        values["num_frames"] = recipe["new_frames"]
        cues = parse_screenplay(recipe["screenplay"]) if recipe.get("screenplay") else ()
        wanted = Continuation(
            text=None,
            latents=state,
            resume=state,
            overwrite=True,
            realtime=bool(recipe["realtime"]),
            cues=cues,
            sinks=_sinks(call),
            context=int(recipe["context"]),
            latent_frames=int(recipe["latent_frames"]),
            stages=len(recipe["stage_steps"]),
            anchor_color=float(recipe["anchor_color"]),
            listens=call.listens,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequestError(f"the recipe in {state} is damaged: {error}") from None
    flags = dict(call.flags)
    if flags.get("output") is None:
        flags["output"] = str(_output_of(state))
    if recipe["new_frames"] is None and flags.get("seconds") is None is flags.get("num_frames"):
        flags["seconds"] = float("inf")
    layer = Layer(f"state {state.name}", {k: v for k, v in values.items() if v is not None})
    return settle_extend(wanted, layers=[layer], **flags)


def _recipe_of_state(state: Path) -> Mapping[str, Any] | None:
    """Of the newest one that can be read: a disk that fails may have damaged the last.

    Raises:
        UnreadableMediaError: there is none.
    """
    try:
        return _recipe_of(state)
    except UnreadableMediaError:
        if not (earlier := state_before(state)).is_file():
            raise
        return _recipe_of(earlier)


def _state_of(path: Path) -> Path:
    """The state file that is meant by itself, or by its video."""
    if not path.name.endswith(STATE_SUFFIX):
        stem = path.with_suffix("")
        path = state_path(stem.with_name(stem.name.removesuffix(".recording") + ".mp4"))
    if not path.is_file() and not state_before(path).is_file():
        raise InvalidRequestError(
            f"{path} does not exist", hint=f"--resume takes the {STATE_SUFFIX} beside a video"
        )
    return path


def _output_of(state: Path) -> Path:
    stem = state.name.removesuffix(STATE_SUFFIX)
    for suffix in STREAM_EXTENSIONS:
        for name in (f"{stem}{suffix}", f"{stem}.recording{suffix}"):
            if state.with_name(name).exists():
                return state.with_name(stem + suffix)
    return state.with_name(stem + STREAM_EXTENSIONS[0])


def _video_of(state: Path) -> Path:
    stem = state.name.removesuffix(STATE_SUFFIX)
    for suffix in STREAM_EXTENSIONS:
        if (video := state.with_name(stem + suffix)).is_file():
            return video
    raise InvalidRequestError(
        f"the video of {state} is not beside it",
        hint=f"osp extend --resume {state} goes on with what comes next",
    )


def _stdin_bytes() -> bytes:
    data = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(data) > _MAX_STDIN_BYTES:
        raise InvalidRequestError("the picture on stdin is larger than 512 MiB")
    if not data:
        raise InvalidRequestError("stdin is empty", hint="pipe a picture in, or name a file")
    return data
