"""From what was typed after `osp train-lora` to its request.

flag > variable > configuration files > the base's recipe (`presets/training/lora-BASE.toml`) >
paper (section 6.4, with `--full` section 5.1) > the program's own default.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from osp_cli.config import Layer
from osp_cli.dials import Dial, Size, dtype, memory, number, size, switch, whole_number
from osp_cli.errors import InvalidRequestError
from osp_cli.registry import ModelSpec, find_model, nearest, presets_dir
from osp_cli.settings import DEFAULT_MODEL, Setting
from osp_cli.train_request import TrainRequest

# Section 6.4 of the paper.
LORA_DEFAULTS: Mapping[str, Any] = {
    "rank": 8,
    "alpha": 4.0,
    "size": Size(512, 512),
    "num_frames": 49,
    "batch_size": 1,
    "learning_rate": 1e-4,
    "weight_decay": 0.03,
    "eps": 1e-10,
    "max_grad_norm": 0.05,
    "epochs": 1,
    "seed": 42,
}
# Section 5.1; the norm at which gradients are clipped is ours, the paper names none.
FULL_DEFAULTS: Mapping[str, Any] = {
    "size": Size(832, 480),
    "num_frames": 49,
    "fps": 16,
    "batch_size": 64,
    "max_steps": 40_000,
    "learning_rate": 2e-5,
    "weight_decay": 0.01,
    "betas": (0.9, 0.999),
    "eps": 1e-15,
    "max_grad_norm": 1.0,
    "ema": 0.9999,
    "caption_drop": 0.1,
    "cutoff": (0.05, 0.95),
}
# Dials of clips that mean the same here, and so count wherever they are stored.
_SHARED = ("model", "device", "gpus", "max_vram", "max_ram")
AUTO_SWAP = "auto"


def _text(text: str) -> str:
    return text


def _texts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|"))


def _pair(flag: str, example: str, separator: str = ":") -> Any:
    def read(text: str) -> tuple[float, float]:
        try:
            low, high = (float(part) for part in text.replace(",", separator).split(separator))
        except ValueError:
            raise InvalidRequestError(
                f"{flag} takes two numbers, got {text!r}", hint=f"{flag} {example}"
            ) from None
        return low, high

    return read


def _swap(text: str) -> int:
    return -1 if text.strip().lower() == AUTO_SWAP else whole_number("--swap-blocks")(text)


TRAIN_DIALS: Mapping[str, Dial] = {
    dial.name: dial
    for dial in (
        Dial("model", "model", _text, short="m"),
        Dial("mode", "mode", _text),
        Dial("condition", "condition", _text),
        Dial("full", "full", switch("--full"), is_switch=True),
        Dial("train-adapter", "train_adapter", switch("--train-adapter"), is_switch=True),
        Dial("trigger", "trigger", _text),
        Dial("rank", "rank", whole_number("--rank")),
        Dial("alpha", "alpha", number("--alpha")),
        Dial("targets", "targets", _text),
        Dial("size", "size", size),
        Dial("frames", "num_frames", whole_number("--frames"), short="f"),
        Dial("fps", "fps", whole_number("--fps")),
        Dial("stride", "stride", whole_number("--stride")),
        Dial("bucket", "bucket", switch("--bucket"), is_switch=True),
        Dial("windows", "windows", whole_number("--windows")),
        Dial("latent-frames", "latent_frames", whole_number("--latent-frames")),
        Dial("epochs", "epochs", whole_number("--epochs")),
        Dial("max-steps", "max_steps", whole_number("--max-steps")),
        Dial("batch-size", "batch_size", whole_number("--batch-size")),
        Dial("accumulate", "accumulate", whole_number("--accumulate")),
        Dial("lr", "learning_rate", number("--lr")),
        Dial("weight-decay", "weight_decay", number("--weight-decay")),
        Dial("betas", "betas", _pair("--betas", "0.9,0.999")),
        Dial("eps", "eps", number("--eps")),
        Dial("max-grad-norm", "max_grad_norm", number("--max-grad-norm")),
        Dial("optimizer", "optimizer", _text),
        Dial("lr-schedule", "lr_schedule", _text),
        Dial("warmup", "warmup", whole_number("--warmup")),
        Dial("ema", "ema", number("--ema")),
        Dial("seed", "seed", whole_number("--seed")),
        Dial("caption-drop", "caption_drop", number("--caption-drop")),
        Dial("cutoff", "cutoff", _pair("--cutoff", "0.05:0.95")),
        Dial("timesteps", "timesteps", _text),
        Dial("sigma-shift", "sigma_shift", number("--sigma-shift")),
        Dial("sigma-power", "sigma_power", number("--sigma-power")),
        Dial("device", "device", _text),
        Dial("dtype", "dtype", dtype),
        Dial("quant", "quant", _text),
        Dial("gpus", "gpus", whole_number("--gpus")),
        Dial("context-parallel", "context_parallel", whole_number("--context-parallel")),
        Dial("max-vram", "max_vram", memory("--max-vram")),
        Dial("max-ram", "max_ram", memory("--max-ram")),
        Dial("grad-checkpoint", "grad_checkpoint", switch("--grad-checkpoint"), is_switch=True),
        Dial("swap-blocks", "swap_blocks", _swap),
        Dial(
            "offload-activations",
            "offload_activations",
            switch("--offload-activations"),
            is_switch=True,
        ),
        Dial("save-every", "save_every", whole_number("--save-every")),
        Dial("keep", "keep", whole_number("--keep")),
        Dial("sample-every", "sample_every", whole_number("--sample-every")),
        Dial("sample-prompt", "sample_prompts", _texts),
        Dial("sample-image", "sample_images", _texts),
        Dial("save-format", "save_format", _text),
        Dial("log", "logs", _texts),
        Dial("cache-dir", "cache_dir", _text),
    )
}


@dataclass(frozen=True, slots=True)
class SettledTraining:
    """The request with the history of its values, by the names of flags."""

    request: TrainRequest
    settings: dict[str, Setting]
    notices: tuple[str, ...]


def settle_training(
    dataset: Path,
    output: Path,
    *,
    layers: Sequence[Layer] = (),
    manner: Mapping[str, Any] | None = None,
    **flags: Any,
) -> SettledTraining:
    """Settle the dials of `osp train-lora` and make its request.

    Args:
        dataset: folder or list of clips.
        output: `--out`: a name, or a folder whose name it is.
        layers: stored values, strongest first.
        manner: fields of the request that no layer but the command line sets.
        flags: by field name of the request, `size` besides; None where not given.

    Raises:
        InvalidRequestError: a value, or two values together, make no sense; the message tells
            where a value that was not typed comes from.
    """
    above = [Layer("flag", flags), *layers]
    model = _first("model", above, Setting(DEFAULT_MODEL, "default"))
    spec = find_model(model.value)
    full = bool(_first("full", above, Setting(False, "default")).value)
    below = [*_recipe_layers(spec, full=full)]
    below.append(Layer("paper", FULL_DEFAULTS if full else LORA_DEFAULTS))
    below.append(Layer("default", _own_defaults(spec)))
    settings = {
        dial.name: _first(dial.field, [*above, *below], Setting(None, "default"))
        for dial in TRAIN_DIALS.values()
    }
    values = {TRAIN_DIALS[name].field: setting.value for name, setting in settings.items()}
    width, height = values.pop("size")
    notices = []
    rounded = -(-(values["num_frames"] - 1) // 4) * 4 + 1
    if rounded != values["num_frames"]:
        notices.append(f"{values['num_frames']} frames became {rounded}: they come as 4k+1")
    values |= {
        "width": width,
        "height": height,
        "num_frames": rounded,
        "cache_dir": None if values["cache_dir"] is None else Path(values["cache_dir"]),
        "sample_images": tuple(Path(path) for path in values["sample_images"]),
    }
    known = {field.name for field in fields(TrainRequest)}
    try:
        request = TrainRequest(
            dataset=dataset,
            name=output.name,
            output=output,
            **{key: value for key, value in values.items() if key in known},
            **(manner or {}),
        )
    except InvalidRequestError as error:
        raise _with_origin(error, settings) from None
    return SettledTraining(request, settings, tuple(notices))


def recipe_path(spec: ModelSpec) -> Path:
    """The recipe of a base, which need not be there; cards of the same weights share theirs."""
    own = presets_dir() / "training" / f"lora-{spec.name}.toml"
    if spec.weights and not own.is_file():
        return own.with_name(f"lora-{spec.weights}.toml")
    return own


def read_training_table(entries: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What a table of a recipe or of a configuration file sets, by field name.

    Raises:
        InvalidRequestError: an unknown key or an unreadable value; the message names the place.
    """
    values: dict[str, Any] = {}
    for key, value in entries.items():
        name = key.replace("_", "-")
        if name not in TRAIN_DIALS:
            guesses = nearest(name, TRAIN_DIALS)
            raise InvalidRequestError(
                f"{place}: unknown key {key!r} of training",
                hint=f"did you mean {' or '.join(guesses)}?"
                if guesses
                else f"the keys are: {', '.join(TRAIN_DIALS)}",
            )
        dial = TRAIN_DIALS[name]
        try:
            values[dial.field] = _read_listed(dial, value)
        except InvalidRequestError as error:
            raise error.at(place) from None
    return values


