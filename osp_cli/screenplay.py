"""What a stream shows and when, a line for each change: the screenplay of `osp extend`.

    # A comment.
    0s: a steam train on a plain
    12s: the train enters a tunnel --style ink --cutoff 0.3
    1:05: --style none
    1m20.5s: "a prompt --with dashes, in the quotation marks of JSON"

A time is `12s`, `0.5s`, `1m5s`, `1h2m3s`, `1:05`, `1:02:03` or a bare number of seconds; a colon
and a blank end it. What a line does not name stays as it was. Lines that come while the stream
runs are the same, and may leave the time out: they count from the next chunk on. `quit`, `stop`,
`snapshot` and `help`, each alone on its line, are orders then.
"""

from __future__ import annotations

import enum
import io
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from osp_cli.batch import read_flags, split_flags
from osp_cli.dials import DIALS, Cutoffs, Ramp, read_value
from osp_cli.errors import InvalidRequestError
from osp_cli.style_mix import NO_STYLE, read_style

MAX_CUES = 10_000
MAX_LINE = 10_000

_EXAMPLE = "12s: the train enters a tunnel --style ink --cutoff 0.3"
_NAMES = ("style", "cutoff")
_FRACTION = r"\d{1,9}(?:\.\d+)?"
_TIME = re.compile(
    rf"""(?: (?P<clock> (?:\d{{1,6}}:)? \d{{1,6}} : \d\d?(?:\.\d+)? )
    | (?= \d ) (?:(?P<h>\d{{1,6}})h)? (?:(?P<m>\d{{1,6}})m)? (?:(?P<s>{_FRACTION})s?)? )
    \s* : (?!\d)""",
    re.VERBOSE,
)
_LIKE_A_TIME = re.compile(rf"\d[\d:.]*\s|{_FRACTION}\s*(?:s|m|h|sec|min|seconds|minutes)\b")


class Command(enum.StrEnum):
    """An order to a running stream."""

    QUIT = "quit"
    SNAPSHOT = "snapshot"
    HELP = "help"


