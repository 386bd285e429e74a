"""The checks of `osp doctor`, each for itself: one that breaks is reported and the others go on.

Nothing here is fetched from anywhere, and torch is imported by the checks that are about it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osp_cli import __version__
from osp_cli.errors import InvalidRequestError, OspError

if TYPE_CHECKING:
    from osp_cli.registry import ModelSpec

# Without so much, not even a short video can be written; below the other, a long one may not.
_LEAST_DISK_BYTES = 100 * 10**6
_LITTLE_DISK_BYTES = 2 * 10**9
# Read where nobody uses an adapter yet, so a run does without it.
_DISPENSABLE = ("peft",)
_SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")
_OTHER_VARIABLES = ("NO_COLOR", "CUDA_VISIBLE_DEVICES", "IMAGEIO_FFMPEG_EXE", "PYTORCH_ALLOC_CONF")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: of what was looked at.
        state: `ok`, `note` or `problem`; only a problem keeps a run from working.
        message: what was found.
        hint: what to do about it.
        values: the same for programs, by names that the schema explains.
    """

    name: str
    state: str
    message: str
    hint: str | None = None
    values: dict[str, Any] = field(default_factory=dict)


def examine(
    checks: Mapping[str, Callable[[], Iterable[Finding]]] | None = None,
) -> Iterator[Finding]:
    """All findings, each check shielded from the failure of the others."""
    for name, check in (CHECKS if checks is None else checks).items():
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 - whatever is broken here is what we look for
            summary = str(error).strip().partition("\n")[0]
            text = f"{type(error).__name__}: {summary}".rstrip(": ")
            state = "problem" if name in _DECISIVE else "note"
            hint = "install osp-cli again: pip install --force-reinstall osp-cli"
            yield Finding(name, state, f"cannot be examined, {text}", hint)


def report(found: Iterable[Finding]) -> dict[str, Any]:
    """The findings as one object of plain JSON values."""
    rows = [asdict(finding) for finding in found]
    return {
        "type": "doctor",
        "version": __version__,
        "ok": all(row["state"] != "problem" for row in rows),
        "findings": rows,
    }


# --- The machine ------------------------------------------------------------------------------


def _check_osp() -> Iterator[Finding]:
    package = Path(__file__).resolve().parents[1]
    values = {"version": __version__, "path": str(package)}
    yield Finding("osp", "ok", f"{__version__} in {package}", values=values)


def _check_system() -> Iterator[Finding]:
    import platform

    values = {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
    }
    yield Finding("system", "ok", " ".join(values.values()), values=values)


def _check_python() -> Iterator[Finding]:
    import platform

    version = platform.python_version()
    values = {"version": version, "path": sys.executable}
    yield Finding("python", "ok", f"{version} in {sys.executable}", values=values)


def _check_cpu() -> Iterator[Finding]:
    from osp_cli.host import cpu_quota, usable_cores

    cores, usable, quota = os.cpu_count() or 1, usable_cores(), cpu_quota()
    values = {"cores": cores, "usable_cores": usable, "quota_cores": quota}
    message = f"{cores} cores" if usable == cores else f"{usable} of {cores} cores may be used"
    if quota is not None and quota < usable:
        yield Finding(
            "cpu",
            "note",
            f"{message}, but only {quota:g} cores' worth of time is granted",
            f"OMP_NUM_THREADS={max(1, int(quota))} keeps threads from waiting for each other",
            values,
        )
        return
    yield Finding("cpu", "ok", message, values=values)


def _check_memory() -> Iterator[Finding]:
    from osp_cli.host import free_memory, memory_limit, total_memory

    total, free, limit = total_memory(), free_memory(), memory_limit()
    values = {"total_bytes": total, "free_bytes": free, "limit_bytes": limit}
    if total is None:
        yield Finding("memory", "note", "this system does not tell how much there is", None, values)
        return
    message = _size(total) if free is None else f"{_size(free)} free of {_size(total)}"
    if limit is not None and limit < total:
        message += f", the container allows {_size(limit)}"
    yield Finding("memory", "ok", message, values=values)


# --- Folders ----------------------------------------------------------------------------------