def shared_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of clips' stored values that hold for training too."""
    return {field: value for field, value in values.items() if field in _SHARED}


def _read_listed(dial: Dial, value: Any) -> Any:
    if isinstance(value, list) and dial.read is _texts and all(isinstance(v, str) for v in value):
        # Each as it is, whatever signs it has.
        return tuple(value)
    return dial.read(_as_text(value))


def _as_text(value: Any) -> str:
    """A TOML value as it would be typed."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ":".join(map(str, value))
    return str(value)


def _recipe_layers(spec: ModelSpec, *, full: bool) -> list[Layer]:
    path = recipe_path(spec)
    if not path.is_file():
        return []
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    name = "full" if full else "lora"
    values = read_training_table(tables.get(name, {}), f"{path.name} [{name}]")
    return [Layer(f"recipe {path.stem}", values)]


def _own_defaults(spec: ModelSpec) -> dict[str, Any]:
    """What neither paper nor recipe says; the values are those of the request's fields."""
    plain = {field.name: field.default for field in fields(TrainRequest)}
    own = {dial.field: plain[dial.field] for dial in TRAIN_DIALS.values() if dial.field in plain}
    return {**own, "model": spec.name, "mode": spec.train_mode}


def _first(field: str, layers: Sequence[Layer], default: Setting) -> Setting:
    for layer in layers:
        if (value := layer.values.get(field)) is not None:
            return Setting(value, layer.origin_of(field))
    return default


def _with_origin(
    error: InvalidRequestError, settings: Mapping[str, Setting]
) -> InvalidRequestError:
    """The error with the place of the value that it names, where nobody typed it."""
    for name, setting in settings.items():
        if f"--{name} " in f"{error.message} " and setting.origin not in ("flag", "default"):
            return InvalidRequestError(f"{error.message} ({setting.origin})", hint=error.hint)
    return error
