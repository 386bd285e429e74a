"""From a request to a stream that can begin: all that is known before weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from osp_cli.errors import InvalidRequestError, UnreadableMediaError
from osp_cli.events import Planned
from osp_cli.extend_request import ExtendRequest, state_path
from osp_cli.media.fitting import fit_notice
from osp_cli.media.image import LoadedImage, choose_bucket, decode_image, load_image
from osp_cli.media.live.recording import check_recording
from osp_cli.media.source_video import SourceVideo, probe_source
from osp_cli.outputs import STDOUT
from osp_cli.plan import Plan
from osp_cli.runtime.settling import Clip, settle
from osp_cli.runtime.stream_state import SavedStream, load_stream, states_of
from osp_cli.stage_sizes import staged_size_problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One stream, settled.

    Attributes:
        request: what was asked.
        clip: a chunk as if it were a clip; its recipe is the stream's.
        source: the video that goes on, if there is one.
        source_frames: how many pictures of it come first.
        saved: a state to go on from: that of the source, or of a stream that is taken up.
    """

    request: ExtendRequest
    clip: Clip
    source: SourceVideo | None
    source_frames: int
    saved: SavedStream | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.clip.plan.width, self.clip.plan.height

    @property
    def is_resumed(self) -> bool:
        """Whether it is the same stream as that of its state."""
        return self.request.resume is not None

    @property
    def state_path(self) -> Path | None:
        """Where its state is kept: beside the file, if there is one."""
        return state_path(self.request.output) if self.request.is_file else None

    @property
    def chunk_frames(self) -> int:
        """Pictures of a chunk, other than the very first."""
        request = self.request
        figures = replace(request.figures, latent_frames=request.latent_frames)
        return figures.num_frames(first=False, group=request.spec.scale_factor_temporal)

    @property
    def picture(self) -> Image.Image | None:
        """The picture that it begins with, at the stream's size."""
        return self.clip.image


def preview_extend_plan(request: ExtendRequest) -> tuple[Planned, list[str]]:
    """What a run would do, without reading any weights but for their hashes.

    Raises:
        OspError: as `run_extend` would before it begins.
    """
    stream, notices = settle_stream(request)
    return Planned(stream.clip.plan), notices


def settle_stream(request: ExtendRequest) -> tuple[Stream, list[str]]:
    """Everything about a stream that is known before its first chunk, and what to tell of it.

    Raises:
        OspError: it cannot be made here.
    """
    _check_output(request)
    source = None if request.video is None else probe_source(request.video)
    saved, problems = _saved(request, source)
    size = _choose_size(request, source, saved)
    request = replace(request, width=size[0], height=size[1])
    clip, notices = settle(_as_clip(request), _recipe_entries(request, source, saved))
    clip = replace(clip, request=request)
    notices = [*problems, *notices]
    if source is not None:
        cropped = fit_notice((source.width, source.height), size, what="video")
        formed = _rate_notice(source, request)
        notices = [*source.notices, *filter(None, [cropped, formed]), *notices]
    if saved is not None and saved.recipe.get("weights_sha256") != clip.recipe["weights_sha256"]:
        if request.resume is not None:
            raise InvalidRequestError(
                f"the weights of {request.model} are others than those of {request.resume}",
                hint="osp extend VIDEO goes on from the video itself",
            )
        notices.append(f"other weights than those of {request.latents}: going on from its pictures")
        saved = None
    frames = 0 if source is None else source.num_frames_at(request.fps)
    if request.resume is not None and saved is not None:
        notices += filter(None, [_length_notice(request, saved)])
    stream = Stream(request=request, clip=clip, source=source, source_frames=frames, saved=saved)
    return replace(stream, clip=replace(clip, plan=_whole_plan(stream))), notices


