"""The one line that tells how a stream is doing, however narrow the terminal is.

    chunk 41 · 0:56.4 · 25.1 fps · 1.05x · q 1/0 · gen .92 dec .38 enc .12 s · drift +.03 · ...

Numbers change in their place. Where there is no room for all of it, what matters least to a viewer
goes first; the prompt takes the room that is left.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from osp_cli.cli import console
from osp_cli.events import ChunkStreamed

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text

# Less of a prompt says nothing; so much of it is worth more than parts beyond that rank.
_LEAST_PROMPT, _GOOD_PROMPT, _GOOD_RANK = 12, 24, 5
_PROMPT_MARK = "prompt> "
_PROMPT_RANK = 3
_TIMES = "\N{MULTIPLICATION SIGN}"


class Part(NamedTuple):
    """A part of the line.

    Attributes:
        text: as it is shown.
        rank: 0 is the last to go.
        style: Rich's, where it says more than usual.
    """

    text: str
    rank: int
    style: str = ""


def plain_line(event: ChunkStreamed) -> str:
    """The line for whatever is no terminal: plain words, all of them."""
    waits = f", {event.rebuffers} waits" if event.rebuffers else ""
    drift = "" if event.drift is None else f", drift {_drift_text(event)}"
    return (
        f"chunk {event.chunk}, {clock(event.video_seconds)}, {event.fps:.1f} fps, "
        f"{event.realtime_factor:.2f}x real time{waits}{drift}, "
        f"prompt {event.prompt_number}/{event.num_prompts}: {event.prompt}".removesuffix(": ")
    )


def live_line(event: ChunkStreamed, width: int, *, encoding: str = "utf-8") -> Text:
    """The line for a terminal of `width` columns, of which it takes one less at most.

    Args:
        encoding: of the terminal; what it lacks is replaced.
    """
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    plain = not encoding.lower().startswith("utf")
    dot = " | " if plain else " · "
    # A line that fills the last column is two lines to some terminals.
    room = width - 1
    parts = _parts(event)
    prompt = console.visible(" ".join(event.prompt.split()))
    # Some of the prompt comes before what is for engineers.
    kept = 2 + min(cell_len(prompt), _GOOD_PROMPT) if prompt else 0
    while len(parts) > 1:
        least = max(parts, key=lambda part: part.rank)
        taken = cell_len(dot.join(part.text for part in parts))
        if taken + (kept if least.rank > _GOOD_RANK else 0) <= room:
            break
        parts.remove(least)
    line = Text(no_wrap=True, overflow="crop")
    for index, part in enumerate(parts):
        line.append(dot if index else "", "dim")
        line.append(part.text.replace(_TIMES, "x") if plain else part.text, part.style)
    left = room - line.cell_len - 2
    if prompt and left >= min(_LEAST_PROMPT, cell_len(prompt)) and parts[-1].rank == _PROMPT_RANK:
        if cell_len(prompt) > left:
            prompt = set_cell_size(prompt, left - 3).rstrip() + "..."
        line.append(f": {prompt}", "italic")
    line.truncate(room, overflow="crop")
    return line


def clock(seconds: float) -> str:
    """`0:56.4`, `12:03.0`, `1:02:03.4`."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    shown = f"{rest // 10:02d}.{rest % 10}"
    if minutes < 60:
        return f"{minutes}:{shown}"
    return f"{minutes // 60}:{minutes % 60:02d}:{shown}"


class LiveLine:
    """The line on a terminal, in its place below what was said before.

    May be called from any thread.

    Args:
        console: of stderr.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._event: ChunkStreamed | None = None
        self._typed: str | None = None
        # Reentrant, as a signal may strike while it is held.
        self._lock = threading.RLock()

    def show(self, event: ChunkStreamed) -> None:
        """A chunk is done."""
        with self._lock:
            self._event = event
            self._refresh()

    def show_typed(self, typed: str | None) -> None:
        """What somebody has typed of a line; None where nobody is typing."""
        with self._lock:
            self._typed = typed
            # Nobody wants it back for the sake of a line that is closed.
            if typed is not None or self._live is not None:
                self._refresh()

    def stop(self) -> None:
        """Take the line off the screen; it comes again with the next chunk."""
        with self._lock:
            live, self._live = self._live, None
            if live is not None:
                live.stop()

    def _refresh(self) -> None:
        if self._live is None:
            from rich.live import Live

            # stdout may carry the video itself and is left alone.
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start()
        self._live.refresh()

    def _render(self) -> RenderableType:
        from rich.console import Group

        width = self._console.width
        encoding = self._console.encoding
        lines: list[RenderableType] = []
        if self._event is not None:
            lines.append(live_line(self._event, width, encoding=encoding))
        if self._typed is not None:
            lines.append(typed_line(self._typed, width))
        return Group(*lines)


def typed_line(typed: str, width: int) -> Text:
    """What was typed so far, its end where it is too long, and a cursor behind it."""
    from rich.cells import cell_len
    from rich.text import Text

    shown = console.visible(typed)
    while cell_len(shown) > max(width - len(_PROMPT_MARK) - 2, 1):
        shown = shown[1:]
    line = Text(no_wrap=True, overflow="crop")
    line.append(_PROMPT_MARK, "bold")
    line.append(shown)
    line.append(" ", "reverse")
    return line


def _parts(event: ChunkStreamed) -> list[Part]:
    """All parts in the order in which they are shown, but for the words of the prompt."""
    slow = event.realtime_factor < 1
    parts = [
        Part(f"chunk {event.chunk}", 4),
        Part(clock(event.video_seconds), 0, "bold"),
        Part(f"{event.fps:.1f} fps", 5),
        Part(f"{event.realtime_factor:.2f}{_TIMES}", 1, "yellow" if slow else "green"),
        Part(f"q {event.decode_queue}/{event.write_queue}", 7),
        Part(
            f"gen {_short(event.generate_seconds)} dec {_short(event.decode_seconds)} "
            f"enc {_short(event.write_seconds)} s",
            8,
        ),
    ]
    if event.drift is not None:
        parts.append(Part(f"drift {_drift_text(event)}", 2, "yellow" if event.drift_word else ""))
    # Told early on once it has happened: it is what a viewer saw.
    waits = event.rebuffers
    parts.append(Part(f"rebuf {waits}", 2 if waits else 6, "yellow" if waits else ""))
    parts.append(Part(f"prompt {event.prompt_number}/{event.num_prompts}", _PROMPT_RANK))
    return parts


def _drift_text(event: ChunkStreamed) -> str:
    drift = event.drift or 0.0
    sign = "-" if round(drift, 2) < 0 else "+"
    return f"{sign}{_short(abs(drift))} {event.drift_word}".rstrip()


def _short(value: float) -> str:
    """`.92`, `1.05`, `12.3`: three figures at most."""
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}".removeprefix("0")
