"""Styles of the user's own, beside the presets: a TOML file, or a LoRA that says it is a style.

A file of three lines is a style:

    [prompt]
    template = "Stop-motion animation with figures of felt. {prompt}"

Its name is the file's. The folder `styles` beside the configuration is looked through for names; a
file anywhere is named by its path. Nothing is kept between two readings but what did not change.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from osp_cli.dials import ALIASES, DIALS, read_value
from osp_cli.errors import InvalidRequestError
from osp_cli.loras import SUFFIX as LORA_SUFFIX
from osp_cli.loras import installed_loras
from osp_cli.registry import SAMPLER_FIELDS, StylePreset, nearest, style_presets, unknown_name
from osp_cli.toml_files import line_of, read_toml

SUFFIX = ".toml"
# What a name may be: it stands between the signs of a mixture.
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_WORDS = ("all", "none")
_KEYS: Mapping[str, type] = {
    "name": str,
    "title": str,
    "description": str,
    "adapter": str,
    "adapter_weight": float,
    "screen": bool,
    "prompt": dict,
    "sampler": dict,
}
_PROMPT_KEYS: Mapping[str, type] = {"template": str, "short": str, "negative": str}
_WORD_OF = {str: "a string", float: "a number", bool: "true or false", dict: "a table"}
_MAX_HEADER_BYTES = 16 * 2**20
_ORIGIN_FILE, _ORIGIN_LORA, _ORIGIN_RECIPE = "own style", "own LoRA", "recipe"
# The dials a style may set, by the names of flags.
_SAMPLER_FLAGS = [dial.name for dial in DIALS.values() if dial.field in SAMPLER_FIELDS]


def styles_home() -> Path:
    """The folder of own styles: `$OSP_HOME/styles` if set, else beside the user's configuration."""
    if home := os.environ.get("OSP_HOME"):
        return Path(home).expanduser() / "styles"
    import platformdirs  # not needed by most commands

    return Path(platformdirs.user_config_dir("osp", appauthor=False)) / "styles"


def is_path(name: str) -> bool:
    """Whether the name of a style is a file's."""
    return "/" in name or "\\" in name or name.lower().endswith(SUFFIX)


def own_names() -> list[str]:
    """The names by which own styles are known, in alphabetical order; no file is judged."""
    return sorted({*_files(), *_lora_styles()})


def own_styles() -> Iterator[StylePreset | InvalidRequestError]:
    """All own styles that are known by name; an error for a file that cannot be used."""
    files, loras = _files(), _lora_styles()
    for name in own_names():
        try:
            yield read_style_file(files[name]) if name in files else loras[name]
        except InvalidRequestError as error:
            yield error


def is_known(name: str) -> bool:
    """Whether there is a style of this name, in this spelling."""
    return name in style_presets() or name in own_names()


def known_name(name: str) -> str:
    """The spelling of a style's name, where there is such a style; else what was typed."""
    if is_path(name):
        return name
    spelled = _spelled(name)
    return spelled if is_known(spelled) else name


def find_any_style(name: str, kept: Mapping[str, StylePreset] | None = None) -> StylePreset:
    """A preset, an own style, or the style of a file.

    Args:
        name: in the spelling of `known_name`.
        kept: styles of a recipe, for those that are here no more.

    Raises:
        InvalidRequestError: there is none, or its file makes no sense.
    """
    if name in style_presets():
        return style_presets()[name]
    if is_path(name):
        return read_style_file(Path(os.path.expanduser(name)), reference=name)  # noqa: PTH111
    if (path := _files().get(name)) is not None:
        return read_style_file(path)
    if (preset := _lora_styles().get(name)) is not None:
        return preset
    if kept and name in kept:
        return kept[name]
    error = unknown_name("style", name, [*style_presets(), *own_names()])
    # Unlike the method of paths, this takes any text for a name.
    if os.path.isfile(f"{name}{SUFFIX}"):  # noqa: PTH113
        raise InvalidRequestError(error.message, hint=f"--style ./{name}{SUFFIX} is the file here")
    raise error


