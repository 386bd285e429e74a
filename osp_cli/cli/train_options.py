"""The flags of `osp train-lora`, made of its dials, which are keys of recipes and files too.

A command with sixty parameters written out would say everything three times.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import typer

from osp_cli.cli import options as opt
from osp_cli.train_settings import TRAIN_DIALS


class Help(NamedTuple):
    """What a flag's help says.

    Attributes:
        panel: heading under which it stands.
        metavar: of its value; empty for a switch.
        text: one line.
    """

    panel: str
    metavar: str
    text: str


_WHAT = "What is trained"
_DATA = "Data"
_STEPS = "Steps"
_NOISE = "Noise and conditions"
_WAY = "Checkpoints and samples"
_MACHINE = "Machine"

HELP: Mapping[str, Help] = {
    "model": Help(_WHAT, "NAME", "Base to train on, of `osp models` [osp-mini]"),
    "trigger": Help(_WHAT, "TEXT", "Words that call it up, put before captions without them"),
    "rank": Help(_WHAT, "N", "Of the LoRA [8; the base's recipe]"),
    "alpha": Help(_WHAT, "X", "It counts alpha / rank [4; the base's recipe]"),
    "targets": Help(
        _WHAT, "NAMES", "qkv-ffn, attn, all, paint, or layers [qkv-ffn; the base's recipe]"
    ),
    "mode": Help(_WHAT, "MODE", "flash, t2v or inpaint [the base's]"),
    "train-adapter": Help(_WHAT, "", "Train the maps from prompt features too"),
    "full": Help(_WHAT, "", "Train all weights, as section 5.1 of the paper"),
    "size": Help(_DATA, "WxH", "Area that buckets have [512x512; the base's recipe]"),
    "frames": Help(_DATA, "N", "Frames of a sample, 4k+1 [49]"),
    "fps": Help(_DATA, "N", "Rate that clips are resampled to by time stamps [16]"),
    "stride": Help(_DATA, "N", "Every n-th frame of a file instead, whatever its rate"),
    "bucket": Help(_DATA, "", "Clips keep their shapes, or all have --size [--bucket]"),
    "windows": Help(_DATA, "N", "Parts of a long clip that are used, at most [4]"),
    "condition": Help(
        _DATA,
        "KIND",
        "Picture a clip follows from: source (NAME.source.png beside it), plain (first frame "
        "robbed of its style), first (frame as it is), auto [auto; the base's recipe]",
    ),
    "cache-dir": Help(_DATA, "FOLDER", "Where encoded clips are kept"),
    "latent-frames": Help(_DATA, "N", "Latent frames that a step looks at; 0 for all"),
    "epochs": Help(_STEPS, "N", "Passes over the data [1]"),
    "max-steps": Help(_STEPS, "N", "Steps in all, instead of epochs"),
    "batch-size": Help(_STEPS, "N", "Samples that a device takes at once [1]"),
    "accumulate": Help(_STEPS, "N", "Such passes in a step [1]"),
    "lr": Help(_STEPS, "X", "Learning rate [1e-4; the base's recipe]"),
    "weight-decay": Help(_STEPS, "X", "Of AdamW [0.03]"),
    "betas": Help(_STEPS, "A,B", "Of AdamW [0.9,0.999]"),
    "eps": Help(_STEPS, "X", "Of AdamW [1e-10]"),
    "max-grad-norm": Help(_STEPS, "X", "At which gradients are clipped [0.05]"),
    "optimizer": Help(_STEPS, "NAME", "adamw, adamw8bit or muon [adamw]"),
    "lr-schedule": Help(_STEPS, "NAME", "constant, linear or cosine [constant]"),
    "warmup": Help(_STEPS, "N", "Steps in which the rate rises [0]"),
    "ema": Help(_STEPS, "X", "Decay of a moving average that is saved instead [0: none]"),
    "seed": Help(_STEPS, "N", "Of every random choice [42]"),
    "caption-drop": Help(_NOISE, "X", "Share of samples without their caption [0.1]"),
    "cutoff": Help(_NOISE, "A:B", "Range of the Fourier cutoff [0.05:0.95]"),
    "timesteps": Help(_NOISE, "KIND", "uniform, logit-normal or logit-normal-shift [uniform]"),
    "sigma-shift": Help(_NOISE, "X", "Shift of noise levels [1; the base's recipe]"),
    "sigma-power": Help(_NOISE, "X", "Weight of a noise level, its power [0]"),
    "save-every": Help(_WAY, "N", "Steps between checkpoints [250; the base's recipe]"),
    "keep": Help(_WAY, "N", "Checkpoints that are kept [3]"),
    "sample-every": Help(_WAY, "N", "Steps between samples; 0 for none [250; the base's recipe]"),
    "sample-prompt": Help(_WAY, "TEXT", "Of a sample; may be repeated [three built-in ones]"),
    "sample-image": Help(
        _WAY, "FILE", "Picture of samples; may be repeated [a photo, and of the data]"
    ),
    "save-format": Help(_WAY, "NAME", "native, kohya or peft [native]"),
    "log": Help(_WAY, "KIND", "tensorboard too; metrics.jsonl is always written"),
    "device": Help(_MACHINE, "NAME", "auto, cpu, cuda, cuda:N or mps [auto]"),
    "dtype": Help(_MACHINE, "NAME", "Of the base's weights [the card's]"),
    "quant": Help(_MACHINE, "NAME", "none, or fp8 for the frozen base [none]"),
    "gpus": Help(_MACHINE, "N", "Processes that share a step, a GPU each [1]"),
    "context-parallel": Help(_MACHINE, "N", "Of them, how many share one sample [1]"),
    "grad-checkpoint": Help(_MACHINE, "", "Compute activations twice, for less memory [on]"),
    "swap-blocks": Help(_MACHINE, "N", "Frozen blocks that wait in RAM [auto]"),
    "offload-activations": Help(_MACHINE, "", "What checkpoints keep waits in RAM"),
    "max-vram": Help(_MACHINE, "GB", "Memory of the device that may be used [all that is free]"),
    "max-ram": Help(_MACHINE, "GB", "Memory of the host that may be used [all that is free]"),
}
_REPEATED = ("sample-prompt", "sample-image", "log")


def with_train_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for each training dial, given to it by field name.

    Args:
        command: takes its own parameters, and the dials as `**flags`.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in signature.parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    first = [p for p in own if p.name in ("dataset", "output")]
    flags = [_parameter(name) for name in TRAIN_DIALS]
    last = [p for p in own if p not in first]
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*first, *flags, *last]
    )
    command.__annotations__ = {p.name: p.annotation for p in [*first, *flags, *last]}
    return command


def _parameter(name: str) -> inspect.Parameter:
    dial, shown = TRAIN_DIALS[name], HELP[name]
    names = [f"--{name}", *([f"-{dial.short}"] if dial.short else [])]
    common: dict[str, Any] = {
        "help": shown.text,
        "rich_help_panel": shown.panel,
        "show_default": False,
    }
    annotation: Any
    if dial.is_switch:
        annotation = Annotated[bool | None, typer.Option(f"--{name}/--no-{name}", **common)]
    elif name in _REPEATED:
        annotation = Annotated[
            list[str] | None, typer.Option(*names, metavar=shown.metavar, **common)
        ]
    else:
        option = typer.Option(*names, metavar=shown.metavar, parser=dial.read, **common)
        annotation = Annotated[_Read | None, option]
    return inspect.Parameter(
        dial.field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


class _Read:
    """Stands for whatever a dial's reader gives; Typer wants a class."""


