"""What `osp generate` or `osp stylize` is asked for, gathered from wherever it is written.

Pictures and prompts may come through stdin, settings out of a recipe, and many jobs out of a file;
all of it ends in requests, or in the errors that stand in for those of a batch.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from osp_cli.batch import MAX_JOBS, Job, kind_of, read_file, read_jobs
from osp_cli.config import Layer
from osp_cli.dials import DIALS, Loras, Seeds, prompt_text
from osp_cli.errors import InvalidRequestError, OspError
from osp_cli.media.kinds import is_video_file
from osp_cli.outputs import BATCH_TEMPLATE, LATENTS_SUFFIX, STDOUT, latents_path, output_of_latents
from osp_cli.registry import ModelSpec
from osp_cli.requests import STDIN, GenerateRequest, Sheet
from osp_cli.settings import Setting, Settled, Source, recipe_layer, settle_generate
from osp_cli.sheets import settle

_MAX_STDIN_BYTES = 512 * 2**20
# What may be said anew of latents that were sampled already.
_FLAG_OF = {dial.field: dial.name for dial in DIALS.values()}
_INPUT = {"generate": "IMAGE", "stylize": "INPUT"}
_OF_THE_FILE = ("output", "fps", "metadata", "device", "gpus", "preview")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The command line.

    Attributes:
        command: `generate` or `stylize`.
        image, prompt, text: as typed; `image` may be a video for `stylize`.
        inputs: pictures, videos and folders of `stylize`; `image` is one of them at a time.
        image_data: the picture on stdin.
        flags: dials by field name, None where not given.
        overwrite: `--overwrite`.
        recipe_file, batch_file, pick: `--from`, `--from-file` and `--pick`.
        stored: variables and configuration files.
        notices: sentences about the inputs.
        called: what the output's `{name}` is made of, where that is not the input's name.
    """

    command: str = "generate"
    image: str | None
    prompt: str | None
    text: str | None = None
    inputs: tuple[str, ...] = ()
    flags: Mapping[str, Any]
    overwrite: bool
    recipe_file: str | None
    batch_file: str | None
    pick: int | None
    stored: Sequence[Layer]
    image_data: bytes | None = None
    notices: tuple[str, ...] = ()
    called: Path | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be done.

    Attributes:
        items: requests, and the errors of lines of a batch.
        settings: of the requests, by flag; empty for a batch, whose lines differ.
        notices: sentences about what was changed.
        is_batch: told one by one, and one failure does not end the rest.
        sheets: pages on which some of the requests come together.
    """

    items: list[GenerateRequest | OspError]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    is_batch: bool = False
    sheets: tuple[Sheet, ...] = ()

    @property
    def requests(self) -> list[GenerateRequest]:
        """The items that can be tried."""
        return [item for item in self.items if isinstance(item, GenerateRequest)]


def gather(call: Call) -> Asked:
    """Everything that `call` asks for.

    Raises:
        InvalidRequestError: it makes no sense, or something it names cannot be read.
    """
    call = _read_stdin_of(call)
    if call.batch_file is not None:
        return _gather_batch(call)
    if len(call.inputs) > 1:
        return _gather_inputs(call)
    settled = _settle_one(_resumed(_prompt_alone(call)))
    return _asked([settled], call.notices)


def _asked(settled: Sequence[Settled], notices: Sequence[str] = ()) -> Asked:
    """What one input or several ask for; what is said of all of them is said once."""
    requests: list[GenerateRequest | OspError] = []
    for each in settled:
        requests += each.requests
    said = dict.fromkeys([*notices, *(notice for each in settled for notice in each.notices)])
    sheets = tuple(each.sheet for each in settled if each.sheet is not None)
    return Asked(requests, settled[0].settings, tuple(said), len(requests) > 1, sheets)


def _gather_inputs(call: Call) -> Asked:
    """Several pictures and videos in the same manner, with the same seed."""
    if call.recipe_file is not None:
        raise InvalidRequestError(
            "--from makes one video again, and several inputs were given", hint="give one of them"
        )
    settled: list[Settled] = []
    taken: dict[Path, str] = {}
    called = _told_apart(call.inputs)
    for name in call.inputs:
        settled.append(_settle_one(replace(call, image=name, called=called.get(name))))
        seeds = settled[0].settings["seed"].value
        call = replace(call, flags={**call.flags, "seed": seeds, "count": None})
        for path, output in _files_of(settled[-1]):
            if path in taken:
                raise InvalidRequestError(
                    f"{taken[path]} and {name} would both become {output}",
                    hint="put {name} into --output, or give them one by one",
                )
            taken[path] = name
    return _asked(settled, call.notices)


def _told_apart(inputs: Sequence[str]) -> dict[str, Path]:
    """What to call inputs of one folder that differ in their endings only, as phones name them."""
    stems = [Path(name).with_suffix("") for name in inputs]
    return {
        name: stem.with_name(Path(name).name.replace(".", "-"))
        for name, stem in zip(inputs, stems, strict=True)
        if stems.count(stem) > 1
    }


def _files_of(settled: Settled) -> list[tuple[Path, Path]]:
    """What may be written only once, and the file that it stands for."""
    if settled.sheet is not None:
        return [(settled.sheet.output, settled.sheet.output)]
    return [(latents_path(request.output), request.output) for request in settled.requests]


def _prompt_alone(call: Call) -> Call:
    """The call, with a lone text beside `--from` as its prompt: the recipe has the picture."""
    text = call.image
    if call.recipe_file is None or text is None or call.prompt is not None:
        return call
    # Unlike the method of paths, this takes any text for a name. What looks like a file is one,
    # so that it is missed by its name and not painted by it.
    looks_like_a_file = re.fullmatch(r"\S*\.\w{1,5}", text)
    if text == "-" or looks_like_a_file or os.path.exists(text):  # noqa: PTH110
        return call
    return replace(call, image=None, prompt=prompt_text(text))


def _resumed(call: Call) -> Call:
    """The call with the seed of what an interrupted run of the same command has left, if any.

    Without a seed every run draws its own; the one that was begun is as good as any other.
    """
    if call.recipe_file is not None or call.pick is not None or call.overwrite:
        return call
    if call.flags.get("seed") is not None or call.flags.get("preview") == "contact":
        return call
    from osp_cli.media.recipes import read_recipe
    from osp_cli.runtime.replay import made_by, same_picture

    settled = _settle_one(call)
    if settled.sheet is not None:
        return _resumed_sheet(call, settled, settled.sheet)
    [request, *more] = settled.requests
    if more or settled.settings["seed"].origin != "random" or request.output == STDOUT:
        return call
    for path in sorted(request.output.parent.glob(f"*{LATENTS_SUFFIX}")):
        with contextlib.suppress(OspError, OSError):
            recipe = read_recipe(path) or {}
            seed = recipe.get("seed")
            if not isinstance(seed, int) or not made_by({**recipe, "seed": request.seed}, request):
                continue
            found = replace(call, flags={**call.flags, "seed": Seeds([seed])})
            there = latents_path(_settle_one(found).request.output) == path
            if there and same_picture(recipe, request):
                return found
    return call


def _resumed_sheet(call: Call, settled: Settled, sheet: Sheet) -> Call:
    """The call with the seed of an unfinished sheet of the same command, if there is one."""
    from osp_cli.media.recipes import read_recipe
    from osp_cli.runtime.replay import made_by, same_source

    seeds = settled.settings["seed"]
    if seeds.origin != "random" or len(seeds.value) > 1:
        return call
    folder = sheet.output.with_suffix("")
    # By default its name ends in the seed.
    pattern = glob.escape(folder.name).replace(str(seeds.value[0]), "*")
    for place in sorted(folder.parent.glob(pattern)):
        left = [*place.glob("*.json"), *place.glob(f"*{LATENTS_SUFFIX}")] if place.is_dir() else []
        for path in sorted(left)[:1]:
            with contextlib.suppress(OspError, OSError):
                recipe = read_recipe(path) or {}
                seed = recipe.get("seed")
                if not isinstance(seed, int):
                    continue
                found = replace(call, flags={**call.flags, "seed": Seeds([seed])})
                wanted = _settle_one(found).sheet
                if wanted is None or wanted.output.with_suffix("") != place:
                    continue
                if wanted.output.exists():
                    continue
                # Of this very picture, or video: another of its name makes another sheet.
                if any(
                    made_by(recipe, request) and same_source(recipe, request)
                    for request in wanted.requests
                ):
                    return found
    return call


def layers_of(call: Call) -> list[Layer]:
    """The flags and all stored settings, for showing them."""
    prompt = call.text if call.text is not None else call.prompt
    return [Layer("flag", {**_picked(call), "prompt": prompt}), *call.stored]


def _settle_one(call: Call) -> Settled:
    flags = _picked(call)
    if call.recipe_file is None:
        source = Source(
            command=call.command,
            **_inputs(call, call.image),
            text=call.text,
            overwrite=call.overwrite,
        )
        return settle(source, layers=call.stored, prompt=call.prompt, **flags)
    path = Path(call.recipe_file)
    from osp_cli.media.recipes import read_recipe

    recipe = read_recipe(path)
    if recipe is None:
        raise InvalidRequestError(
            f"{path} holds no recipe",
            hint="--from takes a video made by osp, its .json or a .latents.safetensors file",
        )
    layer = _with_loras_beside(recipe_layer(recipe, str(path)), path.parent)
    if path.name.endswith(LATENTS_SUFFIX):
        return _settle_latents(call, path, layer, recipe)
    image = call.image if call.image is not None else _source_of(recipe, path, call)
    text = _text_of(recipe, call)
    source = Source(
        # Whichever command makes it again, it is the same video.
        command=recipe["command"],
        **_inputs(call, image, is_video="video" in recipe and call.image is None),
        text=text,
        overwrite=call.overwrite,
        replayed=recipe,
        replayed_from=str(path),
    )
    prompt = call.prompt if text is None else None
    return settle(source, layers=[layer, *call.stored], prompt=prompt, **flags)


def _with_loras_beside(layer: Layer, folder: Path) -> Layer:
    """The recipe's LoRAs where they lie beside it; others are looked for by their names."""
    loras = Loras(
        choice._replace(name=str(folder / choice.name))
        # Unlike the method of paths, this takes any text for a name.
        if os.path.isfile(folder / choice.name)  # noqa: PTH113
        else choice
        for choice in layer.values["loras"]
    )
    return Layer(layer.origin, {**layer.values, "loras": loras}, layer.origins)


