"""Latents on disk: what was sampled survives whatever happens afterwards.

One safetensors file holds the latents, what sampler and step cache remember, the fitted picture
and the recipe. From it a clip is finished to the very bytes of an uninterrupted run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from osp_cli.errors import OspError, RuntimeFailureError, UnreadableMediaError
from osp_cli.media.files import atomic_output
from osp_cli.media.sinks import canonical_json
from osp_cli.outputs import LATENTS_SUFFIX, STDOUT, latents_path
from osp_cli.pipelines.flash_i2v import SamplingState
from osp_cli.registry import weights_home
from osp_cli.runtime.stillness import CacheWatch

_FORMAT = "osp-latents-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A clip on disk.

    Attributes:
        path: of the file.
        recipe: of the clip.
        num_steps: of the sampler; with `state.step` at this number the clip only wants decoding.
        state: where sampling stands.
        image: the first frame at the clip's size; None for text to video.
        watch: over its step cache; empty where nothing was skipped.
    """

    path: Path
    recipe: dict[str, Any]
    num_steps: int
    state: SamplingState
    image: Image.Image | None
    watch: CacheWatch = field(default_factory=CacheWatch)

    @property
    def is_sampled(self) -> bool:
        """Whether only decoding is left."""
        return self.state.step == self.num_steps


def freeze(
    output: Path,
    recipe: Mapping[str, Any],
    state: SamplingState,
    num_steps: int,
    image: Image.Image | None,
    watch: CacheWatch | None = None,
) -> Path:
    """Save a clip beside its output, or where the program keeps its own files if that fails.

    Raises:
        WontFitError: there is no space in either place.
        InvalidRequestError: neither place may be written to.
    """
    tensors = {"latents": state.latents}
    tensors |= {f"solver.{name}": tensor for name, tensor in state.solver.items()}
    tensors |= {f"cache.{name}": tensor for name, tensor in state.cache.items()}
    # A finished clip is beyond pictures.
    if image is not None and state.step < num_steps:
        tensors["image"] = torch.from_numpy(np.asarray(image).copy())
    metadata = {
        "format": _FORMAT,
        "recipe": canonical_json(recipe),
        "step": str(state.step),
        "num_steps": str(num_steps),
    }
    # Of a finished clip of which nothing was skipped there is nothing to be judged any more.
    if watch is not None and watch.before is not None and (watch.skipped or state.step < num_steps):
        tensors["before_skips"] = watch.before
    if watch is not None and watch.skipped:
        metadata["skipped"] = json.dumps(sorted(watch.skipped))
    data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    if output != STDOUT:
        try:
            return _write(latents_path(output), data)
        except (OspError, OSError):
            # The disk of the output may be full or gone; what was computed is worth another one.
            pass
    return _write(_spare_path(output), data)


def thaw(path: Path) -> Frozen:
    """Read a file of `freeze`.

    Raises:
        UnreadableMediaError: no such file, another kind of file, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise UnreadableMediaError(
                    f"{path} holds no latents of this program",
                    hint="--from takes a video, its .json or a .latents.safetensors file",
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recipe = json.loads(metadata["recipe"])
        step, num_steps = int(metadata["step"]), int(metadata["num_steps"])
        state = SamplingState(
            tensors["latents"], step, _below("solver.", tensors), _below("cache.", tensors)
        )
        image = Image.fromarray(tensors["image"].numpy()) if "image" in tensors else None
        skipped = {int(number) for number in json.loads(metadata.get("skipped", "[]"))}
        watch = CacheWatch(skipped, tensors.get("before_skips"))
        if not 0 <= step <= num_steps or state.latents.ndim != 5:
            raise ValueError("steps or shape make no sense")
    except FileNotFoundError as error:
        raise UnreadableMediaError(f"{path} does not exist") from error
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UnreadableMediaError(f"{path} is damaged: {error}") from error
    return Frozen(
        path=path, recipe=recipe, num_steps=num_steps, state=state, image=image, watch=watch
    )


def spare_folder() -> Path:
    """Where latents go that cannot lie beside their output."""
    return weights_home().parent / "latents"


def _spare_path(output: Path) -> Path:
    folder = spare_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeFailureError(
            f"latents can be saved neither beside {output} nor in {folder}"
        ) from error
    name = "stdout" if output == STDOUT else latents_path(output).name.removesuffix(LATENTS_SUFFIX)
    # Two runs may write to stdout at once.
    return folder / f"{name}-{os.getpid()}{LATENTS_SUFFIX}"


def _write(path: Path, data: bytes) -> Path:
    with atomic_output(path, overwrite=True) as part:
        part.write_bytes(data)
    return path


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
