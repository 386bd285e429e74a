"""The dials of a run: their names, and the reading of their values wherever those are written.

A value may stand in a flag, in a variable, in a configuration file, in a line of a batch or in a
recipe; it is spelled and read the same way everywhere. Only the spelling is judged here; whether a
value makes sense is the request's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from osp_cli.errors import InvalidRequestError

# Names that users of other programs already type; accepted, not advertised.
ALIASES = {
    "num-inference-steps": "steps",
    "guidance-scale": "cfg",
    "flow-shift": "shift",
    "num-frames": "frames",
}
RANDOM_SEED = "random"
MAX_SEEDS = 10_000
# Stands for no LoRA at all, so that a flag can undo what a file asks for.
NO_LORA = "none"
CACHES = ("none", "teacache", "fbcache", "magcache")

_MAX_DIGITS = 30
_DTYPE_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class Ramp(NamedTuple):
    """The values of a dial at the first and at the last step."""

    start: float
    end: float

    def __str__(self) -> str:
        ends = (self.start,) if self.start == self.end else self
        return ":".join(map(number_text, ends))


class Cutoffs(tuple[Ramp, ...]):
    """Several cutoffs, each for a video of its own, to be compared."""

    def __str__(self) -> str:
        return ",".join(map(str, self))


class StepCacheChoice(NamedTuple):
    """A step cache and its threshold; None stands for the cache's own."""

    kind: str
    threshold: float | None = None

    def __str__(self) -> str:
        if self.threshold is None:
            return self.kind
        return f"{self.kind}:{number_text(self.threshold)}"


NO_CACHE = StepCacheChoice("none")


class MemorySize(int):
    """An amount of memory in bytes."""

    def __str__(self) -> str:
        return f"{self // 10**9}.{self % 10**9:09d}".rstrip("0").rstrip(".") + "GB"


class LoraChoice(NamedTuple):
    """A LoRA by its path, or by the name it is installed under, and how strongly it counts.

    `style` is the name of the style that brought it; empty where the user asked for it.
    """

    name: str
    weight: float = 1.0
    style: str = ""

    def __str__(self) -> str:
        # A colon in the name would be read as the weight's.
        plain = self.weight == 1 and ":" not in self.name
        return self.name if plain else f"{self.name}:{number_text(self.weight)}"


class Loras(tuple[LoraChoice, ...]):
    """The LoRAs of a run, in the order in which they were asked for."""

    def __str__(self) -> str:
        return ",".join(map(str, self)) or NO_LORA


class Seeds(tuple[int, ...]):
    """One or more seeds, in the order in which they were asked for."""

    def __str__(self) -> str:
        return ",".join(map(str, self))


def canonical_name(name: str) -> str:
    """The name of the option that `name`, without dashes, stands for."""
    return ALIASES.get(name, name)


def number_text(value: float) -> str:
    """The shortest text from which exactly this number is read again."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def whole_number(flag: str) -> Callable[[str], int]:
    """A reader of whole numbers whose refusal names `flag`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise InvalidRequestError(f"{flag} takes a whole number, got {text!r}") from None
        # Beyond what any dial takes, and before numbers that no float holds.
        if abs(value) >= 10**_MAX_DIGITS:
            raise InvalidRequestError(f"{flag} takes at most {_MAX_DIGITS} digits, got {text!r}")
        return value

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


def cutoff(text: str) -> Ramp | Cutoffs:
    """Read `0.1`, a ramp `0.1:0.5`, or several of them, parted by commas."""
    ramps = [_ramp(part) for part in text.split(",")]
    if None in ramps:
        raise InvalidRequestError(
            f"--cutoff takes one number between 0 and 1, or START:END, got {text!r}",
            hint="--cutoff 0.1, --cutoff 0.1:0.5, or --cutoff 0.05,0.1,0.5 to compare",
        )
    found = Cutoffs(ramp for ramp in ramps if ramp is not None)
    if len(set(found)) < len(found):
        raise InvalidRequestError(f"--cutoff {text} names a cutoff twice")
    return found if len(found) > 1 else found[0]


def _ramp(text: str) -> Ramp | None:
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        return None
    match numbers:
        case [constant]:
            return Ramp(constant, constant)
        case [start, end]:
            return Ramp(start, end)
    return None


