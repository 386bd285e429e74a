"""Settings that lie around: variables of the environment and configuration files.

A file is TOML; its keys are the long flags without dashes. What stands at the top holds for every
command, what stands in a table named after a command holds for that one and wins:

    model = "osp-mini"
    [generate]
    steps = 12
    size = "448x256"
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osp_cli.dials import DIALS, canonical_name, read_value
from osp_cli.errors import InvalidRequestError
from osp_cli.toml_files import line_of, read_toml

COMMANDS = ("generate", "stylize", "extend")
# Its table has keys of its own.
TRAINING = "train-lora"
LOCAL_CONFIG = Path("osp.toml")

# Every dial's own, and those that are read elsewhere.
VARIABLES: Mapping[str, str] = {dial.variable: dial.name for dial in DIALS.values()}
OTHER_VARIABLES = ("OSP_HOME", "OSP_OFFLINE")


@dataclass(frozen=True, slots=True)
class Layer:
    """Values of one origin.

    Attributes:
        origin: what a user would call it: `flag`, `OSP_STEPS`, `./osp.toml`.
        values: by field name of the request (`Dial.field`).
        origins: of single values, where they differ.
    """

    origin: str
    values: Mapping[str, Any]
    origins: Mapping[str, str] | None = None

    def origin_of(self, field: str) -> str:
        """Where the value of `field` comes from."""
        return (self.origins or {}).get(field, self.origin)


def user_config() -> Path:
    """The user's own configuration file; it need not be there."""
    import platformdirs  # not needed by most commands

    return Path(platformdirs.user_config_dir("osp", appauthor=False)) / "config.toml"


def config_files(explicit: Path | None = None) -> list[tuple[str, Path]]:
    """The configuration files that are there, strongest first, with what to call them.

    Raises:
        InvalidRequestError: the file named by the user is not there.
    """
    found = [] if explicit is None else [(str(explicit), explicit)]
    # Unlike the method of paths, this takes any text for a name.
    if explicit is not None and not os.path.isfile(explicit):  # noqa: PTH113
        raise InvalidRequestError(f"--config {explicit} is no file", hint="check the name")
    if LOCAL_CONFIG.is_file():
        found.append((f"./{LOCAL_CONFIG}", LOCAL_CONFIG))
    if (user := user_config()).is_file():
        found.append((str(user), user))
    return found


def stored_layers(command: str, explicit: Path | None = None) -> list[Layer]:
    """Variables and configuration files as layers, strongest first.

    Raises:
        InvalidRequestError: a file cannot be read, or holds a key or a value that makes no sense.
    """
    files = config_files(explicit)
    environment = environment_layer(os.environ)
    if command == TRAINING:
        from osp_cli.train_settings import shared_values

        # Seeds and cutoffs of clips are of other kinds.
        environment = replace(environment, values=shared_values(environment.values))
    return [environment, *(_file_layer(command, *file) for file in files)]


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """The dials that are set by `OSP_*` variables; an empty one counts as not set.

    Raises:
        InvalidRequestError: a value that cannot be read; the message names the variable.
    """
    values, origins = {}, {}
    for variable, name in VARIABLES.items():
        if text := environ.get(variable, ""):
            field = DIALS[name].field
            values[field] = read_value(name, text, variable)
            origins[field] = variable
    return Layer("environment", values, origins)


def read_config(path: Path, command: str, called: str | None = None) -> dict[str, Any]:
    """What a configuration file sets for `command`, by field name.

    Raises:
        InvalidRequestError: no readable TOML, or an unknown key or value; file and line are named.
    """
    called = called or str(path)
    text, tables = read_toml(path, called)
    own = {name: tables.pop(name) for name in COMMANDS if isinstance(tables.get(name), dict)}
    training = tables.pop(TRAINING, {}) if isinstance(tables.get(TRAINING), dict) else {}
    values: dict[str, Any] = {}
    # All of it is read, so that a mistake in another command's table shows early too.
    for table, entries in {"": tables, **own}.items():
        found = _read_table(entries, text, called, table)
        if table == command and {"num_frames", "seconds"} & found.keys():
            # One length, by whatever name the command's own table says it.
            values = {name: values[name] for name in values.keys() - {"num_frames", "seconds"}}
        if table in ("", command):
            values.update(found)
    return values if command != TRAINING else _of_training(values, training, called)


def _of_training(values: dict[str, Any], table: dict[str, Any], called: str) -> dict[str, Any]:
    from osp_cli.train_settings import read_training_table, shared_values

    return shared_values(values) | read_training_table(table, f"{called} [{TRAINING}]")


def _file_layer(command: str, called: str, path: Path) -> Layer:
    return Layer(called, read_config(path, command, called))


def _read_table(entries: dict[str, Any], text: str, called: str, table: str) -> dict[str, Any]:
    values = {}
    for key, value in entries.items():
        name = canonical_name(key.replace("_", "-"))
        place = f"{called}{line_of(text, key, table)}"
        if name not in DIALS:
            from osp_cli.registry import nearest

            guesses = nearest(name, DIALS)
            raise InvalidRequestError(
                f"{place}: unknown key {key!r}",
                hint=f"did you mean {' or '.join(guesses)}?"
                if guesses
                else f"the keys are: {', '.join(DIALS)}",
            )
        values[DIALS[name].field] = read_value(name, value, place)
    return values