def read_style_file(path: Path, reference: str = "") -> StylePreset:
    """The style of a TOML file.

    Args:
        path: of the file.
        reference: what `--style` was given for it; empty for its name.

    Raises:
        InvalidRequestError: it is no readable TOML, or says something that makes no sense; file,
            line and key are named.
    """
    # Unlike the methods of paths, this takes any text for a name.
    if not os.path.isfile(path):  # noqa: PTH113
        raise InvalidRequestError(
            f"there is no style file {str(path)!r}",
            hint=f"the styles are: {', '.join([*style_presets(), *own_names()])}",
        )
    stat = path.stat()
    return _read_once(path, reference, stat.st_mtime_ns, stat.st_size)


def styles_to_recipe(presets: list[StylePreset]) -> dict[str, dict[str, str]]:
    """The words of own styles by name, so that a clip can be made again without their files."""
    return {
        preset.name: {"template": preset.prompt_template, "short": preset.short}
        for preset in presets
        if preset.is_own
    }


def styles_of_recipe(recipe: Mapping[str, Any] | None) -> dict[str, StylePreset]:
    """What `styles_to_recipe` has written; what was tampered with is left out.

    Their negative prompts and samplers stand in the recipe as what they led to.
    """
    own = (recipe or {}).get("own_styles")
    found = {}
    for name, words in own.items() if isinstance(own, dict) else ():
        match words:
            case {"template": str(template), "short": str(short)} if "{prompt}" in template:
                found[name] = _preset(name, template, short=short, origin=_ORIGIN_RECIPE)
    return found


@lru_cache(maxsize=256)
def _read_once(path: Path, reference: str, _changed: int, _size: int) -> StylePreset:
    text, tables = read_toml(path)
    file = _File(path, text)
    top = file.values(tables, _KEYS, "")
    prompt = file.values(top.pop("prompt", {}), _PROMPT_KEYS, "prompt")
    sampler = file.sampler(top.pop("sampler", {}))
    name = _spelled(path.stem)
    if name in _WORDS:
        raise InvalidRequestError(
            f"{path}: {name} is a word of --style, no name for one",
            hint=f"rename the file, for example to my-style{SUFFIX}",
        )
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{path}: a style's name is of letters, digits and hyphens, not {path.stem!r}",
            hint=f"rename the file, for example to my-style{SUFFIX}",
        )
    if name in style_presets():
        raise InvalidRequestError(
            f"{path}: {name} is the name of a style that osp has already",
            hint=f"rename the file, for example to my-{name}{SUFFIX}",
        )
    if (said := top.pop("name", name)) != name:
        raise file.refuse("name", "", f"must be the file's name {name!r}, got {said!r}")
    if "template" not in prompt:
        raise InvalidRequestError(
            f"{path}: prompt.template is missing",
            hint='[prompt] template = "Felt puppets, stop motion. {prompt}" is all that is needed',
        )
    if prompt["template"].count("{prompt}") != 1:
        raise file.refuse("template", "prompt", "must contain {prompt} once")
    return _preset(
        name,
        prompt["template"],
        short=prompt.get("short", ""),
        negative=prompt.get("negative", ""),
        sampler=sampler,
        origin=_ORIGIN_FILE,
        source=path,
        reference=reference,
        **top,
    )


class _File:
    """A style's file being read; every problem is reported with its line."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._text = path, text

    def refuse(self, key: str, table: str, problem: str, hint: str = "") -> InvalidRequestError:
        name = f"{table}.{key}" if table else key
        return InvalidRequestError(f"{self.place(key, table)}: {name} {problem}", hint=hint or None)

    def place(self, key: str, table: str) -> str:
        return f"{self._path}{line_of(self._text, key, table)}"

    def values(self, values: dict[str, Any], kinds: Mapping[str, type], table: str) -> Any:
        """The values of a table, each of its kind.

        Raises:
            InvalidRequestError: an unknown key, or a value of another kind.
        """
        found = {}
        for key, value in values.items():
            if key not in kinds:
                raise self._unknown(key, table, list(kinds))
            kind = kinds[key]
            accepted = (int, float) if kind is float else kind
            # bool is an int to Python, not to a reader of TOML.
            if not isinstance(value, accepted) or isinstance(value, bool):
                raise self.refuse(key, table, f"must be {_WORD_OF[kind]}, got {value!r}")
            found[key] = kind(value)
        return found

    def sampler(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values of dials, by field name; they are named as flags are, or as the presets do."""
        fields = {field: dial.name for dial in DIALS.values() if (field := dial.field)}
        found = {}
        for key, value in values.items():
            flag = key.replace("_", "-")
            name = fields.get(key, ALIASES.get(flag, flag))
            if name not in _SAMPLER_FLAGS:
                raise self._unknown(key, "sampler", _SAMPLER_FLAGS)
            found[DIALS[name].field] = read_value(name, value, self.place(key, "sampler"))
        return found

    def _unknown(self, key: str, table: str, known: list[str]) -> InvalidRequestError:
        guesses = nearest(key, known)
        hint = f"did you mean {' or '.join(guesses)}?" if guesses else ""
        inside = f" of [{table}]" if table else ""
        return InvalidRequestError(
            f"{self.place(key, table)}: unknown key {key!r}",
            hint=hint or f"the keys{inside} are: {', '.join(known)}",
        )