def _settle_latents(call: Call, path: Path, layer: Layer, recipe: Mapping[str, Any]) -> Settled:
    """Latents keep what they were sampled with; only the file made of them has dials left.

    Raises:
        InvalidRequestError: a flag that comes too late.
    """
    late = [
        f"--{_FLAG_OF.get(name, name)}"
        for name, value in call.flags.items()
        if value is not None and name not in _OF_THE_FILE
    ]
    inputs = {
        _INPUT[call.command]: call.image,
        "PROMPT": call.prompt,
        "--text": call.text,
        "--pick": call.pick,
    }
    late += [name for name, value in inputs.items() if value is not None]
    if late:
        raise InvalidRequestError(
            f"{', '.join(late)} cannot change latents that were sampled already",
            hint="leave it out, or give --from the video's recipe to make it anew",
        )
    output = Layer(layer.origin, {**layer.values, "output": str(output_of_latents(path))})
    stored = [Layer(each.origin, _of_the_file(each.values), each.origins) for each in call.stored]
    source = Source(
        latents=path,
        overwrite=call.overwrite,
        # For the words of styles that are here no more.
        replayed=recipe,
        replayed_from=str(path),
        misfit=_adapter_problem,
    )
    return settle_generate(source, layers=[output, *stored], **call.flags)


