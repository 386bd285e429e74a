"""From a request to a clip that can be made: everything that is known before weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from osp_cli.errors import UnreadableMediaError
from osp_cli.events import Planned
from osp_cli.hub.hashes import weights_hash
from osp_cli.hub.whole import whole_weights_dir
from osp_cli.media.files import check_free_space
from osp_cli.media.fitting import fit_notice
from osp_cli.media.image import (
    LoadedImage,
    choose_bucket,
    cover_resize_crop,
    decode_image,
    load_image,
)
from osp_cli.media.sinks import check_output
from osp_cli.outputs import STDOUT, latents_path
from osp_cli.plan import Plan
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.adapters import (
    base_notices,
    check_loras,
    companion_hashes,
    lora_bytes,
    lora_hashes,
)
from osp_cli.runtime.devices import check_gpus, resolve_device, this_machine
from osp_cli.runtime.freezing import Frozen, thaw
from osp_cli.runtime.kernels import check_attention, check_compile
from osp_cli.runtime.packages import check_packages
from osp_cli.runtime.planner import make_plan
from osp_cli.runtime.quantize import check_quant
from osp_cli.runtime.replay import differences, same_clip, unfinished_work


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One clip, settled: what is known before anything is loaded.

    Attributes:
        request: what was asked.
        plan: what will be computed.
        recipe: what its files will say.
        image: the first frame at the clip's size; None for text to video, or where only decoding
            is left.
        frozen: from where it goes on; None where it begins with noise.
        weights: the folder of the weights.
    """

    request: GenerateRequest
    plan: Plan
    recipe: dict[str, Any]
    image: Image.Image | None
    frozen: Frozen | None
    weights: Path


def preview_plan(request: GenerateRequest) -> tuple[Planned, list[str]]:
    """What a run would do and how long sampling would take, without reading any weights.

    Raises:
        OspError: as `run` would before it begins.
    """
    prepared = _prepare(request, measure=True)
    return Planned(prepared.plan), prepared.notices


def settle(
    request: GenerateRequest, known: Mapping[str, Any] | None = None
) -> tuple[Clip, list[str]]:
    """Everything about a clip that is known before it is begun, and what to tell of it.

    Args:
        request: what was asked.
        known: what its recipe says besides, or in another way than the request.

    Raises:
        OspError: it cannot be made here.
    """
    prepared = _prepare(request)
    plan, loaded = prepared.plan, prepared.loaded
    frozen, notices = prepared.frozen, prepared.notices
    recipe = {**_recipe(request, prepared), **(known or {})}
    if plan_loras := () if frozen is not None and frozen.is_sampled else request.loras:
        # The weights were read for the recipe.
        weights = recipe["weights_sha256"]
        notices = [*notices, *base_notices(plan_loras, weights, request.model)]
    if frozen is not None:
        # Its picture is in it; the weights may have changed since it was saved.
        now = {**recipe, "image_sha256": frozen.recipe.get("image_sha256")}
        notices = [*notices, *differences(frozen.recipe, now, str(frozen.path))]
        # Sampled with what its file says; only the dials of the output may have changed since.
        recipe = {**frozen.recipe, "fps": request.fps}
    else:
        if request.replayed is not None:
            notices = [*notices, *differences(request.replayed, recipe, request.replayed_from)]
        frozen = _unfinished(request, recipe)
        if frozen is not None:
            notices = [*notices, f"going on from {frozen.path}, which an earlier run left"]
    image = None
    if frozen is not None:
        image = frozen.image
    elif loaded is not None:
        image = cover_resize_crop(loaded.image, plan.width, plan.height)
    clip = Clip(
        request=request,
        plan=plan,
        recipe=recipe,
        image=image,
        frozen=frozen,
        weights=prepared.weights,
    )
    return clip, notices


