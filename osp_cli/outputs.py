"""Where a video goes: names filled from a template, and the kinds of output there are."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from osp_cli.errors import InvalidRequestError

OUTPUT_TEMPLATE = "{name}-{style}-{seed}.mp4"
BATCH_TEMPLATE = "{name}-{n}-{style}-{seed}.mp4"
OUTPUT_EXTENSIONS = (".mp4", ".gif", ".webp", ".png")
STDOUT = Path("-")
LATENTS_SUFFIX = ".latents.safetensors"
STATE_SUFFIX = ".state.safetensors"
# What a stream is recorded as.
STREAM_EXTENSIONS = (".mp4", ".mkv")

# A name has 255 bytes on common file systems; the sidecar's and the latents' are longer.
_MAX_NAME_BYTES = 230
_FRAME_NUMBER = re.compile(r"%(0\d{1,2})?d")
# Names that Windows keeps for devices, whatever their extension.
_DEVICE_NAMES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)\s*(\.|$)")


def expand_output(
    template: str,
    *,
    image: Path | None,
    prompt: str,
    style: str | None,
    seed: int | str,
    number: str = "",
) -> Path:
    """Fill `{name}`, `{style}`, `{seed}` and `{n}`, the number in a batch, in a path.

    `{name}` is the picture's, or made of the prompt's first words. Without a style its
    field disappears together with the separator before it, or after it at the start of a
    name: `{name}-{style}-{seed}.mp4` becomes `cat-7.mp4`. A folder, told by the separator at its
    end or by being there, gets a file of the usual name; `-` is stdout and stays.

    Raises:
        InvalidRequestError: an unknown field.
    """
    if template == str(STDOUT):
        return STDOUT
    # Unlike the method of paths, this takes any text for a name.
    if names_folder(template) or os.path.isdir(template):  # noqa: PTH112
        template = str(Path(template) / (BATCH_TEMPLATE if number else OUTPUT_TEMPLATE))
    fields = {
        "name": _name_of(image, prompt),
        # A weight's colon is no letter of a file name on Windows.
        "style": (style or "").replace("..", "-to-").replace(":", "-"),
        "seed": str(seed),
        "n": number or "1",
    }

    def fill(match: re.Match[str]) -> str:
        field = match[1]
        if field not in fields:
            raise InvalidRequestError(
                f"--output knows no field {{{field}}}",
                hint=f"the fields are: {', '.join(f'{{{name}}}' for name in fields)}",
            )
        return fields[field]

    def fill_part(part: str) -> str:
        if not style:
            part = re.sub(r"^\{style\}[-_ ]?|[-_ ]?\{style\}", "", part)
        return re.sub(r"\{([^{}]*)\}", fill, part)

    return Path(*filter(None, map(fill_part, Path(template).parts)))


def names_folder(template: str) -> bool:
    """Whether an output says by the separator at its end that it is a folder."""
    return template.endswith(("/", os.sep))


def check_output_name(output: Path) -> None:
    """Refuse a name that says no known kind of output, or is too long for a file system.

    Raises:
        InvalidRequestError: with the nearest name that would do.
    """
    if output == STDOUT:
        return
    if not is_possible_path(output):
        raise InvalidRequestError(f"--output is no possible file name: {str(output)!r}")
    extension = output.suffix.lower()
    if extension not in OUTPUT_EXTENSIONS:
        if extension or not output.name:
            got = f"ends in {extension!r}"
            suffix = ".png" if "%" in output.name else ".mp4"
            hint = f"--output {output.with_suffix(suffix) if output.name else 'clip.mp4'}"
        else:
            got = "has no extension"
            hint = f"--output {output}.mp4, or --output {output}/ in a folder"
        raise InvalidRequestError(
            f"--output must end in {', '.join(OUTPUT_EXTENSIONS[:-1])} or /%04d.png, "
            f"but {str(output)!r} {got}",
            hint=hint,
        )
    if extension == ".png" and (
        not _FRAME_NUMBER.search(output.name) or output.parent in (Path(), Path("/"))
    ):
        raise InvalidRequestError(
            f"a video is many pictures: {str(output)!r} must name a folder and number them",
            hint=f"--output {output.with_suffix('')}/%04d.png",
        )
    if len(os.fsencode(output.name)) > _MAX_NAME_BYTES:
        raise InvalidRequestError(
            f"the output's name is longer than {_MAX_NAME_BYTES} bytes: {output.name!r}",
            hint="choose a shorter one with --output",
        )


def takes_sound(output: Path) -> bool:
    """Whether an output can hold sound: an MP4, in a file or on stdout."""
    return output == STDOUT or output.suffix.lower() == ".mp4"


def is_possible_path(path: Path) -> bool:
    """Whether any file could have this name; text out of a file may be no such thing."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def latents_path(output: Path) -> Path:
    """Where the latents of a video lie until it is whole: `clip.mp4` -> `clip.latents.safetensors`.

    Those of a folder of frames lie beside the folder.
    """
    whole = output.parent if output.suffix.lower() == ".png" else output.with_suffix("")
    return whole.with_name(whole.name + LATENTS_SUFFIX)


def windows_folder(output: Path) -> Path:
    """Where the windows of a long video lie until it is whole: `clip.mp4` -> `clip.latents`.

    Those of a folder of frames lie beside the folder.
    """
    whole = latents_path(output)
    return whole.with_name(whole.name.removesuffix(".safetensors"))


def output_of_latents(latents: Path) -> Path:
    """The video that `latents_path` belongs to: beside it, an MP4."""
    return latents.with_name(latents.name.removesuffix(LATENTS_SUFFIX) + ".mp4")


def preview_path(output: Path) -> Path:
    """Where the preview of a video lies while it is made: `clip.mp4` -> `clip.preview.png`."""
    return latents_path(output).with_name(
        latents_path(output).name.removesuffix(LATENTS_SUFFIX) + ".preview.png"
    )


def sheet_path(outputs: Sequence[Path]) -> Path:
    """Where the contact sheet of these videos goes: beside them, under what their names share."""
    names = [latents_path(output).name.removesuffix(LATENTS_SUFFIX) for output in outputs]
    # Letter by letter is meant.
    common = os.path.commonprefix(names).rstrip("-_ .")  # noqa: RUF071
    if len(names) > 1:
        # Seeds may begin with the same digits.
        common = common.rstrip("0123456789").rstrip("-_ .")
    return latents_path(outputs[0]).with_name(f"{common or 'seeds'}.contact.png")


def _name_of(image: Path | None, prompt: str) -> str:
    if image is None:
        name = _slug(prompt)
    elif image == Path("-"):
        name = "stdin"
    else:
        name = image.stem
    return f"clip-{name}" if _DEVICE_NAMES.match(name) else name


def _slug(prompt: str) -> str:
    """A short file name made of a prompt's first words."""
    words = re.findall(r"\w+", prompt.lower())
    return "-".join(words)[:40].strip("-") or "clip"
