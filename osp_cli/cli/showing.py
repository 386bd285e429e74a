"""Settings and plans for people, as lines of stdout."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from osp_cli.cli import console
from osp_cli.dials import RANDOM_SEED, MemorySize, Ramp, as_text
from osp_cli.style_mix import prompts_to_recipe

if TYPE_CHECKING:
    from osp_cli.plan import Plan
    from osp_cli.requests import GenerateRequest, Sheet
    from osp_cli.runtime.inspection import Inspected, Strength
    from osp_cli.settings import Setting
    from osp_cli.style_mix import WeightedPrompt


# So many keys of a file are named where there are more of a kind.
_MOST_KEYS = 3
# Origins of values that the user did not choose; cards and styles are others.
_NOBODYS = ("paper", "default", "random")


def show_settings(
    settings: Mapping[str, Setting], *, as_json: bool, prompts: Sequence[WeightedPrompt] = ()
) -> None:
    """Write every dial with its origin: TOML that `--config` takes, or one JSON object.

    What nobody chose is a remark in the TOML, so that the file leaves it to the model that is used.

    Args:
        settings: by the names of flags.
        as_json: one object.
        prompts: what the model will read, where that is known; no dial, but what some of them make.
    """
    if as_json:
        told = {
            name: {"value": _plain(name, setting), "origin": setting.origin}
            for name, setting in settings.items()
        }
        if prompts:
            told["full-prompt"] = {
                "value": prompts_to_recipe(prompts),
                "origin": _prompt_origin(settings),
            }
        console.write_json(told)
        return
    lines = {name: _line(name, setting) for name, setting in settings.items()}
    width = min(60, max(map(len, lines.values())))
    for name, setting in settings.items():
        console.write_line(f"{lines[name]:<{width}}  # {setting.origin}")
    for text, weight in prompts:
        origin = _prompt_origin(settings)
        if len(prompts) > 1:
            origin += f", weight {weight_text(weight)}"
        console.write_line(f"# full-prompt = {_toml(text)}  # {origin}")


def _prompt_origin(settings: Mapping[str, Setting]) -> str:
    style = settings["style"].value
    return settings["prompt"].origin if style is None else f"style {style}"


def _line(name: str, setting: Setting) -> str:
    value = _plain(name, setting)
    if value is None:
        return f"# {name} is not set"
    line = f"{name} = {_toml(value)}"
    chosen = setting.origin not in _NOBODYS and not setting.origin.startswith(("card ", "style "))
    return line if chosen else f"# {line}"


def show_plan(plan: Plan, request: GenerateRequest) -> None:
    """Write a plan, a line for each thing that a user may want to know before it is run."""
    guidance = "no guidance" if plan.guidance <= 1 else f"guidance {plan.guidance:g}"
    cache = "" if plan.cache == "none" else f", {plan.cache}"
    rows = {
        "model": f"{plan.model}, {device_text(plan)} {plan.dtype}",
        "video": f"{plan.width}x{plan.height}, {frames_text(plan)} at {request.fps} fps",
        "output": str(request.output),
        **_style_row(plan, request),
        **({"lora": ", ".join(map(str, request.loras))} if request.loras else {}),
        "sampling": f"{steps_text(plan)}, {plan.sampler}, {guidance}{cache}, seed {plan.seed}",
        "tokens": str(plan.num_tokens),
        "weights": f"{bytes_text(plan.weights_bytes)}, {way_text(plan)}",
        "memory": memory_text(plan),
        "disk": f"at most {bytes_text(plan.disk_bytes)}",
    }
    if plan.offload_bytes:
        rows["disk"] += f", and {bytes_text(plan.offload_bytes)} of weights for the time of the run"
    if text := time_text(plan):
        rows["time"] = text
    folds = console.is_terminal(sys.stdout)
    for name, text in rows.items():
        if folds:
            console.write_row(f"{name:<9} ", text)
        else:
            console.write_line(f"{name:<9} {text}")


def frames_text(plan: Plan) -> str:
    """How many frames there will be, and in how many windows they are made."""
    windows = f" in {plan.num_windows} windows" if plan.num_windows > 1 else ""
    return f"{plan.total_frames or plan.num_frames} frames{windows}"


def steps_text(plan: Plan) -> str:
    """The sampler's steps; of each window, where there are several."""
    steps = f"{plan.steps} {'step' if plan.steps == 1 else 'steps'}"
    return f"{steps} each" if plan.num_windows > 1 else steps


def show_sheet(sheet: Sheet) -> None:
    """Write what comes together of plans like the one above it."""
    there = sum(request.output.exists() for request in sheet.requests)
    told = f", {there} of them there already" if there else ""
    console.write_line(f"{'sheet':<9} {sheet.output}, of {len(sheet.requests)} videos{told}")


def way_text(plan: Plan) -> str:
    """How the weights are used, in words."""
    words = [_WAYS[plan.offload]]
    if plan.offload == "disk" and plan.device == "cpu":
        words = ["read from their files again and again"]
    if plan.quant != "none":
        words.append(f"stored as {plan.quant}")
    if plan.vae_tiling:
        words.append("decoded in tiles")
    if plan.compile:
        words.append("blocks compiled")
    return ", ".join(words)