def _of_the_file(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in _OF_THE_FILE}


def _picked(call: Call) -> dict[str, Any]:
    """The flags, with the one seed that was picked of a contact sheet."""
    if call.pick is None:
        return dict(call.flags)
    if call.flags.get("preview") == "contact":
        raise InvalidRequestError("--preview contact makes a sheet, --pick finishes one of it")
    seeds = call.flags.get("seed")
    if isinstance(seeds, Seeds) and call.pick not in seeds:
        raise InvalidRequestError(f"--pick {call.pick} is not one of --seed {seeds}")
    return {**call.flags, "seed": Seeds([call.pick]), "count": 1, "preview": "none"}


def _text_of(recipe: Mapping[str, Any], call: Call) -> str | None:
    """The prompt of a video without a picture, where the recipe or the call wants one."""
    if call.text is not None or call.image is not None or _source_name(recipe) is not None:
        return call.text
    return call.prompt if call.prompt is not None else str(recipe.get("prompt", ""))


def _source_name(recipe: Mapping[str, Any]) -> Any:
    """The file name of what a recipe's video was made of; None where that was a text."""
    return recipe["image"] if recipe.get("image") is not None else recipe.get("video")


def _source_of(recipe: Mapping[str, Any], path: Path, call: Call) -> str | None:
    """Where the picture or video of a recipe lies: beside what was made of it, or here.

    Raises:
        InvalidRequestError: in neither place.
    """
    name = _source_name(recipe)
    if name is None or call.text is not None:
        return None
    # A recipe may come from anyone: it names a file, not a path.
    name = Path(str(name)).name
    if name == "stdin":
        raise InvalidRequestError(
            f"the picture of {path} came through stdin and is needed again",
            hint=f"osp {call.command} picture.png --from {path}",
        )
    for folder in (path.parent, Path()):
        # Unlike the method of paths, this takes any text for a name.
        if os.path.isfile(folder / name):  # noqa: PTH113
            return str(folder / name)
    what = "video" if "video" in recipe else "picture"
    raise InvalidRequestError(
        f"the {what} {name!r} of {path} is neither beside it nor here",
        hint=f"osp {call.command} FOLDER/{name} --from {path}",
    )


