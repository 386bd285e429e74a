"""From a request to a video that can be restyled: all that is known before weights are loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osp_cli.dials import NO_CACHE
from osp_cli.events import Planned
from osp_cli.media.files import check_free_space
from osp_cli.media.fitting import fit_notice
from osp_cli.media.image import choose_bucket
from osp_cli.media.source_video import SourceVideo, probe_source
from osp_cli.outputs import STDOUT, windows_folder
from osp_cli.pipelines.restyle import Renoising, Showing, Window, num_steps, split
from osp_cli.requests import RestyleRequest
from osp_cli.runtime.freezing import spare_folder
from osp_cli.runtime.kept_windows import KeptWindows
from osp_cli.runtime.settling import Clip, settle

# What a request says that is not done so: each window has other values, and yet the recipe tells
# what was asked.
_AS_ASKED = ("num_frames", "num_inference_steps", "cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One video, settled.

    Attributes:
        request: what was asked.
        clip: a window as if it were a clip; its recipe is the video's.
        source: the video.
        num_frames: of the result.
        windows: of its latent frames.
        kept: those that are made.
    """

    request: RestyleRequest
    clip: Clip
    source: SourceVideo
    num_frames: int
    windows: tuple[Window, ...]
    kept: KeptWindows

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the result."""
        return self.clip.plan.width, self.clip.plan.height

    @property
    def num_latent_frames(self) -> int:
        """Of the result."""
        return self.windows[-1].stop

    @property
    def num_padded_frames(self) -> int:
        """Frames of the result with those behind it that fill up its last group."""
        return 1 + self.group * (self.num_latent_frames - 1)

    @property
    def group(self) -> int:
        """Frames of each latent frame but the first."""
        return _group(self.request)


def preview_restyle_plan(request: RestyleRequest) -> tuple[Planned, list[str]]:
    """What a run would do, without reading any weights but for their hashes.

    Raises:
        OspError: as `run_restyle` would before it begins.
    """
    job, notices = settle_restyle(request)
    return Planned(job.clip.plan), notices


def settle_restyle(request: RestyleRequest) -> tuple[Job, list[str]]:
    """Everything about a video that is known before its first window, and what to tell of it.

    Raises:
        OspError: it cannot be made here.
    """
    source = probe_source(request.video)
    num_frames = source.num_frames_at(request.fps)
    if request.total_frames is not None:
        num_frames = min(num_frames, request.total_frames)
    width, height = _choose_size(request, source)
    total = 1 + -(-(num_frames - 1) // _group(request))
    every = request.spec.scale_factor_temporal
    size = min(1 + (request.num_frames - 1) // every, total)
    windows = split(total, size, way_of(request).context)
    window = _window_request(request, width, height, num_frames=1 + every * (size - 1))
    clip, notices = settle(window, _recipe_entries(request, source))
    plan = replace(
        clip.plan,
        expected_seconds=_times(clip.plan.expected_seconds, len(windows)),
        operations=_times(clip.plan.operations, len(windows)),
        num_frames=1 + _group(request) * (size - 1),
        steps=_num_steps(request),
        num_windows=len(windows),
        total_frames=num_frames,
        disk_bytes=-(-clip.plan.disk_bytes * total // size),
    )
    if request.output != STDOUT:
        check_free_space(request.output.parent, plan.disk_bytes, what="the video")
    clip = replace(clip, plan=plan)
    kept = KeptWindows(
        _folder(request, clip.recipe),
        clip.recipe,
        windows,
        overwrite=request.overwrite,
        dtype=way_of(request).kept_dtype,
    )
    notices = [
        *source.notices,
        *filter(None, [fit_notice((source.width, source.height), (width, height), what="video")]),
        *notices,
        *_resuming(kept, len(windows)),
    ]
    job = Job(
        request=request,
        clip=clip,
        source=source,
        num_frames=num_frames,
        windows=tuple(windows),
        kept=kept,
    )
    return job, notices


def way_of(request: RestyleRequest) -> type[Renoising] | type[Showing]:
    """How the model restyles, as its card says."""
    return Showing if request.spec.restyle == "frames" else Renoising


def _group(request: RestyleRequest) -> int:
    # A picture of its own is a latent frame of its own.
    return 1 if way_of(request) is Showing else request.spec.scale_factor_temporal


def _times(of_a_window: float | None, num_windows: int) -> float | None:
    return None if of_a_window is None else of_a_window * num_windows


def _num_steps(request: RestyleRequest) -> int:
    if way_of(request) is Showing:
        return 1
    return num_steps(request.strength, request.num_inference_steps)


def _window_request(
    request: RestyleRequest, width: int, height: int, *, num_frames: int
) -> RestyleRequest:
    """What one window asks of the machine."""
    # No step is left where the source comes back as it is, but a clip has one.
    window = replace(
        request,
        width=width,
        height=height,
        num_frames=num_frames,
        num_inference_steps=max(1, _num_steps(request)),
        vae_tiling=False,
    )
    # With a single step there is nothing to leave out.
    return replace(window, cache=NO_CACHE) if way_of(request) is Showing else window


def _choose_size(request: RestyleRequest, source: SourceVideo) -> tuple[int, int]:
    if request.width is not None and request.height is not None:
        return request.width, request.height
    return choose_bucket(source.width, source.height, request.sizes)


def _recipe_entries(request: RestyleRequest, source: SourceVideo) -> dict[str, Any]:
    asked = request.recipe()
    return {**{name: asked[name] for name in _AS_ASKED}, "video_sha256": source.sha256}


def _folder(request: RestyleRequest, recipe: Mapping[str, Any]) -> Path:
    if request.output != STDOUT:
        return windows_folder(request.output)
    # By what it makes, so that the same command finds it again.
    digest = hashlib.sha256(repr(sorted(recipe.items())).encode()).hexdigest()
    return spare_folder() / f"stdout-{digest[:16]}.latents"


def _resuming(kept: KeptWindows, num_windows: int) -> list[str]:
    notices = []
    if kept.damaged is not None:
        notices.append(f"window {kept.damaged} in {kept.folder} is damaged, it is made again")
    if kept.count:
        notices.append(
            f"going on from {kept.folder}, which has {kept.count} of {num_windows} windows"
        )
    return notices