def _whole_plan(stream: Stream) -> Plan:
    """The plan of a chunk, telling of the whole stream where that has an end."""
    plan, wanted = stream.clip.plan, stream.request.new_frames
    if wanted is None:
        return plan
    made = 0 if stream.saved is None or not stream.is_resumed else stream.saved.made
    chunks = max(1, -(-(wanted - made) // stream.chunk_frames))
    seconds = plan.expected_seconds
    return replace(
        plan,
        num_windows=chunks,
        total_frames=wanted + stream.source_frames,
        expected_seconds=None if seconds is None else seconds * chunks,
        operations=None if plan.operations is None else plan.operations * chunks,
    )


def _length_notice(request: ExtendRequest, saved: SavedStream) -> str | None:
    """Says that a stream is as long as it was to be."""
    if request.new_frames is None or saved.made < request.new_frames:
        return None
    there = saved.made / request.fps
    return (
        f"{request.output} has {there:.1f} s already and nothing is added: -t says how long the "
        f"whole stream gets, as in -t {math.ceil(there) + 30}"
    )


def _check_output(request: ExtendRequest) -> None:
    """Refuse a file that cannot be written."""
    if not request.is_file:
        return
    folder = request.output.parent
    if request.makes_folder and not folder.exists():
        return
    resumed = request.resume is not None
    check_recording(request.output, overwrite=request.overwrite or resumed, resumed=resumed)


def _rate_notice(source: SourceVideo, request: ExtendRequest) -> str | None:
    """Says in what form a clip of other form goes on."""
    same_rate = abs(float(source.fps) - request.fps) < 0.01
    if same_rate and (source.width, source.height) == (request.width, request.height):
        return None
    return (
        f"{source.path.name}, {source.width}x{source.height} at {float(source.fps):g} frames a "
        f"second, goes on as {request.width}x{request.height} at {request.fps}"
    )


def _saved(
    request: ExtendRequest, source: SourceVideo | None
) -> tuple[SavedStream | None, list[str]]:
    """The state to go on from, if it fits what is asked, and what to tell where it is damaged."""
    if request.resume is not None:
        return states_of(request.resume)[0], []
    if request.latents is None or source is None:
        return None, []
    try:
        saved = load_stream(request.latents)
    except UnreadableMediaError as error:
        return None, [f"{error.message}; going on from the video's pictures"]
    fits = (
        saved.recipe.get("model") == request.model
        and saved.frames == source.num_frames_at(request.fps)
        and (source.width, source.height) == (saved.recipe["width"], saved.recipe["height"])
        and (request.width is None or (request.width, request.height)
             == (source.width, source.height))
        and saved.recipe.get("fps") == request.fps
    )  # fmt: skip
    # The video may have been cut since, or it goes on at another size: then its pictures count.
    return (saved if fits else None), []


def _choose_size(
    request: ExtendRequest, source: SourceVideo | None, saved: SavedStream | None
) -> tuple[int, int]:
    """Asked size, else the state's, else the nearest that can be staged."""
    if request.width is not None and request.height is not None:
        return request.width, request.height
    if saved is not None:
        return int(saved.recipe["width"]), int(saved.recipe["height"])
    stages, multiple = len(request.stage_steps), request.spec.multiple_of
    able = tuple(
        size for size in request.sizes if staged_size_problem(*size, stages, multiple) is None
    )
    if not able:
        raise InvalidRequestError(
            f"no size of {request.model} can be halved {stages - 1} times",
            hint="--stages 1, or another --size",
        )
    if source is not None:
        shown = source.width, source.height
    else:
        loaded = _picture(request)
        if loaded is None:
            default = request.spec.default_size
            return default if default in able else able[0]
        shown = loaded.image.size
    return choose_bucket(*shown, able)


def _picture(request: ExtendRequest) -> LoadedImage | None:
    if request.image_data is not None:
        return decode_image(request.image_data, name="the picture on stdin")
    return None if request.image is None else load_image(request.image)


def _as_clip(request: ExtendRequest) -> ExtendRequest:
    """What one chunk asks of the machine."""
    output = request.output
    if output != STDOUT and request.is_file:
        # Looked at already, as a stream; a clip is of another kind.
        output = output.with_name(f".{output.stem}.chunk.mp4")
    else:
        output = Path(".osp-extend.chunk.mp4")
    return replace(request, output=output, overwrite=True, latents=None, vae_tiling=False)


def _recipe_entries(
    request: ExtendRequest, source: SourceVideo | None, saved: SavedStream | None
) -> Mapping[str, Any]:
    if request.resume is not None and saved is not None:
        # The same stream: only how long it gets is told anew, and the weights must be as they were.
        kept = {name: value for name, value in saved.recipe.items() if name != "weights_sha256"}
        return {**kept, "new_frames": request.new_frames}
    return {} if source is None else {"video_sha256": source.sha256}


__all__ = ["Stream", "preview_extend_plan", "settle_stream"]