def _gather_batch(call: Call) -> Asked:
    if call.recipe_file is not None:
        raise InvalidRequestError("--from and --from-file exclude each other")
    if call.pick is not None:
        raise InvalidRequestError("--pick finishes one video, --from-file may hold many")
    assert call.batch_file is not None
    if call.batch_file == "-":
        text, called = _decoded(_read_stdin(), "the list of jobs"), "stdin"
        kind = kind_of(text)
    else:
        called = call.batch_file
        text, kind = read_file(Path(called))
    jobs = read_jobs(text, kind, called)
    width = len(str(len(jobs)))
    items: list[GenerateRequest | OspError] = []
    notices: list[str] = []
    taken: dict[Path, str] = {}
    for number, job in enumerate(jobs, 1):
        try:
            settled = _settle_job(call, job, f"{number:0{width}d}")
        except InvalidRequestError as error:
            items.append(error)
            continue
        notices += [f"{job.place}: {notice}" for notice in settled.notices]
        items += [_untaken(request, job.place, taken) for request in settled.requests]
        if len(items) > MAX_JOBS:
            raise InvalidRequestError(f"{called} asks for more than {MAX_JOBS} videos")
    return Asked(items, notices=tuple(notices), is_batch=True)


def _settle_job(call: Call, job: Job, number: str) -> Settled:
    """One line; what it says wins over the command line's flags."""
    if job.error is not None:
        raise job.error
    if job.image == str(STDIN):
        raise InvalidRequestError(f"{job.place}: image names a file, stdin can be read only once")
    values = dict(job.values)
    image, text = _inputs_of(call, job, values)
    flags = {**call.flags, "prompt": call.prompt}
    # What a line says replaces the command line's, by whatever name it was said there.
    if {"num_frames", "seconds"} & values.keys():
        flags |= {"num_frames": None, "seconds": None}
    if {"seed", "count"} & values.keys():
        flags |= {"seed": values.get("seed", flags["seed"]), "count": None}
    if "size" in values:
        flags |= {"width": None, "height": None}
    if text is not None:
        flags["prompt"] = None
    source = Source(
        command=call.command,
        **_inputs(call, image),
        text=text,
        overwrite=call.overwrite,
        number=number,
        place=job.place,
    )
    layers = [Layer("flag", flags), *call.stored, Layer("default", {"output": BATCH_TEMPLATE})]
    try:
        settled = settle_generate(source, layers=layers, origin=job.place, **values)
        if settled.request.preview == "contact":
            raise InvalidRequestError(
                "--preview contact makes one sheet of many seeds, a batch makes many videos",
                hint="--preview latent",
            )
        return settled
    except InvalidRequestError as error:
        raise error.at(job.place) from None