def _preset(
    name: str,
    template: str,
    *,
    short: str = "",
    negative: str = "",
    sampler: Mapping[str, Any] | None = None,
    **others: Any,
) -> StylePreset:
    return StylePreset(
        name=name,
        prompt_template=template,
        short=short,
        negative_prompt=negative,
        sampler=dict(sampler or {}),
        is_own=True,
        **{
            "title": name.replace("-", " ").capitalize(),
            "description": "",
            "adapter": "",
            **others,
        },
    )


def _spelled(name: str) -> str:
    return "-".join(name.lower().replace("_", " ").replace("-", " ").split())


def _files() -> dict[str, Path]:
    """The style files in the user's folder, by the name they give."""
    home = styles_home()
    paths = sorted(home.glob(f"*{SUFFIX}")) if home.is_dir() else []
    return {_spelled(path.stem): path for path in paths if path.is_file()}


def _lora_styles() -> dict[str, StylePreset]:
    """The installed LoRAs that say they are styles; a file of the same name goes before them."""
    found: dict[str, StylePreset] = {}
    for installed, path in installed_loras().items():
        stat = path.stat()
        preset = _lora_style(installed, path, stat.st_mtime_ns, stat.st_size)
        # A LoRA may be called as a preset is; it is no style by that name then.
        if preset is not None and preset.name not in style_presets():
            found.setdefault(preset.name, preset)
    return found


@lru_cache(maxsize=256)
def _lora_style(installed: str, path: Path, _changed: int, _size: int) -> StylePreset | None:
    """The style that a LoRA says it is.

    Our own trainer writes `osp.trigger`, the words that call it up, and `osp.style`, a name or a
    JSON object with `name`, `title` and `description`, both once with `_` for the dot; others write
    `modelspec.trigger_phrase` (Stability AI's model metadata standard) beside `modelspec.title` and
    `modelspec.description`.
    """
    told = lora_metadata(path)
    triggers = ("osp.trigger", "osp_trigger", "modelspec.trigger_phrase")
    trigger = next((told[key] for key in triggers if told.get(key)), "")
    style = _style_object(told.get("osp.style") or told.get("osp_style", ""))
    if not trigger and not style:
        return None
    names = [_spelled(style.get("name", "")), _spelled(installed)]
    usable = [name for name in names if _NAME.fullmatch(name) and name not in _WORDS]
    if not usable:
        return None
    # Without words of its own, the LoRA alone makes the style.
    trigger = trigger.replace("{prompt}", "").strip(" ,;:")
    preset = _preset(
        usable[0],
        f"{trigger}, {{prompt}}" if trigger else "{prompt}",
        origin=_ORIGIN_LORA,
        adapter=str(path),
        source=path,
        description=style.get("description") or told.get("modelspec.description", ""),
    )
    title = style.get("title") or told.get("modelspec.title")
    return preset if not title else _titled(preset, title)


def _titled(preset: StylePreset, title: str) -> StylePreset:
    from dataclasses import replace

    return replace(preset, title=title)


def _style_object(text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if isinstance(value, dict):
        return {key: entry for key, entry in value.items() if isinstance(entry, str)}
    return {"name": text} if text else {}


def lora_metadata(path: Path) -> dict[str, str]:
    """The texts in the header of a safetensors file; none where it is damaged.

    Whoever uses the LoRA is told what is wrong with it.
    """
    assert path.suffix.lower() == LORA_SUFFIX
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            header = json.loads(file.read(size) if size <= _MAX_HEADER_BYTES else b"")
    except (OSError, ValueError, RecursionError):
        return {}
    told = header.get("__metadata__") if isinstance(header, dict) else None
    texts = told.items() if isinstance(told, dict) else ()
    return {key: value for key, value in texts if isinstance(value, str)}