def _check_folders() -> Iterator[Finding]:
    import tempfile

    from osp_cli.registry import weights_home

    yield _folder("working folder", Path.cwd(), needed=True)
    yield _folder("temporary folder", Path(tempfile.gettempdir()), needed=True)
    yield _folder("weights folder", weights_home(), needed=False)


def _folder(name: str, path: Path, *, needed: bool) -> Finding:
    """Whether a folder can be used, and how much room there is.

    Args:
        name: what to call it.
        path: it need not be there.
        needed: a run writes into it.
    """
    import shutil

    bad = "problem" if needed else "note"
    # What is not there yet will be made on the disk of what is.
    there = next((folder for folder in (path, *path.parents) if folder.exists()), path)
    values: dict[str, Any] = {"path": str(path), "exists": path.is_dir(), "free_bytes": None}
    wanted = os.W_OK | os.X_OK if needed else os.R_OK | os.X_OK
    if there == path and not os.access(path, wanted):
        verb = "written to" if needed else "read"
        hint = f"change its owner or its mode: ls -ld '{path}'"
        return Finding(name, bad, f"{path} may not be {verb}", hint, values)
    free = shutil.disk_usage(there).free
    values["free_bytes"] = free
    message = f"{path}, {_size(free)} free"
    if not path.is_dir():
        message += ", not there yet"
    if free < _LEAST_DISK_BYTES:
        return Finding(name, bad, message, "free some space, or work on another disk", values)
    return Finding(name, "note" if free < _LITTLE_DISK_BYTES else "ok", message, None, values)


# --- Libraries --------------------------------------------------------------------------------


def _check_torch() -> Iterator[Finding]:
    import shutil

    from osp_cli.runtime.diagnosis import torch_build, torch_devices

    build, devices = torch_build(), torch_devices()
    hint = None
    # A driver without a torch that speaks to it is how most graphics cards lie idle.
    if build == "CPU" and shutil.which("nvidia-smi"):
        hint = "there is an NVIDIA driver: install a build of torch for CUDA, see pytorch.org"
    yield Finding("torch build", "note" if hint else "ok", build, hint, {"build": build})
    for device in devices:
        total = "" if device.total_bytes is None else f" of {_size(device.total_bytes)}"
        yield Finding(
            "device",
            "ok",
            f"{device.name}, {device.title}, {_size(device.free_bytes)} free{total}",
            values=asdict(device),
        )


def _check_libraries() -> Iterator[Finding]:
    wanted = _requirements()
    if not wanted:
        yield Finding("libraries", "note", "nobody knows what this copy of osp requires")
    for line in wanted:
        yield _library(line)


def _requirements() -> list[str]:
    """What this copy of osp requires, as in `torch>=2.6`: told by pip, or by the checkout."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, requires

    try:
        return [line for line in requires("osp-cli") or [] if "extra ==" not in line]
    except PackageNotFoundError:
        pass
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if not project.is_file():
        return []
    lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [str(line) for line in lines]


def _library(line: str) -> Finding:
    """Whether one requirement, as in `torch>=2.6`, is met."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    requirement = Requirement(line)
    name, wanted = requirement.name, str(requirement.specifier)
    hint = f'pip install "{name}{wanted}"'
    values: dict[str, Any] = {"version": None, "wanted": wanted, "in_range": False}
    try:
        found = version(name)
    except PackageNotFoundError:
        state = "note" if name in _DISPENSABLE else "problem"
        return Finding(name, state, "not installed", hint, values)
    in_range = requirement.specifier.contains(found, prereleases=True)
    values |= {"version": found, "in_range": in_range}
    if not in_range:
        return Finding(name, "note", f"{found}, tested with {wanted}", hint, values)
    return Finding(name, "ok", found, values=values)


def _check_ffmpeg() -> Iterator[Finding]:
    from osp_cli.media.ffmpeg import ffmpeg_exe

    try:
        program = ffmpeg_exe()
    except OspError as error:
        yield Finding("ffmpeg", "problem", error.message, error.hint)
        return
    hint = "pip install --force-reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE"
    try:
        version = _output_of(program, "-version").partition("\n")[0].strip()
        has_encoder = "libx264" in _output_of(program, "-encoders")
    except OSError as error:
        message = f"{program} cannot be started: {error.strerror or error}"
        yield Finding("ffmpeg", "problem", message, hint, {"path": program})
        return
    version = version.removeprefix("ffmpeg version ").partition(" ")[0]
    values = {"path": program, "version": version, "libx264": has_encoder}
    if not has_encoder:
        message = f"{program} cannot encode H.264: it was built without libx264"
        yield Finding("ffmpeg", "problem", message, hint, values)
        return
    yield Finding("ffmpeg", "ok", f"{version} with libx264, {program}", values=values)


