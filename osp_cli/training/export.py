"""The files that a training ends with: a LoRA in one of three layouts, what was trained beside it,
or all weights.

Alpha is the trap: a file that does not tell it is taken at alpha = rank by everyone, and a LoRA of
rank 8 and alpha 4 then counts twice. All layouts tell it, each where its readers look.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from osp_cli.loras import COMPANION_SUFFIX
from osp_cli.media.files import (
    atomic_output,
    check_free_space,
    exists_already,
    explained,
    flush_file,
    flush_folder,
    hidden_sibling,
)
from osp_cli.models.lora_targets import original_layer
from osp_cli.models.safetensors_header import with_metadata
from osp_cli.train_request import SAVE_FORMATS

SAVE_DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
_KOHYA_SIDES = {"A": "lora_down", "B": "lora_up"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportInfo:
    """What a file says of itself, beside its numbers: no paths, no captions.

    Attributes:
        name: of the adapter.
        title: for people; empty for the name.
        trigger: words that call it up; empty for none.
        style: the name by which `--style` knows it; empty where it is no style.
        mode: that it was trained in, of `train_request.MODES`.
        rank, alpha, targets: of the LoRA.
        base_id: the base's card.
        base_sha256, vlm_sha256: `hub.hashes.part_hash` of its transformer and of what reads the
            prompts.
        dataset_sha256: of the data, as `DatasetReport` has it.
        sigma_shift: of the noise levels.
        seed, steps: of the run.
        version: of this program.
    """

    name: str
    mode: str
    rank: int
    alpha: float
    targets: str
    base_id: str
    base_sha256: str
    dataset_sha256: str
    seed: int
    steps: int
    version: str
    title: str = ""
    trigger: str = ""
    style: str = ""
    vlm_sha256: str = ""
    sigma_shift: float = 1.0


def companion_path(path: Path) -> Path:
    """Where what was trained beside a LoRA lies: `NAME.adapter.safetensors`."""
    return path.with_name(f"{path.stem}{COMPANION_SUFFIX}")


def write_adapter(
    path: Path,
    state: Mapping[str, Tensor],
    info: ExportInfo,
    save_format: str = "native",
    companion: Mapping[str, Tensor] | None = None,
    *,
    dtype: str = "float32",
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write a LoRA, and beside it the whole weights that were trained with it.

    Equal numbers make equal files, byte for byte. They are in single precision unless asked
    otherwise: a LoRA is small, it is added to weights before they are rounded, and rounding it
    twice loses what its last steps changed.

    Args:
        path: `NAME.safetensors`.
        state: of `adapters.adapter_state`: the factors by diffusers' names of layers.
        info: what the file says of itself.
        save_format: `native`, which all programs read; `kohya` or `peft`.
        companion: whole weights by name: `adapter.*` and `image_adapter.*` of the conditioner,
            `learnable_proj.*` and `fourier_embedding.*` of the transformer; they are always in
            single precision. Readers of LoRAs fail at keys of no layer, so they are a file of
            their own.
        dtype: of `SAVE_DTYPES`.
        overwrite: whether files that are there may be replaced.

    Returns:
        The files that were written, the LoRA first.

    Raises:
        InvalidRequestError: a file is there already, or the folder is missing or read-only.
        ValueError: the state holds anything but factors of one rank, or an unknown format.
    """
    tensors = lora_tensors(state, info, save_format, SAVE_DTYPES[dtype])
    metadata = _metadata(info, tensors, save_format)
    files: dict[Path, bytes] = {}
    if companion:
        beside = companion_path(path)
        whole = {name: value.float().contiguous() for name, value in companion.items()}
        told = {"osp.kind": "companion", "osp.adapter": info.name, **_origin(info)}
        files[beside] = with_metadata(save(whole), told)
        metadata["osp.companion"] = beside.name
        metadata["osp.companion_sha256"] = hashlib.sha256(files[beside]).hexdigest()
    files[path] = with_metadata(save(tensors), metadata)
    # The LoRA last: where it is, what it names is there too.
    for target, contents in files.items():
        check_free_space(target.parent, len(contents), what=target.name)
        with atomic_output(target, overwrite=overwrite) as part:
            part.write_bytes(contents)
    if not companion and overwrite:
        # Of the adapter that was replaced: its name would be taken for this one's.
        companion_path(path).unlink(missing_ok=True)
    return tuple(reversed(files))