def in_less_memory(clip: Clip, stage: str) -> Clip:
    """The clip with the next plan whose `stage` needs less of the device than it did.

    Raises:
        WontFitError: there is none.
    """
    plan = clip.plan
    machine = this_machine(torch.device(plan.device))
    following = make_plan(
        clip.request,
        clip.request.spec,
        size=(plan.width, plan.height),
        machine=machine,
        weights=clip.weights,
        below={stage: plan.expected_stage_bytes[stage]},
    )
    following = replace(following, expected_seconds=plan.expected_seconds)
    recipe = {**clip.recipe, "quant": following.quant, "vae_tiling": following.vae_tiling}
    return replace(clip, plan=following, recipe=recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What is known without reading weights, be it for their hashes.

    Attributes:
        plan: what will be computed.
        loaded: the picture; None for text to video, and where latents hold it.
        frozen: the latents that the user named.
        weights: their folder.
        notices: sentences about what was done to the picture.
    """

    plan: Plan
    loaded: LoadedImage | None
    frozen: Frozen | None
    weights: Path
    notices: list[str]


def _prepare(request: GenerateRequest, *, measure: bool = False) -> _Prepared:
    # A plan alone does not make the folder that a run would.
    if not request.makes_folder or request.output.parent.exists():
        check_output(request.output, overwrite=request.overwrite, fps=request.fps)
    weights = whole_weights_dir(request.spec)
    frozen = thaw(request.latents) if request.latents is not None else None
    loaded = _picture(request) if frozen is None else None
    size = _choose_size(request, loaded)
    device = resolve_device(request.device)
    check_gpus(request.gpus, request.device, device)
    check_packages(request)
    check_quant(request.quant, device)
    check_attention(request.attention, device)
    if request.compile:
        check_compile(device)
    # How quick it is matters to whoever waits for minutes, not to the small model.
    machine = this_machine(device, measure=measure or not request.spec.embedded)
    plan = make_plan(request, request.spec, size=size, machine=machine, weights=weights)
    # Only decoding is left of latents that were sampled, and LoRAs are no part of that.
    loras = () if frozen is not None and frozen.is_sampled else request.loras
    lora_notices = check_loras(request) if loras else []
    plan = replace(plan, weights_bytes=plan.weights_bytes + lora_bytes(loras))
    if request.output != STDOUT:
        check_free_space(request.output.parent, plan.disk_bytes, what="the video")
    notices = [] if loaded is None else [*loaded.notices, *_fit_notices(loaded, size)]
    notices += lora_notices
    if request.max_vram is not None and device.type == "cpu":
        notices.append("--max-vram has no effect on the CPU, --max-ram has")
    return _Prepared(plan=plan, loaded=loaded, frozen=frozen, weights=weights, notices=notices)


def _picture(request: GenerateRequest) -> LoadedImage | None:
    if request.image_data is not None:
        return decode_image(request.image_data, name="the picture on stdin")
    return _loaded(request.image) if request.image is not None else None


def _loaded(path: Path) -> LoadedImage:
    """A picture, read once for all videos of a sheet."""
    try:
        stat = path.stat()
    except OSError:
        return load_image(path)
    return _as_it_is_now(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)
def _as_it_is_now(path: Path, _size: int, _mtime_ns: int) -> LoadedImage:
    return load_image(path)


def _unfinished(request: GenerateRequest, recipe: Mapping[str, Any]) -> Frozen | None:
    """What an interrupted run of the very same clip has left beside the output."""
    path = latents_path(request.output)
    if request.output == STDOUT or not path.exists():
        return None
    if request.overwrite:
        # Damaged or of another clip, it may be replaced.
        with suppress(UnreadableMediaError):
            frozen = thaw(path)
            return frozen if same_clip(frozen.recipe, recipe) else None
        return None
    frozen = thaw(path)
    if not same_clip(frozen.recipe, recipe):
        raise unfinished_work(path)
    return frozen


def _choose_size(request: GenerateRequest, loaded: LoadedImage | None) -> tuple[int, int]:
    """Asked size, else the card's bucket nearest to the picture, else the card's default."""
    if request.width is not None and request.height is not None:
        return request.width, request.height
    if loaded is None:
        return request.spec.default_size
    return choose_bucket(loaded.image.width, loaded.image.height, request.sizes)


def _fit_notices(loaded: LoadedImage, size: tuple[int, int]) -> list[str]:
    """Says what the crop takes away, when it is more than a sliver."""
    notice = fit_notice(loaded.image.size, size)
    return [] if notice is None else [notice]


def _recipe(request: GenerateRequest, prepared: _Prepared) -> dict[str, object]:
    """The request's recipe with what only the run knows: settled size and hashes."""
    plan, loaded, frozen = prepared.plan, prepared.loaded, prepared.frozen
    if frozen is not None and frozen.is_sampled:
        loras = frozen.recipe.get("loras_sha256", [])
        companions = frozen.recipe.get("companions_sha256", [])
    else:
        loras = lora_hashes(request.loras)
        companions = companion_hashes(request.loras)
    return {
        **request.recipe(),
        "width": plan.width,
        "height": plan.height,
        "dtype": plan.dtype,
        "quant": plan.quant,
        "vae_tiling": plan.vae_tiling,
        "attention": plan.attention,
        "image_sha256": None if loaded is None else loaded.sha256,
        "weights_sha256": weights_hash(prepared.weights),
        "loras_sha256": loras,
        # Of few LoRAs: recipes of others stay as they were.
        **({"companions_sha256": companions} if companions else {}),
    }