def _output_of(program: str, argument: str) -> str:
    """What ffmpeg prints about itself.

    Raises:
        OSError: it cannot be started, fails or does not answer.
    """
    import subprocess

    command = [program, "-hide_banner", argument]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=True
        )
    except subprocess.TimeoutExpired as error:
        raise OSError("it does not answer") from error
    except subprocess.CalledProcessError as error:
        raise OSError(f"it ends with code {error.returncode}") from error
    return done.stdout.decode(errors="replace")


# --- What belongs to osp ----------------------------------------------------------------------


def _check_models() -> Iterator[Finding]:
    from osp_cli.registry import model_specs

    for spec in model_specs().values():
        yield _model(spec)


def _model(spec: ModelSpec) -> Finding:
    from osp_cli.hub.whole import mend

    place = spec.find_weights()
    values = {"model": spec.name, "installed": place is not None, "path": None, "bytes": None}
    if place is None:
        place = spec.weights_places()[-1]
        message = f"{spec.name} is not installed, it would be in {place}"
        hint = f"osp download {spec.name}" if spec.downloads else None
        return Finding("model", "note", message, hint, {**values, "path": str(place)})
    sizes = [file.stat().st_size for file in place.rglob("*") if file.is_file()]
    values |= {"path": str(place), "bytes": sum(sizes)}
    if (damage := _damage(spec, place)) is not None:
        hint = mend(spec)
        return Finding("model", "note", f"{spec.name} is damaged: {damage}", hint, values)
    return Finding("model", "ok", f"{spec.name}, {_size(sum(sizes))} in {place}", None, values)


def _damage(spec: ModelSpec, folder: Path) -> str | None:
    """What is wrong with the files of a model, as far as it shows without reading all of them.

    A copy that broke off is found by the length that was noted, or that the file itself declares.
    """
    from osp_cli.hub.whole import gap

    if (missing := gap(spec)) is not None:
        return missing
    for path in sorted(folder.rglob("*")):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                _check_length(path)
        except (OSError, ValueError) as error:
            return f"{path.relative_to(folder)}, {error}"
    return None


