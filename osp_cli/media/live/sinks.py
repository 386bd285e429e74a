"""Where a stream goes: a file, viewers, or several of them at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from osp_cli.errors import OspError
from osp_cli.events import Saved
from osp_cli.media.live.feeding import Feeder, Watched
from osp_cli.media.live.pacing import Pacer
from osp_cli.media.live.picture import Picture
from osp_cli.media.live.recording import Recording
from osp_cli.media.live.streams import Stream
from osp_cli.media.live.targets import Target, check_targets, parse_targets
from osp_cli.media.sound import AudioTrack

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Added to the time that a chunk is shown: how long one target may hold up the others.
_PATIENCE_SECONDS = 1.0
# Besides what is left to show, for a target to end.
_END_SECONDS = 3.0


def _no_status() -> Mapping[str, Any]:
    return {}


def _no_steering(_: str) -> str | None:
    return "this stream cannot be steered"


def _unheard(_: str) -> None:
    """For those who read `notices` afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEvents:
    """What a target asks and tells while the stream runs; called from any thread.

    Attributes:
        status: plain JSON values about the stream, for its page.
        steer: takes a line typed by a viewer; None where it is taken, else a sentence why not.
        notice: told a sentence as soon as a target ends, falls behind or can be watched.
    """

    status: Callable[[], Mapping[str, Any]] = _no_status
    steer: Callable[[str], str | None] = _no_steering
    notice: Callable[[str], None] = _unheard


