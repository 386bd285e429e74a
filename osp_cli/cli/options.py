"""The options that commands share: their names, help and the reading of their values."""

from __future__ import annotations

from typing import Annotated

import typer

from osp_cli.dials import (
    Cutoffs,
    LoraChoice,
    Seeds,
    Size,
    StepCacheChoice,
    cutoff,
    dtype,
    lora,
    memory,
    number,
    prompt_text,
    seeds,
    size,
    step_cache,
    whole_number,
)

ImageArg = Annotated[
    str | None,
    typer.Argument(
        metavar="IMAGE", help="Picture to start from, or - for stdin", show_default=False
    ),
]
PromptArg = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT",
        parser=prompt_text,
        help="What happens in the video: text, @FILE, or - for stdin",
        show_default=False,
    ),
]
InputsArg = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT... [PROMPT]",
        help="Pictures, videos, folders of them, or - for a picture on stdin; then what happens",
        show_default=False,
    ),
]
TextOpt = Annotated[
    str | None,
    typer.Option(
        "--text", metavar="PROMPT", parser=prompt_text, help="Text to video, without a picture"
    ),
]
StyleOpt = Annotated[
    str | None,
    typer.Option(
        "--style",
        "-s",
        metavar="NAME[:X]",
        help="One of `osp styles`; ghibli:0.5 is half of it, ink+oil a mixture, oil..ink leads "
        "from one to the other [none]",
    ),
]
StylizeStyleOpt = Annotated[
    str | None,
    typer.Option(
        "--style",
        "-s",
        metavar="NAME[:X]",
        help="One of `osp styles`, ghibli:0.5, a mixture ink+oil, a change ghibli..ink, "
        "a file of your own, or a sheet of ink,oil or all",
        show_default=False,
    ),
]
StrengthOpt = Annotated[
    float | None,
    typer.Option(
        "--strength",
        metavar="X",
        parser=number("--strength"),
        help="0 to 1: how far a video is painted anew [0.6; osp-mini 1]",
    ),
]
NegativePromptOpt = Annotated[
    str | None,
    typer.Option(
        "--negative-prompt",
        "-n",
        metavar="TEXT",
        parser=prompt_text,
        help="What to steer away from",
    ),
]
OutputOpt = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help=".mp4, .gif, .webp, a folder/%04d.png, a folder/, or - for stdout "
        "[{name}-{style}-{seed}.mp4]",
    ),
]
SheetOutputOpt = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help=".mp4, .gif, .webp, a folder/%04d.png, a folder/, or - for stdout; "
        "a sheet may also be .png or .jpg [{name}-{style}-{seed}.mp4]",
    ),
]
# Classes of their own, since Typer would take a plain tuple for an option of two arguments.
SizeOpt = Annotated[
    Size | None,
    typer.Option("--size", metavar="WxH", parser=size, help="Pixels [the picture's nearest]"),
]
WidthOpt = Annotated[
    int | None, typer.Option("--width", hidden=True, parser=whole_number("--width"))
]
HeightOpt = Annotated[
    int | None, typer.Option("--height", hidden=True, parser=whole_number("--height"))
]
FramesOpt = Annotated[
    int | None,
    typer.Option(
        "--frames",
        "-f",
        metavar="N",
        parser=whole_number("--frames"),
        help="4k+1, others are rounded up [49]",
    ),
]
SecondsOpt = Annotated[
    float | None,
    typer.Option(
        "--seconds", "-t", metavar="S", parser=number("--seconds"), help="The same as a length"
    ),
]
FpsOpt = Annotated[
    int | None,
    typer.Option("--fps", metavar="N", parser=whole_number("--fps"), help="Frames per second [16]"),
]
StepsOpt = Annotated[
    int | None,
    typer.Option(
        "--steps", metavar="N", parser=whole_number("--steps"), help="Sampler steps [the model's]"
    ),
]
CfgOpt = Annotated[
    float | None,
    typer.Option(
        "--cfg",
        "-g",
        metavar="X",
        parser=number("--cfg"),
        help="How strongly the prompt leads; 1 is off and twice as fast [the model's]",
    ),
]
ShiftOpt = Annotated[
    float | None,
    typer.Option(
        "--shift",
        metavar="X",
        parser=number("--shift"),
        help="More means more time on the layout, less on detail [the model's]",
    ),
]
CutoffOpt = Annotated[
    # Its reader may also give a single Ramp, but Typer knows no unions.
    Cutoffs | None,
    typer.Option(
        "--cutoff",
        metavar="P[:P]",
        parser=cutoff,
        help="0 to 1: how little of the picture's detail leads, a ramp, or a sheet of P,P,P [0.1]",
    ),
]
SamplerOpt = Annotated[
    str | None,
    typer.Option("--sampler", metavar="NAME", help="euler or unipc [the model's]"),
]
SeedOpt = Annotated[
    Seeds | None,
    typer.Option(
        "--seed",
        metavar="N",
        parser=seeds,
        help="Equal seeds, equal videos; 1-4 or 3,7 make one video each [random]",
    ),
]
CountOpt = Annotated[
    int | None,
    typer.Option(
        "--count",
        "-c",
        metavar="N",
        parser=whole_number("--count"),
        help="So many videos, with seeds one after the other [1]",
    ),
]
LoraOpt = Annotated[
    list[LoraChoice] | None,
    typer.Option(
        "--lora",
        "-l",
        metavar="FILE[:X]",
        parser=lora,
        help="A LoRA, as a file or by its name, and how strongly it counts [1]; any number of them",
        show_default=False,
    ),
]
CacheOpt = Annotated[
    StepCacheChoice | None,
    typer.Option(
        "--cache",
        metavar="KIND[:X]",
        parser=step_cache,
        help="none, teacache, fbcache or magcache: skip steps that change little [the model's]",
    ),
]
CacheStartOpt = Annotated[
    int | None,
    typer.Option(
        "--cache-start",
        metavar="N",
        parser=whole_number("--cache-start"),
        help="Steps at the start that teacache and magcache always compute [the model's]",
    ),
]
PreviewOpt = Annotated[
    str | None,
    typer.Option(
        "--preview",
        metavar="KIND",
        help="latent: a picture of the video while it is made; "
        "contact: only a sheet of all seeds after a few steps [none]",
    ),
]
PickOpt = Annotated[
    int | None,
    typer.Option(
        "--pick",
        metavar="SEED",
        parser=whole_number("--pick"),
        help="Finish this seed of a contact sheet",
    ),
]
FromOpt = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="Make it again from a video or its .json, or finish a .latents file; other flags win",
    ),
]
FromFileOpt = Annotated[
    str | None,
    typer.Option(
        "--from-file",
        "-F",
        metavar="FILE",
        help="One video per line of a .txt, .jsonl or .csv file",
    ),
]
ConfigOpt = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="Settings in TOML [osp.toml]")
]
PrintConfigOpt = Annotated[
    bool,
    typer.Option(
        "--print-config",
        help="Show every setting and where it comes from, and exit",
        show_default=False,
    ),
]
DryRunOpt = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show the plan, with bytes and time, and exit", show_default=False
    ),
]
MetadataOpt = Annotated[
    bool | None,
    typer.Option(
        "--metadata/--no-metadata",
        help="Keep the recipe in the video and beside it, or nowhere [kept]",
    ),
]
ModelOpt = Annotated[
    str | None, typer.Option("--model", "-m", metavar="NAME", help="One of `osp models` [osp-mini]")
]
DeviceOpt = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="auto, cuda, mps or cpu [auto]"),
]
DtypeOpt = Annotated[
    str | None,
    typer.Option(
        "--dtype", metavar="NAME", parser=dtype, help="bfloat16, float16 or float32 [the model's]"
    ),
]
OffloadOpt = Annotated[
    str | None,
    typer.Option(
        "--offload",
        metavar="KIND",
        help="Where idle weights wait: none, model, group, sequential or disk [what fits]",
    ),
]
QuantOpt = Annotated[
    str | None,
    typer.Option(
        "--quant",
        metavar="KIND",
        help="Smaller weights: none, fp8, int8, nf4 or gguf [none, or fp8 where it must be]",
    ),
]
AttentionOpt = Annotated[
    str | None,
    typer.Option("--attention", metavar="KIND", help="Kernels: auto, sdpa, flash or sage [auto]"),
]
VaeTilingOpt = Annotated[
    bool | None,
    typer.Option(
        "--vae-tiling/--no-vae-tiling",
        help="Decode in tiles: less memory, not quite the same picture [where it must be]",
    ),
]
CompileOpt = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile", help="Compile the blocks: slow to start, quicker steps [no]"
    ),
]
GpusOpt = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        metavar="N",
        parser=whole_number("--gpus"),
        help="Sample on N graphics cards together [1]",
    ),
]
MaxVramOpt = Annotated[
    int | None,
    typer.Option(
        "--max-vram",
        metavar="GB",
        parser=memory("--max-vram"),
        help="Use no more of the graphics card's memory, as in 12GB",
    ),
]
MaxRamOpt = Annotated[
    int | None,
    typer.Option(
        "--max-ram",
        metavar="GB",
        parser=memory("--max-ram"),
        help="Plan with no more of the computer's memory",
    ),
]
OfflineOpt = Annotated[
    bool,
    typer.Option("--offline", help="Never touch the network", show_default=False),
]
OverwriteOpt = Annotated[
    bool, typer.Option("--overwrite", "-y", help="Replace an existing video", show_default=False)
]
JsonOpt = Annotated[
    bool, typer.Option("--json", help="One JSON object per line on stdout", show_default=False)
]
QuietOpt = Annotated[
    bool, typer.Option("--quiet", "-q", help="Say nothing but errors", show_default=False)
]
VerboseOpt = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Say where each setting comes from", show_default=False),
]
# Read by main() before anything is parsed, so that it covers the parsing too.
DebugOpt = Annotated[
    bool, typer.Option("--debug", help="Show a traceback with an error", show_default=False)
]
