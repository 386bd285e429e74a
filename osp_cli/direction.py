"""Who directs a stream: its screenplay, and what is said while it runs.

A stream is made in chunks, so a change takes effect at the border of chunks that is nearest to its
time: a chunk is directed by all that lies before its middle. What is said without a time gets that
of the next chunk to be begun; so the log, read as a screenplay, directs the same chunks in the
same way. Prompts and styles are read into one another over some chunks; a cutoff changes at once.
"""

from __future__ import annotations

import dataclasses
import threading
from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from osp_cli.crossfade import Crossfade, Shares, Wording
from osp_cli.dials import Ramp
from osp_cli.errors import InvalidRequestError, OspError
from osp_cli.screenplay import (
    MAX_CUES,
    Command,
    Cue,
    checked_cutoff,
    checked_style,
    describe,
    format_time,
    parse_live,
)
from osp_cli.style_mix import NO_STYLE

__all__ = ["Answer", "Direction", "Scene", "Shares", "Shot", "Wording"]

# The paper's (section 5.1).
_CUTOFF = Ramp(0.1, 0.1)
_HELP = (
    "type a prompt, --style NAME, --cutoff 0.3 or several of them; 1:05: before it names a time; "
    "snapshot keeps a picture, quit ends the stream after its chunk"
)


@dataclass(frozen=True, slots=True)
class Scene:
    """All that directs a chunk.

    Attributes:
        prompt: what is shown.
        style: the canonical text of `StyleMix`, or `none`.
        cutoff: of the Fourier filter, at the chunk's first and last step.
    """

    prompt: str
    style: str = NO_STYLE
    cutoff: Ramp = _CUTOFF

    @property
    def wording(self) -> Wording:
        """What the model reads of it."""
        return Wording(self.prompt, self.style)

    def after(self, cue: Cue) -> Scene:
        """The scene once `cue` has changed it."""
        return Scene(
            self.prompt if cue.prompt is None else cue.prompt,
            self.style if cue.style is None else cue.style,
            self.cutoff if cue.cutoff is None else cue.cutoff,
        )


@dataclass(frozen=True, slots=True)
class Shot:
    """What a chunk shall be.

    Attributes:
        chunk: from 0.
        start: of the chunk, in seconds of the stream.
        scene: it leads to.
        shares: of the words that it is made of.
        restyled: its style or cutoff is another than that of the chunk before; True for chunk 0.
        number: of the prompt, counted from 1 among those of the whole timeline.
        total: of these prompts, as far as is known now.
    """

    chunk: int
    start: float
    scene: Scene
    shares: Shares
    restyled: bool
    number: int
    total: int


class Answer(str):
    """What a line led to, in a sentence for whoever said it.

    Attributes:
        accepted: whether it will be done.
    """

    __slots__ = ("accepted",)
    accepted: bool

    def __new__(cls, text: str, accepted: bool = True) -> Answer:
        answer = super().__new__(cls, text)
        answer.accepted = accepted
        return answer