class LiveSink(Protocol):
    """Takes the frames of a stream as they are made; what was taken is never lost.

    Attributes:
        notices: sentences about what happened so far.
        addresses: where the stream can be watched in a browser.
    """

    notices: list[str]
    addresses: tuple[str, ...]

    @property
    def is_live(self) -> bool:
        """Whether somebody watches, so that `write` keeps to the clock."""

    @property
    def rebuffers(self) -> int:
        """How many times a viewer had to wait for a frame."""

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Take the frames of a chunk, uint8 `(n, height, width, 3)`, not to be changed afterwards.

        A file has them on return; viewers get them when they are due, and what is ahead of the
        clock by more than a chunk waits here.

        Raises:
            ValueError: frames of another form.
            WontFitError: the disk is full.
            RuntimeFailureError: ffmpeg ended, or the last target did; `kept` names what plays.
            BrokenPipeError: nobody watches any more.
        """

    def close(self, recipe: Mapping[str, Any] | None = None) -> Saved | None:
        """End the stream: the file gets its name, then viewers see the rest.

        Args:
            recipe: the one to keep, where the stream added to it while it ran.

        Returns:
            The file; None without one.

        Raises:
            As for `write`.
        """

    def abort(self) -> Path | None:
        """End everything at once, from any thread; the recording that stays, if there is one."""


def open_live(
    targets: Sequence[str],
    *,
    output: Path,
    width: int,
    height: int,
    fps: int | float | Fraction,
    chunk_frames: int,
    recipe: Mapping[str, Any],
    overwrite: bool = False,
    metadata: bool = True,
    events: LiveEvents | None = None,
    first_chunk_frames: int | None = None,
    first_frame: int = 0,
    earlier: Sequence[Path] = (),
    paced: bool = True,
    audio: AudioTrack | None = None,
) -> LiveSink:
    """The sink of a stream.

    Args:
        targets: `file`, `stdout`, `stdout:y4m`, `mpv`, `http`, `http:PORT`, an address (`udp://`,
            `srt://`, `rtmp://`, `rtmps://`) or a playlist `NAME.m3u8`.
        output: what `file` writes, a `.mp4` or `.mkv`; `-` makes `stdout` of it.
        width, height: of the frames, both even.
        fps: frames per second.
        chunk_frames: frames of a chunk; the file can be cut at chunks.
        recipe: what makes the stream, kept in the file and beside it.
        overwrite: replace what is there.
        metadata: with False no recipe is kept.
        events: what targets ask and tell.
        first_chunk_frames: of the first chunk, where that is another number.
        first_frame: number of the first frame, where the stream goes on from an earlier run.
        earlier: what that left of the file, from `take_up`.
        audio: sound of the first part, for the file alone.
        paced: keep viewers to the clock; with False they get frames as fast as they take them.

    Raises:
        ValueError: a size that is odd, or a rate or chunk that is none.
        InvalidRequestError: a target that is none or cannot work here.
        RuntimeFailureError: ffmpeg is missing.
    """
    places = parse_targets(targets, Path(output))
    viewers = [place for place in places if place.kind != "file"]
    # A playlist is gone on with.
    check_targets(viewers, output, overwrite=overwrite or first_frame > 0)
    picture = Picture(
        width=width,
        height=height,
        fps=fps,
        chunk_frames=chunk_frames,
        first_chunk_frames=first_chunk_frames,
    )
    events = LiveEvents() if events is None else events
    recording = None
    if any(place.kind == "file" for place in places):
        kept = recipe if metadata else None
        recording = Recording(
            *(output, picture),
            recipe=kept,
            overwrite=overwrite,
            earlier=earlier,
            audio=audio,
        )
    sink = _Targets(picture, recording, events)
    with contextlib.ExitStack() as stack:
        stack.callback(sink.abort)
        for place in viewers:
            sink.add(place, first_frame=first_frame, paced=paced)
        stack.pop_all()
    return sink


class _Targets:
    """A recording, viewers, or both (see `LiveSink`)."""

    def __init__(self, picture: Picture, recording: Recording | None, events: LiveEvents) -> None:
        self.notices: list[str] = []
        self.addresses: tuple[str, ...] = ()
        self._picture = picture
        self._recording = recording
        self._events = events
        self._feeders: list[Feeder] = []
        self._live: set[Feeder] = set()
        self._past_rebuffers = 0

    @property
    def is_live(self) -> bool:
        return any(feeder in self._live for feeder in self._feeders)

    @property
    def rebuffers(self) -> int:
        return self._past_rebuffers + sum(feeder.rebuffers for feeder in self._feeders)

    def add(self, place: Target, *, first_frame: int, paced: bool) -> None:
        """Open one more target."""
        on_time = paced and place.is_live
        lead = max(0, self._picture.start - self._picture.chunk_frames)
        pacer = Pacer(self._picture.fps, start_frames=lead) if on_time else None
        feeder = Feeder(self._open(place, first_frame), pacer)
        self._feeders.append(feeder)
        if on_time:
            self._live.add(feeder)

    def write(self, frames: NDArray[np.uint8]) -> None:
        self._picture.check(frames)
        if not len(frames):
            return
        if self._recording is not None:
            self._recording.write(frames)
        for feeder in list(self._feeders):
            try:
                was_behind = feeder.is_behind
                taken = feeder.offer(frames, patience=self._patience(feeder))
            except (OspError, OSError) as error:
                self._drop(feeder, error)
                continue
            if not taken and not was_behind:
                self._tell(f"{feeder.name} takes nothing: the stream goes on, frames are left out")
            elif taken and was_behind:
                self._tell(f"{feeder.name} takes frames again, {feeder.skipped} were left out")

    def close(self, recipe: Mapping[str, Any] | None = None) -> Saved | None:
        # The file first: whatever happens while viewers see the rest, it is safe.
        saved = None
        if self._recording is not None:
            try:
                saved = self._recording.close(recipe)
                for notice in self._recording.notices:
                    self._tell(notice)
            except BaseException:
                self.abort()
                raise
        # All are told before one is waited for, so that they show the rest at the same time.
        for step in (self._end, self._join):
            for feeder in list(self._feeders):
                try:
                    step(feeder)
                except (OspError, OSError) as error:
                    self._drop(feeder, error)
        return saved

    def abort(self) -> Path | None:
        for feeder in self._feeders:
            feeder.abort()
        return None if self._recording is None else self._recording.abort()

    def _open(self, place: Target, first_frame: int) -> Watched:
        if place.kind == "http":
            from osp_cli.media.live.web_page import WebPage

            page = WebPage(
                self._picture,
                port=place.port,
                status=self._status,
                steer=self._events.steer,
                tell=self._tell,
            )
            self.addresses = (*self.addresses, page.address)
            self._tell(f"watch and steer the stream at {page.address}")
            return page
        return Stream(place, self._picture, first_frame=first_frame)

    def _end(self, feeder: Feeder) -> None:
        feeder.end(patience=self._patience(feeder))

    def _join(self, feeder: Feeder) -> None:
        patience = self._patience(feeder)
        # Two chunks are on their way at most.
        if patience is not None:
            patience += self._picture.chunk_seconds + _END_SECONDS
        if not feeder.join(patience=patience):
            self._tell(f"{feeder.name} did not take the end of the stream")

    def _status(self) -> Mapping[str, Any]:
        return {"rebuffers": self.rebuffers, **self._events.status()}

    def _patience(self, feeder: Feeder) -> float | None:
        """How long a target may hold up the others; for ever where there are none."""
        if self._recording is None and len(self._feeders) == 1:
            return None
        return 0.0 if feeder.is_behind else self._picture.chunk_seconds + _PATIENCE_SECONDS

    def _drop(self, feeder: Feeder, error: Exception) -> None:
        """Go on without a target, as long as there is another."""
        self._feeders.remove(feeder)
        self._past_rebuffers += feeder.rebuffers
        feeder.abort()
        if self._recording is None and not self._feeders:
            raise error
        self._tell(f"{error}; the stream goes on without {feeder.name}")

    def _tell(self, notice: str) -> None:
        self.notices.append(notice)
        self._events.notice(notice)