_WAYS = {
    "none": "all in place",
    "model": "one part at a time",
    "group": "block by block",
    "sequential": "layer by layer",
    "disk": "block by block from the disk",
}


def device_text(plan: Plan) -> str:
    """What computes."""
    if plan.gpus == 1:
        return plan.device
    return (
        f"{plan.gpus} processes on {plan.device}" if plan.device == "cpu" else f"{plan.gpus} GPUs"
    )


def memory_text(plan: Plan) -> str:
    """What the run needs of the device's memory, and of the host's where that is another."""
    text = f"about {bytes_text(plan.expected_peak_bytes)}"
    if plan.device_bytes is not None:
        text += f" of {bytes_text(plan.device_bytes)}"
    if plan.device != "cpu":
        text += f" on {plan.device}, {bytes_text(plan.expected_ram_bytes)} of the computer's"
    return text if plan.gpus == 1 else f"{text}, for each of {plan.gpus}"


def time_text(plan: Plan) -> str:
    """How long sampling takes; empty where nobody knows."""
    if plan.expected_seconds is None:
        return ""
    return f"about {duration_text(plan.expected_seconds)} of sampling"


def inspection_rows(found: Inspected) -> list[tuple[str, str]]:
    """What is in a file, as names and texts of one line each."""
    rows = {
        "kind": _kind(found),
        "problem": found.problem or "",
        "rank": ", ".join(map(str, found.ranks)),
        "alpha": ", ".join(
            "not told, so the rank" if a is None else f"{a:g}" for a in found.alphas
        ),
        "numbers": ", ".join(f"{count:,} {dtype}" for dtype, count in found.dtypes.items()),
        "bytes": bytes_text(found.num_bytes),
        "keys": str(found.num_keys),
        "made for": _made_for(found),
        "layers": ", ".join(f"{count} {name}" for name, count in found.layers.items()),
        "strength": _strength(found.strength),
        "left out": _left_out(found.left_out),
        **found.told,
        "note": "; ".join(found.notes),
    }
    return [(name, console.visible(text)) for name, text in rows.items() if text]


def _kind(found: Inspected) -> str:
    kind = "LoRA" if found.kind == "lora" else found.kind
    return kind if found.layout is None else f"{kind}, layout {found.layout}"


def _made_for(found: Inspected) -> str:
    if found.size is None:
        return ", ".join(found.fits)
    fits = f", as {', '.join(found.fits)}" if found.fits else ", as no model card here"
    return f"a transformer of {found.size}{fits}" if found.ranks else f"{found.size}{fits}"


def _strength(strength: Strength | None) -> str:
    if strength is None:
        return ""
    if strength.model is None:
        numbers = f"median {strength.median:.3g}, at most {strength.largest:.3g}"
    else:
        numbers = f"median {strength.median:.2%} of the weights of {strength.model}, "
        numbers += f"at most {strength.largest:.2%}"
    return f"{numbers} in {strength.largest_layer.removesuffix('.weight')}"


def _left_out(left_out: Mapping[str, str]) -> str:
    """The keys by the reason why they are left out, the first few of each by name."""
    reasons: dict[str, list[str]] = {}
    for key, reason in left_out.items():
        reasons.setdefault(reason, []).append(key)
    return "; ".join(
        f"{len(keys)} {reason}: {', '.join(keys[:_MOST_KEYS])}{', ...' * (len(keys) > _MOST_KEYS)}"
        for reason, keys in reasons.items()
    )


def _style_row(plan: Plan, request: GenerateRequest) -> dict[str, str]:
    """A mixture of styles and what it costs; nothing where a lone style costs nothing."""
    mix = request.mix
    if mix is None or len(request.prompts) == 1:
        return {}
    looks = [f"{weight_text(weight)} {preset.name}" for preset, weight in mix.parts]
    if mix.unstyled:
        looks.append(f"{weight_text(mix.unstyled)} unstyled")
    alone = plan.passes_per_step - len(looks) + 1
    return {"style": f"{' + '.join(looks)}, {plan.passes_per_step} passes a step, not {alone}"}


def weight_text(weight: float | tuple[float, ...]) -> str:
    """`0.3`, or `0-1-0` of a weight that changes while the clip plays."""
    values = weight if isinstance(weight, tuple) else (weight,)
    return "-".join(f"{value:.3g}" for value in values)


def dial_text(name: str, setting: Setting) -> str:
    """A setting as it would be typed."""
    return as_text(_plain(name, setting))


def _plain(name: str, setting: Setting) -> Any:
    """The value as TOML and JSON know it, in the spelling that `Dial.read` understands."""
    value = setting.value
    if name == "seed":
        if setting.origin == "random":
            return RANDOM_SEED
        return value[0] if len(value) == 1 else str(value)
    if name == "style":
        return value or "none"
    if name == "lora":
        return [str(choice) for choice in value]
    if name == "cutoff":
        return value[0] if value[0] == value[1] else str(Ramp(*value))
    if isinstance(value, MemorySize):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _toml(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    # Otherwise strings, numbers, true and false are written alike in both, but for one letter.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def bytes_text(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def duration_text(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