def lora_tensors(
    state: Mapping[str, Tensor], info: ExportInfo, save_format: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The factors under the names of a layout, with alpha where the layout has it among them.

    Raises:
        ValueError: as `write_adapter`.
    """
    if save_format not in SAVE_FORMATS:
        raise ValueError(f"unknown format {save_format!r}")
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        found = _FACTOR.fullmatch(name)
        if found is None or value.shape[0 if found["side"] == "A" else 1] != info.rank:
            raise ValueError(f"{name} {tuple(value.shape)} is no factor of rank {info.rank}")
        layer, side = found["layer"], found["side"]
        original = original_layer(layer)
        if save_format == "peft":
            key = f"transformer.{layer}.lora_{side}"
        elif save_format == "native":
            key = f"diffusion_model.{original}.lora_{side}"
        else:
            key = f"lora_unet_{original.replace('.', '_')}.{_KOHYA_SIDES[side]}"
        tensors[f"{key}.weight"] = value.detach().to("cpu", dtype).contiguous()
        if save_format != "peft":
            tensors[f"{key.rpartition('.')[0]}.alpha"] = torch.tensor(info.alpha)
    return tensors


def write_full(
    folder: Path,
    transformer: Any,
    info: ExportInfo,
    adapters: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write all weights of a model as `osp download MODEL --local FOLDER` installs them.

    The folder holds `transformer`, in diffusers' format, and the small maps that were trained. It
    is made beside its place and appears whole. Parts that are not in it are those of the base,
    which the installation keeps.

    Args:
        folder: that is made.
        transformer: of diffusers; its numbers are written in the type they have.
        info: what `osp-training.json` in it says.
        adapters: of the conditioner, by the names of their folders.
        overwrite: whether a folder that is there may be replaced.

    Raises:
        InvalidRequestError: the folder is there already.
    """
    if folder.exists() and not overwrite:
        raise exists_already(folder)
    parts = {"transformer": transformer, **(adapters or {})}
    nbytes = sum(p.numel() * p.element_size() for m in parts.values() for p in m.parameters())
    check_free_space(folder.parent, nbytes, what=folder.name)
    part = hidden_sibling(folder, "part")
    shutil.rmtree(part, ignore_errors=True)
    with explained(folder):
        try:
            for name, model in parts.items():
                model.save_pretrained(part / name, safe_serialization=True)
            (part / "osp-training.json").write_text(
                json.dumps(_origin(info) | _training(info), indent=1) + "\n", "utf-8"
            )
            for file in part.rglob("*"):
                if file.is_file():
                    flush_file(file)
            if folder.exists():
                old = hidden_sibling(folder, "old")
                folder.rename(old)
                part.rename(folder)
                shutil.rmtree(old)
            else:
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        flush_folder(folder.parent)
    return folder


def _origin(info: ExportInfo) -> dict[str, str]:
    """What a file was made from."""
    told = {
        "osp.version": info.version,
        "osp.base_id": info.base_id,
        "osp.base_sha256": info.base_sha256,
        "osp.vlm_sha256": info.vlm_sha256,
        "osp.dataset_sha256": info.dataset_sha256,
    }
    return {key: text for key, text in told.items() if text}


def _training(info: ExportInfo) -> dict[str, str]:
    return {
        "osp.mode": info.mode,
        "osp.sigma_shift": str(info.sigma_shift),
        "osp.seed": str(info.seed),
        "osp.steps": str(info.steps),
    }


def _metadata(info: ExportInfo, tensors: Mapping[str, Tensor], save_format: str) -> dict[str, str]:
    """Texts of the header, under the names that other programs look for and under our own.

    No date: a run that is made again makes the same file.
    """
    told = {
        "ss_network_dim": str(info.rank),
        "ss_network_alpha": str(info.alpha),
        "ss_network_module": "networks.lora_wan" if save_format == "kohya" else "osp.lora",
        "ss_base_model_version": info.base_id,
        "ss_output_name": info.name,
        "ss_seed": str(info.seed),
        "ss_steps": str(info.steps),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{info.base_id}/lora",
        "modelspec.implementation": "osp-cli",
        "modelspec.title": info.title or info.name,
        "modelspec.trigger_phrase": info.trigger,
        "osp.trigger": info.trigger,
        "osp.style": info.style,
        "osp.targets": info.targets,
        **_origin(info),
        **_training(info),
    }
    if save_format == "peft":
        # What diffusers passes to PEFT when it loads the file; without it alpha would be the rank.
        factors = (_FACTOR.fullmatch(key.removeprefix("transformer.")) for key in tensors)
        layers = sorted({factor["layer"] for factor in factors if factor})
        settings = {"r": info.rank, "lora_alpha": info.alpha, "target_modules": layers}
        told["lora_adapter_metadata"] = json.dumps(
            {f"transformer.{key}": value for key, value in settings.items()}, sort_keys=True
        )
    return {key: text for key, text in told.items() if text}