DatasetArg = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA",
        help="Folder of clips, fox.txt beside fox.mp4; or metadata.jsonl, osp.jsonl, a TOML list",
        show_default=False,
    ),
]
OutOpt = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        metavar="NAME",
        help="What --style and --lora will call it; the run's folder, perhaps with a path before",
        show_default=False,
    ),
]
TitleOpt = Annotated[
    str | None, typer.Option("--title", metavar="TEXT", help="Its name in `osp styles`")
]
ResumeOpt = Annotated[
    str,
    typer.Option(
        "--resume",
        metavar="WHICH",
        help="auto goes on where the run stopped, never begins anew; or a checkpoint's folder",
    ),
]
AllowEmptyOpt = Annotated[
    bool, typer.Option("--allow-empty", help="Clips need no caption", show_default=False)
]
AllowUpscaleOpt = Annotated[
    bool, typer.Option("--allow-upscale", help="Clips may be too small", show_default=False)
]
SkipInvalidOpt = Annotated[
    bool, typer.Option("--skip-invalid", help="Train without clips that fail", show_default=False)
]
ValidateOnlyOpt = Annotated[
    bool, typer.Option("--validate-only", help="Check the data and exit", show_default=False)
]
CacheOnlyOpt = Annotated[
    bool, typer.Option("--cache-only", help="Encode all clips and exit", show_default=False)
]
OverwriteOpt = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        "-y",
        help="Replace an adapter of that name; with --resume never, a run too",
        show_default=False,
    ),
]
OfflineOpt = opt.OfflineOpt
