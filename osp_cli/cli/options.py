"""The options that commands share: their names, help and the reading of their values.

A value is read here only as far as its spelling goes; whether it makes sense is the
request's business. Everything unreadable is refused in the same form as there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from osp_cli.errors import InvalidRequestError

# Names that users of other programs already type; accepted, not advertised.
ALIASES = {
    "num-inference-steps": "steps",
    "guidance-scale": "cfg",
    "flow-shift": "shift",
    "num-frames": "frames",
}


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


class Ramp(NamedTuple):
    """The values of a dial at the first and at the last step."""

    start: float
    end: float


_DTYPE_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def canonical_name(name: str) -> str:
    """The name of the option that `name`, without dashes, stands for."""
    return ALIASES.get(name, name)


def whole_number(flag: str) -> Callable[[str], int]:
    """A reader of whole numbers whose refusal names `flag`."""

    def read(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise InvalidRequestError(f"{flag} takes a whole number, got {text!r}") from None

    return read


def number(flag: str) -> Callable[[str], float]:
    """A reader of numbers whose refusal names `flag`."""

    def read(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise InvalidRequestError(f"{flag} takes a number, got {text!r}") from None

    return read


def size(text: str) -> Size:
    """Read `448x256`."""
    match = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", text.strip())
    if match is None:
        raise InvalidRequestError(
            f"--size takes WIDTHxHEIGHT in pixels, got {text!r}", hint="--size 448x256"
        )
    return Size(int(match[1]), int(match[2]))


def cutoff(text: str) -> Ramp:
    """Read `0.1`, or a ramp `0.1:0.5`."""
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    match numbers:
        case [constant]:
            return Ramp(constant, constant)
        case [start, end]:
            return Ramp(start, end)
    raise InvalidRequestError(
        f"--cutoff takes one number between 0 and 1, or START:END, got {text!r}",
        hint="--cutoff 0.1 or --cutoff 0.1:0.5",
    )


def seed(text: str) -> int | None:
    """A whole number, or None for `random`."""
    if text.strip().lower() == "random":
        return None
    try:
        return int(text)
    except ValueError:
        raise InvalidRequestError(
            f"--seed takes a whole number or random, got {text!r}", hint="--seed 42"
        ) from None


def dtype(text: str) -> str:
    """A precision by its torch name, also given as bf16, fp16 or fp32."""
    return _DTYPE_ALIASES.get(text, text)


def prompt_text(text: str) -> str:
    """The text itself, or what is in the file after an `@`."""
    if not text.startswith("@"):
        return text
    path = Path(text[1:])
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InvalidRequestError(
            f"the prompt file {text[1:]!r} cannot be read: {error.strerror}",
            hint="after @ comes a text file; leave the @ out to write the prompt itself",
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the prompt file {text[1:]!r} is not UTF-8 text") from error


ImageArg = Annotated[
    str | None, typer.Argument(metavar="IMAGE", help="Picture to start from", show_default=False)
]
PromptArg = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT",
        parser=prompt_text,
        help="What happens in the video: text, or @FILE",
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
    str | None, typer.Option("--style", "-s", metavar="NAME", help="One of `osp styles`")
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
        "--output", "-o", metavar="PATH", help="Video to write [{name}-{style}-{seed}.mp4]"
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
        "--steps", metavar="N", parser=whole_number("--steps"), help="Sampler steps [card's]"
    ),
]
CfgOpt = Annotated[
    float | None,
    typer.Option(
        "--cfg",
        "-g",
        metavar="X",
        parser=number("--cfg"),
        help="How strongly the prompt leads; 1 is off and twice as fast [card's]",
    ),
]
ShiftOpt = Annotated[
    float | None,
    typer.Option(
        "--shift",
        metavar="X",
        parser=number("--shift"),
        help="More means more time on the layout, less on detail [card's]",
    ),
]
CutoffOpt = Annotated[
    Ramp | None,
    typer.Option(
        "--cutoff",
        metavar="P[:P]",
        parser=cutoff,
        help="0 to 1: how little of the picture's detail leads, or a ramp [0.1]",
    ),
]
SeedOpt = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", parser=seed, help="Equal seeds, equal videos [random]"),
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
        "--dtype", metavar="NAME", parser=dtype, help="bfloat16, float16 or float32 [card's]"
    ),
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