class Direction:
    """The timeline of a stream. All of it may be called from any thread.

    Args:
        cues: of the screenplay, in the order of their times.
        scene: the stream begins with, as far as no cue changes it.
        crossfade: chunks over which one wording goes over into the next; 1 changes at once.
        check: refuses, with an `OspError` of the user's, a scene that this model cannot show.

    Raises:
        InvalidRequestError: by `check`, for a scene of the screenplay.
        ValueError: a cue without a time, or a crossfade of no chunk.
    """

    def __init__(
        self,
        cues: Iterable[Cue] = (),
        scene: Scene = Scene(""),
        *,
        crossfade: int = 1,
        check: Callable[[Scene], None] | None = None,
    ) -> None:
        self._lock = threading.RLock()
        self._first = scene
        self._cues: list[Cue] = []
        self._check = check
        for cue in cues:
            self._insert(cue)
        for reached in self.scenes():
            self._judge(reached)
        # The chunk to be begun next, and where it begins.
        self._chunk, self._next = 0, 0.0
        self._shown: Scene | None = None
        self._fade = Crossfade(crossfade)
        self._ends, self._snapshots = False, 0

    def begin(self, start: float, seconds: float) -> Shot:
        """Direct the next chunk, which is settled with that: what is said later comes later.

        Args:
            start: of the chunk, in seconds of the stream.
            seconds: that it lasts.

        Raises:
            ValueError: the chunk begins before the end of the one before it.
        """
        with self._lock:
            if seconds <= 0 or start < self._next - seconds / 2:
                raise ValueError(f"a chunk at {start} s cannot follow one up to {self._next} s")
            middle = start + seconds / 2
            passed = [cue for cue in self._cues if _time(cue) < middle]
            scene = self._scene_after(passed)
            before, self._shown = self._shown, scene
            shares = self._fade.step(scene.wording)
            restyled = before is None or (before.style, before.cutoff) != (
                scene.style,
                scene.cutoff,
            )
            chunk, self._chunk, self._next = self._chunk, self._chunk + 1, start + seconds
            number, total = len(self._prompts(passed)), len(self._prompts(self._cues))
            return Shot(chunk, start, scene, shares, restyled, number, total)

    def scene_at(self, seconds: float) -> Scene:
        """What the timeline says for a moment, whatever chunks there are."""
        with self._lock:
            return self._scene_after([cue for cue in self._cues if _time(cue) <= seconds])

    def scenes(self, after: float = -1.0) -> tuple[Scene, ...]:
        """All scenes that are known to come later than `after`, and the one that is on then.

        To be read before they are needed.
        """
        with self._lock:
            scenes = [self.scene_at(after)]
            for cue in self._cues:
                scene = scenes[-1].after(cue)
                if _time(cue) > after:
                    scenes.append(scene)
            return tuple(dict.fromkeys(scenes))

    def say(self, line: str, seconds: float | None = None) -> Answer:
        """Take a line that came while the stream ran.

        Args:
            line: as `parse_live` reads it.
            seconds: of the stream, from when on it shall hold, where the line does not say; None
                is the next chunk to be begun.

        Returns:
            What will be done and when, or why not. Empty for an empty line or a comment.
        """
        try:
            said = parse_live(line)
            if said is None:
                return Answer("")
            return self._obey(said) if isinstance(said, Command) else self._take(said, seconds)
        except OspError as error:
            hint = f"; {error.hint}" if error.hint else ""
            return Answer(f"not done: {error.message}{hint}", accepted=False)

    @property
    def ends(self) -> bool:
        """Whether somebody has asked for the end."""
        return self._ends

    def take_snapshots(self) -> int:
        """How many pictures were asked for since the last call."""
        with self._lock:
            count, self._snapshots = self._snapshots, 0
            return count

    @property
    def next_start(self) -> float:
        """Seconds of the stream from which on it can still be changed."""
        return self._next

    def log(self) -> tuple[Cue, ...]:
        """A screenplay that directs the same chunks in the same way, whatever was said and when.

        It begins with the whole first scene, and so needs nothing of the command line.
        """
        with self._lock:
            first = self._first
            begin = Cue(seconds=0.0, prompt=first.prompt, style=first.style, cutoff=first.cutoff)
            return (begin, *self._cues)

    def as_json(self) -> dict[str, Any]:
        """All that a resumed stream needs, in plain JSON values.

        To be taken once a chunk's latents are there and before the next is begun, and to be kept
        with that chunk: chunks are written later than they are made.
        """
        with self._lock:
            return {
                "scene": _scene_json(self._first),
                "cues": [
                    {"seconds": cue.seconds, "prompt": cue.prompt, "style": cue.style,
                     "cutoff": None if cue.cutoff is None else list(cue.cutoff)}
                    for cue in self._cues
                ],
                "chunk": self._chunk,
                "next": self._next,
                "shown": None if self._shown is None else _scene_json(self._shown),
                "crossfade": self._fade.as_json(),
            }  # fmt: skip

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], *, check: Callable[[Scene], None] | None = None
    ) -> Direction:
        """The direction of which this is the JSON, at the same chunk.

        Raises:
            InvalidRequestError: it is none, a style in it is here no more, or `check` refuses it.
        """
        try:
            cues = [
                Cue(
                    seconds=float(cue["seconds"]),
                    prompt=None if cue["prompt"] is None else _text(cue["prompt"]),
                    style=None if cue["style"] is None else checked_style(_text(cue["style"])),
                    cutoff=None if cue["cutoff"] is None else _ramp(cue["cutoff"]),
                )
                for cue in value["cues"]
            ]
            made = cls(cues, _scene(value["scene"]), check=check)
            made._fade = Crossfade.from_json(value["crossfade"])
            made._chunk, made._next = int(value["chunk"]), float(value["next"])
            made._shown = None if value["shown"] is None else _scene(value["shown"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidRequestError(
                "the state of the stream holds no timeline that can be read",
                hint="start the stream anew, without --resume",
            ) from error
        return made

    def _obey(self, command: Command) -> Answer:
        with self._lock:
            match command:
                case Command.QUIT:
                    self._ends = True
                    return Answer("ending after this chunk")
                case Command.SNAPSHOT:
                    self._snapshots += 1
                    return Answer("keeping a picture")
                case Command.HELP:
                    return Answer(_HELP)

    def _take(self, cue: Cue, seconds: float | None) -> Answer:
        with self._lock:
            if len(self._cues) >= MAX_CUES:
                raise InvalidRequestError(f"a stream takes at most {MAX_CUES} changes")
            asked = cue.seconds if cue.seconds is not None else seconds
            time = self._next if asked is None else max(asked, self._next)
            late = ""
            if cue.seconds is not None and cue.seconds < time:
                late = f", as {format_time(cue.seconds)} is past"
            cue = dataclasses.replace(cue, seconds=time)
            self._judge(self.scene_at(time).after(cue))
            self._insert(cue)
            return Answer(f"from {format_time(round(time, 1))} on{late}: {describe(cue)}")

    def _judge(self, scene: Scene) -> None:
        if self._check is not None:
            self._check(scene)

    def _insert(self, cue: Cue) -> None:
        # Behind those of the same time: what was said later holds.
        insort(self._cues, cue, key=_time)

    def _scene_after(self, cues: Iterable[Cue]) -> Scene:
        scene = self._first
        for cue in cues:
            scene = scene.after(cue)
        return scene

    def _prompts(self, cues: list[Cue]) -> list[str]:
        """The prompts one after the other, those that come again counted again."""
        prompts = [self._first.prompt]
        for cue in cues:
            if cue.prompt is None or cue.prompt == prompts[-1]:
                continue
            if _time(cue) == 0:
                # At the very beginning it stands in the place of the first.
                prompts.clear()
            prompts.append(cue.prompt)
        return prompts


def _time(cue: Cue) -> float:
    if cue.seconds is None:
        raise ValueError(f"a cue of a timeline has a time, got {cue}")
    return cue.seconds


def _scene_json(scene: Scene) -> dict[str, Any]:
    return {"prompt": scene.prompt, "style": scene.style, "cutoff": list(scene.cutoff)}


def _scene(value: Mapping[str, Any]) -> Scene:
    style = checked_style(_text(value["style"]))
    return Scene(_text(value["prompt"]), style, _ramp(value["cutoff"]))


def _ramp(value: Any) -> Ramp:
    start, end = value
    ramp = Ramp(float(start), float(end))
    checked_cutoff(ramp)
    return ramp


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"no text: {value!r}")
    return value
