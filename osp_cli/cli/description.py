"""The commands, options and values of `osp` as completion scripts need to know them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer

_PICTURES = (
    *("png", "jpg", "jpeg", "webp", "gif", "bmp"),
    *("tif", "tiff", "avif", "jp2", "tga", "ppm"),
)
# Flags that mean something else in one command, and the keys of their values there.
_OWN_KINDS = {("train-lora", "quant"): "frozen-quant", ("train-lora", "resume"): "going-on"}
# `procedural`, and what `runtime.editors` knows, which would import torch.
STYLIZERS = (
    *("procedural", "qwen-image-edit", "flux-kontext", "flux2", "flux2-klein"),
    "longcat-image-edit",
)
_VIDEOS = ("mp4", "mov", "mkv", "webm", "avi", "m4v", "mpg", "ts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What may stand where a value is asked for; nothing can be offered for numbers and prose.

    Attributes:
        words: the words to choose from, with what they mean.
        files: a path may stand there.
        suffixes: of the files that are offered, without dots; empty for all of them.
    """

    words: tuple[tuple[str, str], ...] = ()
    files: bool = False
    suffixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        flags: all its spellings, dashes included.
        help: one line.
        metavar: what its value is called; empty for a switch.
        kind: the key of its value in `known_values`; empty for a switch.
        repeatable: it may be given more than once.
    """

    flags: tuple[str, ...]
    help: str
    metavar: str = ""
    kind: str = ""
    repeatable: bool = False


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: what it is called, and the key of its value in `known_values`."""

    metavar: str
    kind: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command; the one without a name is `osp` itself.

    One inside another has both names, parted by a space: `models inspect`.
    """

    name: str
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]


def known_values() -> Mapping[str, Values]:
    """What options and arguments take, by long flag without dashes or name of the argument."""
    from osp_cli.batch import KINDS
    from osp_cli.cli.bench import SUBJECTS
    from osp_cli.cli.completion import SCRIPTS
    from osp_cli.cli.schema import DOCUMENTS
    from osp_cli.dials import CACHES
    from osp_cli.registry import DTYPES, model_specs, style_presets
    from osp_cli.requests import ATTENTIONS, DEVICES, OFFLOADS, PREVIEWS, QUANTS, SAMPLERS
    from osp_cli.sheets import ALL_STYLES
    from osp_cli.style_mix import NO_STYLE

    styles = style_presets().values()
    nothing = Values()
    free = (
        "prompt text negative-prompt size frames seconds fps steps cfg shift cutoff strength seed "
        "count caches max-vram max-ram gpus revision include exclude mirror jobs limit-rate "
        "context latent-frames stages anchor-color"
    )
    free_in_training = (
        "trigger title rank alpha stride windows epochs max-steps batch-size accumulate lr betas "
        "eps weight-decay max-grad-norm warmup ema caption-drop sigma-shift sigma-power save-every "
        "keep sample-every sample-prompt context-parallel swap-blocks caption min-seconds "
        "max-seconds min-side"
    )
    return {
        **dict.fromkeys((*free.split(), "cache-start", "pick"), nothing),
        **dict.fromkeys(free_in_training.split(), nothing),
        **_training_values(),
        "image": Values(files=True, suffixes=_PICTURES),
        # Folders are offered with the files.
        "inputs": Values(files=True, suffixes=(*_PICTURES, *_VIDEOS)),
        "source": Values(files=True, suffixes=(*_PICTURES, *_VIDEOS)),
        "output": Values(files=True),
        "resume": Values(files=True, suffixes=("safetensors", "mp4", "mkv")),
        "sink": _plain(("file", "stdout", "stdout:y4m", "mpv", "http")),
        "from": Values(files=True, suffixes=("mp4", "json", "safetensors")),
        "from-file": Values(files=True, suffixes=tuple(kind.lstrip(".") for kind in KINDS)),
        "config": Values(files=True, suffixes=("toml",)),
        "style": Values(
            words=(
                *((preset.name, preset.description) for preset in styles),
                (NO_STYLE, "No style"),
                (ALL_STYLES, "A sheet with one of each"),
            )
        ),
        **dict.fromkeys(
            ("model", "models"),
            Values(words=tuple((m.name, m.description) for m in model_specs().values())),
        ),
        "lora": Values(files=True, suffixes=("safetensors",)),
        "device": _plain(DEVICES),
        "dtype": _plain(("auto", *DTYPES)),
        "sampler": _plain(SAMPLERS),
        "offload": _plain(OFFLOADS),
        "quant": _plain(QUANTS),
        "attention": _plain(ATTENTIONS),
        "cache": _plain(CACHES),
        "preview": _plain(PREVIEWS),
        "shell": _plain(tuple(SCRIPTS)),
        "document": Values(words=tuple(DOCUMENTS.items())),
        "subject": Values(words=tuple(SUBJECTS.items())),
        **dict.fromkeys(("photos", "out", "weights", "local"), Values(files=True)),
        "files": Values(files=True, suffixes=("safetensors",)),
        "name": Values(words=tuple((preset.name, preset.description) for preset in styles)),
        "gallery": Values(files=True, suffixes=("html",)),
    }


def _training_values() -> dict[str, Values]:
    """What the flags of `osp train-lora` and `osp dataset` take, beside those of clips."""
    from osp_cli import train_request as training
    from osp_cli.models.lora_targets import PRESETS
    from osp_cli.registry import model_specs

    animators = [s for s in model_specs().values() if s.train_mode in ("flash", "inpaint")]
    lists = ("jsonl", "json", "csv", "toml", "txt")
    return {
        "mode": _plain(training.MODES),
        "condition": _plain(training.CONDITIONS),
        "timesteps": _plain(training.TIMESTEPS),
        "optimizer": _plain(training.OPTIMIZERS),
        "lr-schedule": _plain(training.LR_SCHEDULES),
        "save-format": _plain(training.SAVE_FORMATS),
        "log": _plain(training.LOGS),
        "targets": _plain(tuple(PRESETS)),
        "frozen-quant": _plain(training.TRAIN_QUANTS),
        "going-on": _plain((training.AUTO, training.NEVER)),
        # Folders are offered with the files.
        "dataset": Values(files=True, suffixes=lists),
        "data": Values(files=True, suffixes=lists),
        "sources": Values(files=True, suffixes=(*_PICTURES, *_VIDEOS)),
        "sample-image": Values(files=True, suffixes=_PICTURES),
        **dict.fromkeys(("cache-dir", "judge"), Values(files=True)),
        "report": Values(files=True, suffixes=("json",)),
        "stylizer": _plain(STYLIZERS),
        "animator": Values(
            words=((STYLIZERS[0], ""), *((s.name, s.description) for s in animators))
        ),
    }


def describe(group: Any) -> tuple[Command, ...]:
    """The commands of the program, `osp` itself first; what is hidden is left out.

    Args:
        group: the outermost command, as `typer.main.get_command` or a context's root gives it.
    """
    # Typer keeps the class of commands to itself; contexts and their attributes are public.
    root = typer.Context(group, info_name="osp", **group.context_settings)
    return (_describe("", group, root), *_inside("", group, root))


def _inside(outer: str, group: Any, parent: typer.Context) -> Iterator[Command]:
    """The commands of a group, each before those inside it."""
    for name, command in getattr(group, "commands", {}).items():
        if not command.hidden:
            context = typer.Context(
                command, parent=parent, info_name=name, **command.context_settings
            )
            full = f"{outer} {name}".strip()
            yield _describe(full, command, context)
            yield from _inside(full, command, context)


def _describe(name: str, command: Any, context: typer.Context) -> Command:
    parameters = [param for param in command.get_params(context) if not param.hidden]
    options = [param for param in parameters if param.param_type_name == "option"]
    arguments = [param for param in parameters if param.param_type_name == "argument"]
    return Command(
        name,
        _one_line(command.short_help or command.help),
        tuple(_option(param, name) for param in options),
        # A group's own argument is the command, which is not asked for here.
        tuple(Argument(param.metavar or param.name.upper(), param.name) for param in arguments),
    )


def _option(param: Any, command: str) -> Option:
    # Long spellings first, as those of help come in another order each time.
    flags = tuple(sorted((*param.opts, *param.secondary_opts), key=_is_short))
    if param.is_flag or param.count:
        return Option(flags, _one_line(param.help), repeatable=bool(param.count))
    long = next((flag for flag in param.opts if flag.startswith("--")), param.opts[0])
    kind = long.lstrip("-")
    kind = _OWN_KINDS.get((command, kind), kind)
    metavar = param.metavar or param.name.upper()
    return Option(flags, _one_line(param.help), metavar, kind, bool(param.multiple))


def _is_short(flag: str) -> bool:
    return not flag.startswith("--")


def _one_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0].strip().removesuffix(".")


def _plain(words: tuple[str, ...]) -> Values:
    return Values(words=tuple((word, "") for word in words))
