"""The options that only `osp extend` has."""

from __future__ import annotations

from typing import Annotated

import typer

from osp_cli.cli.extend_values import StageList, stage_list
from osp_cli.dials import Cutoffs, Seeds, cutoff, number, seeds, whole_number

ExtendInputArg = Annotated[
    str | None,
    typer.Argument(
        metavar="INPUT",
        help="Video or picture that goes on, - for a picture on stdin [the last output]",
        show_default=False,
    ),
]
RealtimeOpt = Annotated[
    bool,
    typer.Option(
        "--realtime", help="A live stream without end: few steps, no guidance, type to steer it"
    ),
]
ExtendOutputOpt = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help=".mp4, .mkv, a folder/, or - for stdout [{name}-{style}-{seed}.mp4]",
    ),
]
ExtendStyleOpt = Annotated[
    str | None,
    typer.Option(
        "--style",
        "-s",
        metavar="NAME[:X]",
        help="One of `osp styles`, ghibli:0.5 for half of it, ink+oil for a mixture; a screenplay "
        "changes it [none]",
        show_default=False,
    ),
]
ExtendSeedOpt = Annotated[
    Seeds | None,
    typer.Option("--seed", metavar="N", parser=seeds, help="Equal seeds, equal videos [random]"),
]
ExtendCutoffOpt = Annotated[
    # Its reader may also give a single Ramp, but Typer knows no unions.
    Cutoffs | None,
    typer.Option(
        "--cutoff",
        metavar="P",
        parser=cutoff,
        help="0 to 1: how little of the picture's detail leads [0.1]",
    ),
]
ExtendSecondsOpt = Annotated[
    float | None,
    typer.Option(
        "--seconds",
        "-t",
        metavar="S",
        parser=number("--seconds"),
        help="Seconds to add; with --resume, of the whole stream [5; with --realtime no end]",
    ),
]
ExtendFramesOpt = Annotated[
    int | None,
    typer.Option(
        "--frames",
        "-f",
        metavar="N",
        parser=whole_number("--frames"),
        help="The same in frames, any number",
    ),
]
ExtendSamplerOpt = Annotated[
    str | None,
    typer.Option("--sampler", metavar="NAME", help="dmd, euler or unipc [the model's]"),
]
SinkOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--sink",
        metavar="WHERE",
        help="file, stdout or stdout:y4m, mpv, http or http:PORT (a page on this machine), udp://, "
        "srt://, rtmp://, NAME.m3u8; repeat for several [file]",
    ),
]
ScreenplayOpt = Annotated[
    str | None,
    typer.Option(
        "--from-file",
        "-F",
        metavar="FILE",
        help="A screenplay: what happens when, one '12s: prompt' a line, or - for stdin",
    ),
]
ExtendFromOpt = Annotated[
    str | None,
    typer.Option("--from", metavar="FILE", help="The same as INPUT: a clip or its .json"),
]
ResumeOpt = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="STATE",
        help="Take a stream up where it ended, of its .state.safetensors or its video",
    ),
]
ContextOpt = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="N",
        parser=whole_number("--context"),
        help="Latent frames that each chunk goes on from [the model's]",
    ),
]
LatentFramesOpt = Annotated[
    int | None,
    typer.Option(
        "--latent-frames",
        metavar="N",
        parser=whole_number("--latent-frames"),
        help="Latent frames of a chunk [9]",
    ),
]
StagesOpt = Annotated[
    StageList | None,
    typer.Option(
        "--stages",
        metavar="N|WxH,...",
        parser=stage_list,
        help="Resolutions from low to full, each twice the last [the model's]",
    ),
]
AnchorOpt = Annotated[
    float | None,
    typer.Option(
        "--anchor-color",
        metavar="W",
        parser=number("--anchor-color"),
        help="Hold the colours of the beginning: 0 not at all, 1 wholly [0]",
    ),
]
ListenOpt = Annotated[
    bool,
    typer.Option(
        "--listen/--no-listen",
        show_default=False,
        help="Lines typed or piped in change a live stream [yes]",
    ),
]