def seeds(text: str) -> Seeds | str:
    """Read `7`, `1-4`, `1,5,9-11` or `random`.

    Returns:
        The seeds, or `RANDOM_SEED`.
    """
    if text.strip().lower() == RANDOM_SEED:
        return RANDOM_SEED
    found: list[int] = []
    for part in text.split(","):
        found += _seed_range(part.strip(), text)
        if len(found) > MAX_SEEDS:
            raise InvalidRequestError(f"--seed {text} asks for more than {MAX_SEEDS} videos")
    if len(set(found)) < len(found):
        raise InvalidRequestError(f"--seed {text} names a seed twice")
    return Seeds(found)


def _seed_range(part: str, text: str) -> list[int]:
    # A lone negative number is a number: the request refuses it for what it is.
    match = re.fullmatch(r"(-?\d{1,30})|(\d{1,30})\s*-\s*(\d{1,30})", part)
    if match is None:
        raise InvalidRequestError(
            f"--seed takes whole numbers, a range or random, got {text!r}",
            hint="--seed 42, --seed 1-4, --seed 3,7,12 or --seed random",
        )
    if match[1]:
        return [int(match[1])]
    first, last = int(match[2]), int(match[3])
    if last < first:
        raise InvalidRequestError(f"--seed {part} counts backwards", hint=f"--seed {last}-{first}")
    # One more than allowed is enough to be refused.
    return list(range(first, min(last, first + MAX_SEEDS) + 1))


def step_cache(text: str) -> StepCacheChoice:
    """Read `none`, `teacache`, `teacache:0.1` and the like."""
    kind, found, threshold = text.strip().lower().partition(":")
    if kind not in CACHES:
        raise InvalidRequestError(
            f"unknown cache {text!r}", hint=f"the caches are: {', '.join(CACHES)}"
        )
    if not found:
        return StepCacheChoice(kind)
    if kind == "none":
        raise InvalidRequestError("--cache none has no threshold", hint="--cache none")
    try:
        return StepCacheChoice(kind, float(threshold))
    except ValueError:
        raise InvalidRequestError(
            f"--cache takes a number after the colon, got {text!r}", hint="--cache teacache:0.1"
        ) from None


def lora(text: str) -> LoraChoice:
    """Read `NAME`, `PATH` or either with a weight, as in `style.safetensors:0.5`."""
    text = text.strip()
    name, colon, weight = text.rpartition(":")
    # The colon of a drive, or of the name of a file.
    if colon and re.search(r"[\\/]|\.safetensors$", weight, re.IGNORECASE):
        name, colon = "", ""
    if not colon:
        name, weight = text, "1"
    try:
        choice = LoraChoice(name.strip(), float(weight))
    except ValueError:
        raise InvalidRequestError(
            f"--lora takes a number after the colon, got {text!r}", hint="--lora NAME:0.8"
        ) from None
    if not choice.name:
        raise InvalidRequestError(
            f"--lora takes a name or a file, got {text!r}", hint="--lora style.safetensors:0.8"
        )
    return choice


def loras(text: str) -> Loras:
    """Read several LoRAs, parted by commas, where only one text has room."""
    return joined_loras(map(lora, text.split(",")))


def joined_loras(choices: Iterable[LoraChoice]) -> Loras:
    """The LoRAs together; `none`, on its own, is none of them.

    Raises:
        InvalidRequestError: `none` beside others.
    """
    found = Loras(choices)
    if not any(choice.name == NO_LORA for choice in found):
        return found
    if len(found) > 1:
        raise InvalidRequestError(f"--lora {NO_LORA} stands alone, got {found}")
    return Loras()


def dtype(text: str) -> str:
    """A precision by its torch name, also given as bf16, fp16 or fp32."""
    return _DTYPE_ALIASES.get(text, text)


def switch(flag: str) -> Callable[[str], bool]:
    """A reader of yes and no whose refusal names `flag`."""

    def read(text: str) -> bool:
        word = text.strip().lower()
        if word not in (*_TRUE, *_FALSE):
            raise InvalidRequestError(f"{flag} takes true or false, got {text!r}")
        return word in _TRUE

    return read


def memory(flag: str) -> Callable[[str], MemorySize]:
    """A reader of amounts of memory in bytes, as in `12`, `12GB` or `11.5G`, naming `flag`."""

    def read(text: str) -> MemorySize:
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,9})?)\s*([gGmM]?)(?:i?[bB])?", text.strip())
        if match is None:
            raise InvalidRequestError(
                f"{flag} takes an amount of memory, got {text!r}",
                hint=f"{flag} 12, {flag} 12GB or {flag} 900MB",
            )
        # Cards are sold in gigabytes, and a bare number means those.
        return MemorySize(round(float(match[1]) * (10**6 if match[2] in ("m", "M") else 10**9)))

    return read