_COMMANDS = {
    "quit": Command.QUIT,
    "stop": Command.QUIT,
    "exit": Command.QUIT,
    "snapshot": Command.SNAPSHOT,
    "help": Command.HELP,
    "?": Command.HELP,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """One change.

    Attributes:
        seconds: of the stream, when it begins; None where it was said live without a time.
        prompt: what the video shows from then on; None leaves it.
        style: the canonical text of `StyleMix`, `none`, or None, which leaves it.
        cutoff: of the Fourier filter, at a chunk's first and last step; None leaves it.
    """

    seconds: float | None = None
    prompt: str | None = None
    style: str | None = None
    cutoff: Ramp | None = None


def parse_screenplay(text: str, name: str = "the screenplay") -> tuple[Cue, ...]:
    """The cues of a file, in its order, which is that of time. All of them have a time.

    Two cues may have the same time: both hold, and where both name a thing the later one does.

    Args:
        text: the whole file.
        name: of the file, for messages.

    Raises:
        InvalidRequestError: a line makes no sense, times run backwards, or there is no line. The
            message names the line, the hint what to write instead.
    """
    cues: list[Cue] = []
    last = (0.0, "")
    # At the line ends of text files only: a prompt may hold the other ones of Unicode.
    for number, line in enumerate(io.StringIO(text.removeprefix("\ufeff"), newline=None), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        place = f"{name}, line {number}"
        cue = _parse_line(line, place)
        if cue.seconds is None:
            raise _without_time(line, place)
        if cue.seconds < last[0]:
            raise InvalidRequestError(
                f"{place}: {format_time(cue.seconds)} comes after {format_time(last[0])} "
                f"of {last[1]}, and time does not run backwards",
                hint="put the lines in the order of their times",
            )
        if len(cues) == MAX_CUES:
            raise InvalidRequestError(f"{name} holds more than {MAX_CUES} lines")
        last = cue.seconds, f"line {number}"
        cues.append(cue)
    if not cues:
        raise InvalidRequestError(f"{name} says nothing", hint=f"a line of it is: {_EXAMPLE}")
    return tuple(cues)


def parse_live(line: str) -> Cue | Command | None:
    """What a line means that came while the stream ran; None where it is empty or a comment.

    Raises:
        InvalidRequestError: it makes no sense; the hint says what to type instead.
    """
    # A prompt that was pasted may come with line ends in it.
    line = " ".join(line.removeprefix("\ufeff").splitlines()).strip()
    if not line or line.startswith("#"):
        return None
    return _COMMANDS.get(line.lower()) or _parse_line(line, "")


def format_screenplay(cues: Iterable[Cue]) -> str:
    """The text from which exactly these cues are read again.

    Raises:
        ValueError: a cue has no time, or changes nothing.
    """
    return "".join(f"{_format_cue(cue)}\n" for cue in cues)


def format_time(seconds: float) -> str:
    """A time as it is written: `12.5s` in the first minute, then `1:05` and `1:02:03.25`."""
    # Decimal, as a binary fraction would not come back as it was.
    exact = Decimal(repr(seconds))
    minutes, rest = divmod(exact, 60)
    shown = f"{rest.normalize():f}"
    if not minutes:
        return f"{shown}s"
    if rest < 10:
        shown = f"0{shown}"
    hours, left = divmod(int(minutes), 60)
    return f"{hours}:{left:02d}:{shown}" if hours else f"{left}:{shown}"


def describe(cue: Cue) -> str:
    """The changes of a cue without its time, as they are written."""
    parts = []
    if cue.prompt is not None:
        parts.append(_format_prompt(cue.prompt))
    if cue.style is not None:
        parts.append(f"--style {shlex.quote(cue.style)}")
    if cue.cutoff is not None:
        parts.append(f"--cutoff {cue.cutoff}")
    return " ".join(parts)


def checked_cutoff(cutoff: Ramp | Cutoffs, place: str = "") -> Ramp:
    """The cutoff, if a stream can have it.

    Raises:
        InvalidRequestError: several of them, or no percentiles.
    """
    if isinstance(cutoff, Cutoffs):
        raise InvalidRequestError(
            f"--cutoff takes one value at a time in a stream, got {cutoff}",
            hint="--cutoff 0.1, or --cutoff 0.1:0.5 over the steps of each chunk",
        ).at(place)
    for value in cutoff:
        if not 0.0 <= value <= 1.0:
            raise InvalidRequestError(
                f"--cutoff is a percentile between 0 and 1, got {value:g}",
                hint="--cutoff 0.1 keeps fine detail, higher values keep less",
            ).at(place)
    return cutoff


def checked_style(text: str, place: str = "") -> str:
    """The canonical text of a style, if a stream can have it.

    Raises:
        InvalidRequestError: there is no such style, or it changes along a clip.
    """
    try:
        mix = read_style(text)
    except InvalidRequestError as error:
        raise error.at(place) from None
    if mix is None:
        return NO_STYLE
    if mix.is_morph:
        first, second = text.split("..")[0].strip(), text.split("..")[-1].strip()
        raise InvalidRequestError(
            f"--style {text} leads through a whole clip, and a stream has no end to lead to",
            hint=f"--style {first} at one time, and --style {second} at a later one",
        ).at(place)
    return str(mix)


def _parse_line(line: str, place: str) -> Cue:
    """A line that is neither empty nor a comment."""
    if len(line) > MAX_LINE:
        raise InvalidRequestError(f"a line has at most {MAX_LINE} characters").at(place)
    found = _TIME.match(line)
    seconds = None if found is None else _seconds(found, place)
    prompt, flags = _split_prompt(line if found is None else line[found.end() :].strip())
    # Flags are judged without their place, which is put before whatever is said about them.
    style, cutoff = _read_flags(flags, place)
    if prompt is None and style is None and cutoff is None:
        raise InvalidRequestError(
            "nothing stands behind the time", hint=f"for example: {_EXAMPLE}"
        ).at(place)
    return Cue(seconds=seconds, prompt=prompt, style=style, cutoff=cutoff)


def _seconds(found: re.Match[str], place: str) -> float:
    if found["clock"] is None:
        parts = [found["h"] or "0", found["m"] or "0", found["s"] or "0"]
    else:
        parts = found["clock"].split(":")
        if any(Decimal(part) >= 60 for part in parts[1:]):
            raise InvalidRequestError(
                f"{found['clock']} is no time: seconds, and minutes behind hours, end at 59",
                hint=f"{Decimal(parts[-2]) * 60 + Decimal(parts[-1])}s: is understood as well",
            ).at(place)
    total = Decimal(0)
    for part in parts:
        total = total * 60 + Decimal(part)
    return float(total)


def _split_prompt(text: str) -> tuple[str | None, str]:
    """The prompt, if there is one, and the flags behind it."""
    if text.startswith('"'):
        try:
            prompt, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            pass  # a prompt that begins with something said: "Hello," says the fox
        else:
            before, flags = split_flags(text[end:])
            if not before.strip() and isinstance(prompt, str):
                return prompt, flags
    prompt, flags = split_flags(text)
    return prompt.strip() or None, flags


def _read_flags(text: str, place: str) -> tuple[str | None, Ramp | None]:
    """The values of `--style` and `--cutoff`, as far as they are there."""
    try:
        values = read_flags(text, "")
    except InvalidRequestError as error:
        raise InvalidRequestError(
            error.message.removeprefix(": "),
            hint='a prompt with dashes stands in quotation marks: 12s: "a --dashed-- word"',
        ).at(place) from None
    for name in values:
        if name not in _NAMES:
            known = name in DIALS
            raise InvalidRequestError(
                f"--{name} holds for the whole stream" if known else f"--{name} is unknown here",
                hint="a line changes the prompt, --style and --cutoff",
            ).at(place)
    style, cutoff = values.get("style"), values.get("cutoff")
    return (
        None if style is None else checked_style(str(style), place),
        None if cutoff is None else checked_cutoff(_read_cutoff(cutoff, place), place),
    )


def _read_cutoff(value: object, place: str) -> Ramp | Cutoffs:
    try:
        found: Ramp | Cutoffs = read_value("cutoff", value, "")
    except InvalidRequestError as error:
        message = error.message.removeprefix(": ")
        raise InvalidRequestError(message, hint=error.hint).at(place) from None
    return found


def _without_time(line: str, place: str) -> InvalidRequestError:
    if _LIKE_A_TIME.match(line):
        time, _, rest = line.partition(" ")
        return InvalidRequestError(
            f"{place}: a colon and a blank stand behind the time, got {_short(line)!r}",
            hint=f"{time.rstrip(':')}: {_short(rest.strip()) or 'PROMPT'}",
        )
    return InvalidRequestError(
        f"{place}: a line begins with its time, got {_short(line)!r}",
        hint=f"12s: {_short(line)}",
    )


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _format_cue(cue: Cue) -> str:
    changes = describe(cue)
    if cue.seconds is None or not changes:
        raise ValueError(f"a line of a screenplay has a time and says something, got {cue}")
    return f"{format_time(cue.seconds)}: {changes}"


def _format_prompt(prompt: str) -> str:
    """The prompt as it is, or in quotation marks where it would be read as something else."""
    plain = prompt.splitlines() == [prompt] and not prompt.startswith("#")
    if plain and _split_prompt(prompt) == (prompt, ""):
        return prompt
    return json.dumps(prompt, ensure_ascii=False)