def _untaken(
    request: GenerateRequest, place: str, taken: dict[Path, str]
) -> GenerateRequest | OspError:
    """The request, or the error of a file that an earlier line writes."""
    if request.output == STDOUT:
        return InvalidRequestError(f"{place}: --output - takes one video, a batch makes many")
    path = latents_path(request.output)
    if path in taken:
        return InvalidRequestError(
            f"{place}: {request.output} is written by {taken[path]} already",
            hint="put {n} or {seed} into --output",
        )
    taken[path] = place
    return request


def _inputs_of(call: Call, job: Job, values: dict[str, Any]) -> tuple[str | None, str | None]:
    """Picture and text of one line; where the text comes from the prompt, it is taken from it."""
    if job.image is not None or job.text is not None:
        return job.image, job.text
    if call.text is not None and call.image is None:
        return None, values.pop("prompt", call.text)
    return call.image, call.text


def _inputs(call: Call, image: str | None, *, is_video: bool = False) -> dict[str, Any]:
    """Picture or video arguments of a `Source`, and what it judges adapters with."""
    others = {"misfit": _adapter_problem, "called": call.called}
    if image is None:
        return {"image": None, **others}
    if is_video or (call.command == "stylize" and image != "-" and is_video_file(Path(image))):
        return {"video": Path(image), **others}
    data = call.image_data if image == "-" else None
    return {"image": Path(image), "image_data": data, **others}


def _adapter_problem(path: str, spec: ModelSpec) -> str | None:
    # Only few styles have one.
    from osp_cli.runtime.adapters import adapter_problem

    return adapter_problem(path, spec)


def _read_stdin_of(call: Call) -> Call:
    """The call with what was piped in.

    Raises:
        InvalidRequestError: two readers of one stdin, or text that is none.
    """
    readers = {
        _INPUT[call.command]: call.image,
        "PROMPT": call.prompt,
        "--text": call.text,
        "--from-file": call.batch_file,
    }
    dashes = [name for name, value in readers.items() if value == "-"]
    if len(dashes) > 1:
        raise InvalidRequestError(
            f"{' and '.join(dashes)} cannot both be read from stdin", hint="name a file for one"
        )
    if call.image == "-":
        return replace(call, image_data=_read_stdin())
    if "-" not in (call.prompt, call.text):
        return call
    text = _decoded(_read_stdin(), "the prompt").strip()
    return replace(call, prompt=text) if call.prompt == "-" else replace(call, text=text)


def _decoded(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{what} on stdin is not UTF-8 text") from error


def _read_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise InvalidRequestError(
            "- reads from stdin, which is a terminal here", hint="pipe something in, or name a file"
        )
    data = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(data) > _MAX_STDIN_BYTES:
        raise InvalidRequestError(f"stdin holds more than {_MAX_STDIN_BYTES // 2**20} MB")
    return data