def prompt_text(text: str) -> str:
    """The text itself, or what is in the file after an `@`."""
    if not text.startswith("@"):
        return text
    path = Path(text[1:])
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise InvalidRequestError(
            f"the prompt file {text[1:]!r} cannot be read: {error.strerror}",
            hint="after @ comes a text file; leave the @ out to write the prompt itself",
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the prompt file {text[1:]!r} is not UTF-8 text") from error


def _plain(text: str) -> str:
    return text


@dataclass(frozen=True, slots=True)
class Dial:
    """One dial.

    Attributes:
        name: the flag without its dashes; also the key in configuration files and batches.
        field: the name by which requests, cards and styles know it.
        read: from a written value to the value.
        short: the letter of its short flag, or empty.
        is_switch: its flag may stand without a value, or as `--no-NAME`.
    """

    name: str
    field: str
    read: Callable[[str], Any]
    short: str = ""
    is_switch: bool = False

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "OSP_" + self.name.upper().replace("-", "_")


DIALS: Mapping[str, Dial] = {
    dial.name: dial
    for dial in (
        Dial("prompt", "prompt", prompt_text),
        Dial("negative-prompt", "negative_prompt", prompt_text, short="n"),
        Dial("style", "style", _plain, short="s"),
        Dial("output", "output", _plain, short="o"),
        Dial("size", "size", size),
        Dial("frames", "num_frames", whole_number("--frames"), short="f"),
        Dial("seconds", "seconds", number("--seconds"), short="t"),
        Dial("fps", "fps", whole_number("--fps")),
        Dial("steps", "num_inference_steps", whole_number("--steps")),
        Dial("cfg", "guidance_scale", number("--cfg"), short="g"),
        Dial("shift", "shift", number("--shift")),
        Dial("sampler", "sampler", _plain),
        Dial("cutoff", "cutoff", cutoff),
        Dial("strength", "strength", number("--strength")),
        Dial("seed", "seed", seeds),
        Dial("count", "count", whole_number("--count"), short="c"),
        Dial("lora", "loras", loras, short="l"),
        Dial("cache", "cache", step_cache),
        Dial("cache-start", "cache_start", whole_number("--cache-start")),
        Dial("preview", "preview", _plain),
        Dial("metadata", "metadata", switch("--metadata"), is_switch=True),
        Dial("model", "model", _plain, short="m"),
        Dial("device", "device", _plain),
        Dial("dtype", "dtype", dtype),
        Dial("offload", "offload", _plain),
        Dial("quant", "quant", _plain),
        Dial("attention", "attention", _plain),
        Dial("vae-tiling", "vae_tiling", switch("--vae-tiling"), is_switch=True),
        Dial("compile", "compile", switch("--compile"), is_switch=True),
        Dial("gpus", "gpus", whole_number("--gpus")),
        Dial("max-vram", "max_vram", memory("--max-vram")),
        Dial("max-ram", "max_ram", memory("--max-ram")),
    )
}

# The letters of short flags, and the names that they stand for.
SHORT_NAMES: Mapping[str, str] = {dial.short: dial.name for dial in DIALS.values() if dial.short}


def read_value(name: str, value: object, origin: str) -> Any:
    """The value of the dial `name` as it stands in a file: a string, number, boolean or list.

    Args:
        name: of one of `DIALS`.
        value: as TOML or JSON gave it.
        origin: the place, for the error message.

    Raises:
        InvalidRequestError: the value cannot be read; the message names the place.
    """
    read = DIALS[name].read
    match value:
        case list() if name == "lora" and all(isinstance(item, str) for item in value):
            # One each, so that a file may have a comma in its name.
            text, read = "", lambda _: joined_loras(map(lora, value))
        case int() if not isinstance(value, bool) and abs(value) >= 10**_MAX_DIGITS:
            # Too long even to be shown.
            raise InvalidRequestError(f"{origin}: {name} takes at most {_MAX_DIGITS} digits")
        case bool():
            text = "true" if value else "false"
        case str() | int() | float():
            text = str(value)
        case [int() | float(), *_] if name == "size":
            text = "x".join(map(str, value))
        case [int() | float(), *_] if name == "cutoff":
            text = ":".join(map(str, value))
        case [int(), *_] if name == "seed":
            text = ",".join(map(str, value))
        case _:
            raise InvalidRequestError(f"{origin}: {name} takes one value, got {value!r}")
    try:
        return read(text)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{origin}: {error.message}", hint=error.hint) from None


def as_text(value: object) -> str:
    """A dial's value as it would be written in a file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, list):
        return ",".join(map(as_text, value))
    return str(value)