def _check_length(path: Path) -> None:
    """Compare a safetensors file with its header.

    Raises:
        ValueError: it is not as long as the header says, or has none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length + 8 > size:
            raise ValueError("its header is cut off")
        header = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    declared = 8 + length + max(ends, default=0)
    if declared != size:
        raise ValueError(f"{size} bytes long instead of {declared}")


def _check_styles() -> Iterator[Finding]:
    from osp_cli.registry import style_presets

    count = len(style_presets())
    yield Finding("styles", "ok", str(count), values={"count": count})


def _check_settings() -> Iterator[Finding]:
    from osp_cli.config import config_files, read_config, user_config

    files = config_files()
    for called, path in files:
        try:
            values = read_config(path, "generate", called)
        except InvalidRequestError as error:
            yield Finding("settings", "problem", error.message, error.hint, {"path": str(path)})
        else:
            message = f"{called} sets {len(values)} for osp generate"
            yield Finding("settings", "ok", message, None, {"path": str(path)})
    if not files:
        path = user_config()
        message = f"neither ./osp.toml nor {path} is there"
        yield Finding("settings", "ok", message, None, {"path": str(path)})


def _check_hub_cache() -> Iterator[Finding]:
    from osp_cli.hub.cache import cache_root

    cache = cache_root()
    there = "" if cache.is_dir() else ", not there yet"
    values = {"path": str(cache), "exists": cache.is_dir()}
    yield Finding("download cache", "ok", f"{cache}{there}", None, values)


def _check_variables() -> Iterator[Finding]:
    for name, value in sorted(os.environ.items()):
        if name.startswith("OSP_"):
            yield _own_variable(name, value)
        elif name.startswith("HF_") or name in _OTHER_VARIABLES:
            yield _other_variable(name, value)


def _own_variable(name: str, value: str) -> Finding:
    from osp_cli.config import OTHER_VARIABLES, VARIABLES, environment_layer
    from osp_cli.registry import nearest

    values = {"variable": name, "value": value}
    if name not in (*VARIABLES, *OTHER_VARIABLES):
        # Names are compared in the spelling of flags.
        known = {other.lower().replace("_", "-"): other for other in (*VARIABLES, *OTHER_VARIABLES)}
        guesses = [known[guess] for guess in nearest(name, known)]
        hint = f"did you mean {' or '.join(guesses)}?" if guesses else "it can be unset"
        return Finding("variable", "note", f"{name} is none that osp knows", hint, values)
    try:
        environment_layer({name: value})
    except InvalidRequestError as error:
        return Finding("variable", "problem", error.message, error.hint, values)
    return Finding("variable", "ok", f"{name}={value}", None, values)


def _other_variable(name: str, value: str) -> Finding:
    import re

    if any(word in name for word in _SECRETS):
        value = "(set)" if value else ""
    # An address may carry a name and a password.
    value = re.sub(r"//[^/@]*@", "//(hidden)@", value)
    values = {"variable": name, "value": value}
    if name == "CUDA_VISIBLE_DEVICES" and value.strip() in ("", "-1"):
        hint = "unset it to use the graphics card"
        return Finding("variable", "note", f"{name}={value} hides all CUDA devices", hint, values)
    return Finding("variable", "ok", f"{name}={value}", None, values)


# --- What would run ---------------------------------------------------------------------------


def _check_start() -> Iterator[Finding]:
    import importlib
    import time

    started = time.monotonic()
    # As a run does, and everything that it imports before it loads a model.
    from osp_cli.runtime.start_up import light_imports

    with light_imports(for_good=True):
        for name in ("osp_cli.runtime.runner", "osp_cli.runtime.loading"):
            importlib.import_module(name)
    seconds = time.monotonic() - started
    values = {"seconds": round(seconds, 3)}
    yield Finding("start", "ok", f"the libraries load in {seconds:.1f} s", None, values)


def _check_run() -> Iterator[Finding]:
    from osp_cli.config import stored_layers
    from osp_cli.hub.whole import mend
    from osp_cli.registry import find_model
    from osp_cli.runtime.diagnosis import default_plan

    try:
        plan, free = default_plan(stored_layers("generate"))
    except OspError as error:
        yield Finding("run", "problem", error.message, error.hint)
        return
    spec = find_model(plan.model)
    if (damage := _damage(spec, spec.weights_dir())) is not None:
        message = f"{plan.model} is damaged: {damage}"
        yield Finding("run", "problem", message, mend(spec))
        return
    needed = plan.expected_peak_bytes
    time = "" if plan.expected_seconds is None else f", about {plan.expected_seconds:g} s"
    message = (
        f"osp generate PICTURE: {plan.model} on {plan.device} in {plan.dtype}, "
        f"{plan.width}x{plan.height}, {plan.num_frames} frames, {plan.steps} steps{time}, "
        f"{_size(needed)} of {_size(free)} free memory"
    )
    values = {"plan": plan.as_json(), "free_bytes": free}
    tight = needed > 0.8 * free
    hint = "close other programs, or use fewer --frames or a smaller --size" if tight else None
    yield Finding("run", "note" if tight else "ok", message, hint, values)


CHECKS: Mapping[str, Callable[[], Iterator[Finding]]] = {
    "osp": _check_osp,
    "system": _check_system,
    "python": _check_python,
    "cpu": _check_cpu,
    "memory": _check_memory,
    "folders": _check_folders,
    "libraries": _check_libraries,
    "torch": _check_torch,
    "ffmpeg": _check_ffmpeg,
    "models": _check_models,
    "styles": _check_styles,
    "settings": _check_settings,
    "variables": _check_variables,
    "download cache": _check_hub_cache,
    "start": _check_start,
    "run": _check_run,
}
# Where these cannot be examined, nothing can run.
_DECISIVE = ("torch", "ffmpeg", "start", "run")


def _size(count: int) -> str:
    if count >= 10**9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB"
