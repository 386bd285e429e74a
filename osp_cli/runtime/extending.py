"""Runs `osp extend`: a stream of chunks, made, decoded and written at the same time.

    Maker (a thread) -> latents -> Shower (a thread) -> pictures -> sinks, state, events (here)

Each hand-over holds one chunk at most, so memory does not grow, and the slowest of the three sets
the pace.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from osp_cli.direction import Direction, Scene
from osp_cli.errors import InvalidRequestError, OspError, RuntimeFailureError, WontFitError
from osp_cli.events import (
    ChunkStreamed,
    Done,
    Event,
    Loaded,
    Notice,
    Planned,
    Preview,
    StageFinished,
    StageStarted,
)
from osp_cli.extend_request import ExtendRequest, screenplay_path, state_before
from osp_cli.media.drift import DriftMeter
from osp_cli.media.files import atomic_output, make_folder
from osp_cli.media.live import LiveEvents, LiveSink, open_live, take_up
from osp_cli.media.live.recording import recording_path
from osp_cli.media.sound import AudioTrack
from osp_cli.media.source_video import probe_source
from osp_cli.outputs import STDOUT
from osp_cli.runtime.conveyor import Conveyor
from osp_cli.runtime.extend_settling import Stream, settle_stream
from osp_cli.runtime.memory_errors import is_out_of_memory, return_memory
from osp_cli.runtime.models import CONDITIONING, Models
from osp_cli.runtime.stream_engine import (
    Made,
    Maker,
    Parts,
    Shower,
    Shown,
    saved_beginning,
    tensors_of,
)
from osp_cli.runtime.stream_source import beginning_of, source_frames
from osp_cli.runtime.stream_state import SavedStream, forget, save_stream, states_of
from osp_cli.screenplay import format_screenplay
from osp_cli.stopping import StopSignal
from osp_cli.style_mix import NO_STYLE

# Chunks after which memory that lies unused between others' goes back to the system.
_CHUNKS_BETWEEN_TRIMS = 8
# Chunks over which the rate of a stream is taken.
_LATELY = 8
# Lines from elsewhere: given a function that takes one and answers, as a context.
Listen = Callable[[Callable[[str], str]], AbstractContextManager[object]]


def run_extend(
    request: ExtendRequest, *, stop: StopSignal | None = None, listen: Listen | None = None
) -> Iterator[Event]:
    """Yields the events of one stream; closing the iterator stops it and frees the device.

    Args:
        request: what to make.
        stop: the first signal finishes the chunk, the second ends at once.
        listen: where lines that steer come from, besides the page of `--sink http`.

    Raises:
        OspError: as named by its class; what was recorded until then plays.
    """
    started = time.perf_counter()
    stop = stop or StopSignal()
    timings: dict[str, float] = {}
    try:
        for event in _run(request, stop, listen):
            match event:
                case Loaded(_, seconds):
                    timings["load"] = timings.get("load", 0.0) + seconds
                case StageFinished(name, seconds):
                    timings[name] = seconds
                case ChunkStreamed():
                    for name, seconds in (
                        ("generate", event.generate_seconds),
                        ("decode", event.decode_seconds),
                        ("write", event.write_seconds),
                    ):
                        timings[name] = timings.get(name, 0.0) + seconds
            yield event
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise WontFitError(
            f"{request.model} ran out of memory",
            hint="use a smaller --size, fewer --latent-frames or --context, or --quant fp8",
        ) from error
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    yield Done(time.perf_counter() - started, timings, 0)


def _run(request: ExtendRequest, stop: StopSignal, listen: Listen | None) -> Iterator[Event]:
    stream, notices = settle_stream(request)
    yield Planned(stream.clip.plan)
    yield from map(Notice, notices)
    stream, earlier = _taken_up(stream)
    models = Models()
    parts = Parts(models, stream)
    yield from parts.load(CONDITIONING)
    yield from _Run(stream, parts, stop, listen, earlier).events()


def _taken_up(stream: Stream) -> tuple[Stream, tuple[Path, ...]]:
    """The stream from the newest state whose pictures are all in the file, and its pieces.

    Raises:
        UnreadableMediaError, InvalidRequestError: there is no such state.
    """
    request = stream.request
    if request.makes_folder and request.is_file and not request.output.parent.exists():
        make_folder(request.output.parent)
    if request.resume is None or not request.is_file:
        return stream, ()
    problem: OspError | None = None
    for saved in states_of(request.resume):
        try:
            pieces = take_up(request.output, saved.frames)
        except InvalidRequestError as error:
            problem = problem or error
            continue
        return dataclasses.replace(stream, saved=saved), pieces
    assert problem is not None
    raise problem


class _Run:
    """One stream on its way."""

    def __init__(
        self,
        stream: Stream,
        parts: Parts,
        stop: StopSignal,
        listen: Listen | None,
        earlier: tuple[Path, ...],
    ) -> None:
        self._stream, self._parts, self._stop = stream, parts, stop
        self._listen, self._earlier = listen, earlier
        self._request = stream.request
        resumed = stream.saved if stream.is_resumed else None
        self._direction = _direction(stream, resumed)
        self._drift = DriftMeter.from_state(resumed.notes["drift"] if resumed else None)
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._status: dict[str, Any] = {}
        self._turned = False
        # Pictures of the whole stream, and those of them that are new.
        self._frames = resumed.frames if resumed else 0
        self._made = resumed.made if resumed else 0
        self._chunk = int(resumed.notes["chunk"]) if resumed else 0
        self._began = time.perf_counter()
        self._made_at: deque[tuple[float, int]] = deque(maxlen=_LATELY + 1)
        self._last: NDArray[np.uint8] | None = None
        self._sink: LiveSink | None = None
        self._picture: Image.Image | None = None

    def events(self) -> Generator[Event, None, None]:
        """Everything from the first picture to the file's final name."""
        saved = self._stream.saved
        yield StageStarted("condition")
        started = time.perf_counter()
        if saved is None:
            beginning = beginning_of(self._stream, self._parts.vae)
        else:
            beginning = saved_beginning(saved)
        self._picture = beginning.picture
        maker = Maker(
            *(self._stream, self._parts, self._direction, beginning, saved),
            num_shown=int(self._shows_first),
        )
        shower = Shower(self._stream, self._parts.vae, beginning.tail)
        yield StageFinished("condition", time.perf_counter() - started)
        with self._ending(), self._stop.patience():
            self._sink = self._open()
            yield from self._tell()
            yield from self._lead_in(shower, beginning.first)
            self._keep_beginning(maker, shower)
            yield StageStarted("stream")
            yield from self._chunks(maker, shower)
            yield from self._close()

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Inside, the sink is open: whatever goes wrong, what it holds stays and is named."""
        try:
            yield
        except BrokenPipeError:
            self._abort()
            raise
        except OspError as error:
            self._abort()
            error.kept = tuple(dict.fromkeys((*error.kept, *self._kept())))
            raise
        except KeyboardInterrupt as error:
            self._abort()
            raise self._stop.error("stopped in the middle of a chunk", self._kept()) from error
        except GeneratorExit:
            self._abort()
            raise
        except Exception as error:
            self._abort()
            if is_out_of_memory(error):
                raise
            raise RuntimeFailureError(
                f"the stream broke off: {error}", kept=self._kept()
            ) from error

    def _open(self) -> LiveSink:
        request, chunk = self._request, self._stream.chunk_frames
        lead = self._num_leading()
        return open_live(
            request.sinks,
            output=request.output,
            width=self._stream.size[0],
            height=self._stream.size[1],
            fps=request.fps,
            chunk_frames=chunk,
            first_chunk_frames=(lead + chunk) if lead < chunk else lead,
            recipe=self._stream.clip.recipe,
            overwrite=request.overwrite,
            metadata=request.metadata,
            events=LiveEvents(status=self._now, steer=self._steered, notice=self._said.put),
            first_frame=self._frames,
            earlier=self._earlier,
            audio=self._sound(),
        )

    def _sound(self) -> AudioTrack | None:
        """The sound of the video that goes on, as long as that lasts; what comes next is silent."""
        source = self._stream.source
        if not self._request.is_file:
            return None
        if source is not None and self._shows_source:
            return source.sound(self._stream.source_frames / self._request.fps)
        if not self._earlier:
            return None
        earlier = probe_source(self._earlier[0])
        return earlier.sound(self._frames / self._request.fps)

    def _num_leading(self) -> int:
        """Pictures before the first chunk."""
        saved, source = self._stream.saved, self._stream.source
        cut = 0 if saved is None else int(saved.notes["cut"])
        if source is not None and self._shows_source:
            return self._stream.source_frames + cut
        return cut + int(self._shows_first)

    @property
    def _shows_first(self) -> bool:
        """Whether the picture itself is the first of the stream: not where the first chunk paints
        it, as one glimpse of the photo before a painting is a flash."""
        stream = self._stream
        if stream.saved is not None or stream.source is not None or stream.picture is None:
            return False
        return not (self._request.figures.paints and self._direction.scene_at(0).style != NO_STYLE)

    @property
    def _shows_source(self) -> bool:
        """A file has the whole video; who watches live has seen it."""
        return self._request.sinks == ("file",)

    def _lead_in(self, shower: Shower, first: torch.Tensor | None) -> Iterator[Event]:
        """The pictures that were there before: the video, or the picture itself."""
        saved = self._stream.saved
        if self._stream.source is not None and self._shows_source:
            yield StageStarted("copy")
            for frames in source_frames(self._stream, self._stream.chunk_frames):
                self._write(frames)
                if self._stop.requested:
                    raise self._stop.error("stopped before the first chunk", self._kept())
        elif first is not None and saved is None:
            picture = shower.first_picture(first)
            if self._shows_first:
                self._write(picture)
                self._made += 1
        if saved is not None and (cut := int(saved.notes["cut"])):
            frames = self._wanted(shower.unseen(cut))
            if len(frames):
                self._write(frames)
            self._made += len(frames)

    def _wanted(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Of these pictures, those that the stream is still to show."""
        if self._request.new_frames is None:
            return frames
        return frames[: max(0, self._request.new_frames - self._made)]

    def _chunks(self, maker: Maker, shower: Shower) -> Iterator[Event]:
        sink = self._sink
        assert sink is not None
        # Two at once pay where a device works beside this processor.
        ahead = 1 if self._stream.clip.plan.device == "cpu" else 2
        listening = contextlib.nullcontext() if self._listen is None else self._listen(self._steer)
        with listening, Conveyor(maker, shower, ahead=ahead, abandon=maker.abandon) as conveyor:
            self._began = time.perf_counter()

            def idle() -> None:
                if self._stop.requested:
                    conveyor.finish()

            while (shown := conveyor.take(idle)) is not None:
                idle()
                conveyor.advance()
                yield from self._show(shown, conveyor)
                yield from self._tell()
                if self._chunk % _CHUNKS_BETWEEN_TRIMS == 0:
                    return_memory()

    def _show(self, shown: Shown, conveyor: Conveyor[Made, Shown]) -> Iterator[Event]:
        """Write a chunk, keep its state, and tell of it."""
        request, shot = self._request, shown.made.shot
        frames = self._wanted(shown.frames)
        if not len(frames):
            return
        started = time.perf_counter()
        self._write(frames)
        written = time.perf_counter() - started
        self._made += len(frames)
        self._chunk += 1
        drift = self._drift.measure(frames, anew=shot.restyled or shot.shares.share < 1)
        waiting = conveyor.depths
        rate = self._rate(len(frames))
        event = ChunkStreamed(
            chunk=self._chunk,
            num_frames=self._made,
            video_seconds=self._made / request.fps,
            fps=rate,
            realtime_factor=rate / request.fps,
            decode_queue=waiting[0],
            write_queue=waiting[1],
            generate_seconds=shown.made.seconds,
            decode_seconds=shown.seconds,
            write_seconds=written,
            rebuffers=0 if self._sink is None else self._sink.rebuffers,
            prompt=shot.scene.prompt,
            prompt_number=shot.number,
            num_prompts=shot.total,
            drift=drift.value,
            drift_word=drift.word,
        )
        self._status = {
            "chunk": event.chunk,
            "seconds": event.video_seconds,
            "fps": event.fps,
            "realtime_factor": event.realtime_factor,
            "drift": event.drift,
            "queue": f"{event.decode_queue}/{event.write_queue}",
            "prompt": event.prompt,
        }
        self._keep(shown, len(frames))
        yield event
        yield from self._worth_telling(shown, event)
        yield from self._snapshots()

    def _worth_telling(self, shown: Shown, event: ChunkStreamed) -> Iterator[Event]:
        """What a viewer would wonder about."""
        zooming = shown.made.state.memory.get("zooming")
        turned = zooming is not None and abs(int(zooming)) == 2
        if turned and not self._turned:
            yield Notice("the zoom has come to the end of the picture's detail, it turns round")
        self._turned = turned
        behind = self._sink is not None and self._sink.is_live and event.realtime_factor < 1
        if behind and self._chunk == _LATELY:
            yield Notice("slower than real time here, viewers wait; a smaller --size is quicker")

    def _rate(self, num_frames: int) -> float:
        """Pictures made in a second, over the last chunks."""
        self._made_at.append((time.perf_counter(), num_frames))
        began = self._made_at[0][0]
        passed = self._made_at[-1][0] - began
        count = sum(frames for _, frames in list(self._made_at)[1:])
        if not passed:
            passed, count = self._made_at[-1][0] - self._began, num_frames
        return count / max(passed, 1e-9)

    def _write(self, frames: NDArray[np.uint8]) -> None:
        assert self._sink is not None
        self._sink.write(frames)
        self._frames += len(frames)
        self._last = frames[-1]

    def _as_saved(
        self, tensors: dict[str, torch.Tensor], direction: Mapping[str, Any], cut: int
    ) -> SavedStream:
        return SavedStream(
            tensors=tensors,
            frames=self._frames,
            made=self._made,
            notes={
                "direction": direction,
                "drift": self._drift.state(),
                "chunk": self._chunk,
                # Pictures that were made and are not in the video, as it ended before them.
                "cut": cut,
            },
            recipe=self._stream.clip.recipe,
        )

    def _keep_beginning(self, maker: Maker, shower: Shower) -> None:
        """The state before the first chunk: should that never be whole, there is a way on."""
        path = self._stream.state_path
        if path is None or self._stream.is_resumed:
            return
        # Of a stream that had this name: no way back may lead to it.
        forget(path)
        if self._frames:
            state, direction = maker.first
            tensors = tensors_of(state, shower.tail, self._picture)
            save_stream(path, self._as_saved(tensors, direction, 0))

    def _keep(self, shown: Shown, num_frames: int) -> None:
        """The state after a chunk, of which so many pictures were shown, and the log."""
        path = self._stream.state_path
        if path is None:
            return
        made = shown.made
        tensors = tensors_of(made.state, shown.tail, self._picture, made.anchor)
        cut = len(shown.frames) - num_frames
        save_stream(path, self._as_saved(tensors, made.direction, cut))
        cues = self._direction.log()
        if len(cues) > 1:
            log = screenplay_path(self._request.output)
            with atomic_output(log, overwrite=True) as part:
                part.write_text(format_screenplay(cues), encoding="utf-8")

    def _snapshots(self) -> Iterator[Event]:
        if not self._direction.take_snapshots() or self._last is None:
            return
        output = self._request.output
        stem = "stream" if output == STDOUT else output.stem
        folder = Path() if output == STDOUT else output.parent
        path = folder / f"{stem}-{self._frames:06d}.png"
        with atomic_output(path, overwrite=True) as part:
            Image.fromarray(self._last).save(part, format="PNG")
        yield Preview(path, self._chunk, 0)

    def _close(self) -> Iterator[Event]:
        """Give the file its name; an interrupted stream is told as that, with what it left."""
        assert self._sink is not None
        recipe = {**self._stream.clip.recipe}
        cues = self._direction.log()
        if len(cues) > 1:
            recipe["screenplay"] = format_screenplay(cues)
        recipe["frames"] = self._frames
        yield StageStarted("encode")
        started = time.perf_counter()
        saved = self._sink.close(recipe)
        yield StageFinished("encode", time.perf_counter() - started)
        yield from self._tell()
        if saved is not None:
            if self._stream.state_path is not None:
                # All pictures of the newest state are in the file.
                state_before(self._stream.state_path).unlink(missing_ok=True)
            yield saved
        if self._stop.requested:
            seconds = self._made / self._request.fps
            raise self._stop.error(f"stopped after {seconds:.1f} s", self._kept())

    def _abort(self) -> None:
        if self._sink is not None:
            self._sink.abort()

    def _kept(self) -> tuple[Path, ...]:
        output = self._request.output
        if not self._request.is_file:
            return ()
        found = (output, recording_path(output), self._stream.state_path)
        return tuple(path for path in found if path is not None and path.exists())

    def _now(self) -> Mapping[str, Any]:
        return self._status

    def _steer(self, line: str) -> str:
        return self._direction.say(line)

    def _steered(self, line: str) -> str | None:
        answer = self._direction.say(line)
        self._said.put(str(answer))
        return None if answer.accepted else str(answer)

    def _tell(self) -> Iterator[Event]:
        while not self._said.empty():
            if told := self._said.get():
                yield Notice(told)


def _direction(stream: Stream, resumed: SavedStream | None) -> Direction:
    """What is shown when; that of a stream that is taken up goes on."""
    request = stream.request

    def check(scene: Scene) -> None:
        if scene.cutoff != request.cutoff and not request.figures.paints:
            raise InvalidRequestError(
                f"{request.model} continues without a picture's frequencies, a cutoff changes "
                "nothing"
            )

    if resumed is not None:
        return Direction.from_json(resumed.notes["direction"], check=check)
    scene = Scene(request.prompt, request.style or NO_STYLE, _ramp(request))
    return Direction(request.cues, scene, crossfade=request.figures.crossfade, check=check)


def _ramp(request: ExtendRequest) -> Any:
    from osp_cli.dials import Ramp

    return Ramp(*request.cutoff)
