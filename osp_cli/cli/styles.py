"""`osp styles`: what `--style` takes, as a list, one of them whole, or a page of pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osp_cli.cli import console
from osp_cli.cli.options import DebugOpt, JsonOpt, QuietOpt
from osp_cli.errors import InvalidRequestError

if TYPE_CHECKING:
    from osp_cli.registry import StylePreset

EXAMPLES = """\
\b
Examples:
  osp styles
  osp styles ghibli
  osp styles --gallery styles.html
  osp styles --gallery mine.html --image photo.jpg
"""

# Letters of a picture in the list, and of a card with its text.
_PICTURE = (24, 7)
_CARD = 58

NameArg = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="Show one style whole: its name, or its file"),
]
GalleryOpt = Annotated[
    str | None,
    typer.Option("--gallery", metavar="PAGE.html", help="Write a page with a picture of each"),
]
PhotoOpt = Annotated[
    str | None,
    typer.Option("--image", metavar="PHOTO", help="Make the page's pictures of this photo"),
]
ReplaceOpt = Annotated[
    bool, typer.Option("--overwrite", "-y", help="Replace an existing page", show_default=False)
]


def styles(
    name: NameArg = None,
    gallery: GalleryOpt = None,
    image: PhotoOpt = None,
    overwrite: ReplaceOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """List the styles."""
    if gallery is None and (image is not None or overwrite):
        given = "--image" if image is not None else "--overwrite"
        raise InvalidRequestError(f"{given} is for --gallery", hint="--gallery styles.html")
    if gallery is not None and as_json:
        raise InvalidRequestError("--gallery writes a page, --json a list: ask for one of them")
    found = _known(quiet=quiet) if name is None else [_one(name)]
    if gallery is not None:
        _write_page(Path(gallery), found, image, overwrite=overwrite, quiet=quiet)
    elif as_json:
        for preset in found:
            console.write_json(_as_json(preset))
    elif name is not None:
        _show_whole(found[0])
    else:
        _show_list(found)


def _known(*, quiet: bool) -> list[StylePreset]:
    """All styles that are known by name; what is wrong with a file of an own one is said."""
    from osp_cli.own_styles import own_styles
    from osp_cli.registry import style_presets

    found = list(style_presets().values())
    for own in own_styles():
        if not isinstance(own, InvalidRequestError):
            found.append(own)
        elif not quiet:
            console.say(f"note: {own.message}")
    return found


def _one(name: str) -> StylePreset:
    from osp_cli.own_styles import find_any_style, known_name

    return find_any_style(known_name(name.strip()))


def _picture_of(preset: StylePreset) -> Path | None:
    """The small picture of a style, where there is one."""
    from osp_cli.registry import presets_dir

    path = presets_dir() / "gallery" / "styles" / f"{preset.name}.jpg"
    return None if preset.is_own or not path.is_file() else path


def _as_json(preset: StylePreset) -> dict[str, Any]:
    from osp_cli.style_adapters import adapter_path, trained_from

    picture = _picture_of(preset)
    path = adapter_path(preset) if preset.adapter else None
    return {
        "name": preset.name,
        "title": preset.title,
        "description": preset.description,
        "origin": preset.origin,
        "prompt_template": preset.prompt_template,
        "short": preset.short,
        "negative_prompt": preset.negative_prompt,
        "sampler": {field: _plain(value) for field, value in preset.sampler.items()},
        "adapter": preset.adapter,
        "adapter_weight": preset.adapter_weight,
        "adapter_file": path,
        "trained": trained_from(path) if path is not None else {},
        "own": preset.is_own,
        "file": None if preset.source is None else str(preset.source),
        "picture": None if picture is None else str(picture),
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


# --- the list ---------------------------------------------------------------------------------


def _show_list(presets: Sequence[StylePreset]) -> None:
    from osp_cli.cli.terminal_pictures import can_show_pictures

    if can_show_pictures() and console.columns() >= _CARD:
        for line in _cards(presets, console.columns()):
            console.write_line(line)
    else:
        rows: list[tuple[str, ...]] = [(p.name, _description(p)) for p in presets]
        console.write_table(("style", "looks like"), rows)
    if console.is_terminal(sys.stdout):
        from osp_cli.own_styles import styles_home

        console.write_line("half of one: --style ghibli:0.5")
        console.write_line("a mixture: --style ink+watercolor")
        console.write_line("from one to another: --style ghibli..ink")
        console.write_line(f"your own: a file NAME.toml in {styles_home()}")


def _description(preset: StylePreset) -> str:
    own = f"own, {preset.source}" if preset.is_own else ""
    return " - ".join(filter(None, [preset.description, own]))


def _cards(presets: Sequence[StylePreset], columns: int) -> Iterator[str]:
    """Pictures with their texts beside them, as many in a row as there is room for."""
    per_row = columns // _CARD
    for start in range(0, len(presets), per_row):
        cards = [_card(preset) for preset in presets[start : start + per_row]]
        yield from ("".join(line).rstrip(" ") for line in zip(*cards, strict=True))
        yield ""


def _card(preset: StylePreset) -> list[str]:
    """The lines of one card, each of the same width."""
    import textwrap

    from osp_cli.cli.terminal_pictures import picture_lines

    width, height = _PICTURE
    path = _picture_of(preset)
    try:
        picture = [] if path is None else picture_lines(path, width, height)
    except OSError:
        # A damaged one is not worth a word; the style works without it.
        picture = []
    picture = picture or [" " * width] * height
    room = _CARD - width - 4
    texts = textwrap.wrap(console.visible(_description(preset)), room)
    if len(texts) > height - 1:
        texts = [*texts[: height - 2], f"{texts[height - 2][: room - 3]}..."]
    lines = [f"{console.visible(preset.name)[:room]:<{room}}", *(f"{t:<{room}}" for t in texts)]
    lines += [" " * room] * (height - len(lines))
    lines[0] = f"\x1b[1m{lines[0]}\x1b[0m"
    return [f"{left}  {right}  " for left, right in zip(picture, lines, strict=True)]


# --- one of them ------------------------------------------------------------------------------


def _show_whole(preset: StylePreset) -> None:
    from osp_cli.cli.terminal_pictures import can_show_pictures, picture_lines

    path = _picture_of(preset)
    if path is not None and can_show_pictures() and console.columns() >= _CARD:
        for line in picture_lines(path, 48, 13):
            console.write_line(line)
    folds = console.is_terminal(sys.stdout)
    for name, text in _rows(preset).items():
        if folds:
            console.write_row(f"{name:<9} ", text)
        else:
            console.write_line(f"{name:<9} {console.visible(text)}")


def _rows(preset: StylePreset) -> dict[str, str]:
    sampler = ", ".join(f"{field} {_plain(value)}" for field, value in preset.sampler.items())
    rows = {
        "name": preset.name,
        "title": preset.title,
        "about": preset.description,
        "prompt": preset.prompt_template,
        "short": preset.short,
        "negative": preset.negative_prompt,
        "sampler": sampler,
        "adapter": _adapter_text(preset),
        "trained": _trained_text(preset),
        "from": preset.origin if preset.source is None else str(preset.source),
        "use": f"--style {preset.reference or preset.name}",
    }
    return {name: text for name, text in rows.items() if text}


def _adapter_text(preset: StylePreset) -> str:
    from osp_cli.style_adapters import adapter_path

    if not preset.adapter:
        return "none, the prompt alone makes it"
    path = adapter_path(preset)
    place = "not installed, the prompt alone makes it" if path is None else path
    named = f"{preset.adapter}, weight {preset.adapter_weight:g}"
    # A LoRA that is a style by itself is called by its path already.
    return named if str(place) == preset.adapter else f"{named}: {place}"


def _trained_text(preset: StylePreset) -> str:
    from osp_cli.style_adapters import adapter_path, trained_from

    path = adapter_path(preset) if preset.adapter else None
    told = trained_from(path) if path is not None else {}
    words = {"base": "on {}", "steps": "{} steps", "companion": "with {}"}
    return ", ".join(words[what].format(text) for what, text in told.items())


# --- the page ---------------------------------------------------------------------------------


def _write_page(
    page: Path, presets: Sequence[StylePreset], photo: str | None, *, overwrite: bool, quiet: bool
) -> None:
    """Write the page, whole or not at all.

    Raises:
        InvalidRequestError: it is there already, or its name is no page's.
        UnreadableMediaError: the photo is no picture.
    """
    from osp_cli.cli.style_page import Card, style_page
    from osp_cli.media.files import atomic_output, check_writable

    if page.suffix.lower() not in (".html", ".htm"):
        raise InvalidRequestError(
            f"--gallery writes a page, and {str(page)!r} does not end in .html",
            hint=f"--gallery {page.with_suffix('.html') if page.name else 'styles.html'}",
        )
    check_writable(page, overwrite=overwrite)
    if photo is None:
        of = "a lake"
        told = "A photo of a lake in each style, made by the built-in osp-mini. "
        pictures = {
            preset.name: path.read_bytes() for preset in presets if (path := _picture_of(preset))
        }
    else:
        of = Path(photo).name
        told = f"{of} in each style, made by the built-in osp-mini. "
        pictures = _made_of(Path(photo), presets, quiet=quiet)
    told += "Larger models know the styles by more words. Commands can be copied."
    cards = [
        Card(
            # A file's style is known by its path.
            name=preset.reference or preset.name,
            title=preset.title,
            description=preset.description,
            picture=pictures.get(preset.name),
            alt=f"{of} in the style {preset.title}",
            is_own=preset.is_own,
        )
        for preset in presets
    ]
    text = style_page(cards, photo=photo or "photo.jpg", told=told)
    with atomic_output(page, overwrite=overwrite) as part:
        part.write_text(text, encoding="utf-8")
    console.write_line(str(page))


def _made_of(photo: Path, presets: Sequence[StylePreset], *, quiet: bool) -> dict[str, bytes]:
    """The photo in each style, by name."""
    from osp_cli.media.image import load_image
    from osp_cli.runtime.start_up import light_imports

    # Refused before torch is there.
    load_image(photo)
    with light_imports(for_good=True):
        from osp_cli.runtime.style_pictures import style_pictures

    pictures = {}
    names = [preset.reference or preset.name for preset in presets]
    made = style_pictures(photo, names)
    for number, (preset, (_, data)) in enumerate(zip(presets, made, strict=True), 1):
        pictures[preset.name] = data
        if not quiet:
            console.say(f"{number} of {len(presets)}: {preset.name}")
    return pictures
